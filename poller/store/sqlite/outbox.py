"""The delivering half of the state: the outbox and each sink's place in it. `dead_letters.py` has what becomes of dead letters.

Every sink reads the same segments at its own pace: its place is the last segment it is done with and how many events of the
next one. A segment is deleted when the last sink is done with it. `settle` is the only way a sink moves on.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import NamedTuple

from poller.core.errors import LeaseLostError, StateError
from poller.core.events import Event
from poller.store import segments
from poller.store.journal import Action
from poller.store.rows import Batch, DeadLetter, Sink, Size, Weight
from poller.store.segments import Segment, Stored
from poller.store.sqlite.database import DamagedRowError, Database
from poller.store.sqlite.journal import record
from poller.store.sqlite.schema import SEALED_SINK

PIECE_SEGMENTS = 16  # at once: up to 16 MiB


class SinkRow(NamedTuple):
    """A sink as it lies in its table.

    `segment` is the last segment it is done with, and `position` how many events of the next one. `ledger_id` tells what was
    collected since it is known: the ledger's rows after that one.
    """

    sink: Sink
    segment: int
    position: int
    ledger_id: int


class Outbox:
    """The tables `segments`, `outbox_size` and `sinks`; adds to `dead_letters`. A method is one transaction or read, but for
    `register` and `forget`, which delete in pieces what nobody waits for any more.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._places: dict[str, Place] = {}
        self._places_lock = threading.Lock()

    def register(self, name: str, type_: str) -> Sink:
        """Make a sink known; a new one starts behind everything collected so far. Commits: the sink."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO sinks (name, type, segment, position, ledger_id)"
                " VALUES (?, ?, (SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'segments'), 0,"
                " (SELECT coalesce(max(id), 0) FROM ledger))"
                " ON CONFLICT (name) DO UPDATE SET type = excluded.type",
                (name, type_),
            )
        self._sweep(name, 0)  # what was collected while there was no sink waits for nobody
        with self._database.reading() as connection:
            return read_sinks(connection, name)[0].sink

    def _sweep(self, sink: str, segment: int) -> None:
        """Commits: piece by piece, the deletion of segments that nobody waits for, also of those for `sink` up to `segment`."""
        for _ in self._database.in_pieces(repeat(None)):
            with self._database.transaction() as connection:
                if _delete_done(connection, sink, segment, PIECE_SEGMENTS) < PIECE_SEGMENTS:
                    return

    def retry(self, sink: str, now: float, *, by: Action | None = None) -> bool:
        """Commits: that a sink which waits after a failure is tried again now, and who asked. Returns whether it waits."""
        with self._database.transaction() as connection:
            asked = connection.execute(
                "UPDATE sinks SET retry_at = min(retry_at, ?) WHERE name = ? AND retry_at IS NOT NULL", (now, sink)
            )
            if asked.rowcount and by is not None:
                record(connection, by)
            return asked.rowcount == 1

    def retry_at(self, sink: str) -> float | None:
        """When a sink that waits is tried again, in unix seconds; None where it does not wait."""
        with self._database.reading() as connection:
            return next((row.sink.retry_at for row in read_sinks(connection, sink)), None)

    def forget(self, sink: str, *, by: Action | None = None) -> bool:
        """Let go of a sink: what waited for it alone is deleted. Commits: that, piece by piece; who did it, with the first.

        Returns whether it was known.

        Its dead letters stay. What an interrupt leaves is deleted with the next sink that is registered, or moves on.
        """
        with self._database.transaction() as connection:
            for known in read_sinks(connection, sink):
                if by is not None:
                    record(connection, by, waiting(connection, known)[0])
            was_known = connection.execute("DELETE FROM sinks WHERE name = ?", (sink,)).rowcount == 1
            last = connection.execute("SELECT coalesce(max(id), 0) FROM segments").fetchone()[0]
        self._sweep(sink, last)
        return was_known

    def sinks(self) -> list[Sink]:
        with self._database.reading() as connection:
            return [row.sink for row in read_sinks(connection)]

    def take(self, sink: str, *, is_whole: bool = False) -> Place | None:
        """The right to deliver to a registered sink, for one thread until `release`; None if another has it.

        It is always of all contracts.
        """
        with self._places_lock:
            if sink in self._places:
                return None
            with self._database.reading() as connection:
                known = read_sinks(connection, sink)
            if not known:
                raise _forgotten(sink)
            place = self._places[sink] = Place(self._database, known[0].sink, self._give_back)
            return place

    def _give_back(self, place: Place) -> None:
        with self._places_lock:
            if self._places.get(place.row.name) is place:
                del self._places[place.row.name]

    def recount(self) -> None:
        """Commits: the size as it is. A count gone wrong could take the outbox for full, and pause collecting for ever."""
        size = "(SELECT coalesce(sum(events), 0), coalesce(sum(bytes), 0) FROM segments)"
        letters = "(SELECT coalesce(sum(length(line)), 0) FROM dead_letters)"
        with self._database.transaction() as connection:
            connection.execute(f"UPDATE outbox_size SET (events, bytes) = {size} WHERE (events, bytes) <> {size}")
            connection.execute(f"UPDATE outbox_size SET letter_bytes = {letters} WHERE letter_bytes <> {letters}")

    def size(self, *, below: int = 0) -> Size:
        with self._database.reading() as connection:
            return Size(*connection.execute("SELECT events, bytes, letter_bytes FROM outbox_size").fetchone())


class Place:
    """A sink's place in the outbox, and the right to move it on: nothing outside this process can have it meanwhile."""

    def __init__(self, database: Database, row: Sink, give_back: Callable[[Place], None]) -> None:
        self.row = row
        self._database = database
        self._give_back = give_back
        self._is_held = True

    def ensure_held(self) -> None:
        """Raises: LeaseLostError after `release`."""
        if not self._is_held:
            raise LeaseLostError("its place was given back", sink=self.row.name)

    def hold(self) -> bool:
        """Always: there are no other replicas."""
        return True

    def release(self) -> None:
        """Give the right back, also while another thread is in a send."""
        self._is_held = False
        self._give_back(self)

    def batch(self, max_events: int, max_bytes: int) -> Batch | None:
        """What the sink has to send next: at most so many events and bytes, but always at least one; None when nothing waits.

        Raises: StateError when a segment is not what was written.
        """
        parts: list[Stored] = []
        sink = self.row.name
        with self._database.reading() as connection:
            known = read_sinks(connection, sink)
            if not known:
                return None
            done, skip = known[0].segment, known[0].position
            rows = connection.execute(
                "SELECT id, contract, collected_at, events, checksum, directory, lines FROM segments"
                " WHERE id > ? AND (sink IS NULL OR sink = ?) ORDER BY id",
                (done, sink),
            )
            for id_, contract, collected_at, events, checksum, directory, lines in rows:
                part = Stored(contract, collected_at, directory, lines)
                # `events` is what a sink's place is moved on by: a wrong one would leave entries out.
                if segments.checksum(*part) != checksum or part.event_count != events:
                    raise DamagedRowError(f"segment {id_} of the outbox fails its checksum")
                if skip:
                    part = part.slice(skip, part.event_count)
                    skip = 0
                if part.event_count > max_events or part.size_bytes > max_bytes:
                    fitting = part.fitting(max_events, max_bytes, at_least=0 if parts else 1)
                    if fitting < part.event_count:
                        parts += [part.slice(0, fitting)] if fitting else []
                        return Batch(segments.stored_events(parts), has_more=True)
                max_events -= part.event_count
                max_bytes -= part.size_bytes
                parts.append(part)
        return Batch(segments.stored_events(parts), has_more=False) if parts else None

    def weight(self) -> Weight:
        """What waits, without reading it."""
        with self._database.reading() as connection:
            known = read_sinks(connection, self.row.name)
            if not known:
                return Weight(0, 0, None)
            events, first = waiting(connection, known[0])
            (size,) = connection.execute(
                "SELECT coalesce(sum(bytes), 0) FROM segments WHERE id > ? AND (sink IS NULL OR sink = ?)",
                (known[0].segment, self.row.name),
            ).fetchone()
            return Weight(events, size, first if events else None)

    def settle(self, count: int, *, dead: Sequence[DeadLetter] = (), now: float, mark: int | None = None) -> None:
        """Move a sink past the next `count` events: those in `dead` were refused for good, all others accepted.

        `mark` is how many bytes of the sink's own output that makes, where it has one.

        Commits: the place, the books, the dead letters, and the deletion of segments that all sinks are done with.
        Nothing for a sink that was forgotten while its batch was on the way.
        """
        with self._database.transaction() as connection:
            self.ensure_held()
            move_on(connection, self.row.name, count, dead=dead, now=now, mark=mark)

    def postpone(self, attempts: int, now: float, retry_at: float, failure: str, *, parked_at: float | None) -> None:
        """Commits: that nothing went, why, and when to try again, so that a restart loses no backoff."""
        with self._database.transaction() as connection:
            self.ensure_held()
            connection.execute(
                "UPDATE sinks SET attempts = ?, postponed_at = ?, retry_at = ?, failure = ?, parked_at = ? WHERE name = ?",
                (attempts, now, retry_at, failure, parked_at, self.row.name),
            )

    def note_mark(self, mark: int | None) -> None:
        """Commits: where the sink's own output that is not settled begins, while nothing else changes."""
        with self._database.transaction() as connection:
            self.ensure_held()
            connection.execute("UPDATE sinks SET mark = ? WHERE name = ?", (mark, self.row.name))


