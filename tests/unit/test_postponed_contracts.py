"""If a sink refuses events of one contract, it still gets the others: the refused contract is postponed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from rich.console import Console

from poller.cli.status_page import sinks_page
from poller.config.sinks import HttpSink as Settings
from poller.core.delivery import MAX_RETRY_AFTER_SECONDS, POSTPONE_AT_ATTEMPT, Accepted, Outcome, Refused, RetryAfter
from poller.core.errors import StateUnavailableError
from poller.core.events import Event, OutboxEvent
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.pipeline.status import Seen, Use, status_data
from poller.sinks.base import Sink
from poller.store.protocols import State
from tests.deliveries import Clock, deliver
from tests.states import commit
from tests.views import config_of

A, B, C = "31960001", "31960002", "31960003"
LIMITED = RetryAfter("HTTP 429: maximum active stream limit exceeded")


class Scripted(Sink):
    """A sink that answers with `answer`, and records the accepted events."""

    def __init__(self, answer: Callable[[Sequence[OutboxEvent]], Outcome], **settings: Any) -> None:
        super().__init__(Settings(name="out", url="http://127.0.0.1", **{"batch_age_seconds": 0.0, **settings}))
        self.answer = answer
        self.taken: list[tuple[str, int]] = []
        self.contracts: list[set[str]] = []
        self.sizes: list[int] = []

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        self.sizes.append(len(events))
        self.contracts.append({event.contract for event in events})
        outcome = self.answer(events)
        if isinstance(outcome, Accepted):
            left = {*outcome.retry, *outcome.refused}
            self.taken += [(event.contract, event.time_us) for index, event in enumerate(events) if index not in left]
        return outcome

    def probe(self) -> Outcome:
        return Accepted()

    @property
    def sends(self) -> int:
        return len(self.contracts)

    def of(self, contract: str) -> list[int]:
        return [number for owner, number in self.taken if owner == contract]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(opened: Callable[[], State]) -> Iterator[State]:
    state = opened()
    state.contracts.enrol([A, B, C], "default", 0, 0)
    state.contracts.share([A, B, C])
    yield state
    state.close()


def collect(state: State, contract: str, *numbers: int) -> None:
    events = [Event(number, bytes([number]) * 16, b"{}", True, True) for number in numbers]
    commit(state, events, contract=contract, window=Window(0, 9), now=9)


def by_contract(refusing: Callable[[str], bool], later: RetryAfter = LIMITED) -> Any:
    """Answers as Loki does: it has a stream for each contract, and refuses only some streams."""

    def answer(events: Sequence[OutboxEvent]) -> Outcome:
        again = tuple(index for index, event in enumerate(events) if refusing(event.contract))
        return later if len(again) == len(events) else Accepted(retry=again, later=later if again else None)

    return answer


def at_once(refusing: Callable[[str], bool], later: RetryAfter = LIMITED) -> Any:
    """Answers for the whole request: one refused event postpones all of it."""
    return lambda events: later if any(refusing(event.contract) for event in events) else Accepted()


def status(state: State) -> dict[str, str]:
    """The postponed contracts, and why each one waits."""
    (row,) = [row for row in state.overview().sinks if row.sink.name == "out"]
    return {one.contract: one.failure for one in row.postponed}


def test_a_contract_that_is_refused_for_hours_does_not_hold_the_others(state: State, clock: Clock) -> None:
    is_open = False
    sink = Scripted(by_contract(lambda contract: contract == A and not is_open))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    for number in range(1, 4):
        for contract in (A, B, C):
            collect(state, contract, number)
    deliver(deliverer, clock, 2)
    assert (sink.of(A), sink.of(B), sink.of(C)) == ([], [1, 2, 3], [1, 2, 3])
    for number in range(4, 30):
        for contract in (A, B):
            collect(state, contract, number)
        deliver(deliverer, clock, 300)
        assert sink.of(B)[-1] == number, "what is collected later is not held up either"
    overview = state.overview()
    assert status(state) == {A: LIMITED.reason}
    assert overview.sinks[0].waiting == 29
    assert overview.imbalances() == []
    sends = sink.sends
    deliver(deliverer, clock, 3600)
    assert sink.sends - sends <= 3600 / 20, "it is tried with growing waits"
    assert state.overview().sinks[0].dead_letters == 0
    is_open = True
    deliver(deliverer, clock, 120)
    assert sink.of(A) == list(range(1, 30)), "in order, each once"
    assert status(state) == {}
    assert [(row.waiting, row.sink.delivered) for row in state.overview().sinks] == [(0, 61)]
    assert state.outbox.size().events == 0


def test_contracts_that_all_wait_on_their_own_are_each_tried_and_are_of_all_again_though_another_sink_has_its_part_still(
    state: State, clock: Clock
) -> None:
    """No other contract moves the sink's place on. Events that another sink still needs stay in the outbox."""
    state.outbox.register("slow", "http")
    refused = {A, B}
    sink = Scripted(by_contract(lambda contract: contract in refused), batch_events=2)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    for contract in (C, A, B):
        collect(state, contract, 1, 2, 3)
    deliver(deliverer, clock, 60)
    assert (sink.of(A), sink.of(B), sink.of(C)) == ([], [], [1, 2, 3])
    refused.remove(A)
    deliver(deliverer, clock, 1200)
    assert (sink.of(A), sink.of(B)) == ([1, 2, 3], [])
    assert set(status(state)) == {B}
    refused.clear()
    deliver(deliverer, clock, 1200)
    assert sink.of(B) == [1, 2, 3]
    assert status(state) == {}
    collect(state, A, 4)
    deliver(deliverer, clock, 2)
    assert sink.of(A) == [1, 2, 3, 4]
    overview = state.overview()
    assert {row.sink.name: row.waiting for row in overview.sinks} == {"out": 0, "slow": 10}
    assert overview.imbalances() == []


