"""Whether an entry counts as new if the vendor changes its content or time after it was collected: see docs/delivery.md."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config
from poller.core.answers import Page, parse_page
from poller.core.listing import ContractList
from poller.core.windows import Window, format_time
from poller.pipeline.collect import Collector
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.store.sqlite import State

NOON = 1_800_000_000 // 3600 * 3600
MINUTE = 60


class Entries:
    """An API with the entries that a test gives it, each as a second and fields."""

    clock_skew_seconds = 0.0

    def __init__(self) -> None:
        self.held: list[tuple[int, dict[str, Any]]] = []

    def contracts(self) -> ContractList:
        return ContractList(["1"])

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        shown = [fields for second, fields in self.held if window.start <= second < window.end]
        hits = [{"_source": fields} for fields in shown[offset : offset + limit]]
        return parse_page(json.dumps({"hits": {"total": len(shown), "hits": hits}}).encode())


class Place:
    def __init__(self, state: State) -> None:
        self.state = state
        self.state.outbox.register("out", "file")
        self.api = Entries()
        self.now = NOON
        accounts: dict[str, Any] = {"default": self.api}
        self.collector = Collector(state, accounts, Config(), stop=threading.Event(), clock=lambda: self.now)
        self.auditor = LedgerAuditor(state, accounts, Config(), clock=lambda: self.now)

    def shows(self, minute: int, **fields: Any) -> None:
        """From now on the API shows only this entry, with a time of `minute` minutes after noon."""
        at = NOON + minute * MINUTE
        self.api.held = [(at, {**fields, "meta": {"time": format_time(at)}})]

    def poll(self, minute: int) -> int:
        """Poll at `minute` minutes after noon.  Returns: the number of new events."""
        self.now = NOON + minute * MINUTE
        self.collector.discover(since=NOON)
        return self.collector.collect("1").new

    def audited(self) -> list[tuple[int, int]]:
        """Audit two hours later.  Returns: for each hour that differs, the API's count and the collected count."""
        self.now += 7200
        return [(row.at_api, row.collected) for row in self.auditor.audit("1", Window(NOON, self.now)).differences]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    state = State.open(tmp_path, "run")
    made = Place(state)
    yield made
    made.collector.close()
    state.close()


def test_an_entry_with_an_id_whose_content_changes_is_the_one_that_was_delivered(place: Place) -> None:
    place.shows(1, **{"@uuid": "a"}, event={"status": "RUNNING"})
    assert place.poll(2) == 1
    place.shows(1, **{"@uuid": "a"}, event={"status": "DONE"})
    assert place.poll(3) == 0, "what was delivered stays as it was"
    assert place.audited() == []


def test_an_entry_without_an_id_whose_content_changes_is_a_new_one(place: Place) -> None:
    place.shows(1, event={"status": "RUNNING"})
    assert place.poll(2) == 1
    place.shows(1, event={"status": "DONE"})
    assert place.poll(3) == 1
    assert place.audited() == [(1, 2)], "an audit says so, and that nothing is missing"


@pytest.mark.parametrize(("later", "hours"), [(5, [(1, 2)]), (65, [(0, 1)])])
def test_an_entry_whose_time_changes_is_a_new_one_also_with_an_id(
    place: Place, later: int, hours: list[tuple[int, int]]
) -> None:
    place.shows(1, **{"@uuid": "a"})
    assert place.poll(2) == 1
    place.shows(later, **{"@uuid": "a"})
    assert place.poll(later + 2) == 1
    assert place.audited() == hours
