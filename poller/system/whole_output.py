"""Output of commands to stdout or a file: all of it is written, or the command fails and leaves no half line in a file.

Without buffers (`PYTHONUNBUFFERED`, as in our image), Python's own stream drops the rest of an incomplete write. It also fails on
a pipe that does not block.
"""

from __future__ import annotations

import io
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from poller.core.errors import OutputError
from poller.system.files import write_most

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class WholeOutput(io.FileIO):
    """Writes all data, or fails. After a failure it writes no more, because that would begin in the middle of a line."""

    def __init__(self, descriptor: int) -> None:
        """The caller closes the descriptor."""
        super().__init__(descriptor, "wb", closefd=False)
        self._unfinished = 0  # bytes of the last line, if it is not complete
        self._failure: Exception | None = None

    def write(self, data: ReadableBuffer) -> int:
        """Raises: BrokenPipeError; OutputError for any other failure."""
        if self._failure is not None:
            raise self._failure
        whole = bytes(data)
        written, error = write_most(self.fileno(), whole)
        unfinished = written - whole[:written].rfind(b"\n") - 1
        self._unfinished = unfinished if unfinished < written else self._unfinished + written
        if error is None:
            return written
        self._cut_half_line()
        self._failure = error
        if not isinstance(error, BrokenPipeError):
            message = f"output cannot be written: {error.strerror}"
            self._failure = OutputError(message, hint="make room for it, and run the command again")
        raise self._failure from error

    def _cut_half_line(self) -> None:
        """Cut off our incomplete line if it is at the end of a regular file."""
        with suppress(OSError):  # not possible in a pipe, a terminal or a device
            file = os.fstat(self.fileno())
            end = os.lseek(self.fileno(), 0, os.SEEK_CUR)
            if stat.S_ISREG(file.st_mode) and file.st_size == end:
                os.ftruncate(self.fileno(), end - self._unfinished)


def whole_output(stream: TextIO) -> TextIO:
    """A replacement of `sys.stdout` with its encoding. Letters that the encoding does not have are written as numbers."""
    buffer = io.BufferedWriter(WholeOutput(stream.fileno()))
    by_line = bool(stream.line_buffering)
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=by_line)
