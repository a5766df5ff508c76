"""Dead letters: events that a sink refused for good, kept with the reason until a person replays or purges them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from poller.events import Event
from poller.store import outbox
from poller.store.database import Database


class StoredLetter(NamedTuple):
    """One dead letter as it lies in the state. `died_at` in unix seconds, `collected_at` too, `time_us` in microseconds."""

    id: int
    sink: str
    contract: str
    time_us: int
    collected_at: int
    identity: bytes
    ordinal: int
    line: bytes
    status: int | None
    reason: str
    died_at: float


class DeadLetters:
    """The table `dead_letters`. Every method is one transaction or one read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, sink: str | None = None, ids: Sequence[int] = (), limit: int = -1) -> list[StoredLetter]:
        """Letters of a sink (None: of all), and of these only `ids` if given, oldest first, at most `limit`."""
        with self._database.reading() as connection:
            return find(connection, sink, ids, limit)

    def replay(self, letters: Iterable[StoredLetter], now: int) -> int:
        """Put letters back into the outbox, each for the sink that refused it, as if collected `now` (unix seconds).

        They come after newer ones, and a sink that minds (Loki) tells that from when they were collected.

        Commits: the events as segments of their sink alone, the books, and the end of the letters. Returns how many.
        """
        replayed = 0
        with self._database.transaction() as connection:
            known = {sink.name for sink in outbox.read_sinks(connection)}
            chosen = sorted(
                (letter for letter in letters if letter.sink in known),
                key=lambda letter: (letter.sink, letter.contract, letter.time_us, letter.id),
            )
            for (sink, contract), group in groupby(chosen, lambda letter: (letter.sink, letter.contract)):
                members = [letter for letter in group if _delete(connection, letter.id)]
                events = [
                    Event(letter.time_us, letter.identity, letter.line, ordinal=letter.ordinal) for letter in members
                ]
                outbox.put(connection, contract, outbox.encode(events), now, only_for=sink)
                connection.execute("UPDATE sinks SET dead = dead - ? WHERE name = ?", (len(members), sink))
                replayed += len(members)
        return replayed

    def purge(self, letters: Iterable[StoredLetter]) -> int:
        """Commits: the end of letters, for good. Their sink's books go on counting them as dead. Returns how many."""
        with self._database.transaction() as connection:
            return sum(_delete(connection, letter.id) for letter in letters)


def find(
    connection: sqlite3.Connection, sink: str | None = None, ids: Sequence[int] = (), limit: int = -1
) -> list[StoredLetter]:
    rows = connection.execute(
        "SELECT " + ", ".join(StoredLetter._fields) + " FROM dead_letters WHERE (?1 IS NULL OR sink = ?1) ORDER BY id",
        (sink,),
    )
    found: list[StoredLetter] = []
    for row in rows:
        if len(found) == limit:
            break
        if not ids or row[0] in ids:
            found.append(StoredLetter(*row))
    return found


def counts(connection: sqlite3.Connection) -> dict[str, int]:
    """How many letters lie there, by sink."""
    return dict(connection.execute("SELECT sink, count(*) FROM dead_letters GROUP BY sink").fetchall())


def _delete(connection: sqlite3.Connection, id_: int) -> bool:
    return connection.execute("DELETE FROM dead_letters WHERE id = ?", (id_,)).rowcount == 1
