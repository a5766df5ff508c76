"""Files: they are written completely and durably, and opened only if they are ours.

Root may write into directories of other users, who can put a link or a file of their own in place of ours. `open_own` does not
follow their links and does not open their files, even if they change these meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import tempfile
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from poller.core.errors import ConfigError, Problem

_MAX_LINKS = 40

_SOME_FILES = 4


def write_whole(descriptor: int, data: bytes) -> None:
    """Write all data.  Raises: OSError."""
    _, error = write_most(descriptor, data)
    if error is not None:
        raise error


def write_most(descriptor: int, data: bytes) -> tuple[int, OSError | None]:
    """Write all data, or as much as possible. Returns how many bytes were written, and the error.

    One `os.write` may end in the middle of a line: after a signal, on a disk that fills up, or on a non-blocking pipe.
    Python's unbuffered streams do not write the rest.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # a non-blocking pipe is full
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            room.poll()
        except OSError as error:
            return len(data) - len(rest), error
    return len(data), None


def open_own(path: Path, flags: int, *, owners: Collection[int] = ()) -> int:
    """Open a file of ours for writing, or with O_CREAT create it with mode 0600. Returns its descriptor.

    The last name must not be a link. A link before it is followed only if root or we own it. An existing file must belong to
    root, to us or to one of `owners`. Other users (mode o+w) must not be able to write it. It must not have a second name
    (a hard link): it could be another file. The caller checks files that are not regular.  Raises: OSError with the reason.
    """
    directory = _open_directory(path.absolute().parent)
    try:
        descriptor = _open_or_create(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, directory)
    finally:
        os.close(directory)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            _check_own(found, {*_trusted_owners(), *owners})
    except BaseException:  # an interrupt, too, must leave no descriptor open
        os.close(descriptor)
        raise
    return descriptor


def _open_or_create(path: Path, flags: int, directory: int) -> int:
    try:
        if flags & os.O_CREAT:
            with contextlib.suppress(FileExistsError):
                return os.open(path.name, flags | os.O_EXCL, 0o600, dir_fd=directory)
        return os.open(path.name, flags & ~os.O_CREAT, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, which is not followed") from error
        raise


def _check_own(found: os.stat_result, owners: Collection[int]) -> None:
    if found.st_uid not in owners:
        raise OSError(errno.EPERM, f"belongs to another user (uid {found.st_uid}) and is not written to")
    if found.st_mode & stat.S_IWOTH:
        raise OSError(errno.EPERM, "can be changed by other users (chmod o-w) and is not written to")
    if found.st_nlink > 1:
        raise OSError(errno.EPERM, "has a second name (a hard link) and is not written to")


def _trusted_owners() -> set[int]:
    return {0, os.geteuid()}


def _open_directory(path: Path) -> int:
    """A descriptor of the directory. It is opened name by name from the root, so that nobody can change a step already taken.

    A link is followed only if root or we own it.  Raises: OSError.
    """
    if not hasattr(os, "O_PATH"):  # not Linux
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    names = list(reversed(path.parts[1:]))
    current = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    followed = 0
    try:
        while names:
            found = os.open(names.pop(), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            stats = os.fstat(found)
            if not stat.S_ISLNK(stats.st_mode):
                os.close(current)
                current = found
                continue
            try:
                followed += 1
                if stats.st_uid not in _trusted_owners() or followed > _MAX_LINKS:
                    message = (
                        f"a directory on the way is a link of another user (uid {stats.st_uid}), which is not followed"
                    )
                    raise OSError(errno.ELOOP, message)
                target = Path(os.readlink("", dir_fd=found))
            finally:
                os.close(found)
            if target.is_absolute():
                os.close(current)
                current = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            names += reversed(target.parts[target.is_absolute() :])
    except BaseException:  # as in `open_own`
        os.close(current)
        raise
    return current


def make_directory(directory: Path) -> None:
    """Create a directory and those above it, durably and not readable by others.  Raises: OSError."""
    if os.path.isdir(directory):  # noqa: PTH112 - never raises
        return
    make_directory(directory.parent)
    directory.mkdir(mode=0o750, exist_ok=True)
    sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make a new name in a directory durable.  Raises: OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync, and need not
            raise
    finally:
        os.close(descriptor)


class NewFile:
    """A new file, written beside its final place. As a context manager, it leaves nothing behind if it is not committed.

    It is created before its content exists: a key that is shown only once must not be lost because the file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        """Raises: ConfigError if nothing can be written there."""
        self.path = Path(os.path.realpath(path))  # it replaces the target of a link, not the link
        self._draft: Path | None = None
        try:
            if path.is_symlink() and path.lstat().st_uid not in _trusted_owners():
                raise OSError(errno.ELOOP, f"is a link of another user (uid {path.lstat().st_uid})")
            if self.path.exists() and not (self.path.is_file() or self.path.is_dir()):
                raise OSError(errno.EPERM, "is a device, a pipe or a socket, which is not replaced")
            os.close(_open_directory(path.absolute().parent))
            # mkstemp creates it with mode 0600.
            self._descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        except OSError as error:
            raise _unwritable(path, error) from error
        self._draft = Path(name)

    @property
    def draft(self) -> Path:
        """The path of the content until `commit`."""
        assert self._draft is not None  # noqa: S101 - committed only once
        return self._draft

    def write(self, content: bytes) -> None:
        """Write all content, and sync it to the disk.  Raises: ConfigError."""
        try:
            write_whole(self._descriptor, content)
            os.fsync(self._descriptor)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def commit(self, mode: int = 0o600, *, for_owner_of: Path | None = None) -> None:
        """Give it its final name, replacing an existing file, and sync that to the disk.  Raises: ConfigError.

        `for_owner_of`: if we are root, the file belongs to the owner of this directory.
        """
        try:
            if for_owner_of is not None:
                give_to_owner_of(for_owner_of, self._descriptor)
            with contextlib.suppress(FileNotFoundError, PermissionError):
                before = self.path.stat()
                if before.st_uid in _trusted_owners():  # not to another user who put a file there
                    os.fchown(self._descriptor, before.st_uid, before.st_gid)
            os.fchmod(self._descriptor, mode)
            self.draft.rename(self.path)
            self._draft = None
            sync_directory(self.path.parent)
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
    hint = "check that the directory exists, that this user can write there, and that there is room"
    return ConfigError([Problem(str(path), f"cannot be written: {error.strerror}", hint)])


def create_for_owner_of(directory: Path, name: str) -> None:
    """Create an empty file with mode 0600. If we are root, it belongs to the owner of the directory.  Raises: OSError."""
    descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        give_to_owner_of(directory, descriptor)
    finally:
        os.close(descriptor)


def give_to_owner_of(directory: Path, descriptor: int) -> None:
    """If we are root, give a file to the owner of a directory, as far as the file system has owners."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            owner = directory.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def can_open_files() -> bool:
    """Whether this process may open more files. Libraries report this limit in various other words."""
    opened: list[int] = []
    try:
        opened.extend(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(_SOME_FILES))
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True
