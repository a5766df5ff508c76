"""The daemon in this process, with sinks that a test controls: the effect of a reload, of a stuck worker, of a full disk."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from poller.config import Account, Config, Http, SecretSource
from poller.config import State as StateTable
from poller.core.answers import Page
from poller.core.delivery import Accepted, Outcome, RetryAfter
from poller.core.errors import PollerError, StateFullError, StateUnavailableError, TransientError
from poller.core.events import Event
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.pipeline.collect import Prepared
from poller.pipeline.reloads import Reload, last_reload
from poller.service import schedule
from poller.service.components import Components
from poller.service.daemon import Daemon
from poller.service.health import Health
from poller.service.notify import Notifier
from poller.service.schedule import Look
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.journal import Action, Person
from poller.store.sqlite import State
from poller.system import liveness
from poller.system.listening import listen, stop_listening
from tests.states import commit
from tests.support import wait_until
from tests.unit.test_triggers import due_times

QUIET = Config(http=Http(listen=""))


class Sink(StdoutSink):
    """Accepts everything, or answers as `sent` says. `resumed` is called at its start."""

    def __init__(self, resumed: Callable[[], None] = lambda: None, sent: Callable[[], Outcome] = Accepted) -> None:
        super().__init__(PRINTED)
        self._resumed = resumed
        self._sent = sent

    def resume(self, mark: int | None) -> None:
        self._resumed()

    def send(self, events: Sequence[Any]) -> Outcome:
        return self._sent()


class Api:
    """An account that calls `asked`, which may hang, before it lists contracts. It never gives a page."""

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
    """Keeps the messages for systemd."""

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
    """A daemon in this process. `during` runs in a thread after its start; then the daemon is stopped."""

    def __init__(
        self, directory: Path, sinks: Sequence[Sink], api: Api | None = None, config: Config = QUIET, **options: Any
    ) -> None:
        self.config = config
        self.state = State.open(directory, "run")
        self._api = api
        self.ear = Ear()
        self.sinks = self.sinks_before = sinks
        self.built: list[Config | None] = []
        self.daemon = Daemon(self.state, self._build, self.ear, **options)

    def _build(self, stop: threading.Event, observe: object, before: Config | None) -> Components:
        self.built.append(before)
        sinks = self.sinks if before is None else self.sinks_before
        accounts: Any = {} if self._api is None else {"default": self._api}
        return Components(before or self.config, stop, accounts, sinks, dict, lambda contract, events: Prepared(events))

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


def test_replicas_are_told_of_the_configuration_that_is_in_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(tmp_path, [Sink()])
    told: list[int] = []
    monkeypatch.setattr(running.state, "adopt_config", lambda config: told.append(config.api.page_size))

    def fail() -> None:
        raise RuntimeError("no threads")

    def reload(page_size: int, sink: Sink, outcome: str) -> None:
        api = msgspec.structs.replace(QUIET.api, page_size=page_size)
        running.config, running.sinks = msgspec.structs.replace(QUIET, api=api), [sink]
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: logged(caplog, outcome), what=outcome)

    def during() -> None:
        reload(500, Sink(fail), "config.reload_failed")
        wait_until(lambda: len(running.built) == 3, what="built again, as it was")
        reload(600, Sink(), "config.reloaded")

    caplog.set_level("INFO", logger="poller")
    running.run(during)
    usual = QUIET.api.page_size
    assert told == [usual, 500, usual, 600]


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
        wait_until(lambda: "no space left on the disk (free some)" in reasons(), what="it is told")
        is_full.clear()
        wait_until(lambda: "no space left" not in reasons(), what="it is over")

    running.run(during)


def fill(state: State) -> None:
    """Commit one event for each sink that is registered so far."""
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


def asked(path: Path, target: str) -> tuple[int, dict[str, str], bytes]:
    """The answer of an endpoint at a socket: status, headers, body."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(10)
        channel.connect(str(path))
        channel.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: channel.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def listening(path: Path, state_dir: Path) -> Config:
    return Config(accounts=(Account(name="default"),), http=Http(listen=f"unix:{path}"), state_dir=state_dir)


def test_before_it_has_started_it_is_not_ready(tmp_path: Path) -> None:
    running = Running(tmp_path, [Sink()])
    assert running.daemon.ready() == Health(("starting",))
    assert running.daemon.alive() == Health()
    running.state.close()


def test_systemd_is_told_when_it_has_started_how_it_goes_and_that_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="poller")
    running = Running(tmp_path, [Sink()])
    told = running.ear.told
    running.run(lambda: wait_until(lambda: any("WATCHDOG" in values for values in told), what="it ticks"))
    assert {"READY": "1", "STATUS": "collecting"} in told
    assert told[-1] == {"STOPPING": "1", "STATUS": "finishing what is in flight"}
    ticks = [values for values in told if "WATCHDOG" in values]
    assert ticks[-1]["STATUS"] == "no contracts discovered yet" or ticks[-1]["STATUS"] == "ready"
    (started,) = logged(caplog, "daemon.started")
    assert (started["config"], started["sinks"]) == ("environment", ["stdout"])
    assert logged(caplog, "daemon.stopped")


