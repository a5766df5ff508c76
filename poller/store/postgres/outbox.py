"""The delivering half of the state: the outbox, and each sink's place in it.

A segment has a number in its contract, given under the lock of the contract's row: so nothing that is committed later has a
smaller number, and a sink that has seen one has seen all before it. A place is moved on from what was read: the place as it was,
and the stamps of the segments. After a failover that lost commits, numbers come again with other content, which the stamps tell
apart.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID, uuid4

from poller.core.errors import LeaseLostError, StateError
from poller.core.events import Event
from poller.store import segments
from poller.store.journal import Action
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.journal import Acted, write_by
from poller.store.postgres.replicas import LIVE, Replica
from poller.store.rows import Batch, DeadLetter, Postponed, Sink, Size, Weight
from poller.store.segments import Stored

PIECE_CONTRACTS = 16  # of so many at once what nobody waits for is deleted
# Looked at for one batch: so many, and of a contract a part of these; more where the batch is a large one.
_MOST_SEGMENTS, _SEGMENTS_OF_LARGE = 128, 4096
_OF_CONTRACT = 4
_LARGE_EVENTS = 50_000
_READ_TRIES = 3  # of a batch, while contracts are given back
_SIZE_SECONDS = 5.0  # so old may be what is known of a size
_IS_POSTPONED = (
    "EXISTS (SELECT 1 FROM postponed q WHERE q.use_id = c.use_id AND q.sink = %(sink)s AND q.contract = c.contract)"
)


class PutSize(NamedTuple):
    """What was put into the outbox."""

    segments: int = 0
    events: int = 0
    bytes: int = 0


class Outbox:
    """The tables `segments`, `sinks` and `places` of one use; adds to `dead_letters`."""

    def __init__(self, database: Database, use: int, replica: Callable[[], Replica]) -> None:
        self._database = database
        self._use = use
        self._replica = replica
        self._places: dict[str, Place] = {}
        self._lock = threading.Lock()
        self._put_bytes = 0
        self._size = Size(0, 0), 0, -math.inf  # as it was, with how much had been put by then, and when that was

    def register(self, name: str, type_: str) -> Sink:
        """Make a sink known; a new one starts behind everything collected so far. Commits: the sink."""

        def work(connection: Connection) -> Sink:
            row = connection.execute(
                "INSERT INTO sinks (use_id, name, type) VALUES (%s, %s, %s)"
                " ON CONFLICT (use_id, name) DO UPDATE SET type = excluded.type WHERE sinks.type <> excluded.type"
                " RETURNING xmax = 0",
                (self._use, name, type_),
            ).fetchone()
            if row and row[0]:
                # What one row of a contract says belongs together, whatever is being committed meanwhile.
                connection.execute(
                    "INSERT INTO places (use_id, sink, contract, segment, base, ledger_number)"
                    " SELECT use_id, %s, contract, segment, put_events, commits FROM contracts WHERE use_id = %s"
                    " ON CONFLICT (use_id, sink, contract) DO UPDATE SET segment = excluded.segment, position = 0,"
                    " base = excluded.base, ledger_number = excluded.ledger_number, delivered = 0, dead = 0,"
                    " settled_by = NULL, succeeded_at = NULL",
                    (name, self._use),
                )
                is_new.append(True)
            return read_sinks(connection, self._use, name)[0]

        is_new: list[bool] = []
        sink = self._database.write(work)
        if is_new:
            self.sweep()  # what was collected while there was no sink waits for nobody
        return sink

    def sweep(self) -> None:
        """Commits: piece by piece, the end of segments that nobody waits for."""
        done: list[str] = self._database.read(lambda connection: _contracts_with_done(connection, self._use))
        for start in range(0, len(done), PIECE_CONTRACTS):
            piece = done[start : start + PIECE_CONTRACTS]
            self._database.write(lambda connection, piece=piece: _sweep_piece(connection, self._use, piece))  # type: ignore[misc]

    def forget(self, sink: str, *, by: Action | None = None) -> bool:
        """Commits: piece by piece, the end of a sink and of what waited for it alone; with the first piece who did it."""

        def work(connection: Connection) -> Acted[bool]:
            if not read_sinks(connection, self._use, sink):
                return Acted(result=False, is_recorded=False)
            count, _ = read_waiting(connection, self._use).get(sink, (0, None))
            connection.execute("DELETE FROM sinks WHERE use_id = %s AND name = %s", (self._use, sink))
            connection.execute("DELETE FROM places WHERE use_id = %s AND sink = %s", (self._use, sink))
            connection.execute("DELETE FROM postponed WHERE use_id = %s AND sink = %s", (self._use, sink))
            return Acted(result=True, affected=count)

        was_known = write_by(self._database, self._use, by, work)
        self.sweep()
        return was_known

    def sinks(self) -> list[Sink]:
        """The sinks that are known, by name."""
        return self._database.read(lambda connection: read_sinks(connection, self._use))

    def retry(self, sink: str, now: float, *, by: Action | None = None) -> bool:
        """Commits: that a sink which waits after a failure is tried again now, and who asked. Returns whether it waits."""

        def work(connection: Connection) -> Acted[bool]:
            query = "UPDATE sinks SET retry_at = least(retry_at, %s) WHERE use_id = %s AND name = %s AND retry_at IS NOT NULL"
            is_waiting = connection.execute(query, (now, self._use, sink)).rowcount == 1
            query = "UPDATE postponed SET retry_at = least(retry_at, %s) WHERE use_id = %s AND sink = %s"
            is_waiting |= connection.execute(query, (now, self._use, sink)).rowcount > 0
            return Acted(result=is_waiting, is_recorded=is_waiting)

        return write_by(self._database, self._use, by, work)

    def retry_at(self, sink: str) -> float | None:
        """When a sink that waits is tried again, in unix seconds; None where it does not wait."""
        query = "SELECT retry_at FROM sinks WHERE use_id = %s AND name = %s"
        row = self._database.read(lambda connection: connection.execute(query, (self._use, sink)).fetchone())
        return row[0] if row else None

    def size(self, *, below: int = 0) -> Size:
        """What lies in the outbox, of all replicas. As long as it is surely below so many bytes, it may be seconds old."""
        put_bytes = self._put_bytes
        size, as_of, looked_at = self._size
        added = put_bytes - as_of
        if time.monotonic() - looked_at < _SIZE_SECONDS and size.used_bytes + added < below:
            return size._replace(bytes=size.bytes + added)
        size = self._database.read(lambda connection: read_size(connection, self._use))
        self._size = size, put_bytes, time.monotonic()
        return size

    def note_put(self, size_bytes: int) -> None:
        """So much was just put into it by this process."""
        with self._lock:
            self._put_bytes += size_bytes

    def take(self, sink: str, *, is_whole: bool = False) -> Place | None:
        """The right to deliver to a registered sink, for one thread until `release`; None if another has it.

        `is_whole`: of all contracts, also of those that another replica holds. Then the places as they were read are the only
        fence.
        """
        with self._lock:
            if sink in self._places:
                return None
            known = self._database.read(lambda connection: read_sinks(connection, self._use, sink))
            if not known:
                raise StateError(
                    f"the state does not know the sink {sink} any more", hint="it was forgotten: start again"
                )
            place = self._places[sink] = Place(
                self._database, self._use, self._replica(), known[0], self._give_back, is_whole=is_whole
            )
            return place

    def _give_back(self, place: Place) -> None:
        with self._lock:
            if self._places.get(place.row.name) is place:
                del self._places[place.row.name]


class _Part(NamedTuple):
    """A part of a segment, as it was read for a batch: the events from `start` to before `end`, of `total`."""

    contract: str
    number: int
    stamp: UUID
    start: int
    end: int
    total: int


class Move(NamedTuple):
    """How far a settling moves a contract's place, and from where; `stamps` are of the segments that it passes."""

    start: tuple[int, int]
    end: tuple[int, int]
    stamps: dict[int, UUID]
    events: int


