"""A clock that was ahead, with an API that never sends its time: skipped entries are read once the clock is right."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config
from poller.core.answers import Page
from poller.core.clocks import Trail
from poller.core.events import Event
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.pipeline.clock_guard import ClockGuard
from poller.pipeline.collect import Collector, Prepared
from poller.store.protocols import State as AnyState
from poller.store.rows import Contract
from poller.store.sqlite import State

NOW = 1_800_000_000
MINUTE, HOUR, DAY, YEAR = 60, 3600, 86_400, 365 * 86_400
CONTRACTS = ("1", "2")


class World:
    """An API with an entry each minute, and our clock, `ahead` seconds ahead. Each poll opens the state anew, as in `fetch`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.true = float(NOW)
        self.ahead = 0.0
        self.date_is_back = 0.0  # how many seconds the `Date` of an answer is behind
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
        self.clock_skew_seconds = self.ahead + self.date_is_back if is_dated else None
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

    def rows(self) -> list[Contract]:
        state = State.open(self.directory, "fetch")
        rows = state.contracts.all()
        state.close()
        return rows

    def missing(self, since: int = NOW) -> list[int]:
        """The times of entries that were not collected, except for the last 2 minutes."""
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


@pytest.mark.parametrize("back", [5 * MINUTE, 3 * HOUR, 10 * DAY, 29 * DAY])
@pytest.mark.parametrize("polls", [1, 3])
def test_one_old_date_does_not_take_back_what_two_clocks_agreed_on(
    world: World, caplog: pytest.LogCaptureFixture, back: int, polls: int
) -> None:
    world.polls(3, is_dated=True)
    rows, collected = world.rows(), list(world.collected)
    world.date_is_back = back
    world.polls(polls, is_dated=True)
    assert [(row.watermark, row.origin) for row in world.rows()] == [(row.watermark, row.origin) for row in rows]
    assert min(world.collected) == min(collected)
    assert len(set(world.collected)) == len(world.collected)
    told = [record.message for record in caplog.records if record.levelno > logging.INFO]
    assert told == ["clock.went_back"] * polls
    world.date_is_back = 0
    world.polls(2, is_dated=True)
    assert world.missing() == []
    assert {row.watermark for row in world.rows()} == {int(world.true) - MINUTE}


@pytest.mark.parametrize("is_dated", [False, True])
def test_our_clock_set_back_after_two_clocks_agreed_leaves_nothing_unread(world: World, is_dated: bool) -> None:
    world.polls(3, is_dated=True)
    rows = world.rows()
    world.ahead = -DAY
    world.polls(3, is_dated=is_dated)
    assert all(row.watermark >= before.watermark for row, before in zip(world.rows(), rows, strict=True))
    world.ahead = 0
    world.polls(3, is_dated=is_dated)
    assert world.missing() == []
    assert len(set(world.collected)) == len(world.collected)


def test_two_clocks_that_agree_on_an_earlier_time_than_before_are_believed(world: World) -> None:
    world.true += DAY  # both clocks say so
    world.polls(2, is_dated=True)
    world.true -= DAY
    world.polls(3, is_dated=True)
    assert {row.watermark for row in world.rows()} == {int(world.true) - MINUTE}


def test_a_trail_is_stored_so_that_versions_that_know_no_confirmed_time_read_it() -> None:
    trail = Trail(NOW, ((NOW - DAY, NOW),), NOW - 2 * DAY)
    numbers = trail.numbers()
    assert Trail.of(numbers) == trail
    at, *times = numbers  # as those versions read it
    jumps = tuple(zip(times[::2], times[1::2], strict=True))
    assert Trail(at, jumps).agreed(NOW + HOUR, NOW - 9 * DAY, NOW) == trail.agreed(NOW + HOUR, NOW - 9 * DAY, NOW)


def test_a_trail_that_other_versions_stored_is_read() -> None:
    assert Trail.of([]) == Trail()
    assert Trail.of([NOW]) == Trail(NOW)
    assert Trail.of([NOW, NOW - DAY, NOW]) == Trail(NOW, ((NOW - DAY, NOW),))


def test_what_the_api_confirms_is_no_doubt() -> None:
    trail = Trail().seen(NOW, is_confirmed=False, least=600).seen(NOW + DAY, is_confirmed=False, least=600)
    assert trail.jumps == ((NOW, NOW + DAY),)
    assert trail.seen(NOW + DAY + 60, is_confirmed=True, least=600) == Trail(NOW + DAY + 60, (), NOW + DAY + 60)


