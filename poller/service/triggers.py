"""When a job of the schedule is due."""

from __future__ import annotations

import random
from datetime import datetime, timedelta

from apscheduler.triggers.base import BaseTrigger


class Every(BaseTrigger):  # type: ignore[misc]  # ships no types
    """At once, then every `seconds`. Missed runs are made up by a single run.

    With `is_spread`, the second run comes after a random part of the interval, so that a thousand contracts are polled at the
    start, but later not all in the same second.
    """

    def __init__(self, seconds: float, *, is_spread: bool = False) -> None:
        self.interval = timedelta(seconds=max(1.0, seconds))
        self._first_share = random.uniform(0.1, 1.0) if is_spread else 1.0
        self._first_at: datetime | None = None

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime:
        """The first due time after both. The scheduler asks again for each time that is not after `now`.

        Without the jump, a clock that is set forward by a year would cost a call and a list entry for each interval of that year.
        """
        if previous_fire_time is None:
            return now
        # The scheduler asks several times for the time after the same run.
        self._first_at = self._first_at or previous_fire_time
        share = self._first_share if previous_fire_time == self._first_at else 1.0
        due = previous_fire_time + self.interval * share
        return due if due > now else due + self.interval * ((now - due) // self.interval + 1)
