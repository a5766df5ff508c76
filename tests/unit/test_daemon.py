"""The daemon in this process, with sinks that do as they are told: what a reload and a worker that is stuck come to."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config, Http
from poller.core.answers import Page
from poller.core.delivery import Accepted, Outcome, RetryAfter
from poller.core.errors import PollerError, StateFullError, TransientError
from poller.core.events import Event
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.pipeline.collect import Prepared
from poller.service import schedule
from poller.service.components import Components
from poller.service.daemon import Daemon
from poller.service.notify import Notifier
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.sqlite import State
from poller.system import liveness
from tests.states import commit
from tests.support import wait_until
from tests.unit.test_triggers import due_times

QUIET = Config(http=Http(listen=""))


class Sink(StdoutSink):
    """Takes everything; its start goes as `resumed` says."""

    def __init__(self, resumed: Callable[[], None] = lambda: None, sent: Callable[[], Outcome] = Accepted) -> None:
        super().__init__(PRINTED)
        self._resumed = resumed
        self._sent = sent

    def resume(self, mark: int | None) -> None:
        self._resumed()

    def send(self, events: Sequence[Any]) -> Outcome:
        return self._sent()


class Api:
    """An account that hangs where it is asked for contracts."""

    clock_skew_seconds = 0.0

    def __init__(self, asked: Callable[[], object], contracts: Sequence[str] = ()) -> None:
        self._asked = asked
        self._contracts = list(contracts)

    def contracts(self) -> ContractList:
        self._asked()
        return ContractList(self._contracts)

    def admit(self, contract: str) -> bool:
        return True

    def dismiss(self, contract: str) -> None:
        pass

    def hanging_count(self) -> int:
        return 0

    def take_part(self, part: float) -> None:
        pass

    def page(self, *args: object) -> Page:
        raise TransientError("no answer")


class Ear(Notifier):
    """Keeps what systemd would be told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.told: list[dict[str, str]] = []

    def tell(self, **values: str) -> None:
        self.told.append(values)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Running:
    """A daemon of this process; `during` is what happens to it, in a thread, until it is told to stop."""

    def __init__(self, directory: Path, sinks: Sequence[Sink], api: Api | None = None) -> None:
        self.state = State.open(directory, "run")
        self._api = api
        self.ear = Ear()
        self.sinks = self.sinks_before = sinks
        self.built: list[Config | None] = []
        self.daemon = Daemon(self.state, self._build, self.ear)

    def _build(self, stop: threading.Event, observe: object, before: Config | None) -> Components:
        self.built.append(before)
        sinks = self.sinks if before is None else self.sinks_before
        accounts: Any = {} if self._api is None else {"default": self._api}
        return Components(QUIET, accounts, sinks, dict, lambda contract, events: Prepared(events))

    def run(self, during: Callable[[], None]) -> None:
        failures: list[BaseException] = []

        def act() -> None:
            try:
                wait_until(lambda: self.daemon.ready().reasons != ("starting",), what="started")
                during()
            except BaseException as error:  # noqa: BLE001  # raised below, in the test
                failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=act)
        thread.start()
        try:
            self.daemon.run()
        finally:
            thread.join()
            self.state.close()
        if failures:
            raise failures[0]


def logged(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.message == message]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (TransientError("the state is locked"), "the state is locked"),
        (RuntimeError("can't start new thread"), "thread"),
    ],
)
def test_a_reload_whose_start_fails_is_told_as_what_it_is_and_what_ran_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: Exception, words: str
) -> None:
    def fail() -> None:
        raise failure

    running = Running(tmp_path, [Sink()])

    def during() -> None:
        running.sinks = [Sink(fail)]
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: logged(caplog, "config.reload_failed"), what="told")
        wait_until(lambda: len(running.built) == 3, what="built again, as it was")
        running.sinks = [Sink()]
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: logged(caplog, "config.reloaded"), what="a good one is taken")

    caplog.set_level("INFO", logger="poller")
    running.run(during)
    (told,) = logged(caplog, "config.reload_failed")
    assert words in told["why"]
    assert "old configuration stays" in told["hint"]
    assert running.built == [None, None, QUIET, None]
    assert logged(caplog, "daemon.stopped")


