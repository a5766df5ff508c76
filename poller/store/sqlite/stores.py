"""The state directory: an independent file for each use, with a lock file beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from poller.core.errors import StateError
from poller.store.copying import Dump, Tick
from poller.store.journal import Action, JournalEntry
from poller.store.overview import Overview
from poller.store.rows import Diagnosis
from poller.store.sqlite import copying, diagnosis, inspection
from poller.store.sqlite import overview as reading
from poller.store.sqlite.database import delete, make_directory
from poller.store.sqlite.lock import Lock, forget_created
from poller.store.sqlite.overview import Collected
from poller.store.sqlite.state import State
from poller.store.sqlite.translation import translated_os


class Stores:
    """The states in a directory. See `poller.store.protocols.Stores` for what each method does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()  # absolute for messages, which are also read elsewhere

    @property
    def place(self) -> str:
        return str(self.directory)

    def owner(self) -> int | None:
        """The user who owns the directory; None if it cannot be read."""
        try:
            return self.directory.stat().st_uid
        except OSError:  # the next use of the directory reports it
            return None

    def where(self, use: str) -> str:
        return str(self._path(use).absolute())

    def prepare(self) -> list[int]:
        """Does nothing: `open` creates or upgrades the files."""
        return []

    def uses(self) -> list[str]:
        try:
            return sorted(path.stem for path in self.directory.iterdir() if path.suffix == ".db")
        except FileNotFoundError:
            return []
        except OSError as error:
            hint = "check that it belongs to this user, or name another --state-dir"
            raise StateError(f"{self.directory}: cannot be read: {error.strerror}", hint=hint) from error

    def open(
        self,
        use: str,
        *,
        wait: bool = False,
        stop: threading.Event | None = None,
        since: int | None = None,
        accounts: Iterable[str] = (),
        by: Action | None = None,
    ) -> State:
        state = State.open(self.directory, use, wait=wait, stop=stop, since=since, accounts=accounts, by=by)
        for other in self.uses():
            if other != use:
                self._upgrade(other)
        return state

    def _upgrade(self, use: str) -> None:
        """Upgrade a state if no process works on it. Finished backfills are only read, so nothing else upgrades them.

        A state that cannot be upgraded now stays as it is.  Commits: the schema.
        """
        with suppress(StateError):
            path = self._path(use)
            if inspection.is_older(path) and inspection.schema_of(path):  # a damaged one would be set aside
                State.open(self.directory, use).close()

    def attach(self, use: str) -> State:
        return State.attach(self._existing(use))

    def snapshot(self, use: str) -> Overview:
        return reading.overview_of(self._existing(use))

    def journal(self, use: str, *, since: int = 0, limit: int | None = None) -> list[JournalEntry]:
        return reading.journal_of(self._existing(use), since=since, limit=limit)

    def collected(self, use: str, sinks: Sequence[str]) -> Collected:
        return Collected(self._existing(use), sinks)

    def discard(self, use: str) -> None:
        make_directory(self.directory)
        lock = Lock(self.directory / f"{use}.lock")
        try:
            delete(self._path(use))
        finally:
            lock.release()

    def rename(self, use: str, new: str) -> None:
        """Give the closed state of a use to another use, which has none."""
        with translated_os(self._path(use)):
            forget_created(self._path(use))
            self._path(use).rename(self._path(new))

    def holder(self, use: str) -> int | None:
        return inspection.holder_of(self.directory / f"{use}.lock")

    def missing(self) -> dict[str, StateError]:
        return inspection.missing_in(self.directory)

    def dump(self) -> AbstractContextManager[Sequence[Dump]]:
        return copying.reading(self.directory, self.uses())

    def load(self, dumps: Sequence[Dump], tick: Tick) -> None:
        copying.load(self.directory, dumps, tick)

    def diagnose(self, max_bytes: int) -> Iterator[Diagnosis]:
        return diagnosis.diagnose(self.directory, max_bytes)

    def _path(self, use: str) -> Path:
        return self.directory / f"{use}.db"

    def _existing(self, use: str) -> Path:
        """The file of a use.  Raises: StateError if it does not exist."""
        path = self._path(use)
        if use not in self.uses():
            hint = f"`{use}` has not run with this --state-dir yet"
            raise self.missing().get(use) or StateError(f"{path} does not exist", hint=hint)
        return path
