"""Translates errors of SQLite and the operating system about a state file into ours: temporary, or a person is needed."""

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

# With a damaged file, SQLite can also return names and messages that are not UTF-8.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
# A failed write leaves the state unchanged. The cause may be the disk, but also a temporary one: a limit, a quota, a network.
_FAILED_WRITES = (
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
)
_ROOM_BYTES = 1024 * 1024
_FULL_HINT = "free some, or raise the quota; what was not stored yet is still in the API and will be read again"
_OWNER_HINT = "check that it belongs to this user"
_RAISE_LIMIT = "raise the limit (LimitNOFILE= of systemd, ulimit -n), or wait"


@contextmanager
def translated_reading(path: Path, hint: str = f"{_OWNER_HINT} and is not damaged") -> Iterator[None]:
    """Turn errors of SQLite while a file is only read into a StateError, with this hint unless there is a better one."""
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
            raise StateFullError(f"{path}: no space left on the disk", hint=_FULL_HINT) from error
        if error.errno in _NO_RESOURCES:
            raise StateUnavailableError(f"{path}: cannot be opened: {error.strerror}", hint=_RAISE_LIMIT) from error
        why = "it is no directory" if error.errno in (errno.EEXIST, errno.ENOTDIR) else error.strerror
        raise StateError(
            f"{path}: cannot be written: {why}",
            hint="choose another --state-dir, or give this user the right to write there",
        ) from error


def kind_of(error: Exception) -> int:
    """SQLite's primary error code: the last byte of the extended code."""
    return (
        sqlite3.SQLITE_CORRUPT
        if isinstance(error, UnicodeDecodeError)
        else getattr(error, "sqlite_errorcode", 0) & 0xFF
    )


def as_passing(path: Path, error: Exception) -> StateUnavailableError | None:
    """The error if it can end by itself, without a change to the state; otherwise None."""
    kind = kind_of(error)
    if kind == sqlite3.SQLITE_FULL or (kind in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_full(path)):
        return StateFullError(f"{path}: no space left on the disk", hint=_FULL_HINT)
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
    """Whether the disk of this file is full. It also writes a test file, because only a write shows a quota."""
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
