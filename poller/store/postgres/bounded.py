"""Connections that do not wait for ever for a server that stands still, such as one whose disk hangs.

Its kernel goes on to answer for it, so no time-out of the network ends that wait, and the server's own limit ends nothing.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg

from poller.system.liveness import moves


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which each statement ends within `answer_seconds`, if they are given: with its answer or with an error."""

    answer_seconds: float | None = None

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
        """Wait for what the server answers.  Raises: psycopg.errors.QueryCanceled, and the connection is closed then."""
        if self.answer_seconds is None:
            return super().wait(gen, *args, **options)
        moves(self.answer_seconds)  # this wait is meant
        try:
            return super().wait(self._bounded(gen, self.answer_seconds), *args, **options)
        finally:
            moves()

    def _bounded(self, gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
        """The same steps of the protocol, of which psycopg asks for one whenever the server has sent nothing for a moment."""
        ends_at = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() >= ends_at:
                    self.pgconn.finish()  # whatever it answers later is not for what comes next
                    raise psycopg.errors.QueryCanceled(f"no answer for {seconds:.0f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
