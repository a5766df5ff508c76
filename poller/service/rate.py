"""How many entries this process saw collected in each of the last 60 minutes."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

MINUTES = 60


class Rate:
    """Gets the total of collected entries again and again, and keeps the total at the start of each minute."""

    def __init__(self) -> None:
        self._starts: deque[tuple[int, int]] = deque(maxlen=MINUTES + 1)  # minute, first total in it
        self._total = 0

    def observe(self, now: float, total: int) -> None:
        """`now` in unix seconds. If the clock was set back, counting starts again."""
        minute = int(now) // 60
        if self._starts and minute < self._starts[-1][0]:
            self._starts.clear()
        if not self._starts or minute > self._starts[-1][0]:
            # Entries since the last look count for the minute before: looks are seconds apart.
            self._starts.append((minute, total))
        self._total = total

    def per_minute(self, now: float) -> list[int | None]:
        """The last 60 minutes, oldest first; the last one is not over. None: no look in that minute."""
        last = int(now) // 60
        marks = [*list(self._starts), (self._starts[-1][0] + 1, self._total)] if self._starts else []
        found = {
            minute: max(0, following - total) if after == minute + 1 else None
            for (minute, total), (after, following) in pairwise(marks)
        }
        return [found.get(minute) for minute in range(last - MINUTES + 1, last + 1)]