def test_what_is_only_too_much_at_once_makes_no_contract_wait_on_its_own(state: State, clock: Clock) -> None:
    """Like a Loki with a limit of bytes a second for each user: it takes the first events of each request, and no more."""

    def answer(events: Sequence[OutboxEvent]) -> Outcome:
        return Accepted(retry=tuple(range(2, len(events))), later=LIMITED if len(events) > 2 else None)

    sink = Scripted(answer)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    for contract in (A, B, C):
        collect(state, contract, 1, 2, 3, 4)
    deliverer.step()
    for _ in range(20):
        clock.now += deliverer.step().wait_seconds or 60
        assert status(state) == {}
    assert sorted(sink.taken) == [(contract, number) for contract in (A, B, C) for number in (1, 2, 3, 4)]
    assert sink.sends == 6


def test_a_batch_of_that_contract_alone_does_not_hold_them_either(state: State, clock: Clock) -> None:
    sink = Scripted(by_contract(lambda contract: contract == A), batch_events=2)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, A, *range(1, 9))
    collect(state, B, 1)
    deliver(deliverer, clock, 10)
    assert sink.of(B) == [1]
    assert sink.contracts[: POSTPONE_AT_ATTEMPT + 1] == [{A}] * POSTPONE_AT_ATTEMPT + [{B}]


@pytest.mark.parametrize("contracts", [{A}, {A, C}], ids=len)
def test_it_is_found_by_trying_where_the_answer_is_for_all_of_a_request(
    state: State, clock: Clock, contracts: set[str]
) -> None:
    sink = Scripted(at_once(contracts.__contains__))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    for contract in (A, B, C):
        collect(state, contract, 1)
    deliver(deliverer, clock, 30)
    collect(state, B, 2)
    deliver(deliverer, clock, 120)
    assert sorted(sink.taken) == sorted([(contract, 1) for contract in {B, C} - contracts] + [(B, 2)])
    assert set(status(state)) == contracts


def test_what_was_taken_behind_an_entry_that_is_not_is_sent_once(state: State, clock: Clock) -> None:
    def answer(events: Sequence[OutboxEvent]) -> Outcome:
        again = tuple(i for i, event in enumerate(events) if (event.contract, event.time_us) == (A, 2))
        refused = {i: "no" for i, event in enumerate(events) if (event.contract, event.time_us) == (A, 4)}
        return Accepted(refused, again, 200, RetryAfter("1 was not taken") if again else None)

    sink = Scripted(answer)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, A, 1, 2, 3, 4, 5)
    collect(state, B, 1)
    deliver(deliverer, clock, 600)
    assert sorted(sink.taken) == [(A, 1), (A, 3), (A, 5), (B, 1)]
    assert [row.waiting for row in state.overview().sinks] == [4], "A's 2, and what cannot be settled before it"
    sink.answer = lambda events: Accepted()
    deliver(deliverer, clock, 120)
    assert sorted(sink.taken) == [(A, 1), (A, 2), (A, 3), (A, 5), (B, 1)]
    assert [(row.waiting, row.sink.dead) for row in state.overview().sinks] == [(0, 1)]
    assert state.overview().imbalances() == []


def refusing(*refused: tuple[str, int]) -> Callable[[Sequence[OutboxEvent]], Outcome]:
    """Answers like a Loki that refuses some streams. Events in time and late events have a stream each."""

    def answer(events: Sequence[OutboxEvent]) -> Outcome:
        again = tuple(i for i, event in enumerate(events) if (event.contract, event.time_us) in refused)
        return LIMITED if len(again) == len(events) else Accepted(retry=again, later=LIMITED if again else None)

    return answer


