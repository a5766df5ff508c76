"""Comparing the collected entries with those of the API, with a real state and an API in this process."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.config import Config
from poller.core.answers import Page, Unreadable
from poller.core.errors import AuthError, PollerError, RejectedError, TransientError
from poller.core.windows import Window
from poller.pipeline.archive import HourCloser
from poller.pipeline.audit import Difference
from poller.pipeline.collect import Collector
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.store.journal import Action, Person
from poller.store.sqlite import State
from tests.fake_api import BEGAN, H, Log


class Place:
    """A state with contract 1, and an API that shows an entry of it each minute."""

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
    """An API that gives pages without a total."""

    def page(self, *args: Any, **options: Any) -> Any:
        return msgspec.structs.replace(super().page(*args, **options), total=None)


def audited(place: Place, **options: Any) -> Any:
    return place.auditor().audit("1", Window(BEGAN - H, BEGAN + 3 * H), **options)


def collected(place: Place) -> None:
    """Collect three hours. After that, the API shows one more entry of the second hour."""
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


def test_archives_are_told_what_was_counted_of_each_hour_that_is_over(place: Place) -> None:
    collected(place)
    hour = BEGAN // H * H
    place.log.rejected = Window(hour, hour + H)
    told: list[tuple[str, str, Mapping[int, int | None]]] = []

    class Chain:
        def close_hours(self, sink: str, contract: str, counted: Mapping[int, int | None]) -> None:
            told.append((sink, contract, counted))

    chain: Any = Chain()
    hours = HourCloser(place.state, ["proof"], chain)
    accounts: Any = {"default": place.log}
    auditor = LedgerAuditor(place.state, accounts, Config(), hours=hours, clock=lambda: place.log.now)
    auditor.audit("1", Window(BEGAN - H, BEGAN + 3 * H))
    assert told == [("proof", "1", {hour + H: 61, hour + 2 * H: 60})]
    auditor.audit("1", Window(hour + 3 * H, hour + 4 * H))  # this hour is not over
    assert len(told) == 1


def test_an_audit_that_the_api_refuses_whole_is_refused_and_one_in_part_is_not(place: Place) -> None:
    collected(place)
    hour = BEGAN // H * H
    place.log.rejected = Window(0, hour + 2 * H)
    found = audited(place)
    assert [(part.window.start, part.window.end) for part in found.refused] == [(BEGAN - 300, hour + 2 * H)]
    whole = Window(BEGAN - H, hour + 2 * H)
    with pytest.raises(RejectedError) as raised:
        place.auditor().audit("1", whole)
    assert (raised.value.contract, raised.value.message) == ("1", "not this second")
    assert "audit a span that the API serves" in raised.value.hint
    place.log.rejected = Window(0, BEGAN + 9 * H)
    with pytest.raises(RejectedError) as raised:
        place.auditor().audit("1", whole)
    assert raised.value is place.log.rejection, "the present is refused as well"


@pytest.mark.parametrize(
    "error",
    [
        RejectedError("too old", status=416),
        AuthError("too old", is_denied=True),
        TransientError("too old", status=500),
        TransientError("too old"),
    ],
)
def test_beside_a_gap_that_grows_with_its_age_the_rest_is_compared(place: Place, error: PollerError) -> None:
    """The API refuses one more second each second, so the rest of a gap's hour begins with refused seconds."""
    place.log.rejection = error
    place.log.rejected = Window(0, BEGAN - 100)
    for _ in range(2):
        place.collector.collect("1")
    (gap,) = place.state.gaps.find("1")
    assert gap.end == BEGAN - 100
    collected(place)
    place.log.rejected = Window(0, BEGAN - 90)
    found = audited(place)
    assert [part.window for part in found.refused] == [Window(BEGAN - 100, BEGAN - 90)]
    assert [difference.missing for difference in found.differences] == [1]


class Damaged(Log):
    """An API with elements that are no entries, at the seconds in `damaged`."""

    damaged: Collection[int] = ()

    def page(self, contract: str, window: Window, *args: Any, **options: Any) -> Page:
        page = super().page(contract, window, *args, **options)
        broken = [second for second in self.damaged if window.start <= second < window.end]
        unreadable = tuple(Unreadable(len(page.events), b"%d" % second, "no entry", second) for second in broken)
        return msgspec.structs.replace(page, unreadable=unreadable, total=(page.total or 0) + len(broken))


def test_what_cannot_be_read_in_the_hour_of_a_gap_is_a_difference_until_a_repair_makes_it_a_gap(place: Place) -> None:
    log = Damaged("1")
    hour = BEGAN // H * H + H
    log.damaged = [hour + 30]
    place.log.page = log.page  # type: ignore[method-assign]
    for hours in range(4):
        log.now = place.log.now = BEGAN + hours * H
        place.collector.collect("1")
    (gap,) = place.state.gaps.find("1")
    place.state.gaps.accept(gap.id)
    assert audited(place).differences == []
    log.damaged = [hour + 30, hour + 1830]
    found = audited(place).differences
    assert [(row.window, row.missing) for row in found] == [(Window(hour + 31, hour + H), 1)]
    place.auditor().repair(found)
    place.collector.collect("1")
    assert [gap.is_open for gap in place.state.gaps.find("1")] == [False, True]
    assert audited(place).differences == []


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
