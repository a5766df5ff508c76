"""The schedule of one configuration without its threads: which jobs it has, how it reports that it works, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.config import Config, Http
from poller.core.errors import AuthError, PollerError, StateUnavailableError
from poller.service.components import Components
from poller.service.metrics import Metrics
from poller.service.schedule import Look, Schedule
from poller.store.rows import Prepared
from poller.store.sqlite import State
from tests import views
from tests.fake_api import Log
from tests.views import FIRST, NOW


class Account(Log):
    """An API with one entry, of a minute ago."""

    def __init__(self) -> None:
        super().__init__("1")
        self.now = float(NOW)
        self.seconds["1"] = [NOW - 60]

    def take_part(self, part: float) -> None: ...

    def admit(self, contract: str) -> bool:
        return True

    def dismiss(self, contract: str) -> None: ...


class StandingClock(datetime):
    """A clock that stands still while jobs are planned."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.fromtimestamp(NOW, tz)


class Bench:
    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = State.open(directory, "run")
        self.stop = threading.Event()
        self.failures: list[PollerError] = []
        self.ticks = 0
        self.expiries = {"default": NOW + 1.0}
        accounts: Any = {"default": Account()}
        config = Config(http=Http(listen=""))
        self.config = msgspec.structs.replace(
            config,
            poll=msgspec.structs.replace(
                config.poll, ledger_retention_seconds=900, overlap_seconds=60, interval_seconds=30
            ),
        )
        components = Components(
            self.config, self.stop, accounts, [], lambda: self.expiries, lambda contract, events: Prepared(events)
        )
        self.metrics = Metrics(self.state.overview)
        self.schedule = Schedule(
            self.state, components, self.metrics, self._tick, self.failures.append, lambda: NOW + 0.5
        )
        scheduler = self.schedule.jobs.scheduler
        monkeypatch.setattr(self.schedule.jobs, "start", lambda: scheduler.start(paused=True))

    def _tick(self) -> None:
        self.ticks += 1

    def run(self, job: str) -> None:
        self.schedule.jobs.scheduler.get_job(job).func()

    def close(self) -> None:
        self.schedule.stop()
        self.state.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(tmp_path, monkeypatch)
    yield bench
    bench.close()


def test_each_job_has_its_pace(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.service.jobs.datetime", StandingClock)
    bench.schedule.start()
    jobs = bench.schedule.jobs.scheduler.get_jobs()
    assert {job.id: job.trigger.interval.total_seconds() for job in jobs} == {
        "heartbeat": 5,
        "state": 5,
        "prune": 3600,
        "tokens": 60,
        "discovery": 3600,
        "share": 2,
        "audit": 60,
    }
    assert {job.id: job.next_run_time.timestamp() - NOW for job in jobs} == {
        "heartbeat": 0,
        "state": 0,
        "prune": 3600,
        "tokens": 0,
        "discovery": 0,
        "share": 2,
        "audit": 1,
    }
    bench.run("heartbeat")
    assert (bench.ticks, bench.failures) == (1, [])


def test_old_identities_are_pruned_as_configured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned: list[tuple[int, ...]] = []
    monkeypatch.setattr(bench.state, "prune", lambda *args: pruned.append(args))
    bench.schedule.start()
    bench.run("prune")
    assert pruned == [(900, 60, NOW)]


def test_a_state_that_was_taken_away_ends_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[None] = []
    monkeypatch.setattr(bench.state, "check_in_place", lambda: looked.append(None))
    bench.schedule.start()
    bench.run("state")
    assert len(looked) == 1


def test_what_is_polled_is_audited_and_polled_where_something_is_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bench.schedule.auditing, "audit", lambda *args: asked.append(args))
    bench.schedule.start()
    bench.schedule.polling.contracts = {"1"}
    bench.run("audit")
    assert asked == [({"1"}, bench.schedule.polling.poll)]


def test_when_tokens_expire_is_known_after_a_look(bench: Bench) -> None:
    bench.schedule.start()
    assert bench.schedule.token_expiries == {}
    bench.run("tokens")
    assert bench.schedule.token_expiries == {"default": NOW + 1.0}
    shown = bench.metrics.registry.get_sample_value("ionos_poller_token_expires_at_seconds", {"account": "default"})
    assert shown == NOW + 1.0


def test_a_window_wakes_the_sinks_if_something_of_it_was_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[None] = []
    monkeypatch.setattr("poller.service.delivering.Delivering.wake", lambda delivering: woken.append(None))
    bench.schedule.start()
    bench.run("discovery")
    for _ in range(2):
        bench.run("poll-1")
        assert len(woken) == 1, "the second one brought nothing new"


def test_how_it_goes_is_told_of_what_is_polled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = [views.gap(), views.gap(2, contract="2")]
    overview = views.state([views.contract(), views.contract("2", new=5, succeeded_at=None)], [], gaps=gaps)
    monkeypatch.setattr(bench.state, "overview", lambda: overview)
    polling = bench.schedule.polling
    assert bench.schedule.look() == Look(["no contracts discovered yet"], [], 2015)
    polling.contracts, polling.discovery_failures = {FIRST}, []
    look = bench.schedule.look()
    assert (look.not_ready, look.collected) == ([], 2015)
    (note,) = look.notes
    assert f"contract {FIRST}: complete up to" in note
    polling.contracts = {FIRST, "2"}
    look = bench.schedule.look()
    assert look.not_ready == ["contract 2: last successful poll never"]
    assert len(look.notes) == 2
    polling.discovery_failures = [AuthError("refused", contract="3")]
    away = StateUnavailableError("locked")
    bench.schedule.jobs.note_unavailable("a job", away)
    assert bench.schedule.look().not_ready[0] == away.reason
    assert len(bench.schedule.look().not_ready) == 3
    bench.expiries["default"] = NOW - 1.0
    bench.schedule._tokens.look()
    assert any("token expired" in reason for reason in bench.schedule.look().not_ready)


def test_a_state_that_cannot_be_read_is_all_that_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    away = StateUnavailableError("locked", hint="wait")

    def overview() -> None:
        raise away

    monkeypatch.setattr(bench.state, "overview", overview)
    assert bench.schedule.look() == Look([away.reason], (), None)


def test_it_ends_when_what_is_collected_is_committed_and_gives_all_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = iter([True, True, False])
    done: list[str] = []
    collector = bench.schedule._collector
    monkeypatch.setattr(type(collector), "is_busy", property(lambda it: next(busy)))
    monkeypatch.setattr(collector, "abandon", lambda: done.append("given back"))
    bench.schedule.start()
    bench.schedule.stop()
    assert (bench.stop.is_set(), done, list(busy)) == (True, ["given back"], [])
    monkeypatch.undo()


def test_it_waits_for_nobody_for_ever_and_says_who_is_late(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("poller.service.schedule.DRAIN_SECONDS", 0.05)
    monkeypatch.setattr(type(bench.schedule._collector), "is_busy", property(lambda it: True))
    monkeypatch.setattr("poller.service.delivering.Delivering.abandon", lambda delivering: ["sink-slow"])
    bench.schedule.start()
    bench.schedule.stop()
    assert [vars(record)["unfinished"] for record in caplog.records if record.message == "drain.timed_out"] == [
        ["sink-slow"]
    ]
    monkeypatch.undo()
