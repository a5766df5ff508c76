"""What commands print, to stdout or to a file: all of it is written, or the command fails and no half line stays in a file.

Python's own stream drops the rest of a write that ends in the middle if it is told not to buffer (`PYTHONUNBUFFERED`, as in
our image), and gives up on a pipe that is made not to block.
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
    """Accepts all that it is given. Nothing more is written after a failure: it would go on in the middle of a line."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor stays the caller's to close."""
        super().__init__(descriptor, "wb", closefd=False)
        self._unfinished = 0  # bytes at the end that are no whole line yet
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
        """Cut off what we wrote of a line, if it is the end of a regular file."""
        with suppress(OSError):  # a pipe, a terminal or a device keeps it
            file = os.fstat(self.fileno())
            end = os.lseek(self.fileno(), 0, os.SEEK_CUR)
            if stat.S_ISREG(file.st_mode) and file.st_size == end:
                os.ftruncate(self.fileno(), end - self._unfinished)


def whole_output(stream: TextIO) -> TextIO:
    """A stream in place of `sys.stdout`, with its encoding. A letter that this does not have is written by its number."""
    buffer = io.BufferedWriter(WholeOutput(stream.fileno()))
    by_line = bool(stream.line_buffering)
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=by_line)
