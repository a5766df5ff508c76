"""Moves places of sinks, and deletes finished segments: steps of a transaction that already holds the locks.

A place moves only if it is where the events were read, and if the segments have the stamps that were read. After a failover that
lost commits, the same numbers come again with other content and other stamps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from msgspec.structs import astuple

from poller.store.letters import LETTER_COLUMNS
from poller.store.postgres.database import Connection
from poller.store.rows import DeadLetter


class Move(NamedTuple):
    """The move of a contract's place by a settling. `stamps` are those of the segments that it passes, by number."""

    start: tuple[int, int]
    end: tuple[int, int]
    stamps: dict[int, UUID]
    events: int


def lock_places(
    connection: Connection, use: int, sink: str, new: Iterable[str], contracts: Sequence[str]
) -> dict[str, tuple[tuple[int, int], UUID | None]]:
    """Lock and return the places of a sink in these contracts, each with its last settling. Create missing ones in `new`."""
    ensure_places(connection, use, sink, new)
    rows = connection.execute(
        "SELECT contract, segment, position, settled_by FROM places"
        " WHERE use_id = %s AND sink = %s AND contract = ANY(%s) ORDER BY contract FOR UPDATE",
        (use, sink, list(contracts)),
    )
    return {contract: ((segment, position), settled_by) for contract, segment, position, settled_by in rows}


def waiting_there(
    connection: Connection,
    use: int,
    moves: Mapping[str, Move],
    places: Mapping[str, tuple[tuple[int, int], UUID | None]],
) -> list[str]:
    """The contracts, in order, whose place is at the start of the move, and whose segments are those that were read."""
    keys = [(contract, number) for contract, move in moves.items() for number in move.stamps]
    rows = connection.execute(
        "SELECT contract, number, stamp FROM segments"
        " WHERE use_id = %s AND (contract, number) IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))",
        (use, [contract for contract, _ in keys], [number for _, number in keys]),
    )
    stamps = {(contract, number): stamp for contract, number, stamp in rows}
    return [
        contract
        for contract, move in sorted(moves.items())
        if contract in places
        and places[contract][0] == move.start
        and all(stamps.get((contract, number)) == stamp for number, stamp in move.stamps.items())
    ]


def move_on(
    connection: Connection,
    use: int,
    sink: str,
    moves: Mapping[str, Move],
    letters: Sequence[DeadLetter],
    settling: UUID,
    now: float,
) -> None:
    """Move a sink in contracts whose rows and places the caller has locked. Events in `letters` are dead, others delivered."""
    dead_by = Counter(letter.event.contract for letter in letters)
    connection.executemany(
        "UPDATE places SET segment = %s, position = %s, delivered = delivered + %s, dead = dead + %s,"
        " settled_by = %s, succeeded_at = CASE WHEN %s > 0 THEN %s ELSE succeeded_at END"
        " WHERE use_id = %s AND sink = %s AND contract = %s",
        [
            (
                *move.end, move.events - dead_by[contract], dead_by[contract], settling, move.events - dead_by[contract],
                now, use, sink, contract,
            )
            for contract, move in sorted(moves.items())
        ],
    )  # fmt: skip
    if letters:
        connection.executemany(
            f"INSERT INTO dead_letters (use_id, {', '.join(LETTER_COLUMNS)}) VALUES (%s{', %s' * len(LETTER_COLUMNS)})",
            [(use, sink, *astuple(event), status, reason, now) for event, status, reason in letters],
        )
        size = sum(len(letter.event.line) for letter in letters)
        count_letters(connection, use, sink, written=len(letters), size=size)
    delete_done(connection, use, sorted(moves), after=[moves[contract].start[0] for contract in sorted(moves)])


def note_success(connection: Connection, use: int, sink: str, only_for: UUID | None = None) -> None:
    """Note that a sink which waited after a failure has accepted events.

    `only_for`: the token of a replica that did not note the failure. Then the sink still waits if other contracts, not held by
    this replica, have events that were already waiting at the failure.
    """
    connection.execute(
        "UPDATE sinks k SET attempts = 0, retry_at = NULL, postponed_at = NULL, parked_at = NULL, failure = ''"
        " WHERE use_id = %(use)s AND name = %(sink)s AND attempts > 0 AND (%(token)s::uuid IS NULL OR NOT EXISTS ("
        "  SELECT 1 FROM contracts c JOIN segments s ON s.use_id = c.use_id AND s.contract = c.contract"
        "  LEFT JOIN places p ON p.use_id = c.use_id AND p.sink = k.name AND p.contract = c.contract"
        "  WHERE c.use_id = k.use_id AND c.holder IS DISTINCT FROM %(token)s AND s.number > coalesce(p.segment, 0)"
        "  AND (s.sink IS NULL OR s.sink = k.name) AND s.collected_at <= k.postponed_at))",
        {"use": use, "sink": sink, "token": only_for},
    )


