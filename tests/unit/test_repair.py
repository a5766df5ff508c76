"""The repair of an audit: who reads the missing entries, when it stops, and what it leaves to a backfill."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config
from poller.core.errors import AuthError, StateHeldError, StoppedError
from poller.core.windows import Window
from poller.pipeline.audit import Audited, Difference
from poller.pipeline.collect import Collector, PollResult
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.pipeline.repair import Comparison, Repair, compare
from poller.store.journal import Action, Person
from poller.store.protocols import State
from poller.store.sqlite import Stores
from tests.fake_api import BEGAN, H, Log


def by() -> Action:
    return Action(Person(1000, "anna"), "audit --repair", clock=lambda: BEGAN)


SPAN = Window(BEGAN - H, BEGAN + 3 * H)


class Place:
    """A state of `run` that has collected two hours, and an API that later shows one more entry of these hours."""

    def __init__(self, stores: Stores) -> None:
        self.log, self.stop = Log("1"), threading.Event()
        self.state: State = stores.open("run")
        collector = self.collector()
        for _ in range(4):
            self.log.now += H / 2
            for contract in collector.discover()[0]:
                collector.collect(contract)
        collector.close()
        self.log.show("1", BEGAN + H + 1)
        self.state.close()
        self.state = stores.attach("run")

    def collector(self) -> Collector:
        accounts: dict[str, Any] = {"default": self.log}
        return Collector(self.state, accounts, Config(), stop=self.stop, clock=lambda: self.log.now)

    def auditor(self) -> LedgerAuditor:
        accounts: dict[str, Any] = {"default": self.log}
        return LedgerAuditor(self.state, accounts, Config(), clock=lambda: self.log.now)

    def repair(self, **options: Any) -> Any:
        auditor = self.auditor()
        repair = Repair(self.state, auditor, self.collector, self.stop, **{"patience_seconds": 10.0, **options})
        return repair.run(["1"], SPAN, compare(auditor, ["1"], SPAN), by=by())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr("poller.pipeline.repair._LOOK_AGAIN_SECONDS", 0.001)
    made = Place(Stores(tmp_path))
    with closing(made.state):
        yield made


class HeldElsewhere(AbstractContextManager[None]):
    def __enter__(self) -> None:
        raise StateHeldError("another process works on it")

    def __exit__(self, *_: object) -> None: ...


def held_elsewhere(place: Place, monkeypatch: pytest.MonkeyPatch, is_held: Callable[[], bool] = lambda: True) -> None:
    real = place.state.held
    monkeypatch.setattr(place.state, "held", lambda: HeldElsewhere() if is_held() else real())


def test_what_is_missing_is_read_here_where_no_other_process_holds_the_state(place: Place) -> None:
    assert compare(place.auditor(), ["1"], SPAN).missing == 1
    repaired = place.repair()
    assert (repaired.comparison.missing, repaired.collected, repaired.is_late) == (0, 1, False)
    assert not place.state.overview().imbalances()


def test_the_process_that_holds_the_state_reads_it_and_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []

    def poll_of_the_daemon() -> None:
        waits.append("began")
        place.collector().collect("1")

    held_elsewhere(place, monkeypatch)
    repaired = place.repair(on_waiting=poll_of_the_daemon)
    assert waits == ["began"]
    assert (repaired.comparison.missing, repaired.collected, repaired.is_late) == (0, 0, False)


def test_a_process_that_does_not_read_it_in_time_is_late(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    held_elsewhere(place, monkeypatch)
    times = iter([5.0, 14.9, 15.0])
    waits: list[None] = []
    repaired = place.repair(clock=lambda: next(times), on_waiting=lambda: waits.append(None))
    assert len(waits) == 1, "it is told once"
    assert list(times) == [], "it waits until then, and no longer"
    assert (repaired.comparison.missing, repaired.collected, repaired.is_late) == (1, 0, True)
    assert [span.purpose for span in place.state.contracts.ranges("1")] == ["repair"], "it does so later"


def test_what_a_process_that_ended_did_not_read_is_read_here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    has_ended = threading.Event()
    held_elsewhere(place, monkeypatch, lambda: not has_ended.is_set())
    repaired = place.repair(on_waiting=has_ended.set)
    assert (repaired.comparison.missing, repaired.collected) == (0, 1)


def test_who_stops_it_does_not_wait(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    held_elsewhere(place, monkeypatch)
    with pytest.raises(StoppedError):
        place.repair(on_waiting=place.stop.set)


def test_entries_whose_identities_were_pruned_are_counted_and_not_read_again(place: Place) -> None:
    collected = Comparison({"1": Audited([Difference("1", SPAN, 9, 4, forgotten=4)])}, [])
    repair = Repair(place.state, place.auditor(), place.collector, place.stop, patience_seconds=1.0)
    repaired = repair.run([], SPAN, collected, by=by())
    assert (repaired.forgotten, repaired.collected) == (5, 0)
    assert place.state.contracts.ranges("1") == []


def test_a_repair_that_fails_is_not_tried_again_and_is_told(place: Place) -> None:
    auditor = place.auditor()
    first = compare(auditor, ["1"], SPAN)

    def refuse(*args: object, **options: object) -> None:
        raise AuthError("the token was refused")

    place.log.page = refuse  # type: ignore[assignment, method-assign]
    repaired = Repair(place.state, auditor, place.collector, place.stop, patience_seconds=1.0).run(
        ["1"], SPAN, first, by=by()
    )
    assert repaired.collected == 0
    assert {type(error) for error in repaired.comparison.failures} == {AuthError}


def test_a_contract_that_cannot_be_compared_does_not_stop_the_others(place: Place) -> None:
    place.log.seconds["2"] = []
    place.collector().discover()
    auditor = place.auditor()
    real = auditor.audit

    def audit(contract: str, span: Window, *, by_reading: bool = False) -> Audited:
        if contract == "1":
            raise AuthError("refused")
        return real(contract, span, by_reading=by_reading)

    auditor.audit = audit  # type: ignore[method-assign]
    found = compare(auditor, ["1", "2"], SPAN)
    assert ([error.contract for error in found.failures], list(found.results)) == (["1"], ["2"])


def test_who_asked_for_a_repair_is_in_the_journal(place: Place) -> None:
    place.repair()
    last = place.state.overview().last_action
    assert last is not None
    assert (last.login, last.action, last.affected) == ("anna", "audit --repair", 1)


class Auditor:
    """An audit whose results a test sets, round by round."""

    def __init__(self, *missing: int, failures: int = 0) -> None:
        self.missing = list(missing)
        self.failures = failures

    def audit(self, contract: str, span: Window, *, by_reading: bool) -> Audited:
        if self.failures:
            self.failures -= 1
            raise AuthError("refused", contract="of its own")
        return Audited([Difference(contract, span, self.missing.pop(0), 0, 0)])

    def repair(self, differences: Any, *, by: Action) -> int:
        return sum(row.missing for row in differences)


class Reader:
    def collect(self, contract: str) -> PollResult:
        return PollResult(contract, repaired=2)


def rounds(place: Place, *missing: int, first: int = 9, failures: int = 0) -> Any:
    auditor: Any = Auditor(*missing, failures=failures)
    reader: Any = Reader()
    repair = Repair(place.state, auditor, lambda: reader, place.stop, patience_seconds=1.0)
    return repair.run(["1"], SPAN, Comparison({"1": Audited([Difference("1", SPAN, first, 0, 0)])}, []), by=by())


@pytest.mark.parametrize(
    ("missing", "left", "collected"),
    [
        ([0], 0, 2),
        ([9], 9, 2),
        ([10], 10, 2),
        ([8, 0], 0, 4),
        ([8, 1, 0], 0, 6),
        ([8, 8], 8, 4),
        ([8, 7, 6, 5, 4, 3], 4, 10),
    ],
)
def test_it_is_repeated_while_it_helps_and_five_times_at_most(
    place: Place, missing: list[int], left: int, collected: int
) -> None:
    repaired = rounds(place, *missing)
    assert (repaired.comparison.missing, repaired.collected, repaired.is_late) == (left, collected, False)


def test_where_comparing_fails_it_is_not_repeated(place: Place) -> None:
    repaired = rounds(place, 0, failures=1)
    assert [error.contract for error in repaired.comparison.failures] == ["of its own"]
    assert (repaired.collected, repaired.comparison.results) == (2, {})


def test_where_nothing_is_missing_nothing_is_read(place: Place) -> None:
    assert rounds(place, 0, first=0).collected == 0


def test_what_another_replica_reads_is_waited_for_and_the_rest_is_read_here(place: Place) -> None:
    """The second contract belongs to another replica, which has read it by the second request."""
    place.state.contracts.enrol(["2"], "default", BEGAN, 0)
    place.state.contracts.add_range("2", SPAN, "repair")
    asked: list[str] = []

    class Shared(Reader):
        def collect(self, contract: str) -> PollResult:
            asked.append(contract)
            return PollResult(contract, repaired=1, is_elsewhere=contract == "2" and asked.count("2") < 2)

    auditor: Any = Auditor(0, 0)
    reader: Any = Shared()
    repair = Repair(place.state, auditor, lambda: reader, place.stop, patience_seconds=10.0)
    first = Comparison({name: Audited([Difference(name, SPAN, 5, 0, 0)]) for name in ("2", "1")}, [])
    repaired = repair.run(["1"], SPAN, first, by=by())
    assert (asked, repaired.is_late) == (["1", "2", "2"], False)


def test_what_is_wanted_of_another_contract_is_not_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.state.contracts.enrol(["2"], "default", BEGAN, 0)
    place.state.contracts.add_range("2", SPAN, "repair")
    place.state.contracts.add_range("1", SPAN, "since")
    held_elsewhere(place, monkeypatch)
    assert not rounds(place, 0).is_late