def move_on(
    connection: sqlite3.Connection,
    sink: str,
    count: int,
    *,
    dead: Sequence[DeadLetter] = (),
    now: float,
    mark: int | None = None,
) -> None:
    """As `Place.settle`, inside the caller's transaction."""
    if not read_sinks(connection, sink):
        return
    delivered = count - len(dead)
    segment, position = _advance(connection, sink, count)
    connection.execute(
        "UPDATE sinks SET segment = ?, position = ?, delivered = delivered + ?, dead = dead + ?,"
        " attempts = 0, retry_at = NULL, postponed_at = NULL, parked_at = NULL, failure = '', mark = ?,"
        " succeeded_at = CASE WHEN ? > 0 THEN ? ELSE succeeded_at END WHERE name = ?",
        (segment, position, delivered, len(dead), mark, delivered, now, sink),
    )
    connection.executemany(
        "INSERT INTO dead_letters (sink, contract, time_us, collected_at, identity, ordinal, line, status, reason,"
        " died_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                sink,
                letter.event.contract,
                letter.event.time_us,
                letter.event.collected_at,
                letter.event.identity,
                letter.event.ordinal,
                letter.event.line,
                letter.status,
                letter.reason,
                now,
            )
            for letter in dead
        ],
    )
    if dead:
        count_letters(connection, sink, written=len(dead))
    _delete_done(connection, sink, segment)


