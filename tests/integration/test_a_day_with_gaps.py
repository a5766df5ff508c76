"""24 hours of a contract, with a simulated clock: a second is too dense, an entry cannot be read, an old range is refused.
Everything else arrives within two polls, and a poll makes at most two requests more than without these troubles.

docs/faults.md has the figures as a table, which this test reads.
"""

from __future__ import annotations

import json
import re
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from poller.config import Api as ApiTable
from poller.config import Config, Poll
from poller.core.answers import Page, parse_page
from poller.core.errors import RejectedError
from poller.core.events import Event
from poller.core.listing import ContractList
from poller.core.windows import Window, format_time
from poller.pipeline.collect import Collector, Prepared
from poller.store.sqlite import State
from tests.support import TOP

H, DAY = 3600, 86_400
NOON = 1_800_000_000 // H * H
EVERY_SECONDS = 300
ENTRY_EVERY_SECONDS = 60
LATE_SECONDS = 240  # how late every tenth entry becomes visible
SERVED = 200  # entries that the API gives for one window
OLDEST_SECONDS = 90 * DAY  # an older start is refused
DENSE, DENSE_COUNT = NOON + 6 * H + 7, 500
UNREADABLE = NOON + 9 * H + 11
SINCE_AT, SINCE_SECONDS = NOON + 12 * H, 95 * DAY  # a person requests a range that begins too early for the API


class Api:
    """The API for the collector: its answers are JSON, and are parsed like those of the real API."""

    clock_skew_seconds = 0.0

    def __init__(self, *, has_troubles: bool) -> None:
        self.now = float(NOON)
        self.requests = 0
        self.has_troubles = has_troubles
        seconds = list(range(NOON - 100 * DAY, NOON - 2 * DAY, H))
        seconds += range(NOON - 2 * DAY, NOON + DAY, ENTRY_EVERY_SECONDS)
        if has_troubles:
            seconds += [DENSE] * DENSE_COUNT + [UNREADABLE]
        self.seconds = sorted(seconds)

    def hanging_count(self) -> int:
        return 0

    def contracts(self) -> ContractList:
        return ContractList(["1"])

    def visible_at(self, number: int) -> int:
        second = self.seconds[number]
        return second + (LATE_SECONDS if number % 10 == 0 and second >= NOON else 0)

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.requests += 1
        if self.has_troubles and window.start < self.now - OLDEST_SECONDS:
            raise RejectedError("dateStart must not be older than 90 days", status=400)
        if offset + limit > SERVED:
            raise RejectedError("Result window is too large", status=400)
        first, last = bisect_left(self.seconds, window.start), bisect_left(self.seconds, window.end)
        shown = [number for number in range(first, last) if self.visible_at(number) <= self.now]
        entries = [self._entry(number) for number in reversed(shown)]
        hits = b",".join(b'{"_source":%s}' % entry for entry in entries[offset : offset + limit])
        return parse_page(b'{"hits":{"total":%d,"hits":[%s]}}' % (min(len(entries), SERVED), hits))

    def _entry(self, number: int) -> bytes:
        second = self.seconds[number]
        if second == UNREADABLE and self.has_troubles:
            return b'{"@uuid":"odd","meta":{"time":"%s"},"n":NaN}' % format_time(second).encode()
        return json.dumps({"@uuid": f"{second}-{number}", "meta": {"time": format_time(second)}}).encode()

    def due(self, at: float, since: float) -> set[str]:
        """The ids of all entries since `since` that the API could show at that time."""
        oldest = max(since, at - OLDEST_SECONDS if self.has_troubles else 0)
        return {
            f"{second}-{number}"
            for number, second in enumerate(self.seconds)
            if oldest <= second < at and self.visible_at(number) <= at and second not in (DENSE, UNREADABLE)
        }


class Day(NamedTuple):
    """How many requests each poll of a day made, by its time; the ids of the collected entries; the gaps."""

    requests: dict[int, int]
    came: set[str]
    gaps: list[Any]


@contextmanager
def collector_of(directory: Path, api: Api, came: set[str]) -> Iterator[tuple[State, Collector]]:
    def keep(contract: str, events: Sequence[Event]) -> Prepared:
        came.update(json.loads(event.line)["@uuid"] for event in events)
        return Prepared(events)

    limits = ApiTable(page_size=SERVED // 2, result_window=SERVED)
    config = Config(api=limits, poll=Poll(interval_seconds=EVERY_SECONDS))
    accounts: dict[str, Any] = {"default": api}
    state = State.open(directory, "run")
    collector = Collector(state, accounts, config, stop=threading.Event(), prepare=keep, clock=lambda: api.now)
    try:
        yield state, collector
    finally:
        collector.close()
        state.close()


def day_of(directory: Path, *, has_troubles: bool) -> Day:
    """A day of polls. After each of them, all entries that the API showed two polls earlier must be there."""
    api, came, requests = Api(has_troubles=has_troubles), set[str](), dict[int, int]()
    since = NOON - 300
    with collector_of(directory, api, came) as (state, collector):
        for at in range(NOON, NOON + DAY, EVERY_SECONDS):
            api.now = at
            before = api.requests
            if at == SINCE_AT:
                state.request_reread(["default"], at - SINCE_SECONDS)
            collector.discover()
            poll = collector.collect("1")
            assert poll.failure is None, poll.failure
            requests[at] = api.requests - before
            if at >= SINCE_AT + EVERY_SECONDS:
                since = SINCE_AT - SINCE_SECONDS
            missing = api.due(at - 2 * EVERY_SECONDS, since) - came
            assert not missing, (format_time(at), len(missing), sorted(missing)[:3])
            assert state.contracts.get("1").watermark == at  # type: ignore[union-attr]
        gaps = state.gaps.find("1")
        assert state.overview().imbalances() == []
    return Day(requests, came, gaps)


def test_what_cannot_be_read_holds_up_nothing_else_and_costs_little(tmp_path: Path) -> None:
    troubled = day_of(tmp_path / "troubled", has_troubles=True)
    plain = day_of(tmp_path / "plain", has_troubles=False)
    assert [(gap.kind, gap.window) for gap in troubled.gaps] == [
        ("refused", Window(SINCE_AT - SINCE_SECONDS, SINCE_AT - OLDEST_SECONDS)),
        ("dense", Window(DENSE, DENSE + 1)),
        ("unreadable", Window(UNREADABLE, UNREADABLE + 1)),
    ]
    assert sum(came.startswith(f"{DENSE}-") for came in troubled.came) == SERVED, "what the API serves of that second"
    more = {at: troubled.requests[at] - plain.requests[at] for at in plain.requests}
    opening = [more.pop(gap.first_seen) for gap in troubled.gaps]
    rows = {
        "a poll of it without troubles": sorted(plain.requests.values())[len(plain.requests) // 2],
        "more, with one, two or three gaps": max(more.values()),
        "more, once, to find how far the refused range reaches": opening[0],
        "more, once, to find the second that is too dense": opening[1],
        "more, once, for the entry that cannot be read": opening[2],
    }
    page = (TOP / "docs" / "faults.md").read_text()
    for name, requests in rows.items():
        told = re.search(rf"^\| {name} \| (\d+) \|$", page, re.MULTILINE)
        assert told is not None, name
        assert requests <= int(told[1]), rows
    assert max(more.values()) <= 2
