"""The self-audit without a schedule: which contracts are due, what follows from the findings, and what a failure leaves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from poller.config import Config, Http
from poller.core.errors import AuthError, BodyTooLargeError, RejectedError, StateError, TransientError
from poller.core.gaps import REFUSED, Unread
from poller.core.windows import Window
from poller.pipeline.audit import Audited, Compared, Difference
from poller.service.auditing import Auditing
from poller.service.components import Components
from poller.service.metrics import Metrics
from poller.store.rows import Contract, Count, Prepared
from tests import views
from tests.views import HOUR, NOW, TOP

INTERVAL = 6 * HOUR


class Auditor:
    """Gives the outcomes that a test sets, and repairs everything that is missing."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Exception | Audited] = {}
        self.spans: list[tuple[str, Window]] = []

    def audit(self, contract: str, span: Window) -> Audited:
        self.spans.append((contract, span))
        outcome = self.outcomes.get(contract, Audited([]))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def repair(self, differences: Iterable[Difference]) -> int:
        return sum(row.missing for row in differences if not row.forgotten)


class State:
    """Contracts with the audit times that a test sets."""

    def __init__(self, rows: list[Contract]) -> None:
        self.rows = {row.contract: row for row in rows}
        self.recorded: list[tuple[str, int, Compared | None]] = []
        self.forgotten_hours: set[int] = set()
        self.contracts = self

    def counts(self, contract: str, start: int, end: int) -> dict[int, Count]:
        return {hour: Count(1, int(hour in self.forgotten_hours)) for hour in range(start // HOUR * HOUR, end, HOUR)}

    def all(self) -> list[Contract]:
        return list(self.rows.values())

    def record_audit(self, contract: str, now: int, compared: Compared | None) -> None:
        self.rows[contract] = self.rows[contract]._replace(audited_at=now)
        self.recorded.append((contract, now, compared))


class Bench:
    def __init__(self, *rows: Contract, interval: int = INTERVAL) -> None:
        self.now = float(NOW)
        self.auditor = Auditor()
        self.state = State([row._replace(audited_at=NOW - INTERVAL) for row in rows])
        self.metrics = Metrics(lambda: views.state([], []))
        self.polled: list[str] = []
        config = Config(http=Http(listen=""))
        changed = msgspec.structs.replace(config.poll, audit_interval_seconds=interval, overlap_seconds=600)
        self.config = msgspec.structs.replace(config, poll=changed)
        components = Components(self.config, threading.Event(), {}, (), dict, lambda contract, events: Prepared(events))
        state: Any = self.state
        auditor: Any = self.auditor
        self.auditing = Auditing(state, components, auditor, self.metrics, lambda: self.now)

    def audit(self, *contracts: str) -> list[str]:
        """Returns: the contracts that were compared."""
        before = len(self.auditor.spans)
        self.auditing.audit(set(contracts) or set(self.state.rows), self.polled.append)
        return [contract for contract, _ in self.auditor.spans[before:]]

    def missing(self, contract: str) -> float | None:
        return self.metrics.registry.get_sample_value("ionos_poller_audit_missing_events", {"contract": contract})


class Jobs:
    def __init__(self) -> None:
        self.added: list[tuple[float, str, float]] = []
        self.job: Callable[[], None] = lambda: None

    def add_housekeeping(self, job: Callable[[], None], seconds: float, name: str, first_seconds: float) -> None:
        self.added.append((seconds, name, first_seconds))
        self.job = job


def two() -> Bench:
    return Bench(views.contract("1"), views.contract("2"))


@pytest.mark.parametrize(
    ("interval", "added"), [(0, []), (30, [(30, "audit", 1.0)]), (INTERVAL, [(60.0, "audit", 1.0)])]
)
def test_it_is_looked_every_minute_at_most_whose_time_has_come(interval: int, added: list[Any]) -> None:
    bench = Bench(views.contract("1"), views.contract("2"), interval=interval)
    jobs: Any = Jobs()
    bench.metrics.audit_missing.labels("2").set(5)  # left from before a reload
    bench.auditing.start(jobs, lambda: {"2"}, bench.polled.append)
    assert jobs.added == added
    assert bench.missing("2") == (5 if interval else None), "nothing would end it"
    jobs.job()
    assert [contract for contract, _ in bench.auditor.spans] == ["2"] * len(added)


def test_each_contract_that_is_polled_is_audited_when_its_time_has_come() -> None:
    bench = two()
    bench.state.rows["2"] = bench.state.rows["2"]._replace(audited_at=NOW - INTERVAL + 1)
    assert bench.audit("2", "3") == []
    assert bench.audit() == ["1"]
    bench.now += 1
    assert bench.audit() == ["2"]
    assert [contract for contract, _, _ in bench.state.recorded] == ["1", "2"]


def test_a_contract_of_which_nothing_can_be_compared_yet_is_left_out_and_the_others_are_not() -> None:
    bench = two()
    bench.state.rows["1"] = bench.state.rows["1"]._replace(origin=NOW, watermark=NOW)
    assert bench.audit() == ["2"]


def test_what_was_compared_is_recorded_hour_by_hour(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench = two()
    differing = Window(TOP - 5 * HOUR, TOP - 4 * HOUR)
    refused = Unread(Window(TOP - 3 * HOUR, TOP - 2 * HOUR), REFUSED, "HTTP 400")
    bench.auditor.outcomes = {"1": Audited([Difference("1", differing, 9, 7, 0)], [refused])}
    assert bench.audit() == ["1", "2"]
    start = (NOW - INTERVAL - bench.config.poll.audit_span_seconds) // HOUR * HOUR
    # The span ends at the watermark. Only hours that ended at least one overlap ago are recorded as compared.
    assert bench.auditor.spans == [(contract, Window(start, NOW - 3)) for contract in ("1", "2")]
    compared = Window(start, TOP - HOUR)
    assert bench.state.recorded == [
        ("1", NOW, Compared(compared, (differing.start, refused.window.start))),
        ("2", NOW, Compared(compared, ())),
    ]
    assert (bench.missing("1"), bench.missing("2"), bench.polled) == (2, 0, ["1"])
    fields = {record.message: vars(record) for record in caplog.records}
    assert fields["audit.span_refused"]["span"] == str(refused.window)
    assert (fields["audit.difference_found"]["at_api"], fields["audit.difference_found"]["collected"]) == (9, 7)
    finished = fields["audit.finished"]
    assert (finished["contracts"], finished["missing"], finished["repairing"]) == (2, 2, 2)


@pytest.mark.parametrize("has_forgotten", [False, True])
def test_after_a_pause_longer_than_the_ledger_keeps_all_is_compared_that_was_collected_since(
    has_forgotten: bool,
) -> None:
    bench = Bench(views.contract("1"))
    audited_at = NOW - bench.config.poll.ledger_retention_seconds - 10 * 24 * HOUR
    bench.state.rows["1"] = bench.state.rows["1"]._replace(audited_at=audited_at, origin=0)
    first = (audited_at - bench.config.poll.audit_span_seconds) // HOUR * HOUR
    if has_forgotten:
        bench.state.forgotten_hours = {first, first + 2 * HOUR}
    assert bench.audit() == ["1"]
    ((_, span),) = bench.auditor.spans
    assert span.start == (first + 3 * HOUR if has_forgotten else first)


def test_what_cannot_be_repaired_is_shown_and_has_nothing_polled() -> None:
    bench = two()
    bench.auditor.outcomes = {"2": Audited([Difference("2", Window(TOP - HOUR, TOP), 9, 7, 1)])}
    bench.audit()
    assert (bench.missing("2"), bench.polled) == (2, [])


@pytest.mark.parametrize(
    "error", [TransientError("no answer"), AuthError("refused"), RejectedError("too old"), BodyTooLargeError("heavy")]
)
def test_a_failure_is_the_contracts_own_and_is_no_audit(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    bench = two()
    bench.auditor.outcomes = {"1": error}
    assert bench.audit() == ["1", "2"]
    assert [contract for contract, _, _ in bench.state.recorded] == ["2"]
    assert bench.missing("1") is None
    assert [vars(record)["contract"] for record in caplog.records if record.message == "audit.failed"] == ["1"]
    bench.now += INTERVAL - 1
    assert bench.audit() == []
    bench.now += 1
    bench.auditor.outcomes = {}
    assert bench.audit() == ["1", "2"], "a failed one waits for its next time as any other"


def test_a_trouble_of_the_state_ends_it() -> None:
    bench = two()
    bench.auditor.outcomes = {"1": StateError("damaged")}
    with pytest.raises(StateError):
        bench.audit()


def test_where_nothing_was_audited_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench = two()
    bench.audit("3")
    assert caplog.messages == []
