"""Standard output: one line per event, as `fetch` prints them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import BinaryIO

from poller.config.sinks import StdoutSink as Settings
from poller.delivery import Accepted, Outcome
from poller.errors import OutputError
from poller.events import OutboxEvent, ndjson
from poller.sinks import Configured

# What `fetch` and `backfill` print has no sink in the configuration: every line, however long, at once.
PRINTED = Settings(name="stdout", batch_age_seconds=0.0, max_event_bytes=sys.maxsize)


class StdoutSink(Configured):
    """Writes lines to a stream and counts them done when the stream was flushed."""

    def __init__(
        self, settings: Settings, stream: BinaryIO, render: Callable[[OutboxEvent], bytes] | None = None
    ) -> None:
        super().__init__(settings)
        self._stream = stream
        self._render = render

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
