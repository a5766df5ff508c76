"""The open state of one use, kept in an SQLite file.

The file has a write-ahead log and `synchronous=NORMAL`. So a power cut can undo the last commits, but only whole ones. Their
entries are still in the API, and are read and sent again. Nothing is acknowledged to anybody before its commit. The batch of an
archive is on the disk before it is written to the archive.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from poller.config import Config
from poller.core.clocks import Trail
from poller.store.journal import Action
from poller.store.overview import Overview
from poller.store.sqlite.archives import Archives
from poller.store.sqlite.connection import surviving
from poller.store.sqlite.contracts import Contracts, read_fact, set_fact
from poller.store.sqlite.database import Database, make_directory
from poller.store.sqlite.dead_letters import DeadLetters
from poller.store.sqlite.gaps import Gaps
from poller.store.sqlite.journal import Journal, record
from poller.store.sqlite.lock import Lock, lock_of
from poller.store.sqlite.outbox import Outbox
from poller.store.sqlite.overview import read_overview

_TRAIL = "clock_trail"
_SINCE = "since "  # followed by the account's name


class State:
    """The open state of one use, held by this process until `close`."""

    lost_leases = 0
    """Always 0: no other process can take the state over."""

    def __init__(self, lock: Lock | None, database: Database) -> None:
        self._lock = lock
        self._database = database
        self.contracts = Contracts(database)
        self.outbox = Outbox(database)
        self.dead_letters = DeadLetters(database)
        self.journal = Journal(database)
        self.gaps = Gaps(database)
        self.archives = Archives(database)

    @classmethod
    def open(
        cls,
        directory: Path,
        use: str,
        *,
        wait: bool = False,
        stop: threading.Event | None = None,
        since: int | None = None,
        accounts: Iterable[str] = (),
        by: Action | None = None,
    ) -> State:
        """Open or create `<directory>/<use>.db`, for this process alone, as `Stores.open` says."""
        asked = None if since is None else {_SINCE + account: str(since) for account in accounts}
        make_directory(directory)
        lock = Lock(directory / f"{use}.lock", wait=wait, stop=stop)
        try:
            state = cls(lock, Database(directory / f"{use}.db", asked=asked))
        except BaseException:  # even an interrupt must not keep the lock
            lock.release()
            raise
        try:
            lock.remember_created()
            if since is not None:
                state.request_reread(accounts, since, by=by)
            state.outbox.recount()
        except BaseException:  # the same; `close` releases the lock
            state.close()
            raise
        return state

    @property
    def use(self) -> str:
        return self._database.path.stem

    def check_in_place(self) -> None:
        self._database.check_in_place()

    def fact(self, name: str) -> str | None:
        with self._database.reading() as connection:
            return read_fact(connection, name)

    def remember(self, name: str, value: str) -> None:
        with self._database.transaction() as connection:
            set_fact(connection, name, value)

    def remember_for_good(self, name: str, value: str) -> None:
        with self._database.reading() as raw, surviving(raw):
            self.remember(name, value)

    def adopt_config(self, config: Config) -> None:
        """Does nothing: there are no other replicas to inform."""

    def shared_now(self) -> None:
        """Always None: a state in files has only the clock of this machine."""

    def clock_trail(self) -> Trail:
        return Trail.of(map(int, (self.fact(_TRAIL) or "").split()))

    def remember_clock_trail(self, trail: Trail) -> None:
        self.remember(_TRAIL, " ".join(map(str, trail.numbers())))

    def request_reread(self, accounts: Iterable[str], since: int, *, by: Action | None = None) -> None:
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
                " WHERE CAST(excluded.value AS INTEGER) < CAST(value AS INTEGER)",
                [(_SINCE + account, str(since)) for account in accounts],
            )
            record(connection, by)

    def requested_reread(self, account: str) -> int | None:
        since = self.fact(_SINCE + account)
        return int(since) if since else None

    def forget_reread(self, account: str) -> None:
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM facts WHERE name = ?", (_SINCE + account,))

    def overview(self) -> Overview:
        with self._database.reading() as connection:
            return read_overview(connection)

    def prune(self, retention_seconds: int, overlap_seconds: int, now: int) -> None:
        # If the clock proves to have been ahead, everything from before its jump on is read again: keep those identities.
        now = min([now, *(before for before, _ in self.clock_trail().jumps)])
        self.contracts.prune(retention_seconds, overlap_seconds, now)
        self._database.vacuum()

    def shrink(self) -> None:
        self._database.shrink()

    @classmethod
    def attach(cls, path: Path) -> State:
        """Open the state in a file that may be in use, for short transactions of a person: replay, purge, forget."""
        return cls(None, Database(path, is_owner=False))

    @contextmanager
    def held(self) -> Iterator[None]:
        lock = Lock(lock_of(self._database.path))
        self._database.is_owner = True
        try:
            self.outbox.recount()
            yield
        finally:
            if self._database.is_damaged:  # `close` sets it aside, and then releases the lock: nobody may start before
                self._lock = lock
            else:
                self._database.is_owner = False
                lock.release()

    def close(self) -> None:
        self._database.close()
        if self._lock is not None:
            self._lock.release()
