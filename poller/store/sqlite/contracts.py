"""The collecting half of the state: contracts, their watermarks and books, and the spans that must still be read.

`Claim.commit` is the central method: it stores the events of a window, and that the window was read, in one transaction.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import repeat

from poller.core.errors import LeaseLostError
from poller.core.events import Event
from poller.core.hours import Compared
from poller.core.windows import Window
from poller.store.gaps import Gap
from poller.store.journal import Action
from poller.store.rows import Committed, Contract, Count, Prepare, Prepared, Range, WindowRead, late_and_repaired
from poller.store.sqlite import gaps, ledger, outbox
from poller.store.sqlite.database import Database
from poller.store.sqlite.journal import record
from poller.store.sqlite.schema import SEALED_CONTRACT, SEALED_RANGE
from poller.store.sqlite.soundness import whole_rows


class Contracts:
    """The tables `contracts`, `ranges`, `ledger` and `filtered`, and the fact `skipped`.

    Every method is one transaction or one read, except `prune`, which commits piece by piece.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._claims: dict[str, Claim] = {}
        self._claims_lock = threading.Lock()

    def all(self) -> list[Contract]:
        with self._database.reading() as connection:
            return read_contracts(connection)

    def get(self, contract: str) -> Contract | None:
        with self._database.reading() as connection:
            return next(iter(read_contracts(connection, contract)), None)

    def enrol(self, contracts: Iterable[str], account: str, start: int, now: int) -> None:
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO contracts (contract, account, origin, watermark, audited_at) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (contract) DO UPDATE SET account = excluded.account WHERE account <> excluded.account",
                [(contract, account, start, start, now) for contract in contracts],
            )

    def skip_to(self, contract: str, start: int, count: int) -> None:
        with self._database.transaction() as connection:
            query = "UPDATE contracts SET watermark = ? WHERE contract = ? AND watermark < ?"
            if connection.execute(query, (start, contract, start)).rowcount:
                connection.execute(
                    "INSERT INTO facts VALUES ('skipped', ?) ON CONFLICT (name)"
                    " DO UPDATE SET value = CAST(value AS INTEGER) + excluded.value",
                    (str(count),),
                )

    def take_back(self, row: Contract, watermark: int, now: int) -> bool:
        with self._database.transaction() as connection:
            query = "UPDATE contracts SET watermark = ?, origin = min(origin, ?) WHERE contract = ? AND watermark >= ?"
            if not connection.execute(query, (watermark, watermark, row.contract, row.watermark)).rowcount:
                return False
            set_fact(connection, "taken_back", f"{now} {watermark}")
            return True

    def add_range(
        self, contract: str, window: Window, purpose: str, *, by: Action | None = None, count: int = 0
    ) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO ranges (contract, start, end, purpose) SELECT ?, ?, ?, ? WHERE NOT EXISTS"
                " (SELECT 1 FROM ranges WHERE contract = ?1 AND start <= ?2 AND end >= ?3)",
                (contract, window.start, window.end, purpose),
            )
            connection.execute(
                "UPDATE contracts SET origin = ? WHERE contract = ? AND origin BETWEEN ? AND ?",
                (window.start, contract, window.start, window.end),
            )
            record(connection, by, count)

    def ranges(self, contract: str) -> list[Range]:
        with self._database.reading() as connection:
            return read_ranges(connection, contract)

    def unseen(self, contract: str, events: Sequence[Event]) -> list[Event]:
        with self._database.reading() as connection:
            return ledger.unseen(connection, contract, events)

    def take_left_over(self, polled: Collection[str]) -> None:
        """Does nothing: there are no other replicas, so all events are delivered here."""

    def share(self, wanted: Sequence[str]) -> list[str]:
        """Always all of them, because no other process works on the state."""
        return list(wanted)

    def claim(self, contract: str) -> Claim | None:
        with self._claims_lock:
            row = None if contract in self._claims else self.get(contract)
            if row is None:
                return None
            claim = self._claims[contract] = Claim(self._database, row, self._give_back)
            return claim

    def _give_back(self, claim: Claim) -> None:
        with self._claims_lock:
            if self._claims.get(claim.row.contract) is claim:
                del self._claims[claim.row.contract]

    def record_audit(self, contract: str, now: int, compared: Compared | None = None) -> None:
        window, differing = compared or Compared(Window(0, 0))
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE contracts SET audited_at = ?, compared_start = ?, compared_end = ?, differing = ?"
                " WHERE contract = ?",
                (now, *window, " ".join(map(str, differing)), contract),
            )

    def counts(self, contract: str, start: int, end: int) -> dict[int, Count]:
        with self._database.reading() as connection:
            return ledger.counts(connection, contract, start, end)

    def prune(self, retention_seconds: int, overlap_seconds: int, now: int) -> None:
        """Remove identities older than the retention, but never those that a pending read may need.

        The age counts from the watermark or from `now`, whichever is earlier, because our clock alone may be wrong by years.
        """
        for row in self.all():
            oldest = min(now, row.watermark) - retention_seconds
            self._prune(row.contract, min(oldest, row.watermark - overlap_seconds))

    def _prune(self, contract: str, before: int) -> None:
        with self._database.reading() as connection:
            if not ledger.outdated(connection, contract, before, limit=1):
                return
            before = min([before, *(span.window.start for span in read_ranges(connection, contract))])
        for _ in self._database.in_pieces(repeat(None)):
            with self._database.transaction() as connection:
                if not ledger.prune(connection, contract, before):
                    return


