"""Replaces stdout if it was closed before the start: a command that prints fails with the reason; every other one works.

Without this, `sys.stdout` is None, and printing does nothing and reports no error.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, TextIO

from poller.core.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _ClosedOutput(io.RawIOBase):
    """Accepts nothing. Its descriptor is -1, because any other file may have got the number 1."""

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
    """The error for a command that prints to a closed stdout."""
    return OutputError("there is no output: stdout is closed", hint="send it to a file or a pipe")