class Place:
    """A sink's place in the outbox of every contract in this replica's share, or of all, and the right to move it on."""

    def __init__(
        self,
        database: Database,
        use: int,
        replica: Replica,
        row: Sink,
        give_back: Callable[[Place], None],
        *,
        is_whole: bool = False,
    ) -> None:
        self.row = row
        self._is_whole = is_whole
        self._database = database
        self._use = use
        self._replica = replica
        self._token = replica.token
        self._give_back = give_back
        self._is_held = True
        self._parts: list[_Part] = []  # of the last batch, not settled yet
        self._starts: dict[str, tuple[int, int]] = {}  # the places that they were read from
        self._contract: str | None = None  # theirs, if it waits on its own
        self._settling: tuple[int, UUID] | None = None  # how many events, and the mark that it leaves
        self._is_postponed = bool(row.attempts or row.retry_at or row.parked_at)
        self._output_offset = row.output_offset
        self._holding: UUID | None = None  # the token by which this replica alone delivers the sink

    def hold(self) -> bool:
        """Whether this replica is the one that delivers the sink.  Commits: that it is, if no other one that lives is."""
        token = self._replica.token
        if self._holding != token or not self._replica.is_trusted(token):
            query = (
                "UPDATE sinks SET holder = %s WHERE use_id = %s AND name = %s"
                f" AND (holder IS NULL OR holder = %s OR holder NOT IN ({LIVE}))"
                " AND EXISTS (SELECT 1 FROM replicas WHERE token = %s AND expires_at > clock_timestamp())"
            )
            values = (token, self._use, self.row.name, token, self._use, token)
            is_held = self._database.write(lambda connection: connection.execute(query, values).rowcount == 1)
            self._holding = token if is_held else None
        return self._holding is not None

    def claimed(self, events: int) -> tuple[int, UUID, dict[str, Move]]:
        """The use, the token of this replica, and how the next `events` events of the last batch move the places on."""
        if not self._is_held:
            raise self._lost()
        moves, _ = self._moves(events)
        return self._use, self._token, moves

    def drop(self) -> None:
        """Forget the last batch: another transaction moves its place on."""
        self._drop()

    def weight(self) -> Weight:
        """What waits in this replica's share, without reading it; the bytes of a segment that is begun are all of it."""
        query = (
            "SELECT coalesce(sum(w.events - w.position), 0)::bigint, coalesce(sum(w.bytes), 0)::bigint, min(w.first) FROM ("
            " SELECT sum(s.events) AS events, coalesce(max(p.position), 0) AS position, sum(s.bytes) AS bytes,"
            "  min(s.collected_at) AS first FROM contracts c JOIN segments s ON s.use_id = c.use_id AND s.contract = c.contract"
            "  LEFT JOIN places p ON p.use_id = c.use_id AND p.sink = %(sink)s AND p.contract = c.contract"
            "  WHERE c.use_id = %(use)s AND (%(whole)s OR c.holder = %(token)s) AND s.number > coalesce(p.segment, 0)"
            "  AND (s.sink IS NULL OR s.sink = %(sink)s) GROUP BY c.contract) w"
        )
        values = {
            "sink": self.row.name, "use": self._use, "token": self._replica.token, "whole": self._is_whole
        }  # fmt: skip
        row = self._database.read(lambda connection: connection.execute(query, values).fetchone())
        return Weight(*row) if row else Weight(0, 0, None)

    def ensure_held(self) -> None:
        """Raises: LeaseLostError when what was read may be another replica's by now."""
        contracts = set() if self._is_whole else {part.contract for part in self._parts}
        if not self._is_held or not self._replica.holds(self._token, contracts):
            raise self._lost()

    def release(self) -> None:
        """Give the right back, also while another thread is in a send."""
        if self._is_held:
            self._is_held = False
            self._drop()
            self._give_back(self)

    def _drop(self) -> None:
        self._put_down()
        self._parts, self._starts, self._settling = [], {}, None

    def _lost(self) -> LeaseLostError:
        self._drop()
        self._token = self._replica.token
        return LeaseLostError("another replica delivers it now", sink=self.row.name)

    def batch(self, max_events: int, max_bytes: int, contract: str | None = None) -> Batch | None:
        """What to send next, within these numbers of events and bytes, but at least one event; None if nothing waits.

        Of a contract that waits on its own, if one is named; else of all others.
        """
        self._contract = contract
        for _ in range(_READ_TRIES):
            self._drop()
            self._token = self._replica.token
            found = self._database.read(lambda connection: self._read(connection, max_events, max_bytes))
            if found is None:
                return None
            parts, self._starts, batch = found
            if self._have_in_hand(parts):
                return batch
            # Else a contract was given back meanwhile.
        raise self._lost()

    def _have_in_hand(self, parts: list[_Part]) -> bool:
        """Keep these contracts from being given back, and no others.  Returns: whether they are held."""
        before, self._parts = self._parts, parts
        if self._is_whole:  # who has the contracts does not matter
            return True
        is_held = self._replica.take_in_hand({part.contract for part in parts})
        self._replica.put_down({part.contract for part in before})
        return is_held

    def _read(
        self, connection: Connection, max_events: int, max_bytes: int
    ) -> tuple[list[_Part], dict[str, tuple[int, int]], Batch] | None:
        sink = self.row.name
        most = _SEGMENTS_OF_LARGE if max_events >= _LARGE_EVENTS else _MOST_SEGMENTS
        heads = connection.execute(
            "SELECT c.contract, coalesce(p.segment, 0), coalesce(p.position, 0), s.number, s.stamp, s.events, s.bytes"
            " FROM contracts c JOIN sinks k ON k.use_id = c.use_id AND k.name = %(sink)s"
            " LEFT JOIN places p ON p.use_id = c.use_id AND p.sink = %(sink)s AND p.contract = c.contract"
            " CROSS JOIN LATERAL (SELECT number, stamp, events, bytes, collected_at FROM segments s"
            "  WHERE s.use_id = c.use_id AND s.contract = c.contract AND s.number > coalesce(p.segment, 0)"
            f"  AND (s.sink IS NULL OR s.sink = %(sink)s) ORDER BY number LIMIT {most // _OF_CONTRACT}) s"
            " WHERE c.use_id = %(use)s AND (%(whole)s OR c.holder = %(token)s AND c.contract <> ALL(%(leaving)s))"
            " AND c.segment > coalesce(p.segment, 0)"
            f" AND {'c.contract = %(contract)s' if self._contract else f'NOT {_IS_POSTPONED}'}"
            " ORDER BY min(s.collected_at) OVER (PARTITION BY c.contract), c.contract, s.number"
            f" LIMIT {most}",
            {
                "sink": sink, "use": self._use, "token": self._token, "whole": self._is_whole, "contract": self._contract,
                "leaving": list(self._replica.leaving),
            },
        ).fetchall()  # fmt: skip
        if not heads:
            return None
        wanted: list[tuple[str, int, int, int, UUID, int]] = []
        events = size = 0
        for contract, segment, position, number, stamp, total, length in heads:
            if wanted and (events >= max_events or size >= max_bytes):
                break
            wanted.append((contract, segment, position, number, stamp, total))
            is_first = not any(other[0] == contract for other in wanted[:-1])
            events += total - (position if is_first else 0)
            size += length
        stored = self._read_segments(connection, [(row[0], row[3]) for row in wanted])
        parts: list[Stored] = []
        taken: list[_Part] = []
        starts: dict[str, tuple[int, int]] = {}
        for contract, segment, position, number, stamp, total in wanted:
            part = stored[contract, number]
            skip = 0 if contract in starts else position
            part = part.slice(skip, part.event_count) if skip else part
            is_whole = part.event_count <= max_events and part.size_bytes <= max_bytes
            fitting = part.event_count if is_whole else part.fitting(max_events, max_bytes, at_least=0 if parts else 1)
            if fitting:
                starts.setdefault(contract, (segment, position))
                parts.append(part if fitting == part.event_count else part.slice(0, fitting))
                taken.append(_Part(contract, number, stamp, skip, skip + fitting, total))
            if fitting < part.event_count:
                return taken, starts, Batch(segments.stored_events(parts), has_more=True)
            max_events -= part.event_count
            max_bytes -= part.size_bytes
        return taken, starts, Batch(segments.stored_events(parts), has_more=len(wanted) < len(heads))

    def _read_segments(self, connection: Connection, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Stored]:
        rows = connection.execute(
            "SELECT contract, number, collected_at, events, checksum, directory, lines FROM segments"
            " WHERE use_id = %s AND (contract, number) IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))",
            (self._use, [contract for contract, _ in keys], [number for _, number in keys]),
            binary=True,
        )
        found = {}
        for contract, number, collected_at, events, checksum, directory, lines in rows:
            part = Stored(contract, collected_at, directory, lines)
            # `events` is what a sink's place is moved on by: a wrong one would leave entries out.
            if segments.checksum(*part) != checksum or part.event_count != events:
                raise StateError(
                    f"segment {number} of contract {contract} in the outbox fails its checksum",
                    hint="restore the database",
                )
            found[contract, number] = part
        return found

    def settle(
        self, count: int, *, dead: Sequence[DeadLetter] = (), now: float, output_offset: int | None = None
    ) -> None:
        """Move on past the next `count` events of the last batch: those in `dead` were refused for good, all others accepted.

        Where only some of their contracts are still held, those are settled, and the rest of the batch is dropped.
        """
        if not self._is_held:
            raise self._lost()
        if self._settling is None or self._settling[0] != count:
            self._settling = (count, uuid4())
        moves, rest = self._moves(count)
        if len(moves) == 0 and count:
            raise self._lost()
        settled = self._database.write(
            lambda connection: self._settle(connection, moves, dead, now, output_offset, self._settling[1])  # type: ignore[index]
        )
        lost = moves.keys() - settled
        self._settling = None
        self._have_in_hand(rest)
        self._starts |= {contract: move.end for contract, move in moves.items()}
        self._is_postponed, self._output_offset = False, output_offset
        if lost:
            raise self._lost()

    def _put_down(self) -> None:
        if not self._is_whole:
            self._replica.put_down({part.contract for part in self._parts})

    def _moves(self, count: int) -> tuple[dict[str, Move], list[_Part]]:
        """What settling the next events means for each contract, and the parts that remain."""
        moves: dict[str, Move] = {}
        rest = list(self._parts)
        while count and rest:
            part = rest.pop(0)
            used = min(count, part.end - part.start)
            count -= used
            at = part.start + used
            before = moves.get(part.contract)
            start = before.start if before else self._starts[part.contract]
            end = (part.number, 0) if at == part.total else (before.end[0] if before else start[0], at)
            stamps = {**(before.stamps if before else {}), part.number: part.stamp}
            moves[part.contract] = Move(start, end, stamps, used + (before.events if before else 0))
            if at < part.end:
                rest.insert(0, part._replace(start=at))
        return moves, rest

    def _settle(
        self,
        connection: Connection,
        moves: dict[str, Move],
        dead: Sequence[DeadLetter],
        now: float,
        output_offset: int | None,
        settling: UUID,
    ) -> set[str]:
        """Returns: the contracts that are settled, now or, where the answer was lost, by an earlier try."""
        use, sink = self._use, self.row.name
        chosen = sorted(moves)
        held = {
            row[0]
            for row in connection.execute(
                "SELECT contract FROM contracts WHERE use_id = %s AND contract = ANY(%s) AND (%s OR holder = %s)"
                " ORDER BY contract FOR UPDATE",
                (use, chosen, self._is_whole, self._token),
            )
        }
        known = connection.execute(
            "SELECT holder FROM sinks WHERE use_id = %s AND name = %s FOR KEY SHARE", (use, sink)
        ).fetchone()
        if known is None:
            return set(moves)  # forgotten meanwhile
        if known[0] not in (None, self._token):
            return set()  # another replica delivers it
        places = lock_places(connection, use, sink, held, chosen)
        done = {contract for contract in chosen if contract in places and places[contract][1] == settling}
        open_ = [
            contract
            for contract in waiting_there(connection, use, moves, places)
            if contract in held and contract not in done
        ]
        letters = [letter for letter in dead if letter.event.contract in open_]
        move_on(connection, use, sink, {contract: moves[contract] for contract in open_}, letters, settling, now)
        if self._contract is not None:  # it is one of all again
            connection.execute(
                "DELETE FROM postponed WHERE use_id = %s AND sink = %s AND contract = ANY(%s)", (use, sink, open_)
            )
        if self._is_postponed or output_offset != self._output_offset:
            connection.execute(
                "UPDATE sinks SET attempts = 0, retry_at = NULL, postponed_at = NULL, parked_at = NULL, failure = '',"
                " mark = %s WHERE use_id = %s AND name = %s",
                (output_offset, use, sink),
            )
        return done.union(open_)

    def postpone(self, attempts: int, now: float, retry_at: float, failure: str, *, parked_at: float | None) -> None:
        """Commits: that nothing was sent, why, and when to try again, so that a restart loses no backoff."""
        if not self._is_held:
            raise self._lost()
        self._is_postponed = True
        self._update_sink(
            "attempts = %s, postponed_at = %s, retry_at = %s, failure = %s, parked_at = %s",
            (attempts, now, retry_at, failure.replace("\0", "\ufffd"), parked_at),
        )

    def has_others(self, contracts: Collection[str]) -> bool:
        """Whether anything waits of contracts that neither wait on their own nor are among these."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM contracts c LEFT JOIN places p"
            " ON p.use_id = c.use_id AND p.sink = %(sink)s AND p.contract = c.contract"
            " JOIN segments s ON s.use_id = c.use_id AND s.contract = c.contract AND s.number > coalesce(p.segment, 0)"
            " WHERE c.use_id = %(use)s AND (%(whole)s OR c.holder = %(token)s) AND c.segment > coalesce(p.segment, 0)"
            " AND (s.sink IS NULL OR s.sink = %(sink)s) AND c.contract <> ALL(%(contracts)s)"
            f" AND NOT {_IS_POSTPONED})"
        )
        values = {
            "sink": self.row.name, "use": self._use, "token": self._token, "whole": self._is_whole,
            "contracts": list(contracts),
        }  # fmt: skip
        row = self._database.read(lambda connection: connection.execute(query, values).fetchone())
        return bool(row and row[0])

    def postponed(self) -> Sequence[Postponed]:
        """The contracts in this replica's share that wait on their own, in the order of their next tries."""
        query = (
            f"SELECT {', '.join(f'q.{name}' for name in Postponed._fields)} FROM postponed q JOIN contracts c"
            " ON c.use_id = q.use_id AND c.contract = q.contract WHERE q.use_id = %s AND q.sink = %s"
            " AND (%s OR c.holder = %s) ORDER BY q.retry_at, q.contract"
        )
        values = (self._use, self.row.name, self._is_whole, self._replica.token)
        return self._database.read(lambda connection: [Postponed(*row) for row in connection.execute(query, values)])

    def postpone_contract(self, contract: str, attempts: int, now: float, retry_at: float, failure: str) -> None:
        """Commits: that a contract waits on its own from its first event that is not settled, and when it is tried again."""
        if not self._is_held:
            raise self._lost()
        values = (self._use, self.row.name, contract, attempts, now, retry_at, failure.replace("\0", "\ufffd"), now)
        self._database.write(
            lambda connection: connection.execute(
                "INSERT INTO postponed (use_id, sink, contract, attempts, postponed_at, retry_at, failure, since)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (use_id, sink, contract) DO UPDATE SET"
                " attempts = excluded.attempts, postponed_at = excluded.postponed_at, retry_at = excluded.retry_at,"
                " failure = excluded.failure",
                values,
            )
        )
        self._have_in_hand([part for part in self._parts if part.contract != contract])

    def note_output_offset(self, output_offset: int | None) -> None:
        """Commits: where the sink's own output that is not settled begins, while nothing else changes."""
        if not self._is_held:
            raise self._lost()
        self._output_offset = output_offset
        self._update_sink("mark = %s", (output_offset,))

    def _update_sink(self, assignments: str, values: tuple[object, ...]) -> None:
        query = f"UPDATE sinks SET {assignments} WHERE use_id = %s AND name = %s"
        self._database.write(lambda connection: connection.execute(query, (*values, self._use, self.row.name)))


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
    """Add events of a contract behind its segment `last`, for all sinks or for one, under the lock of the contract's row."""
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


