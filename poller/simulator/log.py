"""One contract's log: its entries, when they happened and from when on they are shown.

Invariants: `_times` is sorted and `_refs` is parallel to it. An entry that is not shown yet is only in
`_pending`, so a query is two binary searches and a slice. Bodies are rendered on request: a generated entry
takes 16 bytes.
"""

from __future__ import annotations

import heapq
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import msgspec

from poller.simulator.entries import EntryMaker, is_whole_second

VisibleAt = Callable[[int], float]  # from an entry's time in ms to the clock time in seconds from which it is shown

_FEW = 50  # inserting up to this many one by one is faster than sorting all again
_BLOCK = 20_000  # maximum number of generated entries that are objects at the same time


class Page(NamedTuple):
    total: int
    refs: list[tuple[int, int]]  # (ref, time_ms); a ref below 0: a given entry, not a generated one


class ContractLog:
    """Entries of one contract. Safe to use from many threads."""

    def __init__(self, maker: EntryMaker, *, live_per_second: float = 0.0) -> None:
        self._maker = maker
        self._lock = threading.Lock()
        self._times = array("q")
        self._refs = array("q")
        self._given: list[bytes] = []
        self._pending: list[tuple[float, int, int]] = []  # heap of (visible_at, time_ms, ref)
        self._generated = 0
        self._live_step = 1 / live_per_second if live_per_second else 0.0
        self._live_next = time.time() + self._live_step

    def generate(self, count: int, start_ms: int, span_ms: int, visible_at: VisibleAt | None) -> None:
        """Add `count` generated entries, spread over [start_ms, start_ms + span_ms).

        `visible_at` returns the clock time from which an entry is shown; None: at once.
        """
        step, salt = max(1, span_ms // max(1, count)), self._maker.salt
        with self._lock:
            first, self._generated = self._generated, self._generated + count
            for block in range(0, count, _BLOCK):
                entries = [
                    (start_ms + i * span_ms // count + (i * 2654435761 + salt) % step, first + i)
                    for i in range(block, min(block + _BLOCK, count))
                ]
                self._admit(_some_at_whole_seconds(entries), visible_at)

    def give(self, bodies: Iterable[tuple[int, bytes]], visible_at: VisibleAt | None) -> None:
        """Add given entries, unchanged: (time_ms, JSON)."""
        with self._lock:
            admitted = []
            for time_ms, body in bodies:
                self._given.append(body)
                admitted.append((time_ms, -len(self._given)))
            self._admit(admitted, visible_at)

    def hide(self, since_ms: int, visible_at: VisibleAt | None) -> None:
        """Decide again from when the entries from `since_ms` on are shown. Changes only entries that are shown now."""
        with self._lock:
            cut = bisect_left(self._times, since_ms)
            entries = list(zip(self._times[cut:], self._refs[cut:], strict=True))
            del self._times[cut:], self._refs[cut:]
            self._admit(entries, visible_at)

    def page(self, start_ms: int, end_ms: int, offset: int, limit: int, *, oldest_first: bool = False) -> Page:
        """Entries with start_ms <= time < end_ms that are shown now: how many, and up to `limit` of them from `offset` on."""
        with self._lock:
            self._reveal()
            low, high = bisect_left(self._times, start_ms), bisect_left(self._times, end_ms)
            if oldest_first:
                first = min(low + offset, high)
                part = slice(first, min(first + limit, high))
            else:
                last = max(high - offset, low)
                part = slice(max(last - limit, low), last)
            refs = list(zip(self._refs[part], self._times[part], strict=True))
        if not oldest_first:
            refs.reverse()
        return Page(max(0, high - low), refs)

    def bodies(self, page: Page) -> list[bytes]:
        """The entries of a page as JSON."""
        render, given = self._maker.render, self._given
        return [render(ref, time_ms) if ref >= 0 else given[~ref] for ref, time_ms in page.refs]

    def joined(self, page: Page, head: bytes, between: bytes, tail: bytes) -> bytes:
        """`between`.join of the entries of a page that has any, with `head` before and `tail` after."""
        make, given, parts = self._maker.pieces, self._given, [head]
        for ref, time_ms in page.refs:
            parts += make(ref, time_ms) if ref >= 0 else (given[~ref],)
            parts.append(between)
        parts[-1] = tail
        return b"".join(parts)

    def ids(self, page: Page) -> list[bytes]:
        """The ids that the API's storage gives to the entries of a page."""
        return [self._maker.id_of(ref) if ref >= 0 else b"given-%d" % ~ref for ref, _ in page.refs]

    def all(self, *, visible_only: bool = False) -> Iterator[bytes]:
        """Every entry as compact JSON, oldest first; also those not shown yet, unless `visible_only`."""
        with self._lock:
            self._reveal()
            times, refs = self._times[:], self._refs[:]
            hidden = [] if visible_only else sorted((time_ms, ref) for _, time_ms, ref in self._pending)
        for time_ms, ref in heapq.merge(zip(times, refs, strict=True), hidden, key=lambda entry: entry[0]):
            if ref >= 0:
                yield self._maker.render(ref, time_ms)
            else:
                yield msgspec.json.format(self._given[~ref], indent=-1)

    def counts(self) -> tuple[int, int]:
        """(all entries, those shown now)."""
        with self._lock:
            self._reveal()
            return len(self._times) + len(self._pending), len(self._times)

    def _admit(self, entries: Iterable[tuple[int, int]], visible_at: VisibleAt | None) -> None:
        if visible_at is None:
            self._insert(list(entries))
            return
        now, shown = time.time(), []
        for time_ms, ref in entries:
            at = visible_at(time_ms)
            if at > now:
                heapq.heappush(self._pending, (at, time_ms, ref))
            else:
                shown.append((time_ms, ref))
        self._insert(shown)

    def _reveal(self) -> None:
        now, due = time.time(), []
        while self._live_step and self._live_next <= now:
            due.append((int(self._live_next * 1000), self._generated))
            self._generated += 1
            self._live_next += self._live_step
        while self._pending and self._pending[0][0] <= now:
            due.append(heapq.heappop(self._pending)[1:])
        if due:
            self._insert(due)

    def _insert(self, entries: list[tuple[int, int]]) -> None:
        if len(entries) <= _FEW:
            for time_ms, ref in entries:
                place = bisect_right(self._times, time_ms)
                self._times.insert(place, time_ms)
                self._refs.insert(place, ref)
            return
        is_in_order = not self._times or self._times[-1] <= entries[0][0]
        self._times.extend(time_ms for time_ms, _ in entries)
        self._refs.extend(ref for _, ref in entries)
        if not is_in_order or any(a[0] > b[0] for a, b in pairwise(entries)):
            order = sorted(range(len(self._times)), key=self._times.__getitem__)
            self._times = array("q", (self._times[i] for i in order))
            self._refs = array("q", (self._refs[i] for i in order))


def _some_at_whole_seconds(entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted entries. Those that may have a time without a fraction are moved to the whole second, if this keeps the order."""
    moved = entries[:1]
    for time_ms, ref in entries[1:]:
        whole_ms = time_ms - time_ms % 1000
        moved.append((whole_ms if is_whole_second(ref) and whole_ms >= moved[-1][0] else time_ms, ref))
    return moved
