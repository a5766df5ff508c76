"""The SQLite file itself: its transactions, and what to do when it cannot be used.

A file that is not ours, is damaged, or is newer than this program is never written to. The first two are set aside under another
name, and no new state replaces them until a person gives the time to read from. Only `connection` opens the file.
"""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from poller.core.errors import StateError
from poller.store.sqlite.connection import SIDE_FILES, SharedConnection, attach, detach, files_of, identity_of
from poller.store.sqlite.lock import forget_created, lock_of, was_created
from poller.store.sqlite.schema import APPLICATION_ID, SCHEMA_VERSION, migrate, schema_at
from poller.store.sqlite.soundness import has_usual_types, is_sound
from poller.store.sqlite.translation import (
    DAMAGE,
    SQLITE_ERRORS,
    as_passing,
    kind_of,
    translated_os,
    translated_reading,
)
from poller.system.files import create_for_owner_of
from poller.system.liveness import moves

# How long to wait for another program that has the file locked. The tries are short: our other threads run in between.
_BUSY_SECONDS = 10.0
_BUSY_TRY_SECONDS = 0.2
_BUSY_PAUSE_SECONDS = 0.05
_GIVE_WAY_SECONDS = 0.005
_PAGE_BYTES = 4096
CREATED_AT = "created_at"  # the fact with the time of creation in unix seconds; files of older programs lack it
# Less free space is soon used again, so moving pages would cost more than it saves.
_VACUUM_BYTES = 32 * 1024 * 1024
_VACUUM_PAGES = 1000
# What SQLite does with free pages. The file stores the setting. Each of these statements commits.
_GIVE_BACK_WHEN_ASKED = "PRAGMA auto_vacuum = INCREMENTAL"
_GIVE_BACK_WITH_EACH_COMMIT, _WITH_EACH_COMMIT = "PRAGMA auto_vacuum = FULL", 1
_OLDER_HINT = "start `run` or `fetch`, which upgrades all states here"
_UNKNOWN_HINT = "move it away, and run once with --since T, T at or before the last good run"
Piece = TypeVar("Piece")