def lock_places(
    connection: Connection, use: int, sink: str, new: Iterable[str], contracts: Sequence[str]
) -> dict[str, tuple[tuple[int, int], UUID | None]]:
    """The places of a sink in these contracts, locked, and by which settling each is there. It gets one in those in `new`."""
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
    """The contracts, in order, in which the place is where the move begins, and what it passes is what was read."""
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
    """Move a sink on in contracts whose rows and places the caller has locked; `letters` of it are dead, the rest delivered."""
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
        _write_letters(connection, use, sink, letters, now)
    delete_done(connection, use, sorted(moves), after=[moves[contract].start[0] for contract in sorted(moves)])


def note_success(connection: Connection, use: int, sink: str) -> None:
    """A sink that waited after a failure has taken something."""
    connection.execute(
        "UPDATE sinks SET attempts = 0, retry_at = NULL, postponed_at = NULL, parked_at = NULL, failure = ''"
        " WHERE use_id = %s AND name = %s AND attempts > 0",
        (use, sink),
    )


def ensure_places(connection: Connection, use: int, sink: str, contracts: Iterable[str]) -> None:
    """Give a sink its place at the beginning of contracts that became known after it did."""
    connection.execute(
        "INSERT INTO places (use_id, sink, contract) SELECT %s, %s, c FROM unnest(%s::text[]) AS c ORDER BY c"
        " ON CONFLICT DO NOTHING",
        (use, sink, sorted(contracts)),
    )