def test_what_a_contract_still_waits_with_is_kept_when_only_another_one_is_put_off(state: State, clock: Clock) -> None:
    # B was taken in part. When A was postponed, the rest of B counted as delivered, and was lost.
    sink = Scripted(refusing((A, 1), (B, 2)))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, A, 1)
    collect(state, B, 1, 2, 3)
    collect(state, C, 1)
    deliver(deliverer, clock, 60)
    assert sorted(sink.taken) == [(B, 1), (B, 3), (C, 1)]
    assert set(status(state)) >= {A}
    (row,) = state.overview().sinks
    assert row.waiting >= 2
    sink.answer = lambda events: Accepted()
    deliver(deliverer, clock, 600)
    assert sorted(sink.taken) == [(A, 1), (B, 1), (B, 2), (B, 3), (C, 1)]
    assert [(row.waiting, row.sink.delivered) for row in state.overview().sinks] == [(0, 5)]
    assert state.overview().imbalances() == []


def test_what_was_taken_is_sent_once_though_the_batch_was_halved_before_its_contract_was_put_off(
    state: State, clock: Clock
) -> None:
    # Only the accepted events of the first half were recorded, so the second half was sent again.
    later = LIMITED._replace(is_size_suspect=True)
    refused = [(A, number) for number in range(1, 5)]
    answer = refusing(*refused)
    sink = Scripted(lambda events: later if (found := answer(events)) is LIMITED else found._replace(later=later))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, A, *range(1, 9))
    deliver(deliverer, clock, 600)
    assert sorted(sink.taken) == [(A, number) for number in range(5, 9)]
    collect(state, B, 1)
    deliver(deliverer, clock, 600)
    sink.answer = lambda events: Accepted()
    deliver(deliverer, clock, 600)
    assert sorted(sink.taken) == sorted([*((A, number) for number in range(1, 9)), (B, 1)])
    assert state.overview().imbalances() == []


def test_a_contract_waits_on_its_own_after_a_restart_too(state: State, clock: Clock) -> None:
    sink = Scripted(by_contract(lambda contract: contract == A))
    first = Deliverer(state.outbox, sink, clock=clock)
    for contract in (A, B):
        collect(state, contract, 1)
    collect(state, A, 7)
    deliver(first, clock, 600)
    (before,) = state.overview().sinks[0].postponed
    first.abandon()
    sends = sink.sends
    again = Deliverer(state.outbox, sink, clock=clock)
    clock.now = before.retry_at - 1
    assert (again.step().wait_seconds, sink.sends) == (1.0, sends)
    collect(state, B, 9)
    again.step()
    assert sink.of(B)[-1] == 9
    sink.answer = lambda events: Accepted()
    deliver(again, clock, 120)
    assert sink.of(A) == [1, 7]


def test_a_wait_that_the_answer_asks_for_is_that_contracts_alone(state: State, clock: Clock) -> None:
    sink = Scripted(by_contract(lambda contract: contract == A, LIMITED._replace(seconds=MAX_RETRY_AFTER_SECONDS)))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, A, 1)
    collect(state, B, 1)
    deliver(deliverer, clock, 5)
    collect(state, B, 2)
    deliver(deliverer, clock, 60)
    assert sink.of(B) == [1, 2]
    assert sink.sends <= 1 + POSTPONE_AT_ATTEMPT


def test_an_outage_costs_no_more_requests_than_with_one_contract(state: State, clock: Clock) -> None:
    sink = Scripted(lambda events: RetryAfter("no connection"), retry_max_seconds=60.0)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    for contract in (A, B, C):
        collect(state, contract, 1, 2, 3)
    deliver(deliverer, clock, 3600)
    assert sink.sends < 3600 / 60 * 3, "each wait is up to a minute, half of that on average"
    assert state.outbox.sinks()[0].attempts > 20
    assert set(sink.sizes[POSTPONE_AT_ATTEMPT:-1]) == {1}, "what may be stored is not sent over and over"
    sink.answer = lambda events: Accepted()
    deliver(deliverer, clock, 121)
    assert sorted(sink.taken) == [(contract, number) for contract in (A, B, C) for number in (1, 2, 3)]
    assert state.overview().imbalances() == []
    assert status(state) == {}


def test_a_sink_with_one_contract_waits_as_a_whole(state: State, clock: Clock) -> None:
    deliverer = Deliverer(state.outbox, Scripted(lambda events: LIMITED), clock=clock)
    collect(state, A, 1)
    deliver(deliverer, clock, 600)
    assert status(state) == {}
    assert state.outbox.sinks()[0].failure == LIMITED.reason


