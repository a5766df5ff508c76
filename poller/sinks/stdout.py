"""Standard output: one line per event, as `fetch` prints them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import BinaryIO

from poller.config.sinks import Oversize
from poller.delivery import Accepted, Outcome
from poller.errors import OutputError
from poller.events import OutboxEvent, ndjson


class StdoutSink:
    """Writes lines to a stream and counts them done when the stream was flushed."""

    type = "stdout"
    batch_age_seconds = 0.0
    max_event_bytes = sys.maxsize
    oversize: Oversize = "dead-letter"
    retry_initial_seconds = retry_max_seconds = 1.0
    max_age_seconds: float | None = None
    mark: int | None = None
    redact: Callable[[bytes], bytes] | None = None

    def __init__(
        self,
        stream: BinaryIO,
        *,
        name: str = "stdout",
        batch_events: int = 1000,
        batch_bytes: int = 1024 * 1024,
        render: Callable[[OutboxEvent], bytes] | None = None,
    ) -> None:
        self.name = name
        self.batch_events = batch_events
        self.batch_bytes = batch_bytes
        self._stream = stream
        self._render = render

    def resume(self, mark: int | None) -> None:
        """Nothing to do: what was written was read."""

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Write and flush.  Raises: OutputError when nobody reads any more, or the disk behind it is full."""
        render = self._render
        data = b"\n".join([*(render(event) for event in events), b""]) if render else ndjson(events)
        try:
            self._stream.write(data)
            self._stream.flush()
        except BrokenPipeError as error:
            raise OutputError(
                "the reader of our output has gone away", hint="what it did not take comes with the next run"
            ) from error
        except OSError as error:
            raise OutputError(
                f"output cannot be written: {error.strerror}",
                hint="what was not written comes with the next run",
            ) from error
        return Accepted()

    def probe(self) -> Outcome:
        """Nothing to try: what stdout is only shows when it is written to."""
        return Accepted()
