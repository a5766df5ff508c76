"""A clock that was ahead, with an API that never says what time it is: what was not read is read once the clock is right."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config
from poller.core.answers import Page
from poller.core.clocks import Trail
from poller.core.events import Event
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.pipeline.collect import Collector, Prepared
from poller.store.sqlite import State

NOW = 1_800_000_000
MINUTE, HOUR, DAY, YEAR = 60, 3600, 86_400, 365 * 86_400
CONTRACTS = ("1", "2")


class World:
    """The API, an entry each minute, and our clock, which is `ahead`. Each poll is by a process of its own, as with `fetch`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.true = float(NOW)
        self.ahead = 0.0
        self.clock_skew_seconds: float | None = None
        self.collected: list[int] = []
        self.requests = 0

    def contracts(self) -> ContractList:
        return ContractList(CONTRACTS)

    def hanging_count(self) -> int:
        return 0

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.requests += 1
        first = -(-max(window.start, NOW - 30 * DAY) // MINUTE) * MINUTE
        times = range(first, min(window.end, int(self.true)), MINUTE)
        events = tuple(
            Event(at * 1_000_000, f"{contract} {at}".encode().ljust(16), b"{}") for at in times[offset : offset + limit]
        )
        return Page(events, len(times), is_capped=False, weight_bytes=0, is_mended=False)

    def poll(self, *, is_dated: bool = False) -> None:
        """A poll of all contracts."""
        self.clock_skew_seconds = self.ahead if is_dated else None
        accounts: dict[str, Any] = {"default": self}
        state = State.open(self.directory, "fetch")
        collector = Collector(
            state, accounts, Config(), stop=threading.Event(), clock=lambda: self.true + self.ahead, prepare=self._keep
        )
        for contract in collector.discover()[0]:
            assert collector.collect(contract).failure is None
        collector.close()
        state.close()

    def _keep(self, contract: str, events: Any) -> Any:
        self.collected += [int(event.time_us // 1_000_000) for event in events if contract == CONTRACTS[-1]]
        return Prepared(events)

    def polls(self, count: int, every: float = MINUTE, **options: Any) -> None:
        for _ in range(count):
            self.poll(**options)
            self.true += every

    def missing(self, since: int = NOW) -> list[int]:
        """What should have been collected by now and was not."""
        return sorted(set(range(since, int(self.true) - 2 * MINUTE, MINUTE)).difference(self.collected))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("ahead", [HOUR, DAY, YEAR])
@pytest.mark.parametrize("polls", [1, 5])
@pytest.mark.parametrize("is_dated", [False, True])
def test_a_clock_that_was_ahead_leaves_nothing_unread(world: World, ahead: int, polls: int, is_dated: bool) -> None:
    world.polls(5)
    world.ahead = ahead
    world.polls(polls)
    world.true += 20 * MINUTE
    world.ahead = 0
    world.polls(3, is_dated=is_dated)
    assert world.missing() == []
    assert len(set(world.collected)) == len(world.collected)


def test_a_clock_that_was_ahead_for_long_leaves_nothing_unread(world: World) -> None:
    world.polls(5)
    world.ahead = 3 * HOUR
    world.polls(60)
    world.ahead = 0
    world.polls(3)
    assert world.missing() == []


@pytest.mark.parametrize("ahead", [2 * HOUR, YEAR])
def test_a_clock_that_was_ahead_from_the_first_poll_on_leaves_nothing_unread(world: World, ahead: int) -> None:
    world.ahead = ahead
    world.polls(30)
    world.ahead = 0
    world.polls(3)
    assert world.missing() == []


def test_a_pause_before_does_not_have_a_day_read_again(world: World) -> None:
    world.polls(3)
    world.true += DAY
    world.polls(3)
    world.ahead = HOUR
    world.polls(1)
    world.ahead = 0
    before = world.requests
    world.polls(1)
    assert world.requests - before <= 4
    assert world.missing() == []


def test_it_is_told_which_watermark_was_taken_back(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.polls(2)
    world.ahead = HOUR
    world.polls(1)
    world.ahead = 0
    world.polls(2)
    records = [record for record in caplog.records if record.message == "watermark.taken_back"]
    assert [record.levelname for record in records] == ["ERROR"] * len(CONTRACTS)
    assert {record.__dict__["contract"] for record in records} == set(CONTRACTS)


def test_a_clock_that_goes_back_by_less_than_the_overlap_is_a_warning(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.polls(3)
    world.ahead = -5 * MINUTE
    world.polls(3)
    assert {record.levelname for record in caplog.records if record.levelno > logging.INFO} == {"WARNING"}
    assert world.missing(NOW) == [] or min(world.missing(NOW)) > NOW


def test_what_the_api_confirms_is_no_doubt() -> None:
    trail = Trail().seen(NOW, is_confirmed=False, least=600).seen(NOW + DAY, is_confirmed=False, least=600)
    assert trail.jumps == ((NOW, NOW + DAY),)
    assert trail.seen(NOW + DAY + 60, is_confirmed=True, least=600) == Trail(NOW + DAY + 60)


def test_steps_are_forgotten_after_a_month() -> None:
    trail = Trail(NOW, ((NOW - DAY, NOW),)).seen(NOW + 31 * DAY, is_confirmed=False, least=600)
    assert trail.jumps == ((NOW, NOW + 31 * DAY),)


def test_of_steps_of_about_the_same_length_the_last_is_kept() -> None:
    trail = Trail()
    for hour in range(100):
        trail = trail.seen(NOW + hour * HOUR, is_confirmed=False, least=600)
    assert trail.jumps == ((NOW + 98 * HOUR, NOW + 99 * HOUR),)


def test_the_trail_outlives_the_process(tmp_path: Path) -> None:
    trail = Trail(NOW, ((NOW - DAY, NOW), (5, 7)))
    state = State.open(tmp_path, "run")
    assert state.clock_trail() == Trail()
    state.remember_clock_trail(trail)
    state.close()
    state = State.open(tmp_path, "run")
    assert state.clock_trail() == trail
    state.close()