def test_where_the_old_configuration_cannot_start_either_the_daemon_ends_with_the_reason(tmp_path: Path) -> None:
    failures = iter([None, "first", "again"])

    def fail() -> None:
        if failure := next(failures):
            raise RuntimeError(failure)

    running = Running(tmp_path, [Sink(fail)])

    def during() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: len(running.built) == 3, what="built again, as it was")

    with pytest.raises(PollerError, match="cannot go on: RuntimeError: again"):
        running.run(during)


def test_a_disk_that_is_full_is_told_until_it_is_not(tmp_path: Path) -> None:
    is_full = threading.Event()
    is_full.set()

    def send() -> Outcome:
        if is_full.is_set():
            raise StateFullError("state/run.db: no space left on the disk", hint="free some")
        return Accepted()

    running = Running(tmp_path, [Sink(sent=send)])

    def reasons() -> str:
        return " ".join(running.daemon.ready().reasons)

    def during() -> None:
        fill(running.state)
        wait_until(lambda: "no space left on the disk (free some)" in reasons(), 15, what="it is told")
        is_full.clear()
        wait_until(lambda: "no space left" not in reasons(), 15, what="it is over")

    running.run(during)


def fill(state: State) -> None:
    """An event to deliver to each sink that is known by now."""
    state.contracts.enrol(["1"], "gone", 0, 0)
    event = Event(1_000_000, bytes(16), b"{}", True, True)
    commit(state, [event], window=Window(0, 9), now=9)


@pytest.mark.parametrize("who", ["sink stdout", "the job discovery"])
def test_a_worker_that_hangs_is_named_and_the_watchdog_is_not_fed_until_it_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, who: str
) -> None:
    monkeypatch.setattr(liveness, "GRACE_SECONDS", 1.5)
    monkeypatch.setattr(schedule, "HEARTBEAT_SECONDS", 0.5)  # the tick, and how long an idle sink waits
    may_go_on = threading.Event()

    def hang() -> Outcome:
        assert may_go_on.wait(20)
        return Accepted()

    running = Running(tmp_path, [Sink(sent=hang)], None if who == "sink stdout" else Api(hang))

    def during() -> None:
        daemon, told = running.daemon, running.ear.told
        if who == "sink stdout":
            fill(running.state)
        health = wait_until(lambda: who in str(found := daemon.alive()) and found, what="it is named")
        assert not health.is_well
        assert any(reason.startswith(f"{who} has not moved for ") for reason in health.reasons)
        wait_until(lambda: any(who in values["STATUS"] and "WATCHDOG" not in values for values in told[1:]))
        assert b"ionos_poller_workers_stuck 0.0" not in daemon.metrics.render()
        may_go_on.set()
        wait_until(lambda: daemon.alive().is_well, what="it moves again")
        wait_until(lambda: logged(caplog, "worker.moved"), what="that is told")
        before = len(told)
        wait_until(lambda: any("WATCHDOG" in values for values in told[before:]), what="the watchdog is fed again")

    caplog.set_level("INFO", logger="poller")
    running.run(during)
    assert who in [record["worker"] for record in logged(caplog, "worker.stuck")]


def test_a_sink_that_waits_before_it_tries_again_is_not_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "GRACE_SECONDS", 0.6)
    monkeypatch.setattr(schedule, "HEARTBEAT_SECONDS", 0.3)
    tried = threading.Event()

    def postpone() -> Outcome:
        tried.set()
        return RetryAfter("overloaded", 3600)

    running = Running(tmp_path, [Sink(sent=postpone)])

    def during() -> None:
        fill(running.state)
        assert tried.wait(10)
        for _ in range(100):
            assert "sink stdout" not in running.daemon._stuck()
            threading.Event().wait(0.01)

    running.run(during)


def test_every_job_catches_up_in_one_step_with_a_clock_set_forward_by_a_year(tmp_path: Path) -> None:
    running = Running(tmp_path, [Sink()], Api(lambda: None, ["1"]))

    def during() -> None:
        scheduler = running.daemon._work.jobs.scheduler  # type: ignore[union-attr]
        wait_until(lambda: scheduler.get_job("poll-1"), what="a contract is polled")
        for job in scheduler.get_jobs():
            assert len(due_times(job.trigger, job.next_run_time, job.next_run_time + timedelta(days=366))) == 2, job.id

    running.run(during)