def test_steps_are_forgotten_after_a_month() -> None:
    trail = Trail(NOW, ((NOW - DAY, NOW),)).seen(NOW + 31 * DAY, is_confirmed=False, least=600)
    assert trail.jumps == ((NOW, NOW + 31 * DAY),)


def test_of_steps_of_about_the_same_length_the_last_is_kept() -> None:
    trail = Trail()
    for hour in range(100):
        trail = trail.seen(NOW + hour * HOUR, is_confirmed=False, least=600)
    assert trail.jumps == ((NOW + 98 * HOUR, NOW + 99 * HOUR),)


def test_the_trail_outlives_the_process(tmp_path: Path) -> None:
    trail = Trail(NOW, ((NOW - DAY, NOW), (5, 7)), NOW - 2 * DAY)
    state = State.open(tmp_path, "run")
    assert state.clock_trail() == Trail()
    state.remember_clock_trail(trail)
    state.close()
    state = State.open(tmp_path, "run")
    assert state.clock_trail() == trail
    state.close()


# Several machines, each with a clock of its own


@contextmanager
def replicas(opened: Callable[[], AnyState], ahead: int) -> Iterator[tuple[AnyState, AnyState, int]]:
    """Two replicas with a contract each, complete up to `ahead` seconds after the database's time, and that time."""
    one, other = opened(), opened()
    now = int(one.shared_now() or 0)
    try:
        for contract, state in zip(CONTRACTS, (one, other), strict=True):
            state.contracts.enrol([contract], "default", now + ahead - DAY, now)
            state.contracts.skip_to(contract, now + ahead, 0)
            assert state.contracts.claim(contract)
        yield one, other, now
    finally:
        other.close()
        one.close()


def watermarks(state: AnyState) -> list[int]:
    return [row.watermark for row in state.contracts.all()]


@pytest.mark.backends("postgres")
@pytest.mark.parametrize("behind", [30, HOUR, DAY])
@pytest.mark.parametrize("skew", [None, 0.0], ids=["no Date", "confirmed"])
def test_a_machine_whose_own_clock_is_behind_takes_nothing_back(
    opened: Callable[[], AnyState], caplog: pytest.LogCaptureFixture, behind: int, skew: float | None
) -> None:
    with replicas(opened, ahead=-1) as (one, _, now):
        one.remember_clock_trail(Trail(now - 2 * DAY, ((now - 3 * DAY, now - 2 * DAY),)))
        guard = ClockGuard(one, 10 * MINUTE)
        for row in one.contracts.all():
            assert guard.check(row, skew, now - behind) == row
        assert watermarks(one) == [now - 1, now - 1]
        assert [row.origin for row in one.contracts.all()] == [now - 1 - DAY] * 2
        assert "watermark.taken_back" not in caplog.messages


@pytest.mark.backends("postgres")
@pytest.mark.parametrize("ahead", [MINUTE, HOUR])
def test_a_replica_takes_back_the_watermarks_of_the_contracts_that_it_holds_alone(
    opened: Callable[[], AnyState], caplog: pytest.LogCaptureFixture, ahead: int
) -> None:
    with replicas(opened, ahead=ahead) as (one, other, now):
        guard = ClockGuard(one, 10 * MINUTE)
        row = guard.check(one.contracts.all()[0], None, now)
        assert now <= row.watermark <= now + 9
        assert watermarks(other) == [row.watermark, now + ahead]
        guard.check(other.contracts.all()[1], None, now)
        assert watermarks(other)[1] == now + ahead
        told = [record.__dict__["contract"] for record in caplog.records if record.message == "watermark.taken_back"]
        assert told == [CONTRACTS[0]]


@pytest.mark.backends("postgres")
def test_a_replica_whose_contract_is_another_one_s_by_now_takes_nothing_back(opened: Callable[[], Any]) -> None:
    with replicas(opened, ahead=HOUR) as (one, other, now):
        row = one.contracts.all()[0]
        query = "UPDATE contracts SET holder = %s WHERE contract = '1'"
        state: Any = one
        token = other._joined().token  # type: ignore[attr-defined]
        state._database.write(lambda connection: connection.execute(query, (token,)))
        assert ClockGuard(one, 10 * MINUTE).check(row, None, now).watermark == row.watermark
        assert watermarks(one) == [now + HOUR] * 2


def test_who_shares_no_clock_has_none(state: AnyState) -> None:
    shared = state.shared_now()
    assert shared is None or abs(shared - time.time()) < MINUTE
