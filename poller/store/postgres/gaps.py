"""The tables `gaps` and `gap_entries`. The changes that `poller.store.gaps` decides are made in the transaction of the window."""

from __future__ import annotations

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
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.journal import Acted, write_by
from poller.store.rows import WindowRead

_COLUMNS = (
    "id, contract, start_at, end_at, kind, reason, first_seen, tries, next_try_at, is_accepted, is_narrow"  # as in Gap
)


class Gaps:
    """Every method is one transaction or one read."""

    def __init__(self, database: Database, use: int) -> None:
        self._database = database
        self._use = use

    def find(self, contract: str | None = None) -> list[Gap]:
        return self._database.read(lambda connection: read_gaps(connection, self._use, contract))

    def entries(self, gap: int) -> list[Entry]:
        query = "SELECT content, size FROM gap_entries WHERE gap = %s ORDER BY id"
        return self._database.read(
            lambda connection: [Entry(*row) for row in connection.execute(query, (gap,), binary=True)]
        )

    def retry(self, gap: int, now: int, *, by: Action | None = None) -> None:
        self._change("next_try_at = %s, is_accepted = false", (now,), gap, by)

    def accept(self, gap: int, *, by: Action | None = None) -> None:
        self._change("is_accepted = true", (), gap, by)

    def record_try(self, gap: int, reason: str, next_try_at: int) -> None:
        self._change("tries = tries + 1, reason = %s, next_try_at = %s", (reason, next_try_at), gap, None)

    def _change(self, assignments: str, values: tuple[object, ...], gap: int, by: Action | None) -> None:
        def work(connection: Connection) -> Acted[None]:
            query = f"UPDATE gaps SET {assignments} WHERE use_id = %s AND id = %s"
            connection.execute(query, (*values, self._use, gap))
            return Acted(None, 1)

        write_by(self._database, self._use, by, work)


def read_gaps(connection: Connection, use: int, contract: str | None = None) -> list[Gap]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM gaps WHERE use_id = %s AND (%s::text IS NULL OR contract = %s)"
        " ORDER BY contract, start_at",
        (use, contract, contract),
    )
    return [Gap(*row) for row in rows]


def settle(
    connection: Connection, use: int, contract: str, read: WindowRead, *, has_gaps: bool
) -> tuple[Sequence[Gap], Sequence[Gap]]:
    """Enter the unread spans of a window, inside the caller's transaction.  Returns: the gaps that were opened and closed."""
    if not has_gaps and not read.unread:
        return (), ()
    known = read_gaps(connection, use, contract)
    plan = settled(known, contract, read.window, read.unread, read.now, read.next_try_at)
    numbers: dict[int, int] = {}
    for change in plan.changes:
        _apply(connection, use, change, numbers)
    if plan.read_from is not None:
        connection.execute(
            "UPDATE contracts SET compared_end = least(compared_end, %s) WHERE use_id = %s AND contract = %s",
            (plan.read_from, use, contract),
        )
    return [gap._replace(id=numbers[gap.id]) for gap in plan.opened], plan.closed


def _apply(connection: Connection, use: int, change: Change, numbers: dict[int, int]) -> None:
    """Make a change. `numbers` has the numbers of new gaps in the table, by their numbers in the plan."""
    query = connection.execute
    match change:
        case Insert(gap):
            columns = _COLUMNS.removeprefix("id, ")
            numbers[gap.id] = connection.value(
                f"INSERT INTO gaps (use_id, {columns}) VALUES (%s{', %s' * 10}) RETURNING id", (use, *gap[1:])
            )
        case Update(gap):
            query(
                "UPDATE gaps SET start_at = %s, end_at = %s, kind = %s, reason = %s, is_narrow = %s WHERE id = %s",
                (gap.start, gap.end, gap.kind, gap.reason, gap.is_narrow, numbers.get(gap.id, gap.id)),
            )
        case Delete(gap):
            query("DELETE FROM gap_entries WHERE gap = %s", (numbers.get(gap, gap),))
            query("DELETE FROM gaps WHERE id = %s", (numbers.get(gap, gap),))
        case ClearEntries(gap):
            query("DELETE FROM gap_entries WHERE gap = %s", (numbers.get(gap, gap),))
        case MoveEntries(gap, to):
            query("UPDATE gap_entries SET gap = %s WHERE gap = %s", (numbers.get(to, to), numbers.get(gap, gap)))
        case KeepEntries(gap, entries):
            _keep(connection, numbers.get(gap, gap), entries)


def _keep(connection: Connection, gap: int, entries: Sequence[bytes]) -> None:
    held = connection.value("SELECT count(*) FROM gap_entries WHERE gap = %s", (gap,))
    connection.executemany(
        "INSERT INTO gap_entries (gap, size, content) VALUES (%s, %s, %s)",
        [(gap, len(entry), entry[:KEPT_BYTES]) for entry in entries[: max(0, KEPT_ENTRIES - held)]],
    )
