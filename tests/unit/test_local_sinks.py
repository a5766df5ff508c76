"""Sinks on a machine's own disk when several machines share a state: which replica writes, and which events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poller.config import load
from poller.config.sinks import FileSink, StdoutSink
from poller.core.delivery import Accepted, Outcome, RetryAfter
from poller.core.errors import ConfigError
from poller.core.events import OutboxEvent
from poller.pipeline.deliver import Deliverer
from poller.sinks.base import OwnOutput, Sink
from poller.store.protocols import State
from tests.states import NOW, claimed, commit, enrolled, events, waiting

DATABASE = '[state]\nurl = "postgresql://poller@127.0.0.1/poller"\n'
FILE = '[[sinks]]\nname = "file"\ntype = "file"\npath = "out.ndjson"\n'


def loaded(tmp_path: Path, text: str) -> object:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load(path, {"IONOS_API_TOKEN": "demo-token"})


@pytest.mark.parametrize("kind", [FILE, '[[sinks]]\nname = "out"\ntype = "stdout"\n'])
def test_a_sink_on_a_disk_says_whose_where_machines_share_a_state(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, DATABASE + kind)
    (problem,) = raised.value.problems
    assert problem.path == "sinks[0].host"
    assert "shared = true" in problem.hint
    assert loaded(tmp_path, kind)
    assert loaded(tmp_path, DATABASE + kind + 'host = "collector-1"\n')
    assert loaded(tmp_path, DATABASE + kind + "shared = true\n")
    with pytest.raises(ConfigError, match="contradicts host"):
        loaded(tmp_path, DATABASE + kind + 'host = "collector-1"\nshared = true\n')


def test_an_archive_in_a_bucket_needs_no_machine_and_a_directory_may_be_the_same_everywhere(tmp_path: Path) -> None:
    archive = '[[sinks]]\nname = "proof"\ntype = "archive"\nurl = '
    assert loaded(tmp_path, DATABASE + archive + '"s3://audit/activity"\n')
    with pytest.raises(ConfigError, match="all machines have the same directory"):
        loaded(tmp_path, DATABASE + archive + '"file:///srv/audit"\n')
    assert loaded(tmp_path, DATABASE + archive + '"file:///srv/audit"\nshared = true\n')
    assert loaded(tmp_path, DATABASE + archive + '"file:///srv/audit"\nhost = "collector-1"\n')


def test_a_machine_writes_what_is_its_own_or_nobody_s() -> None:
    pinned = FileSink(name="file", path="x", host="collector-1")
    assert [pinned.is_here(host) for host in ("collector-1", "collector-2")] == [True, False]
    assert StdoutSink(name="out", shared=True).is_here("collector-2")


@pytest.mark.backends("postgres")
def test_the_machine_of_a_sink_delivers_what_the_others_collect(opened: Callable[[], State]) -> None:
    here, elsewhere = enrolled(opened()), opened()
    try:
        assert elsewhere.contracts.share(["1"]) == ["1"]
        with claimed(elsewhere) as claim:
            assert claim.row.contract == "1"
        commit(elsewhere, events(1, 2, 3))
        part = here.outbox.take("out")
        assert part is not None
        assert part.batch(9, 10**6) is None, "another replica holds the contract"
        part.release()
        whole = here.outbox.take("out", is_whole=True)
        assert whole is not None
        batch = whole.batch(2, 10**6)
        assert batch is not None
        assert len(batch.events) == 2
        whole.ensure_held()
        whole.settle(2, now=NOW)
        whole.release()
        assert waiting(elsewhere, "out") == [3]
        assert here.overview().imbalances() == []
    finally:
        elsewhere.close()
        here.close()


class Disk(Sink):
    """A sink that two replicas on one machine write to."""

    def __init__(self, settings: Any, written: list[int], answers: list[Outcome]) -> None:
        super().__init__(settings)
        self._written, self._answers = written, answers

    def probe(self) -> Outcome:
        return Accepted()

    def send(self, events: Any) -> Outcome:
        outcome = self._answers.pop(0) if self._answers else Accepted()
        if isinstance(outcome, Accepted):
            self._written += [number_of(event) for event in events]
        return outcome


class Output(Disk, OwnOutput):
    """The same, as a sink that counts what it wrote."""

    def send(self, events: Any) -> Outcome:
        outcome = super().send(events)
        self.output_offset = len(self._written)
        return outcome


def number_of(event: OutboxEvent) -> int:
    return int(event.line.partition(b":")[2].rstrip(b"}"))


class Pair:
    """Two replicas on one machine. Each has some contracts, and a deliverer for the sink of this machine."""

    def __init__(self, opened: Callable[[], State], kind: type[Disk]) -> None:
        self.one, self.other = enrolled(opened()), opened()
        self.one.contracts.enrol(["1", "2", "3", "4"], "default", 0, 0)
        self.written: list[int] = []
        self.answers: list[Outcome] = []
        self.now = float(NOW)
        settings = FileSink(name="file", path="x", host="here", batch_age_seconds=0.0)
        self.deliverers = [
            Deliverer(state.outbox, kind(settings, self.written, self.answers), clock=lambda: self.now)
            for state in (self.one, self.other)
        ]

    def collect(self, *numbers: int) -> None:
        for number, state, contract in zip(numbers, (self.one, self.other) * 9, ("1", "2", "3", "4") * 9, strict=False):
            commit(state, events(number), contract=contract, now=NOW)

    def run(self, which: int) -> int:
        """Deliver with one of them until it has nothing to do.  Returns: the number of settled events."""
        settled = 0
        while (step := self.deliverers[which].step()).settled:
            settled += step.settled
        return settled

    def expire(self) -> None:
        """Let the lease of the first replica end, as after a long hang."""
        one: Any = self.one
        query = "UPDATE replicas SET expires_at = clock_timestamp() - interval '1 second' WHERE token = %s"
        one._database.write(lambda connection: connection.execute(query, (one._joined().token,)))


@pytest.fixture(params=[Disk, Output], ids=["file", "own output"])
def pair(opened: Callable[[], State], request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(opened, request.param)
    yield pair
    pair.one.close()
    pair.other.close()


@pytest.mark.backends("postgres")
def test_of_two_replicas_on_the_machine_of_a_sink_one_writes_and_the_other_waits_quietly(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    for start in range(0, 40, 4):
        pair.collect(*range(start, start + 4))
        assert [pair.run(which) for which in (0, 1)] == [4, 0]
    assert sorted(pair.written) == list(range(40))
    assert pair.deliverers[1].step() == (0, 5.0)
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []
    assert pair.one.overview().imbalances() == []


@pytest.mark.backends("postgres")
@pytest.mark.parametrize("how", ["stopped", "dead"])
def test_the_other_replica_of_the_machine_goes_on_when_the_first_is_gone(pair: Pair, how: str) -> None:
    pair.collect(1, 2, 3, 4)
    assert [pair.run(which) for which in (0, 1)] == [4, 0]
    pair.collect(5, 6, 7, 8)
    pair.answers.append(RetryAfter("the disk is full", 30.0))
    assert pair.deliverers[0].step().wait_seconds
    if how == "dead":
        pair.expire()
    else:
        pair.one.close()
    assert pair.run(1) == 0, "the wait of the first one holds, too"
    pair.now += 60
    assert pair.run(1) == 4
    assert sorted(pair.written) == list(range(1, 9))
    if how == "dead":  # the first one comes back, and sends nothing of its old batch
        one: Any = pair.one
        one._joined().renew()
        assert pair.run(0) == 0
        pair.other.close()
        pair.now += 60
        commit(pair.one, events(9), contract="1", now=NOW)
        assert pair.run(0) == 1
        assert sorted(pair.written) == list(range(1, 10))
    assert pair.one.overview().imbalances() == []


def test_a_state_in_files_has_one_writer_whatever_its_sinks_say(state: State) -> None:
    sink = Disk(FileSink(name="file", path="x", host="here", batch_age_seconds=0.0), [], [])
    deliverer = Deliverer(state.outbox, sink, clock=lambda: NOW)
    commit(state, events(1, 2))
    assert deliverer.step().settled == 2
    assert deliverer.step() == (0, None)
