"""Dead letters as rows: events that a sink refused for good, and the books of them. Pure values.

There may be hundreds of thousands: what goes through many of them does so in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")

# As many letters, or bytes of entries, are read or changed at once.
PIECE_LETTERS = 1000
PIECE_BYTES = 8 * 1024 * 1024


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


LETTER_COLUMNS = StoredLetter._fields[1:]
"""Those of a new letter: the sink, the fields of an `OutboxEvent` in their order, the status, the reason, and when it died."""


class LetterBooks(NamedTuple):
    """What became of all letters that a sink ever had: how many lie there, were put back, and were deleted by a person."""

    written: int = 0
    at_hand: int = 0
    replayed: int = 0
    purged: int = 0

    @property
    def is_balanced(self) -> bool:
        return self.written == self.at_hand + self.replayed + self.purged


NO_LETTERS = LetterBooks()


def pieces(letters: Iterable[StoredLetter]) -> Iterator[list[StoredLetter]]:
    """As many letters at once as are handled in one step."""
    return by_size(letters, lambda letter: len(letter.line))


def by_size(letters: Iterable[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """The same of what stands for letters; `size_of` gives the bytes of each."""
    piece: list[T] = []
    size = 0
    for letter in letters:
        piece.append(letter)
        size += size_of(letter)
        if len(piece) == PIECE_LETTERS or size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
