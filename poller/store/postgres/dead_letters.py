"""Dead letters: events that a sink refused for good, kept with the reason until a person replays or purges them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from poller.core.events import Event
from poller.store.journal import Action
from poller.store.letters import PIECE_LETTERS, LetterBooks, StoredLetter, by_size, pieces
from poller.store.postgres import moving, outbox
from poller.store.postgres.database import Connection, Database
from poller.store.postgres.journal import Acted, write_by

_NUMBERS = 1 << 63  # the database refuses larger numbers


class DeadLetters:
    """The tables `dead_letters` and `letter_books` of one use. Reads and commits in pieces."""

    def __init__(self, database: Database, use: int) -> None:
        self._database = database
        self._use = use

    def numbers(self, sink: str | None = None, ids: Sequence[int] = ()) -> list[int]:
        query = (
            "SELECT id FROM dead_letters WHERE use_id = %s AND (%s::text IS NULL OR sink = %s)"
            " AND (%s OR id = ANY(%s::bigint[])) ORDER BY id"
        )
        possible = [id_ for id_ in ids if abs(id_) < _NUMBERS]  # a person may type any number
        values = (self._use, sink, sink, not ids, possible)
        return self._database.read(lambda connection: [row[0] for row in connection.execute(query, values)])

    def each(self, numbers: Sequence[int]) -> Iterator[StoredLetter]:
        query = f"SELECT {', '.join(StoredLetter._fields)} FROM dead_letters WHERE use_id = %s AND id = ANY(%s)"
        lengths = "SELECT id, length(line) FROM dead_letters WHERE use_id = %s AND id = ANY(%s)"
        for start in range(0, len(numbers), PIECE_LETTERS):
            chosen = list(numbers[start : start + PIECE_LETTERS])
            sizes = dict(self._rows(lengths, chosen))
            for piece in by_size([number for number in chosen if number in sizes], sizes.__getitem__):
                letters = {row[0]: StoredLetter(*row) for row in self._rows(query, piece)}
                yield from (letters[number] for number in piece if number in letters)

    def _rows(self, query: str, numbers: list[int]) -> list[tuple[Any, ...]]:
        values = (self._use, numbers)
        return self._database.read(lambda connection: connection.execute(query, values, binary=True).fetchall())

    def find(self, sink: str | None = None, ids: Sequence[int] = (), limit: int | None = None) -> list[StoredLetter]:
        return list(self.each(self.numbers(sink, ids)[:limit]))

    def replay(self, letters: Iterable[StoredLetter], now: int, *, by: Action | None = None) -> int:
        return sum(
            write_by(self._database, self._use, by, partial(self._replay, letters=piece, now=now))
            for piece in pieces(letters)
        )

    def _replay(self, connection: Connection, letters: Sequence[StoredLetter], now: int) -> Acted[int]:
        use = self._use
        last = dict(
            connection.execute(
                "SELECT contract, segment FROM contracts WHERE use_id = %s AND contract = ANY(%s) ORDER BY contract FOR UPDATE",
                (use, sorted({letter.contract for letter in letters})),
            ).fetchall()
        )
        known = {sink.name for sink in outbox.read_sinks(connection, use)}
        chosen = [letter for letter in letters if letter.sink in known and letter.contract in last]
        gone = self._delete(connection, chosen)
        by_contract = sorted(
            (letter for letter in chosen if letter.id in gone),
            key=lambda letter: (letter.contract, letter.sink, letter.time_us, letter.id),
        )
        for (contract, sink), group in groupby(by_contract, lambda letter: (letter.contract, letter.sink)):
            members = list(group)
            moving.ensure_places(connection, use, sink, [contract])
            events = [Event(letter.time_us, letter.identity, letter.line, ordinal=letter.ordinal) for letter in members]
            size = outbox.put(connection, use, contract, last[contract], events, now, only_for=sink)
            last[contract] += size.segments
            connection.execute(
                "UPDATE contracts SET segment = %s, outbox_events = outbox_events + %s, outbox_bytes = outbox_bytes + %s"
                " WHERE use_id = %s AND contract = %s",
                (last[contract], size.events, size.bytes, use, contract),
            )
            connection.execute(
                "UPDATE places SET dead = dead - %s WHERE use_id = %s AND sink = %s AND contract = %s",
                (len(members), use, sink, contract),
            )
            weight = sum(len(letter.line) for letter in members)
            moving.count_letters(connection, use, sink, replayed=len(members), size=-weight)
        return Acted(len(by_contract), len(by_contract), is_recorded=bool(by_contract))

    def purge(self, letters: Iterable[StoredLetter], *, by: Action | None = None) -> int:
        return sum(
            write_by(self._database, self._use, by, partial(self._purge, letters=piece)) for piece in pieces(letters)
        )

    def _purge(self, connection: Connection, letters: Sequence[StoredLetter]) -> Acted[int]:
        gone = self._delete(connection, letters)
        purged: Counter[str] = Counter()
        weight: Counter[str] = Counter()
        for letter in letters:
            if letter.id in gone:
                purged[letter.sink] += 1
                weight[letter.sink] += len(letter.line)
        for sink in sorted(purged):
            moving.count_letters(connection, self._use, sink, purged=purged[sink], size=-weight[sink])
        return Acted(len(gone), len(gone), is_recorded=bool(gone))

    def _delete(self, connection: Connection, letters: Sequence[StoredLetter]) -> set[int]:
        """Delete the letters that are unchanged: after a failover, a number may be another letter's.  Returns: their numbers."""
        rows = connection.execute(
            "DELETE FROM dead_letters WHERE use_id = %s AND (id, sink, contract, identity) IN"
            " (SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::bytea[])) RETURNING id",
            (
                self._use,
                *([getattr(letter, name) for letter in letters] for name in ("id", "sink", "contract", "identity")),
            ),
        )
        return {row[0] for row in rows}


def read_books(connection: Connection, use: int) -> dict[str, LetterBooks]:
    """The books of the letters, by sink. The existing letters are counted; their number is not in the table of the books."""
    rows = connection.execute(
        "SELECT sink, coalesce(b.written, 0), coalesce(h.count, 0), coalesce(b.replayed, 0), coalesce(b.purged, 0)"
        " FROM (SELECT * FROM letter_books WHERE use_id = %s) b FULL JOIN"
        " (SELECT sink, count(*) AS count FROM dead_letters WHERE use_id = %s GROUP BY sink) h USING (sink) ORDER BY sink",
        (use, use),
    )
    return {sink: LetterBooks(*numbers) for sink, *numbers in rows}
