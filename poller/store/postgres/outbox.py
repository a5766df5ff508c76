"""The delivering half of the state: the outbox. `places.py` has the places of sinks in it, and `moving.py` moves them.

A segment gets its number in its contract under the lock of the contract's row. So a later commit never has a smaller number, and
a sink that has read a segment has read all segments before it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple
from uuid import uuid4

from poller.core.events import Event
from poller.store import segments
from poller.store.journal import Action
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.journal import Acted, write_by
from poller.store.postgres.moving import contracts_with_done, sweep_piece
from poller.store.postgres.places import Place
from poller.store.postgres.registrations import Registrations
from poller.store.postgres.replicas import Replica
from poller.store.rows import Postponed, Sink, Size, unknown_sink

PIECE_CONTRACTS = 16  # maximum for one transaction that deletes finished segments
_SIZE_SECONDS = 5.0  # maximum age of a remembered size


class PutSize(NamedTuple):
    """The numbers of segments, events and bytes that were put into the outbox."""

    segments: int = 0
    events: int = 0
    bytes: int = 0


class Outbox:
    """The tables `segments`, `sinks` and `places` of one use; adds to `dead_letters`."""

    def __init__(
        self, database: Database, use: int, replica: Callable[[], Replica], registrations: Registrations
    ) -> None:
        self._database = database
        self._use = use
        self._replica = replica
        self._registrations = registrations
        self._places: dict[str, Place] = {}
        self._lock = threading.Lock()
        self._put_bytes = 0
        self._size = Size(0, 0), 0, -math.inf  # the last size read, `_put_bytes` at that time, and the time

    def register(self, name: str, type_: str) -> None:
        if self._registrations.register(name, type_):
            self.sweep()  # no sink waits for events that were collected while there was no sink

    def sweep(self) -> None:
        """Commits: piece by piece, the deletion of segments that no sink waits for."""
        done: list[str] = self._database.read(lambda connection: contracts_with_done(connection, self._use))
        for start in range(0, len(done), PIECE_CONTRACTS):
            piece = done[start : start + PIECE_CONTRACTS]
            self._registrations.write(partial(sweep_piece, use=self._use, contracts=piece))

    def forget(self, sink: str, *, by: Action | None = None) -> bool:
        def work(connection: Connection) -> Acted[bool]:
            if not read_sinks(connection, self._use, sink):
                return Acted(result=False, is_recorded=False)
            count, _ = read_waiting(connection, self._use).get(sink, (0, None))
            connection.execute("DELETE FROM sinks WHERE use_id = %s AND name = %s", (self._use, sink))
            connection.execute("DELETE FROM places WHERE use_id = %s AND sink = %s", (self._use, sink))
            connection.execute("DELETE FROM postponed WHERE use_id = %s AND sink = %s", (self._use, sink))
            return Acted(result=True, affected=count)

        self._registrations.drop(sink)
        was_known = write_by(self._database, self._use, by, work)
        self.sweep()
        return was_known

    def sinks(self) -> list[Sink]:
        return self._database.read(lambda connection: read_sinks(connection, self._use))

    def retry(self, sink: str, now: float, *, by: Action | None = None) -> bool:
        def work(connection: Connection) -> Acted[bool]:
            # `postponed_at` is by the clock of the replica that tries again, which may be behind the clock of `now`.
            query = (
                "UPDATE sinks SET retry_at = least(retry_at, postponed_at, %s)"
                " WHERE use_id = %s AND name = %s AND retry_at IS NOT NULL"
            )
            is_waiting = connection.execute(query, (now, self._use, sink)).rowcount == 1
            query = "UPDATE postponed SET retry_at = least(retry_at, postponed_at, %s) WHERE use_id = %s AND sink = %s"
            is_waiting |= connection.execute(query, (now, self._use, sink)).rowcount > 0
            return Acted(result=is_waiting, is_recorded=is_waiting)

        return write_by(self._database, self._use, by, work)

    def retry_at(self, sink: str) -> float | None:
        query = "SELECT retry_at FROM sinks WHERE use_id = %s AND name = %s"
        retry_at: float | None = self._database.read(lambda connection: connection.value(query, (self._use, sink)))
        return retry_at

    def size(self, *, below: int = 0) -> Size:
        put_bytes = self._put_bytes
        size, as_of, looked_at = self._size
        added = put_bytes - as_of
        if time.monotonic() - looked_at < _SIZE_SECONDS and size.used_bytes + added < below:
            return size._replace(bytes=size.bytes + added)
        size = self._database.read(lambda connection: read_size(connection, self._use))
        self._size = size, put_bytes, time.monotonic()
        return size

    def note_put(self, size_bytes: int) -> None:
        """Add bytes that this process has just put into the outbox."""
        with self._lock:
            self._put_bytes += size_bytes

    def take(self, sink: str, *, is_whole: bool = False) -> Place | None:
        """A whole place needs no contract of this replica: the sink's holder and the places as they were read protect it."""
        with self._lock:
            if sink in self._places:
                return None
            known = self._database.read(lambda connection: read_sinks(connection, self._use, sink))
            if not known:
                self._registrations.restore()
                known = self._database.read(lambda connection: read_sinks(connection, self._use, sink))
            if not known:
                raise unknown_sink(sink)
            place = self._places[sink] = Place(
                self._database,
                self._use,
                self._replica(),
                known[0],
                self._registrations,
                self._give_back,
                is_whole=is_whole,
            )
            return place

    def _give_back(self, place: Place) -> None:
        with self._lock:
            if self._places.get(place.row.name) is place:
                del self._places[place.row.name]


