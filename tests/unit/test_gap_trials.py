"""Gaps that are tried again: readable parts are found anywhere in a gap, and a try costs at most two requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config
from poller.core.answers import Page
from poller.core.errors import PollerError, RejectedError, TransientError
from poller.core.windows import Window
from poller.pipeline.collect import Collector
from poller.store.gaps import first_in_turn
from poller.store.rows import Prepared
from poller.store.sqlite import State
from tests.fake_api import BEGAN, H, Log

DAY = 24 * H


class Api(Log):
    """An API with an entry every `every` seconds. Queries that touch a span in `bad` are refused, or fail (`is_failing`)."""

    def __init__(self, every: int = 60) -> None:
        super().__init__("1")
        self.seconds = {"1": list(range(BEGAN - 70 * DAY, BEGAN + DAY, every))}
        self.bad: Sequence[Window] = ()
        self.is_failing = False

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        if any(window.start < bad.end and bad.start < window.end for bad in self.bad):
            self.requests += 1
            error: PollerError = RejectedError("shard closed", status=400)
            raise TransientError("shard closed", status=503) if self.is_failing else error
        return super().page(contract, window, offset, limit, is_retried=is_retried)


class Place:
    def __init__(self, state: State, api: Api) -> None:
        self.state = state
        self.api = api
        self.delivered: set[int] = set()
        self.collector: Collector | None = None

    def begin(self, since: int, *bad: Window) -> None:
        self.api.bad = bad
        accounts: Any = {"default": self.api}
        self.collector = Collector(
            self.state,
            accounts,
            Config(),
            stop=threading.Event(),
            prepare=self._keep,
            clock=lambda: self.api.now,
        )
        self.collector.discover(since=since)
        for _ in range(2):
            self.poll()

    def _keep(self, contract: str, events: Any) -> Prepared:
        came = [event.time_us // 1_000_000 for event in events]
        assert self.delivered.isdisjoint(came)
        self.delivered.update(came)
        return Prepared(events)

    def poll(self) -> int:
        """Poll with all remaining gaps due.  Returns: the number of requests."""
        assert self.collector is not None
        for gap in self.state.gaps.find("1"):
            self.state.gaps.retry(gap.id, int(self.api.now))
        before = self.api.requests
        self.collector.collect("1")
        self.api.now += 60
        assert self.state.overview().imbalances() == []
        return self.api.requests - before

    def readable(self, since: int) -> set[int]:
        end = int(self.api.now) - 60
        seconds = {second for second in self.api.seconds["1"] if since <= second < end}
        return {second for second in seconds if not any(bad.start <= second < bad.end for bad in self.api.bad)}

    def gaps(self) -> list[Window]:
        return [gap.window for gap in self.state.gaps.find("1")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with closing(State.open(tmp_path, "run")) as state:
        place = Place(state, Api())
        yield place
        assert place.collector is not None
        place.collector.close()


HOUR = Window(BEGAN - 2 * H, BEGAN - H)


@pytest.mark.parametrize("is_failing", [False, True])
@pytest.mark.parametrize(
    "still",
    [
        [],
        [(3599, 3600)],
        [(0, 1)],
        [(0, 1), (3599, 3600)],
        [(0, 1800)],
        [(1800, 3600)],
        [(0, 100), (1700, 1900), (3500, 3600)],
        [(0, 1000), (1100, 3600)],
        [(0, 2200), (2320, 3600)],
    ],
    ids=str,
)
def test_what_of_a_gap_can_be_read_by_now_is_read(
    place: Place, still: Sequence[tuple[int, int]], is_failing: bool
) -> None:
    since = BEGAN - 3 * H
    place.api.is_failing = is_failing
    place.begin(since, HOUR)
    assert place.gaps() == [HOUR]
    place.api.bad = [Window(HOUR.start + start, HOUR.start + end) for start, end in still]
    for _ in range(40):
        place.poll()
    assert place.readable(since) == place.delivered
    assert place.gaps() == place.api.bad


def test_a_try_of_a_gap_that_is_as_it_was_costs_two_requests_and_looks_elsewhere_each_time(place: Place) -> None:
    place.begin(BEGAN - 3 * H, HOUR)
    asked: list[Window] = []
    page = place.api.page

    def noted(contract: str, window: Window, *rest: Any, **options: Any) -> Page:
        if window.end < BEGAN - 600:
            asked.append(window)
        return page(contract, window, *rest, **options)

    place.api.page = noted  # type: ignore[method-assign]
    assert {place.poll() for _ in range(20)} == {3}
    assert len(set(asked)) == 21
    assert {window.seconds for window in asked} == {1}
    assert place.gaps() == [HOUR]


def test_a_part_of_a_gap_of_months_is_found_though_the_newest_stays_refused(place: Place) -> None:
    place.api = Api(every=6 * H)
    since = BEGAN - 70 * DAY
    place.begin(since, Window(since, BEGAN - H))
    assert place.gaps() == [Window(since, BEGAN - H)]
    place.api.bad = [Window(since, since + 5 * DAY), Window(since + 20 * DAY, BEGAN - H)]
    for _ in range(12):
        place.poll()
    assert place.readable(since) == place.delivered
    assert place.gaps() == place.api.bad


@pytest.mark.parametrize("named", [0, 1, 2])
def test_a_gap_that_a_person_names_is_tried_before_all_others_that_are_due(place: Place, named: int) -> None:
    bad = [Window(BEGAN - hours * H, BEGAN - hours * H + 60) for hours in (4, 3, 2)]
    place.begin(BEGAN - 5 * H, *bad)
    assert place.collector is not None
    assert place.gaps() == bad
    gaps = place.state.gaps.find("1")
    for seconds, gap in enumerate(gaps):
        place.state.gaps.retry(gap.id, BEGAN + seconds)
    place.api.now += 10 * 60
    place.state.gaps.retry(gaps[named].id, first_in_turn(gaps[named], place.state.gaps.find(), int(place.api.now)))
    place.api.bad = ()
    place.collector.collect("1")
    assert place.gaps() == bad[:named] + bad[named + 1 :]


@pytest.mark.parametrize("days", [20, 29, 60])
def test_bad_hours_at_the_start_the_middle_and_the_end_hide_nothing_between_them(place: Place, days: int) -> None:
    place.api = Api(every=6 * H)
    since = BEGAN - days * DAY
    end = min(since + 30 * DAY, BEGAN - DAY)
    middle = (since + end) // 2
    bad = [Window(since, since + H), Window(middle - H, middle + H), Window(end - H, end + 60)]
    place.begin(since, *bad)
    place.poll()
    assert place.readable(since) == place.delivered
    assert place.gaps() == bad
