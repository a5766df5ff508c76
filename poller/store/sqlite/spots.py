"""The places of sinks in the outbox, and how they move.

A place is the last segment that the sink has finished, and the number of finished events in the next one. A contract that a sink
does not take while it takes others waits alone: it has its own place, and the sink's place is that of all others. Once no segment
of the contract is between the two places, it belongs to the others again. A segment is deleted once all sinks have finished it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import astuple

from poller.store.letters import LETTER_COLUMNS
from poller.store.rows import SINK_COLUMNS, DeadLetter, Postponed, Sink
from poller.store.sqlite.schema import SEALED_POSTPONED, SEALED_SINK
from poller.store.sqlite.soundness import whole_rows

_NO_END = 2**63 - 1

# Segments of contracts that do not wait alone; and all segments that wait, behind the sink's place or that of their contract.
_IS_OTHERS = "NOT EXISTS (SELECT 1 FROM postponed p WHERE p.sink = :sink AND p.contract = segments.contract)"
WAITING = (
    "(sink IS NULL OR sink = :sink) AND id > coalesce("
    "(SELECT p.segment FROM postponed p WHERE p.sink = :sink AND p.contract = segments.contract), :segment)"
)
# Segments that every sink has finished, or the sink that they are for.
_IS_DONE = (
    "NOT EXISTS (SELECT 1 FROM sinks k WHERE (segments.sink IS NULL OR segments.sink = k.name) AND segments.id > coalesce("
    "(SELECT p.segment FROM postponed p WHERE p.sink = k.name AND p.contract = segments.contract), k.segment))"
)


class Spot(NamedTuple):
    """A place: the last finished segment, and the number of finished events in the next one. `contract` None: all others."""

    segment: int
    position: int
    contract: str | None = None


class SinkRow(NamedTuple):
    """A row of the table `sinks`.

    `segment` is the last finished segment, and `position` the number of finished events in the next one. Rows of the ledger after
    `ledger_id` were collected after the sink became known.
    """

    sink: Sink
    segment: int
    position: int
    ledger_id: int


def move_on(
    connection: sqlite3.Connection,
    sink: str,
    count: int,
    *,
    dead: Sequence[DeadLetter] = (),
    now: float,
    output_offset: int | None = None,
    contract: str | None = None,
) -> None:
    """Do what `Place.settle` says, inside the caller's transaction. With `contract`, for this contract, which waits alone."""
    spot = spot_of(connection, sink, contract)
    if spot is None:
        return
    delivered = count - len(dead)
    moved = _advance(connection, sink, spot, count)
    connection.execute(
        "UPDATE sinks SET delivered = delivered + ?, dead = dead + ?,"
        " attempts = 0, retry_at = NULL, postponed_at = NULL, parked_at = NULL, failure = '', mark = ?,"
        " succeeded_at = CASE WHEN ? > 0 THEN ? ELSE succeeded_at END WHERE name = ?",
        (delivered, len(dead), output_offset, delivered, now, sink),
    )
    if contract is None:
        place = (moved.segment, moved.position, sink)
        connection.execute("UPDATE sinks SET segment = ?, position = ? WHERE name = ?", place)
    else:
        connection.execute(
            "UPDATE postponed SET segment = ?, position = ?, attempts = 0, postponed_at = ?, retry_at = ?, failure = ''"
            " WHERE sink = ? AND contract = ?",
            (moved.segment, moved.position, now, now, sink, contract),
        )
    connection.executemany(
        f"INSERT INTO dead_letters ({', '.join(LETTER_COLUMNS)}) VALUES ({', '.join('?' * len(LETTER_COLUMNS))})",
        [(sink, *astuple(event), status, reason, now) for event, status, reason in dead],
    )
    if dead:
        count_letters(connection, sink, written=len(dead))
    which = "true" if contract is None else "contract = :contract"
    delete_done(connection, which, after=spot.segment, upto=moved.segment, contract=contract)
    if (others := moved if contract is None else spot_of(connection, sink, None)) is not None:
        _join_others(connection, sink, others)


def count_letters(
    connection: sqlite3.Connection, sink: str, *, written: int = 0, replayed: int = 0, purged: int = 0
) -> None:
    """Add numbers of written, replayed and purged dead letters to the books, inside the caller's transaction."""
    connection.execute(
        "INSERT INTO letter_books (sink, written, replayed, purged) VALUES (?, ?, ?, ?) ON CONFLICT (sink) DO UPDATE SET"
        " written = written + excluded.written, replayed = replayed + excluded.replayed, purged = purged + excluded.purged",
        (sink, written, replayed, purged),
    )


def waiting(connection: sqlite3.Connection, row: SinkRow) -> tuple[int, int | None]:
    """The number of events that wait for a sink, and when the first was collected (unix seconds). It reads all their segments."""
    events, first = connection.execute(
        f"SELECT coalesce(sum(events), 0), min(collected_at) FROM segments WHERE {WAITING}",
        {"segment": row.segment, "sink": row.sink.name},
    ).fetchone()
    (begun,) = connection.execute(
        "SELECT coalesce(sum(position), 0) FROM postponed WHERE sink = ?", (row.sink.name,)
    ).fetchone()
    return max(0, events - row.position - begun), first


def resize(connection: sqlite3.Connection, events: int, size_bytes: int) -> None:
    connection.execute("UPDATE outbox_size SET events = events + ?, bytes = bytes + ?", (events, size_bytes))


