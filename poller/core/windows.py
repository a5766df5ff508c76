"""Windows of time: which to read next, and how to cut one that the API cannot serve whole.

Pure: whole unix seconds in, windows out. Invariant: whatever a function here cuts a window into tiles it, in order,
without gap or overlap.
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
    """How much to ask for at once: entries a page, entries an answer can reach by offset, bytes a window may weigh."""

    page_size: int
    result_window: int
    window_bytes: int


def format_time(at_seconds: int) -> str:
    """Unix seconds as the API wants them: `2026-05-01T07:42:20Z`."""
    return datetime.fromtimestamp(at_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def next_window(watermark: int, origin: int, now: int, overlap: int) -> Window | None:
    """What to read to come from `watermark` to `now`: from `overlap` seconds before, but never before `origin`.

    None when there is nothing to read: no whole second has passed.
    """
    start = max(origin, watermark - overlap)
    return Window(start, now) if now > start else None


def tile(window: Window, span: int = MAX_SPAN_SECONDS) -> Iterator[Window]:
    """The window in pieces of at most `span` seconds, oldest first."""
    for start in range(window.start, window.end, span):
        yield Window(start, min(start + span, window.end))


def split(window: Window, parts: int) -> list[Window]:
    """The window in `parts` pieces of as equal length as whole seconds allow, at least one second each.

    Raises: ValueError for a window of one second, which cannot be split.
    """
    if window.seconds < 2:
        raise ValueError(f"cannot split {window}: it is one second long")
    parts = max(2, min(parts, window.seconds))
    edges = [window.start + window.seconds * i // parts for i in range(parts + 1)]
    return [Window(start, end) for start, end in itertools.pairwise(edges)]


def around(window: Window, second: int) -> list[Window]:
    """The window with a second in it as a piece of its own, and what is before and behind that in a piece each."""
    edges = sorted({window.start, second, second + 1, window.end})
    return [Window(*pair) for pair in itertools.pairwise(edges)]


def split_around(window: Window, dense: Window, parts: int) -> list[Window]:
    """The window with `dense`, which lies in it, in `parts` pieces, and what is before and behind that in a piece each.

    What would be shorter than one of the pieces is added to `dense` instead.  Raises: ValueError for a window of one second.
    """
    is_much_before = (dense.start - window.start) * parts > dense.seconds
    is_much_behind = (window.end - dense.end) * parts > dense.seconds
    start = dense.start if is_much_before else window.start
    end = dense.end if is_much_behind else window.end
    around = [Window(*edges) for edges in ((window.start, start), (end, window.end)) if edges[0] < edges[1]]
    return sorted([*around, *split(Window(start, end), parts)])


def parts_for(count: int, capacity: int) -> int:
    """Into how many pieces to split a window of `count` when a piece should hold `capacity`, with room for unevenness."""
    return max(2, math.ceil(count * 1.25 / max(1, capacity)))


def parts_of_whole_pages(count: int, parts: int, page_size: int) -> int:
    """Into how many pieces to split a window of `count`, at least `parts`, so that few of them end with an almost empty page.

    That would cost a round trip like a full one. A piece is meant to fill nine tenths of its pages, as time spreads unevenly.
    """
    likely = page_size * 9 / 10
    pages = max(1, int(count / parts / likely))
    return max(parts, round(count / (pages * likely)))
