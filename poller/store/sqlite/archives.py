"""The archives that sinks write: how far each is, the batch that is being written, and what it holds of each hour.

Invariants:
1. A batch is committed whole, objects, digest and signature, before anything of it is written. There is one at a time.
2. `complete` moves the head of the chain and, in the same transaction, the place of the sink whose events these are. So no
   number is given twice, and no entry is in two batches.
3. Other states (a backfill's) write to the same chain: how many of their events are in it is counted here, in that transaction.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from poller.core.evidence.batches import HOUR_SECONDS, Head, Packed, PreparedBatch
from poller.core.evidence.compose import ContractRow, DueHour, Facts
from poller.core.evidence.digest import batch_of, decode, sha256
from poller.core.evidence.hours import DAY_SECONDS, Day
from poller.store.protocols import Seal
from poller.store.sqlite import outbox
from poller.store.sqlite.contracts import read_contracts
from poller.store.sqlite.database import DamagedRowError, Database
from poller.store.sqlite.gaps import read_gaps
from poller.store.sqlite.schema import SEALED_ARCHIVE

# So many days are looked through at most for hours to state in one batch: what is left is stated in the next one.
_MOST_DAYS = 500
_SELECT = f"SELECT {', '.join(Head._fields)}, seal = crc32({SEALED_ARCHIVE}) FROM archives WHERE sink = ?"


class _Hour(NamedTuple):
    contract: str
    day: int
    hour: int


class Archives:
    """The tables `archives` and `archive_...`. Every method is one transaction or one read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def head(self, sink: str) -> Head | None:
        """How far the archive of a sink is; None where it was never begun."""
        with self._database.reading() as connection:
            return _read_head(connection, sink)

    def begin(self, sink: str, now: int) -> Head:
        """How far the archive of a sink is.  Commits: its beginning, where it is new."""
        with self._database.transaction() as connection:
            is_empty = connection.execute("SELECT NOT EXISTS (SELECT 1 FROM ledger)").fetchone()[0]
            connection.execute(
                "INSERT INTO archives (sink, archive, since) VALUES (?, ?, ?) ON CONFLICT (sink) DO NOTHING",
                (sink, uuid.uuid4().hex, 0 if is_empty else now),
            )
            return _known_head(connection, sink)

    def adopt(self, sink: str, head: Head, held: Mapping[tuple[str, int], int]) -> None:
        """Commits: the head of an archive that another state wrote, and what it holds, by contract and hour's start."""
        with self._database.transaction() as connection:
            connection.execute(
                f"INSERT INTO archives (sink, {', '.join(Head._fields)}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (sink, *head)
            )
            for (contract, day), hours in _by_day(held).items():
                _change_day(connection, sink, contract, day, lambda known, hours=hours: known.add(hours))  # type: ignore[misc]

    def prepared(self, sink: str) -> PreparedBatch | None:
        """The batch that is being written.  Raises: StateError when it is not what was committed."""
        with self._database.reading() as connection:
            return _read_prepared(connection, sink)

    def prepare(
        self, sink: str, events: int, objects: Sequence[Packed], seal: Seal, now: int, *, writer: str = ""
    ) -> PreparedBatch | None:
        """Commit a batch of so many events, the next ones of the sink, or of another state where `writer` names it.

        `objects` are made for the number after the head's.  Commits: the batch. Returns it; None where another one is being
        written, or was since the number was looked up: then nothing is committed.
        """
        with self._database.transaction() as connection:
            head = _known_head(connection, sink)
            is_busy = connection.execute("SELECT EXISTS (SELECT 1 FROM archive_batches WHERE sink = ?)", (sink,))
            is_late = any(batch_of(packed.entry.key) != head.number + 1 for packed in objects)
            if is_late or is_busy.fetchone()[0]:
                return None
            known = outbox.read_sinks(connection, sink)
            facts = _facts(connection, sink, head, known, events if not writer else 0, objects)
            digest, signature = seal(facts)
            place = (known[0].segment, known[0].position) if known and not writer else (None, None)
            connection.execute(
                "INSERT INTO archive_batches (sink, number, writer, events, written_at, digest, signature, segment, position)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (sink, head.number + 1, writer, events, now, digest, signature, *place),
            )
            connection.executemany(
                "INSERT INTO archive_objects (sink, key, content) VALUES (?, ?, ?)",
                [(sink, packed.entry.key, packed.content) for packed in objects],
            )
            contents = [(packed.entry.key, packed.content) for packed in objects]
            return PreparedBatch(head.number + 1, writer, events, now, digest, signature, contents)

    def complete(self, sink: str, number: int, now: float) -> bool:
        """Batch `number` is written.

        Commits: the head, what the archive holds and has stated, the end of the batch, and that the sink, or the other state
        whose they are, is past its events. Returns whether this call did it: another process may have.
        """
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT writer, events, digest, segment, position FROM archive_batches WHERE sink = ? AND number = ?",
                (sink, number),
            ).fetchone()
            if row is None:
                return False
            writer, events, content, segment, position = row
            digest = decode(content)
            connection.execute(
                "UPDATE archives SET number = ?, sha256 = ?, key = ?, entries = ?, written_at = ? WHERE sink = ?",
                (number, sha256(content), digest.next_key or digest.key, digest.entries, now, sink),
            )
            held = {(entry.contract, _seconds_of(entry.hour)): entry.entries for entry in digest.objects}
            for (contract, day), hours in _by_day(held).items():
                _change_day(connection, sink, contract, day, lambda known, hours=hours: known.add(hours))  # type: ignore[misc]
            for statement in digest.statements:
                place = _hour_of(statement.contract, _seconds_of(statement.hour))

                def state(known: Day, statement=statement, hour=place.hour) -> None:  # type: ignore[no-untyped-def]
                    known.state(hour, statement.api, statement.archived)

                _change_day(connection, sink, place.contract, place.day, state)
            connection.execute("DELETE FROM archive_objects WHERE sink = ?", (sink,))
            connection.execute("DELETE FROM archive_batches WHERE sink = ?", (sink,))
            if writer:
                connection.execute(
                    "INSERT INTO archive_writers (sink, writer, events) VALUES (?, ?, ?) ON CONFLICT (sink, writer)"
                    " DO UPDATE SET events = events + excluded.events",
                    (sink, writer, events),
                )
            else:
                known = outbox.read_sinks(connection, sink)
                # A sink that was forgotten meanwhile, and added again, is elsewhere.
                if known and (known[0].segment, known[0].position) == (segment, position):
                    outbox.move_on(connection, sink, events, now=now)
        return True

    def archived(self, sink: str, writer: str) -> int:
        """How many events of another state are in the archive."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT events FROM archive_writers WHERE sink = ? AND writer = ?", (sink, writer)
            ).fetchone()
            return row[0] if row else 0

    def close_hours(self, sink: str, contract: str, counted: Mapping[int, int | None]) -> None:
        """An audit closed hours of a contract: the start of each, and what the API counted, None where a gap lies in it.

        Commits: that, to be stated with the next batch.
        """
        days: dict[int, dict[int, int | None]] = {}
        for start, api in counted.items():
            place = _hour_of(contract, start)
            days.setdefault(place.day, {})[place.hour] = api
        with self._database.transaction() as connection:
            for day, hours in days.items():
                _change_day(connection, sink, contract, day, lambda known, hours=hours: known.close(hours))  # type: ignore[misc]

    def has_to_state(self, sink: str) -> bool:
        """Whether an hour may have to be stated, though nothing else waits."""
        with self._database.reading() as connection:
            query = "SELECT EXISTS (SELECT 1 FROM archive_days WHERE sink = ? AND is_open)"
            return bool(connection.execute(query, (sink,)).fetchone()[0])


def _read_head(connection: sqlite3.Connection, sink: str) -> Head | None:
    row = connection.execute(_SELECT, (sink,)).fetchone()
    if row is None:
        return None
    *values, is_whole = row
    if not is_whole:
        raise DamagedRowError("an archive's row fails its checksum")
    return Head(*values)


def read_heads(connection: sqlite3.Connection) -> dict[str, Head]:
    """How far each archive is, by its sink."""
    sinks = [sink for (sink,) in connection.execute("SELECT sink FROM archives ORDER BY sink").fetchall()]
    return {sink: _known_head(connection, sink) for sink in sinks}


def _known_head(connection: sqlite3.Connection, sink: str) -> Head:
    head = _read_head(connection, sink)
    if head is None:
        raise LookupError(f"the archive of {sink} was never begun")
    return head


def _read_prepared(connection: sqlite3.Connection, sink: str) -> PreparedBatch | None:
    row = connection.execute(
        "SELECT number, writer, events, written_at, digest, signature FROM archive_batches WHERE sink = ?", (sink,)
    ).fetchone()
    if row is None:
        return None
    objects = connection.execute(
        "SELECT key, content FROM archive_objects WHERE sink = ? ORDER BY key", (sink,)
    ).fetchall()
    number, writer, events, written_at, digest, signature = row
    prepared = PreparedBatch(number, writer, events, written_at, digest, signature, objects)
    named = {entry.key: entry.sha256 for entry in decode(prepared.digest).objects}
    if named != {key: sha256(content) for key, content in objects}:
        raise DamagedRowError("a batch of an archive is not what its digest names")
    return prepared


def _facts(
    connection: sqlite3.Connection,
    sink: str,
    head: Head,
    known: Sequence[outbox.SinkRow],
    events: int,
    objects: Iterable[Packed],
) -> Facts:
    held: dict[tuple[str, int], int] = {}
    for packed in objects:
        hour = (packed.entry.contract, _seconds_of(packed.entry.hour))
        held[hour] = held.get(hour, 0) + packed.entry.entries
    added = _by_day(held)
    waiting = outbox.waiting(connection, known[0])[0] - events if known else 0
    due = list(_due(connection, sink, added, is_all=waiting == 0))
    concerned = {contract for contract, _ in added} | {hour.contract for hour in due}
    rows = [row for row in read_contracts(connection) if row.contract in concerned] if concerned else []
    gaps = [gap for gap in read_gaps(connection) if gap.contract in concerned] if due else []
    return Facts(
        head,
        due,
        {
            contract: [(gap.window, gap.kind) for gap in gaps if gap.contract == contract]
            for contract in {gap.contract for gap in gaps}
        },
        [
            ContractRow(row.contract, row.fetched, row.new, row.seen, row.filtered, row.origin, row.watermark)
            for row in rows
        ],
        assigned=known[0].sink.assigned if known else 0,
        delivered=known[0].sink.delivered + events if known else 0,
        dead=known[0].sink.dead if known else 0,
        waiting=waiting,
    )


def _due(
    connection: sqlite3.Connection, sink: str, added: Mapping[tuple[str, int], Mapping[int, int]], *, is_all: bool
) -> Iterator[DueHour]:
    rows = connection.execute(
        "SELECT contract, day FROM archive_days WHERE sink = ? AND is_open ORDER BY contract, day LIMIT ?",
        (sink, _MOST_DAYS),
    ).fetchall()
    for contract, day in sorted({*rows, *added}):
        known = _read_day(connection, sink, contract, day)
        hours = added.get((contract, day), {})
        known.add(hours)
        for hour, api, held in known.due(is_all=is_all, added=hours):
            yield DueHour(contract, day * DAY_SECONDS + hour * HOUR_SECONDS, api, held)


def _read_day(connection: sqlite3.Connection, sink: str, contract: str, day: int) -> Day:
    row = connection.execute(
        "SELECT counts FROM archive_days WHERE sink = ? AND contract = ? AND day = ?", (sink, contract, day)
    ).fetchone()
    try:
        return Day(row[0] if row else None)
    except ValueError as error:
        raise DamagedRowError(f"{error} (archive {sink}, contract {contract})") from error


def _change_day(
    connection: sqlite3.Connection, sink: str, contract: str, day: int, change: Callable[[Day], None]
) -> None:
    known = _read_day(connection, sink, contract, day)
    change(known)
    connection.execute(
        "INSERT OR REPLACE INTO archive_days (sink, contract, day, counts, is_open) VALUES (?, ?, ?, ?, ?)",
        (sink, contract, day, known.encoded(), known.is_open),
    )


def _by_day(held: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], dict[int, int]]:
    """Counts by contract and hour's start as counts by contract and day, and in it by hour."""
    days: dict[tuple[str, int], dict[int, int]] = {}
    for (contract, start), count in held.items():
        place = _hour_of(contract, start)
        days.setdefault((contract, place.day), {})[place.hour] = count
    return days


def _hour_of(contract: str, start: int) -> _Hour:
    return _Hour(contract, start // DAY_SECONDS, start % DAY_SECONDS // HOUR_SECONDS)


def _seconds_of(hour: str) -> int:
    return int(datetime.fromisoformat(hour).replace(tzinfo=UTC).timestamp())
