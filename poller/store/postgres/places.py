"""The places of a sink in the outbox of every contract, and the batches that are read from there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import NamedTuple
from uuid import UUID, uuid4

from poller.core.errors import LeaseLostError, StateError
from poller.store import segments
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.moving import Move, lock_places, move_on, note_success, waiting_there
from poller.store.postgres.registrations import Registrations
from poller.store.postgres.replicas import LIVE, Replica
from poller.store.rows import Batch, DeadLetter, Postponed, Sink, Weight
from poller.store.segments import Stored

# Maximum number of segments that are searched for a batch, and for a large one; for one contract, divided by `_OF_CONTRACT`.
_MOST_SEGMENTS, _SEGMENTS_OF_LARGE = 128, 4096
_OF_CONTRACT = 4
_LARGE_EVENTS = 50_000
_READ_TRIES = 3  # for a batch, if contracts are given back meanwhile
_IS_POSTPONED = (
    "EXISTS (SELECT 1 FROM postponed q WHERE q.use_id = c.use_id AND q.sink = %(sink)s AND q.contract = c.contract)"
)


class _Part(NamedTuple):
    """A part of a segment that was read for a batch: its events `[start, end)` of `total`."""

    contract: str
    number: int
    stamp: UUID
    start: int
    end: int
    total: int


class Place:
    """The places of a sink in the outbox of all contracts, or of those in this replica's share, and the right to move them."""

    def __init__(
        self,
        database: Database,
        use: int,
        replica: Replica,
        row: Sink,
        registrations: Registrations,
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
        self._registrations = registrations
        self._give_back = give_back
        self._is_held = True
        self._parts: list[_Part] = []  # unsettled parts of the last batch
        self._starts: dict[str, tuple[int, int]] = {}  # the places from which they were read
        self._contract: str | None = None  # their contract, if it waits alone
        self._settling: tuple[int, UUID] | None = None  # the number of events, and the token left in `settled_by`
        self._is_postponed = bool(row.attempts or row.retry_at or row.parked_at)
        self._is_noted_elsewhere = False  # another replica has noted that the sink waits
        self._output_offset = row.output_offset
        self._holding: UUID | None = None  # the token with which this replica alone delivers the sink

    def hold(self) -> bool:
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
        """The use, the token of this replica, and the moves of the places by the next `events` events of the last batch."""
        if not self._is_held:
            raise self._lost()
        moves, _ = self._moves(events)
        return self._use, self._token, moves

    def weight(self) -> Weight:
        """A partly settled segment counts with all its bytes."""
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
        contracts = set() if self._is_whole else {part.contract for part in self._parts}
        if not self._is_held or not self._replica.holds(self._token, contracts):
            raise self._lost()

    def release(self) -> None:
        if self._is_held:
            self._is_held = False
            self.drop()
            self._give_back(self)

    def drop(self) -> None:
        """Forget the last batch, for example because another transaction moves its places."""
        self._put_down()
        self._parts, self._starts, self._settling = [], {}, None

    def _lost(self) -> LeaseLostError:
        self.drop()
        self._token = self._replica.token
        return LeaseLostError("another replica delivers it now", sink=self.row.name)

    def batch(self, max_events: int, max_bytes: int, contract: str | None = None) -> Batch | None:
        self._contract = contract
        for _ in range(_READ_TRIES):
            self.drop()
            self._token = self._replica.token
            found = self._database.read(lambda connection: self._read(connection, max_events, max_bytes))
            if found is None:
                self._registrations.look()
                return None
            parts, self._starts, batch = found
            if self._have_in_hand(parts):
                return batch
            # Otherwise a contract was given back meanwhile.
        raise self._lost()

    def _have_in_hand(self, parts: list[_Part]) -> bool:
        """Keep the contracts of these parts, and no others, from being given back.  Returns: whether all are held."""
        before, self._parts = self._parts, parts
        if self._is_whole:  # the holder of a contract does not matter
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
            whole = stored[contract, number]
            skip = 0 if contract in starts else position
            part = whole.slice(skip, whole.event_count)
            fitting = part.fitting(max_events, max_bytes, at_least=0 if parts else 1)
            if fitting:
                starts.setdefault(contract, (segment, position))
                parts.append(part.slice(0, fitting))
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
            if not part.is_as_written(checksum, events):
                raise StateError(
                    f"segment {number} of contract {contract} in the outbox fails its checksum",
                    hint="restore the database",
                )
            found[contract, number] = part
        return found

    def settle(
        self, count: int, *, dead: Sequence[DeadLetter] = (), now: float, output_offset: int | None = None
    ) -> None:
        """If only some of the contracts are still held, their events are settled, and the rest of the batch is dropped."""
        if not self._is_held:
            raise self._lost()
        if self._settling is None or self._settling[0] != count:
            self._settling = (count, uuid4())
        moves, rest = self._moves(count)
        if len(moves) == 0 and count:
            raise self._lost()
        settled = self._registrations.write(
            lambda connection: self._settle(connection, moves, dead, now, output_offset, self._settling[1])  # type: ignore[index]
        )
        lost = moves.keys() - settled
        self._settling = None
        self._have_in_hand(rest)
        self._starts |= {contract: move.end for contract, move in moves.items()}
        self._is_postponed = self._is_postponed and output_offset == self._output_offset
        self._output_offset = output_offset
        if lost:
            raise self._lost()
        self._note_success()

    def _note_success(self) -> None:
        """Commits: that the sink does not wait any more. It is a separate commit, so that no contract stays locked meanwhile."""
        if self._is_postponed or self._is_noted_elsewhere:
            only_for = None if self._is_postponed else self._token
            with suppress(StateError):  # the events are settled; the next settling notes it
                self._database.write(lambda connection: note_success(connection, self._use, self.row.name, only_for))
                self._is_postponed = False

    def _put_down(self) -> None:
        if not self._is_whole:
            self._replica.put_down({part.contract for part in self._parts})

    def _moves(self, count: int) -> tuple[dict[str, Move], list[_Part]]:
        """The moves of the places by the next `count` events, by contract, and the parts that remain."""
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
        """Returns: the settled contracts, including those of an earlier try whose answer was lost."""
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
            "SELECT holder, attempts > 0 FROM sinks WHERE use_id = %s AND name = %s FOR KEY SHARE", (use, sink)
        ).fetchone()
        if known is None:
            return set(moves)  # forgotten meanwhile
        if known[0] not in (None, self._token):
            return set()  # another replica delivers it
        self._is_noted_elsewhere = known[1]
        places = lock_places(connection, use, sink, held, chosen)
        done = {contract for contract in chosen if contract in places and places[contract][1] == settling}
        open_ = [
            contract
            for contract in waiting_there(connection, use, moves, places)
            if contract in held and contract not in done
        ]
        letters = [letter for letter in dead if letter.event.contract in open_]
        move_on(connection, use, sink, {contract: moves[contract] for contract in open_}, letters, settling, now)
        if self._contract is not None:  # it belongs to the others again
            connection.execute(
                "DELETE FROM postponed WHERE use_id = %s AND sink = %s AND contract = ANY(%s)", (use, sink, open_)
            )
        if output_offset != self._output_offset:
            connection.execute(
                "UPDATE sinks SET attempts = 0, retry_at = NULL, postponed_at = NULL, parked_at = NULL, failure = '',"
                " mark = %s WHERE use_id = %s AND name = %s",
                (output_offset, use, sink),
            )
        return done.union(open_)

    def postpone(self, attempts: int, now: float, retry_at: float, failure: str, *, parked_at: float | None) -> None:
        if not self._is_held:
            raise self._lost()
        self._is_postponed = True
        self._update_sink(
            "attempts = %s, postponed_at = %s, retry_at = %s, failure = %s, parked_at = %s",
            (attempts, now, retry_at, failure, parked_at),
        )

    def has_others(self, contracts: Collection[str]) -> bool:
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
        return bool(self._database.read(lambda connection: connection.value(query, values)))

    def postponed(self) -> Sequence[Postponed]:
        query = (
            f"SELECT {', '.join(f'q.{name}' for name in Postponed._fields)} FROM postponed q JOIN contracts c"
            " ON c.use_id = q.use_id AND c.contract = q.contract WHERE q.use_id = %s AND q.sink = %s"
            " AND (%s OR c.holder = %s) ORDER BY q.retry_at, q.contract"
        )
        values = (self._use, self.row.name, self._is_whole, self._replica.token)
        return self._database.read(lambda connection: [Postponed(*row) for row in connection.execute(query, values)])

    def postpone_contract(self, contract: str, attempts: int, now: float, retry_at: float, failure: str) -> None:
        if not self._is_held:
            raise self._lost()
        values = (self._use, self.row.name, contract, attempts, now, retry_at, failure, now)
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
        if not self._is_held:
            raise self._lost()
        self._output_offset = output_offset
        self._update_sink("mark = %s", (output_offset,))

    def _update_sink(self, assignments: str, values: tuple[object, ...]) -> None:
        query = f"UPDATE sinks SET {assignments} WHERE use_id = %s AND name = %s"
        self._database.write(lambda connection: connection.execute(query, (*values, self._use, self.row.name)))