def test_all_of_it_is_answered_at_its_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "s"
    running = Running(tmp_path / "state", [Sink()], Api(lambda: None, ["1"]), listening(path, tmp_path / "state"))

    def during() -> None:
        wait_until(lambda: running.state.contracts.get("1"), what="a contract is known")
        status, headers, body = asked(path, "/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert (b"<!doctype html>" in body.lower(), b"No contract" in body) == (True, False)
        status, headers, body = asked(path, "/status.json")
        assert (status, headers["Content-Type"], body[-1:]) == (200, "application/json", b"\n")
        data = json.loads(body)
        assert data["uses"]["run"]["contracts"][0]["contract"] == "1"
        assert data["uses"]["run"]["process"] == os.getpid()
        assert asked(path, "/healthz")[0] == 200
        status, _, body = asked(path, "/readyz")
        assert (status, json.loads(body)["status"]) == (503, "failing")
        assert b"ionos_poller_state_available 1.0" in asked(path, "/metrics")[2]

    running.run(during)
    assert not path.exists()


def test_a_state_that_can_be_read_and_takes_no_writes_is_not_available(tmp_path: Path) -> None:
    # A database once became read-only because its disk was full, and no alert said that nothing was collected.
    running = Running(tmp_path, [Sink()])
    metrics = running.daemon.metrics
    answers = [StateUnavailableError("it takes no writes"), None]

    def work() -> None:
        if answer := answers.pop(0):
            raise answer

    def during() -> None:
        work_on = running.daemon._work.jobs.guarded("a job", work)
        assert b"ionos_poller_state_available 1.0" in metrics.render()
        work_on()
        assert running.daemon.ready().reasons[0] == "it takes no writes"
        assert b"ionos_poller_state_available 0.0" in metrics.render()
        assert b"ionos_poller_outbox_bytes" in metrics.render()
        work_on()
        assert b"ionos_poller_state_available 1.0" in metrics.render()

    running.run(during)


def test_a_reload_listens_where_the_new_configuration_says_and_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="poller")
    first, second, place = tmp_path / "1", tmp_path / "2", tmp_path / "state"
    running = Running(place, [Sink()], config=listening(first, place), clock=lambda: 1_777_593_600.0)
    reloads: list[Any] = []

    def reload(count: int) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: len(logged(caplog, "config.reloaded")) == count, what="a good one is taken")
        reloads.append(last_reload(running.state))

    def during() -> None:
        running.config = listening(second, place)
        reload(1)
        assert (first.exists(), asked(second, "/healthz")[0]) == (False, 200)
        running.config = Config(http=Http(listen=""), state_dir=place)
        reload(2)
        assert not second.exists()
        running.config = listening(first, tmp_path / "elsewhere")
        reload(3)
        assert asked(first, "/healthz")[0] == 200

    running.run(during)
    assert reloads == [Reload(os.getpid(), 1_777_593_600.0, "")] * 3
    assert next(values for values in running.ear.told if "RELOADING" in values)["MONOTONIC_USEC"].isdigit()
    (needed,) = logged(caplog, "config.restart_needed")
    assert str(tmp_path / "elsewhere") in needed["configured"]
    assert str(place) in needed["in_use"]
    with closing(State.open(place, "run")) as state:
        last = state.overview().last_action
        assert last is not None
        assert (last.login, last.action, last.at) == ("signal", "reload", 1_777_593_600)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, None),
        ({"lease_seconds": 60}, "state.lease"),
        ({"schema": "other", "url": "postgresql://a@db:5432/p?sslmode=require"}, "state.schema, state.url"),
        ({"password": SecretSource("file", "/etc/new", path="state.password")}, "state.password_file"),
    ],
)
def test_a_reload_that_changes_how_the_state_is_reached_says_that_it_needs_a_restart(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    keys: str | None,
) -> None:
    # A state in files replaces the database here, because the message depends on the configuration alone.
    place = SimpleNamespace(place="postgresql://db:5432/p")
    monkeypatch.setattr("poller.service.daemon.stores_of", lambda config: place)
    password = SecretSource("file", "/etc/old", path="state.password")
    table = StateTable(url="postgresql://a@db:5432/p", password=password)
    running = Running(tmp_path, [Sink()], config=msgspec.structs.replace(QUIET, state=table))

    def during() -> None:
        changed = msgspec.structs.replace(table, **changes)
        running.config = msgspec.structs.replace(QUIET, state=changed)
        os.kill(os.getpid(), signal.SIGHUP)
        wait_until(lambda: logged(caplog, "config.reloaded"), what="reloaded")

    caplog.set_level("INFO", logger="poller")
    running.run(during)
    assert [told["key"] for told in logged(caplog, "config.restart_needed")] == ([keys] if keys else [])


