"""One run of a transfer, with fakes on both sides: which parts are woken, what ends it, and its result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from poller.core.errors import AuthError, OutputError, StoppedError, TransientError
from poller.core.turns import MOST_OPEN
from poller.core.windows import Window
from poller.pipeline.collect import PollResult, WindowCommitted
from poller.pipeline.deliver import StepResult
from poller.pipeline.transfer import Transfer

WINDOW = Window(0, 60)


class Deliverer:
    """A deliverer with the steps of a test; after those it has nothing to do. It records the arguments of its calls."""

    def __init__(self, *steps: StepResult | Callable[[], StepResult], name: str = "out") -> None:
        self.sink_name, self.refusal = name, ""
        self.asked: list[bool] = []
        self.is_abandoned = False
        self._steps = list(steps)

    def step(self, *, is_last: bool = False) -> StepResult:
        self.asked.append(is_last)
        if not self._steps:
            return StepResult(0, None)
        step = self._steps.pop(0)
        return step() if callable(step) else step

    def finish(self) -> None:
        """Does nothing: nothing is left to settle."""

    def abandon(self) -> None:
        self.is_abandoned = True


class Collector:
    def __init__(self, collect: Callable[[str], PollResult] = PollResult) -> None:
        self.collect = collect


def run(
    deliverers: Sequence[Deliverer],
    collect: Callable[[str], PollResult] = PollResult,
    contracts: Sequence[str] = ("1",),
    concurrency: int = 1,
    transfer: Transfer | None = None,
    **options: Any,
) -> list[PollResult]:
    parts: Any = deliverers
    collector: Any = Collector(collect)
    stop = threading.Event()
    try:
        transfer = transfer or Transfer(parts, stop)
        return transfer.run(collector, lambda: contracts, concurrency, **options)
    finally:
        stop.set()


def test_polls_come_in_the_order_of_the_contracts_and_every_place_is_given_back() -> None:
    later = threading.Event()

    def collect(contract: str) -> PollResult:
        if contract == "1":
            assert later.wait(10)
        later.set()
        return PollResult(contract, fetched=int(contract))

    deliverers = [Deliverer(), Deliverer(name="other")]
    polls = run(deliverers, collect, ("1", "2"), concurrency=2)
    assert [(poll.contract, poll.fetched) for poll in polls] == [("1", 1), ("2", 2)]
    assert all(deliverer.is_abandoned for deliverer in deliverers)


def test_where_there_is_no_contract_what_an_earlier_run_left_is_delivered() -> None:
    left = Deliverer(StepResult(3, 0.0), StepResult(2, 0.0))
    parts: Any = [left]
    stop = threading.Event()
    transfer = Transfer(parts, stop)
    assert run([left], contracts=(), transfer=transfer) == []
    stop.set()
    assert transfer.delivered == 5


def test_what_is_delivered_counts_over_all_sinks() -> None:
    parts: Any = [Deliverer(StepResult(3, 0.0)), Deliverer(StepResult(1, 0.0), StepResult(3, 0.0))]
    stop = threading.Event()
    transfer = Transfer(parts, stop)
    run(parts, transfer=transfer)
    stop.set()
    assert transfer.delivered == 7


def test_the_last_batch_is_asked_for_as_such_only_when_all_is_collected() -> None:
    has_looked = threading.Event()

    def collect(contract: str) -> PollResult:
        assert has_looked.wait(10)
        return PollResult(contract)

    def look() -> StepResult:
        has_looked.set()
        return StepResult(0, None)

    deliverer = Deliverer(look)
    run([deliverer], collect)
    assert deliverer.asked[0] is False
    assert deliverer.asked[-1] is True


@pytest.mark.parametrize(("kept", "steps"), [(2, 2), (0, 1)])
def test_a_window_wakes_the_sinks_if_something_of_it_was_kept(kept: int, steps: int) -> None:
    has_looked, was_woken = threading.Event(), threading.Event()

    def first() -> StepResult:
        has_looked.set()
        return StepResult(0, None)

    def second() -> StepResult:
        was_woken.set()
        return StepResult(0, None)

    def collect(contract: str) -> PollResult:
        assert has_looked.wait(10)
        transfer.after_window(WindowCommitted(contract, WINDOW, 2, kept))
        assert was_woken.wait(10 if kept else 0.05) == bool(kept)
        assert len(deliverer.asked) == steps
        return PollResult(contract)

    deliverer = Deliverer(first, second)
    parts: Any = [deliverer]
    stop = threading.Event()
    transfer = Transfer(parts, stop)
    run(parts, collect, transfer=transfer)
    stop.set()


def test_a_batch_that_waits_to_be_filled_is_sent_when_all_is_collected_not_when_its_time_has_come() -> None:
    deliverer = Deliverer(StepResult(0, 3600.0))
    run([deliverer])
    assert deliverer.asked[-1] is True


def test_a_refused_key_ends_it_and_names_the_sink() -> None:
    refusing = Deliverer(StepResult(0, 60.0), name="loki")
    refusing.refusal = "HTTP 401: no"
    with pytest.raises(AuthError, match="HTTP 401: no") as caught:
        run([Deliverer(), refusing])
    assert caught.value.sink == "loki"
    assert "same command" in caught.value.hint


def test_the_failure_of_the_list_of_contracts_is_raised() -> None:
    def contracts() -> Sequence[str]:
        raise TransientError("no list")

    parts: Any = [Deliverer()]
    collector: Any = Collector()
    stop = threading.Event()
    with pytest.raises(TransientError, match="no list"):
        Transfer(parts, stop).run(collector, contracts, 1)
    stop.set()


def test_asked_to_stop_it_waits_for_nobody() -> None:
    stop, may_end = threading.Event(), threading.Event()

    def collect(contract: str) -> PollResult:
        stop.set()
        may_end.wait(10)
        return PollResult(contract)

    parts: Any = [Deliverer()]
    collector: Any = Collector(collect)
    with pytest.raises(StoppedError):
        Transfer(parts, stop).run(collector, lambda: ["1", "2"], 1)
    may_end.set()


def test_it_ticks_while_it_lasts() -> None:
    has_ticked = threading.Event()

    def collect(contract: str) -> PollResult:
        assert has_ticked.wait(10)
        return PollResult(contract)

    run([Deliverer()], collect, tick=has_ticked.set, tick_seconds=0.001)


def test_no_more_contracts_are_collected_at_once_than_may_hang() -> None:
    counting = threading.Lock()
    running = most = 0
    all_there = threading.Event()

    def collect(contract: str) -> PollResult:
        nonlocal running, most
        with counting:
            running += 1
            most = max(most, running)
            if running == MOST_OPEN:
                all_there.set()
        assert all_there.wait(10)
        with counting:
            running -= 1
        return PollResult(contract)

    polls = run([Deliverer()], collect, [str(number) for number in range(3 * MOST_OPEN)])
    assert (len(polls), most) == (3 * MOST_OPEN, MOST_OPEN)


def test_each_thread_says_what_it_is_for_and_those_that_deliver_keep_no_process_alive() -> None:
    seen: dict[str, bool] = {}

    def collect(contract: str) -> PollResult:
        seen.update({thread.name: thread.daemon for thread in threading.enumerate()})
        return PollResult(contract)

    may_end = threading.Event()

    def step() -> StepResult:
        assert may_end.wait(10)
        return StepResult(0, None)

    def contracts() -> Sequence[str]:
        return ["1"]

    parts: Any = [Deliverer(step), Deliverer(step, name="other")]
    collector: Any = Collector(lambda contract: (collect(contract), may_end.set())[0])
    stop = threading.Event()
    Transfer(parts, stop).run(collector, contracts, 1)
    stop.set()
    assert {name: seen.get(name) for name in ("watch", "deliver-0", "deliver-1")} == {
        "watch": True,
        "deliver-0": True,
        "deliver-1": True,
    }
    assert any(name.startswith("collect") for name in seen)


def test_it_ticks_while_the_last_is_delivered() -> None:
    has_ticked = threading.Event()
    ticks: list[None] = []

    def collect(contract: str) -> PollResult:
        ticks.clear()
        return PollResult(contract)

    def tick() -> None:
        ticks.append(None)
        if len(ticks) > 2:
            has_ticked.set()

    def last() -> StepResult:
        assert has_ticked.wait(10)
        return StepResult(0, None)

    run([Deliverer(last)], collect, tick=tick, tick_seconds=0.001)


@pytest.mark.parametrize("others", [0, 1])
def test_an_output_that_is_gone_ends_it_where_it_is_the_only_one(others: int) -> None:
    gone = OutputError("the reader of our output has gone away")
    held: list[Exception] = []

    class Gone(Deliverer):
        def hold(self, error: Exception) -> float:
            held.append(error)
            return 0.0

    def fail() -> StepResult:
        raise gone

    sinks = [Gone(fail), *[Deliverer(name="other")] * others]
    if others:
        run(sinks)
        assert held == [gone]
    else:
        with pytest.raises(OutputError):
            run(sinks)
        assert held == []


def test_of_two_failures_the_first_one_is_told_and_what_was_not_begun_is_not() -> None:
    """All contracts that are collected at the same time fail. Contract 0 fails before the others."""
    first = threading.Event()
    begun: list[str] = []
    counting = threading.Lock()
    errors = {str(number): TransientError(f"no {number}") for number in range(3 * MOST_OPEN)}

    def collect(contract: str) -> PollResult:
        with counting:
            begun.append(contract)
        if contract != "0":
            assert first.wait(10)
        try:
            raise errors[contract]
        finally:
            if contract == "0":
                first_is_remembered.set()

    first_is_remembered = threading.Event()
    stop = threading.Event()
    parts: Any = [Deliverer()]
    collector: Any = Collector(collect)
    with pytest.raises(TransientError, match="no 0"):
        Transfer(parts, stop).run(collector, lambda: list(errors), 1)
    assert first_is_remembered.is_set()
    first.set()
    for thread in threading.enumerate():
        if thread.name.startswith("collect"):
            thread.join(10)
    assert len(begun) <= MOST_OPEN + 1


def test_a_failure_that_follows_from_the_end_is_not_told_as_its_cause() -> None:
    collecting = threading.Event()

    def collect(contract: str) -> PollResult:
        if contract == "1":
            assert collecting.wait(10)
            raise TransientError("the cause")
        collecting.set()
        stop.wait(10)
        raise StoppedError("asked to stop")

    stop = threading.Event()
    parts: Any = [Deliverer()]
    collector: Any = Collector(collect)
    with pytest.raises(TransientError, match="the cause"):
        Transfer(parts, stop).run(collector, lambda: ["1", "2"], 1)


def test_a_part_that_stops_though_nobody_asked_for_it_ends_it() -> None:
    def collect(contract: str) -> PollResult:
        raise StoppedError("closed")

    stop = threading.Event()
    parts: Any = [Deliverer()]
    collector: Any = Collector(collect)
    with pytest.raises(StoppedError, match="closed"):
        Transfer(parts, stop).run(collector, lambda: ["1"], 1)
    assert stop.is_set()
