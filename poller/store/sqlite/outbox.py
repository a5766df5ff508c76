"""The delivering half of the state: the outbox. `places.py` has the places of sinks in it, `dead_letters.py` the dead letters.

Every sink reads the same segments at its own pace. Only `Place.settle` and `Archives.complete` move a sink.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from itertools import repeat

from poller.core.events import Event
from poller.store import segments
from poller.store.journal import Action
from poller.store.rows import Sink, Size, unknown_sink
from poller.store.sqlite.database import Database
from poller.store.sqlite.journal import record
from poller.store.sqlite.places import Place
from poller.store.sqlite.spots import delete_done, read_sinks, resize, waiting

PIECE_SEGMENTS = 16  # maximum for one transaction: up to 16 MiB


class Outbox:
    """The tables `segments`, `outbox_size` and `sinks`; adds to `dead_letters`. Every method is one transaction or one read, but
    `register` and `forget` also delete, piece by piece, segments that no sink waits for.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._places: dict[str, Place] = {}
        self._places_lock = threading.Lock()

    def register(self, name: str, type_: str) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO sinks (name, type, segment, position, ledger_id)"
                " VALUES (?, ?, (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'segments'), 0,"
                " (SELECT coalesce(max(id), 0) FROM ledger))"
                " ON CONFLICT (name) DO UPDATE SET type = excluded.type",
                (name, type_),
            )
        self._sweep()  # no sink waits for events that were collected while there was no sink

    def _sweep(self) -> None:
        """Commits: piece by piece, the deletion of segments that no sink waits for."""
        for which in ("sink IS NULL AND id <= coalesce((SELECT min(segment) FROM sinks), id)", "sink IS NOT NULL"):
            last = 0
            for _ in self._database.in_pieces(repeat(None)):
                with self._database.transaction() as connection:
                    found = delete_done(connection, which, after=last, limit=PIECE_SEGMENTS)
                if found is None:
                    break
                last = found

    def retry(self, sink: str, now: float, *, by: Action | None = None) -> bool:
        with self._database.transaction() as connection:
            asked = connection.execute(
                "UPDATE sinks SET retry_at = min(retry_at, ?) WHERE name = ? AND retry_at IS NOT NULL", (now, sink)
            ).rowcount
            asked += connection.execute(
                "UPDATE postponed SET retry_at = min(retry_at, ?) WHERE sink = ? AND attempts > 0", (now, sink)
            ).rowcount
            if asked:
                record(connection, by)
            return asked > 0

    def retry_at(self, sink: str) -> float | None:
        with self._database.reading() as connection:
            return next((row.sink.retry_at for row in read_sinks(connection, sink)), None)

    def forget(self, sink: str, *, by: Action | None = None) -> bool:
        """After an interrupt, the next `register` deletes the rest; every start calls it."""
        with self._database.transaction() as connection:
            for known in read_sinks(connection, sink):
                record(connection, by, waiting(connection, known)[0])
            connection.execute("DELETE FROM postponed WHERE sink = ?", (sink,))
            was_known = connection.execute("DELETE FROM sinks WHERE name = ?", (sink,)).rowcount == 1
        self._sweep()
        return was_known

    def sinks(self) -> list[Sink]:
        with self._database.reading() as connection:
            return [row.sink for row in read_sinks(connection)]

    def take(self, sink: str, *, is_whole: bool = False) -> Place | None:
        """The place is always for all contracts; `is_whole` changes nothing."""
        with self._places_lock:
            if sink in self._places:
                return None
            with self._database.reading() as connection:
                known = read_sinks(connection, sink)
            if not known:
                raise unknown_sink(sink)
            place = self._places[sink] = Place(self._database, known[0].sink, self._give_back)
            return place

    def _give_back(self, place: Place) -> None:
        with self._places_lock:
            if self._places.get(place.row.name) is place:
                del self._places[place.row.name]

    def recount(self) -> None:
        """Commits: the correct size. With a wrong one, the outbox could always seem full, and collecting would stay paused."""
        size = "(SELECT coalesce(sum(events), 0), coalesce(sum(bytes), 0) FROM segments)"
        letters = "(SELECT coalesce(sum(length(line)), 0) FROM dead_letters)"
        with self._database.transaction() as connection:
            connection.execute(f"UPDATE outbox_size SET (events, bytes) = {size} WHERE (events, bytes) <> {size}")
            connection.execute(f"UPDATE outbox_size SET letter_bytes = {letters} WHERE letter_bytes <> {letters}")

    def size(self, *, below: int = 0) -> Size:
        with self._database.reading() as connection:
            return read_size(connection)


def read_size(connection: sqlite3.Connection) -> Size:
    """The size of the outbox."""
    return Size(*connection.execute("SELECT events, bytes, letter_bytes FROM outbox_size").fetchone())


def put(
    connection: sqlite3.Connection, contract: str, events: Sequence[Event], now: int, *, only_for: str | None = None
) -> None:
    """Add events of a contract, oldest first, for all sinks or for one alone, inside the caller's transaction.

    Events for one sink alone were assigned to it before, so they are not counted as assigned again.
    """
    if not events:
        return
    encoded = [segments.encode(part) for part in segments.cut(events)]
    connection.executemany(
        "INSERT INTO segments (contract, sink, collected_at, events, bytes, first_us, directory, lines, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (contract, only_for, now, *segment, segments.checksum(contract, now, segment.directory, segment.lines))
            for segment in encoded
        ],
    )
    resize(connection, len(events), sum(segment.size_bytes for segment in encoded))
    if only_for is None:
        connection.execute("UPDATE sinks SET assigned = assigned + ?", (len(events),))
