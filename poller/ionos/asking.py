"""When a request to the API may be sent: the pace of its account, the rate limit, and the turn of its contract.

`pace` and `turns` decide, this module waits. Their data is shared by threads and locked here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from poller.core.errors import BodyTooLargeError, StoppedError, TransientError
from poller.core.pace import Pace
from poller.core.turns import Turns
from poller.net.transport import RateLimit, Response, retry_after_seconds
from poller.system.liveness import moves

# How long to wait for an account that gets 429. A longer wait is left to the next poll; nothing is lost.
PATIENCE_SECONDS = 30.0
# The same if pages that were read already would be lost.
LONG_PATIENCE_SECONDS = 300.0
_LOOK_SECONDS = 0.5  # how often to look for a stop


class PausedError(TransientError):
    """The account is limited (429) for longer than we wait. Nothing was sent."""


class SharedTurns:
    """`Turns` for several threads."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._turns = Turns(count)
        self._changed = threading.Condition()
        self._clock = clock

    def begin(self, contract: str, stop: threading.Event) -> object:
        """Wait for a turn.  Raises: StoppedError."""
        ticket = object()
        with self._changed:
            self._turns.queue_up(ticket, contract)
            try:
                while wait := self._turns.wait_seconds(ticket, self._clock()):
                    moves(_LOOK_SECONDS)
                    self._changed.wait(min(wait, _LOOK_SECONDS))
                    if stop.is_set():
                        raise StoppedError("asked to stop")
            finally:
                self._turns.leave(ticket)
                self._changed.notify_all()
        return ticket

    def end(self, ticket: object, *, is_answered: bool) -> None:
        with self._changed:
            self._turns.end(ticket, self._clock(), is_answered=is_answered)
            self._changed.notify_all()

    def is_slow(self, contract: str) -> bool:
        """Whether the last request of a contract was not answered in time."""
        with self._changed:
            return self._turns.is_slow(contract)

    def ended_after(self, contract: str, tries: int) -> None:
        with self._changed:
            self._turns.ended_after(contract, tries)

    def hanging_count(self) -> int:
        with self._changed:
            return self._turns.hanging_count(self._clock())

    def admit(self, contract: str) -> bool:
        with self._changed:
            return self._turns.admit(contract, self._clock())

    def dismiss(self, contract: str) -> None:
        with self._changed:
            self._turns.dismiss(contract)


class Asking:
    """The requests of one account. Safe to use from several threads at once."""

    def __init__(
        self,
        rate_limit: RateLimit,
        turns: SharedTurns,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate_limit = rate_limit
        self.turns = turns
        self._stop = stop
        self._clock = clock
        self._pace = Pace()
        self._lock = threading.Lock()

    def ask(self, contract: str, send: Callable[[], Response], patience_seconds: float = PATIENCE_SECONDS) -> Response:
        """Wait until a request may be sent, send it, and note the result for later requests.

        Raises: what `send` raises; PausedError if the account is limited for longer than `patience_seconds`; StoppedError.
        """
        self._await_pace(contract, patience_seconds)
        with self._rate_limit.wait(self._stop):
            ticket = self.turns.begin(contract, self._stop)
            response, is_answered = None, False
            sent_at = self._clock()
            try:
                response = send()
                is_answered = True
            except BodyTooLargeError:
                is_answered = True
                raise
            finally:
                self.turns.end(ticket, is_answered=is_answered)
                self._learn(response, sent_at)
        return response

    def _await_pace(self, contract: str, patience_seconds: float) -> None:
        ticket = object()
        with self._lock:
            self._pace.queue_up(ticket)
        try:
            while True:
                with self._lock:
                    now = self._clock()
                    wait, refused_seconds = self._pace.wait_seconds(ticket, now), self._pace.refused_seconds(now)
                if not wait:
                    return
                if refused_seconds is not None and refused_seconds + wait > patience_seconds:
                    raise PausedError(
                        f"the API answered 429, and is asked nothing more for this account for {wait:.0f} s",
                        status=429,
                        retry_after_seconds=wait,
                        hint="it is asked again at a later poll; nothing is lost",
                        contract=contract,
                    )
                if self._stop.wait(wait):
                    raise StoppedError("asked to stop")
        finally:
            with self._lock:
                self._pace.leave(ticket)

    def _learn(self, response: Response | None, sent_at: float) -> None:
        now = self._clock()
        with self._lock:
            if response is None:
                self._pace.lost()
            elif response.status == 429:
                self._pace.refused(sent_at, now, retry_after_seconds(response.headers, datetime.now(UTC)))
            else:
                self._pace.taken(sent_at, now)
