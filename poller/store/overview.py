"""What the state says of itself at one moment: what `status`, `/metrics` and the books are made of. Reads only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from poller.core.events import Event
from poller.core.windows import format_time
from poller.store import dead_letters, ledger, outbox
from poller.store.contracts import Contract, Range, read_contracts, read_filtered, read_ranges
from poller.store.database import CREATED_AT, Database, Reader
from poller.store.dead_letters import NO_LETTERS, LetterBooks
from poller.store.gaps import Gap, read_gaps
from poller.store.journal import JournalEntry, read_journal
from poller.store.outbox import Sink, Size


class SinkOverview(NamedTuple):
    """A sink, what waits for it (counted, not derived from its books), since when, and its dead letters at hand."""

    sink: Sink
    waiting: int
    waiting_since: int | None
    dead_letters: int

    @property
    def is_balanced(self) -> bool:
        """What was assigned to it is delivered, dead or waiting: nothing else can have become of it."""
        return self.sink.assigned == self.sink.delivered + self.sink.dead + self.waiting


FINISHED = "finished"
"""The fact that a backfill leaves when it is complete."""
_AHEAD_SECONDS = 60
_SHOWN_SECONDS = 7 * 86_400
_MOST_LINES = 5


class TakenBack(NamedTuple):
    """When a watermark that a clock ahead had made was taken back last, and to which time. In unix seconds."""

    at: int
    watermark: int


class Overview(NamedTuple):
    """The whole state, read in one transaction. `pending` are the spans that are still to be read besides the present.

    `letters` are the books of dead letters by sink, also of sinks that were forgotten. `created_at` is when the state was made,
    in unix seconds; None where a program made it that did not note it. `last_action` is what a person did last. `finished` is
    when a backfill had exported all of its range; None for what goes on.
    """

    contracts: list[Contract]
    sinks: list[SinkOverview]
    outbox: Size
    filtered: dict[str, int]
    pending: Sequence[Range] = ()
    letters: Mapping[str, LetterBooks] = {}
    taken_back: TakenBack | None = None
    gaps: Sequence[Gap] = ()
    created_at: int | None = None
    last_action: JournalEntry | None = None
    finished: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether it is a backfill that has nothing left to do, and nothing that a person should see."""
        has_rest = any(row.waiting or row.dead_letters for row in self.sinks) or any(gap.is_open for gap in self.gaps)
        return self.finished is not None and not has_rest and not self.imbalances()

    def clock_troubles(self, now: float) -> list[str]:
        """What the state shows of a clock of ours that is or was ahead, in a line each. `now` in unix seconds."""
        ahead = [row for row in self.contracts if row.watermark > now + _AHEAD_SECONDS]
        lines = [
            f"contract {row.contract}: complete up to {format_time(row.watermark)}, which lies ahead of this machine's clock:"
            " one of the two is wrong, and the next poll takes it back"
            for row in ahead[:_MOST_LINES]
        ]
        if self.taken_back and 0 <= now - self.taken_back.at < _SHOWN_SECONDS:
            at, watermark = map(format_time, self.taken_back)
            lines.append(
                f"this machine's clock was wrong: on {at} what was complete was taken back to {watermark}, and read again"
            )
        return lines

    def imbalances(self) -> list[str]:
        """What does not add up, in a line each; empty when the books balance."""
        lines = [
            f"contract {row.contract}: fetched {row.fetched}, but new {row.new} + seen before {row.seen}"
            f" + filtered {row.filtered} = {row.new + row.seen + row.filtered}"
            for row in self.contracts
            if row.fetched != row.new + row.seen + row.filtered
        ]
        lines += [
            f"sink {row.sink.name}: assigned {row.sink.assigned}, but delivered {row.sink.delivered} + dead {row.sink.dead}"
            f" + waiting {row.waiting} = {row.sink.delivered + row.sink.dead + row.waiting}"
            for row in self.sinks
            if not row.is_balanced
        ]
        lines += [
            f"dead letters of {sink}: written {row.written}, but at hand {row.at_hand} + replayed {row.replayed}"
            f" + purged {row.purged} = {row.at_hand + row.replayed + row.purged}"
            for sink, row in self.letters.items()
            if not row.is_balanced
        ]
        by_contract, by_reason = sum(row.filtered for row in self.contracts), sum(self.filtered.values())
        if by_contract != by_reason:
            lines.append(f"filtered: {by_contract} by contract, but {by_reason} by reason")
        return lines


def overview(database: Database) -> Overview:
    """The state of a database that this process has open.  Raises: StateError."""
    with database.reading() as connection:
        return _read(connection)


def overview_of(path: Path) -> Overview:
    """The state in a file, whether or not another process is writing to it.  Raises: StateError."""
    with closing(Reader(path)) as reader, reader.reading() as connection:
        return _read(connection)


def journal_of(path: Path, *, since: int, limit: int | None) -> list[JournalEntry]:
    """What people did to the state in a file, as `read_journal` gives it.  Raises: StateError."""
    with closing(Reader(path)) as reader, reader.reading() as connection:
        return read_journal(connection, since=since, limit=limit)


class OtherLedger:
    """What another use, such as `run`, has collected and sent to some sinks. Reads its file, which may be in use."""

    def __init__(self, path: Path, sinks: Sequence[str]) -> None:
        """`sinks`: only what was collected since all of these were known to that use counts.

        Raises: StateError when the file cannot be read.
        """
        with ExitStack() as on_failure:
            self._reader = on_failure.enter_context(closing(Reader(path)))
            with self._reader.reading() as connection:
                known = {sink.name: sink.ledger_id for sink in outbox.read_sinks(connection)}
            on_failure.pop_all()
        self.knows_sinks = all(sink in known for sink in sinks)
        self._after_id = max((known.get(sink, 0) for sink in sinks), default=0)

    def unseen(self, contract: str, events: Sequence[Event]) -> Sequence[Event]:
        """Those of the events that it has not collected, in the same order."""
        if not self.knows_sinks:
            return events
        with self._reader.reading() as connection:
            return ledger.unseen(connection, contract, events, after_id=self._after_id)

    def close(self) -> None:
        self._reader.close()


def _read(connection: sqlite3.Connection) -> Overview:
    with _snapshot(connection):
        letters = dead_letters.read_books(connection)
        sinks = [
            SinkOverview(sink, *outbox.waiting(connection, sink), letters.get(sink.name, NO_LETTERS).at_hand)
            for sink in outbox.read_sinks(connection)
        ]
        size = Size(*connection.execute("SELECT events, bytes, letter_bytes FROM outbox_size").fetchone())
        pending = read_ranges(connection)
        return Overview(
            read_contracts(connection),
            sinks,
            size,
            read_filtered(connection),
            pending,
            letters,
            _read_taken_back(connection),
            read_gaps(connection),
            int(created) if (created := _fact(connection, CREATED_AT)) else None,
            next(iter(read_journal(connection, limit=1)), None),
            _fact(connection, FINISHED),
        )


def _read_taken_back(connection: sqlite3.Connection) -> TakenBack | None:
    value = _fact(connection, "taken_back")
    return TakenBack(*map(int, value.split())) if value else None


def _fact(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Queries that see one and the same moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
