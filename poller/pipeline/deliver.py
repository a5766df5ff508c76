"""Delivering: one sink, one batch at a time, in order, until it is accepted or set apart with a reason."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from poller.core.delivery import (
    CRASHED,
    POSTPONE_AT_ATTEMPT,
    Decision,
    Halve,
    Park,
    RetryAfter,
    RetryPolicy,
    Settle,
    Shrink,
    Wait,
    decide,
    failure_kind,
    wait_after,
)
from poller.core.errors import LeaseLostError, PollerError, place_of
from poller.core.events import OutboxEvent
from poller.pipeline.forbidden import Forbidden
from poller.pipeline.pieces import Piece, key_of, pieces_of
from poller.pipeline.queues import Queue, Queues
from poller.pipeline.standing import Standing
from poller.sinks.base import OwnOutput, Sink
from poller.store.parts import Outbox, Place
from poller.store.rows import DeadLetter

log = logging.getLogger(__name__)

# How long to wait before asking again whether the replica that delivers the sink is gone.
_TURN_SECONDS = 5.0
# How many batches, in bytes, are searched for an event that is accepted, if others are answered with 403.
_MOST_BATCHES = 4


class StepResult(NamedTuple):
    """The result of a step: how many events were settled, and how long to wait (None: until something new is collected)."""

    settled: int
    wait_seconds: float | None


class Deliverer:
    """Delivers the waiting events to one sink. `step` does one unit of work; the caller decides when the next step is due.

    It keeps events in hand between steps, for example the halves of a refused batch. Each half is settled separately, in order.

    A contract that the sink does not accept while it accepts others waits in its own queue. Both queues take turns.
    """

    def __init__(
        self,
        outbox: Outbox,
        sink: Sink,
        *,
        redact: Callable[[bytes], bytes] | None = None,
        clock: Callable[[], float] = time.time,
        on_failed: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """`redact` is applied to each line before it is sent or stored as a dead letter. `on_failed` is called with the kind of
        failure, one word, for each send that was not accepted whole.

        Takes the place of the sink; `abandon` releases it.  Raises: StateError; LeaseLostError while another process has it.
        """
        self._sink = sink
        self._settings = settings = sink.settings
        self._redact = redact
        self._queues = Queues(settings.batch_events)
        # Our own output has one order for all contracts.
        self._is_parting = not isinstance(sink, OwnOutput)
        self._retry = RetryPolicy(settings.retry_initial_seconds, settings.retry_max_seconds)
        self._clock = clock
        self._on_failed = on_failed
        self.refusal = ""
        """Why the sink is parked; empty if it is not parked, or was not tried yet."""
        self._pieces: deque[Piece] = deque()
        self._forbidden = Forbidden(sink)
        # Batches for stdout are logged at DEBUG only, because their events are visible anyway.
        self._sent_level = logging.DEBUG if settings.type == "stdout" else logging.INFO
        outbox.register(settings.name, settings.type)
        self._standing = Standing(outbox, sink, clock, self._queues.begin)

    def _held(self) -> Place:
        """The sink's place.  Raises: LeaseLostError once it was given up."""
        return self._standing.place()

    @property
    def sink_name(self) -> str:
        return self._sink.name

    def abandon(self) -> None:
        """Write nothing any more: the place of the sink belongs to a successor now. A send in flight may still end."""
        self._standing.abandon()

    def finish(self) -> None:
        """Settle events that the sink accepted while a full disk prevented settling. Otherwise they are sent again later.

        Raises: StateError; LeaseLostError if the place is lost or released.
        """
        while self._pieces and not self._pieces[0].open():
            self._settle(self._pieces[0], 0.0)

    def step(self, *, is_last: bool = False) -> StepResult:
        """Send one batch, or one piece of it. `is_last`: nothing more will be collected, so a batch does not wait to be filled.

        Raises: StateError; OutputError if the sink is our own output; LeaseLostError if the place is lost or released.
        """
        try:
            self._standing.take()
            if not self._standing.is_our_turn():
                self._pieces.clear()
                return StepResult(0, _TURN_SECONDS)
            return self._step(is_last=is_last)
        except LeaseLostError:  # the events in hand belong to another process now
            self._pieces.clear()
            self._standing.drop()
            raise

    def _step(self, *, is_last: bool) -> StepResult:
        if (seconds := self._standing.wait_seconds()) > 0:
            return StepResult(0, seconds)
        if not self._pieces:
            wait = self._fill(is_last=is_last)
            if not self._pieces:
                return StepResult(0, wait)
        piece = self._pieces[0]
        still = piece.open()
        if not still:
            return self._settle(piece, 0.0)
        queue = self._queues.current
        if len(still) > queue.size.now:
            return self._halve(piece)
        self._held().ensure_held()
        started = time.monotonic()
        events = piece.events if len(still) == len(piece.events) else [piece.events[index] for index in still]
        outcome = self._sink.send(events)
        is_doubtful = queue.size.is_doubtful(len(still))
        decision = decide(outcome, len(still), queue.attempts + 1, self._retry, random.random, is_doubtful=is_doubtful)
        if not isinstance(decision, Settle) or decision.retry:
            self._on_failed(failure_kind(outcome))
        if not isinstance(decision, Park):
            self._forbidden.note(events, decision)
        return self._carry_out(decision, piece, still, time.monotonic() - started)

    def _fill(self, *, is_last: bool) -> float | None:
        """Take the next batch in hand.  Returns: how long to wait if there is none; None: until something is collected."""
        others = self._queues.others
        turns, waits = self._queues.turns(self._held(), self._clock()) if self._is_parting else ([others], [])
        for queue in turns:
            batch = self._held().batch(queue.size.now, self._settings.batch_bytes, queue.contract)
            if batch is None:
                continue
            # The batch is neither full nor old enough: wait for more events.
            if queue is others and not is_last and not batch.has_more and len(batch.events) < queue.size.now:
                age = self._clock() - batch.events[0].collected_at
                if 0 <= age < self._settings.batch_age_seconds:
                    waits.append(self._settings.batch_age_seconds - age)
                    continue
            self._queues.take_up(queue)
            self._take(batch.events)
            break
        return min(waits, default=None)

    def _take(self, events: Sequence[OutboxEvent]) -> None:
        """Take events in hand, redacted and cut for this sink. Events whose outcome is known are marked."""
        self._pieces.extend(map(self._queues.knowing, pieces_of(self._sink, events, self._redact)))

    def _take_more(self) -> bool:
        """Also take the next events of the queue in hand.  Returns: whether there are any."""
        held = [event for piece in self._pieces for event in piece.events]
        most_bytes = _MOST_BATCHES * self._settings.batch_bytes
        batch = self._held().batch(2 * len(held) + 1, most_bytes, self._queues.current.contract)
        if batch is None or [*map(key_of, batch.events[: len(held)])] != [*map(key_of, held)]:
            return False
        if more := batch.events[len(held) :]:
            self._take(more)
        return bool(more)

    def hold(self, error: Exception) -> float:
        """Wait as after a failed send, because a step ended with `error`. Returns seconds.

        Raises: StateError; LeaseLostError if the place is lost or released.
        """
        if not self._pieces:
            self._queues.take_up(self._queues.others)
        still = self._pieces[0].open() if self._pieces else ()
        queue, count = self._queues.current, len(still)
        is_crash = not isinstance(error, PollerError)
        # The message of a foreign exception is never logged: it may contain a part of an event.
        reason = f"{CRASHED}: {type(error).__name__} in {place_of(error)}" if is_crash else str(error)
        later = RetryAfter(reason, is_size_suspect=is_crash)
        is_doubtful = queue.size.is_doubtful(count)
        wait = wait_after(later, count, queue.attempts + 1, self._retry, random.random, is_doubtful)
        self._on_failed("crashed" if is_crash else failure_kind(later))
        return self._retry_later(wait, still).wait_seconds or 0.0

    def _carry_out(self, decision: Decision, piece: Piece, still: Sequence[int], seconds: float) -> StepResult:
        match decision:
            case Settle(dead, retry, status, later):
                letters = {
                    still[index]: DeadLetter(piece.events[still[index]], status, reason)
                    for index, reason in dead.items()
                }
                again = {still[index] for index in retry}
                delivered = piece.delivered.union(still).difference(letters, again)
                piece = Piece(piece.events, {**piece.dead, **letters}, delivered)
                self._pieces[0] = piece
                if later is not None:
                    taken = {piece.events[index].contract for index in still if index in delivered}
                    return self._settle_part(piece, sorted(again), later, taken, seconds)
                queue = self._queues.current
                queue.size = queue.size.after_success(len(still))
                self._queues.taken_whole()
                return self._settle(piece, seconds)
            case Halve():
                log.debug("batch.halved", extra={"sink": self._sink.name, "events": len(still)})
                return self._halve(piece)
            case Shrink(reason, status):
                self._pieces[0] = piece.shrunk(still[0], reason, status, is_cut=self._settings.oversize == "truncate")
                return StepResult(0, 0.0)
            case Wait():
                return self._retry_later(decision, still)
            case Park():
                return self._forbidden_or_parked(decision, piece, still)

    def _forbidden_or_parked(self, park: Park, piece: Piece, still: Sequence[int]) -> StepResult:
        """Park the sink, unless it answers 403 to one of these events while it accepts others: find that one, and refuse it."""
        event, queue, count = piece.events[still[0]], self._queues.current, len(still)
        is_proven = park.is_doubtful and self._forbidden.is_proven(event, count)
        if is_proven and count == 1:
            self._pieces[0] = piece._replace(dead={**piece.dead, still[0]: DeadLetter(event, 403, park.reason)})
            return StepResult(0, 0.0)
        if not is_proven and not (park.is_doubtful and self._is_another_accepted(count)):
            if queue.contract is None:
                self._put_down({event.contract for piece in self._pieces for event in piece.events})
            else:
                self._part_from({queue.contract}, Wait(park.seconds, park.reason))
            return self._put_off(park, count)
        self.refusal = ""
        if count == 1:
            return self._put_off(Wait(self._retry.wait_seconds(queue.attempts + 1, random.random), park.reason), 1)
        piece = self._pieces[0]  # as it is now: another event of it may be accepted
        return self._halve(piece) if len(piece.open()) > 1 else StepResult(0, 0.0)

    def _is_another_accepted(self, count: int) -> bool:
        """Whether the sink accepts an event other than the first `count`, which it has answered with 403."""
        self._held().ensure_held()
        while not self._forbidden.is_another_accepted(self._pieces, count):
            if not self._take_more():
                return False
        return True

    def _put_off(self, decision: Wait | Park, count: int) -> StepResult:
        """Keep all waiting events, and send `count` events again later."""
        if isinstance(decision, Wait):
            self._wait(decision, count)
            return StepResult(0, decision.seconds)
        self.refusal = reason = decision.reason
        told = reason if reason.endswith(")") else f"{reason} ({self._sink.key_remedy})"  # unless it names a remedy
        self._postpone(decision.seconds, told, is_parked=True)
        hint = "nothing is lost: it is tried again every minute"
        log.error("sink.parked", extra={"sink": self._sink.name, "why": told, "hint": hint})
        return StepResult(0, decision.seconds)

    def _halve(self, piece: Piece) -> StepResult:
        self._pieces.popleft()
        self._pieces.extendleft(reversed(piece.halves()))
        return StepResult(0, 0.0)

    def _settle_part(
        self, piece: Piece, again: Sequence[int], wait: Wait, taken: Collection[str], seconds: float
    ) -> StepResult:
        """Settle the events before the first one that must be sent again (`again`), and wait with the rest.

        `taken` are the contracts of the events that the sink has just accepted.
        """
        start, queue, others = again[0], self._queues.current, self._queues.others
        attempts = queue.attempts, others.attempts
        if start:
            self._pieces[0] = piece.part(start, len(piece.events))
            self._pieces.appendleft(piece.part(0, start))
            self._settle(self._pieces[0], seconds)
        queue.attempts, others.attempts = attempts
        result = self._retry_later(wait, [index - start for index in again], taken)
        return result._replace(settled=start + result.settled)

    def _retry_later(self, wait: Wait, again: Sequence[int], taken: Collection[str] = ()) -> StepResult:
        """Wait with the events of the first piece that were not accepted (`again`).

        Their contracts wait in queues of their own if the sink has just accepted others (`taken`), or if it failed so often that
        each contract is tried alone.
        """
        queue, others = self._queues.current, self._queues.others
        self._reduce(queue, wait, len(again))
        if queue.contract is not None:
            self._part_from({queue.contract}, wait)
            if not others.attempts:
                return StepResult(0, 0.0)
            self._wait(wait, len(again))  # the sink did not accept other contracts either
            return StepResult(0, wait.seconds)
        stuck = {self._pieces[0].events[index].contract for index in again} if self._is_parting else set()
        if self._is_parting and (self._queues.is_any_stuck or not stuck.issuperset(taken)):
            # The requested wait concerns these contracts. The sink accepts others, so it can wait less, but long enough for a
            # limit of bytes per second to pass.
            times = self._queues.note_stuck(stuck, taken, self._pieces[0].events[again[0]])
            pause = self._retry.wait_seconds(times, lambda: 1.0)
            if times < POSTPONE_AT_ATTEMPT:
                self._wait(wait._replace(seconds=min(wait.seconds, pause)), len(again))
                return StepResult(0, min(wait.seconds, pause))
            settled = self._part_from(self._queues.long_stuck(), wait)
            self._standing.pause(pause)
            return StepResult(settled, pause)
        attempts, settled = others.attempts, 0
        is_doubtful = bool(stuck) and attempts + 1 >= POSTPONE_AT_ATTEMPT
        if is_doubtful and (len(stuck) > 1 or self._queues.has_own or self._held().has_others(stuck)):
            settled = self._part_from(stuck, wait)
        others.attempts = attempts
        self._wait(wait, len(again))
        return StepResult(settled, wait.seconds)

    def _part_from(self, contracts: Collection[str], wait: Wait) -> int:
        """Move contracts, and their events in hand, to queues of their own.  Returns: how many events of others are settled."""
        now = self._clock()
        for piece in self._pieces:
            self._queues.remember(piece, contracts)
        for contract in sorted(contracts):
            queue = self._queues.part(contract)
            self._held().postpone_contract(contract, queue.attempts + 1, now, now + wait.seconds, wait.reason)
            queue.attempts += 1
            extra = {"contract": contract, "attempt": queue.attempts, "wait_seconds": round(wait.seconds, 3)}
            log.warning("contract.postponed", extra={"sink": self._sink.name, **extra, "why": wait.reason})
        pieces = [piece.without(contracts) for piece in self._pieces]
        if pieces:  # in the first piece, the events before the first unsent one were accepted or refused
            first, *others = pieces
            done = next(iter(first.open()), len(first.events))
            pieces = [first.part(0, done), first.part(done, len(first.events)), *others]
        self._pieces = deque(piece for piece in pieces if piece.events)
        return self._settle(pieces[0], 0.0).settled if pieces and pieces[0].events else 0

    def _reduce(self, queue: Queue, wait: Wait, count: int) -> None:
        """Send fewer events of a queue at once if the number of events (`count`) can be why they were not accepted."""
        if wait.is_halved:
            queue.size = queue.size.after_failure(count)
            log.info("batch.size_reduced", extra={"sink": self._sink.name, "events": queue.size.now})

    def _wait(self, wait: Wait, count: int) -> None:
        """Postpone sending `count` events."""
        self._postpone(wait.seconds, wait.reason, is_parked=False)
        extra = {"events": count, "attempt": self._queues.others.attempts, "wait_seconds": round(wait.seconds, 3)}
        log.warning("batch.retry_scheduled", extra={"sink": self._sink.name, **extra, "why": wait.reason})

    def _settle(self, piece: Piece, seconds: float) -> StepResult:
        """Remove the first piece from the outbox: each of its events was accepted, or has a dead letter."""
        if piece.open():  # a bug of ours: stop, so that no event is lost
            raise RuntimeError("an event that was neither taken nor refused would leave the outbox")
        count = len(piece.events)
        letters = [piece.dead[index] for index in sorted(piece.dead)]
        self._standing.settle(count, letters)
        self._pieces.popleft()
        self._queues.settled(piece)
        self._let_go_of_joined()
        self.refusal = ""
        extra = {"events": count - len(letters), "dead": len(letters), "seconds": round(seconds, 3)}
        log.log(self._sent_level, "batch.sent", extra={"sink": self._sink.name, **extra})
        if letters:
            self._tell_of_dead(letters)
        return StepResult(count, 0.0)

    def _let_go_of_joined(self) -> None:
        """Release the events in hand of a contract whose own queue has ended: they come again with the others."""
        contract = self._queues.current.contract
        if contract and self._pieces and contract not in {row.contract for row in self._held().postponed()}:
            self._put_down({contract})

    def _put_down(self, contracts: Collection[str]) -> None:
        """Release all events in hand, so that another queue has its turn. Finished events of these contracts are remembered."""
        for piece in self._pieces:
            self._queues.remember(piece, contracts)
        self._pieces.clear()

    def _tell_of_dead(self, letters: Sequence[DeadLetter]) -> None:
        hint = (
            "`ionos-poller dead-letters list` (--use for a backfill) shows them, `dead-letters replay` sends them again"
        )
        extra = {"sink": self._sink.name, "events": len(letters), "why": letters[0].reason, "hint": hint}
        log.error("event.dead_lettered", extra=extra)

    def _postpone(self, wait: float, reason: str, *, is_parked: bool) -> None:
        self._queues.others.attempts += 1
        self._standing.postpone(self._queues.others.attempts, wait, reason, is_parked=is_parked)