_UPTO = (
    "SELECT c.contract, min(coalesce(p.segment, 0)) AS upto FROM contracts c JOIN sinks k ON k.use_id = c.use_id"
    " LEFT JOIN places p ON p.use_id = c.use_id AND p.sink = k.name AND p.contract = c.contract WHERE c.use_id = %(use)s"
)
# What nobody waits for: all sinks are done with it, or the one it is for, or that one was forgotten, or there is no sink.
_IS_DONE = (
    "(s.sink IS NULL AND s.number <= coalesce(d.upto, s.number)) OR (s.sink IS NOT NULL AND s.number <= coalesce("
    " (SELECT coalesce(p.segment, 0) FROM sinks k LEFT JOIN places p ON p.use_id = k.use_id AND p.sink = k.name"
    "  AND p.contract = s.contract WHERE k.use_id = s.use_id AND k.name = s.sink), s.number))"
)


def _contracts_with_done(connection: Connection, use: int) -> list[str]:
    rows = connection.execute(
        f"SELECT DISTINCT s.contract FROM segments s LEFT JOIN ({_UPTO} GROUP BY c.contract) d ON d.contract = s.contract"
        f" WHERE s.use_id = %(use)s AND ({_IS_DONE}) ORDER BY 1",
        {"use": use},
    )
    return [row[0] for row in rows]


