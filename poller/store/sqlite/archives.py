"""The tables of archives: the head of each, the batch that is being written, and the number of entries of each hour.

`poller.store.archives` has the rules and the invariants. Other states (of a backfill) write to the same chain. The number of
their events in it is counted here, in the transaction that completes the batch.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Mapping, Sequence

from poller.core.evidence.batches import Head, Packed, PreparedBatch
from poller.core.evidence.compose import Facts
from poller.core.evidence.digest import decode
from poller.core.evidence.hours import Day
from poller.store import archives as rules
from poller.store.archives import Change, DayKey
from poller.store.parts import Place, Seal
from poller.store.rows import Sink
from poller.store.sqlite import spots
from poller.store.sqlite.connection import surviving
from poller.store.sqlite.contracts import read_contracts, read_fact, read_ranges, set_fact
from poller.store.sqlite.database import Database
from poller.store.sqlite.gaps import read_gaps
from poller.store.sqlite.schema import SEALED_ARCHIVE
from poller.store.sqlite.soundness import DamagedRowError, whole_rows

_FIELDS = ", ".join(Head._fields)
_BATCH = ", ".join(PreparedBatch._fields[:-1])


class Archives:
    """The tables `archives` and `archive_...`. Every method is one transaction or one read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, sink: str, now: int) -> Head:
        with self._database.transaction() as connection:
            is_empty = connection.execute("SELECT NOT EXISTS (SELECT 1 FROM ledger)").fetchone()[0]
            connection.execute(
                "INSERT INTO archives (sink, archive, since) VALUES (?, ?, ?) ON CONFLICT (sink) DO NOTHING",
                (sink, uuid.uuid4().hex, 0 if is_empty else now),
            )
            return _known_head(connection, sink)

    def adopt(self, sink: str, head: Head, held: Mapping[tuple[str, int], int]) -> None:
        with self._database.transaction() as connection:
            connection.execute(f"INSERT INTO archives (sink, {_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (sink, *head))
            _change(connection, sink, rules.adding(held))

    def place(self, sink: str) -> str | None:
        with self._database.reading() as connection:
            return read_fact(connection, rules.PLACE + sink)

    def remember_place(self, sink: str, place: str) -> None:
        with self._database.transaction() as connection:
            set_fact(connection, rules.PLACE + sink, place)

    def begin_anew(self, sink: str, archive: str, place: str, now: int) -> None:
        with self._database.transaction() as connection:
            is_ours = connection.execute(
                "UPDATE archives SET archive = ?, number = 0, sha256 = '', key = NULL, entries = 0, since = ?,"
                " written_at = NULL WHERE sink = ? AND archive = ?",
                (uuid.uuid4().hex, now, sink, archive),
            ).rowcount
            if is_ours:
                for table in ("archive_objects", "archive_batches", "archive_days"):
                    connection.execute(f"DELETE FROM {table} WHERE sink = ?", (sink,))
                set_fact(connection, rules.PLACE + sink, place)

    def prepared(self, sink: str) -> PreparedBatch | None:
        query = f"SELECT {_BATCH} FROM archive_batches WHERE sink = ?"
        with self._database.reading() as connection:
            row = connection.execute(query, (sink,)).fetchone()
            if row is None:
                return None
            query = "SELECT key, content FROM archive_objects WHERE sink = ? ORDER BY key"
            prepared = PreparedBatch._make((*row, connection.execute(query, (sink,)).fetchall()))
            if not rules.is_as_committed(prepared):
                raise DamagedRowError("a batch of an archive is not what its digest names")
            return prepared

    def prepare(
        self, sink: str, place: Place, events: int, objects: Sequence[Packed], seal: Seal, now: int, *, writer: str = ""
    ) -> PreparedBatch | None:
        """All processes see the waiting events in the same order, so their count identifies them.

        The commit survives a power cut. Otherwise another batch could get this number, and objects of this one belong to none.
        """
        database = self._database
        with database.reading() as raw, surviving(raw), database.transaction() as connection:
            head = _known_head(connection, sink)
            is_busy = connection.execute("SELECT EXISTS (SELECT 1 FROM archive_batches WHERE sink = ?)", (sink,))
            if is_busy.fetchone()[0] or not rules.is_made_for(objects, head.number + 1):
                return None
            known = spots.read_sinks(connection, sink)
            facts = _facts(connection, sink, head, known, events if not writer else 0, objects)
            digest, signature = seal(facts)
            at = (known[0].segment, known[0].position) if known and not writer else (None, None)
            contents = [(packed.entry.key, packed.content) for packed in objects]
            batch = PreparedBatch(head.number + 1, writer, events, now, digest, signature, contents)
            connection.execute(
                f"INSERT INTO archive_batches (sink, {_BATCH}, segment, position) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (sink, *batch[:-1], *at),
            )
            connection.executemany(
                "INSERT INTO archive_objects (sink, key, content) VALUES (?, ?, ?)",
                [(sink, *content) for content in contents],
            )
            return batch

    def complete(self, sink: str, number: int, now: float) -> bool:
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT writer, events, digest, segment, position FROM archive_batches WHERE sink = ? AND number = ?",
                (sink, number),
            ).fetchone()
            if row is None:
                return False
            writer, events, content, segment, position = row
            connection.execute(
                "UPDATE archives SET sha256 = ?, key = ?, entries = ?, number = ?, written_at = ? WHERE sink = ?",
                (*rules.next_head(content), number, now, sink),
            )
            _change(connection, sink, rules.writing(decode(content)))
            connection.execute("DELETE FROM archive_objects WHERE sink = ?", (sink,))
            connection.execute("DELETE FROM archive_batches WHERE sink = ?", (sink,))
            if writer:
                connection.execute(
                    "INSERT INTO archive_writers (sink, writer, events) VALUES (?, ?, ?) ON CONFLICT (sink, writer)"
                    " DO UPDATE SET events = events + excluded.events",
                    (sink, writer, events),
                )
            else:
                known = spots.read_sinks(connection, sink)
                # If the sink was forgotten and registered again meanwhile, its place is another one, and stays.
                if known and (known[0].segment, known[0].position) == (segment, position):
                    spots.move_on(connection, sink, events, now=now)
        return True

    def archived(self, sink: str, writer: str) -> int:
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT events FROM archive_writers WHERE sink = ? AND writer = ?", (sink, writer)
            ).fetchone()
            return row[0] if row else 0

    def close_hours(self, sink: str, contract: str, counted: Mapping[int, int | None]) -> None:
        with self._database.transaction() as connection:
            _change(connection, sink, rules.closing(contract, counted))

    def has_to_state(self, sink: str) -> bool:
        with self._database.reading() as connection:
            query = "SELECT EXISTS (SELECT 1 FROM archive_days WHERE sink = ? AND is_open)"
            return bool(connection.execute(query, (sink,)).fetchone()[0])


