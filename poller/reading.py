"""Reading one window whole: page after page until the counts agree, or a word that it must be split.

Trusts counts, not hopes. A sweep asks for pages from offset 0, advances by what came, and ends when the API's own total is
reached. It proves itself complete when the total stood still, as many entries came as it says, and none came twice. A
sweep that does not is repeated, because an entry that becomes visible while we page shifts the pages under us: then some
entries come twice, and an entry without any id cannot be told from its equal. What the sweeps together showed is
accepted once it accounts for the API's count. Holds one window in memory, and asks for a split when that is too heavy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from poller.errors import BodyTooLargeError, RejectedError, TransientError
from poller.events import Event, Page
from poller.windows import Window, parts_for, parts_of_whole_pages, split, split_around

_MAX_SWEEPS = 5
_LONG_SECONDS = 20 * 86_400  # not what is left of a month that was split
_LOOK_ENTRIES = 20
_ENOUGH_TO_JUDGE = 200  # entries that say how dense a window is, give or take a tenth
_TOO_LARGE_STATUSES = (400, 413, 422)
_MICROSECONDS = 1_000_000
# Where Elasticsearch stops counting unless told otherwise, with or without saying so.
USUAL_CAP = 10_000


class Limits(NamedTuple):
    """How much to ask for at once: entries a page, entries an answer can reach by offset, bytes a window may weigh."""

    page_size: int
    result_window: int
    window_bytes: int


class Reading(NamedTuple):
    """A window as read: its events oldest first, each once; how many entries the API sent; whether that is all of them."""

    events: list[Event]
    fetched: int
    is_complete: bool


class Split(NamedTuple):
    """The window is more than one reading can hold: read these instead, which tile it."""

    windows: list[Window]


class Source(Protocol):
    """Where pages come from: the Activity Log client, or a table in a test."""

    def page(self, contract: str, window: Window, offset: int, limit: int) -> Page: ...


class _Sweep(NamedTuple):
    events: list[Event]
    first_total: int | None
    last_total: int | None
    page_count: int
    is_cut: bool  # the API would serve no more of it, though there is more

    @property
    def is_proven(self) -> bool:
        """Nothing shifted while we read: the totals agree with each other and with what came, and nothing came twice."""
        count = len(self.events)
        is_total_met = self.first_total == self.last_total and self.last_total in (None, count)
        return is_total_met and len({event.identity for event in self.events}) == count


class WindowReader:
    """Reads windows of one contract; remembers between them how many of its entries make a page of bearable size."""

    def __init__(self, source: Source, contract: str, limits: Limits) -> None:
        self._source = source
        self._contract = contract
        self._limits = limits
        self._page_size = limits.page_size

    def read(self, window: Window) -> Reading | Split:
        """Read a window, or say how to split it. A window of one second is never split: what can be read of it is read.

        Raises: what `Source.page` raises; TransientError when the window does not hold still.
        """
        shown: dict[bytes, Event] = {}
        before: Counter[bytes] | None = None
        for number in range(1, _MAX_SWEEPS + 1):
            sweep = self._sweep(window)
            if isinstance(sweep, Split):
                return sweep
            now = Counter(event.identity for event in sweep.events)
            if sweep.is_cut or sweep.is_proven or self._is_one_page(sweep):
                return _reading(window, sweep.events, is_complete=not sweep.is_cut)
            if now == before and len(sweep.events) >= (sweep.last_total or 0):
                # It holds still. But where an entry with an id comes twice each time, an order that differs from page to
                # page may hide another one behind it: only a single page tells.
                is_doubtful = _has_repeats(sweep.events)
                if is_doubtful and window.seconds > 1:
                    return Split(split(window, 2))
                return _reading(window, sweep.events, is_complete=not is_doubtful)
            before = now
            shown.update((event.identity, event) for event in sweep.events)
            if _accounts_for(shown, sweep.last_total):
                return _reading(window, list(shown.values()), is_complete=True)
            if number == _MAX_SWEEPS and _accounts_for(shown, sweep.first_total):
                # It keeps growing faster than we page. All that was there when this sweep began has been seen; what came
                # since is what the overlap is for.
                return _reading(window, list(shown.values()), is_complete=True)
        raise TransientError(
            f"the window {window} did not hold still: {len(shown)} entries seen in {_MAX_SWEEPS} sweeps",
            contract=self._contract,
            hint="it is read again at the next poll",
        )

    def _is_one_page(self, sweep: _Sweep) -> bool:
        """One answer is one moment: equal entries in it are entries of their own, whatever their count."""
        return sweep.page_count == 1 and sweep.last_total in (None, len(sweep.events))

    def _sweep(self, window: Window) -> _Sweep | Split:
        """Read every page once.  Returns a Split as soon as it shows that the window is too large."""
        limits = self._limits
        is_splittable = window.seconds > 1
        events: list[Event] = []
        first_total: int | None = None
        before: Page | None = None
        page_count = weight_bytes = 0
        while True:
            offset = len(events)
            room = limits.result_window - offset
            if room <= 0:
                return (
                    Split(split(window, 2))
                    if is_splittable
                    else _Sweep(events, first_total, None, page_count, is_cut=True)
                )
            try:
                # Of a long window mostly the count is wanted: it is split, and what came with the count is read again.
                is_first_look = offset == 0 and window.seconds > _LONG_SECONDS
                limit = min(self._page_size, room, _LOOK_ENTRIES if is_first_look else room)
                page = self._page(window, offset, limit)
            except (RejectedError, TransientError) as error:
                if not _is_refused_for_size(error, offset):
                    raise
                if is_splittable:
                    return Split(split(window, 2))
                if not events:
                    raise
                return _Sweep(events, first_total, None, page_count, is_cut=True)
            before, page = page, _empty_if_repeated(page, before, limit)
            if offset == 0:
                first_total = page.total
            weight_bytes += page.weight_bytes
            parts = self._parts_needed(page, offset, weight_bytes)
            if parts > 1 and is_splittable:
                return Split(split_around(window, _dense_part(window, page), parts))
            events.extend(page.events)
            page_count += bool(page.events)
            total = page.total
            # A total that is less than what has come is wrong: then only an empty page is the end.
            if not page.events or (len(events) == total and not self._is_capped(page)):
                return _Sweep(events, first_total, total, page_count, is_cut=False)

    def _page(self, window: Window, offset: int, limit: int) -> Page:
        while True:
            try:
                page = self._source.page(self._contract, window, offset, limit)
            except BodyTooLargeError as error:
                if limit == 1:
                    raise TransientError(
                        f"an entry in {window} is too large to read: {error.message}",
                        contract=self._contract,
                        hint="raise api.max_page_bytes",
                    ) from error
                limit = self._page_size = max(1, limit // 8)
                continue
            self._adapt_page_size(page, limit)
            return page

    def _adapt_page_size(self, page: Page, limit: int) -> None:
        """Ask for as many entries as weigh what a window may, and never for more than configured."""
        if page.events:
            mean_bytes = max(1, page.weight_bytes // len(page.events))
            fitting = max(1, self._limits.window_bytes // mean_bytes)
            # Only doubled at a time: the next entries may be heavier than these.
            self._page_size = min(self._limits.page_size, fitting, max(self._page_size, limit) * 2)

    def _is_capped(self, page: Page) -> bool:
        total = page.total
        return page.is_capped or (total is not None and (total >= self._limits.result_window or total == USUAL_CAP))

    def _parts_needed(self, page: Page, offset: int, weight_bytes: int) -> int:
        """Into how many parts to split a window of which this page and so many bytes came; 1 when it fits as far as we know."""
        if weight_bytes > self._limits.window_bytes:  # later pages may be heavier than the first, or there is no total
            return max(2, self._parts_expected(page)) if offset == 0 else 2
        return self._parts_expected(page) if offset == 0 else 1

    def _parts_expected(self, first: Page) -> int:
        """Into how many parts to split a window by what its first page says of it."""
        if first.total is None or not first.events:
            return 1
        by_count = parts_for(first.total, self._limits.result_window) if self._is_capped(first) else 1
        weight_bytes = first.total * first.weight_bytes // len(first.events)
        by_weight = (
            parts_for(weight_bytes, self._limits.window_bytes) if weight_bytes > self._limits.window_bytes else 1
        )
        parts = max(by_count, by_weight)
        return parts_of_whole_pages(first.total, parts, self._page_size) if parts > 1 else 1


def _dense_part(window: Window, page: Page) -> Window:
    """Where most entries of a window seem to be, going by how close together those of its first page are, and at which end.

    Only a guess, for which the pieces need not be right: each is read, or split anew. It saves asking for the hours in which
    nothing happened. At least an eighth of the window, so that a burst does not have all the rest split in the same narrow way.
    """
    times = [event.time_us // _MICROSECONDS for event in page.events if event.is_timed]
    times = [second for second in times if window.start <= second < window.end]
    if page.total is None or len(times) < _ENOUGH_TO_JUDGE:
        return window
    first, last = min(times), max(times)
    length = round(max((last + 1 - first) * page.total / len(times), window.seconds / 8, 2))
    if length * 4 > window.seconds * 3:
        return window
    start = max(window.start, last + 1 - length) if times[0] > times[-1] else min(first, window.end - length)
    return Window(start, start + length)


def _accounts_for(shown: Mapping[bytes, Event], total: int | None) -> bool:
    """Whether as many different entries were seen as the API counts. Entries are never taken back, so then it is all."""
    return total is not None and len(shown) >= total and all(event.has_id for event in shown.values())


def _empty_if_repeated(page: Page, before: Page | None, limit: int) -> Page:
    """An empty page, and with it the end, where the API heeds no offset: it gave the entries of the page before once more,
    and another number of them than it was asked for.

    As many as it was asked for may be those of the page before because everything shifted by a page.
    """
    if before is None or len(page.events) == limit:
        return page
    is_repeated = [event.identity for event in page.events] == [event.identity for event in before.events]
    return msgspec.structs.replace(page, events=(), weight_bytes=0) if is_repeated else page


def _has_repeats(events: Sequence[Event]) -> bool:
    """Whether an entry with an id came more than once."""
    named = [event.identity for event in events if event.has_id]
    return len(set(named)) < len(named)


def _is_refused_for_size(error: RejectedError | TransientError, offset: int) -> bool:
    """Whether the API may have refused the query for its size: it says so with 400, or with 500 beyond the first page."""
    if isinstance(error, RejectedError):
        return error.status in _TOO_LARGE_STATUSES
    return offset > 0 and error.status == 500


def _reading(window: Window, events: Sequence[Event], *, is_complete: bool) -> Reading:
    """Each event once and oldest first. Equal ones without any id are counted through, so that each stays an entry."""
    assumed_time_us = (window.end - 1) * _MICROSECONDS
    seen: Counter[bytes] = Counter()
    unique = []
    for event in events:
        ordinal = seen[event.identity]
        seen[event.identity] += 1
        if ordinal and event.has_id:
            continue
        named = event.twin(ordinal) if ordinal else event
        unique.append(named if named.is_timed else named.at(assumed_time_us))
    unique.sort(key=_order)
    return Reading(unique, len(events), is_complete)


def _order(event: Event) -> tuple[int, bytes]:
    return event.time_us, event.identity
