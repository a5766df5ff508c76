"""How fast requests of an account may be sent. The answers with status 429 show it. Pure: the caller passes the time.

A refusal (429) concerns the account, not the request. All requests of the account then pause, as long as the API says, and one
request is sent as a trial. If the API does not say how long, the pause doubles until a trial succeeds, and from then on requests
are spaced: first as fast as the API accepted them before, half as fast after each further refusal, and faster while none comes.
"""

from __future__ import annotations

from collections import deque

FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 10.0
_MARGIN_SECONDS = 0.1
_LOOK_SECONDS = 0.2  # how soon to check again if the result of another request decides
_MEASURED_SECONDS = 60.0
_MIN_PER_SECOND = 0.25
_MAX_PER_SECOND = 100.0
_DOUBLED_SECONDS = 12.0  # the pace doubles in this time without a refusal; its increase is cubic in the time


class Pace:
    """The pace of one account. Not thread-safe: the caller holds a lock. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.per_second: float | None = None
        """The limit in requests per second when the last refusal ended; it grows from there. None while there is no limit."""
        self._recovered_at = 0.0
        self._queue: deque[object] = deque()
        self._taken_at: deque[float] = deque()
        self._next_at = 0.0
        self._paused_at = self._paused_until = float("-inf")
        self._pause_seconds = 0.0
        self._refused_at = 0.0
        self._is_recovering = False
        self._is_trying = False
        self._is_told = False  # whether the API said how long to pause

    def queue_up(self, ticket: object) -> None:
        """Add a request to the queue. Requests are sent in the order in which they joined it."""
        self._queue.append(ticket)

    def leave(self, ticket: object) -> None:
        """Remove a request from the queue, after it was sent or cancelled."""
        self._queue.remove(ticket)

    def wait_seconds(self, ticket: object, now: float) -> float:
        """0 if the request may be sent now, which uses its turn; otherwise how long to wait before the next call."""
        if now < self._paused_until:
            return self._paused_until - now
        if self._is_recovering:
            if self._is_trying or self._queue[0] is not ticket:
                return _LOOK_SECONDS
            self._is_trying = True
            return 0.0
        if self.per_second is None:
            return 0.0
        if self._queue[0] is not ticket:
            return max(_LOOK_SECONDS, self._next_at - now)
        if now < self._next_at:
            return self._next_at - now
        self._next_at = now + 1 / self._grown(self.per_second, now)
        return 0.0

    def _grown(self, per_second: float, now: float) -> float:
        return per_second * (1 + ((now - self._recovered_at) / _DOUBLED_SECONDS) ** 3)

    def refused(self, sent_at: float, now: float, wish_seconds: float | None) -> None:
        """The API answered 429 to the request sent at `sent_at`; `wish_seconds` is its `Retry-After`."""
        if sent_at < self._paused_at:  # it was sent before the pause began: part of the same refusal
            self._paused_until = max(self._paused_until, now + (wish_seconds or 0.0))
            return
        if not self._is_recovering:
            self._refused_at = now
            if self.per_second is not None and not wish_seconds:
                self.per_second = max(_MIN_PER_SECOND, self._grown(self.per_second, now) / 2)
            self._is_told = bool(wish_seconds)
        self._is_recovering, self._is_trying = True, False
        self._pause_seconds = min(MAX_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, self._pause_seconds * 2))
        self._paused_at = now
        self._paused_until = now + (wish_seconds or self._pause_seconds) + _MARGIN_SECONDS

    def taken(self, sent_at: float, now: float) -> None:
        """The API accepted a request: it gave any answer except 429."""
        if self._is_recovering:
            if sent_at < self._paused_at:
                return
            self._is_recovering = self._is_trying = False
            self._pause_seconds = 0.0
            self._recovered_at = now
            if self.per_second is None and not self._is_told:
                self.per_second = self._measured(now)
            if self.per_second is not None:
                self._next_at = now + 1 / self.per_second
        elif self.per_second is not None and self._grown(self.per_second, now) > _MAX_PER_SECOND:
            self.per_second = None
        self._taken_at.append(now)
        while now - self._taken_at[0] > _MEASURED_SECONDS:
            self._taken_at.popleft()

    def _measured(self, now: float) -> float:
        """How many requests per second were accepted. The time of the pause counts."""
        if not self._taken_at:
            return 1.0
        return max(_MIN_PER_SECOND, len(self._taken_at) / max(1.0, now - self._taken_at[0]))

    def refused_seconds(self, now: float) -> float | None:
        """How long every request has been refused; None while requests are accepted."""
        return now - self._refused_at if self._is_recovering else None

    def lost(self) -> None:
        """No answer came, so the trial showed nothing, and another request may be the next trial."""
        self._is_trying = False
