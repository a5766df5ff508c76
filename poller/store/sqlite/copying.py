"""Copies a state from and to a file: reads it under its lock, writes a new file and renames it when it is complete."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from poller.core.errors import StateError
from poller.store.copying import COLUMNS, Dump, Row, Tick, differences
from poller.store.identities import DAY_HOURS, pack_day, unpack_day
from poller.store.overview import Overview
from poller.store.rows import SINK_COLUMNS
from poller.store.segments import Stored, checksum
from poller.store.sqlite import overview as reading_overview
from poller.store.sqlite.connection import files_of
from poller.store.sqlite.database import Reader, make_directory, new_file
from poller.store.sqlite.lock import Lock
from poller.store.sqlite.spots import SinkRow, read_places, read_sinks
from poller.store.sqlite.translation import translated_os, translated_reading

_PLAIN = {
    "ranges": "contract, start, end, purpose FROM ranges ORDER BY id",
    "filtered": "reason, count FROM filtered",
    "gaps": f"{', '.join(COLUMNS['gaps'])} FROM gaps ORDER BY id",
    "gap_entries": "gap, size, content FROM gap_entries ORDER BY id",
    "letter_books": "sink, written, replayed, purged FROM letter_books",
    "ledger": "contract, row_number() OVER (PARTITION BY contract ORDER BY id), hour, is_timed, first_us, last_us, updated_at,"
    " identities FROM ledger WHERE length(identities) > 0 ORDER BY contract, id",
    "segments": "contract, row_number() OVER (PARTITION BY contract ORDER BY id), sink, collected_at, events, bytes, first_us,"
    " checksum, directory, lines FROM segments ORDER BY contract, id",
    "contracts": f"{', '.join(COLUMNS['contracts'])} FROM contracts ORDER BY contract",
    "facts": "name, value FROM facts",
    "journal": f"{', '.join(COLUMNS['journal'])} FROM journal ORDER BY id",
    "dead_letters": f"{', '.join(COLUMNS['dead_letters'])} FROM dead_letters ORDER BY id",
} | {name: f"{', '.join(COLUMNS[name])} FROM {name}" for name in ("archives", "archive_days", "archive_batches")}
_COPIED_AS_THEY_ARE = (
    "contracts", "ranges", "filtered", "facts", "forgotten", "journal", "letter_books", "dead_letters", "gaps",
    "gap_entries", "archives", "archive_days",
)  # fmt: skip


class FileDump:
    """The state of a use in a file, while nobody works on it."""

    def __init__(self, use: str, connection: sqlite3.Connection, overview: Overview) -> None:
        self.use = use
        self.overview = overview
        self._connection = connection

    def count(self) -> int:
        query = "SELECT (SELECT count(*) FROM ledger) + (SELECT count(*) FROM segments)"
        return int(self._connection.execute(query).fetchone()[0])

    def rows(self, table: str) -> Iterator[Row]:
        match table:
            case "sinks":
                yield from (tuple(row.sink) for row in self.overview.sinks)
            case "places":
                for row in read_sinks(self._connection):
                    yield from self._places(row)
            case "cuts":
                query = (
                    "SELECT contract, count(*) FROM ledger WHERE id <= ? AND length(identities) > 0 GROUP BY contract"
                )
                for row in read_sinks(self._connection):
                    for contract, number in self._connection.execute(query, (row.ledger_id,)):
                        yield row.sink.name, contract, number
            case "forgotten":
                yield from self._forgotten()
            case _:
                yield from self._connection.execute(f"SELECT {_PLAIN[table]}")

    def _places(self, row: SinkRow) -> Iterator[Row]:
        """The place of a sink in each contract. A file has one place for all contracts, except for those that wait alone."""
        own = read_places(self._connection, row.sink.name)
        done = dict(
            self._connection.execute(
                "SELECT contract, count(*) FROM segments WHERE id <= ? GROUP BY contract", (row.segment,)
            ).fetchall()
        )
        begun = self._connection.execute(
            "SELECT contract FROM segments WHERE id > ? AND (sink IS NULL OR sink = ?)"
            " AND contract NOT IN (SELECT contract FROM postponed WHERE sink = ?) ORDER BY id LIMIT 1",
            (row.segment, row.sink.name, row.sink.name),
        ).fetchone()
        for contract in self.overview.contracts:
            if contract.contract in own:
                segment, position = own[contract.contract]
                query = "SELECT count(*) FROM segments WHERE contract = ? AND id <= ?"
                (number,) = self._connection.execute(query, (contract.contract, segment)).fetchone()
            else:
                number = done.get(contract.contract, 0)
                position = row.position if begun == (contract.contract,) else 0
            yield row.sink.name, contract.contract, number, position

    def _forgotten(self) -> Iterator[Row]:
        """Includes the counts that older programs left in the ledger itself."""
        days: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
        for contract, day, blob in self._connection.execute("SELECT contract, day, counts FROM forgotten"):
            days[contract, day] = unpack_day(day, blob)
        query = "SELECT contract, hour, sum(forgotten) FROM ledger WHERE forgotten > 0 GROUP BY contract, hour"
        for contract, hour, number in self._connection.execute(query):
            counts = days[contract, hour // DAY_HOURS]
            counts[hour] = counts.get(hour, 0) + number
        for (contract, day), counts in days.items():
            yield contract, day, pack_day(day, counts)


@contextmanager
def reading(directory: Path, uses: Sequence[str]) -> Iterator[list[FileDump]]:
    """These uses, while nobody can begin to work on one.  Raises: StateHeldError if a process works on one, StateError."""
    with ExitStack() as stack:
        dumps = []
        for use in uses:
            lock = Lock(directory / f"{use}.lock")
            stack.callback(lock.release)
            path = directory / f"{use}.db"
            overview = reading_overview.overview_of(path)
            reader = stack.enter_context(closing(Reader(path)))
            connection = stack.enter_context(reader.reading())
            dumps.append(FileDump(use, connection, overview))
        yield dumps


def load(directory: Path, dumps: Sequence[Dump], tick: Tick) -> None:
    """Create the files of these states, all or none.  Raises: StateError if one exists, or a copy differs from its source."""
    make_directory(directory)
    with ExitStack() as stack:
        made: list[tuple[Path, Path]] = []
        for dump in dumps:
            lock = Lock(directory / f"{dump.use}.lock")
            stack.callback(lock.release)
            path = directory / f"{dump.use}.db"
            if path.exists():
                raise StateError(f"{path} is there already", hint="name another directory, or move it away")
            new = path.with_name(f"{path.name}.new")
            for file in files_of(new):
                stack.callback(file.unlink, missing_ok=True)
            with new_file(path, new) as connection, translated_reading(path):
                _fill(connection, dump, tick)
            if lines := differences(dump.overview, reading_overview.overview_of(new)):
                hint = "report it; nothing was copied"
                raise StateError(f"the copy of `{dump.use}` would differ in {', '.join(lines)}", hint=hint)
            made.append((new, path))
        for new, path in made:
            with translated_os(path):
                new.rename(path)


def _fill(connection: sqlite3.Connection, dump: Dump, tick: Tick) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for table in _COPIED_AS_THEY_ARE:
        _insert(connection, table, COLUMNS[table], dump.rows(table))
    ledger_ids = _fill_ledger(connection, dump, tick)
    for row in dump.overview.sinks:
        columns = (*SINK_COLUMNS, "segment", "position", "ledger_id")
        _insert(connection, "sinks", columns, [(*row.sink, 0, 0, ledger_ids[row.sink.name])])
    _fill_outbox(connection, dump, tick)
    connection.execute(
        "UPDATE outbox_size SET (events, bytes) ="
        " (SELECT coalesce(sum(events), 0), coalesce(sum(bytes), 0) FROM segments)"
    )
    connection.execute("COMMIT")


def _insert(
    connection: sqlite3.Connection, table: str, columns: Sequence[str], rows: Iterator[Row] | list[Row]
) -> None:
    places = ", ".join("?" * len(columns))
    connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)


def _fill_ledger(connection: sqlite3.Connection, dump: Dump, tick: Tick) -> dict[str, int]:
    """Returns: by sink, the number of the last row from before the sink was known. It may be too high, never too low."""
    cuts: dict[str, dict[str, int]] = {row.sink.name: {} for row in dump.overview.sinks}
    for sink, contract, number in dump.rows("cuts"):
        cuts[sink][contract] = number
    newest = {
        row.contract: max((by_contract.get(row.contract, 0) for by_contract in cuts.values()), default=0)
        for row in dump.overview.contracts
    }
    last = dict.fromkeys(cuts, 0)
    columns = ("id", "contract", "hour", "is_timed", "first_us", "last_us", "updated_at", "identities")
    id_ = 0
    for is_later in (False, True):
        for contract, number, *rest in dump.rows("ledger"):
            if (number > newest.get(contract, 0)) is not is_later:
                continue
            id_ += 1
            _insert(connection, "ledger", columns, [(id_, contract, *rest)])
            for sink, by_contract in cuts.items():
                if number <= by_contract.get(contract, 0):
                    last[sink] = id_
            tick(1)
    return last


def _fill_outbox(connection: sqlite3.Connection, dump: Dump, tick: Tick) -> None:
    """Every sink starts at the beginning. A partly settled segment is written for each waiting sink, without settled events."""
    places: dict[str, dict[str, tuple[int, int]]] = {row.sink.name: {} for row in dump.overview.sinks}
    for sink, contract, number, position in dump.rows("places"):
        places[sink][contract] = (number, position)
    begun: set[tuple[str, str]] = set()
    columns = COLUMNS["segments"][:1] + COLUMNS["segments"][2:]
    for contract, number, only_for, *rest in dump.rows("segments"):
        skips = {}
        for sink in places if only_for is None else [only_for]:
            done, position = places.get(sink, {}).get(contract, (0, 0))
            if sink in places and number > done:
                skips[sink] = 0 if (sink, contract) in begun else position
                begun.add((sink, contract))
        if only_for is None and places and len(skips) == len(places) and not any(skips.values()):
            _insert(connection, "segments", columns, [(contract, None, *rest)])
        else:
            for sink, skip in skips.items():
                _insert(connection, "segments", columns, [(contract, sink, *_cut(contract, rest, skip))])
        tick(1)


def _cut(contract: str, rest: Sequence[Any], skip: int) -> Sequence[Any]:
    """The columns of a segment from `collected_at` on, without its first events."""
    if not skip:
        return rest
    collected_at, events, _size, first_us, _checksum, directory, lines = rest
    part = Stored(contract, collected_at, directory, lines).slice(skip, events)
    return (
        collected_at, part.event_count, part.size_bytes, first_us, checksum(*part), part.directory, part.lines,
    )  # fmt: skip
