"""The schedule of a replica: it polls the contracts in its share, uses its part of the pace, and follows changes of the share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config, Http
from poller.core.answers import Page
from poller.core.errors import LeaseLostError, StateUnavailableError, TransientError
from poller.core.listing import ContractList
from poller.service.components import Components
from poller.service.metrics import Metrics
from poller.service.schedule import Schedule
from poller.store.overview import Overview
from poller.store.rows import Prepared, Replica
from poller.store.sqlite import State
from tests import views
from tests.support import wait_until

CONTRACTS = ["1", "2", "3", "4"]


class Api:
    """An account with four contracts that gives no answer and records its requests."""

    clock_skew_seconds = 0.0

    def __init__(self) -> None:
        self.polled: list[str] = []
        self.parts: list[float] = []

    def contracts(self) -> ContractList:
        return ContractList(CONTRACTS)

    def admit(self, contract: str) -> bool:
        return True

    def dismiss(self, contract: str) -> None:
        pass

    def hanging_count(self) -> int:
        return 0

    def take_part(self, part: float) -> None:
        self.parts.append(part)

    def page(self, contract: str, *args: object, **options: object) -> Page:
        self.polled.append(contract)
        raise TransientError("no answer")


class Running:
    """A schedule, and the contracts that the state gives it: `held`."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, held: Sequence[str]) -> None:
        self.held = list(held)
        self.api = Api()
        self.state = State.open(directory, "run")
        monkeypatch.setattr("poller.service.polling._SHARE_SECONDS", 0.0)
        monkeypatch.setattr(self.state.contracts, "share", lambda wanted: [row for row in wanted if row in self.held])
        self.failures: list[Any] = []
        self.metrics = Metrics(self.state.overview)
        accounts: Any = {"default": self.api}
        components = Components(
            Config(http=Http(listen="")),
            threading.Event(),
            accounts,
            [],
            dict,
            lambda contract, events: Prepared(events),
        )
        self.schedule = Schedule(
            self.state, components, self.metrics, lambda: None, self.failures.append, lambda: 1_777_593_600.0
        )
        self.schedule.start()

    def replica_contracts(self) -> float | None:
        return self.metrics.registry.get_sample_value("ionos_poller_replica_contracts")

    def close(self) -> None:
        self.schedule.stop()
        self.state.close()


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    running = Running(tmp_path, monkeypatch, ["2"])
    yield running
    running.close()


def test_a_replica_polls_its_share_alone_at_its_part_of_the_pace(running: Running) -> None:
    wait_until(lambda: running.replica_contracts() == 1, what="it knows its share")
    wait_until(lambda: running.api.polled, what="it polls")
    assert set(running.api.polled) == {"2"}
    assert running.api.parts[-1] == 0.25


def test_what_another_replica_left_is_polled_at_once_and_what_it_takes_no_more(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wait_until(lambda: running.api.polled, what="it polls")
    running.held = ["1", "3", "4"]
    wait_until(lambda: set(running.api.polled) == {"1", "2", "3", "4"}, what="it polls what it took over")
    wait_until(lambda: running.api.parts[-1] == 0.75, what="it asks at the pace of three of four")
    assert running.replica_contracts() == 3
    assert "share.changed" in caplog.messages
    assert [job.id for job in running.schedule.jobs.scheduler.get_jobs() if job.id == "poll-2"] == []
    assert running.failures == []


def test_the_loss_of_a_claim_ends_a_poll_and_not_the_daemon(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(*args: object) -> None:
        raise LeaseLostError("it is another replica's", contract="3")

    monkeypatch.setattr(running.state.contracts, "claim", lost)
    running.held = ["3"]
    wait_until(lambda: "lease.lost" in caplog.messages, what="it says so")
    assert running.failures == []


def test_a_state_that_is_away_is_told_once_and_once_when_it_is_back(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wait_until(lambda: running.replica_contracts() == 1, what="it knows its share")
    is_away = True

    def work() -> None:
        if is_away:
            raise StateUnavailableError("no connection")

    jobs = [running.schedule.jobs.guarded(f"job {number}", work) for number in range(3)]
    for job in [*jobs, *jobs]:
        job()
    is_away = False
    for job in [*jobs, *jobs]:
        job()
    told = [(record.levelname, record.message) for record in caplog.records if record.message.startswith("state.")]
    assert told == [("ERROR", "state.unavailable"), ("INFO", "state.available")]


def test_a_state_that_cannot_be_read_is_a_metric(tmp_path: Path) -> None:
    answers: list[Overview | None] = [views.state([], []), None]

    def read() -> Overview:
        answer = answers.pop(0)
        if answer is None:
            raise StateUnavailableError("no connection")
        return answer

    metrics = Metrics(read, lost_leases=lambda: 2)
    assert b"ionos_poller_state_available 1.0" in metrics.render()
    page = metrics.render()
    assert b"ionos_poller_state_available 0.0" in page
    assert b"ionos_poller_lease_lost_total 2.0" in page


def test_replicas_with_different_configurations_are_named() -> None:
    rows = [Replica(host, 7, "1", 0, 0, 1, config) for host, config in (("a", "x"), ("b", "x"), ("c", "y"))]
    state = views.state([], [])
    (line,) = state._replace(replicas=rows).replica_troubles()
    assert "a:7, b:7 | c:7" in line
    assert state._replace(replicas=rows[:2]).replica_troubles() == []
    assert state.replica_troubles() == []
