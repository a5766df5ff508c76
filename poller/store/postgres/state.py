"""The open state of one use, kept in a PostgreSQL database that several machines may use at once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from poller.config import Config
from poller.core.clocks import Trail
from poller.core.errors import StateError
from poller.store.journal import Action
from poller.store.overview import Overview
from poller.store.postgres.archives import Archives
from poller.store.postgres.contract_rows import read_fact, set_fact
from poller.store.postgres.contracts import Contracts
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.dead_letters import DeadLetters
from poller.store.postgres.fingerprint import fingerprint
from poller.store.postgres.gaps import Gaps
from poller.store.postgres.journal import Acted, Journal, write_by
from poller.store.postgres.outbox import Outbox
from poller.store.postgres.overview import read_overview
from poller.store.postgres.registrations import Registrations
from poller.store.postgres.replicas import Identity, Replica

_TRAIL = "clock_trail "  # followed by the host's name: each host has its own clock
_SINCE = "since "  # followed by the account's name


class State:
    """The open state of one use. It joins the replicas of the use with its first claim, share or place."""

    def __init__(self, database: Database, use: str, use_id: int, identity: Identity, lease_seconds: int) -> None:
        self.use = use
        self._database = database
        self._use = use_id
        self._identity = identity
        self._lease_seconds = lease_seconds
        self._replica: Replica | None = None
        self._lock = threading.Lock()
        registrations = Registrations(database, use_id)
        self.outbox = Outbox(database, use_id, self._joined, registrations)
        self.contracts = Contracts(database, use_id, self._joined, self.outbox.note_put)
        self.dead_letters = DeadLetters(database, use_id)
        self.journal = Journal(database, use_id)
        self.gaps = Gaps(database, use_id)
        self.archives = Archives(database, use_id, registrations)

    @property
    def lost_leases(self) -> int:
        replica = self._replica
        return replica.lost_count if replica is not None else 0

    def _joined(self) -> Replica:
        with self._lock:
            if self._replica is None:
                replica = Replica(self._database, self._use, self._identity, self._lease_seconds)
                replica.join()
                self._replica = replica
            return self._replica

    def check_in_place(self) -> None:
        """Does nothing: if the database is gone, the next transaction fails."""

    def fact(self, name: str) -> str | None:
        return self._database.read(lambda connection: read_fact(connection, self._use, name))

    def remember(self, name: str, value: str) -> None:
        self._database.write(lambda connection: set_fact(connection, self._use, name, value))

    def remember_for_good(self, name: str, value: str) -> None:
        """As `remember`: the server decides which commits survive a power cut (`synchronous_commit`)."""
        self.remember(name, value)

    def adopt_config(self, config: Config) -> None:
        """The next renewal of the lease shows it to the other replicas."""
        with self._lock:
            self._identity = self._identity._replace(config=fingerprint(config))
            if self._replica is not None:
                self._replica.identity = self._identity

    def shared_now(self) -> float:
        """The time by the clock of the database."""
        query = "SELECT extract(epoch FROM clock_timestamp())::float8"
        return float(self._database.read(lambda connection: connection.value(query)))

    def clock_trail(self) -> Trail:
        """Each machine has its own trail."""
        return Trail.of(map(int, (self.fact(_TRAIL + self._identity.host) or "").split()))

    def remember_clock_trail(self, trail: Trail) -> None:
        value = " ".join(map(str, trail.numbers()))
        self.remember(_TRAIL + self._identity.host, value)

    def request_reread(self, accounts: Iterable[str], since: int, *, by: Action | None = None) -> None:
        def work(connection: Connection) -> Acted[None]:
            for account in names:
                connection.execute(
                    "INSERT INTO facts VALUES (%s, %s, %s) ON CONFLICT (use_id, name) DO UPDATE SET value = excluded.value"
                    " WHERE excluded.value::bigint < facts.value::bigint",
                    (self._use, _SINCE + account, str(since)),
                )
            return Acted(None)

        names = sorted(accounts)
        write_by(self._database, self._use, by, work)

    def requested_reread(self, account: str) -> int | None:
        since = self.fact(_SINCE + account)
        return int(since) if since else None

    def forget_reread(self, account: str) -> None:
        query = "DELETE FROM facts WHERE use_id = %s AND name = %s"
        self._database.write(lambda connection: connection.execute(query, (self._use, _SINCE + account)))

    def overview(self) -> Overview:
        self.contracts.flush()
        return self._database.read(lambda connection: read_overview(connection, self._use))

    def prune(self, retention_seconds: int, overlap_seconds: int, now: int) -> None:
        """Autovacuum gives the space back."""
        # If the clock proves to have been ahead, everything from before its jump on is read again: keep those identities.
        now = min([now, *(before for before, _ in self.clock_trail().jumps)])
        self.contracts.prune(retention_seconds, overlap_seconds, now)
        self.outbox.sweep()  # what an interrupted `forget` has left

    def shrink(self) -> None:
        """Does nothing: the server's autovacuum gives the space back."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """This process is a replica until the block ends."""
        self._joined()
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Leave the replicas. The next claim, share or place joins again."""
        with self._lock:
            replica, self._replica = self._replica, None
        if replica is not None:
            with suppress(StateError):  # windows of polls without new entries are read again
                self.contracts.flush()
            replica.leave()
