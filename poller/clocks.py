"""Which clock to believe: this machine's, the API's, or neither. Pure: unix seconds in, unix seconds out."""

from __future__ import annotations

# No clock that shows an earlier time is right: there was no such program then.
EARLIEST_SECONDS = 1_767_225_600.0  # 2026-01-01
# Two clocks that are further apart are no measure of each other: one of them is not set at all.
MAX_SKEW_SECONDS = 30 * 86_400.0
# `Date` has whole seconds, and the answer takes a while to come: less than this is no skew.
TOLERATED_SKEW_SECONDS = 2.0


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
