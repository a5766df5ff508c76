"""Dead letters: events that a sink refused for good, kept with the reason until a person replays or purges them.

There may be hundreds of thousands. A method that works on many of them does so in pieces, each a short transaction.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from poller.core.events import Event
from poller.store.journal import Action
from poller.store.letters import PIECE_BYTES, PIECE_LETTERS, LetterBooks, StoredLetter, pieces
from poller.store.sqlite import outbox, spots
from poller.store.sqlite.database import Database
from poller.store.sqlite.journal import record


class DeadLetters:
    """The tables `dead_letters` and `letter_books`. Reads and commits in pieces, each committed whole or not at all."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def numbers(self, sink: str | None = None, ids: Sequence[int] = ()) -> list[int]:
        with self._database.reading() as connection:
            # This query reads only the index, because a letter may be large.
            rows = connection.execute("SELECT id FROM dead_letters WHERE ?1 IS NULL OR sink = ?1", (sink,))
            wanted = set(ids)
            return sorted(id_ for (id_,) in rows if not wanted or id_ in wanted)

    def each(self, numbers: Sequence[int]) -> Iterator[StoredLetter]:
        query = f"SELECT {', '.join(StoredLetter._fields)} FROM dead_letters WHERE id = ?"
        start = 0
        while start < len(numbers):
            letters: list[StoredLetter] = []
            size = 0
            with self._database.reading() as connection:
                while start < len(numbers) and len(letters) < PIECE_LETTERS and size < PIECE_BYTES:
                    letters += map(StoredLetter._make, connection.execute(query, (numbers[start],)))
                    size += len(letters[-1].line) if letters else 0
                    start += 1
            yield from letters

    def find(self, sink: str | None = None, ids: Sequence[int] = (), limit: int | None = None) -> list[StoredLetter]:
        return list(self.each(self.numbers(sink, ids)[:limit]))

    def replay(self, letters: Iterable[StoredLetter], now: int, *, by: Action | None = None) -> int:
        return sum(self._replay(piece, now, by) for piece in self._database.in_pieces(pieces(letters)))

    def _replay(self, letters: Sequence[StoredLetter], now: int, by: Action | None) -> int:
        replayed = 0
        with self._database.transaction() as connection:
            known = {row.sink.name for row in spots.read_sinks(connection)}
            chosen = sorted(
                (letter for letter in letters if letter.sink in known),
                key=lambda letter: (letter.sink, letter.contract, letter.time_us, letter.id),
            )
            for (sink, contract), group in groupby(chosen, lambda letter: (letter.sink, letter.contract)):
                members = [letter for letter in group if _delete(connection, letter.id)]
                events = [
                    Event(letter.time_us, letter.identity, letter.line, ordinal=letter.ordinal) for letter in members
                ]
                outbox.put(connection, contract, events, now, only_for=sink)
                connection.execute("UPDATE sinks SET dead = dead - ? WHERE name = ?", (len(members), sink))
                spots.count_letters(connection, sink, replayed=len(members))
                replayed += len(members)
            if replayed:
                record(connection, by, replayed)
        return replayed

    def purge(self, letters: Iterable[StoredLetter], *, by: Action | None = None) -> int:
        return sum(self._purge(piece, by) for piece in self._database.in_pieces(pieces(letters)))

    def _purge(self, letters: Sequence[StoredLetter], by: Action | None) -> int:
        with self._database.transaction() as connection:
            purged = Counter(letter.sink for letter in letters if _delete(connection, letter.id))
            for sink, count in purged.items():
                spots.count_letters(connection, sink, purged=count)
            if purged:
                record(connection, by, purged.total())
        return purged.total()


def read_books(connection: sqlite3.Connection) -> dict[str, LetterBooks]:
    """The books of the letters, by sink. The existing letters are counted; their number is not in the table of the books."""
    at_hand = dict(connection.execute("SELECT sink, count(*) FROM dead_letters GROUP BY sink").fetchall())
    books = {
        sink: LetterBooks(written, at_hand.pop(sink, 0), replayed, purged)
        for sink, written, replayed, purged in connection.execute("SELECT * FROM letter_books ORDER BY sink")
    }
    return books | {sink: LetterBooks(at_hand=count) for sink, count in at_hand.items()}


def _delete(connection: sqlite3.Connection, id_: int) -> bool:
    return connection.execute("DELETE FROM dead_letters WHERE id = ?", (id_,)).rowcount == 1