def read_places(connection: sqlite3.Connection, sink: str) -> dict[str, tuple[int, int]]:
    """The places of the contracts that wait alone at a sink.

    Raises: DamagedRowError if a row is not as it was written.
    """
    rows = connection.execute(
        f"SELECT contract, segment, position, seal = crc32({SEALED_POSTPONED}) FROM postponed WHERE sink = ?", (sink,)
    )
    whole = whole_rows(rows, "the row of a contract that waits on its own")
    return {contract: (segment, position) for contract, segment, position in whole}


def spot_of(connection: sqlite3.Connection, sink: str, contract: str | None) -> Spot | None:
    """The place of a sink in a contract that waits alone, or, without `contract`, in all others. None if it does not exist."""
    if contract is None:
        return next((Spot(row.segment, row.position) for row in read_sinks(connection, sink)), None)
    place = read_places(connection, sink).get(contract)
    return None if place is None else Spot(*place, contract)


def behind(spot: Spot) -> str:
    """The SQL condition for the segments that wait at a place. Its parameters are the fields of the place, and `sink`."""
    return f"id > :segment AND (sink IS NULL OR sink = :sink) AND {'contract = :contract' if spot.contract else _IS_OTHERS}"


def next_segment(connection: sqlite3.Connection, sink: str, spot: Spot) -> tuple[int, str] | None:
    """The number and the contract of the next segment at a place; None if nothing waits."""
    row: tuple[int, str] | None = connection.execute(
        f"SELECT id, contract FROM segments WHERE {behind(spot)} ORDER BY id LIMIT 1", {**spot._asdict(), "sink": sink}
    ).fetchone()
    return row


def _join_others(connection: sqlite3.Connection, sink: str, others: Spot) -> None:
    """Contracts that waited alone belong to the others again if no segment of theirs is between the two places."""
    caught_up = connection.execute(
        "SELECT contract FROM postponed WHERE sink = ? AND attempts = 0 AND position = 0", (sink,)
    ).fetchall()
    if not caught_up:
        return
    head = next_segment(connection, sink, others)
    begun = head if others.position else None
    if not others.position:
        # All segments before `head` are of contracts that wait alone, so the place of the others moves up to it.
        before = "SELECT coalesce(max(id), 0) FROM segments WHERE id < ?"
        (last,) = connection.execute(before, (_NO_END if head is None else head[0],)).fetchone()
        others = others._replace(segment=max(others.segment, last))
        connection.execute("UPDATE sinks SET segment = ? WHERE name = ?", (others.segment, sink))
    for (contract,) in caught_up:
        spot = spot_of(connection, sink, contract)
        if spot is None:
            continue
        ends = [spot.segment, others.segment]
        if begun is not None:
            ends.append(begun[0])
        values = {**spot._asdict(), "sink": sink, "segment": min(ends), "last": max(ends)}
        query = f"SELECT EXISTS (SELECT 1 FROM segments WHERE {behind(spot)} AND id <= :last)"
        if not connection.execute(query, values).fetchone()[0]:
            connection.execute("DELETE FROM postponed WHERE sink = ? AND contract = ?", (sink, contract))


def _advance(connection: sqlite3.Connection, sink: str, spot: Spot, count: int) -> Spot:
    """The place after the next `count` events."""
    done, position = spot.segment, spot.position + count
    rows = connection.execute(
        f"SELECT id, events FROM segments WHERE {behind(spot)} ORDER BY id", {**spot._asdict(), "sink": sink}
    )
    for id_, events in rows:
        if position < events:
            break
        done, position = id_, position - events
        if position == 0:
            break
    return Spot(done, position, spot.contract)


def delete_done(
    connection: sqlite3.Connection,
    which: str,
    *,
    after: int,
    upto: int = _NO_END,
    contract: str | None = None,
    limit: int = -1,
) -> int | None:
    """Delete segments that no sink waits for: with numbers in `(after, upto]` and the SQL condition `which`, at most `limit`.

    Returns: the highest deleted number; None if nothing was deleted.
    """
    gone = connection.execute(
        "DELETE FROM segments WHERE id IN (SELECT id FROM segments WHERE id > :after AND id <= :upto"
        f" AND {which} AND {_IS_DONE} ORDER BY id LIMIT :limit) RETURNING id, events, bytes",
        {"after": after, "upto": upto, "contract": contract, "limit": limit},
    ).fetchall()
    if not gone:
        return None
    resize(connection, -sum(events for _, events, _ in gone), -sum(size for *_, size in gone))
    return max(int(id_) for id_, *_ in gone)


_SELECT_SINKS = (
    f"SELECT {', '.join(SINK_COLUMNS)}, segment, position, ledger_id, seal = crc32({SEALED_SINK}) FROM sinks"
)


def read_sinks(connection: sqlite3.Connection, name: str | None = None) -> list[SinkRow]:
    """All sinks, by name, or only the sink `name`.  Raises: DamagedRowError if a row is not as it was written."""
    query = f"{_SELECT_SINKS} WHERE :name IS NULL OR name = :name ORDER BY name"
    whole = whole_rows(connection.execute(query, {"name": name}), "a sink's row")
    return [SinkRow(Sink(*values), segment, position, ledger_id) for *values, segment, position, ledger_id in whole]


def read_postponed(connection: sqlite3.Connection, sink: str) -> list[Postponed]:
    """The contracts that wait alone at a sink, in the order of their next attempts."""
    query = f"SELECT {', '.join(Postponed._fields)} FROM postponed WHERE sink = ? ORDER BY retry_at, contract"
    return [Postponed(*row) for row in connection.execute(query, (sink,))]