def count_letters(
    connection: sqlite3.Connection, sink: str, *, written: int = 0, replayed: int = 0, purged: int = 0
) -> None:
    """Enter in the books what becomes of dead letters, inside the caller's transaction."""
    connection.execute(
        "INSERT INTO letter_books (sink, written, replayed, purged) VALUES (?, ?, ?, ?) ON CONFLICT (sink) DO UPDATE SET"
        " written = written + excluded.written, replayed = replayed + excluded.replayed, purged = purged + excluded.purged",
        (sink, written, replayed, purged),
    )


def encode(events: Sequence[Event]) -> list[Segment]:
    """Events, oldest first, as segments ready to be put."""
    return [segments.encode(part) for part in segments.cut(events)]


def put(
    connection: sqlite3.Connection, contract: str, encoded: Sequence[Segment], now: int, *, only_for: str | None = None
) -> None:
    """Add segments of a contract, for all sinks or for one alone, inside the caller's transaction.

    Those for one alone are not assigned to it anew: they were before.
    """
    if not encoded:
        return
    connection.executemany(
        "INSERT INTO segments (contract, sink, collected_at, events, bytes, first_us, directory, lines, checksum)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (contract, only_for, now, *segment, segments.checksum(contract, now, segment.directory, segment.lines))
            for segment in encoded
        ],
    )
    events = sum(segment.event_count for segment in encoded)
    _resize(connection, events, sum(segment.size_bytes for segment in encoded))
    if only_for is None:
        connection.execute("UPDATE sinks SET assigned = assigned + ?", (events,))


