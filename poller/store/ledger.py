"""The ledger: which entries of a contract have been collected, so that reading a second again repeats nothing.

Identities lie in blobs of up to `_CHUNK_IDENTITIES`, by contract and hour of the event's own time, each with the span of times in
it: a window looks up only what can be in it, and an hour is counted without being read. Entries without a time are
looked up among all those without one, since nothing says where they would be. Works inside its caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby

from poller.events import IDENTITY_BYTES, Event

HOUR_SECONDS = 3600
_HOUR_US = HOUR_SECONDS * 1_000_000
_CHUNK_IDENTITIES = 4096


def _bucket(event: Event) -> tuple[int, bool]:
    return event.time_us // _HOUR_US, event.is_timed


def unseen(connection: sqlite3.Connection, contract: str, events: Sequence[Event]) -> list[Event]:
    """Those of the events that are not in the ledger, in the same order. Each event must be in `events` only once."""
    known: set[bytes] = set()
    for (hour, is_timed), group in groupby(events, _bucket):
        if is_timed:
            times = [event.time_us for event in group]
            rows = connection.execute(
                "SELECT identities FROM ledger WHERE contract = ? AND hour = ? AND is_timed AND last_us >= ? AND first_us <= ?",
                (contract, hour, min(times), max(times)),
            )
            known.update(_identities(rows))
    if not all(event.is_timed for event in events):
        rows = connection.execute("SELECT identities FROM ledger WHERE contract = ? AND is_timed = 0", (contract,))
        known.update(_identities(rows))
    return [event for event in events if event.identity not in known]


def add(connection: sqlite3.Connection, contract: str, events: Sequence[Event], now: int) -> None:
    """Enter events, all of them new. `now` in unix seconds."""
    for (hour, is_timed), group in groupby(events, _bucket):
        members = list(group)
        while members:
            last = connection.execute(
                "SELECT id, length(identities) FROM ledger WHERE contract = ? AND hour = ? AND is_timed = ? ORDER BY id DESC",
                (contract, hour, is_timed),
            ).fetchone()
            room = _CHUNK_IDENTITIES - last[1] // IDENTITY_BYTES if last else 0
            chunk, members = members[: room or _CHUNK_IDENTITIES], members[room or _CHUNK_IDENTITIES :]
            times = [event.time_us for event in chunk]
            identities = b"".join([event.identity for event in chunk])
            if room > 0:
                connection.execute(
                    "UPDATE ledger SET identities = CAST(identities || ? AS BLOB), first_us = min(first_us, ?),"
                    " last_us = max(last_us, ?), updated_at = ? WHERE id = ?",
                    (identities, min(times), max(times), now, last[0]),
                )
            else:
                connection.execute(
                    "INSERT INTO ledger (contract, hour, is_timed, first_us, last_us, updated_at, identities)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (contract, hour, is_timed, min(times), max(times), now, identities),
                )


def counts(connection: sqlite3.Connection, contract: str, start: int, end: int) -> dict[int, int]:
    """How many entries were collected in each hour of `[start, end)`, unix seconds of whole hours; empty hours are left out."""
    rows = connection.execute(
        f"SELECT hour, sum(length(identities)) / {IDENTITY_BYTES} FROM ledger"  # a constant of ours
        " WHERE contract = ? AND hour >= ? AND hour < ? GROUP BY hour",
        (contract, start // HOUR_SECONDS, end // HOUR_SECONDS),
    )
    return {hour * HOUR_SECONDS: count for hour, count in rows}


def prune(connection: sqlite3.Connection, contract: str, before: int) -> int:
    """Forget hours that ended, and were last added to, before `before` (unix seconds). Returns how many rows went."""
    return connection.execute(
        "DELETE FROM ledger WHERE contract = ? AND hour < ? AND updated_at < ?",
        (contract, before // HOUR_SECONDS, before),
    ).rowcount


def _identities(rows: Iterable[tuple[bytes]]) -> Iterable[bytes]:
    for (blob,) in rows:
        for start in range(0, len(blob), IDENTITY_BYTES):
            yield blob[start : start + IDENTITY_BYTES]