def test_a_sink_that_ends_in_an_error_at_one_contract_gets_the_others(state: State, clock: Clock) -> None:
    def answer(events: Sequence[OutboxEvent]) -> Outcome:
        if any(event.contract == A for event in events):
            raise ValueError("a mistake of ours")
        return Accepted()

    sink = Scripted(answer)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    for number in (1, 2):
        for contract in (A, B, C):
            collect(state, contract, number)
    for _ in range(100):
        try:
            wait = deliverer.step().wait_seconds
        except ValueError as error:
            wait = deliverer.hold(error)
        clock.now += wait or 0
    assert (sink.of(B), sink.of(C)) == ([1, 2], [1, 2])
    assert set(status(state)) == {A}


def test_a_person_may_have_it_tried_at_once(state: State, clock: Clock) -> None:
    sink = Scripted(by_contract(lambda contract: contract == A, LIMITED._replace(seconds=3000.0)))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, A, 1)
    collect(state, B, 1)
    deliver(deliverer, clock, 60)
    sink.answer = lambda events: Accepted()
    assert state.outbox.retry("out", clock.now)
    deliver(deliverer, clock, 1)
    assert sink.of(A) == [1]
    assert not state.outbox.retry("out", clock.now)


def test_an_entry_refused_for_good_while_its_contract_waits_becomes_a_dead_letter(state: State, clock: Clock) -> None:
    sink = Scripted(by_contract(lambda contract: contract == A))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, A, 1, 2)
    collect(state, B, 1)
    deliver(deliverer, clock, 60)
    sink.answer = lambda events: Refused("HTTP 400") if any(event.time_us == 1 for event in events) else Accepted()
    deliver(deliverer, clock, 120)
    assert sink.of(A) == [2]
    assert [letter.contract for letter in state.dead_letters.find()] == [A]
    assert state.overview().imbalances() == []


def test_status_names_it_with_the_reason_and_the_next_try(state: State, clock: Clock) -> None:
    deliverer = Deliverer(state.outbox, Scripted(by_contract(lambda contract: contract == A)), clock=clock)
    collect(state, A, 1)
    collect(state, B, 1)
    deliver(deliverer, clock, 10)
    use = Use("run", "here", state.overview(), 12)
    data: Any = status_data(Seen([use], []), config_of(["out"]))["uses"]
    (told,) = data["run"]["sinks"][0]["postponed"]
    assert (told["contract"], told["failure"]) == (A, LIMITED.reason)
    assert told["retry_at"] > told["postponed_at"] >= told["since"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(sinks_page(config_of(["out"]), use))
    text = console.export_text()
    assert "retrying" in text
    assert f"sink out: contract {A} waits on its own for" in text
    assert LIMITED.reason in text


def test_forgetting_the_sink_deletes_what_waited_there(state: State, clock: Clock) -> None:
    deliverer = Deliverer(state.outbox, Scripted(by_contract(lambda contract: contract == A)), clock=clock)
    collect(state, A, 1)
    collect(state, B, 1)
    deliver(deliverer, clock, 60)
    deliverer.abandon()
    assert state.outbox.forget("out")
    assert state.outbox.size().events == 0
    state.outbox.register("out", "http")
    assert status(state) == {}


def test_a_kill_right_after_a_contract_was_postponed_repeats_no_more_than_the_batch(
    state: State, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Scripted(by_contract(lambda contract: contract == A))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, A, 1)
    collect(state, B, 1)

    def fail(*args: Any, **options: Any) -> None:
        raise StateUnavailableError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(deliverer._held(), "settle", fail)
        with pytest.raises(StateUnavailableError):
            deliver(deliverer, clock, 60)
    deliverer.abandon()
    again = Deliverer(state.outbox, sink, clock=clock)
    deliver(again, clock, 600)
    assert sink.of(B) == [1, 1]
    sink.answer = lambda events: Accepted()
    deliver(again, clock, 600)
    assert sink.of(A) == [1]
    assert state.overview().imbalances() == []


def test_a_full_disk_while_a_contract_is_postponed_loses_nothing(
    state: State, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Scripted(by_contract(lambda contract: contract == A))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, A, 1, 2)
    collect(state, B, 1)

    def fail(*args: Any, **options: Any) -> None:
        raise StateUnavailableError("full")

    with monkeypatch.context() as patch:
        patch.setattr(deliverer._held(), "postpone_contract", fail)
        with pytest.raises(StateUnavailableError):
            deliver(deliverer, clock, 60)
    deliver(deliverer, clock, 60)
    assert sink.of(B) == [1]
    sink.answer = lambda events: Accepted()
    deliver(deliverer, clock, 600)
    assert sink.of(A) == [1, 2]
    assert state.overview().imbalances() == []
