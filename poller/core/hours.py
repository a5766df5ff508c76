"""The last 24 hours of a contract: the state of each hour. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from poller.core.windows import Window

HOUR_SECONDS = 3600
HOURS = 24

# Collecting began later; a part of the hour cannot be read; it has not ended or is not fully read; it is read; it is read, and
# the API's own count agrees.
BEFORE, GAP, NOT_YET, COLLECTED, COMPARED = "before", "gap", "not yet", "collected", "compared"
STATES = (COMPARED, COLLECTED, GAP, NOT_YET, BEFORE)


class Compared(NamedTuple):
    """The window that the last self-audit compared with the API's counts, and the starts of the hours that did not agree."""

    window: Window
    differing: tuple[int, ...] = ()

    def holds(self, hour: Window, origin: int) -> bool:
        """Whether the counts of this hour agreed. If collecting began in this hour, only the time from `origin` on counts."""
        is_inside = self.window.start <= max(hour.start, origin) and hour.end <= self.window.end
        return is_inside and hour.start not in self.differing


def first_hour(now: float) -> int:
    """The start of the oldest of the 24 hours. The last one is the hour that contains `now`."""
    return (int(now) // HOUR_SECONDS + 1 - HOURS) * HOUR_SECONDS


def states(
    now: float,
    *,
    origin: int,
    watermark: int,
    compared: Compared | None = None,
    gaps: Iterable[Window] = (),
    pending: Iterable[Window] = (),
) -> list[str]:
    """One of STATES for each hour from `first_hour` on, oldest first. `pending` are spans that will be read again."""
    gaps, pending = list(gaps), list(pending)
    start = first_hour(now)
    hours = [Window(at, at + HOUR_SECONDS) for at in range(start, start + HOURS * HOUR_SECONDS, HOUR_SECONDS)]
    return [_state(hour, origin, watermark, compared, gaps, pending) for hour in hours]


def _state(
    hour: Window,
    origin: int,
    watermark: int,
    compared: Compared | None,
    gaps: Iterable[Window],
    pending: Iterable[Window],
) -> str:
    if hour.end <= origin:
        return BEFORE
    if any(hour.overlaps(gap) for gap in gaps):
        return GAP
    if watermark < hour.end or any(hour.overlaps(span) for span in pending):
        return NOT_YET
    return COMPARED if compared is not None and compared.holds(hour, origin) else COLLECTED
