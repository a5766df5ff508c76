"""The SQLite file itself: its lock, its transactions, and what to do when it cannot be used.

The only module that opens one for writing. A file that is not ours, is damaged or is newer than this program is never written
to: the first two are set aside under another name, and nothing starts anew in their place until a person says from when.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from poller.errors import StateError, StateFullError, StateHeldError, StoppedError
from poller.store.schema import APPLICATION_ID, SCHEMA_VERSION, migrate, schema_at, with_functions
from poller.store.soundness import has_known_format, has_usual_types, is_sound

_LOCK_POLL_SECONDS = 0.1
_PAGE_BYTES = 4096
# Less than that will be used again soon: moving pages costs more than it gives.
_VACUUM_BYTES = 32 * 1024 * 1024
# A damaged file can also give SQLite names and messages that are no UTF-8.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_UNKNOWN_HINT = "is it damaged? Move it away, and run once with --since T, T at or before the last good run"
SIDE_FILES = ("-wal", "-shm", "-journal")


class Lock:
    """The right to write one state, held by one process at a time; the kernel lets go of it when the process ends."""

    def __init__(self, path: Path, *, wait: bool, stop: threading.Event) -> None:
        with _translated_os(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
                if not wait:
                    os.close(self._fd)
                    hint = "stop one of the two, or give it another --state-dir"
                    raise StateHeldError(
                        f"{path}: another process holds this state (process {holder})", hint=hint
                    ) from None
                if stop.wait(_LOCK_POLL_SECONDS):
                    os.close(self._fd)
                    raise StoppedError("asked to stop") from None
            except OSError as error:
                os.close(self._fd)
                raise StateError(
                    f"{path}: cannot be locked: {error.strerror}", hint="choose a --state-dir on a local file system"
                ) from error
        with suppress(OSError):  # the number only helps whoever is kept waiting: a full disk must not stop us here
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        os.close(self._fd)


class DamagedRowError(sqlite3.DatabaseError):
    """A row is not what was written, though SQLite finds nothing wrong with the file."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


class Database:
    """One open state file. Safe to use from several threads: one at a time is let in."""

    def __init__(self, path: Path, *, asked: Mapping[str, str] | None = None, is_owner: bool = True) -> None:
        """Open or create `path`. The caller holds its `Lock`, or else is no owner: then it is neither set aside nor migrated.

        Raises: StateError when it cannot be used. When it was set aside before, it is created anew only with `asked`: the facts
        that say from when a person wants to read. A new file has them from its beginning, or it could begin without them.
        """
        self.path = path
        self._lock = threading.RLock()
        self._is_damaged = False
        self._is_checked = False
        self._is_owner = is_owner
        try:
            if not path.exists():
                _create(path, asked)
            with _translated_os(path):
                is_known = has_known_format(path)
            self._connection = _connect(path)
            self._check(is_known_format=is_known)
            self._is_checked = True
            migrate(self._connection)
            with _translated_os(path):
                self._file = _identity(path)
        except SQLITE_ERRORS as error:
            failure = self._translate(error)
            self._disconnect()
            raise failure from error
        except StateError:
            self._disconnect()
            raise

    def _check(self, *, is_known_format: bool) -> None:
        query = self._connection.execute
        if query("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise self._set_aside("is not a state of ionos-poller")
        version = query("PRAGMA user_version").fetchone()[0]
        if version < 1:  # a file gets its name only with a schema in it
            raise self._set_aside("is damaged")
        if version > SCHEMA_VERSION:
            raise newer_schema(self.path, version)
        if version < SCHEMA_VERSION and not self._is_owner:
            raise StateError(
                f"{self.path}: has schema {version}, not {SCHEMA_VERSION}", hint="start `run` to upgrade it"
            )
        query("PRAGMA journal_mode = WAL")
        query("PRAGMA synchronous = NORMAL")
        query("PRAGMA journal_size_limit = 16777216")
        query("PRAGMA secure_delete = FAST")
        if not is_known_format or not is_sound(self._connection, self.path, schema_at(version)):
            raise self._set_aside("is damaged")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed when the block ends, rolled back when it raises.

        Raises: StateFullError when the disk is full, StateError for all else that SQLite has to say.
        """
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:  # an interrupt, too, must leave no transaction open
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except SQLITE_ERRORS as error:
                raise self._translate(error) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Queries that belong together, without a write transaction.  Raises: StateError."""
        with self._lock:
            try:
                yield self._connection
            except SQLITE_ERRORS as error:
                raise self._translate(error) from error

    def vacuum(self, *, is_last: bool = False) -> None:
        """Give free pages back to the file system, once they are worth it or nothing comes any more.  Raises: StateError."""
        with self.reading() as connection:
            free_bytes = connection.execute("PRAGMA freelist_count").fetchone()[0] * _PAGE_BYTES
            if free_bytes < _VACUUM_BYTES and not is_last:
                return
            # Not `execute`: it takes one step, which is one page.
            connection.executescript("PRAGMA incremental_vacuum")

    def close(self) -> None:
        with self._lock:
            self._disconnect()
        if self._is_damaged and self._is_owner:
            _move_aside(self.path)

    def check_in_place(self) -> None:
        """Raises: StateError when the file we write to is not the one at its path any more: what we commit would be in vain."""
        try:
            if _identity(self.path) == self._file:
                return
        except FileNotFoundError:
            pass
        except OSError:  # it cannot be told now
            return
        hint = "put it back, and start again; the API still holds what was read since"
        raise StateError(f"{self.path}: was moved or deleted while it was in use", hint=hint)

    def _disconnect(self) -> None:
        with suppress(sqlite3.Error, AttributeError):  # AttributeError: it was never opened
            self._connection.close()

    def _translate(self, error: Exception) -> StateError:
        is_garbled = isinstance(error, UnicodeDecodeError)
        code = sqlite3.SQLITE_CORRUPT if is_garbled else getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_disk_full(self.path)):
            return StateFullError(
                f"{self.path}: no space left on the disk",
                hint="free some; what was not stored yet is still in the API and will be read again",
            )
        # Before it was looked through, that our own statements fail is the file's fault, too.
        is_unreadable = code == sqlite3.SQLITE_ERROR and not self._is_checked
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or is_unreadable:
            if hasattr(self, "_connection") and self._connection.total_changes:
                self._is_damaged = True  # in use: set aside when it is closed
                hint = "it is set aside now; run once with --since T, T at or before the last good run, to read again from there"
                return StateError(f"{self.path}: the state is damaged ({error})", hint=hint)
            return self._set_aside("is damaged or not an SQLite file")
        hints = {
            sqlite3.SQLITE_READONLY: "is the file system read-only, or the file another user's?",
            sqlite3.SQLITE_CANTOPEN: "can this user write to the directory?",
            sqlite3.SQLITE_BUSY: "another program has the file open for writing",
            sqlite3.SQLITE_IOERR: "does the disk report errors, or is a quota used up?",
        }
        return StateError(f"{self.path}: the state cannot be used: {error}", hint=hints.get(code, _UNKNOWN_HINT))

    def _set_aside(self, why: str) -> StateError:
        self._disconnect()
        if not self._is_owner:
            return StateError(f"{self.path} {why}", hint="the next start of what uses it sets it aside")
        aside = _move_aside(self.path)
        return StateError(f"{self.path} {why}; set aside as {aside.name}", hint=way_out(aside))


