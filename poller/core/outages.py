"""When to report that an outage goes on, and that it has ended. Pure: the caller passes the time."""

from __future__ import annotations

FIRST_WAIT_SECONDS = 60.0
_MOST_SECONDS = 3600.0


class Outage:
    """An outage. It is reported once, then after growing waits, and once when it ends.

    An outage that begins again within a minute after its end counts as the same one, so it is not reported more often.
    """

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._ended_at = self._next_at = float("-inf")
        self._wait = FIRST_WAIT_SECONDS

    def has_to_be_told(self, now: float) -> bool:
        """The outage exists at `now`.  Returns: whether to report it."""
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
        """There is no outage at `now`.  Returns: how many seconds it lasted; None if there was none."""
        began, self._began_at = self._began_at, None
        if began is None:
            return None
        self._ended_at = now
        return now - began
