"""The state: one SQLite file per use, and every transaction on it.

Invariants:
1. New entries and the watermark that covers them are committed in one transaction (`Contracts.commit_window`).
2. The watermark never passes the window's end, and never goes backwards, but where a clock that was ahead had made it
   (`Contracts.take_back`).
3. An event leaves the outbox only when every sink is done with it: accepted, or in the transaction that writes its dead
   letter (`Outbox.settle`).
4. Counters are kept in the transaction that moves what they count, so the books balance at every commit.
5. A file that is not ours, is damaged or is newer than this program is never written to (`database`).
6. This process has one connection to a state file, however often it is opened, and opens it by no other means (`connection`).

`synchronous=NORMAL` with a write-ahead log: a power cut may undo the last commits, but whole ones; what they held is in the
API still, so it is read and sent again. Nothing is acknowledged to anybody before its commit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from poller.core.clocks import Trail
from poller.core.errors import StateError
from poller.store.contracts import Contracts
from poller.store.database import Database, delete, make_directory, vanished
from poller.store.dead_letters import DeadLetters
from poller.store.gaps import Gaps
from poller.store.journal import Action, Journal
from poller.store.lock import Lock, lock_of, was_created
from poller.store.outbox import Outbox
from poller.store.overview import Overview, overview

_TRAIL = "clock_trail"
_SINCE = "since "  # and the account's name


class State:
    """The open state of one use, held by this process until `close`."""

    def __init__(self, lock: Lock | None, database: Database) -> None:
        self._lock = lock
        self._database = database
        self.contracts = Contracts(database)
        self.outbox = Outbox(database)
        self.dead_letters = DeadLetters(database)
        self.journal = Journal(database)
        self.gaps = Gaps(database)

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
        """Open or create `<directory>/<use>.db`, for this process alone.

        `wait` waits for another process to let go of it, until `stop`. With `since` (unix seconds) the contracts of `accounts`
        are to be read again from there, as with `ask_since`, and a new file may take the place of one that was set aside: a
        person has decided from when to read.  Raises: StateError, StoppedError.
        """
        asked = None if since is None else {_SINCE + account: str(since) for account in accounts}
        make_directory(directory)
        lock = Lock(directory / f"{use}.lock", wait=wait, stop=stop or threading.Event())
        try:
            state = cls(lock, Database(directory / f"{use}.db", asked=asked))
        except BaseException:  # an interrupt, too, must not keep the lock
            lock.release()
            raise
        try:
            lock.remember_created()
            if since is not None:
                state.ask_since(accounts, since, by=by)
            state.outbox.recount()
        except BaseException:  # the same, once it is open
            state.close()
            raise
        return state

    @property
    def directory(self) -> Path:
        """The state directory."""
        return self._database.path.parent

    @property
    def use(self) -> str:
        return self._database.path.stem

    def check_in_place(self) -> None:
        """Raises: StateError when its file was moved or deleted, so that a restart would not find it."""
        self._database.check_in_place()

    def fact(self, name: str) -> str | None:
        """Something remembered by name; None where it never was.  Raises: StateError."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def remember(self, name: str, value: str) -> None:
        """Commits: a fact, in place of what was known by that name."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def clock_trail(self) -> Trail:
        """The times of earlier polls, as far as they tell of a clock that was ahead.  Raises: StateError."""
        at, *jumps = map(int, (self.fact(_TRAIL) or "0").split())
        return Trail(at, tuple(zip(jumps[::2], jumps[1::2], strict=True)))

    def remember_clock_trail(self, trail: Trail) -> None:
        """Commits: the times of polls."""
        self.remember(_TRAIL, " ".join(map(str, (trail.at, *(at for jump in trail.jumps for at in jump)))))

    def ask_since(self, accounts: Iterable[str], since: int, *, by: Action | None = None) -> None:
        """Commits: that the contracts of these accounts are to be read again from `since` (unix seconds), and who asked.

        It holds until they have been found, however often that fails; asked for twice, the earlier holds.
        """
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
                " WHERE CAST(excluded.value AS INTEGER) < CAST(value AS INTEGER)",
                [(_SINCE + account, str(since)) for account in accounts],
            )
            if by is not None:
                by.record(connection)

    def asked_since(self, account: str) -> int | None:
        """From when the contracts of an account are to be read again; None where nobody asked, or it is done."""
        since = self.fact(_SINCE + account)
        return int(since) if since else None

    def forget_since(self, account: str) -> None:
        """Commits: that it is done."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM facts WHERE name = ?", (_SINCE + account,))

    @staticmethod
    def files(directory: Path) -> list[Path]:
        """The file of every use, by name; none where the directory is missing.  Raises: StateError."""
        try:
            return sorted(path for path in directory.iterdir() if path.suffix == ".db")
        except FileNotFoundError:
            return []
        except OSError as error:
            hint = "is it another user's? Or name another --state-dir"
            raise StateError(f"{directory}: cannot be read: {error.strerror}", hint=hint) from error

    @classmethod
    def exists(cls, directory: Path, use: str) -> bool:
        """Whether a use has a file.  Raises: StateError when that cannot be told."""
        return any(path.stem == use for path in cls.files(directory))

    @classmethod
    def path(cls, directory: Path, use: str) -> Path:
        """The file of a use.  Raises: StateError when there is none."""
        path = directory / f"{use}.db"
        if not cls.exists(directory, use):
            if was_created(path):
                raise vanished(path)
            hint = f"`{use}` has not run with this --state-dir yet"
            raise StateError(f"{path} does not exist", hint=hint)
        return path

    @staticmethod
    def discard(directory: Path, use: str) -> None:
        """Delete the state of a use that nobody holds.  Raises: StateError when somebody does."""
        make_directory(directory)
        lock = Lock(directory / f"{use}.lock", wait=False, stop=threading.Event())
        try:
            delete(directory / f"{use}.db")
        finally:
            lock.release()

    def overview(self) -> Overview:
        """Everything at one moment, for status, metrics and the books.  Raises: StateError."""
        return overview(self._database)

    def prune(self, retention_seconds: int, overlap_seconds: int, now: int) -> None:
        """Forget old identities, and give space that is free back to the disk."""
        # A clock that turns out to have been ahead has all read again from before it was set.
        now = min([now, *(before for before, _ in self.clock_trail().jumps)])
        self.contracts.prune(retention_seconds, overlap_seconds, now)
        self._database.vacuum()

    def shrink(self) -> None:
        """Give all space that is free back to the disk: this use has done its work.  Raises: StateError."""
        self._database.vacuum(is_last=True)

    @classmethod
    def attach(cls, directory: Path, use: str) -> State:
        """Open the state of a use that may be running, for short transactions of a person's: replay, purge, forget.

        Raises: StateError when there is none.
        """
        return cls(None, Database(cls.path(directory, use), is_owner=False))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold an attached state for this process alone while the block lasts, as `open` does: to collect, not only to look.

        Raises: StateHeldError when another process holds it, StateError.
        """
        lock = Lock(lock_of(self._database.path), wait=False, stop=threading.Event())
        self._database.is_owner = True
        try:
            self.outbox.recount()
            yield
        finally:
            if self._database.is_damaged:  # `close` sets it aside: nobody is to start with it before
                self._lock = lock
            else:
                self._database.is_owner = False
                lock.release()

    def close(self) -> None:
        self._database.close()
        if self._lock is not None:
            self._lock.release()
