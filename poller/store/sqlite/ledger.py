"""The ledger: which entries of a contract have been collected, so that reading a second again repeats nothing.

Identities are in blobs of up to `_CHUNK_IDENTITIES`, by contract and hour of the event's own time, each with its span of times.
So a window reads only the blobs that overlap it, and an hour is counted without reading its blobs. An entry without a time is
compared with all entries without a time. After pruning, only the number of entries by hour remains, in one row for each contract
and day. All functions work inside the transaction of their caller.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

from poller.core.events import Event
from poller.core.identity import IDENTITY_BYTES
from poller.store import identities as rules
from poller.store.rows import HOUR_SECONDS, Count
from poller.store.sqlite.soundness import DamagedRowError

_CHUNK_IDENTITIES = 4096
# Maximum number of rows, and of bytes of identities, that are pruned at once.
PIECE_ROWS = 1000
PIECE_BYTES = 4 * 1024 * 1024


def unseen(connection: sqlite3.Connection, contract: str, events: Sequence[Event], *, after_id: int = 0) -> list[Event]:
    """The events that are not in the ledger, in the same order. Each event must be in `events` only once.

    Rows up to `after_id` are ignored, so that only entries that were collected later count as seen.
    """
    known: set[bytes] = set()
    for first, last in rules.spans(sorted(event.time_us for event in events if event.is_timed)):
        rows = connection.execute(
            "SELECT identities FROM ledger"
            " WHERE contract = ? AND hour BETWEEN ? AND ? AND is_timed AND last_us >= ? AND first_us <= ? AND id > ?",
            (contract, first // rules.HOUR_US, last // rules.HOUR_US, first, last, after_id),
        )
        known.update(rules.unpacked(blob for (blob,) in rows))
    if not all(event.is_timed for event in events):
        rows = connection.execute(
            "SELECT identities FROM ledger WHERE contract = ? AND is_timed = 0 AND id > ?", (contract, after_id)
        )
        known.update(rules.unpacked(blob for (blob,) in rows))
    return rules.without_known(events, known, lambda: _has_sharing(connection, contract))


def _has_sharing(connection: sqlite3.Connection, contract: str) -> bool:
    """Whether different entries of a contract were ever collected under one id."""
    row = connection.execute("SELECT sharing FROM contracts WHERE contract = ?", (contract,)).fetchone()
    return row is not None and row[0] > 0


def add(connection: sqlite3.Connection, contract: str, events: Sequence[Event], now: int) -> None:
    """Enter events, all of them new. `now` in unix seconds."""
    if not events:
        return
    # Nothing is added to a row from before the newest sink was known: see `SinkRow.ledger_id`.
    sealed = connection.execute("SELECT coalesce(max(ledger_id), 0) FROM sinks").fetchone()[0]
    groups = rules.by_hour(events)
    hours = [hour for hour, _ in groups]
    # The newest row of each hour: with max(id), SQLite takes the other columns from the row with that id.
    begun = {
        (hour, is_timed == 1): (id_, length // IDENTITY_BYTES)
        for hour, is_timed, id_, length in connection.execute(
            "SELECT hour, is_timed, max(id), length(identities) FROM ledger"
            " WHERE contract = ? AND hour BETWEEN ? AND ? AND id > ? AND forgotten = 0 GROUP BY hour, is_timed",
            (contract, min(hours), max(hours), sealed),
        )
    }
    for bucket, members in groups.items():
        id_, count = begun.get(bucket, (0, _CHUNK_IDENTITIES))
        room = max(0, _CHUNK_IDENTITIES - count)
        if room:
            _extend(connection, id_, members[:room], now)
        for start in range(room, len(members), _CHUNK_IDENTITIES):
            _begin(connection, contract, bucket, members[start : start + _CHUNK_IDENTITIES], now, sealed)


def _extend(connection: sqlite3.Connection, id_: int, chunk: Sequence[Event], now: int) -> None:
    first, last, identities = rules.packed(chunk)
    connection.execute(
        "UPDATE ledger SET identities = CAST(identities || ? AS BLOB), first_us = min(first_us, ?),"
        " last_us = max(last_us, ?), updated_at = ? WHERE id = ?",
        (identities, first, last, now, id_),
    )


def _begin(
    connection: sqlite3.Connection,
    contract: str,
    bucket: tuple[int, bool],
    chunk: Sequence[Event],
    now: int,
    sealed: int,
) -> None:
    first, last, identities = rules.packed(chunk)
    # Numbers of pruned rows can be used again, but a new row must have a higher number than every sink's `ledger_id`.
    connection.execute(
        "INSERT INTO ledger (id, contract, hour, is_timed, first_us, last_us, updated_at, identities)"
        " VALUES (1 + max(?, (SELECT coalesce(max(id), 0) FROM ledger)), ?, ?, ?, ?, ?, ?, ?)",
        (sealed, contract, *bucket, first, last, now, identities),
    )


def counts(connection: sqlite3.Connection, contract: str, start: int, end: int) -> dict[int, Count]:
    """The number of collected entries by hour, for hours that begin in `[start, end)` (unix seconds), without empty hours."""
    first, last = start // HOUR_SECONDS, (end - 1) // HOUR_SECONDS
    known: Counter[int] = Counter()
    forgotten = Counter(_read_forgotten(connection, contract, first, last))
    rows = connection.execute(
        f"SELECT hour, sum(length(identities)) / {IDENTITY_BYTES}, sum(forgotten) FROM ledger"
        " WHERE contract = ? AND hour BETWEEN ? AND ? GROUP BY hour",
        (contract, first, last),
    )
    for hour, remembered, number in rows:
        known[hour] += remembered
        forgotten[hour] += number
    return rules.counted(known, forgotten)


def prune(connection: sqlite3.Connection, contract: str, before: int) -> bool:
    """Remove identities of hours that ended, and were last added to, before `before` (unix seconds); their number stays.

    Hours with a gap keep theirs: when the gap is read, entries that are already collected must not repeat. One call removes as
    much as one transaction should.  Returns: whether there is more.
    """
    rows = outdated(connection, contract, before, PIECE_ROWS)
    counts: Counter[int] = Counter()
    size = 0
    pruned = []
    for id_, hour, length, forgotten in rows:
        if size >= PIECE_BYTES:
            break
        counts[hour] += length // IDENTITY_BYTES + forgotten
        size += length
        pruned.append((id_,))
    for day in rules.packed_days(counts, lambda first, last: _read_forgotten(connection, contract, first, last)):
        connection.execute("INSERT OR REPLACE INTO forgotten VALUES (?, ?, ?)", (contract, *day))
    connection.executemany("DELETE FROM ledger WHERE id = ?", pruned)
    return len(pruned) < len(rows) or len(rows) == PIECE_ROWS


def outdated(connection: sqlite3.Connection, contract: str, before: int, limit: int) -> list[tuple[int, int, int, int]]:
    """The rows that `prune` removes: id, hour, bytes of identities, and how many entries were already forgotten in it."""
    return connection.execute(
        "SELECT id, hour, length(identities), forgotten FROM ledger WHERE contract = ? AND hour < ? AND updated_at < ?"
        f" AND NOT EXISTS (SELECT 1 FROM gaps WHERE gaps.contract = ledger.contract"
        f" AND hour BETWEEN start / {HOUR_SECONDS} AND (end - 1) / {HOUR_SECONDS}) LIMIT ?",
        (contract, before // HOUR_SECONDS, before, limit),
    ).fetchall()


def _read_forgotten(connection: sqlite3.Connection, contract: str, first: int, last: int) -> dict[int, int]:
    """The number of forgotten entries of the hours from `first` to `last` (inclusive), without empty hours."""
    rows = connection.execute(
        "SELECT day, counts FROM forgotten WHERE contract = ? AND day BETWEEN ? AND ?",
        (contract, first // rules.DAY_HOURS, last // rules.DAY_HOURS),
    )
    try:
        return rules.unpack_days(rows, first, last)
    except ValueError as error:
        raise DamagedRowError(str(error)) from error
