"""Gaps as rows, and the rules by which a window changes the gaps of its contract. Pure.

Rows stay few: a span of the same kind directly after a gap makes it longer, and beyond `_MOST` gaps of a contract the nearest
open gap of the kind grows over the space between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from poller.core.gaps import LONGEST_WAIT_SECONDS, Unread, merged, without
from poller.core.windows import Window

_MOST = 500
KEPT_BYTES = 64 * 1024
"""Maximum bytes that are kept of an unusable entry."""


class Gap(NamedTuple):
    """A span that could not be read whole. Times in unix seconds.

    `kind` is one of `poller.core.gaps`, `reason` the API's words. It is tried again at `next_try_at`, unless a person has
    accepted it. `is_narrow`: whether its ends were searched; otherwise all of it except one second could be readable.
    """

    id: int
    contract: str
    start: int
    end: int
    kind: str
    reason: str
    first_seen: int
    tries: int
    next_try_at: int
    is_accepted: bool
    is_narrow: bool

    @property
    def window(self) -> Window:
        return Window(self.start, self.end)

    @property
    def is_open(self) -> bool:
        """Whether it is tried again and needs attention."""
        return not self.is_accepted

    def is_due(self, now: float) -> bool:
        """Whether it is tried again now. A wait beyond the longest possible one was made by a clock that was ahead."""
        return self.is_open and not now < self.next_try_at <= now + LONGEST_WAIT_SECONDS


def first_in_turn(gap: Gap, gaps: Iterable[Gap], now: int) -> int:
    """The due time of a gap that the next poll of its contract tries before other due gaps."""
    others = (other.next_try_at for other in gaps if other.contract == gap.contract and other.id != gap.id)
    return min([now, *(due - 1 for due in others)])


class Entry(NamedTuple):
    """An unusable entry: its first bytes, and its length."""

    content: bytes
    size_bytes: int


class Insert(NamedTuple):
    """A new gap. Its number is negative until the backend gives it one; later changes name it by the negative number."""

    gap: Gap


class Update(NamedTuple):
    """A changed gap."""

    gap: Gap


class Delete(NamedTuple):
    """The removal of a gap and of its entries."""

    gap: int


class ClearEntries(NamedTuple):
    """The removal of the entries of a gap."""

    gap: int


class MoveEntries(NamedTuple):
    """The move of the entries of a gap to another one."""

    gap: int
    to: int


class KeepEntries(NamedTuple):
    """More entries of a gap: up to `KEPT_ENTRIES` in all, each cut to `KEPT_BYTES`."""

    gap: int
    entries: Sequence[bytes]


Change = Insert | Update | Delete | ClearEntries | MoveEntries | KeepEntries


class Settled(NamedTuple):
    """The effect of a window on the gaps of its contract: the changes, in order, and the opened and closed gaps.

    `read_from` is the start of the first span that was in a gap and is in none any more: no audit has compared it.
    """

    changes: Sequence[Change] = ()
    opened: Sequence[Gap] = ()
    closed: Sequence[Gap] = ()
    read_from: int | None = None


def settled(
    gaps: Sequence[Gap], contract: str, window: Window, unread: Iterable[Unread], now: int, next_try_at: int
) -> Settled:
    """The changes of the gaps of a contract (oldest first) after a window was read, with its `unread` spans.

    Of gaps in the window, only these spans and the parts outside of the window are left. New gaps are due at `next_try_at`, or at
    once if they are not narrow.
    """
    book = _Book(contract, gaps)
    left = merged(unread)
    closed = []
    read: list[int] = []
    for gap in gaps:
        if gap.end <= window.start or window.end <= gap.start:
            continue
        rest = [Unread(part, gap.kind, gap.reason, (), gap.is_narrow) for part in without(gap.window, [window])]
        within, left = _within(gap, left)
        parts = merged([*rest, *within])
        read += (part.start for part in without(gap.window, [part.window for part in parts]))
        if parts:
            book.replace(gap, parts)
        else:
            book.delete(gap)
            closed.append(gap)
    opened = {book.open(part, now, next_try_at) for part in merged(left)}
    return Settled(book.changes, [gap for gap in book.gaps() if gap.id in opened], closed, min(read, default=None))


def _within(gap: Gap, parts: Iterable[Unread]) -> tuple[list[Unread], list[Unread]]:
    """The parts that a gap becomes, and the others. An accepted gap never grows."""
    within, others = [], []
    for part in parts:
        start, end = max(part.window.start, gap.start), min(part.window.end, gap.end)
        if start >= end:
            others.append(part)
        elif gap.is_open:
            within.append(part)
        else:
            within.append(part._replace(window=Window(start, end)))
            others += [part._replace(window=rest) for rest in without(part.window, [gap.window])]
    return within, others


class _Book:
    """The gaps of a contract while changes to them are noted."""

    def __init__(self, contract: str, gaps: Iterable[Gap]) -> None:
        self.changes: list[Change] = []
        self._contract = contract
        self._by_id = {gap.id: gap for gap in gaps}
        self._new_count = 0

    def gaps(self) -> list[Gap]:
        """The current gaps, oldest first."""
        return sorted(self._by_id.values(), key=lambda gap: gap.start)

    def replace(self, gap: Gap, parts: Sequence[Unread]) -> None:
        """Replace a gap by its parts, at least one; the first one keeps its number."""
        first, *others = parts
        start, end = first.window
        self._update(
            gap._replace(start=start, end=end, kind=first.kind, reason=first.reason, is_narrow=first.is_narrow)
        )
        if first.entries:
            self.changes.append(ClearEntries(gap.id))
        self._keep(gap.id, first)
        for part in others:
            self._insert(part, gap.first_seen, gap.next_try_at, tries=gap.tries)

    def delete(self, gap: Gap) -> None:
        del self._by_id[gap.id]
        self.changes.append(Delete(gap.id))

    def open(self, part: Unread, now: int, next_try_at: int) -> int | None:
        """Add a part as a new gap, or make a gap longer by it.  Returns: the number of a new gap."""
        gaps = self.gaps()
        near = [gap for gap in gaps if gap.is_open and gap.kind == part.kind and gap.is_narrow == part.is_narrow]
        touching = [gap for gap in near if gap.start <= part.window.end and part.window.start <= gap.end]
        if not touching and len(gaps) >= _MOST:
            # An accepted gap does not change, and a part of another kind is a gap of its own.
            same = [gap for gap in gaps if gap.is_open and gap.kind == part.kind]
            touching = sorted(same, key=lambda gap: abs(gap.start - part.window.start))[:1]
        if not touching:
            return self._insert(part, now, next_try_at if part.is_narrow else now)
        self._widen(touching, part)
        return None

    def _widen(self, gaps: Sequence[Gap], part: Unread) -> None:
        """Make the first of the gaps cover all of them and the part."""
        first, *others = gaps
        start = min(part.window.start, *(gap.start for gap in gaps))
        end = max(part.window.end, *(gap.end for gap in gaps))
        for other in others:
            self.changes.append(MoveEntries(other.id, first.id))
            self.delete(other)
        self._update(first._replace(start=start, end=end, reason=part.reason))
        self._keep(first.id, part)

    def _insert(self, part: Unread, first_seen: int, next_try_at: int, *, tries: int = 0) -> int:
        self._new_count += 1
        gap = Gap(
            -self._new_count, self._contract, *part.window, part.kind, part.reason, first_seen, tries, next_try_at,
            is_accepted=False, is_narrow=part.is_narrow,
        )  # fmt: skip
        self._by_id[gap.id] = gap
        self.changes.append(Insert(gap))
        self._keep(gap.id, part)
        return gap.id

    def _update(self, gap: Gap) -> None:
        self._by_id[gap.id] = gap
        self.changes.append(Update(gap))

    def _keep(self, gap: int, part: Unread) -> None:
        if part.entries:
            self.changes.append(KeepEntries(gap, part.entries))
