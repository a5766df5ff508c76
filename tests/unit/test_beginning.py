"""The time when collecting began: earlier entries are no difference, and no time is called complete before it was read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config
from poller.core.windows import Window
from poller.pipeline.audit import Difference, around, compared_by, parts_of, self_audit_span
from poller.pipeline.collect import Collector
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.store.rows import Contract
from poller.store.sqlite import State
from tests.fake_api import BEGAN, H, Log

DAY = Window(BEGAN - 24 * H, BEGAN + 24 * H)


class Place:
    """A state of `run`, its collector, and the API."""

    def __init__(self, state: State, log: Log) -> None:
        self.state = state
        self.log = log
        accounts: dict[str, Any] = {"default": log}
        self.collector = Collector(state, accounts, Config(), stop=threading.Event(), clock=lambda: log.now)
        self.auditor = LedgerAuditor(state, accounts, Config(), clock=lambda: log.now)

    def poll(self, after_seconds: float = 0) -> None:
        self.log.now += after_seconds
        found, failures = self.collector.discover()
        assert not failures
        for contract in found:
            self.collector.collect(contract)

    def row(self, contract: str = "1") -> Contract:
        row = self.state.contracts.get(contract)
        assert row is not None
        return row

    def audit(self, span: Window = DAY, contract: str = "1") -> list[Difference]:
        return self.auditor.audit(contract, span, by_reading=True).differences


@contextmanager
def place_of(directory: Path, *contracts: str) -> Iterator[Place]:
    state = State.open(directory, "run")
    place = Place(state, Log(*contracts))
    try:
        yield place
    finally:
        place.collector.close()
        state.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The first poll was at BEGAN. Collecting began 5 minutes before that."""
    with place_of(tmp_path, "1") as made:
        made.poll()
        assert made.row().origin == BEGAN - 300
        yield made


@pytest.mark.parametrize(
    ("start", "origin", "before", "closed", "open_"),
    [
        # Collecting began in a closed hour, in the open hour, before the span (twice), at the end of the open part, behind it.
        (0, H + 60, (0, H + 60), (H + 60, 5 * H), (5 * H, 5 * H + 300)),
        (0, 5 * H + 60, (0, 5 * H + 60), None, (5 * H + 60, 5 * H + 300)),
        (0, -9 * H, None, (0, 5 * H), (5 * H, 5 * H + 300)),
        (60, 30, None, (30, 5 * H), (5 * H, 5 * H + 300)),
        (0, 5 * H + 300, (0, 5 * H + 300), None, None),
        (0, 9 * H, (0, 6 * H), None, None),
    ],
)
def test_a_span_is_what_lies_before_the_beginning_its_closed_hours_and_the_open_one(
    start: int, origin: int, before: Any, closed: Any, open_: Any
) -> None:
    base = BEGAN // H * H
    parts = parts_of(Window(base + start, base + 6 * H), base + origin, base + 5 * H + 900.9, 600)
    expected = [None if part is None else Window(base + part[0], base + part[1]) for part in (before, closed, open_)]
    assert list(parts) == expected
    ends = [part for part in expected[1:] if part is not None]
    assert parts.compared == (Window(ends[0].start, ends[-1].end) if ends else None)


def test_where_the_span_ends_within_an_hour_the_rest_of_that_hour_is_compared_whatever_time_it_is() -> None:
    base = BEGAN // H * H
    parts = parts_of(Window(base, base + H + 60), base, base + 9 * H, 600)
    assert (parts.closed, parts.open) == (Window(base, base + H), Window(base + H, base + H + 60))


def test_what_lies_before_the_beginning_is_no_difference(place: Place) -> None:
    for seconds in (60, H, 5 * H):
        place.poll(seconds)
        assert place.audit() == []
    place.log.show("1", BEGAN - 301)
    assert place.audit() == []
    assert place.auditor.count_roughly("1", Window(BEGAN - 24 * H, BEGAN)) == (24 * 60 + 1, True)


def test_an_audit_of_what_lies_before_the_beginning_asks_for_nothing(place: Place) -> None:
    requests = place.log.requests
    assert place.audit(Window(BEGAN - 9 * H, BEGAN - 8 * H)) == []
    assert place.log.requests == requests


def test_each_contract_has_a_beginning_of_its_own(place: Place) -> None:
    place.poll(4 * H)
    place.log.seconds["2"] = list(place.log.seconds["1"])
    place.poll(1 * H)
    assert place.row("2").origin > place.row("1").origin
    place.log.show("1", BEGAN + 61)
    place.log.show("2", BEGAN + 61)
    place.poll(3 * H)
    assert [difference.missing for difference in place.audit()] == [1]
    assert place.audit(contract="2") == []


def test_a_repair_does_not_widen_what_is_called_complete(place: Place) -> None:
    place.poll(3 * H)
    origin = place.row().origin
    place.state.contracts.add_range("1", Window(BEGAN - 9 * H, BEGAN - 8 * H), "repair")
    assert place.row().origin == origin, "nobody asked for what lies between"
    place.poll(60)
    assert place.audit() == []


def test_what_since_asks_for_is_missing_until_it_has_been_read(place: Place) -> None:
    place.poll(3 * H)
    since = BEGAN - 2 * H
    place.log.refused = Window(since, since + 1)
    place.state.request_reread(["default"], since)
    place.poll(60)
    assert place.row().origin == since
    place.log.refused = None
    assert sum(difference.missing for difference in place.audit()) == (2 * H - 300) // 60
    place.poll(60)
    assert place.audit() == []
    assert (place.row().late, place.row().repaired) == (0, 0)


