"""The audit of the daemon: when it is due again, especially after a failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from poller.config import ArchiveSink as Settings
from poller.config import Config, Http
from poller.core.errors import TransientError
from poller.core.windows import Window
from poller.pipeline.audit import Audited, Difference
from poller.service.components import Components
from poller.service.metrics import Metrics
from poller.service.schedule import Schedule
from poller.sinks.archive import ArchiveSink
from poller.sinks.base import Context
from poller.store.rows import Prepared
from poller.store.sqlite import State
from tests.fake_api import BEGAN, H, Log

MINUTE = 60.0


class Audits:
    """A schedule that is not started: its audit runs at the times of its clock. `outcome` is the result of the comparison."""

    def __init__(self, directory: Path) -> None:
        self.now = float(BEGAN + 30 * H)
        self.asked: list[float] = []
        self.outcome: Exception | Audited = Audited([])
        self.state = State.open(directory, "run")
        self.state.contracts.enrol(["1"], "default", BEGAN, BEGAN)
        accounts: Any = {"default": Log("1")}
        components = Components(
            Config(http=Http(listen="")),
            threading.Event(),
            accounts,
            [],
            dict,
            lambda contract, events: Prepared(events),
        )
        self.metrics = Metrics(self.state.overview)
        self.schedule = Schedule(
            self.state, components, self.metrics, lambda: None, lambda error: None, lambda: self.now
        )
        self.schedule.auditing._auditor.audit = self._audit  # type: ignore[method-assign]
        with self.state._database.transaction() as connection:
            connection.execute("UPDATE contracts SET watermark = ?", (int(self.now),))

    def _audit(self, contract: str, span: Window, *, by_reading: bool = False) -> Audited:
        self.asked.append(self.now)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def run_for(self, seconds: float) -> int:
        """Check every minute, as the daemon does. Returns the number of requests to the API."""
        before = len(self.asked)
        until = self.now + seconds
        while self.now < until:
            self.schedule.auditing.audit({"1"}, lambda contract: None)
            self.now += MINUTE
        return len(self.asked) - before


def test_what_an_audit_counts_is_stated_by_the_archives(tmp_path: Path) -> None:
    log = Log("1")
    log.now, log.seconds["1"] = BEGAN + 3.0 * H, []
    accounts: Any = {"default": log}
    sink = ArchiveSink(Settings(name="proof", url="file:///proc/nowhere"), Context(Config(), threading.Event()))
    components = Components(
        Config(http=Http(listen="")),
        threading.Event(),
        accounts,
        [sink],
        dict,
        lambda contract, events: Prepared(events),
    )
    with closing(State.open(tmp_path, "run")) as state:
        state.contracts.enrol(["1"], "default", BEGAN, BEGAN)
        state.contracts.skip_to("1", int(log.now), 0)
        state.archives.begin("proof", BEGAN)
        metrics = Metrics(state.overview)
        schedule = Schedule(state, components, metrics, lambda: None, lambda error: None, lambda: log.now)
        with closing(schedule._collector):
            assert not state.archives.has_to_state("proof")
            schedule.auditing.audit({"1"}, lambda contract: None)
            assert state.archives.has_to_state("proof")


@pytest.fixture
def audits(tmp_path: Path) -> Iterator[Audits]:
    audits = Audits(tmp_path)
    yield audits
    audits.schedule._collector.close()
    audits.state.close()


def test_an_audit_that_fails_is_tried_again_at_its_next_time_not_every_minute(audits: Audits) -> None:
    interval = audits.schedule.components.config.poll.audit_interval_seconds
    audits.outcome = TransientError("no answer")
    assert audits.run_for(interval) == 1
    assert audits.run_for(interval) == 1
    audits.outcome = Audited([])
    assert audits.run_for(2 * interval) == 2


def test_what_an_audit_misses_is_shown_until_an_audit_finds_nothing(audits: Audits) -> None:
    interval = audits.schedule.components.config.poll.audit_interval_seconds
    hour = Window(BEGAN // H * H + H, BEGAN // H * H + 2 * H)

    def missing() -> float | None:
        return audits.metrics.registry.get_sample_value("ionos_poller_audit_missing_events", {"contract": "1"})

    audits.outcome = Audited([Difference("1", hour, 5, 2, 0)])
    audits.run_for(interval)
    shown = missing()
    audits.outcome = Audited([])
    audits.run_for(interval)
    assert (shown, missing()) == (3, 0)
    assert [span.purpose for span in audits.state.contracts.ranges("1")] == ["repair"]
