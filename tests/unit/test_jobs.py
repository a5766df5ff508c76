"""The jobs of a schedule: what their errors mean, and when they run. The scheduler is inspected, but never runs a job."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from poller.core.errors import (
    LeaseLostError,
    PollerError,
    StateError,
    StateFullError,
    StateUnavailableError,
    StoppedError,
    TransientError,
)
from poller.service.jobs import Jobs

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


class Clock(datetime):
    """The clock that jobs are planned by; it stands at NOW."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        assert tz is UTC
        return NOW


class Bench:
    def __init__(self) -> None:
        self.stop = threading.Event()
        self.failures: list[PollerError] = []
        self.jobs = Jobs(self.stop, self.failures.append, polls_at_once=3)

    def planned(self) -> dict[str, datetime | None]:
        return {job.id: getattr(job, "next_run_time", None) for job in self.jobs.scheduler.get_jobs()}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr("poller.service.jobs.datetime", Clock)
    return Bench()


def raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    found = [(record.levelname, record.message) for record in caplog.records if record.name.startswith("poller")]
    caplog.clear()
    return found


def test_a_job_that_works_is_done_and_tells_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    done: list[None] = []
    bench.jobs.guarded("a job", lambda: done.append(None))()
    assert (len(done), bench.failures, told(caplog), bench.jobs.unavailable) == (1, [], [], [])


