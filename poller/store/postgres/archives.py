"""The tables of archives: the head of each, the batch that is being written, and the number of entries of each hour.

`poller.store.archives` has the rules and the invariants. One replica writes an archive, for all contracts: the holder of the sink
(`Place.hold`). Correctness does not depend on it. `prepare` is refused if another replica holds the sink, if a batch is being
written, if the chain has a newer digest, or if a place has moved since its events were read. Only the first call of `complete`
for a batch has an effect.

Every change locks the row in `archives`, after all other locks. A batch moves the places of the use that has its events. This may
be another use (a backfill) in the same database.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from poller.core.errors import LeaseLostError, StateError
from poller.core.evidence.batches import Head, Packed, PreparedBatch
from poller.core.evidence.compose import Facts
from poller.core.evidence.digest import decode
from poller.core.evidence.hours import Day
from poller.store import archives as rules
from poller.store.archives import Change, DayKey
from poller.store.parts import Place, Seal
from poller.store.postgres import moving
from poller.store.postgres.contract_rows import read_contracts, read_fact, read_ranges, set_fact
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.gaps import read_gaps
from poller.store.postgres.outbox import read_sinks, read_waiting
from poller.store.postgres.places import Place as SharedPlace
from poller.store.postgres.registrations import Registrations
from poller.store.rows import Sink

_FIELDS = ", ".join(Head._fields)
_BATCH = ", ".join(PreparedBatch._fields[:-1])
_moves = msgspec.json.Decoder(dict[str, moving.Move])


class Archives:
    """The tables `archives` and `archive_...` of one use. Every method is one transaction or one read."""

    def __init__(self, database: Database, use: int, registrations: Registrations) -> None:
        self._database = database
        self._use = use
        self._registrations = registrations

    def begin(self, sink: str, now: int) -> Head:
        def work(connection: Connection) -> Head:
            connection.execute(
                "INSERT INTO archives (use_id, sink, archive, since) SELECT %(use)s, %(sink)s, %(name)s,"
                " CASE WHEN EXISTS (SELECT 1 FROM ledger WHERE use_id = %(use)s) THEN %(now)s ELSE 0 END"
                " ON CONFLICT (use_id, sink) DO NOTHING",
                {"use": self._use, "sink": sink, "name": uuid.uuid4().hex, "now": now},
            )
            return _known_head(connection, self._use, sink)

        known = self._database.read(lambda connection: read_heads(connection, self._use).get(sink))
        return known or self._database.write(work)

    def adopt(self, sink: str, head: Head, held: Mapping[tuple[str, int], int]) -> None:
        def work(connection: Connection) -> None:
            places = ", ".join(["%s"] * len(head))
            connection.execute(
                f"INSERT INTO archives (use_id, sink, {_FIELDS}) VALUES (%s, %s, {places})", (self._use, sink, *head)
            )
            _change(connection, self._use, sink, rules.adding(held))

        self._database.write(work)

    def place(self, sink: str) -> str | None:
        return self._database.read(lambda connection: read_fact(connection, self._use, rules.PLACE + sink))

    def remember_place(self, sink: str, place: str) -> None:
        self._database.write(lambda connection: set_fact(connection, self._use, rules.PLACE + sink, place))

    def begin_anew(self, sink: str, archive: str, place: str, now: int) -> None:
        def work(connection: Connection) -> None:
            is_ours = connection.execute(
                "UPDATE archives SET archive = %s, number = 0, sha256 = '', key = NULL, entries = 0, since = %s,"
                " written_at = NULL WHERE use_id = %s AND sink = %s AND archive = %s",
                (uuid.uuid4().hex, now, self._use, sink, archive),
            ).rowcount
            if is_ours:
                for table in ("archive_objects", "archive_batches", "archive_days"):
                    connection.execute(f"DELETE FROM {table} WHERE use_id = %s AND sink = %s", (self._use, sink))
                set_fact(connection, self._use, rules.PLACE + sink, place)

        self._database.write(work)

    def prepared(self, sink: str) -> PreparedBatch | None:
        def work(connection: Connection) -> PreparedBatch | None:
            query = f"SELECT {_BATCH} FROM archive_batches WHERE use_id = %s AND sink = %s"
            row = connection.execute(query, (self._use, sink), binary=True).fetchone()
            if row is None:
                return None
            query = "SELECT key, content FROM archive_objects WHERE use_id = %s AND sink = %s ORDER BY key"
            objects = connection.execute(query, (self._use, sink), binary=True).fetchall()
            return PreparedBatch._make((*row, [(key, content) for key, content in objects]))

        batch = self._database.read(work)
        if batch is not None and not rules.is_as_committed(batch):
            message = f"{self._database.place}: a batch of the archive {sink} is not what its digest names"
            raise StateError(message, hint="restore the database")
        return batch

    def prepare(
        self, sink: str, place: Place, events: int, objects: Sequence[Packed], seal: Seal, now: int, *, writer: str = ""
    ) -> PreparedBatch | None:
        assert isinstance(place, SharedPlace)  # noqa: S101 - it is of the same backend
        of_use, token, moves = place.claimed(events)

        def work(connection: Connection) -> PreparedBatch | None:
            # Until the commit, no other replica can begin to hold the sink: it must find the batch.
            query = "SELECT 1 FROM sinks WHERE use_id = %s AND name = %s AND holder = %s FOR SHARE"
            if not connection.value(query, (of_use, sink, token)):
                raise LeaseLostError("another replica delivers it now", sink=sink)
            places = moving.lock_places(connection, of_use, sink, moves, sorted(moves))
            if len(moving.waiting_there(connection, of_use, moves, places)) < len(moves):
                raise LeaseLostError("what was read does not wait any more", sink=sink)
            head = _known_head(connection, self._use, sink, is_locked=True)
            query = "SELECT 1 FROM archive_batches WHERE use_id = %s AND sink = %s"
            is_busy = connection.value(query, (self._use, sink)) is not None
            if is_busy or not rules.is_made_for(objects, head.number + 1):
                return None
            digest, signature = seal(self._facts(connection, sink, head, events if of_use == self._use else 0, objects))
            contents = [(packed.entry.key, packed.content) for packed in objects]
            batch = PreparedBatch(head.number + 1, writer, events, now, digest, signature, contents)
            connection.execute(
                f"INSERT INTO archive_batches (use_id, sink, {_BATCH}, of_use, moves)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (self._use, sink, *batch[:-1], of_use, msgspec.json.encode(moves)),
            )
            connection.executemany(
                "INSERT INTO archive_objects (use_id, sink, key, content) VALUES (%s, %s, %s, %s)",
                [(self._use, sink, key, content) for key, content in contents],
            )
            return batch

        batch = self._database.write(work, is_of_one_moment=True)  # for the facts in the digest
        if batch is not None:
            place.drop()
        return batch

    def complete(self, sink: str, number: int, now: float) -> bool:
        def work(connection: Connection) -> bool:
            query = "SELECT of_use, moves, digest FROM archive_batches WHERE use_id = %s AND sink = %s AND number = %s"
            key = (self._use, sink, number)
            row = connection.execute(query, key, binary=True).fetchone()
            if row is None:
                return False
            of_use, moves, content = row[0], _moves.decode(row[1]), row[2]
            connection.execute(
                "SELECT 1 FROM contracts WHERE use_id = %s AND contract = ANY(%s) ORDER BY contract FOR UPDATE",
                (of_use, sorted(moves)),
            )
            moving.note_success(connection, of_use, sink)
            places = moving.lock_places(connection, of_use, sink, (), sorted(moves))
            _known_head(connection, self._use, sink, is_locked=True)
            query = "DELETE FROM archive_batches WHERE use_id = %s AND sink = %s AND number = %s"
            if connection.execute(query, key).rowcount == 0:
                return False  # another process has completed it
            connection.execute("DELETE FROM archive_objects WHERE use_id = %s AND sink = %s", (self._use, sink))
            connection.execute(
                "UPDATE archives SET sha256 = %s, key = %s, entries = %s, number = %s, written_at = %s"
                " WHERE use_id = %s AND sink = %s",
                (*rules.next_head(content), number, now, self._use, sink),
            )
            _change(connection, self._use, sink, rules.writing(decode(content)))
            # If the sink was forgotten and registered again meanwhile, its places are other ones, and stay.
            waiting = moving.waiting_there(connection, of_use, moves, places)
            moved = {contract: moves[contract] for contract in waiting}
            moving.move_on(connection, of_use, sink, moved, (), uuid.uuid4(), now)
            return True

        return self._registrations.write(work)

    def archived(self, sink: str, writer: str) -> int:
        """Always 0: `complete` has moved the places of the other state, too."""
        return 0

    def close_hours(self, sink: str, contract: str, counted: Mapping[int, int | None]) -> None:
        def work(connection: Connection) -> None:
            _known_head(connection, self._use, sink, is_locked=True)
            _change(connection, self._use, sink, rules.closing(contract, counted))

        self._database.write(work)

    def has_to_state(self, sink: str) -> bool:
        query = "SELECT 1 FROM archive_days WHERE use_id = %s AND sink = %s AND is_open LIMIT 1"
        return bool(self._database.read(lambda connection: connection.value(query, (self._use, sink))))

    def _facts(self, connection: Connection, sink: str, head: Head, events: int, objects: Sequence[Packed]) -> Facts:
        added = rules.hours_of(objects)
        known = read_sinks(connection, self._use, sink)
        waiting = read_waiting(connection, self._use).get(sink, (0, None))[0] - events
        open_ = connection.execute(
            "SELECT contract, day FROM archive_days WHERE use_id = %s AND sink = %s AND is_open"
            " ORDER BY contract, day LIMIT %s",
            (self._use, sink, rules.MOST_DAYS),
        ).fetchall()
        days = _read_days(connection, self._use, sink, {*((contract, day) for contract, day in open_), *added})
        hours = list(rules.due(days, added, is_all=waiting == 0))
        concerned = {contract for contract, _ in added} | {hour.contract for hour in hours}
        rows = read_contracts(connection, self._use, sorted(concerned)) if concerned else []
        gaps = [gap for gap in read_gaps(connection, self._use) if gap.contract in concerned] if concerned else []
        ranges = read_ranges(connection, self._use) if concerned else []
        row = known[0] if known else Sink(sink, "archive")
        return rules.facts(head, hours, gaps, ranges, rows, row, events, waiting)


def read_heads(connection: Connection, use: int) -> dict[str, Head]:
    """The head of each archive, by sink."""
    rows = connection.execute(f"SELECT sink, {_FIELDS} FROM archives WHERE use_id = %s ORDER BY sink", (use,))
    return {sink: Head(*values) for sink, *values in rows}


def _known_head(connection: Connection, use: int, sink: str, *, is_locked: bool = False) -> Head:
    lock = " FOR UPDATE" if is_locked else ""
    row = connection.execute(
        f"SELECT {_FIELDS} FROM archives WHERE use_id = %s AND sink = %s{lock}", (use, sink)
    ).fetchone()
    if row is None:
        raise LookupError(f"the archive of {sink} was never begun")
    return Head(*row)


def _read_days(connection: Connection, use: int, sink: str, keys: Iterable[DayKey]) -> dict[DayKey, Day]:
    chosen = sorted(keys)
    rows = connection.execute(
        "SELECT contract, day, counts FROM archive_days WHERE use_id = %s AND sink = %s"
        " AND (contract, day) IN (SELECT * FROM unnest(%s::text[], %s::bigint[]))",
        (use, sink, [contract for contract, _ in chosen], [day for _, day in chosen]),
        binary=True,
    )
    known = {(contract, day): counts for contract, day, counts in rows}
    try:
        return {key: Day(known.get(key)) for key in chosen}
    except ValueError as error:
        raise StateError(f"{error} (archive {sink})", hint="restore the database") from error


def _change(connection: Connection, use: int, sink: str, changes: Mapping[DayKey, Change]) -> None:
    """Change days. The caller has locked the archive's row."""
    days = _read_days(connection, use, sink, changes)
    for key, change in changes.items():
        change(days[key])
    connection.executemany(
        "INSERT INTO archive_days (use_id, sink, contract, day, counts, is_open) VALUES (%s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (use_id, sink, contract, day) DO UPDATE SET counts = excluded.counts, is_open = excluded.is_open",
        [(use, sink, *key, day.encoded(), day.is_open) for key, day in days.items()],
    )
