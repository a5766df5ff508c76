"""What the tests of the sink `loki` share: a Loki without a network, and an outbox without a disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from poller.config import Config, LokiSink
from poller.core.delivery import Outcome, RetryAfter
from poller.core.events import OutboxEvent
from poller.pipeline.deliver import Deliverer
from poller.simulator.answers import Request
from poller.simulator.loki import LokiIntake
from poller.simulator.settings import SimulatorSettings
from poller.sinks import loki
from poller.sinks.base import Context
from poller.sinks.http import outcome_of
from poller.store.rows import Batch, DeadLetter, Postponed, Sink

Fault = Callable[[int], str]
"""The fault for the request of this number, from 1: "" for none, `lost-ack`, or `503`."""


class Loki:
    """The simulator's Loki behind a sink's endpoint. `requests` counts the requests; `lines_of` returns the lines of a push."""

    def __init__(self, fault: Fault = lambda number: "", **settings: Any) -> None:
        self.intake = LokiIntake()
        self.settings = SimulatorSettings(keep_lines=True, **settings)
        self.fault = fault
        self.requests = 0
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self.before_answer: Callable[[], object] = lambda: None

    def sink(
        self,
        *,
        clock: Callable[[], float] = time.time,
        stop: threading.Event | None = None,
        **settings: Any,
    ) -> loki.LokiSink:
        quick = {"retry_initial_seconds": 0.01, "retry_max_seconds": 0.01, "batch_age_seconds": 0.0}
        table = LokiSink(**{"name": "loki", "url": "http://127.0.0.1:1", **quick, **settings})
        sink = loki.LokiSink(table, Context(Config(), stop or threading.Event()), clock=clock)
        sink._endpoint = self  # type: ignore[assignment]
        return sink

    def post(self, body: bytes, below: str = "") -> Outcome:
        with self._lock:
            self.requests += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = self.fault(self.requests)
        self.before_answer()
        with self._lock:
            self.at_once -= 1
            if fault == "503":
                return RetryAfter("HTTP 503")
            verdict = self.intake.judge(Request("POST", "/", {}, {}, body), self.settings)
            self.intake.store(verdict.items, keep_lines=True)
        if fault == "lost-ack":
            return RetryAfter("the connection broke", None, is_size_suspect=True)
        return outcome_of(verdict.answer.status, loki.SUCCESSES, verdict.answer.body.decode()[:200], place="url")

    @property
    def lines(self) -> list[bytes]:
        """The lines that a user finds, including repeats that Loki does not merge."""
        return sorted(self.intake.lines)


class Outbox:
    """The events that wait for one sink, and its place. Settled events are removed."""

    row = Sink("loki", "loki")

    def __init__(self, events: Sequence[OutboxEvent]) -> None:
        self.waiting = list(events)
        self.dead: list[DeadLetter] = []
        self._own: dict[str, Postponed] = {}
        self._contract: str | None = None

    def register(self, name: str, type_: str) -> Sink:
        return self.row

    def take(self, sink: str, *, is_whole: bool = False) -> Outbox:
        return self

    def release(self) -> None:
        """Does nothing: no other process uses the place."""

    def ensure_held(self) -> None:
        """Does nothing: the place is always held."""

    def retry_at(self, sink: str) -> float | None:
        """None: nobody asks for a retry."""

    def postponed(self) -> Sequence[Postponed]:
        return list(self._own.values())

    def has_others(self, contracts: Collection[str]) -> bool:
        return any(event.contract not in self._own.keys() | contracts for event in self.waiting)

    def postpone_contract(self, contract: str, attempts: int, now: float, retry_at: float, failure: str) -> None:
        self._own[contract] = Postponed(contract, attempts, now, retry_at, failure, now)

    def _of(self, contract: str | None) -> list[OutboxEvent]:
        return [
            event
            for event in self.waiting
            if (event.contract == contract if contract else event.contract not in self._own)
        ]

    def batch(self, max_events: int, max_bytes: int, contract: str | None = None) -> Batch | None:
        self._contract = contract
        found = self._of(contract)
        return Batch(found[:max_events], len(found) > max_events) if found else None

    def settle(self, count: int, *, dead: Sequence[DeadLetter] = (), now: float, output_offset: int | None) -> None:
        gone = {id(event) for event in self._of(self._contract)[:count]}
        self.waiting = [event for event in self.waiting if id(event) not in gone]
        self.dead += dead
        if self._contract is not None:
            self._own.pop(self._contract, None)

    def postpone(self, *args: Any, **options: Any) -> None:
        """Does nothing: the wait is not stored."""


def deliver(outbox: Outbox, sink: loki.LokiSink, *, steps: int = 100_000) -> None:
    """Deliver until nothing waits, or for `steps` steps. After that the batch in flight is lost, as after a kill."""
    now = 0.0
    deliverer = Deliverer(outbox, sink, clock=lambda: now)  # type: ignore[arg-type]
    for _ in range(steps):
        wait = deliverer.step(is_last=True).wait_seconds
        if wait is None:
            return
        now += wait
