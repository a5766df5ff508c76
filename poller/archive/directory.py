"""An archive in a directory, such as a mounted disk. An object gets its name only when all of it is on the disk.

Only the owner can access objects (mode 0600). They are never opened for writing again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from poller.archive import Listed, NoDirectoryError, PlaceError, TakenError
from poller.core.evidence.digest import DATA, DIGESTS, PROBES, written_for
from poller.system.files import make_directory, open_own, sync_directory, write_whole

_PARTIAL = ".part"


class DirectoryPlace:
    """Objects as files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return str(self._root)

    def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
        """As `Place.put`. A directory cannot lock objects: use the means of the file system, or a bucket."""
        path = self._path(key)
        partial = path.with_name(f".{path.name}{_PARTIAL}")
        try:
            if not self._has(path, content):
                make_directory(path.parent)
                descriptor = open_own(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                try:
                    write_whole(descriptor, content)
                    os.fsync(descriptor)
                except OSError:
                    partial.unlink(missing_ok=True)  # it would take up the rest of the disk
                    raise
                finally:
                    os.close(descriptor)
                if not _name(partial, path):  # another writer was here first
                    self._has(path, content)
            # Also if the object already existed: its writer may have been killed right after it got its name.
            partial.unlink(missing_ok=True)
            sync_directory(path.parent)
        except OSError as error:
            hint = "check that this user can write there, and that there is room"
            raise PlaceError(f"{path}: {error.strerror}", hint=hint) from error

    def _has(self, path: Path, content: bytes) -> bool:
        """Whether the object exists.  Raises: TakenError if it has other content, OSError."""
        try:
            found = _read(path)
        except FileNotFoundError:
            return False
        if found != content:
            raise TakenError(str(path))
        return True

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        """As `Place.get`."""
        path = self._path(key)
        try:
            return _read(path, max_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            hint = "check that this user can read it" if isinstance(error, PermissionError) else ""
            raise PlaceError(
                f"{path}: {error.strerror}", hint=hint, is_refused=bool(hint), is_of_object=self._is_there()
            ) from error

    def _is_there(self) -> bool:
        """Whether the directory itself can be read. If not, a failed read is not about a single object."""
        try:
            with os.scandir(self._root):
                return True
        except OSError:
            return False

    def listing(self, prefix: str) -> Iterator[Listed]:
        """As `Place.listing`. A link or a special file counts as an object of no bytes, because we never write one.

        An unreadable directory whose name is not one of the archive's, such as `lost+found`, is skipped.
        """
        folder, _, name = prefix.rpartition("/")
        try:
            if not self._root.is_dir():
                raise NoDirectoryError(str(self._root))
            yield from self._walk(self._path(folder) if folder else self._root, f"{folder}/" if folder else "", name)
        except OSError as error:
            raise PlaceError(f"{self._root}: {error.strerror}", hint="check that this user can read it") from error

    def _walk(self, directory: Path, prefix: str, name: str) -> Iterator[Listed]:
        try:
            with os.scandir(directory) as entries:
                # In the order of keys, where the name of a directory ends in a slash.
                found = sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return
        except OSError:
            if prefix in ("", DATA, DIGESTS) or not self._is_there():
                raise
            if prefix.startswith((DATA, DIGESTS)):
                yield Listed(prefix, 0)
            return
        for entry in found:
            if not entry.name.startswith(name):
                continue
            # A name that is not UTF-8 is not ours, and is escaped so that it can be shown.
            key = prefix + os.fsencode(entry.name).decode(errors="backslashreplace")
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(directory / entry.name, f"{key}/", "")
                continue
            with contextlib.suppress(FileNotFoundError):  # a draft that became an object meanwhile
                status = entry.stat(follow_symlinks=False)
                is_file = stat.S_ISREG(status.st_mode)
                yield Listed(key, status.st_size if is_file else 0, is_draft=is_file and _is_draft(key))

    def delete(self, key: str) -> None:
        """As `Place.delete`."""
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise PlaceError(f"{path}: {error.strerror}", hint="check that this user can delete it") from error

    def probe(self) -> list[str]:
        """Write an object and delete it again, and the directories that were made for it."""
        key = f"{PROBES}{os.getpid()}"
        folder = self._path(key).parent
        made = [folder, *takewhile(lambda above: not os.path.lexists(above), folder.parents)]
        try:
            self.put(key, b"probe\n")
            self.delete(key)
        finally:
            with contextlib.suppress(OSError):  # another check or the daemon may be at work there
                for directory in made:
                    directory.rmdir()
        return ["objects can be written"]

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise PlaceError(f"{self._root}: {key!r} is no key of an object", is_of_object=True)
        return self._root.joinpath(*parts)


def _is_draft(key: str) -> bool:
    """Whether a file has the name that `put` uses for an object of an archive until it is complete."""
    folder, _, name = key.rpartition("/")
    whole = f"{folder}/{name[1 : -len(_PARTIAL)]}"
    return name.startswith(".") and name.endswith(_PARTIAL) and written_for(whole) is not None


def _name(partial: Path, path: Path) -> bool:
    """Give a file its name, unless another file has it already.  Returns: whether it was given.

    Uses a hard link, because a rename would replace the file of another writer. Without links in the file system, uses a rename.
    The caller deletes the first name.
    """
    try:
        os.link(partial, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        partial.rename(path)
    return True


def _read(path: Path, max_bytes: int | None = None) -> bytes:
    """The content of a file, with the limit of `Place.get`.  Raises: OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, which is not followed") from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            # `read` reserves the memory first: a large limit must not reserve more than the size of the file.
            return file.read() if max_bytes is None else file.read(max(min(max_bytes, status.st_size), 0) + 1)
    finally:
        os.close(descriptor)
