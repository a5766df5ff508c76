"""The deliverer and 403: a firewall blocks one event, or the receiver refuses our credentials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from poller.config.sinks import HttpSink as Settings
from poller.core.delivery import PARKED_RETRY_SECONDS, Accepted, CredentialsRefused, Outcome, Refused, RetryAfter
from poller.core.events import Event, OutboxEvent
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.sinks.base import Sink
from poller.store.protocols import State
from tests.deliveries import Clock, deliver
from tests.states import commit

pytestmark = pytest.mark.backends("sqlite")  # tests/property/test_deliverer.py tries both


class Firewalled(Sink):
    """Answers 403 to a request with a blocked event, and to every request while the key is revoked."""

    def __init__(self, *blocked: int, batch_events: int = 100) -> None:
        settings: Any = Settings(name="out", url="http://127.0.0.1", batch_age_seconds=0.0, batch_events=batch_events)
        super().__init__(settings)
        self.blocked = set(blocked)
        self.is_revoked = False
        self.requests: list[list[int]] = []
        self.taken: list[int] = []

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        numbers = [event.time_us for event in events]
        self.requests.append(numbers)
        if self.is_revoked or self.blocked.intersection(numbers):
            return CredentialsRefused("HTTP 403: blocked", 403)
        self.taken += numbers
        return Accepted(status=200)

    def probe(self) -> Outcome:
        return Accepted()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def collect(state: State, *numbers: int) -> None:
    events = [Event(number, number.to_bytes(16), b'{"n":%d}' % number, True, True) for number in numbers]
    commit(state, events, window=Window(0, 9), now=9)


def dead(state: State) -> list[int]:
    return [letter.time_us for letter in state.dead_letters.find()]


@pytest.mark.parametrize(
    "blocked",
    [[1], [20], [10], [1, 20], [5, 6, 7], [1, 2, 3, 4, 5], [2, 9, 13], list(range(1, 20)), list(range(2, 21))],
)
@pytest.mark.parametrize("batch_events", [3, 100])
def test_events_that_a_firewall_blocks_become_dead_letters_and_all_others_are_delivered(
    state: State, clock: Clock, blocked: list[int], batch_events: int
) -> None:
    sink = Firewalled(*blocked, batch_events=batch_events)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, *range(1, 21))
    deliver(deliverer, clock, 3600.0)
    # Later accepted events show that the credentials are good, in case no event of the first batches showed it.
    for number in range(21, 80):
        collect(state, number)
        deliver(deliverer, clock, 3600.0)
    assert dead(state) == blocked
    assert sorted(sink.taken) == [number for number in range(1, 80) if number not in blocked]
    (row,) = state.overview().sinks
    assert (row.waiting, row.sink.parked_at, deliverer.refusal) == (0, None, "")
    assert state.overview().imbalances() == []
    assert {letter.status for letter in state.dead_letters.find()} == {403}
    assert {letter.reason for letter in state.dead_letters.find()} == {"HTTP 403: blocked"}


def test_a_revoked_key_makes_no_dead_letter_and_costs_one_request_more_at_each_attempt(
    state: State, clock: Clock
) -> None:
    sink = Firewalled()
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, *range(1, 21))
    sink.is_revoked = True
    assert not deliver(deliverer, clock, 10 * PARKED_RETRY_SECONDS)
    (row,) = state.overview().sinks
    assert (dead(state), row.waiting, row.sink.parked_at) == ([], 20, 1000.0)
    assert [len(numbers) for numbers in sink.requests] == [20, 1] * (len(sink.requests) // 2)
    assert len(sink.requests) <= 2 * 11
    sink.is_revoked = False
    assert deliver(deliverer, clock, PARKED_RETRY_SECONDS)
    assert (sink.taken, dead(state)) == ([*range(1, 21)], [])


def test_a_key_that_is_revoked_while_a_blocked_event_is_looked_for_costs_no_other_event(
    state: State, clock: Clock
) -> None:
    for after in range(1, 12):
        sink = Firewalled(4)
        deliverer = Deliverer(state.outbox, sink, clock=clock)
        collect(state, *range(after * 100, after * 100 + 20))
        sink.blocked = {after * 100 + 3}
        for _ in range(after):
            deliverer.step()
        sink.is_revoked = True
        deliver(deliverer, clock, 600.0)
        sink.is_revoked = False
        deliver(deliverer, clock, 600.0)
        assert set(dead(state)) <= {number * 100 + 3 for number in range(1, after + 1)}
        deliverer.abandon()
    (row,) = state.overview().sinks
    assert row.waiting == 0
    assert len(dead(state)) == 11


def test_a_single_event_that_is_answered_with_403_waits_until_another_one_is_accepted(
    state: State, clock: Clock
) -> None:
    sink = Firewalled(1)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 1)
    assert not deliver(deliverer, clock, 86_400.0)
    assert dead(state) == []
    for number, letters in ((2, []), (3, [1])):  # after each accepted event, event 1 is tried again
        collect(state, number)
        deliver(deliverer, clock, 86_400.0)
        assert dead(state) == letters
    assert sink.taken == [2, 3]


def test_a_403_that_passes_makes_no_dead_letter(state: State, clock: Clock) -> None:
    class Limited(Firewalled):
        def send(self, events: Sequence[OutboxEvent]) -> Outcome:
            self.is_revoked = len(self.requests) % 5 < 2  # two of five requests
            return super().send(events)

    sink = Limited()
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    for start in range(1, 400, 20):
        collect(state, *range(start, start + 20))
        deliver(deliverer, clock, 600.0)
    assert dead(state) == []
    assert sorted(sink.taken) == [*range(1, 401)]


@pytest.mark.parametrize(
    "answer",
    [CredentialsRefused("HTTP 401", 401), RetryAfter("HTTP 503"), Refused("HTTP 400", 400), Accepted(retry=(0,))],
    ids=["401", "503", "400", "not taken"],
)
def test_nothing_but_an_accepted_event_shows_that_the_credentials_are_good(
    state: State, clock: Clock, answer: Outcome
) -> None:
    class Elsewhere(Firewalled):
        def send(self, events: Sequence[OutboxEvent]) -> Outcome:
            return answer if len(events) == 1 else super().send(events)

    deliverer = Deliverer(state.outbox, Elsewhere(1), clock=clock)
    collect(state, 1, 2, 3)
    assert deliverer.step() == (0, PARKED_RETRY_SECONDS)
    assert dead(state) == []


def test_an_event_that_the_receiver_refuses_by_name_shows_that_the_credentials_are_good(
    state: State, clock: Clock
) -> None:
    class Elsewhere(Firewalled):
        def send(self, events: Sequence[OutboxEvent]) -> Outcome:
            is_odd = len(events) == 1 and events[0].time_us in (2, 4)
            return Accepted({0: "no"}, status=200) if is_odd else super().send(events)

    sink = Elsewhere(1)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 1, 2, 4)
    deliver(deliverer, clock, 3600.0)
    assert {letter.time_us: letter.status for letter in state.dead_letters.find()} == {1: 403, 2: 200, 4: 200}
