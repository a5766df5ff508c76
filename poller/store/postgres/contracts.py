"""The collecting half of the state: contracts, their watermarks and books, and the spans that must still be read.

Every transaction locks in this order: rows of `contracts` by number, a row of `sinks`, rows of `places` by contract, all others.
The registration of a new sink also locks the whole table `contracts` for a moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from poller.core.events import Event
from poller.core.hours import Compared
from poller.core.windows import Window
from poller.store.journal import Action
from poller.store.postgres import ledger
from poller.store.postgres.claims import Claim
from poller.store.postgres.contract_rows import read_contracts, read_known, read_ranges, set_fact
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.journal import Acted, write_by
from poller.store.postgres.quiet import Known, Quiet
from poller.store.postgres.replicas import Replica
from poller.store.rows import Contract, Count, Range

_PRUNED_AT_ONCE = 500


class Contracts:
    """The tables `contracts`, `ranges`, `ledger` and `filtered`, and the fact `skipped`, of one use."""

    def __init__(
        self, database: Database, use: int, replica: Callable[[], Replica], note_put: Callable[[int], None]
    ) -> None:
        """`replica` returns this process as a replica. It is called only when it is needed, because the first call joins.

        `note_put` is called with the number of bytes that a commit has put into the outbox.
        """
        self._database = database
        self._use = use
        self._replica = replica
        self._note_put = note_put
        self._claims: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._quiet = Quiet(database, use)

    def flush(self) -> None:
        """Commits: the unwritten results of polls without new entries."""
        self._quiet.flush()

    def all(self) -> list[Contract]:
        self.flush()
        return self._database.read(lambda connection: read_contracts(connection, self._use))

    def get(self, contract: str) -> Contract | None:
        self._quiet.settle(contract)
        rows = self._database.read(lambda connection: read_contracts(connection, self._use, [contract]))
        return rows[0] if rows else None

    def enrol(self, contracts: Iterable[str], account: str, start: int, now: int) -> None:
        def work(connection: Connection) -> None:
            connection.executemany(
                "INSERT INTO contracts (use_id, contract, account, origin, watermark, audited_at)"
                " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (use_id, contract) DO UPDATE"
                " SET account = excluded.account WHERE contracts.account <> excluded.account",
                [(self._use, contract, account, start, start, now) for contract in chosen],
            )

        chosen = sorted(contracts)
        if chosen:
            self._database.write(work)
            self._quiet.forget(chosen)

    def skip_to(self, contract: str, start: int, count: int) -> None:
        def work(connection: Connection) -> None:
            query = "UPDATE contracts SET watermark = %s WHERE use_id = %s AND contract = %s AND watermark < %s"
            if connection.execute(query, (start, self._use, contract, start)).rowcount:
                connection.execute(
                    "INSERT INTO facts VALUES (%s, 'skipped', %s) ON CONFLICT (use_id, name) DO UPDATE"
                    " SET value = (facts.value::bigint + excluded.value::bigint)::text",
                    (self._use, str(count)),
                )

        self._database.write(work)
        self._quiet.forget([contract])

    def take_back(self, row: Contract, watermark: int, now: int) -> bool:
        token = self._replica().token

        def work(connection: Connection) -> bool:
            query = (
                "UPDATE contracts SET watermark = %s, origin = least(origin, %s)"
                " WHERE use_id = %s AND contract = %s AND holder = %s AND watermark >= %s"
            )
            values = (watermark, watermark, self._use, row.contract, token, row.watermark)
            is_set = connection.execute(query, values).rowcount == 1
            if is_set:
                set_fact(connection, self._use, "taken_back", f"{now} {watermark}")
            return is_set

        is_set = self._database.write(work)
        self._quiet.forget([row.contract])
        with self._lock:
            claim = self._claims.get(row.contract)
        if is_set and claim is not None:
            claim.taken_back(watermark)
        return is_set

    def add_range(
        self, contract: str, window: Window, purpose: str, *, by: Action | None = None, count: int = 0
    ) -> None:
        def work(connection: Connection) -> Acted[None]:
            connection.execute(
                "SELECT 1 FROM contracts WHERE use_id = %s AND contract = %s FOR UPDATE", (self._use, contract)
            )
            connection.execute(
                "INSERT INTO ranges (use_id, contract, start_at, end_at, purpose)"
                " SELECT %(use)s, %(contract)s, %(start)s, %(end)s, %(purpose)s WHERE NOT EXISTS (SELECT 1 FROM ranges"
                " WHERE use_id = %(use)s AND contract = %(contract)s AND start_at <= %(start)s AND end_at >= %(end)s)",
                {"use": self._use, "contract": contract, "start": window.start, "end": window.end, "purpose": purpose},
            )
            connection.execute(
                "UPDATE contracts SET origin = %s WHERE use_id = %s AND contract = %s AND origin BETWEEN %s AND %s",
                (window.start, self._use, contract, window.start, window.end),
            )
            return Acted(None, count)

        write_by(self._database, self._use, by, work)
        self._quiet.forget([contract])

    def ranges(self, contract: str) -> list[Range]:
        return self._database.read(lambda connection: read_ranges(connection, self._use, contract))

    def unseen(self, contract: str, events: Sequence[Event]) -> list[Event]:
        return self._database.read(lambda connection: ledger.unseen(connection, self._use, contract, events))

    def record_audit(self, contract: str, now: int, compared: Compared | None = None) -> None:
        window, differing = compared or Compared(Window(0, 0))
        self._database.write(
            lambda connection: connection.execute(
                "UPDATE contracts SET audited_at = %s, compared_start = %s, compared_end = %s, differing = %s"
                " WHERE use_id = %s AND contract = %s",
                (now, *window, " ".join(map(str, differing)), self._use, contract),
            )
        )

    def counts(self, contract: str, start: int, end: int) -> dict[int, Count]:
        return self._database.read(lambda connection: ledger.counts(connection, self._use, contract, start, end))

    # Who collects

    def share(self, wanted: Sequence[str]) -> list[str]:
        replica = self._replica()
        self.flush()
        replica.share(wanted)
        held = replica.held()
        self._quiet.keep(held)
        self._quiet.forget(replica.unsettled)
        return [contract for contract in wanted if contract in held]

    def take_left_over(self, polled: Collection[str]) -> None:
        query = "SELECT contract FROM contracts WHERE use_id = %s AND outbox_events > 0 AND contract <> ALL(%s)"
        values = (self._use, list(polled))
        if rows := self._database.read(lambda connection: connection.execute(query, values).fetchall()):
            self._replica().take([contract for (contract,) in rows])

    def claim(self, contract: str) -> Claim | None:
        replica = self._replica()
        token = replica.token
        held = replica.held()
        self._quiet.of(token)
        if contract not in held:
            self._quiet.forget([contract])
            replica.take([contract])
            held = replica.held()
        with self._lock:
            if contract not in held or contract in self._claims or contract in replica.leaving:
                return None
            # The claim is entered before the row is read.
            claim = self._claims[contract] = Claim(
                self._database, self._use, replica, token, self._quiet, self._note_put, self._give_back
            )
        found = None
        try:
            found = self._read(contract, is_trusted=replica.is_trusted(token))
        finally:
            if found is None:  # even an interrupt must not keep the contract claimed
                with self._lock:
                    self._claims.pop(contract, None)
        if found is None:
            return None
        claim.begin(found)
        return claim

    def _read(self, contract: str, *, is_trusted: bool) -> Known | None:
        """The current contract: from memory while it is certainly held, otherwise from the database."""
        self._quiet.settle(contract)
        if is_trusted and (known := self._quiet.known(contract)) is not None:
            return known
        found = self._database.read(lambda connection: read_known(connection, self._use, contract))
        if found is not None:
            self._quiet.learn(found)
        return found

    def _give_back(self, claim: Claim) -> None:
        with self._lock:
            if self._claims.get(claim.row.contract) is claim:
                del self._claims[claim.row.contract]

    def prune(self, retention_seconds: int, overlap_seconds: int, now: int) -> None:
        """Remove identities older than the retention, but never those that a pending read may need; pack the others.

        Only for contracts that this replica holds. The age counts from the watermark or from `now`, whichever is earlier, because
        our clock alone may be wrong by years.  Commits: piece by piece.
        """
        held = self._replica().held()
        limits: list[tuple[str, int, int]] = []
        pending: dict[str, int] = {}
        for span in self._database.read(lambda connection: read_ranges(connection, self._use)):
            pending[span.contract] = min(pending.get(span.contract, span.window.start), span.window.start)
        for row in self.all():
            if row.contract in held:
                latest = row.watermark - overlap_seconds
                oldest = min(now, row.watermark) - retention_seconds
                before = min(oldest, latest, pending.get(row.contract, latest))
                limits.append((row.contract, before, latest))
        for start in range(0, len(limits), _PRUNED_AT_ONCE):
            piece = limits[start : start + _PRUNED_AT_ONCE]
            # Usually few contracts have identities to remove or rows to pack, so one query asks for all of them.
            found = self._database.read(partial(ledger.with_work, use=self._use, limits=piece))
            for limit in piece:
                if limit[0] in found:
                    self._prune_contract(*limit)

    def _prune_contract(self, contract: str, before: int, packed_before: int) -> None:
        while self._database.write(lambda connection: self._prune(connection, contract, before, packed_before)):
            pass

    def _prune(self, connection: Connection, contract: str, before: int, packed_before: int) -> bool:
        """Prune a piece of a contract; pack it after the last piece.  Returns: whether there is more."""
        connection.execute(
            "SELECT 1 FROM contracts WHERE use_id = %s AND contract = %s FOR UPDATE", (self._use, contract)
        )
        has_more = ledger.prune(connection, self._use, contract, before)
        if not has_more:
            ledger.pack(connection, self._use, contract, packed_before)
        return has_more
