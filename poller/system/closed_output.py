"""What stands for stdout where it was closed before we began. A command that prints fails with the reason; every other one works.

Python has `None` there, which prints nothing and does not say so.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, TextIO

from poller.core.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _ClosedOutput(io.RawIOBase):
    """Accepts nothing. Its descriptor is -1: by now, 1 may be the number of any file."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return -1

    def write(self, data: ReadableBuffer) -> int:
        """Raises: OutputError, unless there is nothing to write."""
        if memoryview(data).nbytes:
            raise no_output()
        return 0


def closed_output() -> TextIO:
    """A stream in place of `sys.stdout`."""
    return io.TextIOWrapper(_ClosedOutput(), encoding="utf-8", write_through=True)  # type: ignore[type-var]


def no_output() -> OutputError:
    """The error that stops what prints there."""
    return OutputError("there is no output: stdout is closed", hint="send it to a file or a pipe")
