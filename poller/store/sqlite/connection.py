"""The one connection of this process to a state file, shared by all its users. No other code of the process opens such a file.

If a process closes any descriptor of a file, it loses all its locks on that file, including those of SQLite. Another process can
then act as the last user of the state and delete the write-ahead log that we still use. SQLite handles only its own descriptors.
Source: SQLite, "How To Corrupt An SQLite Database File", 2.2. Therefore all users of a file share one connection. The header of
the file, which SQLite does not expose, is read before that connection exists, while no other thread can open the file.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poller.store.sqlite.schema import with_functions

Identity = tuple[int, int]

SIDE_FILES = ("-wal", "-shm", "-journal")

_OPENING_SECONDS = 10.0  # how long to wait for another program that has the file locked


def files_of(path: Path) -> list[Path]:
    """A state file and the files that SQLite keeps beside it."""
    return [path.with_name(path.name + suffix) for suffix in ("", *SIDE_FILES)]


class SharedConnection:
    """A connection and the number of its users. Hold `lock` while you use it. Read `raw` again each time: it may be replaced."""

    def __init__(self, path: Path, identity: Identity, *, is_writable: bool) -> None:
        self.lock = threading.RLock()
        self.identity = identity
        self.has_known_format = _has_known_format(path)
        self.raw = _connect(path, is_writable=is_writable)
        self._path = path
        self._is_writable = is_writable
        self._user_count = 0

    def add_user(self, *, is_writable: bool) -> None:
        if is_writable and not self._is_writable:
            with self.lock:  # close the read-only connection before opening the writable one
                self.raw.close()
                self.raw = _connect(self._path, is_writable=True)
                self._is_writable = True
        self._user_count += 1

    def remove_user(self) -> bool:
        """Close it with its last user.  Returns: whether it was the last."""
        self._user_count -= 1
        if self._user_count == 0:
            with self.lock:
                self.raw.close()
        return self._user_count == 0


_opening = threading.Lock()
_open: dict[Identity, SharedConnection] = {}


def attach(path: Path, *, is_writable: bool) -> SharedConnection:
    """The connection to an existing file. Call `detach` at the end.  Raises: OSError, sqlite3.Error."""
    with _opening:
        _refuse_what_is_no_file(path)
        identity = identity_of(path)
        shared = _open.get(identity) or SharedConnection(path, identity, is_writable=is_writable)
        shared.add_user(is_writable=is_writable)
        _open[identity] = shared
        return shared


def _refuse_what_is_no_file(path: Path) -> None:
    """Refuse links and special files. SQLite would write to the target of a link, and wait on a pipe.  Raises: OSError."""
    for file in files_of(path):
        try:
            mode = file.lstat().st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, f"{file.name} is a link, which is not followed")
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, f"{file.name} is not a regular file")


def detach(shared: SharedConnection) -> None:
    """End the use of a connection. The last user closes it.  Raises: sqlite3.Error."""
    with _opening:
        if shared.remove_user():
            del _open[shared.identity]


@contextmanager
def surviving(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits within the block, and all earlier commits, also survive a power cut."""
    connection.execute("PRAGMA synchronous = FULL")
    try:
        yield
    finally:
        connection.execute("PRAGMA synchronous = NORMAL")


def identity_of(path: Path) -> Identity:
    """The identity of a file. Another file that replaces it under the same name has a different one.  Raises: OSError."""
    stats = path.stat()
    return stats.st_dev, stats.st_ino


def _connect(path: Path, *, is_writable: bool) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={'rw' if is_writable else 'ro'}"
    if not is_writable and _is_complete(path):
        address += "&immutable=1"  # otherwise SQLite tries to create its side files
    return with_functions(
        sqlite3.connect(
            address,
            uri=True,
            timeout=_OPENING_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
        )
    )


def _is_complete(path: Path) -> bool:
    """Whether the file is on a read-only file system and holds the whole state: the write-ahead log is empty or missing."""
    log = path.with_name(f"{path.name}-wal")
    is_read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return is_read_only and not (log.exists() and log.stat().st_size)


def _has_known_format(path: Path) -> bool:
    """Whether SQLite can write the format of the file. With another format, SQLite reports a read-only file system."""
    with path.open("rb") as file:
        header = file.read(20)
    return len(header) < 20 or header[18] <= 2  # SQLite itself reports a file that is too short
