"""The table `ledger`: which entries of a contract have been collected. Works inside the transaction of its caller.

A commit adds a row for each hour of its events and changes no row, because an append rewrites the whole row each time. Later, the
rows of past hours are packed into few. The number of a row is that of its contract's commit; of a packed row, that of the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from poller.core.errors import StateError
from poller.core.events import Event
from poller.core.identity import IDENTITY_BYTES
from poller.store import identities as rules
from poller.store.postgres.database import Connection
from poller.store.rows import HOUR_SECONDS, Count

# Maximum number of rows that are pruned at once.
PIECE_ROWS = 1000
_PACKED_BYTES = 64 * 1024
_WORTH_ROWS = 8  # an hour with fewer rows is not packed


def unseen(
    connection: Connection,
    use: int,
    contract: str,
    events: Sequence[Event],
    *,
    after: int = 0,
    is_sharing: bool | None = None,
) -> list[Event]:
    """The events that are not in the ledger, in the same order. Each event must be in `events` only once.

    Rows up to the number `after` are ignored. `is_sharing`: whether different entries of the contract were ever collected under
    one id; None if the caller does not have this value.
    """
    known: set[bytes] = set()
    for first, last in rules.spans(sorted(event.time_us for event in events if event.is_timed)):
        rows = connection.execute(
            "SELECT identities FROM ledger WHERE use_id = %s AND contract = %s AND hour BETWEEN %s AND %s AND is_timed"
            " AND last_us >= %s AND first_us <= %s AND number > %s",
            (use, contract, first // rules.HOUR_US, last // rules.HOUR_US, first, last, after),
            binary=True,
        )
        known.update(rules.unpacked(blob for (blob,) in rows))
    if not all(event.is_timed for event in events):
        rows = connection.execute(
            "SELECT identities FROM ledger WHERE use_id = %s AND contract = %s AND NOT is_timed AND number > %s",
            (use, contract, after),
            binary=True,
        )
        known.update(rules.unpacked(blob for (blob,) in rows))
    return rules.without_known(
        events, known, lambda: _has_sharing(connection, use, contract) if is_sharing is None else is_sharing
    )


def _has_sharing(connection: Connection, use: int, contract: str) -> bool:
    """Whether different entries of a contract were ever collected under one id."""
    query = "SELECT sharing > 0 FROM contracts WHERE use_id = %s AND contract = %s"
    return bool(connection.value(query, (use, contract)))


def add(connection: Connection, use: int, contract: str, events: Sequence[Event], now: int, number: int) -> None:
    """Enter events, all of them new, as the commit of this number. `now` in unix seconds."""
    connection.executemany(
        "INSERT INTO ledger (use_id, contract, hour, is_timed, number, first_us, last_us, updated_at, identities)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (use, contract, hour, is_timed, number, first, last, now, identities)
            for (hour, is_timed), members in rules.by_hour(events).items()
            for first, last, identities in [rules.packed(members)]
        ],
    )


def counts(connection: Connection, use: int, contract: str, start: int, end: int) -> dict[int, Count]:
    """The number of collected entries by hour, for hours that begin in `[start, end)` (unix seconds), without empty hours."""
    first, last = start // HOUR_SECONDS, (end - 1) // HOUR_SECONDS
    forgotten = _read_forgotten(connection, use, contract, first, last)
    rows = connection.execute(
        "SELECT hour, sum(length(identities))::bigint FROM ledger"
        " WHERE use_id = %s AND contract = %s AND hour BETWEEN %s AND %s GROUP BY hour",
        (use, contract, first, last),
    )
    known = {hour: size // IDENTITY_BYTES for hour, size in rows}
    return rules.counted(known, forgotten)


def with_work(connection: Connection, use: int, limits: Sequence[tuple[str, int, int]]) -> set[str]:
    """The contracts for which `prune` or `pack` may have work. `limits`: contract, `before` of `prune`, `before` of `pack`."""
    contracts, befores, packed_befores = map(list, zip(*limits, strict=True))
    rows = connection.execute(
        "SELECT q.contract FROM unnest(%s::text[], %s::bigint[], %s::bigint[]) AS q(contract, before, packed_before)"
        f" WHERE EXISTS (SELECT 1 FROM ledger l WHERE l.use_id = %s AND l.contract = q.contract"
        f"  AND l.hour < q.before / {HOUR_SECONDS} AND l.updated_at < q.before)"
        f" OR EXISTS (SELECT 1 FROM ledger l WHERE l.use_id = %s AND l.contract = q.contract"
        f"  AND l.hour < (q.packed_before - {HOUR_SECONDS}) / {HOUR_SECONDS}"
        "  GROUP BY l.hour, l.is_timed HAVING count(*) >= %s)",
        (contracts, befores, packed_befores, use, use, _WORTH_ROWS),
    )
    return {contract for (contract,) in rows}


def prune(connection: Connection, use: int, contract: str, before: int) -> bool:
    """Remove identities of hours that ended, and were last added to, before `before` (unix seconds); their number stays.

    Hours with a gap keep theirs: when the gap is read, entries that are already collected must not repeat.
    Returns: whether there is more.
    """
    rows = connection.execute(
        "DELETE FROM ledger WHERE (use_id, contract, hour, is_timed, number) IN ("
        " SELECT use_id, contract, hour, is_timed, number FROM ledger l"
        " WHERE use_id = %s AND contract = %s AND hour < %s AND updated_at < %s"
        " AND NOT EXISTS (SELECT 1 FROM gaps g WHERE g.use_id = l.use_id AND g.contract = l.contract"
        f" AND l.hour BETWEEN g.start_at / {HOUR_SECONDS} AND (g.end_at - 1) / {HOUR_SECONDS})"
        " LIMIT %s) RETURNING hour, length(identities)",
        (use, contract, before // HOUR_SECONDS, before, PIECE_ROWS),
    ).fetchall()
    gone: Counter[int] = Counter()
    for hour, size in rows:
        gone[hour] += size // IDENTITY_BYTES
    for day in rules.packed_days(gone, lambda first, last: _read_forgotten(connection, use, contract, first, last)):
        connection.execute(
            "INSERT INTO forgotten VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (use_id, contract, day) DO UPDATE SET counts = excluded.counts",
            (use, contract, *day),
        )
    return len(rows) == PIECE_ROWS


def pack(connection: Connection, use: int, contract: str, before: int) -> None:
    """Pack many rows into few, for hours that ended before `before` (unix seconds). Their content stays.

    Rows from before the newest sink became known are not packed: see `places.ledger_number`.
    """
    hours = connection.execute(
        "SELECT hour, is_timed FROM ledger WHERE use_id = %s AND contract = %s AND hour < %s AND number >"
        " (SELECT coalesce(max(ledger_number), 0) FROM places WHERE use_id = %s AND contract = %s)"
        " GROUP BY hour, is_timed HAVING count(*) >= %s AND avg(length(identities)) < %s LIMIT 100",
        (use, contract, (before - HOUR_SECONDS) // HOUR_SECONDS, use, contract, _WORTH_ROWS, _PACKED_BYTES // 2),
    ).fetchall()
    for hour, is_timed in hours:
        rows = connection.execute(
            "DELETE FROM ledger WHERE use_id = %s AND contract = %s AND hour = %s AND is_timed = %s AND number >"
            " (SELECT coalesce(max(ledger_number), 0) FROM places WHERE use_id = %s AND contract = %s)"
            " RETURNING number, first_us, last_us, updated_at, identities",
            (use, contract, hour, is_timed, use, contract),
            binary=True,
        ).fetchall()
        for group in _groups(sorted(rows)):
            numbers, firsts, lasts, updates, blobs = zip(*group, strict=True)
            connection.execute(
                "INSERT INTO ledger (use_id, contract, hour, is_timed, number, first_us, last_us, updated_at, identities)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (use, contract, hour, is_timed, max(numbers), min(firsts), max(lasts), max(updates), b"".join(blobs)),
            )


def _groups(rows: Sequence[tuple[int, int, int, int, bytes]]) -> Iterable[list[tuple[int, int, int, int, bytes]]]:
    group: list[tuple[int, int, int, int, bytes]] = []
    size = 0
    for row in rows:
        if group and size + len(row[4]) > _PACKED_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row[4])
    if group:
        yield group


def _read_forgotten(connection: Connection, use: int, contract: str, first: int, last: int) -> dict[int, int]:
    """The number of forgotten entries of the hours from `first` to `last` (inclusive), without empty hours."""
    rows = connection.execute(
        "SELECT day, counts FROM forgotten WHERE use_id = %s AND contract = %s AND day BETWEEN %s AND %s",
        (use, contract, first // rules.DAY_HOURS, last // rules.DAY_HOURS),
        binary=True,
    )
    try:
        return rules.unpack_days(rows, first, last)
    except ValueError as error:
        raise StateError(f"contract {contract}: {error}", hint="restore the database") from error
