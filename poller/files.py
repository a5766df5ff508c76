"""Writing whole, and files that are durable and readable by whom they are meant for: what `setup` makes."""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from poller.errors import ConfigError, Problem


def write_whole(descriptor: int, data: bytes) -> None:
    """Write on until nothing is left.  Raises: OSError."""
    _, error = write_most(descriptor, data)
    if error is not None:
        raise error


def write_most(descriptor: int, data: bytes) -> tuple[int, OSError | None]:
    """Write on until nothing is left, or until it fails. How many bytes were written, and why no more.

    Python's streams do not, where they are told not to buffer; and a signal, a disk that fills up or a pipe that was made not
    to block end a write in the middle of a line.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # whoever made the pipe wants nobody to wait in a write
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            room.poll()
        except OSError as error:
            return len(data) - len(rest), error
    return len(data), None


class NewFile:
    """A file in the making, beside the place it will have; a context manager that leaves nothing behind if not committed.

    It is opened, and room for its name is found, before its content is known: what is shown only once must find a place.
    """

    def __init__(self, path: Path) -> None:
        """Raises: ConfigError when nothing can be written there."""
        self.path = Path(os.path.realpath(path))  # in place of what a link leads to, not of the link
        self._draft: Path | None = None
        try:
            # 0600 from its first byte on.
            self._descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        except OSError as error:
            raise _unwritable(path, error) from error
        self._draft = Path(name)

    @property
    def draft(self) -> Path:
        """Where the content is until `commit`."""
        assert self._draft is not None  # noqa: S101 - committed only once
        return self._draft

    def write(self, content: bytes) -> None:
        """Write all of it, and have it on the disk.  Raises: ConfigError."""
        try:
            write_whole(self._descriptor, content)
            os.fsync(self._descriptor)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def commit(self, mode: int = 0o600) -> None:
        """Give it its name, in place of a file that may have it, and have that on the disk, too.  Raises: ConfigError."""
        try:
            with contextlib.suppress(FileNotFoundError, PermissionError):
                before = self.path.stat()
                os.fchown(self._descriptor, before.st_uid, before.st_gid)
            os.fchmod(self._descriptor, mode)
            self.draft.rename(self.path)
            self._draft = None
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if self._draft is not None:
            self._draft.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> ConfigError:
    hint = "does the directory exist, may this user write there, and is there room?"
    return ConfigError([Problem(str(path), f"cannot be written: {error.strerror}", hint)])