def ensure_places(connection: Connection, use: int, sink: str, contracts: Iterable[str]) -> None:
    """Give a sink a place at the beginning of those contracts in which it has none: they became known later."""
    connection.execute(
        "INSERT INTO places (use_id, sink, contract) SELECT %s, %s, c FROM unnest(%s::text[]) AS c ORDER BY c"
        " ON CONFLICT DO NOTHING",
        (use, sink, sorted(contracts)),
    )


_UPTO = (
    "SELECT c.contract, min(coalesce(p.segment, 0)) AS upto FROM contracts c JOIN sinks k ON k.use_id = c.use_id"
    " LEFT JOIN places p ON p.use_id = c.use_id AND p.sink = k.name AND p.contract = c.contract WHERE c.use_id = %(use)s"
)
# A segment that no sink waits for: all its sinks have finished it, or its only sink was forgotten, or no sink exists.
_IS_DONE = (
    "(s.sink IS NULL AND s.number <= coalesce(d.upto, s.number)) OR (s.sink IS NOT NULL AND s.number <= coalesce("
    " (SELECT coalesce(p.segment, 0) FROM sinks k LEFT JOIN places p ON p.use_id = k.use_id AND p.sink = k.name"
    "  AND p.contract = s.contract WHERE k.use_id = s.use_id AND k.name = s.sink), s.number))"
)


def contracts_with_done(connection: Connection, use: int) -> list[str]:
    """The contracts with segments that no sink waits for."""
    rows = connection.execute(
        f"SELECT DISTINCT s.contract FROM segments s LEFT JOIN ({_UPTO} GROUP BY c.contract) d ON d.contract = s.contract"
        f" WHERE s.use_id = %(use)s AND ({_IS_DONE}) ORDER BY 1",
        {"use": use},
    )
    return [row[0] for row in rows]


def sweep_piece(connection: Connection, use: int, contracts: Sequence[str]) -> None:
    """Delete segments of these contracts that no sink waits for."""
    connection.execute(
        "SELECT 1 FROM contracts WHERE use_id = %s AND contract = ANY(%s) ORDER BY contract FOR UPDATE",
        (use, list(contracts)),
    )
    delete_done(connection, use, contracts)


def delete_done(
    connection: Connection, use: int, contracts: Sequence[str], *, after: Sequence[int] | None = None
) -> None:
    """Delete segments that no sink waits for, of contracts whose rows the caller has locked.

    `after`: the segment of each contract after which to search. Those before a moving place were deleted, or wait for another
    sink. Without it, and with an old snapshot open, the server reads all rows that were ever deleted there.
    """
    if not contracts:
        return
    gone: Counter[str] = Counter()
    freed: Counter[str] = Counter()
    for contract, events, size in connection.execute(
        f"DELETE FROM segments s USING (SELECT * FROM unnest(%(contracts)s::text[], %(after)s::bigint[])"
        f" AS t(contract, after) LEFT JOIN"
        f" ({_UPTO} AND c.contract = ANY(%(contracts)s) GROUP BY c.contract) u USING (contract)) d"
        f" WHERE s.use_id = %(use)s AND s.contract = d.contract AND s.number > d.after AND ({_IS_DONE})"
        " RETURNING s.contract, s.events, s.bytes",
        {"use": use, "contracts": list(contracts), "after": list(after or [0] * len(contracts))},
    ):
        gone[contract] += events
        freed[contract] += size
    connection.executemany(
        "UPDATE contracts SET outbox_events = outbox_events - %s, outbox_bytes = outbox_bytes - %s"
        " WHERE use_id = %s AND contract = %s",
        [(gone[contract], freed[contract], use, contract) for contract in sorted(gone)],
    )


def count_letters(
    connection: Connection, use: int, sink: str, *, written: int = 0, replayed: int = 0, purged: int = 0, size: int
) -> None:
    """Add numbers of dead letters to the books, inside the caller's transaction. `size` in bytes, negative for removed ones."""
    connection.execute(
        "INSERT INTO letter_books AS b VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (use_id, sink) DO UPDATE SET"
        " written = b.written + excluded.written, replayed = b.replayed + excluded.replayed,"
        " purged = b.purged + excluded.purged, bytes = b.bytes + excluded.bytes",
        (use, sink, written, replayed, purged, size),
    )
