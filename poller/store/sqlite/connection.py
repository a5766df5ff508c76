"""The one connection that this process has to a state file, shared by all who open it. Nothing else here opens such a file.

A process that closes any descriptor of a file loses every lock that it has on it, SQLite's too. Another process then takes
itself for the last user of the state, and deletes the write-ahead log under us. SQLite looks after its own descriptors only.
Source: SQLite, "How To Corrupt An SQLite Database File", 2.2. So all who open a file share one connection, and the look at its
header, which SQLite does not offer, comes before it, while nobody else in this process can open the file.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import threading
from pathlib import Path

from poller.store.sqlite.schema import with_functions

Identity = tuple[int, int]

SIDE_FILES = ("-wal", "-shm", "-journal")

_OPENING_SECONDS = 10.0  # so long is waited for another program that has the file locked


def files_of(path: Path) -> list[Path]:
    """A state file, and those that SQLite has beside it."""
    return [path.with_name(path.name + suffix) for suffix in ("", *SIDE_FILES)]


class SharedConnection:
    """A connection and those who use it: one at a time, with `lock`. Ask for `raw` anew each time: it may be replaced."""

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
            with self.lock:  # the first of the two goes before the second comes
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
    """The connection to a file that exists; `detach` it in the end.  Raises: OSError, sqlite3.Error."""
    with _opening:
        _refuse_what_is_no_file(path)
        identity = identity_of(path)
        shared = _open.get(identity) or SharedConnection(path, identity, is_writable=is_writable)
        shared.add_user(is_writable=is_writable)
        _open[identity] = shared
        return shared


def _refuse_what_is_no_file(path: Path) -> None:
    """SQLite would follow a link, and write to a file that is not ours; of a pipe it would wait for ever.  Raises: OSError."""
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
    """Give it back: it is closed when nobody uses it any more.  Raises: sqlite3.Error."""
    with _opening:
        if shared.remove_user():
            del _open[shared.identity]


def identity_of(path: Path) -> Identity:
    """What tells a file from another that is given its name.  Raises: OSError."""
    stats = path.stat()
    return stats.st_dev, stats.st_ino


def _connect(path: Path, *, is_writable: bool) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={'rw' if is_writable else 'ro'}"
    if not is_writable and _is_complete(path):
        address += "&immutable=1"  # else SQLite wants to create its side files
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
    """Whether a file is on a read-only file system, and all of the state is in it: nothing is in a write-ahead log."""
    log = path.with_name(f"{path.name}-wal")
    is_read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    return is_read_only and not (log.exists() and log.stat().st_size)


def _has_known_format(path: Path) -> bool:
    """Whether SQLite would write to the file: one with another format it reads, but calls the file system read-only."""
    with path.open("rb") as file:
        header = file.read(20)
    return len(header) < 20 or header[18] <= 2  # what is too short SQLite finds by itself
