"""Copies a state from and to a database: reads it at one moment while no replica can join, writes it in one transaction."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

from poller.core.errors import StateError, StateHeldError
from poller.store.copying import CLOCK_TRAIL, COLUMNS, Dump, Row, Tick, differences
from poller.store.overview import Overview
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.overview import read_overview
from poller.store.postgres.replicas import LIVE

_PIECE_ROWS = 200
# After the lock, no replica can join. No query comes before it, because all later queries may see the moment of the first.
_BEGIN = (
    "BEGIN ISOLATION LEVEL {level}; SET LOCAL search_path TO {schema}; SET LOCAL extra_float_digits = 1;"
    " SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;"
    " LOCK TABLE replicas IN SHARE MODE"
)

# Columns and table of the rows that are copied as they are. Other rows come from several tables.
_PLAIN = {
    "ranges": "contract, start_at, end_at, purpose FROM ranges",
    "filtered": "reason, sum(count)::bigint FROM filtered",
    "forgotten": "contract, day, counts FROM forgotten",
    "gaps": "id, contract, start_at, end_at, kind, reason, first_seen, tries, next_try_at, is_accepted, is_narrow FROM gaps",
    "letter_books": "sink, written, replayed, purged FROM letter_books",
    "cuts": "sink, contract, ledger_number FROM places",
    "places": "sink, contract, segment, position FROM places",
} | {
    name: f"{', '.join(COLUMNS[name])} FROM {name}"
    for name in (
        "contracts", "facts", "journal", "dead_letters", "ledger", "segments", "archives", "archive_days", "archive_batches",
    )
}  # fmt: skip
_ORDER = {
    "journal": " ORDER BY id", "dead_letters": " ORDER BY id", "ledger": " ORDER BY contract, number",
    "segments": " ORDER BY contract, number", "filtered": " GROUP BY reason", "gaps": " ORDER BY id",
    "ranges": " ORDER BY id",
}  # fmt: skip


class DatabaseDump:
    """The state of a use in a database, in a transaction of the caller."""

    def __init__(self, connection: Connection, use: str, use_id: int) -> None:
        self.use = use
        self.overview: Overview = read_overview(connection, use_id)
        self._connection = connection
        self._use = use_id

    def count(self) -> int:
        query = " + ".join(
            f"(SELECT count(*) FROM {name} WHERE use_id = {self._use})" for name in ("ledger", "segments")
        )
        return int(self._connection.value(f"SELECT {query}"))

    def rows(self, table: str) -> Iterator[Row]:
        if table == "sinks":
            yield from (tuple(row.sink) for row in self.overview.sinks)
        elif table == "gap_entries":
            yield from self._connection.execute(
                "SELECT gap, size, content FROM gap_entries WHERE gap IN (SELECT id FROM gaps WHERE use_id = %s) ORDER BY id",
                (self._use,),
                binary=True,
            )
        elif table == "facts":
            mine = f"{CLOCK_TRAIL} {os.uname().nodename}"
            for name, value in self._select(table):
                if name == mine or not name.startswith(f"{CLOCK_TRAIL} "):
                    yield (CLOCK_TRAIL if name == mine else name), value
            if self.overview.created_at is not None:
                yield "created_at", str(self.overview.created_at)
        else:
            yield from self._select(table)

    def _select(self, table: str) -> Iterator[Row]:
        columns, _, source = _PLAIN[table].partition(" FROM ")
        with self._connection.raw.cursor(name=f"copy_{table}", binary=True) as cursor:  # in pieces, not all at once
            cursor.itersize = _PIECE_ROWS
            cursor.execute(f"SELECT {columns} FROM {source} WHERE use_id = %s{_ORDER.get(table, '')}", (self._use,))
            yield from cursor


@contextmanager
def reading(database: Database) -> Iterator[list[DatabaseDump]]:
    """All uses, while nobody can begin to work on one.

    Raises: StateHeldError if a replica works on one, StateError.
    """
    with database.connected() as connection:
        connection.execute(_BEGIN.format(level="REPEATABLE READ", schema=database.schema))
        uses = connection.execute("SELECT name, id FROM uses ORDER BY name").fetchall()
        for name, use_id in uses:
            if connection.value(LIVE, (use_id,)):
                raise StateHeldError(f"{database.place} ({name}): a replica works on it", hint="stop all of them first")
        yield [DatabaseDump(connection, name, use_id) for name, use_id in uses]


def load(database: Database, dumps: Sequence[Dump], tick: Tick) -> None:
    """Commits: all these states at once.  Raises: StateError if one exists, or a copy differs from its source."""
    with database.connected() as connection:
        connection.execute(_BEGIN.format(level="READ COMMITTED", schema=database.schema))
        for dump in dumps:
            _load_use(connection, database, dump, tick)
        connection.execute("COMMIT")


def _load_use(connection: Connection, database: Database, dump: Dump, tick: Tick) -> None:
    if connection.value("SELECT 1 FROM uses WHERE name = %s", (dump.use,)):
        hint = "name another schema in [state], or drop this one"
        raise StateError(f"{database.place} has a state of `{dump.use}` already", hint=hint)
    created_at = dump.overview.created_at or int(time.time())
    query = "INSERT INTO uses (name, created_at) VALUES (%s, %s) RETURNING id"
    use: int = connection.value(query, (dump.use, created_at))
    for table in ("contracts", "forgotten", "archives", "archive_days", "journal", "dead_letters", "letter_books"):
        _copy_in(connection, table, COLUMNS[table], use, dump.rows(table))
    _copy_in(connection, "ranges", ("contract", "start_at", "end_at", "purpose"), use, dump.rows("ranges"))
    _copy_in(connection, "facts", COLUMNS["facts"], use, _facts(dump))
    _load_gaps(connection, use, dump)
    _copy_in(connection, "ledger", COLUMNS["ledger"], use, dump.rows("ledger"), tick)
    stamped = ((*row, uuid4()) for row in dump.rows("segments"))
    _copy_in(connection, "segments", (*COLUMNS["segments"], "stamp"), use, stamped, tick)
    _load_sinks(connection, use, dump)
    if lines := differences(dump.overview, read_overview(connection, use)):
        raise StateError(
            f"the copy of `{dump.use}` would differ in {', '.join(lines)}", hint="report it; nothing was copied"
        )


def _facts(dump: Dump) -> Iterator[Row]:
    for name, value in dump.rows("facts"):
        if name != "created_at":
            yield (f"{CLOCK_TRAIL} {os.uname().nodename}" if name == CLOCK_TRAIL else name), value


def _copy_in(
    connection: Connection, table: str, columns: Sequence[str], use: int, rows: Iterable[Row], tick: Tick | None = None
) -> None:
    """Write rows into a table. Tables with few rows need no progress bar, so they have no `tick`."""
    booleans = [index for index, name in enumerate(columns) if name.startswith("is_")]
    with (
        connection.raw.cursor() as cursor,
        cursor.copy(f"COPY {table} (use_id, {', '.join(columns)}) FROM STDIN") as copy,
    ):
        for row in rows:
            values = list(row)
            for index in booleans:
                values[index] = bool(values[index])
            copy.write_row((use, *values))
            if tick is not None:
                tick(1)


def _load_gaps(connection: Connection, use: int, dump: Dump) -> None:
    numbers: dict[int, int] = {}
    for number, *row, is_accepted, is_narrow in dump.rows("gaps"):
        numbers[number] = connection.value(
            "INSERT INTO gaps (use_id, contract, start_at, end_at, kind, reason, first_seen, tries, next_try_at, is_accepted,"
            f" is_narrow) VALUES (%s{', %s' * 10}) RETURNING id",
            (use, *row, bool(is_accepted), bool(is_narrow)),
        )
    connection.executemany(
        "INSERT INTO gap_entries (gap, size, content) VALUES (%s, %s, %s)",
        [(numbers[gap], size, content) for gap, size, content in dump.rows("gap_entries")],
    )


def _load_sinks(connection: Connection, use: int, dump: Dump) -> None:
    """Load sinks and their places. Their books are known only as sums, so settled events count for the first contract."""
    names = [row.contract for row in dump.overview.contracts]
    if names:
        connection.executemany(
            "INSERT INTO filtered VALUES (%s, %s, %s, %s)",
            [(use, names[0], reason, count) for reason, count in dump.rows("filtered")],
        )
    connection.execute(
        "UPDATE contracts c SET segment = coalesce(s.last, 0), outbox_events = coalesce(s.events, 0),"
        " outbox_bytes = coalesce(s.bytes, 0), commits = coalesce((SELECT max(number) FROM ledger l"
        "  WHERE l.use_id = c.use_id AND l.contract = c.contract), 0), put_events = c.new FROM contracts o LEFT JOIN"
        " (SELECT contract, max(number) AS last, sum(events) AS events, sum(bytes) AS bytes FROM segments WHERE use_id = %s"
        "  GROUP BY contract) s USING (contract) WHERE o.use_id = %s AND c.use_id = %s AND c.contract = o.contract",
        (use, use, use),
    )
    connection.execute(
        "UPDATE letter_books b SET bytes = coalesce((SELECT sum(length(line)) FROM dead_letters d"
        " WHERE d.use_id = b.use_id AND d.sink = b.sink), 0) WHERE use_id = %s",
        (use,),
    )
    for sink in (row.sink for row in dump.overview.sinks):
        connection.execute(
            "INSERT INTO sinks (use_id, name, type, attempts, retry_at, postponed_at, parked_at, failure, mark)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                use, sink.name, sink.type, sink.attempts, sink.retry_at, sink.postponed_at, sink.parked_at, sink.failure,
                sink.output_offset,
            ),
        )  # fmt: skip
    cuts = {(sink, contract): number for sink, contract, number in dump.rows("cuts")}
    connection.executemany(
        "INSERT INTO places (use_id, sink, contract, segment, position, ledger_number) VALUES (%s, %s, %s, %s, %s, %s)",
        [(use, *row, cuts.get((row[0], row[1]), 0)) for row in dump.rows("places")],
    )
    connection.execute(
        "UPDATE places p SET base = c.put_events - (SELECT coalesce(sum(s.events), 0) FROM segments s"
        "  WHERE s.use_id = p.use_id AND s.contract = p.contract AND s.number > p.segment"
        "  AND (s.sink IS NULL OR s.sink = p.sink)) + p.position"
        " FROM contracts c WHERE p.use_id = %s AND c.use_id = p.use_id AND c.contract = p.contract",
        (use,),
    )
    if not names:
        return
    for row in dump.overview.sinks:
        # A sink has no place yet in a contract that became known later.
        connection.execute(
            "INSERT INTO places (use_id, sink, contract, base, delivered, dead, succeeded_at) VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (use_id, sink, contract) DO UPDATE SET base = places.base + excluded.base,"
            " delivered = excluded.delivered, dead = excluded.dead, succeeded_at = excluded.succeeded_at",
            (
                use, row.sink.name, names[0], row.waiting - row.sink.assigned, row.sink.delivered, row.sink.dead,
                row.sink.succeeded_at,
            ),
        )  # fmt: skip