class Claim:
    """The right of one thread to collect one contract. No other process can have it, because this one holds the state's lock."""

    def __init__(self, database: Database, row: Contract, give_back: Callable[[Claim], None]) -> None:
        self.row = row
        self._database = database
        self._give_back = give_back
        self._is_held = True
        self._has_gaps = True  # until a read finds none. From then on, only a commit of this claim can open one.

    def ranges(self) -> Sequence[Range]:
        with self._database.reading() as connection:
            return read_ranges(connection, self.row.contract)

    def gaps(self) -> Sequence[Gap]:
        if not self._has_gaps:
            return ()
        with self._database.reading() as connection:
            found = gaps.read_gaps(connection, self.row.contract)
        self._has_gaps = bool(found)
        return found

    def commit(self, read: WindowRead, prepare: Prepare) -> Committed:
        self._has_gaps = self._has_gaps or bool(read.unread)  # set before the commit: an interrupt may follow it
        with self._database.transaction() as connection:
            self._ensure_held()
            return _commit(connection, self.row.contract, read, prepare, has_gaps=self._has_gaps)

    def end_range(self, id_: int) -> None:
        with self._database.transaction() as connection:
            self._ensure_held()
            connection.execute("DELETE FROM ranges WHERE id = ?", (id_,))

    def record_poll(self, now: int, failure: str) -> None:
        column = "failed_at" if failure else "succeeded_at"
        with self._database.transaction() as connection:
            self._ensure_held()
            connection.execute(
                f"UPDATE contracts SET {column} = ?, failure = ? WHERE contract = ?",  # one of two constants
                (now, failure, self.row.contract),
            )

    def release(self) -> None:
        """A running commit still completes. Later ones are refused."""
        self._is_held = False
        self._give_back(self)

    def _ensure_held(self) -> None:
        if not self._is_held:
            raise LeaseLostError("its claim was given back", contract=self.row.contract)


def _commit(
    connection: sqlite3.Connection, contract: str, read: WindowRead, prepare: Prepare, *, has_gaps: bool
) -> Committed:
    """Store the events of a window, inside the caller's transaction. This also decides which of them are new."""
    unseen = ledger.unseen(connection, contract, read.events) if read.events else []
    fresh = [event for event in unseen if event.identity not in read.elsewhere] if read.elsewhere else unseen
    prepared = prepare(fresh) if fresh else Prepared(fresh)
    late = repaired = 0
    if unseen:
        (watermark,) = connection.execute("SELECT watermark FROM contracts WHERE contract = ?", (contract,)).fetchone()
        late, repaired = late_and_repaired(unseen, watermark, read_ranges(connection, contract), read)
    ledger.add(connection, contract, unseen, read.now)
    outbox.put(connection, contract, prepared.kept, read.now)
    new = len(prepared.kept)
    connection.execute(
        "UPDATE contracts SET watermark = max(watermark, ?), fetched = fetched + ?, new = new + ?, seen = seen + ?,"
        " filtered = filtered + ?, late = late + ?, repaired = repaired + ?, sharing = sharing + ? WHERE contract = ?",
        (
            read.watermark, read.fetched, new, read.fetched - len(fresh), len(fresh) - new, late, repaired,
            sum(bool(event.shared_id) for event in unseen), contract,
        ),
    )  # fmt: skip
    connection.executemany(
        "INSERT INTO filtered (reason, count) VALUES (?, ?)"
        " ON CONFLICT (reason) DO UPDATE SET count = count + excluded.count",
        list(prepared.filtered.items()),
    )
    if read.of_range is not None:
        connection.execute("UPDATE ranges SET start = ? WHERE id = ?", (read.window.end, read.of_range))
        connection.execute("DELETE FROM ranges WHERE id = ? AND start >= end", (read.of_range,))
    opened, closed = gaps.settle(connection, contract, read, has_gaps=has_gaps)
    return Committed(unseen, len(fresh), new, late, repaired, opened, closed)


def read_fact(connection: sqlite3.Connection, name: str) -> str | None:
    """The value of a fact by its name; None if it was never set."""
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def set_fact(connection: sqlite3.Connection, name: str, value: str) -> None:
    """Set a fact by its name, inside the caller's transaction."""
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def read_ranges(connection: sqlite3.Connection, contract: str | None = None) -> list[Range]:
    """The spans that must still be read, of one contract or of all, oldest first.  Raises: DamagedRowError."""
    rows = connection.execute(
        f"SELECT id, contract, start, end, purpose, seal = crc32({SEALED_RANGE}) FROM ranges"
        " WHERE ?1 IS NULL OR contract = ?1 ORDER BY start, id",
        (contract,),
    )
    whole = whole_rows(rows, "a span still to be read")
    return [Range(id_, name, Window(start, end), purpose) for id_, name, start, end, purpose in whole]


def read_contracts(connection: sqlite3.Connection, only: str | None = None) -> list[Contract]:
    """All contracts, by number, or only the contract `only`.  Raises: DamagedRowError."""
    columns = ", ".join(Contract._fields[:-1])  # no `holder` in a file: one process holds all contracts
    where = "" if only is None else "WHERE contract = :only"
    rows = connection.execute(
        f"SELECT {columns}, seal = crc32({SEALED_CONTRACT}) FROM contracts {where} ORDER BY contract", {"only": only}
    )
    return [Contract(*values) for values in whole_rows(rows, "a contract's row")]
