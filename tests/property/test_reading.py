"""Reading a window while new entries become visible in it: duplicates are recognised, and no visible entry is skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import event, given
from hypothesis import strategies as st

from poller.core.answers import Page
from poller.core.events import Event
from poller.core.reading import Reading, Split, WindowReader
from poller.core.windows import Limits, Window

WINDOW = Window(0, 100)


class Entry(NamedTuple):
    """An entry that the API shows from its `visible_from`-th request on. Without an id, equal `content` makes equal entries."""

    second: int
    content: int
    visible_from: int
    has_id: bool


class GrowingLog:
    """A log that shows more with every request. It is sorted by time; equal times have a fixed order."""

    def __init__(self, entries: Sequence[Entry], *, is_newest_first: bool, says_total: bool) -> None:
        self._entries = sorted(enumerate(entries), key=lambda item: item[1].second, reverse=is_newest_first)
        self._says_total = says_total
        self.requests = 0

    def visible(self) -> list[Event]:
        return [
            Event(
                entry.second * 1_000_000,
                b"id-%d" % number if entry.has_id else b"content-%d-%d" % (entry.second, entry.content),
                b"{}",
                entry.has_id,
            )
            for number, entry in self._entries
            if entry.visible_from <= self.requests
        ]

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        found = self.visible()
        self.requests += 1
        events = tuple(found[offset : offset + limit])
        return Page(events, len(found) if self._says_total else None, False, 2 * len(events), False)


def entries(*, visible_from: st.SearchStrategy[int], has_id: st.SearchStrategy[bool]) -> st.SearchStrategy[list[Entry]]:
    return st.lists(st.builds(Entry, st.integers(0, 9), st.integers(0, 1), visible_from, has_id), max_size=14)


def by_identity(log: GrowingLog) -> Counter[bytes]:
    return Counter(event.identity for event in log.visible())


def read(log: GrowingLog, page_size: int) -> Reading:
    reading = WindowReader(log, "1", Limits(page_size, 1000, 10**9)).read(WINDOW)
    assert isinstance(reading, Reading)
    return reading


def without_duplicates(events: Sequence[Event], log: GrowingLog) -> Counter[bytes]:
    """How often each content was read. A duplicate counts as its original."""
    originals = {
        duplicate.identity: seen.identity
        for seen in log.visible()
        for duplicate in (seen, *(seen.duplicate(ordinal) for ordinal in range(1, 15)))
    }
    return Counter(originals[event.identity] for event in events)


@given(
    held=entries(visible_from=st.just(0), has_id=st.booleans()),
    page_size=st.integers(1, 5),
    is_newest_first=st.booleans(),
    says_total=st.booleans(),
)
def test_a_window_that_holds_still_is_read_as_it_is_equal_entries_included(
    held: list[Entry], page_size: int, is_newest_first: bool, says_total: bool
) -> None:
    log = GrowingLog(held, is_newest_first=is_newest_first, says_total=says_total)
    reading = read(log, page_size)
    assert reading.is_complete
    assert without_duplicates(reading.events, log) == by_identity(log)
    assert len({event.identity for event in reading.events}) == len(held)
    assert [event.time_us for event in reading.events] == sorted(entry.second * 1_000_000 for entry in held)
    assert reading.fetched >= len(held)


@given(
    held=entries(visible_from=st.just(0) | st.integers(0, 12), has_id=st.booleans()),
    page_size=st.integers(1, 5),
    is_newest_first=st.booleans(),
    says_total=st.booleans(),
)
def test_nothing_visible_at_the_start_is_skipped_and_nothing_comes_twice_while_the_window_grows(
    held: list[Entry], page_size: int, is_newest_first: bool, says_total: bool
) -> None:
    log = GrowingLog(held, is_newest_first=is_newest_first, says_total=says_total)
    at_start = by_identity(log)
    reading = WindowReader(log, "1", Limits(page_size, 1000, 10**9)).read(WINDOW)
    if isinstance(reading, Split) or not reading.is_complete:
        # Every sweep shifted: the result is not used. The window is read again in halves, or becomes a gap.
        event("did not hold still")
        assert max(entry.visible_from for entry in held) > 0
        return
    seen = without_duplicates(reading.events, log)
    assert len({event.identity for event in reading.events}) == len(reading.events)
    assert at_start <= seen
    assert seen <= by_identity(log)
    assert reading.fetched >= len(reading.events)


@given(
    held=entries(visible_from=st.just(0) | st.integers(0, 12), has_id=st.just(True)),
    page_size=st.integers(1, 5),
    is_newest_first=st.booleans(),
)
def test_a_growing_window_of_entries_with_ids_is_always_read_in_the_end(
    held: list[Entry], page_size: int, is_newest_first: bool
) -> None:
    reading = read(GrowingLog(held, is_newest_first=is_newest_first, says_total=True), page_size)
    assert reading.is_complete