def test_one_repair_completes_and_nothing_that_comes_by_it_is_late(place: Place) -> None:
    place.poll(3 * H)
    late = [BEGAN + 60 * minute + 1 for minute in (1, 90, 150, 165, 169)]  # the last two are in the open hour
    for second in late:
        place.log.show("1", second)
    differences = place.audit()
    assert sum(difference.missing for difference in differences) == len(late)
    assert place.auditor.repair(differences) == len(late)
    place.poll()
    assert place.audit() == []
    assert (place.row().late, place.row().repaired) == (0, len(late))


def test_what_an_audit_asked_for_is_repaired_although_an_ordinary_poll_reads_it_first(place: Place) -> None:
    place.poll(3 * H)
    at = int(place.log.now) - 300
    asked, since, other = at + 1, at + 61, at + 121
    place.state.contracts.add_range("1", Window(asked, asked + 1), "repair")
    place.state.contracts.add_range("1", Window(since, since + 1), "since")
    for second in (asked, since, other):
        place.log.show("1", second)
    place.log.refused = Window(asked, since + 1)  # so the spans fail, but the present is read
    place.poll(60)
    assert (place.row().repaired, place.row().late) == (1, 1)


def test_a_regular_audit_looks_at_the_hour_that_is_not_over_up_to_where_lateness_ends(place: Place) -> None:
    place.poll(3 * H + 1000)
    now = int(place.log.now)
    for ago, missing in ((599, 0), (660, 1)):
        place.log.show("1", now - ago)
        span = self_audit_span(place.row(), now, 24 * H)
        assert span is not None
        found = place.auditor.audit("1", span).differences
        assert sum(difference.missing for difference in found) == missing


def test_an_audit_while_a_pause_is_caught_up_with_has_the_next_one_look_at_the_pause(place: Place) -> None:
    place.poll(3 * H + 1000)
    row = place.row()
    place.log.now += 20 * H  # a pause, after which an audit comes before a poll
    now = int(place.log.now)
    span = self_audit_span(row, now, H)
    assert span is not None
    result = place.auditor.audit("1", span)
    place.state.contracts.record_audit("1", now, compared_by(span, row.origin, now, 600, result))
    late = now - 15 * H
    place.poll(60)
    place.log.show("1", late)
    place.log.now += 2 * H
    span = self_audit_span(place.row(), int(place.log.now), H)
    assert span is not None
    assert span.start <= late // H * H
    differing = [difference.window.start for difference in place.auditor.audit("1", span).differences]
    assert late // H * H in differing


def test_a_gap_that_closes_late_lies_in_the_next_regular_audit(place: Place) -> None:
    second = BEGAN + 600
    place.log.rejected = Window(second, second + 1)
    place.poll(20 * H)
    row, now = place.row(), int(place.log.now)
    span = self_audit_span(row, now, H)
    assert span is not None
    result = place.auditor.audit("1", span)
    place.state.contracts.record_audit("1", now, compared_by(span, row.origin, now, 600, result))
    place.log.rejected = None
    place.poll(4 * H)
    assert place.state.gaps.find("1") == []
    span = self_audit_span(place.row(), int(place.log.now), H)
    assert span is not None
    assert span.start <= second


def test_a_regular_audit_of_equal_entries_costs_one_request_and_the_pages_of_the_open_hour(place: Place) -> None:
    for _ in range(24):
        place.poll(H - 1)
    requests, now = place.log.requests, int(place.log.now)
    span = self_audit_span(place.row(), now, 7 * 24 * H)
    assert span is not None
    assert place.auditor.audit("1", span).differences == []
    assert place.log.requests - requests == 2


def test_a_gap_is_left_out_of_an_audit_and_the_rest_of_its_hour_is_compared(place: Place) -> None:
    second = BEGAN + 600
    place.log.rejected = Window(second, second + 1)
    place.poll(3 * H)
    assert [gap.window for gap in place.state.gaps.find()] == [place.log.rejected]
    assert place.audit() == []
    for late in (BEGAN + 661, BEGAN + 2 * H + 1):
        place.log.show("1", late)
    differences = place.audit()
    assert [difference.missing for difference in differences] == [1, 1]
    assert differences[0].window.start == second + 1, "behind the gap"
    place.auditor.repair(differences)
    place.poll(60)
    assert place.audit() == []
    assert (place.row().repaired, place.row().late) == (2, 0)


@pytest.mark.parametrize(
    ("gaps", "by_totals", "by_entries"),
    [
        ([], [(0, 5 * H)], []),
        ([(H + 60, H + 61)], [(0, H), (2 * H, 5 * H)], [(H, H + 60), (H + 61, 2 * H)]),
        ([(0, 2 * H)], [(2 * H, 5 * H)], []),
        ([(H - 1, 3 * H + 1)], [(4 * H, 5 * H)], [(0, H - 1), (3 * H + 1, 4 * H)]),
        ([(60, 61), (120, 121)], [(H, 5 * H)], [(0, 60), (61, 120), (121, H)]),
        ([(-9 * H, 9 * H)], [], []),
    ],
)
def test_totals_compare_the_hours_without_a_gap_and_reading_the_rest_of_the_others(
    gaps: Any, by_totals: Any, by_entries: Any
) -> None:
    base = BEGAN // H * H
    moved = [[Window(base + start, base + end) for start, end in spans] for spans in (gaps, by_totals, by_entries)]
    assert around(Window(base, base + 5 * H), moved[0]) == (moved[1], moved[2])