@pytest.mark.parametrize(
    ("error", "expected", "ends"),
    [
        (StoppedError("asked to stop"), [], False),
        (TransientError("no answer"), [("ERROR", "job.failed")], False),
        (StateError("damaged"), [], True),
        (StateUnavailableError("no connection"), [("ERROR", "state.unavailable")], False),
        (StateFullError("no space"), [("ERROR", "state.full")], False),
        (LeaseLostError("another's"), [("WARNING", "lease.lost")], False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_an_error_of_a_job_means(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: PollerError, expected: list[Any], ends: bool
) -> None:
    bench.jobs.guarded("a job", raising(error))()
    assert told(caplog) == expected
    assert bench.failures == [error] * ends


def test_one_that_ends_already_does_not_fail(bench: Bench) -> None:
    bench.stop.set()
    bench.jobs.guarded("a job", raising(StateError("closed")))()
    assert bench.failures == []


def test_while_it_works_a_job_is_among_the_workers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.system.liveness.GRACE_SECONDS", -1.0)
    seen: list[str] = []
    bench.jobs.guarded("the job audit", lambda: seen.extend(bench.jobs.workers.stuck()))()
    assert seen == ["the job audit"]
    assert bench.jobs.workers.stuck() == {}


def test_a_state_that_is_away_is_told_until_a_job_that_met_it_has_worked(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("poller.service.jobs.time.monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    away = StateUnavailableError("state/run.db: locked", hint="wait")
    for name in ("b", "a", "a"):
        bench.jobs.guarded(name, raising(away))()
    assert told(caplog) == [("ERROR", "state.unavailable")]
    assert bench.jobs.unavailable == [away.reason], "the same reason once"
    bench.jobs.note_available("another")
    assert (told(caplog), bench.jobs.unavailable) == ([], [away.reason])
    bench.jobs.guarded("a", lambda: None)()
    assert told(caplog) == [("INFO", "state.available")]
    assert bench.jobs.unavailable == [], "it is back for all: the next run of the other may be an hour away"
    now += 24 * 3600
    bench.jobs.guarded("b", raising(away))()
    assert told(caplog) == [("ERROR", "state.unavailable")], "a new outage is told anew"


@pytest.mark.parametrize("name", ["the job prune", "the poll of contract 2", "sink s"])
def test_what_is_noted_late_ends_with_the_next_work_of_any_that_met_the_outage(bench: Bench, name: str) -> None:
    away = StateUnavailableError("refused")
    share = "the job share"
    bench.jobs.guarded(share, raising(away))()
    bench.jobs.guarded(share, lambda: None)()
    bench.jobs.note_unavailable(name, away)  # from work that began before
    assert len(bench.jobs.unavailable) == 1
    bench.jobs.guarded("the job tokens", lambda: None)()
    assert len(bench.jobs.unavailable) == 1, "that one needs no state"
    bench.jobs.guarded(share, lambda: None)()
    assert bench.jobs.unavailable == []


def test_one_that_began_before_an_outage_does_not_end_it(bench: Bench) -> None:
    away = StateUnavailableError("refused")
    bench.jobs.guarded("a", raising(away))()
    bench.jobs.guarded("a", lambda: bench.jobs.note_unavailable("b", away))()
    assert len(bench.jobs.unavailable) == 1
    bench.jobs.note_available("a")  # as a sink does right after it has settled a batch
    assert bench.jobs.unavailable == []


def test_no_room_is_told_until_the_job_itself_has_worked(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    full = StateFullError("no space")
    bench.jobs.guarded("a", raising(full))()
    bench.jobs.guarded("b", raising(StateUnavailableError("refused")))()
    bench.jobs.guarded("b", lambda: None)()
    assert bench.jobs.unavailable == [full.reason]
    bench.jobs.guarded("a", lambda: None)()
    assert bench.jobs.unavailable == []


@pytest.mark.parametrize(("seconds", "expected"), [(3600.0, 5.0), (900.0, 5.0), (2.0, 2.0)])
def test_housekeeping_that_the_state_kept_from_working_is_tried_again_soon(
    bench: Bench, seconds: float, expected: float
) -> None:
    errors: list[PollerError] = [StateUnavailableError("refused"), LeaseLostError("another's")]

    def work() -> None:
        if errors:
            raise errors.pop(0)

    bench.jobs.add_housekeeping(work, seconds, "prune", seconds)
    bench.jobs.scheduler.start(paused=True)
    try:
        run = bench.jobs.scheduler.get_job("prune").func
        for _ in range(2):
            bench.jobs.run_again("prune", 9)
            run()
            assert bench.planned() == {"prune": NOW + timedelta(seconds=expected)}
        bench.jobs.run_again("prune", 7)
        run()
        assert bench.planned() == {"prune": NOW + timedelta(seconds=7)}
        assert bench.jobs.unavailable == []
    finally:
        bench.jobs.stop()


def test_reasons_come_in_order(bench: Bench) -> None:
    for name, words in (("1", "locked"), ("2", "full"), ("3", "gone")):
        bench.jobs.note_unavailable(name, StateUnavailableError(words))
    assert bench.jobs.unavailable == sorted(StateUnavailableError(words).reason for words in ("full", "gone", "locked"))


def test_a_contract_that_is_polled_no_more_does_not_keep_its_reason(bench: Bench) -> None:
    bench.jobs.add_poll(raising(StateUnavailableError("locked")), 60, "1")
    poll = bench.jobs.scheduler.get_job("poll-1").func
    poll()
    bench.jobs.remove_poll("2")
    assert len(bench.jobs.unavailable) == 1
    bench.jobs.remove_poll("1")
    bench.jobs.remove_poll("1")
    assert bench.jobs.unavailable == []
    poll()  # a poll that was still running
    assert bench.jobs.unavailable == []
    bench.jobs.add_poll(lambda: None, 60, "1")  # it is polled here again
    poll()
    assert len(bench.jobs.unavailable) == 1


def test_jobs_run_in_threads_of_their_kind_and_are_never_skipped_for_being_late(bench: Bench) -> None:
    bench.jobs.add_poll(lambda: None, 60, "1")
    bench.jobs.add_housekeeping(lambda: None, 5, "heartbeat")
    bench.jobs.add_housekeeping(lambda: None, 3600, "prune", 3600)
    scheduler = bench.jobs.scheduler
    scheduler.start(paused=True)
    try:
        by_id = {job.id: job for job in scheduler.get_jobs()}
        assert {name: job.executor for name, job in by_id.items()} == {
            "poll-1": "default",
            "heartbeat": "housekeeping",
            "prune": "housekeeping",
        }
        for job in by_id.values():
            assert (job.misfire_grace_time, job.coalesce, job.max_instances) == (None, True, 1)
        assert by_id["heartbeat"].next_run_time == NOW
        assert by_id["prune"].next_run_time == NOW + timedelta(hours=1)
        assert [by_id[name].trigger.interval.total_seconds() for name in ("poll-1", "heartbeat", "prune")] == [
            60,
            5,
            3600,
        ]
    finally:
        bench.jobs.stop()
    bench.jobs.stop()  # it can be stopped twice


def test_polls_of_many_contracts_are_spread_and_housekeeping_is_not(bench: Bench) -> None:
    for number in range(20):
        bench.jobs.add_poll(lambda: None, 60, str(number))
        bench.jobs.add_housekeeping(lambda: None, 60, f"job {number}")
    second: dict[bool, set[datetime]] = {True: set(), False: set()}
    for job in bench.jobs.scheduler.get_jobs():
        second[job.id.startswith("poll-")].add(job.trigger.get_next_fire_time(NOW, NOW))
    assert (len(second[True]) > 10, second[False]) == (True, {NOW + timedelta(seconds=60)})


def test_a_job_is_run_again_as_soon_as_asked_and_one_that_is_gone_is_not(bench: Bench) -> None:
    bench.jobs.add_housekeeping(lambda: None, 3600, "discovery", 3600)
    bench.jobs.add_poll(lambda: None, 60, "1")
    bench.jobs.scheduler.start(paused=True)
    try:
        bench.jobs.run_again("discovery", 9)
        assert bench.planned()["discovery"] == NOW + timedelta(seconds=9)
        bench.jobs.remove_poll("1")
        bench.jobs.remove_poll("1")
        bench.jobs.run_again("poll-1", 1)
        assert list(bench.planned()) == ["discovery"]
    finally:
        bench.jobs.stop()


def test_after_a_clock_that_was_set_back_what_is_due_in_more_than_an_interval_runs_now(bench: Bench) -> None:
    bench.jobs.scheduler.start(paused=True)
    try:
        for name, seconds in (("late", 61), ("soon", 60)):
            bench.jobs.add_housekeeping(lambda: None, 60, name, seconds)
        bench.jobs.catch_up()
        assert bench.planned() == {"late": NOW, "soon": NOW + timedelta(seconds=60)}
    finally:
        bench.jobs.stop()


def test_a_run_that_is_left_out_as_one_is_still_running_is_no_news(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    from apscheduler.events import EVENT_JOB_MAX_INSTANCES, JobSubmissionEvent

    caplog.set_level(logging.DEBUG, logger="poller")
    event = JobSubmissionEvent(EVENT_JOB_MAX_INSTANCES, "poll-1", "default", [NOW])
    bench.jobs.scheduler._dispatch_event(event)
    assert told(caplog) == [("DEBUG", "job.skipped")]
