"""The place of a sink in the outbox, held by the thread that delivers. `spots.py` defines places and how they move."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence

from poller.core.errors import LeaseLostError
from poller.store import segments
from poller.store.rows import Batch, DeadLetter, Postponed, Sink, Weight
from poller.store.segments import Stored
from poller.store.sqlite.database import Database
from poller.store.sqlite.soundness import DamagedRowError
from poller.store.sqlite.spots import (
    WAITING,
    behind,
    move_on,
    next_segment,
    read_postponed,
    read_sinks,
    spot_of,
    waiting,
)


class Place:
    """The place of a sink in the outbox, and the right to move it. No other process can have this right at the same time."""

    def __init__(self, database: Database, row: Sink, give_back: Callable[[Place], None]) -> None:
        self.row = row
        self._database = database
        self._give_back = give_back
        self._is_held = True
        self._contract: str | None = None  # the contract of the last batch, if it waits alone

    def ensure_held(self) -> None:
        if not self._is_held:
            raise LeaseLostError("its place was given back", sink=self.row.name)

    def hold(self) -> bool:
        """Always true: there are no other replicas."""
        return True

    def release(self) -> None:
        self._is_held = False
        self._give_back(self)

    def batch(self, max_events: int, max_bytes: int, contract: str | None = None) -> Batch | None:
        parts: list[Stored] = []
        sink = self.row.name
        self._contract = contract
        with self._database.reading() as connection:
            spot = spot_of(connection, sink, contract)
            if spot is None:
                return None
            skip = spot.position
            rows = connection.execute(
                "SELECT id, contract, collected_at, events, checksum, directory, lines FROM segments"
                f" WHERE {behind(spot)} ORDER BY id",
                {**spot._asdict(), "sink": sink},
            )
            for id_, owner, collected_at, events, checksum, directory, lines in rows:
                part = Stored(owner, collected_at, directory, lines)
                if not part.is_as_written(checksum, events):
                    raise DamagedRowError(f"segment {id_} of the outbox fails its checksum")
                part = part.slice(skip, part.event_count)
                skip = 0
                fitting = part.fitting(max_events, max_bytes, at_least=0 if parts else 1)
                if fitting < part.event_count:
                    parts += [part.slice(0, fitting)] if fitting else []
                    return Batch(segments.stored_events(parts), has_more=True)
                max_events -= part.event_count
                max_bytes -= part.size_bytes
                parts.append(part)
        return Batch(segments.stored_events(parts), has_more=False) if parts else None

    def weight(self) -> Weight:
        with self._database.reading() as connection:
            known = read_sinks(connection, self.row.name)
            if not known:
                return Weight(0, 0, None)
            events, first = waiting(connection, known[0])
            (size,) = connection.execute(
                f"SELECT coalesce(sum(bytes), 0) FROM segments WHERE {WAITING}",
                {"segment": known[0].segment, "sink": self.row.name},
            ).fetchone()
            return Weight(events, size, first if events else None)

    def settle(
        self, count: int, *, dead: Sequence[DeadLetter] = (), now: float, output_offset: int | None = None
    ) -> None:
        with self._database.transaction() as connection:
            self.ensure_held()
            move_on(
                connection,
                self.row.name,
                count,
                dead=dead,
                now=now,
                output_offset=output_offset,
                contract=self._contract,
            )

    def postpone(self, attempts: int, now: float, retry_at: float, failure: str, *, parked_at: float | None) -> None:
        with self._database.transaction() as connection:
            self.ensure_held()
            connection.execute(
                "UPDATE sinks SET attempts = ?, postponed_at = ?, retry_at = ?, failure = ?, parked_at = ? WHERE name = ?",
                (attempts, now, retry_at, failure, parked_at, self.row.name),
            )

    def has_others(self, contracts: Collection[str]) -> bool:
        with self._database.reading() as connection:
            spot = spot_of(connection, self.row.name, None)
            if spot is None:
                return False
            query = (
                f"SELECT EXISTS (SELECT 1 FROM segments WHERE {behind(spot)}"
                " AND contract NOT IN (SELECT value FROM json_each(:contracts)))"
            )
            values = {**spot._asdict(), "sink": self.row.name, "contracts": json.dumps(sorted(contracts))}
            return bool(connection.execute(query, values).fetchone()[0])

    def postponed(self) -> Sequence[Postponed]:
        with self._database.reading() as connection:
            return read_postponed(connection, self.row.name)

    def postpone_contract(self, contract: str, attempts: int, now: float, retry_at: float, failure: str) -> None:
        sink = self.row.name
        with self._database.transaction() as connection:
            self.ensure_held()
            spot = spot_of(connection, sink, None)
            if spot is None:
                return
            if spot_of(connection, sink, contract) is None:
                first = next_segment(connection, sink, spot)
                # The sink may have settled a part of its next segment, which is of this contract or of another one.
                is_begun = spot.position > 0 and first is not None and first[1] == contract
                connection.execute(
                    "INSERT INTO postponed (sink, contract, segment, position, attempts, postponed_at, retry_at, failure, since)"
                    " VALUES (?, ?, ?, ?, 0, 0, 0, '', ?)",
                    (sink, contract, spot.segment, spot.position if is_begun else 0, now),
                )
                if is_begun:
                    connection.execute("UPDATE sinks SET position = 0 WHERE name = ?", (sink,))
            connection.execute(
                "UPDATE postponed SET attempts = ?, postponed_at = ?, retry_at = ?, failure = ? WHERE sink = ? AND contract = ?",
                (attempts, now, retry_at, failure, sink, contract),
            )

    def note_output_offset(self, output_offset: int | None) -> None:
        with self._database.transaction() as connection:
            self.ensure_held()
            connection.execute("UPDATE sinks SET mark = ? WHERE name = ?", (output_offset, self.row.name))