class Database:
    """A state file that one user of this process has open. Several threads may use it, one at a time.

    If the process has the same state open twice (opened and attached), two of these share one connection.
    """

    def __init__(self, path: Path, *, asked: Mapping[str, str] | None = None, is_owner: bool = True) -> None:
        """Open or create `path`. An owner holds the `Lock` of the file. For other users, it is neither set aside nor migrated.

        Raises: StateError if it cannot be used. After it was set aside or deleted, it is created again only with `asked`: the
        facts with the time from which a person wants to read. They are in the new file before it has its name.
        """
        self.path = path
        self.is_owner = is_owner
        self.is_damaged = False
        self._is_checked = False
        self._shared: SharedConnection | None = None
        try:
            if not path.exists():
                _create(path, asked)
            with translated_os(path):
                self._shared = attach(path, is_writable=True)
            self._lock = self._shared.lock
            with self._lock:
                self._check(is_known_format=self._shared.has_known_format)
                self._is_checked = True
                migrate(self._connection)
            self._file = self._shared.identity
        except SQLITE_ERRORS as error:
            failure = self._translate(error)
            self._disconnect()
            raise failure from error
        except BaseException:  # even an interrupt must not leave it open
            self._disconnect()
            raise

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._shared is None:
            raise sqlite3.ProgrammingError("it is closed")
        return self._shared.raw

    def _check(self, *, is_known_format: bool) -> None:
        query = self._connection.execute
        if query("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise self._quarantine("is not a state of ionos-poller")
        version = query("PRAGMA user_version").fetchone()[0]
        if version < 1:  # a file gets its name only with a schema in it
            raise self._quarantine("is damaged")
        if version > SCHEMA_VERSION:
            raise newer_schema(self.path, version)
        if version < SCHEMA_VERSION and not self.is_owner:
            raise StateError(f"{self.path}: has schema {version}, not {SCHEMA_VERSION}", hint=_OLDER_HINT)
        query("PRAGMA journal_mode = WAL")
        query("PRAGMA synchronous = NORMAL")
        query("PRAGMA journal_size_limit = 16777216")
        query("PRAGMA secure_delete = FAST")
        query(f"PRAGMA busy_timeout = {int(_BUSY_TRY_SECONDS * 1000)}")
        if not is_known_format or not is_sound(self._connection, self.path, schema_at(version)):
            raise self._quarantine("is damaged")
        if query("PRAGMA auto_vacuum").fetchone()[0] == _WITH_EACH_COMMIT:  # the process was killed in `shrink`
            query(_GIVE_BACK_WHEN_ASKED)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed when the block ends, rolled back when it raises.

        Raises: StateUnavailableError if it may work later, StateError for all other errors of SQLite.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        moves()
        while True:
            with self._lock:
                try:
                    connection = self._connection
                    if self._is_let_in(partial(connection.execute, "BEGIN IMMEDIATE"), deadline):
                        try:
                            yield connection
                            connection.execute("COMMIT")
                        except BaseException:  # even an interrupt must leave no transaction open
                            if connection.in_transaction:
                                connection.execute("ROLLBACK")
                            raise
                        return
                except SQLITE_ERRORS as error:
                    raise self._translate(error) from error
            time.sleep(_BUSY_PAUSE_SECONDS)

    @staticmethod
    def _is_let_in(begin: Callable[[], object], deadline: float) -> bool:
        """Begin a transaction.  Returns: False if another program has the file locked, and `deadline` is not reached yet."""
        try:
            begin()
        except sqlite3.OperationalError as error:
            if kind_of(error) == sqlite3.SQLITE_BUSY and time.monotonic() < deadline:
                return False
            raise
        return True

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Queries that belong together, without a write transaction.  Raises: StateError."""
        with self._lock:
            try:
                yield self._connection
            except SQLITE_ERRORS as error:
                raise self._translate(error) from error

    @staticmethod
    def in_pieces(pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces of a long task, each for its own transaction, with pauses for other threads and programs in between."""
        for number, piece in enumerate(pieces):
            if number:
                time.sleep(_GIVE_WAY_SECONDS)
            yield piece

    def vacuum(self) -> None:
        """Give free pages back to the file system if there are many.

        Commits: piece by piece, so that others wait only briefly, and the log grows by at most one piece.  Raises: StateError.
        """
        free_pages = self._free_pages()
        if free_pages * _PAGE_BYTES < _VACUUM_BYTES:
            return
        # A script, because `execute` makes only one step, which frees one page. It begins and ends its own transaction.
        for _piece in self.in_pieces(range(0, free_pages, _VACUUM_PAGES)):
            self._run(f"BEGIN IMMEDIATE; PRAGMA incremental_vacuum({_VACUUM_PAGES}); COMMIT;")

    def shrink(self) -> None:
        """Give all free pages back to the file system, once no more events come.

        Commits: all at once. Page by page, SQLite searches all free pages for each one: nine seconds after a million entries, and
        four times as long after two million.  Raises: StateError.
        """
        if self._free_pages():
            self._run(_GIVE_BACK_WITH_EACH_COMMIT)
            self._run(_GIVE_BACK_WHEN_ASKED)

    def _free_pages(self) -> int:
        with self.reading() as connection:
            return int(connection.execute("PRAGMA freelist_count").fetchone()[0])

    def _run(self, script: str) -> None:
        deadline = time.monotonic() + _BUSY_SECONDS
        while not self._is_run(script, deadline):
            time.sleep(_BUSY_PAUSE_SECONDS)

    def _is_run(self, script: str, deadline: float) -> bool:
        with self.reading() as connection:
            try:
                return self._is_let_in(partial(connection.executescript, script), deadline)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def close(self) -> None:
        self._disconnect()
        if self.is_damaged and self.is_owner:
            _move_aside(self.path)

    def check_in_place(self) -> None:
        """Raises: StateError if another file, or none, is at the path now. Further commits would be lost."""
        try:
            if identity_of(self.path) == self._file:
                return
        except FileNotFoundError:
            pass
        except OSError:  # unknown for now
            return
        hint = "put it back, and start again; the API still holds what was read since"
        raise StateError(f"{self.path}: was moved or deleted while it was in use", hint=hint)

    def _disconnect(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            with suppress(sqlite3.Error):
                detach(shared)

    def _translate(self, error: Exception) -> StateError:
        if (passing := as_passing(self.path, error)) is not None:
            return passing
        kind = kind_of(error)
        # Until the file is checked, a failure of our own statements also means that the file is damaged.
        is_unreadable = kind == sqlite3.SQLITE_ERROR and not self._is_checked
        if kind in DAMAGE or is_unreadable:
            if self._shared is not None and self._shared.raw.total_changes:
                self.is_damaged = True  # in use: `close` sets it aside
                hint = "it is set aside now; run once with --since T, T at or before the last good run, to read again from there"
                return StateError(f"{self.path}: the state is damaged ({error})", hint=hint)
            return self._quarantine("is damaged or not an SQLite file")
        hints = {
            sqlite3.SQLITE_READONLY: "check that the file system is writable and that the file belongs to this user",
            sqlite3.SQLITE_CANTOPEN: "check that this user can write to the directory",
            sqlite3.SQLITE_IOERR: "check whether the disk reports errors",
        }
        return StateError(f"{self.path}: the state cannot be used: {error}", hint=hints.get(kind, _UNKNOWN_HINT))

    def _quarantine(self, why: str) -> StateError:
        self._disconnect()
        if not self.is_owner:
            return StateError(f"{self.path} {why}", hint="the next start of what uses it sets it aside")
        aside = _move_aside(self.path)
        return StateError(f"{self.path} {why}; set aside as {aside.name}", hint=way_out(aside))


def newer_schema(path: Path, version: int) -> StateError:
    """The error for a file that we leave alone because we do not know its format."""
    return StateError(
        f"{path}: written by a newer ionos-poller (schema {version}, this one knows {SCHEMA_VERSION})",
        hint="upgrade ionos-poller, or use another --state-dir",
    )


class Reader:
    """A state file that is only read, even while another process writes to it. Several threads may use it."""

    def __init__(self, path: Path) -> None:
        """Raises: StateError if the file cannot be read, has another schema, or is damaged."""
        self._path = path
        with translated_reading(path):
            self._shared = attach(path, is_writable=False)
        try:
            with self.reading() as connection:
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version > SCHEMA_VERSION:
                    raise newer_schema(path, version)
                if version != SCHEMA_VERSION:
                    raise StateError(f"{path}: has schema {version}, not {SCHEMA_VERSION}", hint=_OLDER_HINT)
                if not has_usual_types(connection):
                    raise StateError(f"{path} is damaged", hint="the next start of what uses it sets it aside")
        except BaseException:  # even an interrupt must not leave the file open
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Queries that belong together.  Raises: StateError."""
        with self._shared.lock, translated_reading(self._path):
            yield self._shared.raw

    def close(self) -> None:
        with suppress(sqlite3.Error):
            detach(self._shared)


def _create(path: Path, asked: Mapping[str, str] | None) -> None:
    aside = sorted(
        found for found in path.parent.glob(f"{path.name}.unusable-*") if not found.name.endswith(SIDE_FILES)
    )
    if aside and asked is None:
        raise StateError(f"{path} was set aside as {aside[-1].name}", hint=way_out(aside[-1]))
    if asked is None and was_created(path):
        raise vanished(path)
    new = path.with_name(f"{path.name}.new")
    with new_file(path, new) as connection:
        facts = {**(asked or {}), CREATED_AT: str(int(time.time()))}
        connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
    with translated_os(path):
        new.rename(path)


@contextmanager
def new_file(path: Path, new: Path) -> Iterator[sqlite3.Connection]:
    """A new state under another name. Rename it only when it is complete, because a partial state counts as damaged."""
    with translated_os(path):
        # SQLite would use the side files of a deleted state for the new one.
        for stale in (*files_of(new), *files_of(path)[1:]):
            stale.unlink(missing_ok=True)
        create_for_owner_of(new.parent, new.name)
    with translated_os(path):
        shared = attach(new, is_writable=True)
    try:
        connection = shared.raw
        connection.execute(_GIVE_BACK_WHEN_ASKED)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        migrate(connection)
        yield connection
        # Before the file has its name: after a kill during this change, only a writer can read it.
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        detach(shared)


def delete(path: Path) -> None:
    """Delete a state that nobody holds.  Raises: StateError."""
    forget_created(path)  # first: after an interrupt, the state must not seem to have vanished
    with translated_os(path):
        for file in files_of(path):
            file.unlink(missing_ok=True)


def way_out(aside: Path) -> str:
    """The remedy for a person. The API still has all entries, but only a person knows the time to read from."""
    written = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(aside.stat().st_mtime))
    return (
        f"last written {written}; run once with --since T, T at or before the last good run, to read again from there "
        f"(some entries may repeat), or delete {aside} to begin anew"
    )


def vanished(path: Path) -> StateError:
    """The error for a missing file whose lock file says that the state was created."""
    lock = lock_of(path)
    if path.stem.startswith("backfill-"):
        way_out = "give the same `backfill` --restart to export all of it again"
    else:
        way_out = "run once with --since T, T at or before the last good run, to read again from there (some entries may repeat)"
    hint = f"put it back; or {way_out}; or delete {lock} to begin anew"
    return StateError(f"{path} is gone: {lock.name} says that it was created", hint=hint)


def _move_aside(path: Path) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = path.with_name(f"{path.name}.unusable-{stamp}")
    for number in range(1, 1000):
        if not aside.exists():
            break
        aside = path.with_name(f"{path.name}.unusable-{stamp}-{number}")
    forget_created(path)  # a person may delete the file that is set aside; then a new state begins
    with translated_os(path):
        path.rename(aside)
    # The side files get the same new name, so that SQLite finds them.
    for file, its_name in zip(files_of(path)[1:], files_of(aside)[1:], strict=True):
        with suppress(OSError):
            file.rename(its_name)
    return aside


def make_directory(directory: Path) -> None:
    """Create the state directory, for its owner only.  Raises: StateError."""
    with translated_os(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    refuse_open(directory)


def refuse_open(directory: Path) -> None:
    """Raises: StateError if other users can change files in the directory."""
    with translated_os(directory):
        mode = directory.stat().st_mode
    # With the sticky bit, for example on a tmpfs, other users can add files but not change ours.
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise StateError(
            f"{directory}: other users can change the state there",
            hint=f"chmod o-w {directory}, or name a directory in it",
        )
