"""Gaps: the spans of a contract that cannot be read whole, and the rules for them.

Pure. A gap never stops the rest of a contract: the gap is recorded and tried again, and everything else is collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from poller.core.amounts import plural
from poller.core.windows import Window, format_time

# Why a span cannot be read whole: the API refuses the query; the API fails each time, or gives no usable answer; one second has
# more entries than the API serves; an element is not an entry; the entries never agree with the API's count.
REFUSED, FAILING, DENSE, UNREADABLE, UNSTABLE = "refused", "failing", "dense", "unreadable", "unstable"

_FIRST_WAIT_SECONDS = 60
LONGEST_WAIT_SECONDS = 3600
_JITTER = 0.1
KEPT_ENTRIES = 20


class Unread(NamedTuple):
    """A part of a window that could not be read whole, and why: the kind, and a reason, in the API's own words if it gave one.

    `entries` are the bytes of elements that could not be used. `is_narrow` is false if some of the span may be readable but was
    not requested yet.
    """

    window: Window
    kind: str
    reason: str
    entries: tuple[bytes, ...] = ()
    is_narrow: bool = True


def merged(parts: Iterable[Unread]) -> list[Unread]:
    """The parts, oldest first. Parts of one kind that overlap or touch are joined and get the last one's reason."""
    result: list[Unread] = []
    for part in sorted(parts, key=lambda part: part.window):
        before = result[-1] if result else None
        if before is None or before.window.end < part.window.start or before.kind != part.kind:
            result.append(part)
            continue
        entries = tuple(dict.fromkeys((*before.entries, *part.entries)))[:KEPT_ENTRIES]
        end = max(before.window.end, part.window.end)
        is_narrow = before.is_narrow and part.is_narrow
        result[-1] = Unread(before.window._replace(end=end), part.kind, part.reason, entries, is_narrow)
    return result


def without(window: Window, spans: Iterable[Window]) -> list[Window]:
    """The parts of a window outside the spans, oldest first."""
    left = []
    start = window.start
    for span in sorted(spans):
        if start < min(span.start, window.end):
            left.append(Window(start, min(span.start, window.end)))
        start = max(start, span.end)
    if start < window.end:
        left.append(Window(start, window.end))
    return left


def in_turn(pieces: Sequence[Window], watermark: int, turn: int, most: int) -> list[Window]:
    """The pieces of a window to read in this poll, oldest first, if gaps have cut the window into several.

    These are all pieces that reach beyond the watermark, or the newest one if none does. The others are only read again for late
    entries: `most` of them per poll, in turn, so that gaps do not make a poll much slower.
    """
    due = [piece for piece in pieces if piece.end > watermark] or list(pieces[-1:])
    older = list(pieces[: len(pieces) - len(due)])
    if len(older) > most:
        first = turn * most % len(older)
        older = sorted((older * 2)[first : first + most])
    return older + due


def summary(spans: Sequence[Window]) -> str:
    """The number of spans, their total length, and their days: `1 gap of 1 s on 2026-03-03`. Needs at least one span."""
    first, last = (
        format_time(second)[:10] for second in (min(span.start for span in spans), max(span.end for span in spans) - 1)
    )
    days = f"on {first}" if first == last else f"from {first} to {last}"
    return f"{plural(len(spans), 'gap')} of {_span(sum(span.seconds for span in spans))} {days}"


def _span(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:,} {unit}"
    return f"{seconds} s"


def wait_seconds(tries: int, random: Callable[[], float]) -> float:
    """How long to wait before the next try of a gap after `tries` tries: about a minute, doubled each time up to an hour."""
    longest = min(_FIRST_WAIT_SECONDS << min(tries, 20), LONGEST_WAIT_SECONDS)
    return longest * (1 - _JITTER * random()) if longest == LONGEST_WAIT_SECONDS else longest * (1 + _JITTER * random())
