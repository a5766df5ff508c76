"""What one page shows about its window: whether the API serves all of it, where most entries are, and how many parts to make.

Pure: a page and the limits in, a number or a window out. The resulting windows are checked when they are read.
"""

from __future__ import annotations

from poller.core.answers import Page
from poller.core.gaps import DENSE, Unread
from poller.core.windows import Limits, Window, parts_for, parts_of_whole_pages

_ENOUGH_TO_JUDGE = 200  # so many entries show how dense a window is, within about a tenth
_MICROSECONDS = 1_000_000
# Elasticsearch stops counting here by default. It does not always say so in its answer.
USUAL_CAP = 10_000


def is_capped(page: Page, limits: Limits) -> bool:
    """Whether the window may hold more entries than the page's total says."""
    total = page.total
    return page.is_capped or (total is not None and (total >= limits.result_window or total == USUAL_CAP))


def too_dense(window: Window, first: Page, limits: Limits) -> Unread | None:
    """The second as unread if its first page shows that the API does not serve all of it, so that no other page is requested."""
    if first.total is None or not is_capped(first, limits) or first.count >= first.total:
        return None
    return Unread(window, DENSE, f"more entries than the API serves of one second ({first.total})")


def parts_needed(page: Page, offset: int, weight_bytes: int, page_size: int, limits: Limits) -> int:
    """How many parts to split a window into, after this page at `offset` and `weight_bytes` in all; 1 if it seems to fit.

    A part should fill pages of `page_size` entries.
    """
    expected = _parts_expected(page, page_size, limits) if offset == 0 else 1
    # This can happen although the first page fitted: later pages may be heavier, or the answer has no total.
    return max(2, expected) if weight_bytes > limits.window_bytes else expected


def _parts_expected(first: Page, page_size: int, limits: Limits) -> int:
    """How many parts to split a window into, estimated from its first page."""
    if first.total is None or not first.events:
        return 1
    # An "at least" total that equals the number of entries received does not mean more: some APIs say it of every total.
    is_more = is_capped(first, limits) and first.count < first.total
    by_count = parts_for(first.total, limits.result_window) if is_more else 1
    weight_bytes = first.total * first.weight_bytes // len(first.events)
    by_weight = parts_for(weight_bytes, limits.window_bytes) if weight_bytes > limits.window_bytes else 1
    parts = max(by_count, by_weight)
    return parts_of_whole_pages(first.total, parts, page_size) if parts > 1 else 1


def dense_part(window: Window, first: Page) -> Window:
    """The part of a window that seems to hold most entries, estimated from the times of the entries in its first page.

    A wrong guess does no harm: each piece is read, or split again. A good one saves requests for hours without entries. It is at
    least an eighth of the window, so that a short burst does not make all pieces narrow, and the whole window if in doubt.
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
