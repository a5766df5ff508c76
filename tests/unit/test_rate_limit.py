"""No more requests in any second than allowed, and no unnecessary wait. The clock is simulated."""

from __future__ import annotations

import threading
import time

import pytest

from poller.core.errors import StoppedError
from poller.net.transport import RateLimit


class Clock(threading.Event):
    """A stop event that is never set. Its waits return at once and move the monotonic clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.turns.append(time.monotonic() + (timeout or 0.0))
        return False


@pytest.mark.parametrize("per_second", [0.5, 1, 1.9, 2.5, 10, 99.9])
def test_in_no_second_are_there_more_requests_than_allowed(per_second: float) -> None:
    limit = RateLimit(per_second)
    clock = Clock()
    turns = sorted(limit.wait(clock).at for _ in range(60))
    span = max(1.0, 1 / per_second) - 1e-6
    for start in turns:
        inside = [turn for turn in turns if start <= turn < start + span]
        assert len(inside) <= max(1, per_second)


def test_a_few_requests_need_not_wait_at_all() -> None:
    clock = Clock()
    limit = RateLimit(10)
    for _ in range(10):
        limit.wait(clock)
    assert clock.turns == []
    limit.wait(clock)
    assert len(clock.turns) == 1


def test_replicas_that_take_parts_keep_the_pace_together() -> None:
    limits = [RateLimit(10), RateLimit(10)]
    for limit, part in zip(limits, (0.3, 0.7), strict=True):
        limit.take_part(part)
    at_once = []
    for limit in limits:
        clock = Clock()
        at_once.append(next(count for count in range(99) if not limit.wait(clock) or clock.turns))
        while not clock.turns:
            limit.wait(clock)
            at_once[-1] += 1
    assert at_once == [3, 7]


def test_a_smaller_part_counts_the_requests_that_were_just_sent() -> None:
    limit, clock = RateLimit(10), Clock()
    for _ in range(10):
        limit.wait(clock)
    limit.take_part(0.5)
    limit.wait(clock)
    assert len(clock.turns) == 1
    limit.take_part(1.0)
    limit.wait(clock)
    assert len(clock.turns) == 1, "what others do not use is had at once"


def test_no_limit_never_waits() -> None:
    clock = Clock()
    limit = RateLimit(0)
    for _ in range(1000):
        limit.wait(clock)
    assert clock.turns == []


def test_the_limit_is_one_for_all_threads() -> None:
    limit = RateLimit(5)
    clock = Clock()
    threads = [threading.Thread(target=lambda: [limit.wait(clock) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clock.turns) == 35
    assert max(clock.turns) - min(clock.turns) > 5.9


def test_waiting_for_a_turn_ends_when_asked_to_stop() -> None:
    limit = RateLimit(0.01)
    stop = threading.Event()
    limit.wait(stop)
    stop.set()
    with pytest.raises(StoppedError):
        limit.wait(stop)
