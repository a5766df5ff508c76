"""The tables `gaps` and `gap_entries`. The changes that `poller.store.gaps` decides are made in the transaction of the window."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from poller.core.gaps import KEPT_ENTRIES
from poller.store.gaps import (
    KEPT_BYTES,
    Change,
    ClearEntries,
    Delete,
    Entry,
    Gap,
    Insert,
    KeepEntries,
    MoveEntries,
    Update,
    settled,
)
from poller.store.journal import Action
from poller.store.rows import WindowRead
from poller.store.sqlite.database import Database
from poller.store.sqlite.journal import record
from poller.store.sqlite.schema import SEALED_GAP
from poller.store.sqlite.soundness import whole_rows


class Gaps:
    """Every method is one transaction or one read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, contract: str | None = None) -> list[Gap]:
        with self._database.reading() as connection:
            return read_gaps(connection, contract)

    def entries(self, gap: int) -> list[Entry]:
        with self._database.reading() as connection:
            rows = connection.execute("SELECT content, size FROM gap_entries WHERE gap = ? ORDER BY id", (gap,))
            return [Entry(*row) for row in rows.fetchall()]

    def retry(self, gap: int, now: int, *, by: Action | None = None) -> None:
        self._change("next_try_at = ?, is_accepted = 0", (now,), gap, by)

    def accept(self, gap: int, *, by: Action | None = None) -> None:
        self._change("is_accepted = 1", (), gap, by)

    def record_try(self, gap: int, reason: str, next_try_at: int) -> None:
        self._change("tries = tries + 1, reason = ?, next_try_at = ?", (reason, next_try_at), gap, None)

    def _change(self, assignments: str, values: tuple[object, ...], gap: int, by: Action | None) -> None:
        with self._database.transaction() as connection:
            connection.execute(f"UPDATE gaps SET {assignments} WHERE id = ?", (*values, gap))
            record(connection, by, 1)


def read_gaps(connection: sqlite3.Connection, contract: str | None = None) -> list[Gap]:
    where = "" if contract is None else "WHERE contract = :contract"
    rows = connection.execute(
        f"SELECT {', '.join(Gap._fields)}, seal = crc32({SEALED_GAP}) FROM gaps {where} ORDER BY contract, start",
        {"contract": contract},
    )
    gaps = [Gap(*values) for values in whole_rows(rows, "a gap's row")]
    return [gap._replace(is_accepted=bool(gap.is_accepted), is_narrow=bool(gap.is_narrow)) for gap in gaps]


def settle(
    connection: sqlite3.Connection, contract: str, read: WindowRead, *, has_gaps: bool
) -> tuple[Sequence[Gap], Sequence[Gap]]:
    """Enter the unread spans of a window, inside the caller's transaction.  Returns: the gaps that were opened and closed.

    `has_gaps` is False if the contract is known to have none.
    """
    known = read_gaps(connection, contract) if has_gaps else []
    if not known and not read.unread:
        return (), ()
    plan = settled(known, contract, read.window, read.unread, read.now, read.next_try_at)
    numbers: dict[int, int] = {}
    for change in plan.changes:
        _apply(connection, change, numbers)
    if plan.read_from is not None:
        connection.execute(
            "UPDATE contracts SET compared_end = min(compared_end, ?) WHERE contract = ?", (plan.read_from, contract)
        )
    return [gap._replace(id=numbers[gap.id]) for gap in plan.opened], plan.closed


def _apply(connection: sqlite3.Connection, change: Change, numbers: dict[int, int]) -> None:
    """Make a change. `numbers` has the numbers of new gaps in the table, by their numbers in the plan."""
    query = connection.execute
    match change:
        case Insert(gap):
            columns = [name for name in Gap._fields if name != "id"]
            id_ = query(
                f"INSERT INTO gaps ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", gap[1:]
            ).lastrowid
            numbers[gap.id] = id_ or 0
        case Update(gap):
            query(
                "UPDATE gaps SET start = ?, end = ?, kind = ?, reason = ?, is_narrow = ? WHERE id = ?",
                (gap.start, gap.end, gap.kind, gap.reason, gap.is_narrow, numbers.get(gap.id, gap.id)),
            )
        case Delete(gap):
            query("DELETE FROM gap_entries WHERE gap = ?", (numbers.get(gap, gap),))
            query("DELETE FROM gaps WHERE id = ?", (numbers.get(gap, gap),))
        case ClearEntries(gap):
            query("DELETE FROM gap_entries WHERE gap = ?", (numbers.get(gap, gap),))
        case MoveEntries(gap, to):
            query("UPDATE gap_entries SET gap = ? WHERE gap = ?", (numbers.get(to, to), numbers.get(gap, gap)))
        case KeepEntries(gap, entries):
            _keep(connection, numbers.get(gap, gap), entries)


def _keep(connection: sqlite3.Connection, gap: int, entries: Sequence[bytes]) -> None:
    (held,) = connection.execute("SELECT count(*) FROM gap_entries WHERE gap = ?", (gap,)).fetchone()
    connection.executemany(
        "INSERT INTO gap_entries (gap, size, content) VALUES (?, ?, ?)",
        [(gap, len(entry), entry[:KEPT_BYTES]) for entry in entries[: max(0, KEPT_ENTRIES - held)]],
    )
