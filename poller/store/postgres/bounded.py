"""Connections with a limit on the wait for a server that hangs, for example because of its disk.

The kernel of such a server still answers, so no time-out of the network ends the wait, and neither does the server's own limit.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg

from poller.system.liveness import moves


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection on which each statement ends within `answer_seconds` (None: no limit), with its answer or an error."""

    answer_seconds: float | None = None

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
        """Wait for the server's answer.  Raises: psycopg.errors.QueryCanceled at the limit; the connection is then closed."""
        if self.answer_seconds is None:
            return super().wait(gen, *args, **options)
        moves(self.answer_seconds)  # a wait of this length is normal
        try:
            return super().wait(self._bounded(gen, self.answer_seconds), *args, **options)
        finally:
            moves()

    def _bounded(self, gen: Generator[Any, Any, Any], seconds: float) -> Generator[Any, Any, Any]:
        """The same steps of the protocol, with the limit. psycopg also resumes them if the server was silent for a moment."""
        ends_at = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() >= ends_at:
                    self.pgconn.finish()  # a late answer must not count as the next one
                    raise psycopg.errors.QueryCanceled(f"no answer for {seconds:.0f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
