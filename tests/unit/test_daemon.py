"""The daemon in this process, with sinks that do as they are told: what a reload and a worker that is stuck come to."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config, Http
from poller.daemon import Daemon
from poller.delivery import Accepted, Outcome
from poller.errors import PollerError, TransientError
from poller.notify import Notifier
from poller.pipeline.collect import Prepared
from poller.schedule import Parts
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store import State
from tests.support import wait_until

QUIET = Config(http=Http(listen=""))


class Sink(StdoutSink):
    """Takes everything; its start goes as `resumed` says."""

    def __init__(self, resumed: Callable[[], None] = lambda: None) -> None:
        super().__init__(PRINTED)
        self._resumed = resumed

    def resume(self, mark: int | None) -> None:
        self._resumed()

    def send(self, events: Sequence[Any]) -> Outcome:
        return Accepted()


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Running:
    """A daemon of this process; `during` is what happens to it, in a thread, until it is told to stop."""

    def __init__(self, directory: Path, sinks: Sequence[Sink]) -> None:
        self._state = State.open(directory, "run")
        self.sinks = self.sinks_before = sinks
        self.built: list[Config | None] = []
        self.daemon = Daemon(self._state, self._build, Notifier(None))

    def _build(self, stop: threading.Event, observe: object, before: Config | None) -> Parts:
        self.built.append(before)
        sinks = self.sinks if before is None else self.sinks_before
        return Parts(QUIET, {}, sinks, dict, lambda contract, events: Prepared(events))

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
            self._state.close()
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
