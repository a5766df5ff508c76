"""The states in a database: a schema of tables, in which every use has its rows."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from poller.config import Config
from poller.core.errors import StateError, StateHeldError
from poller.store.copying import Dump, Tick
from poller.store.journal import Action, JournalEntry
from poller.store.overview import Overview
from poller.store.postgres import copying, diagnosis
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.fingerprint import fingerprint
from poller.store.postgres.journal import read_journal
from poller.store.postgres.overview import Collected, read_overview, read_replicas
from poller.store.postgres.replicas import LIVE, Identity
from poller.store.postgres.schema import TABLES, check, prepare
from poller.store.postgres.state import State
from poller.store.rows import Diagnosis


class Stores:
    """The states in a database. See `poller.store.protocols.Stores` for what each method does."""

    def __init__(self, config: Config) -> None:
        self.directory = config.state_dir
        self._config = config
        self._database = Database(config.state, config.ca_bundle)
        weakref.finalize(self, self._database.close)  # a command that ends leaves no connection open
        self._identity = Identity(os.uname().nodename, fingerprint(config))
        self._is_prepared = False
        self._lock = threading.Lock()

    @property
    def place(self) -> str:
        return self._database.place

    def owner(self) -> int | None:
        """Always None: no user of this machine owns the rows."""
        return None

    def where(self, use: str) -> str:
        return f"{self.place} ({use})"

    def prepare(self) -> list[int]:
        """Commits: the tables in this program's version.  Returns: the versions that were applied.  Raises: StateError."""
        with self._lock:
            if self._is_prepared:
                check(self._database)
                return []
            applied = prepare(self._database)
            self._is_prepared = True
        return applied

    def uses(self) -> list[str]:
        return list(self._ids())

    def _ids(self) -> dict[str, int]:
        """The uses and their numbers, by name."""

        def work(connection: Connection) -> dict[str, int]:
            if connection.value("SELECT to_regclass('uses')") is None:
                return {}
            return dict(connection.execute("SELECT name, id FROM uses ORDER BY name").fetchall())

        return self._database.read(work)

    def open(
        self,
        use: str,
        *,
        wait: bool = False,  # no effect: replicas share the state
        stop: threading.Event | None = None,
        since: int | None = None,
        accounts: Iterable[str] = (),
        by: Action | None = None,
    ) -> State:
        self.prepare()

        def work(connection: Connection) -> int:
            connection.execute(
                "INSERT INTO uses (name, created_at) SELECT %s, floor(extract(epoch FROM clock_timestamp()))"
                " WHERE NOT EXISTS (SELECT 1 FROM uses WHERE name = %s) ON CONFLICT (name) DO NOTHING",
                (use, use),
            )
            found: int | None = connection.value("SELECT id FROM uses WHERE name = %s", (use,))
            return found or work(connection)  # it was discarded just now

        state = self._state(use, self._database.write(work))
        if since is not None:
            state.request_reread(accounts, since, by=by)
        return state

    def attach(self, use: str) -> State:
        self.prepare()
        return self._state(use, self._id_of(use))

    def _state(self, use: str, use_id: int) -> State:
        return State(self._database, use, use_id, self._identity, self._config.state.lease_seconds)

    def _id_of(self, use: str) -> int:
        """The number of a use.  Raises: StateError if it has no state."""
        found = self._ids().get(use)
        if found is None:
            raise StateError(f"{self.where(use)} does not exist", hint=f"`{use}` has not run with this state.url yet")
        return found

    def snapshot(self, use: str) -> Overview:
        use_id = self._id_of(use)
        return self._database.read(lambda connection: read_overview(connection, use_id))

    def journal(self, use: str, *, since: int = 0, limit: int | None = None) -> list[JournalEntry]:
        use_id = self._id_of(use)
        return self._database.read(lambda connection: read_journal(connection, use_id, since=since, limit=limit))

    def collected(self, use: str, sinks: Sequence[str]) -> Collected:
        return Collected(self._database, self._id_of(use), sinks)

    def discard(self, use: str) -> None:
        def work(connection: Connection) -> None:
            use_id = connection.value("SELECT id FROM uses WHERE name = %s FOR UPDATE", (use,))
            if use_id is None:
                return
            if connection.value(LIVE, (use_id,)):
                raise StateHeldError(f"{self.where(use)}: a replica works on it", hint="stop it first")
            connection.execute(
                "DELETE FROM gap_entries WHERE gap IN (SELECT id FROM gaps WHERE use_id = %s)", (use_id,)
            )
            for table in TABLES:
                connection.execute(f"DELETE FROM {table} WHERE use_id = %s", (use_id,))
            connection.execute("DELETE FROM uses WHERE id = %s", (use_id,))

        self.prepare()
        self._database.write(work)

    def rename(self, use: str, new: str) -> None:
        query = "UPDATE uses SET name = %s WHERE name = %s"
        self._database.write(lambda connection: connection.execute(query, (new, use)))

    def holder(self, use: str) -> int | None:
        """The oldest live replica of this machine."""
        use_id = self._ids().get(use)
        if use_id is None:
            return None
        replicas = self._database.read(lambda connection: read_replicas(connection, use_id))
        return next((replica.pid for replica in replicas if replica.host == self._identity.host), None)

    def missing(self) -> dict[str, StateError]:
        """Always empty: if the database is lost, every query fails."""
        return {}

    def dump(self) -> AbstractContextManager[Sequence[Dump]]:
        self.prepare()
        return copying.reading(self._database)

    def load(self, dumps: Sequence[Dump], tick: Tick) -> None:
        self.prepare()
        copying.load(self._database, dumps, tick)

    def diagnose(self, max_bytes: int) -> Iterator[Diagnosis]:
        return diagnosis.diagnose(self._database, max_bytes)

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._database.close()
