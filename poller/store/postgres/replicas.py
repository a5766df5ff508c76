"""Replicas: the processes that share a state, their leases, and the contracts that each one holds.

A replica has a random token. It holds contracts until its row in `replicas` expires, by the clock of the database. It relies on
this only until `_deadline`: the lease, less a margin, from before the last renewal was requested, on the monotonic clock.
Correctness does not depend on any of this: every commit names the token, and is refused if the row has another one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple
from uuid import UUID, uuid4

from poller import __version__
from poller.core.errors import StateError
from poller.core.outages import Outage
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.schema import SCHEMA_VERSION, check_version

log = logging.getLogger(__name__)

_MARGIN = 0.2  # part of the lease, for clocks of different speed and a slow answer
_KEPT_SECONDS = 600  # how long the row of a dead replica is kept
_SPARED_SECONDS = 600  # how long a contract that no other replica took is kept beyond the fair share
_LENT_SECONDS = 60  # the same, if it is held only to be delivered: meanwhile nobody can poll it

LIVE = "SELECT token FROM replicas WHERE use_id = %s AND expires_at > clock_timestamp()"


class Identity(NamedTuple):
    """What other replicas see of this process: its host, and a fingerprint of its configuration."""

    host: str
    config: str


class Replica:
    """This process as a replica of one use. `held` returns the contracts that it holds, as of the last query."""

    def __init__(self, database: Database, use: int, identity: Identity, lease_seconds: int) -> None:
        self._database = database
        self._use = use
        self.identity = identity
        """A reload changes it."""
        self._lease_seconds = lease_seconds
        self._lock = threading.RLock()
        self._sharing = threading.Lock()  # taken before `_lock`
        self._deadline = 0.0
        self._held: set[str] = set()
        self._in_hand: Counter[str] = Counter()
        self.unsettled: frozenset[str] = frozenset()
        """Contracts of the use with gaps or spans that must still be read, as of the last `share`."""
        self.leaving: frozenset[str] = frozenset()
        """Contracts beyond the fair share that are in use. No new work begins with them, so that they can be given back."""
        self._free_since: dict[str, float] = {}
        self._spared_until: dict[str, float] = {}  # contracts beyond the fair share that no other replica took
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self.token: UUID = uuid4()
        self.lost_count = 0
        """How often this process lost its lease, and so its contracts."""

    def join(self) -> None:
        """Commits: the row of this replica. A thread then renews it every third of a lease."""
        self._register()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Commits: the release of all it holds. If the database is away, the lease runs out instead."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        try:
            self._database.write(self._erase)
        except StateError as error:
            log.debug("lease.not_given_back", extra={"why": error.message})

    def _erase(self, connection: Connection) -> None:
        connection.execute(
            "UPDATE contracts SET holder = NULL WHERE use_id = %s AND holder = %s", (self._use, self.token)
        )
        connection.execute("DELETE FROM replicas WHERE token = %s", (self.token,))

    # The lease

    def _register(self) -> None:
        asked_at = time.monotonic()
        token = uuid4()
        self._database.write(lambda connection: self._insert(connection, token))
        with self._lock:
            self.token = token
            self._held.clear()
            self._deadline = self._deadline_from(asked_at)

    def _insert(self, connection: Connection, token: UUID) -> None:
        connection.execute(
            "DELETE FROM replicas WHERE expires_at < clock_timestamp() - make_interval(secs => %s)", (_KEPT_SECONDS,)
        )
        connection.execute(
            "INSERT INTO replicas SELECT %s, %s, %s, %s, %s, %s, t, t, t + make_interval(secs => %s), false"
            " FROM clock_timestamp() AS t",
            (
                token, self._use, self.identity.host, os.getpid(), __version__, self.identity.config,
                self._lease_seconds,
            ),
        )  # fmt: skip

    def _deadline_from(self, asked_at: float) -> float:
        return asked_at + self._lease_seconds * (1 - _MARGIN)

    def _keep_alive(self) -> None:
        outage = Outage()
        while not self._stopped.wait(self._lease_seconds / 3):
            try:
                self.renew()
                outage.ended(time.monotonic())
            except StateError as error:
                level = logging.WARNING if outage.has_to_be_told(time.monotonic()) else logging.DEBUG
                log.log(level, "lease.renewal_failed", extra={"why": error.message, "hint": error.hint})
            except Exception:  # the thread must go on: without it, the lease expires again and again
                log.exception("lease.renewal_crashed")

    def renew(self) -> None:
        """Commits: a longer lease; if it comes too late, a new registration with another token, which holds nothing.

        Raises: StateError if a newer program has changed the tables meanwhile. Then nothing more is written.
        """
        asked_at = time.monotonic()
        token = self.token
        query = (
            "WITH renewed AS (UPDATE replicas SET config = %s, seen_at = clock_timestamp(),"
            "  expires_at = clock_timestamp() + make_interval(secs => %s)"
            "  WHERE token = %s AND expires_at > clock_timestamp() AND (SELECT needs FROM schema_version) <= %s RETURNING 1)"
            " SELECT version, needs, EXISTS (SELECT 1 FROM renewed) FROM schema_version"
        )
        values = (self.identity.config, self._lease_seconds, token, SCHEMA_VERSION)
        row = self._database.write(lambda connection: connection.execute(query, values).fetchone())
        version, needs, is_renewed = row or (0, 0, False)
        check_version(self._database, version, needs)
        with self._lock:
            if is_renewed and time.monotonic() < self._deadline_from(asked_at):
                self._deadline = self._deadline_from(asked_at)
                return
            count = len(self._held)
        if self._stopped.is_set():
            return
        self._register()
        self.lost_count += 1
        log.warning(
            "lease.lost", extra={"contracts": count, "hint": "others go on with them; this replica begins anew"}
        )

    def is_trusted(self, token: UUID) -> bool:
        """Whether this token certainly still holds its contracts."""
        with self._lock:
            return token == self.token and time.monotonic() < self._deadline

    # Contracts

    def holds(self, token: UUID, contracts: Iterable[str]) -> bool:
        """Whether it still holds all of them, as far as is known without a query."""
        with self._lock:
            return self.is_trusted(token) and self._held.issuperset(contracts)

    def held(self) -> set[str]:
        with self._lock:
            return set(self._held)

    def take_in_hand(self, contracts: Collection[str]) -> bool:
        """Keep contracts from being given back until `put_down` was called as often. Waits until a running `share` ends.

        Returns: whether all are held.
        """
        with self._sharing, self._lock:
            self._in_hand.update(contracts)
            return self._held.issuperset(contracts)

    def put_down(self, contracts: Collection[str]) -> None:
        with self._lock:
            self._in_hand.subtract(contracts)
            self._in_hand += Counter()

    def share(self, wanted: Sequence[str]) -> None:
        """Commits: its fair share of the wanted contracts. Contracts beyond it are given back once they are not in use."""
        token = self.token
        with self._sharing:  # no event may be sent of a contract that is being given back
            with self._lock:
                in_hand = set(self._in_hand)
            held = self._database.write(lambda connection: self._share(connection, token, wanted, in_hand))
            with self._lock:
                if token == self.token:
                    self._held = held

    def _share(self, connection: Connection, token: UUID, wanted: Sequence[str], in_hand: set[str]) -> set[str]:
        known = set(wanted)
        # A replica that wants no contracts, such as a repair, gets no share. The UPDATE fails if the database takes no writes,
        # even if there is nothing to share.
        row = connection.execute(
            "WITH me AS (UPDATE replicas SET shares = %(shares)s WHERE token = %(token)s AND shares <> %(shares)s)"
            " SELECT EXISTS (SELECT 1 FROM replicas WHERE token = %(token)s AND expires_at > clock_timestamp()),"
            " (SELECT count(*) FROM replicas WHERE use_id = %(use)s AND expires_at > clock_timestamp()"
            "  AND (shares OR token = %(token)s)),"
            " ARRAY(SELECT contract FROM contracts WHERE use_id = %(use)s AND holder = %(token)s),"
            " ARRAY(SELECT contract FROM ranges WHERE use_id = %(use)s UNION"
            "  SELECT contract FROM gaps WHERE use_id = %(use)s),"
            " ARRAY(SELECT contract FROM contracts WHERE use_id = %(use)s AND outbox_events > 0 AND (holder IS NULL OR"
            "  holder = %(token)s OR holder NOT IN"
            "  (SELECT token FROM replicas WHERE use_id = %(use)s AND expires_at > clock_timestamp()))),"
            " EXISTS (SELECT 1 FROM replicas WHERE use_id = %(use)s AND expires_at > clock_timestamp() AND shares"
            "  AND config <> %(config)s)",
            {"shares": bool(known), "token": token, "use": self._use, "config": self.identity.config},
        ).fetchone()
        is_alive, sharing_count, *contracts, is_mixed = row or (False, 0, (), (), (), False)
        held, unsettled, waiting = map(set, contracts)
        self.unsettled = frozenset(unsettled)
        if not is_alive:
            return set()
        fair = -(-len(known) // sharing_count)
        now = time.monotonic()
        unwanted = waiting - known  # not polled here; their waiting events are still delivered
        left_over = unwanted | known if is_mixed else unwanted
        spared = {contract for contract in held & left_over if now < self._spared_until.get(contract, now)}
        kept = sorted(held - spared, key=lambda contract: (contract not in known, contract not in in_hand, contract))
        excess = {*kept[fair:], *(held - known - spared)}
        self.leaving = frozenset(excess & in_hand)
        surplus = excess - in_hand
        if surplus:  # a locked contract is given back later, and delays nothing else
            given = connection.execute(
                "UPDATE contracts SET holder = NULL WHERE use_id = %s AND contract IN (SELECT contract FROM contracts"
                " WHERE use_id = %s AND holder = %s AND contract = ANY(%s) FOR UPDATE SKIP LOCKED) RETURNING contract",
                (self._use, self._use, token, list(surplus)),
            )
            held -= {row[0] for row in given}
        room = fair - len(held - spared)
        if room > 0 and known - held:
            held |= self._take(connection, token, list(known - held), room)
        return held | self._take_left_over(connection, token, list(left_over - held), unwanted, now)

    def _take_left_over(
        self, connection: Connection, token: UUID, contracts: Sequence[str], unwanted: set[str], now: float
    ) -> set[str]:
        """Take contracts that were free for a whole lease: replicas with other configurations may want fewer contracts.

        A contract that is not wanted here is taken after two leases, because a replica that wants it takes it before.
        """
        query = (
            "SELECT contract FROM contracts WHERE use_id = %s AND contract = ANY(%s)"
            f" AND (holder IS NULL OR holder NOT IN ({LIVE}))"
        )
        rows = connection.execute(query, (self._use, contracts, self._use)) if contracts else ()
        free = {contract: self._free_since.get(contract, now) for (contract,) in rows}
        leases = {contract: 2 if contract in unwanted else 1 for contract in free}
        chosen = [one for one, since in free.items() if now - since > leases[one] * self._lease_seconds]
        taken = self._take(connection, token, chosen, None) if chosen else set()
        self._free_since = {contract: since for contract, since in free.items() if contract not in taken}
        self._spared_until |= {one: now + (_LENT_SECONDS if one in unwanted else _SPARED_SECONDS) for one in taken}
        return taken

    def take(self, contracts: Sequence[str]) -> None:
        """Commits: that it holds those of the contracts that no live replica holds."""
        token = self.token
        taken = self._database.write(lambda connection: self._take(connection, token, contracts, None))
        with self._lock:
            if token == self.token:
                self._held |= taken

    def _take(self, connection: Connection, token: UUID, contracts: Sequence[str], limit: int | None) -> set[str]:
        # MATERIALIZED, because otherwise the subquery may run several times, and find more rows than the limit.
        rows = connection.execute(
            "WITH free AS MATERIALIZED (SELECT contract FROM contracts"
            f" WHERE use_id = %s AND contract = ANY(%s) AND (holder IS NULL OR holder NOT IN ({LIVE}))"
            " ORDER BY contract FOR UPDATE SKIP LOCKED LIMIT %s)"
            " UPDATE contracts SET holder = %s WHERE use_id = %s AND contract IN (SELECT contract FROM free)"
            " AND EXISTS (SELECT 1 FROM replicas WHERE token = %s AND expires_at > clock_timestamp()) RETURNING contract",
            (self._use, list(contracts), self._use, limit, token, self._use, token),
        )
        return {row[0] for row in rows}