def waiting(connection: sqlite3.Connection, row: SinkRow) -> tuple[int, int | None]:
    """Events that wait for a sink, counted one segment after the other, and when the first was collected (unix seconds)."""
    events, first = connection.execute(
        "SELECT coalesce(sum(events), 0), min(collected_at) FROM segments WHERE id > ? AND (sink IS NULL OR sink = ?)",
        (row.segment, row.sink.name),
    ).fetchone()
    return max(0, events - row.position), first


def _resize(connection: sqlite3.Connection, events: int, size_bytes: int) -> None:
    connection.execute("UPDATE outbox_size SET events = events + ?, bytes = bytes + ?", (events, size_bytes))


def _advance(connection: sqlite3.Connection, sink: str, count: int) -> tuple[int, int]:
    """The place of a sink `count` events further on: the last segment it is done with, and its position in the next."""
    known = read_sinks(connection, sink)
    if not known:
        raise _forgotten(sink)
    done, position = known[0].segment, known[0].position
    position += count
    rows = connection.execute(
        "SELECT id, events FROM segments WHERE id > ? AND (sink IS NULL OR sink = ?) ORDER BY id",
        (done, sink),
    )
    for id_, events in rows:
        if position < events:
            return done, position
        done, position = id_, position - events
        if position == 0:
            break
    return done, position


def _delete_done(connection: sqlite3.Connection, sink: str, segment: int, limit: int = -1) -> int:
    """Delete what all sinks are done with, and what was meant for this sink alone; at most `limit`. Returns how many."""
    gone = connection.execute(
        "DELETE FROM segments WHERE id IN (SELECT id FROM segments"
        " WHERE id <= coalesce((SELECT min(segment) FROM sinks), ?) AND sink IS NULL LIMIT ?) RETURNING events, bytes",
        (segment, limit),  # no sink is left: nobody waits for anything
    ).fetchall()
    gone += connection.execute(
        "DELETE FROM segments WHERE id IN (SELECT id FROM segments WHERE sink = ? AND id <= ? LIMIT ?)"
        " RETURNING events, bytes",
        (sink, segment, limit if limit < 0 else limit - len(gone)),
    ).fetchall()
    if gone:
        _resize(connection, -sum(events for events, _ in gone), -sum(size for _, size in gone))
    return len(gone)


_SELECT_SINKS = (
    f"SELECT {', '.join(Sink._fields)}, segment, position, ledger_id, seal = crc32({SEALED_SINK}) FROM sinks"
)


def read_sinks(connection: sqlite3.Connection, name: str | None = None) -> list[SinkRow]:
    """The sinks, or the one of that name.  Raises: DamagedRowError when a row is not what was written."""
    query = f"{_SELECT_SINKS} WHERE :name IS NULL OR name = :name ORDER BY name"
    rows = connection.execute(query, {"name": name}).fetchall()
    if not all(is_whole for *_, is_whole in rows):
        raise DamagedRowError("a sink's row fails its checksum")
    return [SinkRow(Sink(*values), segment, position, ledger_id) for *values, segment, position, ledger_id, _ in rows]


def _forgotten(sink: str) -> StateError:
    return StateError(f"the state does not know the sink {sink} any more", hint="it was forgotten: start again")
