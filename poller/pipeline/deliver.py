"""Delivering: one sink, one batch at a time, in order, until it is accepted or set apart with a reason."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from poller.delivery import Decision, Halve, Park, RetryPolicy, Settle, Shrink, Wait, decide
from poller.sinks import Sink
from poller.store.outbox import DeadLetter, Outbox
from poller.events import OutboxEvent

log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """What one step did: events settled, and how long nothing is to be done (None: until something new is collected)."""

    settled: int
    wait_seconds: float | None


class _Piece(NamedTuple):
    """Events that go out together: `events` of them still to be sent, out of `count`, the others already `dead` or delivered."""

    events: Sequence[OutboxEvent]
    count: int
    dead: tuple[DeadLetter, ...] = ()


class Deliverer:
    """Brings one sink what waits for it. `step` does one unit of work; the caller decides when the next one is due.

    What is in flight is kept between steps: the halves of a batch that was refused, each settled on its own, in order.
    """

    def __init__(
        self,
        outbox: Outbox,
        sink: Sink,
        *,
        retry: RetryPolicy = RetryPolicy(),
        clock: Callable[[], float] = time.time,
        on_settled: Callable[[int, int], None] = lambda delivered, dead: None,
        on_failed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._outbox = outbox
        self._sink = sink
        self._retry = retry
        self._clock = clock
        self._on_settled = on_settled
        self._on_failed = on_failed
        self._pieces: deque[_Piece] = deque()
        row = outbox.register(sink.name, sink.type)
        self._attempts = row.attempts
        self._not_before = row.retry_at or 0.0
        self._parked_at = row.parked_at

    def step(self) -> Progress:
        """Send one batch, or one piece of it.  Raises: StateError; OutputError where the sink is our own output."""
        now = self._clock()
        # A clock set back must not make a wait of seconds one of hours.
        if 0 < self._not_before - now <= self._retry.max_seconds + 3600:
            return Progress(0, self._not_before - now)
        if not self._pieces:
            batch = self._outbox.batch(self._sink.name, self._sink.batch_events, self._sink.batch_bytes)
            if batch is None:
                return Progress(0, None)
            self._pieces.append(_Piece(batch.events, len(batch.events)))
        piece = self._pieces[0]
        started = time.monotonic()
        outcome = self._sink.send(piece.events)
        decision = decide(outcome, len(piece.events), self._attempts + 1, self._retry, random.random)
        return self._carry_out(decision, piece, time.monotonic() - started)

    def _carry_out(self, decision: Decision, piece: _Piece, seconds: float) -> Progress:
        match decision:
            case Settle(dead, retry, status):
                return self._settle(piece, dead, retry, status, seconds)
            case Halve():
                self._pieces.popleft()
                middle = len(piece.events) // 2
                # What was already settled in memory goes with the second half: it is committed after the first.
                done = piece.count - len(piece.events)
                self._pieces.appendleft(
                    _Piece(piece.events[middle:], len(piece.events) - middle + done, piece.dead)
                )
                self._pieces.appendleft(_Piece(piece.events[:middle], middle))
                log.debug("batch.halved", extra={"sink": self._sink.name, "events": len(piece.events)})
                return Progress(0, 0.0)
            case Shrink(reason, status):
                return self._shrink(piece, reason, status, seconds)
            case Wait(wait, reason):
                self._postpone(wait, reason, parked_at=None)
                log.warning(
                    "batch.retry_scheduled",
                    extra={
                        "sink": self._sink.name,
                        "events": len(piece.events),
                        "attempt": self._attempts,
                        "wait_seconds": round(wait, 3),
                        "why": reason,
                    },
                )
                return Progress(0, wait)
            case Park(wait, reason):
                self._postpone(wait, reason, parked_at=self._parked_at or self._clock())
                log.error(
                    "sink.parked",
                    extra={
                        "sink": self._sink.name,
                        "why": reason,
                        "hint": "nothing is lost: replace the key, it is read again every minute",
                    },
                )
                return Progress(0, wait)

    def _settle(
        self, piece: _Piece, dead: dict[int, str], retry: Sequence[int], status: int | None, seconds: float
    ) -> Progress:
        letters = (
            *piece.dead,
            *(DeadLetter(piece.events[index], status, reason) for index, reason in dead.items()),
        )
        self._pieces.popleft()
        if retry:
            rest = _Piece([piece.events[index] for index in retry], piece.count, letters)
            self._pieces.appendleft(rest)
            return Progress(0, 0.0)
        self._outbox.settle(self._sink.name, piece.count, dead=letters, now=self._clock())
        self._attempts, self._not_before, self._parked_at = 0, 0.0, None
        delivered = piece.count - len(letters)
        self._on_settled(delivered, len(letters))
        log.info(
            "batch.sent",
            extra={
                "sink": self._sink.name,
                "events": delivered,
                "dead": len(letters),
                "seconds": round(seconds, 3),
            },
        )
        for letter in letters[:1]:
            log.error(
                "event.dead_lettered",
                extra={
                    "sink": self._sink.name,
                    "events": len(letters),
                    "why": letter.reason,
                    "hint": "`ionos-poller dead-letters list` shows them",
                },
            )
        return Progress(piece.count, 0.0)

    def _shrink(self, piece: _Piece, reason: str, status: int | None, seconds: float) -> Progress:
        return self._settle(piece, {0: reason}, (), status, seconds)

    def _postpone(self, wait: float, reason: str, *, parked_at: float | None) -> None:
        self._attempts += 1
        self._not_before = self._clock() + wait
        self._parked_at = parked_at
        self._outbox.postpone(self._sink.name, self._attempts, self._not_before, reason, parked_at=parked_at)
        self._on_failed(reason)