@contextmanager
def translated_reading(path: Path) -> Iterator[None]:
    """What SQLite says of a file that is only looked at becomes a StateError."""
    try:
        yield
    except SQLITE_ERRORS as error:
        raise StateError(f"{path}: cannot be read: {error}", hint="is it damaged, or another user's?") from error


def newer_schema(path: Path, version: int) -> StateError:
    """Of a file that we do not touch, since we do not know what it means."""
    return StateError(
        f"{path}: written by a newer ionos-poller (schema {version}, this one knows {SCHEMA_VERSION})",
        hint="upgrade ionos-poller, or use another --state-dir",
    )


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that only looks, beside a running writer.  Raises: StateError when there is nothing to look at."""
    with translated_reading(path):
        address = f"{path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
        with_functions(connection)
        with ExitStack() as on_failure:
            on_failure.callback(connection.close)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise newer_schema(path, version)
            if version != SCHEMA_VERSION:
                raise StateError(
                    f"{path}: has schema {version}, not {SCHEMA_VERSION}", hint="`run` or `fetch` upgrades it"
                )
            if not has_usual_types(connection):
                raise StateError(f"{path} is damaged", hint="the next start of what uses it sets it aside")
            on_failure.pop_all()
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    return with_functions(
        sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False, cached_statements=64)
    )


def _create(path: Path, asked: Mapping[str, str] | None) -> None:
    aside = sorted(
        found for found in path.parent.glob(f"{path.name}.unusable-*") if not found.name.endswith(SIDE_FILES)
    )
    if aside and asked is None:
        raise StateError(f"{path} was set aside as {aside[-1].name}", hint=way_out(aside[-1]))
    # Made under another name, and given its own when it is whole: one that is empty or half made is a damaged one.
    new = path.with_name(f"{path.name}.new")
    with _translated_os(path):
        # What a deleted state left beside it would be taken for this one's.
        for stale in (new, *(file.with_name(file.name + suffix) for file in (new, path) for suffix in SIDE_FILES)):
            stale.unlink(missing_ok=True)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(_connect(new)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        migrate(connection)
        connection.executemany("INSERT INTO facts VALUES (?, ?)", (asked or {}).items())
        # Not only when it has its name: a kill in the midst of it would leave what only a writer can read.
        connection.execute("PRAGMA journal_mode = WAL")
    with _translated_os(path):
        new.rename(path)


def delete(path: Path) -> None:
    """Delete a state, which nobody holds.  Raises: StateError."""
    with _translated_os(path):
        for suffix in ("", *SIDE_FILES):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def way_out(aside: Path) -> str:
    """What a person can do: nothing is lost, as the API still holds it, but only they know from when to read."""
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(aside.stat().st_mtime))
    return (
        f"last written {written}; run once with --since T, T at or before the last good run, to read again from there "
        f"(some entries may repeat), or delete {aside} to begin anew"
    )


def _move_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.unusable-{stamp}")
    for number in range(1, 1000):
        if not aside.exists():
            break
        aside = path.with_name(f"{path.name}.unusable-{stamp}-{number}")
    with _translated_os(path):
        path.rename(aside)
    # The side files go along, under names that SQLite will find them by.
    for suffix in SIDE_FILES:
        with suppress(OSError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    return aside


def make_directory(directory: Path) -> None:
    """Create the state directory, for its owner only.  Raises: StateError."""
    with _translated_os(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def _translated_os(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StateFullError(f"{path}: no space left on the disk", hint="free some and start again") from error
        raise StateError(
            f"{path}: cannot be written: {error.strerror}",
            hint="choose another --state-dir, or give this user the right to write there",
        ) from error


def _identity(path: Path) -> tuple[int, int]:
    """What tells a file from another that is given its name."""
    stats = path.stat()
    return stats.st_dev, stats.st_ino


def _is_disk_full(path: Path) -> bool:
    with suppress(OSError):
        stats = os.statvfs(path.parent)
        return stats.f_bavail * stats.f_frsize < 1024 * 1024
    return False
