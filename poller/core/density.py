"""What one page tells of its window: whether the API serves all of it, where most of it lies, and into how many parts to cut it.

Pure: a page and the limits in, a number or a window out. The windows that come of it are checked when they are read.
"""

from __future__ import annotations

from poller.core.answers import Page
from poller.core.gaps import DENSE, Unread
from poller.core.windows import Limits, Window, parts_for, parts_of_whole_pages

_ENOUGH_TO_JUDGE = 200  # entries that say how dense a window is, give or take a tenth
_MICROSECONDS = 1_000_000
# Where Elasticsearch stops counting unless told otherwise, with or without saying so.
USUAL_CAP = 10_000


def is_capped(page: Page, limits: Limits) -> bool:
    """Whether the page's total may be less than there is."""
    total = page.total
    return page.is_capped or (total is not None and (total >= limits.result_window or total == USUAL_CAP))


def too_dense(window: Window, first: Page, limits: Limits) -> Unread | None:
    """A second of which the first page says that the API would not serve all of it: then the others are not asked for."""
    if first.total is None or not is_capped(first, limits) or first.count >= first.total:
        return None
    return Unread(window, DENSE, f"more entries than the API serves of one second ({first.total})")


def parts_needed(page: Page, offset: int, weight_bytes: int, page_size: int, limits: Limits) -> int:
    """Into how many parts to split a window of which this page and so many bytes came; 1 when it fits as far as we know.

    A part is meant to fill pages of `page_size` entries.
    """
    expected = _parts_expected(page, page_size, limits) if offset == 0 else 1
    # Later pages may be heavier than the first, or there is no total.
    return max(2, expected) if weight_bytes > limits.window_bytes else expected


def _parts_expected(first: Page, page_size: int, limits: Limits) -> int:
    """Into how many parts to split a window by what its first page says of it."""
    if first.total is None or not first.events:
        return 1
    # "At least" as many as have come is no sign that there are too many: some APIs say it of every total.
    is_more = is_capped(first, limits) and first.count < first.total
    by_count = parts_for(first.total, limits.result_window) if is_more else 1
    weight_bytes = first.total * first.weight_bytes // len(first.events)
    by_weight = parts_for(weight_bytes, limits.window_bytes) if weight_bytes > limits.window_bytes else 1
    parts = max(by_count, by_weight)
    return parts_of_whole_pages(first.total, parts, page_size) if parts > 1 else 1


def dense_part(window: Window, first: Page) -> Window:
    """Where most entries of a window seem to be, going by how close together those of its first page are, and at which end.

    Only a guess, for which the pieces need not be right: each is read, or split anew. It saves asking for the hours in which
    nothing happened. At least an eighth of the window, so that a burst does not have all the rest split in the same narrow way.
    """
    times = [event.time_us // _MICROSECONDS for event in first.events if event.is_timed]
    times = [second for second in times if window.start <= second < window.end]
    if first.total is None or len(times) < _ENOUGH_TO_JUDGE:
        return window
    earliest, latest = min(times), max(times)
    length = round(max((latest + 1 - earliest) * first.total / len(times), window.seconds / 8, 2))
    if length * 4 > window.seconds * 3:
        return window
    is_newest_first = times[0] > times[-1]
    start = max(window.start, latest + 1 - length) if is_newest_first else min(earliest, window.end - length)
    return Window(start, start + length)
