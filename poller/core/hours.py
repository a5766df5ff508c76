"""The last 24 hours of a contract, hour by hour: what is known of each. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from poller.core.windows import Window

HOUR_SECONDS = 3600
HOURS = 24

# Collecting began later; a span of it cannot be read; it is not over, or not read to its end; it is read; it is read, and the
# API's own count agrees.
BEFORE, GAP, NOT_YET, COLLECTED, COMPARED = "before", "gap", "not yet", "collected", "compared"
STATES = (COMPARED, COLLECTED, GAP, NOT_YET, BEFORE)


class Compared(NamedTuple):
    """What the last self-audit compared by the API's counts, and the starts of the hours in which these did not agree."""

    window: Window
    differing: tuple[int, ...] = ()

    def holds(self, hour: Window, origin: int) -> bool:
        """Whether the counts of this hour agreed; of the hour in which collecting began, from there on."""
        is_inside = self.window.start <= max(hour.start, origin) and hour.end <= self.window.end
        return is_inside and hour.start not in self.differing


def first_hour(now: float) -> int:
    """The start of the oldest of the hours that are looked at. The last one is the hour that `now` lies in."""
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
    """One of STATES for each hour from `first_hour` on, oldest first. `pending` are spans that will be read once more."""
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