def put(
    connection: Connection,
    use: int,
    contract: str,
    last: int,
    events: Sequence[Event],
    now: int,
    *,
    only_for: str | None = None,
) -> PutSize:
    """Add events of a contract after its segment `last`, for all sinks or for one. The caller has locked the contract's row."""
    if not events:
        return PutSize()
    encoded = [segments.encode(part) for part in segments.cut(events)]
    connection.executemany(
        "INSERT INTO segments (use_id, contract, number, stamp, sink, collected_at, events, bytes, first_us, directory,"
        " lines, checksum) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (
                use, contract, number, uuid4(), only_for, now, *segment,
                segments.checksum(contract, now, segment.directory, segment.lines),
            )
            for number, segment in enumerate(encoded, last + 1)
        ],
    )  # fmt: skip
    return PutSize(len(encoded), len(events), sum(segment.size_bytes for segment in encoded))


def read_sinks(connection: Connection, use: int, name: str | None = None) -> list[Sink]:
    """All sinks, by name, or only the sink `name`. Events that were put since a sink became known are assigned to it."""
    rows = connection.execute(
        "SELECT k.name, k.type, coalesce(t.assigned, 0), coalesce(t.delivered, 0), coalesce(t.dead, 0), k.attempts,"
        " k.retry_at, k.postponed_at, k.parked_at, k.failure, t.succeeded_at, k.mark FROM sinks k LEFT JOIN LATERAL ("
        "  SELECT sum(c.put_events - coalesce(p.base, 0))::bigint AS assigned, sum(p.delivered)::bigint AS delivered,"
        "  sum(p.dead)::bigint AS dead, max(p.succeeded_at) AS succeeded_at FROM contracts c LEFT JOIN places p"
        "  ON p.use_id = c.use_id AND p.sink = k.name AND p.contract = c.contract WHERE c.use_id = k.use_id) t ON true"
        " WHERE k.use_id = %s AND (%s::text IS NULL OR k.name = %s) ORDER BY k.name",
        (use, name, name),
    )
    return [Sink(*row) for row in rows]


def read_postponed(connection: Connection, use: int) -> dict[str, list[Postponed]]:
    """By sink: the contracts that wait alone, in the order of their next attempts."""
    found: dict[str, list[Postponed]] = {}
    query = f"SELECT sink, {', '.join(Postponed._fields)} FROM postponed WHERE use_id = %s ORDER BY sink, retry_at, contract"
    for sink, *row in connection.execute(query, (use,)):
        found.setdefault(sink, []).append(Postponed(*row))
    return found


def read_waiting(connection: Connection, use: int) -> dict[str, tuple[int, int | None]]:
    """By sink: the number of waiting events, and when the first was collected (unix seconds). It reads all their segments."""
    rows = connection.execute(
        "SELECT w.name, w.events - coalesce((SELECT sum(p.position) FROM places p"
        "  WHERE p.use_id = %(use)s AND p.sink = w.name), 0)::bigint, w.first FROM ("
        " SELECT k.name, sum(s.events)::bigint AS events, min(s.collected_at) AS first FROM segments s"
        " JOIN sinks k ON k.use_id = s.use_id AND (s.sink IS NULL OR s.sink = k.name)"
        " LEFT JOIN places p ON p.use_id = s.use_id AND p.sink = k.name AND p.contract = s.contract"
        " WHERE s.use_id = %(use)s AND s.number > coalesce(p.segment, 0) GROUP BY k.name) w",
        {"use": use},
    )
    return {name: (events, first) for name, events, first in rows}


def read_size(connection: Connection, use: int) -> Size:
    """The size of the outbox: the sum of the counters of all contracts. Commits would wait for a common counter."""
    row = connection.execute(
        "SELECT coalesce(sum(outbox_events), 0)::bigint, coalesce(sum(outbox_bytes), 0)::bigint,"
        " (SELECT coalesce(sum(bytes), 0)::bigint FROM letter_books WHERE use_id = %s) FROM contracts WHERE use_id = %s",
        (use, use),
    ).fetchone()
    return Size(*row) if row else Size(0, 0)
