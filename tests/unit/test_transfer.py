"""A transfer ends if one of its parts fails, with any kind of failure."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from poller.core.errors import StateError, StoppedError
from poller.pipeline.collect import PollResult
from poller.pipeline.deliver import StepResult
from poller.pipeline.transfer import Transfer


class Deliverer:
    """A deliverer that has nothing to deliver, or fails."""

    refusal, sink_name = "", "out"

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def step(self, *, is_last: bool = False) -> StepResult:
        if self._error is not None:
            raise self._error
        return StepResult(0, None)

    def finish(self) -> None:
        """Does nothing: nothing is left to settle."""

    def hold(self, error: Exception) -> float:
        return 10.0

    def abandon(self) -> None:
        """Does nothing: there is no place to release."""


class Collector:
    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def collect(self, contract: str) -> PollResult:
        if self._error is not None:
            raise self._error
        return PollResult(contract)


@pytest.mark.parametrize("error", [StateError("full"), AttributeError("a mistake of ours")], ids=type)
@pytest.mark.parametrize("part", ["deliverer", "collector"])
def test_it_does_not_wait_for_a_part_that_failed(part: str, error: Exception) -> None:
    parts: list[Any] = [Deliverer(error if part == "deliverer" else None), Deliverer()]
    collector: Any = Collector(error if part == "collector" else None)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            Transfer(parts, threading.Event()).run(collector, lambda: ["1", "2"], 2)
        except (StateError, AttributeError, StoppedError) as caught:
            raised.append(caught)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert raised == [error]


def test_what_the_last_window_brought_is_delivered_though_collecting_ends_during_a_step() -> None:
    is_in_step = threading.Event()
    outbox: list[str] = []

    class Late(Deliverer):
        """Reads the outbox before the last window is committed, and delivers that window only after collecting has ended."""

        steps = 0

        def step(self, *, is_last: bool = False) -> StepResult:
            self.steps += 1
            if self.steps > 1:
                settled, outbox[:] = len(outbox), []
                return StepResult(settled, None)
            is_in_step.set()
            assert transfer._loops[0]._is_last.wait(10)
            return StepResult(0, None)

    class Last(Collector):
        def collect(self, contract: str) -> PollResult:
            assert is_in_step.wait(10)
            outbox.append(contract)
            return PollResult(contract)

    late: Any = Late()
    last: Any = Last()
    transfer = Transfer([late], threading.Event())
    transfer.run(last, lambda: ["1"], 1)
    assert (transfer.delivered, outbox) == (1, [])
