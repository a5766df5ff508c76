"""What SQLite and the operating system say of a state file, as one of our errors: what may pass, and what needs a person."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poller.core.errors import StateError, StateFullError, StateUnavailableError
from poller.system.files import can_open_files

# A damaged file can also give SQLite names and messages that are no UTF-8.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
# A write that failed leaves the state as it was. It may be the disk, but also a limit, a quota or a network that comes back.
_FAILED_WRITES = (
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
)
_ROOM_BYTES = 1024 * 1024
_OWNER_HINT = "check that it belongs to this user"
_RAISE_LIMIT = "raise the limit (LimitNOFILE= of systemd, ulimit -n), or wait"


@contextmanager
def translated_reading(path: Path, hint: str = f"{_OWNER_HINT} and is not damaged") -> Iterator[None]:
    """What SQLite says of a file that is only looked at becomes a StateError, with this hint if nothing else is known."""
    try:
        yield
    except SQLITE_ERRORS as error:
        raise as_passing(path, error) or StateError(f"{path}: cannot be read: {error}", hint=hint) from error
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}", hint=_OWNER_HINT) from error


@contextmanager
def translated_os(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StateFullError(f"{path}: no space left on the disk", hint="free some and start again") from error
        if error.errno in _NO_RESOURCES:
            raise StateUnavailableError(f"{path}: cannot be opened: {error.strerror}", hint=_RAISE_LIMIT) from error
        why = "it is no directory" if error.errno in (errno.EEXIST, errno.ENOTDIR) else error.strerror
        raise StateError(
            f"{path}: cannot be written: {why}",
            hint="choose another --state-dir, or give this user the right to write there",
        ) from error


def kind_of(error: Exception) -> int:
    """SQLite's code of the kind of error: the last byte of the extended one."""
    return (
        sqlite3.SQLITE_CORRUPT
        if isinstance(error, UnicodeDecodeError)
        else getattr(error, "sqlite_errorcode", 0) & 0xFF
    )


def as_passing(path: Path, error: Exception) -> StateUnavailableError | None:
    """What may be over in a while without anybody touching the state; None for all else."""
    kind = kind_of(error)
    if kind == sqlite3.SQLITE_FULL or (kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_full(path)):
        return StateFullError(
            f"{path}: no space left on the disk",
            hint="free some, or raise the quota; what was not stored yet is still in the API and will be read again",
        )
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL):
        return StateUnavailableError(
            f"{path}: another program has the state locked",
            hint="find it with `fuser` and let it end; nothing is lost meanwhile",
        )
    if kind == sqlite3.SQLITE_CANTOPEN and not can_open_files():
        return StateUnavailableError(f"{path}: cannot be opened: too many open files", hint=_RAISE_LIMIT)
    if getattr(error, "sqlite_errorcode", 0) in _FAILED_WRITES:
        return StateUnavailableError(
            f"{path}: cannot be written: {error}",
            hint="check the disk, the quota and the limits of this process; nothing is lost meanwhile",
        )
    return None


def _is_full(path: Path) -> bool:
    """Whether there is no room beside this file; a quota shows only when something is written."""
    try:
        stats = os.statvfs(path.parent)
        if stats.f_bavail * stats.f_frsize < _ROOM_BYTES:
            return True
        with tempfile.TemporaryFile(dir=path.parent, buffering=0) as file:
            file.write(bytes(_ROOM_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _NO_SPACE
    return False
