"""The loop that delivers to one sink: what it does after each failure, in the daemon and in a run that ends by itself."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from poller.core.errors import (
    AuthError,
    LeaseLostError,
    OutputError,
    StateError,
    StateFullError,
    StateUnavailableError,
    StoppedError,
)
from poller.pipeline.deliver import StepResult
from poller.pipeline.loop import ENDURED_SECONDS, LOOK_SECONDS, UNAVAILABLE_SECONDS, Loop

GONE = OutputError("the reader of our output has gone away")
CRASH = ValueError("a mistake of ours")
IDLE = StepResult(0, None)
KEY = "HTTP 401"
HELD_SECONDS = 2.0


class Deliverer:
    """Answers each step as the script says, then repeats the last answer."""

    sink_name = "out"

    def __init__(self, script: Iterable[StepResult | Exception | str]) -> None:
        self.script = list(script)
        self.refusal = ""
        self.held: list[Exception] = []
        self.finished = 0
        self.last: list[bool] = []

    def step(self, *, is_last: bool = False) -> StepResult:
        self.last.append(is_last)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        self.refusal = answer if isinstance(answer, str) else ""
        return StepResult(0, 60.0) if isinstance(answer, str) else answer

    def hold(self, error: Exception) -> float:
        self.held.append(error)
        return HELD_SECONDS

    def finish(self) -> None:
        self.finished += 1


class Trial(Loop):
    """A loop whose waits take no time. It is stopped after `waits` of them."""

    def __init__(self, *script: StepResult | Exception | str, waits: int = 50, **options: Any) -> None:
        self.deliverer = Deliverer(script)
        self.stop = threading.Event()
        self.waits: list[float | None] = []
        self.settled: list[int] = []
        self.told: list[str] = []
        self._most, self._now = waits, 0.0
        deliverer: Any = self.deliverer
        super().__init__(
            deliverer,
            self.stop,
            **{"is_alone": True, **options},
            on_settled=self.settled.append,
            on_unavailable=lambda error: self.told.append(type(error).__name__),
            on_available=lambda: self.told.append("available"),
            clock=lambda: self._now,
        )

    def _wait(self, seconds: float | None) -> None:
        self.waits.append(seconds)
        self._now += seconds or 0.0
        if len(self.waits) == self._most:
            self.stop.set()


def once(*script: StepResult | Exception | str, **options: Any) -> Trial:
    """A run that ends by itself, after everything was collected."""
    loop = Trial(*script, **options)
    loop.end()
    return loop


def daemon(*script: StepResult | Exception | str, **options: Any) -> Trial:
    return Trial(*script, endured_seconds=math.inf, **options)


def test_it_ends_when_all_is_collected_and_delivered() -> None:
    loop = once(StepResult(3, 0.0), StepResult(2, 0.0), IDLE)
    loop.run()
    assert (loop.settled, loop.waits, loop.deliverer.finished) == ([3, 2], [0.0, 0.0], 1)
    assert loop.deliverer.last == [True] * 3


def test_while_more_may_be_collected_it_goes_on_when_nothing_waits() -> None:
    loop = Trial(IDLE, waits=3)
    loop.run()
    assert (loop.waits, loop.deliverer.last) == ([None] * 3, [False] * 3)


def test_what_is_collected_while_it_asks_whether_that_was_all_is_delivered() -> None:
    loop = Trial(IDLE, StepResult(1, 0.0), IDLE)

    def step(*, is_last: bool = False) -> StepResult:
        result = Deliverer.step(loop.deliverer, is_last=is_last)
        loop.end()
        return result

    loop.deliverer.step = step  # type: ignore[method-assign]
    loop.run()
    assert loop.settled == [1]


@pytest.mark.parametrize(
    "error", [StateFullError("no space"), StateUnavailableError("locked"), LeaseLostError("another has it")], ids=type
)
class TestAStateThatDoesNotWorkNow:
    def test_a_daemon_waits_for_it_as_long_as_it_takes(self, error: StateUnavailableError) -> None:
        loop = daemon(*[error] * 40, StepResult(1, 0.0), IDLE)
        loop.run()
        assert loop.waits[:40] == [UNAVAILABLE_SECONDS] * 40
        assert loop.settled == [1]
        assert loop.told[39:42] == [type(error).__name__, "available", "available"]

    def test_a_run_that_ends_by_itself_waits_for_a_moment_and_goes_on(self, error: StateUnavailableError) -> None:
        loop = once(error, StepResult(1, 0.0), IDLE)
        loop.run()
        assert loop.settled == [1]

    def test_a_run_that_ends_by_itself_gives_up_when_it_lasts(self, error: StateUnavailableError) -> None:
        loop = once(error)
        with pytest.raises(type(error)):
            loop.run()
        assert sum(wait or 0.0 for wait in loop.waits) <= ENDURED_SECONDS + UNAVAILABLE_SECONDS
        assert loop.deliverer.finished == 1, "what the sink has taken is settled if that can be done"

    def test_a_second_one_after_it_has_worked_is_a_new_one(self, error: StateUnavailableError) -> None:
        loop = once(error, StepResult(0, 60.0), error, StepResult(1, 0.0), IDLE)
        loop.run()
        assert loop.settled == [1]


class TestASinkThatEndsInAnException:
    def test_a_daemon_has_it_wait_and_goes_on(self) -> None:
        loop = daemon(*[CRASH] * 40, StepResult(1, 0.0), IDLE)
        loop.run()
        assert loop.deliverer.held == [CRASH] * 40
        assert loop.waits[:40] == [HELD_SECONDS] * 40
        assert loop.settled == [1]

    def test_a_run_that_ends_by_itself_does_so_too_while_something_is_settled(self) -> None:
        loop = once(*[CRASH, StepResult(1, 0.0)] * 5, IDLE)
        loop.run()
        assert loop.settled == [1] * 5

    def test_a_run_that_ends_by_itself_gives_up_when_nothing_is(self) -> None:
        loop = once(CRASH, StepResult(0, 1.0), CRASH)
        with pytest.raises(ValueError, match="a mistake of ours"):
            loop.run()
        assert sum(wait or 0.0 for wait in loop.waits) <= ENDURED_SECONDS + HELD_SECONDS
        assert loop.deliverer.finished == 1

    def test_a_second_failure_while_it_is_held_shows_at_the_next_step(self) -> None:
        loop = daemon(CRASH, StateFullError("no space"), StepResult(1, 0.0), IDLE)

        def hold(error: Exception) -> float:
            raise StateFullError("no space")

        loop.deliverer.hold = hold  # type: ignore[method-assign]
        loop.run()
        assert loop.waits[:2] == [UNAVAILABLE_SECONDS] * 2
        assert loop.settled == [1]


class TestOutputThatIsGone:
    @pytest.mark.parametrize("make", [daemon, once])
    def test_it_ends_the_only_sink(self, make: Any) -> None:
        loop = make(GONE)
        with pytest.raises(OutputError):
            loop.run()
        assert loop.waits == []

    @pytest.mark.parametrize("make", [daemon, once])
    def test_beside_other_sinks_it_waits(self, make: Any) -> None:
        loop = make(GONE, StepResult(1, 0.0), IDLE, is_alone=False)
        loop.run()
        assert (loop.deliverer.held, loop.settled) == ([GONE], [1])


class TestASinkThatRefusesOurCredentials:
    def test_a_daemon_tries_it_every_minute(self) -> None:
        loop = daemon(*[KEY] * 40, StepResult(1, 0.0), IDLE)
        loop.run()
        assert loop.waits[:40] == [60.0] * 40
        assert loop.settled == [1]

    def test_a_run_that_ends_by_itself_ends_at_once(self) -> None:
        loop = once(KEY)
        with pytest.raises(AuthError, match="HTTP 401") as raised:
            loop.run()
        assert raised.value.sink == "out"
        assert loop.waits == []


@pytest.mark.parametrize("make", [daemon, once])
def test_a_state_that_a_person_must_mend_ends_it(make: Any) -> None:
    loop = make(StateError("damaged"))
    with pytest.raises(StateError, match="damaged"):
        loop.run()


@pytest.mark.parametrize("make", [daemon, once])
def test_asked_to_stop_it_ends_and_settles_what_was_taken(make: Any) -> None:
    loop = make(StoppedError("asked to stop"))
    loop.run()
    assert loop.deliverer.finished == 1
    stopped = make(IDLE)
    stopped.stop.set()
    stopped.run()
    assert (stopped.deliverer.last, stopped.deliverer.finished) == ([], 1)


def test_what_cannot_be_settled_at_the_end_does_not_hide_why_it_ended() -> None:
    loop = once(StateError("damaged"))

    def finish() -> None:
        raise StateFullError("no space")

    loop.deliverer.finish = finish  # type: ignore[method-assign]
    with pytest.raises(StateError, match="damaged"):
        loop.run()


def test_a_wake_ends_a_wait_for_something_to_be_collected() -> None:
    deliverer: Any = Deliverer([IDLE, StepResult(1, 0.0), IDLE])
    stop = threading.Event()
    loop = Loop(deliverer, stop, is_alone=True, endured_seconds=math.inf, on_settled=lambda count: loop.end())
    loop.wake()
    loop.run()
    assert deliverer.last == [False, False, True]


@pytest.mark.parametrize(("waits", "is_over"), [([2.5, 2.5], True), ([2.5, 2.4], False)])
def test_what_lasts_for_five_seconds_is_endured_no_longer(waits: list[float], is_over: bool) -> None:
    full = StateFullError("no space")
    loop = once(full, full, full, StepResult(1, 0.0), IDLE)
    left = iter([*waits, 0.0, 0.0])
    wait = loop._wait
    loop._wait = lambda seconds: wait(next(left))  # type: ignore[method-assign]
    if is_over:
        with pytest.raises(StateFullError):
            loop.run()
    else:
        loop.run()
    assert loop.settled == [1] * (not is_over)


class Event:
    """An event that a loop waits for. A wait takes no time, and returns whether it is set."""

    def __init__(self, *, is_set: bool = False) -> None:
        self.waits: list[float] = []
        self._is_set = is_set
        self.cleared = 0

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self.cleared += 1

    def wait(self, seconds: float) -> bool:
        self.waits.append(round(seconds, 3))
        return self._is_set


@pytest.mark.parametrize(
    ("seconds", "is_last", "pauses", "waits"),
    [
        (None, False, [], [LOOK_SECONDS]),
        (0.0, False, [0.0], []),
        (0.4, False, [0.4], []),
        (1.0, False, [1.0], []),
        (1.5, False, [1.0], [0.5]),
        (60.0, False, [1.0], [LOOK_SECONDS]),
        (None, True, [], [LOOK_SECONDS]),
        (0.0, True, [], []),
        (0.4, True, [], [0.4]),
        (60.0, True, [], [LOOK_SECONDS]),
    ],
)
def test_it_waits_for_as_long_as_told_but_looks_again_every_five_seconds(
    monkeypatch: pytest.MonkeyPatch, seconds: float | None, is_last: bool, pauses: list[float], waits: list[float]
) -> None:
    last, wakeup = Event(is_set=is_last), Event()
    events = iter([wakeup, last])
    monkeypatch.setattr("poller.pipeline.loop.threading.Event", lambda: next(events))
    moved: list[float] = []
    monkeypatch.setattr("poller.pipeline.loop.moves", lambda *seconds: moved.extend(seconds))
    deliverer: Any = Deliverer([StepResult(0, seconds), StopIteration()])
    stop: Any = Event()
    loop = Loop(deliverer, stop, is_alone=True)

    def step(*, is_last: bool = False) -> StepResult:
        if deliverer.last:
            raise StoppedError("asked to stop")
        return Deliverer.step(deliverer, is_last=False)

    deliverer.step = step
    last.is_set = lambda: is_last and bool(deliverer.last)  # type: ignore[method-assign]
    loop.run()
    assert (last.waits, wakeup.waits) == (pauses, waits)
    assert moved == [*pauses, *waits], "who waits on purpose is not stuck"
    assert wakeup.cleared == len(waits)
