"""Comparing what was collected with what the API holds: over a real state and an API of this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.config import Config
from poller.core.errors import PollerError, RejectedError, TransientError
from poller.core.windows import Window
from poller.pipeline.audit import Difference
from poller.pipeline.collect import Collector
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.store.journal import Action, Person
from poller.store.sqlite import State
from tests.fake_api import BEGAN, H, Log


class Place:
    """A state that knows contract 1, which shows an entry each minute."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.log = Log("1")
        accounts: Any = {"default": self.log}
        self.collector = Collector(state, accounts, Config(), stop=threading.Event(), clock=lambda: self.log.now)
        self.collector.discover()

    def auditor(self) -> LedgerAuditor:
        accounts: Any = {"default": self.log}
        return LedgerAuditor(self.state, accounts, Config(), clock=lambda: self.log.now)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with closing(State.open(tmp_path, "run")) as state:
        state.outbox.register("out", "stdout")
        place = Place(state)
        with closing(place.collector):
            yield place


class NoTotals(Log):
    """An API that says how many entries a page has, and no more."""

    def page(self, *args: Any, **options: Any) -> Any:
        return msgspec.structs.replace(super().page(*args, **options), total=None)


def audited(place: Place, **options: Any) -> Any:
    return place.auditor().audit("1", Window(BEGAN - H, BEGAN + 3 * H), **options)


def collected(place: Place) -> None:
    """Three hours are collected, and an entry of the second was shown since."""
    for _ in range(4):
        place.collector.collect("1")
        place.log.now += H
    place.log.now -= H
    place.log.show("1", BEGAN + H + 1)


def test_where_the_api_gives_no_totals_closed_hours_are_read_if_that_is_wanted(place: Place) -> None:
    collected(place)
    totals, place.log = place.log, NoTotals("1")
    place.log.seconds, place.log.now = totals.seconds, totals.now
    with pytest.raises(TransientError, match="no totals") as raised:
        audited(place)
    assert "ionos-poller audit" in raised.value.hint
    (difference,) = audited(place, by_reading=True).differences
    hour = BEGAN // H * H + H
    assert (difference.window, difference.missing, difference.forgotten) == (Window(hour, hour + H), 1, 0)


def test_an_audit_that_the_api_refuses_whole_is_refused_and_one_in_part_is_not(place: Place) -> None:
    collected(place)
    hour = BEGAN // H * H
    place.log.rejected = Window(0, hour + 2 * H)
    found = audited(place)
    assert [(part.window.start, part.window.end) for part in found.refused] == [(BEGAN - 300, hour + 2 * H)]
    place.log.rejected = Window(0, BEGAN + 9 * H)
    whole = Window(BEGAN - H, hour + 2 * H)
    with pytest.raises(RejectedError) as raised:
        place.auditor().audit("1", whole)
    assert (raised.value.contract, raised.value.message) == ("1", "not this second")


def test_how_many_entries_there_are_is_told_roughly(place: Place) -> None:
    assert place.auditor().count_roughly("1", Window(BEGAN - 600, BEGAN)) == (10, True)
    place.log = NoTotals("1")
    assert place.auditor().count_roughly("1", Window(BEGAN - 600, BEGAN)) == (1, False)


def test_a_contract_whose_account_is_gone_cannot_be_audited_and_one_that_is_unknown_is_a_mistake(place: Place) -> None:
    place.log.now += H
    accounts: Any = {"other": place.log}
    other = LedgerAuditor(place.state, accounts, Config(), clock=lambda: place.log.now)
    with pytest.raises(PollerError, match="its account default is not configured") as raised:
        other.audit("1", Window(BEGAN - 300, BEGAN + H))
    assert (raised.value.contract, "--contract" in raised.value.hint) == ("1", True)
    with pytest.raises(ValueError, match="contract 7 is not in the state"):
        other.audit("7", Window(BEGAN - H, BEGAN))


def test_only_what_is_missing_and_not_forgotten_is_repaired_and_who_asked_is_kept(place: Place) -> None:
    place.collector.collect("1")
    hours = [Window(BEGAN - hour * H, BEGAN - hour * H + H) for hour in range(1, 6)]
    found = [
        Difference("1", hours[0], 5, 3, 0),
        Difference("1", hours[1], 5, 3, 1),
        Difference("1", hours[2], 3, 5, 0),
        Difference("1", hours[3], 9, 4, 0),
    ]
    by = Action(Person(1000, "anna"), "audit --repair", clock=lambda: BEGAN)
    auditor = place.auditor()
    assert auditor.repair(found, by=by) == 7
    spans = {(span.window, span.purpose) for span in place.state.contracts.ranges("1")}
    assert spans == {(hours[0], "repair"), (hours[3], "repair")}
    last = place.state.overview().last_action
    assert last is not None
    assert (last.login, last.affected) == ("anna", 7)
    assert auditor.repair([]) == 0
