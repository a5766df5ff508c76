"""Which clock to use: this machine's, the API's, or neither. Pure: unix seconds in, unix seconds out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# A clock that shows an earlier time is wrong: this program did not exist then.
EARLIEST_SECONDS = 1_767_225_600.0  # 2026-01-01
# If two clocks are further apart, one of them is not set at all, and their difference is not used.
MAX_SKEW_SECONDS = 30 * 86_400.0
# `Date` has whole seconds, and an answer takes time to arrive. A difference up to this does not count as skew.
TOLERATED_SKEW_SECONDS = 2.0
# Two clocks confirm each other up to this difference.
_CONFIRMED_SECONDS = 30.0
_REMEMBERED_SECONDS = 30 * 86_400
_MOST_JUMPS = 64


def measured_skew(theirs: float, ours: float, seconds: float) -> float:
    """Our clock minus the API's: `theirs` is the `Date` of an answer whose headers came at `ours`, `seconds` after the request.

    The API may have written its `Date` at any time between the two, so this is the smallest difference that explains it.
    """
    if theirs > ours:
        return ours - theirs
    return max(0.0, ours - seconds - theirs)


def believed_skew(skew: float | None, ours: float) -> float:
    """How much of the measured difference is used for windows. 0 if it is unknown, small, or if a clock is not set.

    If our clock shows a time before this program existed and the API's does not, all of it is used: only the API's clock counts.
    """
    if skew is None or abs(skew) <= TOLERATED_SKEW_SECONDS:
        return 0.0
    theirs = ours - skew
    if theirs < EARLIEST_SECONDS or (abs(skew) > MAX_SKEW_SECONDS and ours >= EARLIEST_SECONDS):
        return 0.0
    return skew


def trusted_now(skew: float | None, ours: float) -> float:
    """The earlier of the two clocks: both have passed this time. If our clock is not set, the API's clock."""
    believed = believed_skew(skew, ours)
    return ours - (believed if ours < EARLIEST_SECONDS else max(0.0, believed))


def latest_now(skew: float | None, ours: float) -> float:
    """The later of the two clocks: entries may have times up to this."""
    return ours + max(0.0, -believed_skew(skew, ours))


def is_confirmed(skew: float | None) -> bool:
    """Whether the API's clock shows the same time as ours."""
    return skew is not None and abs(skew) <= _CONFIRMED_SECONDS


class Trail(NamedTuple):
    """The start times of polls, as far as they are needed to detect that the clock was ahead. In whole unix seconds.

    `at` is the last one. `jumps` are unusually long steps from one start to the next, oldest first: for each the time before and
    after. In such a step the program paused, or the clock was set. If the API's clock confirms a time, no doubt is left, and the
    trail is emptied; `confirmed` is the last such time.
    """

    at: int = 0
    jumps: tuple[tuple[int, int], ...] = ()
    confirmed: int = 0

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Trail:
        """The trail that `numbers` returned; an empty one for no numbers."""
        at, *times = [*numbers] or [0]
        pairs = list(zip(times[::2], times[1::2], strict=True))
        confirmed = max([0, *(before for before, after in pairs if before == after)])
        return cls(at, tuple(pair for pair in pairs if pair[0] != pair[1]), confirmed)

    def numbers(self) -> list[int]:
        """The stored form. The confirmed time is stored as a step of length zero, which older versions do not use."""
        confirmed = [(self.confirmed, self.confirmed)] if self.confirmed else []
        return [self.at, *(at for pair in (*confirmed, *self.jumps) for at in pair)]

    def passed(self, now: int) -> int:
        """The later of `now` and the confirmed time. That time has certainly passed, even if a clock now shows less."""
        return max(now, self.confirmed)

    def seen(self, now: int, *, is_confirmed: bool, least: int) -> Trail:
        """The trail with another poll, at `now`. Ignores steps up to `least` seconds: polls read that much twice anyway."""
        if is_confirmed:
            return Trail(now, (), now)
        step = now - self.at
        jumps = [jump for jump in self.jumps if now - jump[1] < _REMEMBERED_SECONDS]
        if self.at and step > least:
            # Among steps of about the same length, only the last one matters.
            jumps = [jump for jump in jumps if not step * 0.9 <= jump[1] - jump[0] <= step * 1.1]
            jumps.append((self.at, now))
        return Trail(now, tuple(jumps[-_MOST_JUMPS:]), self.confirmed)

    def agreed(self, watermark: int, origin: int, now: int) -> int:
        """How far a contract is certainly complete if its watermark lies after `now`: the last time before the clock went wrong.

        The clock was ahead by at least the difference, so a step at least that long set it: the shortest is used. If the clock
        was ahead from the first poll on, all times are wrong by the same amount.
        """
        ahead = watermark - now
        steps = [(after - before, -before) for before, after in self.jumps if after - before >= ahead]
        if steps:
            return min(-min(steps)[1], now)
        return now - (watermark - origin) if origin > now else now
