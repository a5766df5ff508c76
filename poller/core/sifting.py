"""Rules for all entries of a window together: which are the same, which only share an id, and where unreadable ones lie.

Pure. An entry is dropped here only if another one has the same identity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from poller.core.answers import Page, Unreadable
from poller.core.events import Event
from poller.core.windows import Window

_MICROSECONDS = 1_000_000
# The API filters by time. If the time of an entry is further from the window than this, it is not usable: otherwise one answer
# could spread entries over any number of days, and over as many files.
_MAX_OFF_US = 31 * 86_400 * _MICROSECONDS


def span_of(element: Unreadable, window: Window, events: Sequence[Event]) -> Window:
    """Where an unreadable element lies in a window: its own second, or the span between its neighbours if these are in order."""
    if element.second is not None and window.start <= element.second < window.end:
        return Window(element.second, element.second + 1)
    seconds = [event.time_us // _MICROSECONDS for event in events if event.is_timed]
    if len(seconds) < len(events) or not is_by_time(window, events):
        return window
    is_newest_first = bool(seconds) and seconds[0] > seconds[-1]
    if sorted(seconds, reverse=is_newest_first) != seconds:
        return window
    if len(set(seconds)) == 1:  # a single second does not show the direction of the order
        return window
    sides = (seconds[element.place - 1 : element.place], seconds[element.place : element.place + 1])
    later, earlier = sides if is_newest_first else sides[::-1]
    return Window(earlier[0] if earlier else window.start, later[0] + 1 if later else window.end)


def is_by_time(window: Window, events: Sequence[Event]) -> bool:
    """Whether all entries lie in the window. If not, the API ignores its bounds, and a shorter window would show no more."""
    start_us, end_us = window.start * _MICROSECONDS, window.end * _MICROSECONDS
    return all(start_us <= event.time_us < end_us for event in events if event.is_timed)


def has_repeats(events: Sequence[Event]) -> bool:
    """Whether an entry with an id came more than once."""
    named = [event.identity for event in events if event.has_id]
    return len(set(named)) < len(named)


def told_apart(events: list[Event]) -> list[Event]:
    """The events. Different events with the same id get an identity from id and content, which later entries do not change."""
    lines: dict[bytes, bytes] = {}
    shared = {event.identity for event in events if lines.setdefault(event.identity, event.line) != event.line}
    if not shared:
        return events
    contents: dict[bytes, set[bytes]] = {}
    for event in events:
        if event.identity in shared:
            contents.setdefault(event.identity, set()).add(event.apart().identity)
    # The same content written in another way is the same entry.
    return [event.apart() if len(contents.get(event.identity, ())) > 1 else event for event in events]


def all_of(shown: Mapping[bytes, Event], last: Sequence[Event], *, is_one_moment: bool) -> Sequence[Event]:
    """The events of several readings that did not agree: each that was shown, by identity, and what was shown last.

    Of equal ones without any id there are as many as one moment showed. Pages of several moments may show one of them twice: then
    it is given once, and its equals come when the gap closes.
    """
    return list(shown.values()) if not is_one_moment or all(event.has_id for event in shown.values()) else last


def each_once(window: Window, events: Sequence[Event]) -> list[Event]:
    """Each event once, oldest first. Equal events without an id are numbered, so that each stays an entry.

    An event without a usable time gets the last second of the window.
    """
    earliest_us, latest_us = window.start * _MICROSECONDS - _MAX_OFF_US, window.end * _MICROSECONDS + _MAX_OFF_US
    assumed_time_us = (window.end - 1) * _MICROSECONDS
    seen: Counter[bytes] = Counter()
    unique = []
    for event in events:
        ordinal = seen[event.identity]
        seen[event.identity] += 1
        if ordinal and event.has_id:
            continue
        named = event.duplicate(ordinal) if ordinal else event
        is_usable = named.is_timed and earliest_us <= named.time_us <= latest_us
        unique.append(named if is_usable else named.at(assumed_time_us))
    unique.sort(key=_order)
    return unique


def _order(event: Event) -> tuple[int, bytes]:
    return event.time_us, event.identity


def empty_if_repeated(page: Page, before: Page | None, limit: int) -> Page:
    """The page, or an empty one, which ends the reading, if the API ignored the offset and repeated the page before.

    A page of exactly `limit` entries is kept: it may repeat the one before because all entries shifted by one page.
    """
    if before is None or page.count == limit:
        return page
    is_repeated = [event.identity for event in page.events] == [event.identity for event in before.events]
    is_repeated = is_repeated and page.unreadable == before.unreadable
    return msgspec.structs.replace(page, events=(), unreadable=(), weight_bytes=0) if is_repeated else page
