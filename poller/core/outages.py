"""When to tell of an outage that goes on, and that it is over. Pure: the time is given."""

from __future__ import annotations

FIRST_WAIT_SECONDS = 60.0
_MOST_SECONDS = 3600.0


class Outage:
    """Something that is away. It is told once, then after waits that grow, and once when it is back.

    One that begins anew soon after its end is the same one: it is told no more often.
    """

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._ended_at = self._next_at = float("-inf")
        self._wait = FIRST_WAIT_SECONDS

    def has_to_be_told(self, now: float) -> bool:
        """It is away, at `now`. Returns: whether to tell that."""
        if self._began_at is None:
            self._began_at = now
            if now - self._ended_at >= FIRST_WAIT_SECONDS:
                self._wait, self._next_at = FIRST_WAIT_SECONDS, now
        if now < self._next_at:
            return False
        self._next_at = now + self._wait
        self._wait = min(2 * self._wait, _MOST_SECONDS)
        return True

    def ended(self, now: float) -> float | None:
        """It is back, at `now`. Returns: after how many seconds; None where it was not away."""
        began, self._began_at = self._began_at, None
        if began is None:
            return None
        self._ended_at = now
        return now - began
