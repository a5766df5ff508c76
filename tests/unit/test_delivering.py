"""The sinks of a daemon: each has a thread, a place in the state, and failures of its own. A successor gets the places."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.config import Config, Http
from poller.config.sinks import FileSink
from poller.config.sinks import StdoutSink as Settings
from poller.core.delivery import Accepted, Outcome, RetryAfter
from poller.core.errors import OutputError, PollerError, StateFullError
from poller.service.components import Components
from poller.service.delivering import Delivering
from poller.service.jobs import Jobs
from poller.service.metrics import Metrics
from poller.sinks.base import Sink
from poller.sinks.stdout import StdoutSink
from poller.store.rows import Prepared
from poller.store.sqlite import State
from tests.states import START, commit, events
from tests.support import wait_until


class Taking(StdoutSink):
    """Answers as a test says, and keeps the lines that it accepted."""

    def __init__(self, name: str, sent: Callable[[], Outcome] = Accepted) -> None:
        super().__init__(Settings(name=name, batch_age_seconds=0.0))
        self.lines: list[bytes] = []
        self._sent = sent

    def send(self, events: Sequence[Any]) -> Outcome:
        outcome = self._sent()
        if isinstance(outcome, Accepted):
            self.lines += [event.line for event in events]
        return outcome


class Bench:
    def __init__(self, directory: Path) -> None:
        self.state = State.open(directory, "run")
        self.state.contracts.enrol(["1"], "default", START, START)
        self.stop = threading.Event()
        self.failures: list[PollerError] = []
        self.jobs = Jobs(self.stop, self.failures.append, polls_at_once=1)
        self.metrics = Metrics(self.state.overview)
        self.begun: list[Delivering] = []

    def begin(
        self, *sinks: Sink, tables: Sequence[Any] = (), redactions: Mapping[str, Callable[[bytes], bytes]] | None = None
    ) -> Delivering:
        config = msgspec.structs.replace(Config(http=Http(listen="")), sinks=tuple(tables))
        components = Components(
            config, self.stop, {}, sinks, dict, lambda contract, events: Prepared(events), dict(redactions or {})
        )
        self.begun.append(Delivering(self.state, components, self.jobs, self.metrics, lambda: float(START + 99)))
        self.begun[-1].start()
        return self.begun[-1]

    def close(self) -> None:
        self.stop.set()
        for delivering in self.begun:
            delivering.end(time.monotonic() + 10)
            delivering.abandon()
        self.state.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_each_sink_gets_what_is_collected_as_it_may_see_it(bench: Bench) -> None:
    plain, hidden = Taking("plain"), Taking("hidden")
    delivering = bench.begin(plain, hidden, redactions={"hidden": lambda line: b"{}"})
    commit(bench.state, events(1, 2))
    delivering.wake()
    wait_until(lambda: len(plain.lines) == len(hidden.lines) == 2, what="both have it")
    assert (plain.lines, hidden.lines) == ([b'{"n":1}', b'{"n":2}'], [b"{}", b"{}"])
    wait_until(lambda: {row.succeeded_at for row in bench.state.outbox.sinks()} == {START + 99}, what="it is settled")


def test_what_is_configured_and_another_machines_waits_for_it(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.state.outbox.register("gone", "loki")
    bench.begin(Taking("out"), tables=[Settings(name="out"), FileSink(name="other", path="a.ndjson")])
    assert {row.name: row.type for row in bench.state.outbox.sinks()} == {
        "out": "stdout",
        "other": "file",
        "gone": "loki",
    }
    assert [vars(record)["sink"] for record in caplog.records if record.message == "sink.unknown"] == ["gone"]


def test_a_send_that_is_put_off_is_counted_by_its_kind(bench: Bench) -> None:
    commit(bench.state, events(1))
    bench.state.outbox.register("out", "stdout")
    commit(bench.state, events(2))
    bench.begin(Taking("out", lambda: RetryAfter("overloaded", 3600)))
    labels = {"sink": "out", "reason": "unavailable"}
    sample = lambda: bench.metrics.registry.get_sample_value("ionos_poller_batches_failed_total", labels)  # noqa: E731
    wait_until(lambda: sample() == 1, what="it is counted")
    assert bench.failures == []


def test_a_state_that_lets_one_sink_not_work_is_told_by_it_until_it_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("poller.pipeline.loop.UNAVAILABLE_SECONDS", 0.01)
    is_full = True

    def sent() -> Outcome:
        if is_full:
            raise StateFullError("state/run.db: no space left on the disk")
        return Accepted()

    sink = Taking("out", sent)
    delivering = bench.begin(sink)
    commit(bench.state, events(1))
    delivering.wake()
    (reason,) = wait_until(lambda: bench.jobs.unavailable, what="it is told")
    assert "no space left" in reason
    assert [vars(record)["sink"] for record in caplog.records if record.message == "state.full"] == ["out"]
    is_full = False
    delivering.wake()
    wait_until(lambda: sink.lines and not bench.jobs.unavailable, what="it is over")


@pytest.mark.parametrize("others", [0, 1])
def test_an_output_that_is_gone_ends_the_daemon_where_there_is_no_other_sink(bench: Bench, others: int) -> None:
    gone = OutputError("the reader of our output has gone away")

    def sent() -> Outcome:
        raise gone

    other = Taking("other")
    delivering = bench.begin(Taking("out", sent), *[other] * others)
    commit(bench.state, events(1))
    delivering.wake()
    if others:
        wait_until(lambda: other.lines, what="the other has it")
        rows = lambda: {row.name: row.failure for row in bench.state.outbox.sinks()}  # noqa: E731
        assert "gone away" in wait_until(lambda: rows()["out"], what="it waits")
        assert bench.failures == []
    else:
        wait_until(lambda: bench.failures == [gone], what="it fails")


def test_while_a_sink_works_its_name_is_among_the_workers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.system.liveness.GRACE_SECONDS", -60.0)
    bench.begin(Taking("out"))
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "sink-out"] == [True]
    wait_until(lambda: "sink out" in bench.jobs.workers.stuck(), what="it is named")


def test_at_the_end_what_is_being_sent_is_waited_for_and_a_successor_gets_the_places(bench: Bench) -> None:
    is_sending, may_end = threading.Event(), threading.Event()

    def sent() -> Outcome:
        is_sending.set()
        assert may_end.wait(10)
        return Accepted()

    slow, quick = Taking("slow", sent), Taking("quick")
    delivering = bench.begin(slow, quick)
    commit(bench.state, events(1))
    delivering.wake()
    assert is_sending.wait(10)
    wait_until(lambda: {row.name: row.delivered for row in bench.state.outbox.sinks()}["quick"], what="it is settled")
    bench.stop.set()
    delivering.end(time.monotonic() - 1)
    wait_until(lambda: delivering.abandon() == ["sink-slow"], what="the other has ended")
    delivering.end(time.monotonic() + 0.01)
    assert delivering.abandon() == ["sink-slow"]
    assert {row.name for row in bench.state.outbox.sinks() if bench.state.outbox.take(row.name)} == {"slow", "quick"}
    may_end.set()
    delivering.end(time.monotonic() + 10)
    assert delivering.abandon() == []