def test_an_address_that_cannot_be_had_is_waited_for_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.service.daemon._LISTEN_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr("poller.service.daemon._WAKE_SECONDS", 0.02)
    caplog.set_level("INFO", logger="poller")
    path = tmp_path / "s"
    other = listen(path)
    running = Running(tmp_path / "state", [Sink()], config=listening(path, tmp_path / "state"))

    def during() -> None:
        assert any("taken by another program" in reason for reason in running.daemon.ready().reasons)
        stop_listening(path, other)
        wait_until(lambda: logged(caplog, "endpoint.opened"), what="it listens")
        assert asked(path, "/healthz")[0] == 200
        assert not any("taken by another program" in reason for reason in running.daemon.ready().reasons)

    running.run(during)
    assert len(logged(caplog, "endpoint.unavailable")) == 1


def test_a_reload_to_an_address_that_cannot_be_had_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, place = tmp_path / "1", tmp_path / "2", tmp_path / "state"
    other = listen(second)
    running = Running(place, [Sink()], config=listening(first, place))

    def during() -> None:
        running.config = listening(second, place)
        os.kill(os.getpid(), signal.SIGHUP)
        (told,) = wait_until(lambda: logged(caplog, "config.reload_failed"), what="it is told")
        assert "taken by another program" in told["why"]
        wait_until(lambda: first.exists() and asked(first, "/healthz")[0] == 200, what="it listens as before")
        found = wait_until(lambda: last_reload(running.state), what="it is noted")
        assert "taken by another program" in found.failure

    running.run(during)
    stop_listening(second, other)


def test_a_clock_that_is_set_back_has_what_is_due_done_now(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.service.daemon._WAKE_SECONDS", 0.02)
    lead, asked_count = 0.0, 0

    def clock() -> float:
        nonlocal asked_count
        asked_count += 1
        return time.monotonic() + lead

    running = Running(tmp_path, [Sink()], clock=clock)
    caught_up: list[None] = []

    def during() -> None:
        nonlocal lead
        monkeypatch.setattr(running.daemon._work.jobs, "catch_up", lambda: caught_up.append(None))
        for step in (600.0, -1.5):
            lead += step
            before = asked_count
            wait_until(lambda before=before: asked_count >= before + 5, what="it looks at the clock")  # type: ignore[misc]
        assert logged(caplog, "clock.set_back") == []
        lead -= 60.0
        wait_until(lambda: caught_up, what="it is noticed")

    running.run(during)
    (told,) = logged(caplog, "clock.set_back")
    assert 60 <= told["seconds"] <= 62
    assert len(caught_up) == 1


def test_what_a_person_does_meanwhile_is_logged_with_the_next_tick(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "HEARTBEAT_SECONDS", 1.0)
    caplog.set_level("INFO", logger="poller")
    running = Running(tmp_path, [Sink()])
    before = Action(Person(1000, "anna"), "sinks retry", "before")
    running.state.journal.add(before)

    def during() -> None:
        running.state.journal.add(Action(Person(1000, "anna"), "sinks retry", "meanwhile"))
        running.daemon._tick()

    running.run(during)
    assert [record["subject"] for record in logged(caplog, "journal.recorded")] == ["meanwhile"]


def test_a_scheduler_that_ticks_no_more_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(tmp_path, [Sink()])
    now = time.monotonic()
    for seconds, is_alive in ((19.9, True), (20.5, False)):
        clock = SimpleNamespace(monotonic=lambda at=now + seconds: at)
        monkeypatch.setattr("poller.service.daemon.time", clock)
        health = running.daemon.alive()
        assert health.is_well == is_alive
        assert [reason.partition(" for ")[0] for reason in health.reasons] == ["the scheduler has not ticked"] * (
            not is_alive
        )
    running.state.close()


def test_a_tick_that_waits_for_the_state_is_no_end_of_the_ticking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Restarting the replicas does not repair a database that hangs.
    running = Running(tmp_path, [Sink()])
    later = time.monotonic() + 45
    healths: list[Health] = []

    def look() -> Look:
        healths.append(running.daemon.alive())
        return Look([], (), 7)

    monkeypatch.setattr("poller.service.daemon.time", SimpleNamespace(monotonic=lambda: later))
    monkeypatch.setattr(running.daemon, "_look", look)
    assert not running.daemon.alive().is_well
    running.daemon._tick()
    assert [health.is_well for health in healths] == [True]
    assert running.daemon.alive().is_well
    running.state.close()


def test_a_status_that_is_too_long_for_systemd_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(tmp_path, [Sink()])
    monkeypatch.setattr(running.daemon, "_look", lambda: Look(["x" * 400, "y" * 400], (), 7))
    running.daemon._tick()
    (told,) = running.ear.told
    assert told == {"WATCHDOG": "1", "STATUS": f"{'x' * 400}; {'y' * 98}"}
    running.state.close()
