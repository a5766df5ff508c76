"""Standard output: one line per event, as `fetch` prints them.

Whatever ends a write in the middle of a line, the next one must not go on in that line:

- In a regular file, half a line that a full disk left is cut off at once. `output_offset` is where the first line begins that
  is not settled; it is in the state before anything is written. So what a killed process wrote behind it is known by its bytes,
  and the next process writes what is missing. Nothing that is not ours is ever cut off: behind half a line of anybody else's, or
  where the file cannot be read, a new line begins.
- Of a pipe, `output_offset` says (as a negative number) which one may hold half a line. A repeat into the same one begins with
  a new line.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Sequence

from poller.config.sinks import StdoutSink as Settings
from poller.core.delivery import Accepted, Outcome
from poller.core.errors import OutputError, PollerError
from poller.core.events import OutboxEvent, ndjson_pieces
from poller.core.mapping import escaped
from poller.sinks.base import Context, OwnOutput
from poller.sinks.render import build_render
from poller.system.closed_output import no_output
from poller.system.files import write_most

# What `fetch` and `backfill` print has no sink in the configuration: every line, however long, at once.
PRINTED = Settings(name="stdout", batch_age_seconds=0.0, max_event_bytes=sys.maxsize)

# There is one standard output: after a reload, a send of the sink before may still be on its way.
_WRITING = threading.Lock()


class StdoutSink(OwnOutput):
    """Writes lines to standard output, and counts them done when all of them are out."""

    def __init__(
        self, settings: Settings, render: Callable[[OutboxEvent], bytes] | None = None, *, is_alone: bool = True
    ) -> None:
        """`is_alone`: there is no other sink.  Raises: OutputError when it is alone and there is no standard output."""
        super().__init__(settings)
        self._descriptor = sys.stdout.fileno()
        if is_alone:
            self._require_output()
        self._render = render
        self._is_seen = False  # whether the file's end was looked at

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Write all of it.

        Raises: OutputError when nobody reads any more, or the disk behind it is full; what `note_offset` raises.
        """
        self._require_output()
        pieces = ndjson_pieces(events, self._render)
        if os.isatty(self._descriptor):
            pieces = (escaped(piece.decode("utf-8", "replace")).encode() for piece in pieces)
        with _WRITING:
            try:
                output = os.fstat(self._descriptor)
                if stat.S_ISREG(output.st_mode):
                    self._append_all(pieces)
                else:
                    for piece in pieces:
                        self._put(piece, -output.st_ino)
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

    def _require_output(self) -> None:
        """Raises: OutputError where there is none: its number may be that of any file by now."""
        if self._descriptor < 0:
            raise no_output()

    def probe(self) -> Outcome:
        """Nothing to try: what stdout is only shows when it is written to."""
        return Accepted()

    # A pipe, a terminal or a device

    def _put(self, data: bytes, pipe: int) -> None:
        """Write to what keeps whatever it was given.  Raises: OSError; what `note_offset` raises."""
        if self.output_offset == pipe:
            data = b"\n" + data
        self.output_offset = pipe
        self.note_offset(pipe)
        written, error = write_most(self._descriptor, data)
        if written in (0, len(data)) or isinstance(error, BrokenPipeError):  # nobody has half a line
            self.output_offset = None
        if error is not None:
            with contextlib.suppress(PollerError):
                self.note_offset(self.output_offset)
            raise error

    # A regular file

    def _append_all(self, pieces: Iterable[bytes]) -> None:
        """Write a batch, one piece behind the other.  Raises: what `_append` does."""
        first: int | None = None
        for data in pieces:
            try:
                start = self._append(data)
            except BaseException:  # an interrupt, too
                if first is not None:  # nothing of the batch is settled: the next send looks for all of it
                    self.output_offset = first
                raise
            first = start if first is None else first

    def _append(self, data: bytes) -> int:
        """Write what is not there yet behind `output_offset`. Returns where it begins.

        Raises: OSError, and then no half line stays; what `note_offset` raises.
        """
        is_at_end = bool(fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & os.O_APPEND)
        size = os.fstat(self._descriptor).st_size
        place = size if is_at_end else os.lseek(self._descriptor, 0, os.SEEK_CUR)
        there = self._count_there(data, place) if self._is_behind(place) else None
        if there is None:
            if not self._ends_line(place):
                _, error = write_most(self._descriptor, b"\n")
                if error is not None:
                    raise error
                place += 1
            self.output_offset, there = place, 0
            self.note_offset(place)
        self._is_seen = True
        written, error = write_most(self._descriptor, data[there:])
        start = self.output_offset or 0
        if error is not None:
            self._cut_half_line(data[: there + written], start, place + written)
            raise error
        # Where others write, too, our lines may not follow on each other.
        self.output_offset = os.lseek(self._descriptor, 0, os.SEEK_CUR) if written else start + len(data)
        return start

    def _is_behind(self, place: int) -> bool:
        """Whether the file may hold at `output_offset`, and up to `place`, what we wrote and did not settle."""
        if self.output_offset is None or not 0 <= self.output_offset <= place:
            return False
        return self._is_seen or self._ends_line(self.output_offset)

    def _count_there(self, data: bytes, place: int) -> int | None:
        """How many bytes of `data` are in the file from `output_offset` to `place`; None where something else is."""
        start = self.output_offset or 0
        there = min(len(data), place - start)
        return there if not there or self._read(start, there) == data[:there] else None

    def _ends_line(self, place: int) -> bool:
        """Whether a line that is written at `place` begins there. As far as we know, where the file cannot be read."""
        if place == 0:
            return True
        last = self._read(place - 1, 1)
        if last is None:
            return self.output_offset is None or not 0 <= self.output_offset < place
        return last == b"\n"

    def _read(self, start: int, count: int) -> bytes | None:
        """Bytes of the file, which may be open for writing only; None where this user may not read it."""
        try:
            descriptor = os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return os.pread(descriptor, count, start)
        finally:
            os.close(descriptor)

    def _cut_half_line(self, ours: bytes, start: int, end: int) -> None:
        """Cut the file off behind the last whole line of `ours`, which lies from `start` to `end`, if that is its end."""
        if os.fstat(self._descriptor).st_size != end:
            return  # somebody else has written since
        with contextlib.suppress(OSError):  # the next one to write finds it there, and goes on with it
            os.ftruncate(self._descriptor, start + ours.rfind(b"\n") + 1)
            os.lseek(self._descriptor, 0, os.SEEK_END)


def build(settings: Settings, context: Context) -> StdoutSink:
    """The sink that a table describes."""
    return StdoutSink(settings, build_render(settings), is_alone=len(context.config.sinks) < 2)
