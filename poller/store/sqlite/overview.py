"""Reads a state from its file: the overview for `status` and `/metrics`, the journal, and the events of another use."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from poller.core.events import Event
from poller.core.windows import Window
from poller.store.journal import JournalEntry
from poller.store.letters import NO_LETTERS
from poller.store.overview import FINISHED, Overview, SinkOverview, TakenBack
from poller.store.rows import Contract
from poller.store.sqlite import dead_letters, ledger, spots
from poller.store.sqlite.archives import read_heads
from poller.store.sqlite.contracts import read_contracts, read_fact, read_ranges
from poller.store.sqlite.database import CREATED_AT, Reader
from poller.store.sqlite.gaps import read_gaps
from poller.store.sqlite.journal import read_journal
from poller.store.sqlite.outbox import read_size


def overview_of(path: Path) -> Overview:
    """The state in a file, even while another process writes to it.  Raises: StateError."""
    with closing(Reader(path)) as reader, reader.reading() as connection:
        return read_overview(connection)


def journal_of(path: Path, *, since: int, limit: int | None) -> list[JournalEntry]:
    """The actions of people on the state in a file, as `read_journal` returns them.  Raises: StateError."""
    with closing(Reader(path)) as reader, reader.reading() as connection:
        return read_journal(connection, since=since, limit=limit)


class Collected:
    """The events that another use, such as `run`, has collected and sent to some sinks. Its file may be in use."""

    def __init__(self, path: Path, sinks: Sequence[str]) -> None:
        """Only events that were collected after that use knew all these `sinks` count.

        Raises: StateError if the file cannot be read.
        """
        with ExitStack() as on_failure:
            self._reader = on_failure.enter_context(closing(Reader(path)))
            with self._reader.reading() as connection:
                known = {row.sink.name: row.ledger_id for row in spots.read_sinks(connection)}
            on_failure.pop_all()
        self.knows_sinks = all(sink in known for sink in sinks)
        self._after_id = max((known.get(sink, 0) for sink in sinks), default=0)

    def unseen(self, contract: str, events: Sequence[Event]) -> Sequence[Event]:
        if not self.knows_sinks:
            return events
        with self._reader.reading() as connection:
            return ledger.unseen(connection, contract, events, after_id=self._after_id)

    def unknown(self, contract: str, events: Sequence[Event]) -> Sequence[Event]:
        with self._reader.reading() as connection:
            return ledger.unseen(connection, contract, events)

    def contract(self, contract: str) -> Contract | None:
        with self._reader.reading() as connection:
            return next(iter(read_contracts(connection, contract)), None)

    def accepted_gaps(self, contract: str) -> Sequence[Window]:
        with self._reader.reading() as connection:
            return [gap.window for gap in read_gaps(connection, contract) if gap.is_accepted]

    def forgotten(self, contract: str, window: Window) -> int:
        if not self.knows_sinks:
            return 0
        with self._reader.reading() as connection:
            counts = ledger.counts(connection, contract, window.start, window.end)
        return sum(count.forgotten for count in counts.values())

    def close(self) -> None:
        self._reader.close()


def read_overview(connection: sqlite3.Connection) -> Overview:
    """The state in a file at one moment."""
    connection.execute("BEGIN")  # all queries see the same moment
    try:
        letters = dead_letters.read_books(connection)
        sinks = [
            SinkOverview(
                row.sink,
                *spots.waiting(connection, row),
                letters.get(row.sink.name, NO_LETTERS).at_hand,
                [one for one in spots.read_postponed(connection, row.sink.name) if one.attempts],
            )
            for row in spots.read_sinks(connection)
        ]
        return Overview(
            contracts=read_contracts(connection),
            sinks=sinks,
            outbox=read_size(connection),
            filtered=dict(connection.execute("SELECT reason, count FROM filtered ORDER BY reason").fetchall()),
            pending=read_ranges(connection),
            letters=letters,
            taken_back=TakenBack.of(read_fact(connection, "taken_back")),
            gaps=read_gaps(connection),
            created_at=int(created) if (created := read_fact(connection, CREATED_AT)) else None,
            last_action=next(iter(read_journal(connection, limit=1)), None),
            finished=read_fact(connection, FINISHED),
            replicas=(),
            archives=read_heads(connection),
        )
    finally:
        connection.execute("ROLLBACK")
