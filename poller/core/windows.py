"""Windows of time: which one to read next, and how to split one that the API cannot serve whole.

Pure: whole unix seconds in, windows out. Invariant: the pieces of a window are in order, cover all of it, and do not overlap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

# The vendor's own client asks for 90 days at most; a month leaves room.  Source: docs/facts.md, "IONOS Activity Log API".
MAX_SPAN_SECONDS = 30 * 86_400


class Window(NamedTuple):
    """A half-open span of time `[start, end)` in whole unix seconds."""

    start: int
    end: int

    @property
    def seconds(self) -> int:
        return self.end - self.start

    def overlaps(self, other: Window) -> bool:
        return self.start < other.end and other.start < self.end

    def __str__(self) -> str:
        return f"{format_time(self.start)}/{format_time(self.end)}"


class Limits(NamedTuple):
    """Maximum entries per page, maximum entries that a query can reach by offset, and maximum bytes per window."""

    page_size: int
    result_window: int
    window_bytes: int


def format_time(at_seconds: int) -> str:
    """Unix seconds in the form that the API uses: `2026-05-01T07:42:20Z`."""
    return datetime.fromtimestamp(at_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def next_window(watermark: int, origin: int, now: int, overlap: int) -> Window | None:
    """The window that moves `watermark` to `now`. It starts `overlap` seconds before `watermark`, but never before `origin`.

    None if there is nothing to read, because no whole second has passed.
    """
    start = max(origin, watermark - overlap)
    return Window(start, now) if now > start else None


def tile(window: Window, span: int = MAX_SPAN_SECONDS) -> Iterator[Window]:
    """The window in pieces of at most `span` seconds, oldest first."""
    for start in range(window.start, window.end, span):
        yield Window(start, min(start + span, window.end))


def split(window: Window, parts: int) -> list[Window]:
    """The window in `parts` pieces, as equal in length as whole seconds allow, at least two, and each at least one second long.

    Raises: ValueError for a window of one second, which cannot be split.
    """
    if window.seconds < 2:
        raise ValueError(f"cannot split {window}: it is one second long")
    parts = max(2, min(parts, window.seconds))
    edges = [window.start + window.seconds * i // parts for i in range(parts + 1)]
    return [Window(start, end) for start, end in itertools.pairwise(edges)]


def around(window: Window, second: int) -> list[Window]:
    """The window in up to three pieces: the part before `second`, that second alone, and the part after it."""
    edges = sorted({window.start, second, second + 1, window.end})
    return [Window(*pair) for pair in itertools.pairwise(edges)]


def split_around(window: Window, dense: Window, parts: int) -> list[Window]:
    """The window in pieces: `dense`, which lies inside it, in `parts` pieces, and the time before and after it as one piece each.

    If the time before or after is no longer than one of the `parts`, it is added to `dense`.  Raises: ValueError for one second.
    """
    is_much_before = (dense.start - window.start) * parts > dense.seconds
    is_much_behind = (window.end - dense.end) * parts > dense.seconds
    start = dense.start if is_much_before else window.start
    end = dense.end if is_much_behind else window.end
    around = [Window(*edges) for edges in ((window.start, start), (end, window.end)) if edges[0] < edges[1]]
    return sorted([*around, *split(Window(start, end), parts)])


def parts_for(count: int, capacity: int) -> int:
    """How many pieces to make of a window of `count` if each can hold `capacity`, with a reserve because counts are uneven."""
    return max(2, math.ceil(count * 1.25 / max(1, capacity)))


def parts_of_whole_pages(count: int, parts: int, page_size: int) -> int:
    """How many pieces to make of a window of `count`, at least `parts`, so that few of them end with an almost empty page.

    Such a page costs as much time as a full one. A piece should fill nine tenths of its pages, because pieces differ in count.
    """
    likely = page_size * 9 / 10
    pages = max(1, int(count / parts / likely))
    return max(parts, round(count / (pages * likely)))
