"""An API that does not serve the newest entries: a query fails or is refused if its end is in the API's future or too recent.

That makes no gap and stops nothing: older entries are collected, the watermark moves up to them, and a poll costs little more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.config import Config
from poller.core.answers import Page
from poller.core.errors import AuthError, PollerError, RejectedError, TransientError
from poller.core.windows import Window
from poller.pipeline.collect import Collector, PollResult
from poller.store.rows import Contract, Prepared
from poller.store.sqlite import State
from tests.fake_api import BEGAN, Log

EVERY = 60
SINCE = BEGAN - 3600

ERRORS: dict[str, Callable[[], PollerError]] = {
    "400": lambda: RejectedError("dateEnd must not be in the future", status=400),
    "403": lambda: AuthError("denied", is_denied=True),
    "500": lambda: TransientError("failing", status=500),
    "408": lambda: TransientError("query timed out", status=408),
}


class Api(Log):
    """An API with an entry every 5 s. `behind`: how long before the true time a query must end. `bad` is refused as well."""

    def __init__(self) -> None:
        super().__init__("1")
        self.seconds = {"1": list(range(BEGAN - 7200, BEGAN + 7200, 5))}
        self.behind = 0.0
        self.error = ERRORS["400"]
        self.bad = Window(0, 0)
        self.asking_takes = 0.0

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.now += self.asking_takes
        if window.end > self.now - self.behind or (window.start < self.bad.end and self.bad.start < window.end):
            self.requests += 1
            raise self.error()
        return super().page(contract, window, offset, limit, is_retried=is_retried)


class Place:
    def __init__(self, state: State) -> None:
        self.state = state
        self.api = Api()
        self.ahead = 0.0  # how far our clock is ahead of the API's
        self.delivered: set[int] = set()
        self.config = Config()

    def start(self) -> Collector:
        accounts: Any = {"default": self.api}
        self.api.clock_skew_seconds = self.ahead
        made = Collector(
            self.state,
            accounts,
            self.config,
            stop=threading.Event(),
            prepare=self._keep,
            clock=lambda: self.api.now + self.ahead,
        )
        made.discover(since=SINCE)
        self.collector = made
        return made

    def _keep(self, contract: str, events: Any) -> Prepared:
        self.delivered.update(event.time_us // 1_000_000 for event in events)
        return Prepared(events)

    def poll(self) -> tuple[PollResult, int]:
        """Poll, and then let an interval pass.  Returns: the result, and the number of requests."""
        before = self.api.requests
        poll = self.collector.collect("1")
        self.api.now += EVERY
        return poll, self.api.requests - before

    def readable(self, polls_ago: int) -> set[int]:
        """The entries since the beginning that could be read `polls_ago` polls ago."""
        end = self.api.now - EVERY * (1 + polls_ago) - self.api.behind
        return {second for second in self.api.seconds["1"] if SINCE <= second < int(end) - 1}

    def row(self) -> Contract:
        row = self.state.contracts.get("1")
        assert row is not None
        return row


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with closing(State.open(tmp_path, "run")) as state:
        place = Place(state)
        yield place
        place.collector.close()


FUTURE = [(20, 0), (7200, 0), (0, 1), (-90, 0), (1, 0)]
UNSETTLED = [(0, 30), (0, 70), (0, 550), (20, 30)]


@pytest.mark.parametrize(
    ("error", "ahead", "behind"),
    [(error, *case) for error in ERRORS for case in FUTURE]
    # If everything new is denied (403), it is denied to the account, and no further requests are made.
    + [(error, *case) for error in ERRORS for case in UNSETTLED if error != "403"],
)
def test_what_the_api_does_not_serve_yet_is_no_gap_and_stops_nothing(
    place: Place, error: str, ahead: int, behind: int
) -> None:
    place.ahead, place.api.behind, place.api.error = ahead, behind, ERRORS[error]
    place.api.asking_takes = 0.01
    place.start()
    costs = []
    for number in range(12):
        _, requests = place.poll()
        costs.append(requests)
        assert place.state.gaps.find("1") == []
        assert place.row().watermark <= place.api.now - EVERY - behind
        if number >= 3:
            assert place.readable(polls_ago=2) <= place.delivered
    assert max(costs[3:]) <= 1 + 2, costs
    assert place.row().failure == ""


def test_it_is_told_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.api.behind = 30
    place.start()
    for _ in range(4):
        place.poll()
    (record,) = [record for record in caplog.records if record.message == "window.cut_short"]
    assert record.levelno == logging.WARNING
    assert "dateEnd must not be in the future" in record.__dict__["why"]


@pytest.mark.parametrize("less", [0, 3, 20, 100])
def test_when_more_is_served_it_is_collected(place: Place, less: int) -> None:
    place.api.behind = 300
    place.start()
    for _ in range(3):
        place.poll()
    place.api.behind = less
    for _ in range(6):
        place.poll()
    assert place.readable(polls_ago=1) - place.delivered == set()
    assert place.row().watermark >= place.api.now - EVERY - less - 15


def test_a_second_before_the_tail_that_is_refused_for_good_is_a_gap(place: Place) -> None:
    place.api.behind = 30
    place.start()
    place.api.bad = Window(BEGAN - 100, BEGAN - 99)
    for _ in range(3):
        place.poll()
    assert [gap.window for gap in place.state.gaps.find("1")] == [place.api.bad]
    assert place.readable(polls_ago=1) - place.delivered == {BEGAN - 100}


@pytest.mark.parametrize("length", [1, 20, 59])
def test_what_is_refused_for_good_and_was_new_when_it_was_found_becomes_a_gap_later(place: Place, length: int) -> None:
    place.start()
    place.api.bad = Window(BEGAN - length, BEGAN)
    place.poll()
    assert place.state.gaps.find("1") == []
    assert place.row().watermark == BEGAN - length
    for _ in range(3):
        place.poll()
    assert [gap.window for gap in place.state.gaps.find("1")] == [place.api.bad]
    assert place.row().watermark == place.api.now - EVERY


def test_an_api_that_serves_nothing_of_the_overlap_serves_no_present(place: Place) -> None:
    place.api.behind = 700
    place.start()
    for _ in range(3):
        poll, requests = place.poll()
        assert poll.failure is not None
        assert requests <= 5
    assert place.state.gaps.find("1") == []


def test_an_api_that_does_not_answer_is_not_asked_for_what_is_older(place: Place) -> None:
    place.api.behind, place.api.error = 30, lambda: TransientError("no answer")
    place.start()
    for _ in range(3):
        poll, requests = place.poll()
        assert poll.failure is not None
        assert requests <= 2


def test_after_an_hour_without_a_tail_it_is_forgotten(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.api.behind = 30
    place.start()
    place.poll()
    place.api.behind = 0
    assert place.poll()[1] == 3  # the window, a second of the tail, the tail
    steady = [0.0]
    monkeypatch.setattr("poller.pipeline.collect.time.monotonic", lambda: 1e9 + steady[0])
    assert place.poll()[1] == 1


def test_without_an_overlap_it_is_the_same(place: Place) -> None:
    place.config = msgspec.structs.replace(
        place.config, poll=msgspec.structs.replace(place.config.poll, overlap_seconds=0)
    )
    place.api.behind = 30
    place.start()
    for _ in range(4):
        place.poll()
    assert place.readable(polls_ago=2) <= place.delivered
    assert place.state.gaps.find("1") == []
