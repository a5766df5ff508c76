"""A clock that was ahead: detected when a watermark is in the future, reported, and corrected."""

from __future__ import annotations

import logging
import threading

from poller.core.clocks import Trail, is_confirmed
from poller.core.windows import format_time
from poller.store.protocols import State
from poller.store.rows import Contract

log = logging.getLogger(__name__)

_SAVED_EVERY_SECONDS = 60
_TOLERATED_SECONDS = 10


class ClockGuard:
    """Keeps the start times of polls, and takes back watermarks that a wrong clock made too late. For several threads."""

    def __init__(self, state: State, overlap_seconds: int) -> None:
        self._state = state
        self._overlap_seconds = overlap_seconds
        self._lock = threading.Lock()
        self._saved = self._trail = state.clock_trail()
        self._is_back_told = False

    def check(self, row: Contract, skew: float | None, now: int) -> Contract:
        """The row of a contract that is polled at `now` (trusted clock), with a plausible watermark.

        Commits: the times by which a later poll can detect that the clock was ahead; the watermark, if it is taken back.
        """
        with self._lock:
            now = self._passed(now, skew)
            before, self._trail = (
                self._trail,
                self._trail.seen(now, is_confirmed=is_confirmed(skew), least=self._overlap_seconds),
            )
            is_right_again = bool(before.jumps and not self._trail.jumps)
            if self._is_ahead(row, now) or is_right_again:
                # With several replicas, our clock alone is not enough: it may be the one that is behind.
                latest = max(now, int(self._state.shared_now() or now))
                if self._is_ahead(row, latest) or is_right_again:
                    # For all contracts at once, with the current knowledge: the next poll may forget it.
                    for other in self._state.contracts.all():
                        if self._is_ahead(other, latest):
                            self._take_back(other, before, latest)
                    row = self._state.contracts.get(row.contract) or row
            if self._trail.jumps != self._saved.jumps or abs(now - self._saved.at) >= _SAVED_EVERY_SECONDS:
                self._state.remember_clock_trail(self._trail)
                self._saved = self._trail
        return row

    def _passed(self, now: int, skew: float | None) -> int:
        """`now`, or a later time that has certainly passed. Then a clock is behind now, and no watermark was ahead."""
        passed = now if is_confirmed(skew) else self._trail.passed(now)
        is_back = passed - now > _TOLERATED_SECONDS
        if is_back and not self._is_back_told:
            hint = "watermarks stay where they are until both clocks agree again; keep this machine's clock right (NTP)"
            extra = {"shown": format_time(now), "confirmed": format_time(passed), "hint": hint}
            log.warning("clock.went_back", extra=extra)
        self._is_back_told = is_back
        return passed

    def _is_ahead(self, row: Contract, now: int) -> bool:
        return row.watermark - now > _TOLERATED_SECONDS

    def _take_back(self, row: Contract, trail: Trail, now: int) -> None:
        # What lies within the overlap is read again anyway.
        is_covered = row.watermark - now <= self._overlap_seconds
        agreed = now if is_covered else trail.agreed(row.watermark, row.origin, now)
        if not self._state.contracts.take_back(row, agreed, now):
            return  # another replica holds it, with its own clock
        log.log(
            logging.WARNING if is_covered else logging.ERROR,
            "watermark.taken_back",
            extra={
                "contract": row.contract,
                "watermark": format_time(row.watermark),
                "to": format_time(agreed),
                "hint": "this machine's clock was ahead, or is behind now: keep it right (NTP). Nothing is lost by it",
            },
        )
