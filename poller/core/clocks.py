"""Which clock to believe: this machine's, the API's, or neither. Pure: unix seconds in, unix seconds out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# No clock that shows an earlier time is right: there was no such program then.
EARLIEST_SECONDS = 1_767_225_600.0  # 2026-01-01
# Two clocks that are further apart are no measure of each other: one of them is not set at all.
MAX_SKEW_SECONDS = 30 * 86_400.0
# `Date` has whole seconds, and the answer takes a while to come: less than this is no skew.
TOLERATED_SKEW_SECONDS = 2.0
# So far apart two clocks may be and still confirm each other.
_CONFIRMED_SECONDS = 30.0
_REMEMBERED_SECONDS = 30 * 86_400
_MOST_JUMPS = 64


def measured_skew(theirs: float, ours: float, seconds: float) -> float:
    """Our clock minus the API's: `theirs` is the `Date` of an answer whose headers came at `ours`, `seconds` after the request.

    The API may have written its `Date` at any time in between, so the smallest difference that explains it is taken.
    """
    if theirs > ours:
        return ours - theirs
    return max(0.0, ours - seconds - theirs)


def believed_skew(skew: float | None, ours: float) -> float:
    """How much of the measured difference is used for windows. 0 where it is unknown, small, or no real time.

    Where our clock shows a time before this program existed and the API's does not, the API's counts alone.
    """
    if skew is None or abs(skew) <= TOLERATED_SKEW_SECONDS:
        return 0.0
    theirs = ours - skew
    if theirs < EARLIEST_SECONDS or (abs(skew) > MAX_SKEW_SECONDS and ours >= EARLIEST_SECONDS):
        return 0.0
    return skew


def trusted_now(skew: float | None, ours: float) -> float:
    """The earlier of the two clocks: up to there, neither doubts that the time has passed."""
    believed = believed_skew(skew, ours)
    return ours - (believed if ours < EARLIEST_SECONDS else max(0.0, believed))


def latest_now(skew: float | None, ours: float) -> float:
    """The later of the two clocks: entries may have times up to there."""
    return ours + max(0.0, -believed_skew(skew, ours))


def is_confirmed(skew: float | None) -> bool:
    """Whether the API's clock shows the same time as ours."""
    return skew is not None and abs(skew) <= _CONFIRMED_SECONDS


class Trail(NamedTuple):
    """The times that polls began at, as far as they are needed to notice a clock that was ahead.

    `at` is the last one. `jumps` are the steps between two of them that were longer than others, oldest first: for each the time
    before and after. A step may be a pause of ours, or a clock that was set. What the API's clock confirms is no doubt, so it
    empties the trail; `confirmed` is the last time that it did. In whole unix seconds.
    """

    at: int = 0
    jumps: tuple[tuple[int, int], ...] = ()
    confirmed: int = 0

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Trail:
        """The trail that `numbers` gave, or none at all."""
        at, *times = [*numbers] or [0]
        pairs = list(zip(times[::2], times[1::2], strict=True))
        confirmed = max([0, *(before for before, after in pairs if before == after)])
        return cls(at, tuple(pair for pair in pairs if pair[0] != pair[1]), confirmed)

    def numbers(self) -> list[int]:
        """As it is stored. What is confirmed is a step of no length: versions that do not know it have no use for such a step."""
        confirmed = [(self.confirmed, self.confirmed)] if self.confirmed else []
        return [self.at, *(at for pair in (*confirmed, *self.jumps) for at in pair)]

    def passed(self, now: int) -> int:
        """`now`, or what two clocks confirmed before: that this time has passed is certain, whatever one of them says later."""
        return max(now, self.confirmed)

    def seen(self, now: int, *, is_confirmed: bool, least: int) -> Trail:
        """The trail with another poll, at `now`. Steps up to `least` seconds are none, as that much is read twice anyway."""
        if is_confirmed:
            return Trail(now, (), now)
        step = now - self.at
        jumps = [jump for jump in self.jumps if now - jump[1] < _REMEMBERED_SECONDS]
        if self.at and step > least:
            # Of steps of about the same length only the last one can matter.
            jumps = [jump for jump in jumps if not step * 0.9 <= jump[1] - jump[0] <= step * 1.1]
            jumps.append((self.at, now))
        return Trail(now, tuple(jumps[-_MOST_JUMPS:]), self.confirmed)

    def agreed(self, watermark: int, origin: int, now: int) -> int:
        """Where a watermark is complete up to, for certain, that lies after `now`: the last time that two polls agreed on.

        The clock was ahead by at least that much, so it was set in a step that was at least as long. Where it was ahead from the
        first poll on, all times are off by the same.
        """
        ahead = watermark - now
        steps = [(after - before, -before) for before, after in self.jumps if after - before >= ahead]
        if steps:
            return min(-min(steps)[1], now)
        return now - (watermark - origin) if origin > now else now
