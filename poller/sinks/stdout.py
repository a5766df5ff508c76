"""Standard output: one line per event, as `fetch` prints them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from poller.config.sinks import StdoutSink as Settings
from poller.delivery import Accepted, Outcome
from poller.errors import OutputError
from poller.events import OutboxEvent, ndjson
from poller.files import write_whole
from poller.sinks import Configured

# What `fetch` and `backfill` print has no sink in the configuration: every line, however long, at once.
PRINTED = Settings(name="stdout", batch_age_seconds=0.0, max_event_bytes=sys.maxsize)


class StdoutSink(Configured):
    """Writes lines to standard output, and counts them done when all of them are out."""

    def __init__(self, settings: Settings, render: Callable[[OutboxEvent], bytes] | None = None) -> None:
        """Raises: OutputError when there is no standard output."""
        super().__init__(settings)
        if sys.stdout is None:
            raise OutputError("there is no output: stdout is closed", hint="send it to a file or a pipe")
        self._descriptor = sys.stdout.fileno()
        self._render = render

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Write all of it.  Raises: OutputError when nobody reads any more, or the disk behind it is full."""
        render = self._render
        data = b"\n".join([*(render(event) for event in events), b""]) if render else ndjson(events)
        try:
            write_whole(self._descriptor, data)
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