def read_heads(connection: sqlite3.Connection) -> dict[str, Head]:
    """The head of each archive, by sink.  Raises: DamagedRowError."""
    rows = connection.execute(f"SELECT sink, {_FIELDS}, seal = crc32({SEALED_ARCHIVE}) FROM archives ORDER BY sink")
    return {sink: Head(*values) for sink, *values in whole_rows(rows, "an archive's row")}


def _known_head(connection: sqlite3.Connection, sink: str) -> Head:
    head = read_heads(connection).get(sink)
    if head is None:
        raise LookupError(f"the archive of {sink} was never begun")
    return head


def _facts(
    connection: sqlite3.Connection,
    sink: str,
    head: Head,
    known: Sequence[spots.SinkRow],
    events: int,
    objects: Sequence[Packed],
) -> Facts:
    added = rules.hours_of(objects)
    waiting = spots.waiting(connection, known[0])[0] - events if known else 0
    open_ = connection.execute(
        "SELECT contract, day FROM archive_days WHERE sink = ? AND is_open ORDER BY contract, day LIMIT ?",
        (sink, rules.MOST_DAYS),
    ).fetchall()
    days = {key: _read_day(connection, sink, key) for key in {*open_, *added}}
    hours = list(rules.due(days, added, is_all=waiting == 0))
    concerned = {contract for contract, _ in added} | {hour.contract for hour in hours}
    rows = [row for row in read_contracts(connection) if row.contract in concerned] if concerned else []
    gaps = [gap for gap in read_gaps(connection) if gap.contract in concerned] if concerned else []
    ranges = read_ranges(connection) if concerned else []
    row = known[0].sink if known else Sink(sink, "archive")
    return rules.facts(head, hours, gaps, ranges, rows, row, events, waiting)


def _read_day(connection: sqlite3.Connection, sink: str, key: DayKey) -> Day:
    row = connection.execute(
        "SELECT counts FROM archive_days WHERE sink = ? AND contract = ? AND day = ?", (sink, *key)
    ).fetchone()
    try:
        return Day(row[0] if row else None)
    except ValueError as error:
        raise DamagedRowError(f"{error} (archive {sink}, contract {key[0]})") from error


def _change(connection: sqlite3.Connection, sink: str, changes: Mapping[DayKey, Change]) -> None:
    for key, change in changes.items():
        known = _read_day(connection, sink, key)
        change(known)
        connection.execute(
            "INSERT OR REPLACE INTO archive_days (sink, contract, day, counts, is_open) VALUES (?, ?, ?, ?, ?)",
            (sink, *key, known.encoded(), known.is_open),
        )