def _sweep_piece(connection: Connection, use: int, contracts: Sequence[str]) -> None:
    connection.execute(
        "SELECT 1 FROM contracts WHERE use_id = %s AND contract = ANY(%s) ORDER BY contract FOR UPDATE",
        (use, list(contracts)),
    )
    delete_done(connection, use, contracts)


def delete_done(
    connection: Connection, use: int, contracts: Sequence[str], *, after: Sequence[int] | None = None
) -> None:
    """Delete what nobody waits for any more, of contracts whose rows the caller has locked.

    `after`: behind which segment of each contract. What lies before a place that moves on was deleted, or waits for another sink;
    while a snapshot is held open, the server would go through all that was ever deleted there.
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


def _write_letters(connection: Connection, use: int, sink: str, letters: Sequence[DeadLetter], now: float) -> None:
    connection.executemany(
        "INSERT INTO dead_letters (use_id, sink, contract, time_us, collected_at, identity, ordinal, line, status,"
        " reason, died_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        [
            (
                use, sink, event.contract, event.time_us, event.collected_at, event.identity, event.ordinal, event.line,
                status, reason.replace("\0", "\ufffd"), now,
            )
            for event, status, reason in letters
        ],
    )  # fmt: skip
    size = sum(len(letter.event.line) for letter in letters)
    count_letters(connection, use, sink, written=len(letters), size=size)


def count_letters(
    connection: Connection, use: int, sink: str, *, written: int = 0, replayed: int = 0, purged: int = 0, size: int
) -> None:
    """Enter in the books what becomes of dead letters, inside the caller's transaction. `size` in bytes, negative if gone."""
    connection.execute(
        "INSERT INTO letter_books AS b VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (use_id, sink) DO UPDATE SET"
        " written = b.written + excluded.written, replayed = b.replayed + excluded.replayed,"
        " purged = b.purged + excluded.purged, bytes = b.bytes + excluded.bytes",
        (use, sink, written, replayed, purged, size),
    )


def read_sinks(connection: Connection, use: int, name: str | None = None) -> list[Sink]:
    """The sinks, or the one of that name. What was assigned to one is what was put since it became known."""
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
    """By sink: the contracts that it does not take while it takes others, by when they are tried again."""
    found: dict[str, list[Postponed]] = {}
    query = f"SELECT sink, {', '.join(Postponed._fields)} FROM postponed WHERE use_id = %s ORDER BY sink, retry_at, contract"
    for sink, *row in connection.execute(query, (use,)):
        found.setdefault(sink, []).append(Postponed(*row))
    return found


def read_waiting(connection: Connection, use: int) -> dict[str, tuple[int, int | None]]:
    """By sink: events that wait, counted one segment after the other, and when the first was collected (unix seconds)."""
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
    """What lies in the outbox: sums of each contract's own counters, so that no row is everybody's."""
    row = connection.execute(
        "SELECT coalesce(sum(outbox_events), 0)::bigint, coalesce(sum(outbox_bytes), 0)::bigint,"
        " (SELECT coalesce(sum(bytes), 0)::bigint FROM letter_books WHERE use_id = %s) FROM contracts WHERE use_id = %s",
        (use, use),
    ).fetchone()
    return Size(*row) if row else Size(0, 0)
