"""The ledger: which entries of a contract have been collected, so that reading a second again repeats nothing.

Identities lie in blobs of up to `_CHUNK_IDENTITIES`, by contract and hour of the event's own time, each with the span of times in
it: a window looks up only what can be in it, and an hour is counted without being read. Entries without a time are
looked up among all those without one, since nothing says where they would be. Works inside its caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from poller.events import IDENTITY_BYTES, Event

HOUR_SECONDS = 3600
_HOUR_US = HOUR_SECONDS * 1_000_000
_DAY_US = 24 * _HOUR_US
_CHUNK_IDENTITIES = 4096


def unseen(connection: sqlite3.Connection, contract: str, events: Sequence[Event], *, after_id: int = 0) -> list[Event]:
    """Those of the events that are not in the ledger, in the same order. Each event must be in `events` only once.

    `after_id` leaves out rows up to that one, so that only what was collected since counts as seen.
    """
    known: set[bytes] = set()
    for first, last in _spans(sorted(event.time_us for event in events if event.is_timed)):
        rows = connection.execute(
            "SELECT identities FROM ledger"
            " WHERE contract = ? AND hour BETWEEN ? AND ? AND is_timed AND last_us >= ? AND first_us <= ? AND id > ?",
            (contract, first // _HOUR_US, last // _HOUR_US, first, last, after_id),
        )
        known.update(_identities(rows))
    if not all(event.is_timed for event in events):
        rows = connection.execute(
            "SELECT identities FROM ledger WHERE contract = ? AND is_timed = 0 AND id > ?", (contract, after_id)
        )
        known.update(_identities(rows))
    return [event for event in events if event.identity not in known]


def _spans(times_us: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted times in as few spans as cover them without a gap of more than a day.

    A query for each hour would be hundreds for a quiet month; one for all would read years where one entry's time is off.
    """
    if not times_us:
        return
    first = last = times_us[0]
    for time_us in times_us:
        if time_us - last > _DAY_US:
            yield first, last
            first = time_us
        last = time_us
    yield first, last


def add(connection: sqlite3.Connection, contract: str, events: Sequence[Event], now: int) -> None:
    """Enter events, all of them new. `now` in unix seconds."""
    if not events:
        return
    # A row that was begun before the newest sink came is not added to: see `Sink.ledger_id`.
    sealed = connection.execute("SELECT coalesce(max(ledger_id), 0) FROM sinks").fetchone()[0]
    hours = [event.time_us // _HOUR_US for event in events]
    # The newest row of each hour: with max(), SQLite takes the other columns from the row that has it.
    begun = {
        (hour, is_timed == 1): (id_, length // IDENTITY_BYTES)
        for hour, is_timed, id_, length in connection.execute(
            "SELECT hour, is_timed, max(id), length(identities) FROM ledger"
            " WHERE contract = ? AND hour BETWEEN ? AND ? AND id > ? AND forgotten = 0 GROUP BY hour, is_timed",
            (contract, min(hours), max(hours), sealed),
        )
    }
    groups: dict[tuple[int, bool], list[Event]] = {}
    for hour, event in zip(hours, events, strict=True):
        groups.setdefault((hour, event.is_timed), []).append(event)
    for bucket, members in groups.items():
        id_, count = begun.get(bucket, (0, _CHUNK_IDENTITIES))
        room = max(0, _CHUNK_IDENTITIES - count)
        if room:
            _extend(connection, id_, members[:room], now)
        for start in range(room, len(members), _CHUNK_IDENTITIES):
            _begin(connection, contract, bucket, members[start : start + _CHUNK_IDENTITIES], now)


def _extend(connection: sqlite3.Connection, id_: int, chunk: Sequence[Event], now: int) -> None:
    first, last, identities = _packed(chunk)
    connection.execute(
        "UPDATE ledger SET identities = CAST(identities || ? AS BLOB), first_us = min(first_us, ?),"
        " last_us = max(last_us, ?), updated_at = ? WHERE id = ?",
        (identities, first, last, now, id_),
    )


def _begin(
    connection: sqlite3.Connection, contract: str, bucket: tuple[int, bool], chunk: Sequence[Event], now: int
) -> None:
    first, last, identities = _packed(chunk)
    connection.execute(
        "INSERT INTO ledger (contract, hour, is_timed, first_us, last_us, updated_at, identities)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (contract, *bucket, first, last, now, identities),
    )


def _packed(chunk: Sequence[Event]) -> tuple[int, int, bytes]:
    """The earliest and the latest time in a chunk, and its identities."""
    times = [event.time_us for event in chunk]
    return min(times), max(times), b"".join([event.identity for event in chunk])


class Count(NamedTuple):
    """How many entries of an hour were collected, and of how many of them the identity is no longer known."""

    collected: int
    forgotten: int


def counts(connection: sqlite3.Connection, contract: str, start: int, end: int) -> dict[int, Count]:
    """Entries collected by hour, of the hours that begin in `[start, end)` (unix seconds); empty hours are left out."""
    rows = connection.execute(
        f"SELECT hour, sum(length(identities)) / {IDENTITY_BYTES}, sum(forgotten) FROM ledger"
        " WHERE contract = ? AND hour >= ? AND hour * 3600 < ? GROUP BY hour",
        (contract, start // HOUR_SECONDS, end),
    )
    return {hour * HOUR_SECONDS: Count(known + forgotten, forgotten) for hour, known, forgotten in rows}


def prune(connection: sqlite3.Connection, contract: str, before: int) -> None:
    """Forget the identities of hours that ended, and were last added to, before `before` (unix seconds); their number stays."""
    connection.execute(
        f"UPDATE ledger SET forgotten = forgotten + length(identities) / {IDENTITY_BYTES}, identities = x''"
        " WHERE contract = ? AND hour < ? AND updated_at < ? AND length(identities) > 0",
        (contract, before // HOUR_SECONDS, before),
    )


def _identities(rows: Iterable[tuple[bytes]]) -> Iterable[bytes]:
    for (blob,) in rows:
        for start in range(0, len(blob), IDENTITY_BYTES):
            yield blob[start : start + IDENTITY_BYTES]
