"""OpenTelemetry, from a batch to a receiver that decodes it with OpenTelemetry's own classes, and accepts only a part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.checks.sinks import check_sink
from poller.config import Config, OtlpSink
from poller.core.delivery import Accepted
from poller.core.events import Event, OutboxEvent
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.simulator import Simulator, SimulatorSettings
from poller.sinks.base import Sink
from poller.sinks.build import build_sink
from poller.store.sqlite import State
from tests.hostile import Answer, Asked, RawServer
from tests.states import commit

ENCODINGS = ("protobuf", "json")
each = pytest.mark.parametrize("encoding", ENCODINGS)
CONTRACT = "31960001"
TOP = Path(__file__).resolve().parents[2]


def event_of(number: int, line: bytes = b"") -> OutboxEvent:
    line = line or b'{"event":{"type":"Provision","resources":[{"id":"r1"}]},"n":1.10,"u":"%d\xc3\xbc"}' % number
    return OutboxEvent(CONTRACT, number * 1_000_000, 1_777_621_400, number.to_bytes(16), 0, line)


def make(url: str, **settings: Any) -> Sink:
    table = OtlpSink(**{"name": "otel", "url": url, "batch_age_seconds": 0.0, **settings})
    return build_sink(table, Config(), threading.Event())


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorSettings(events=0, keep_lines=True)) as simulator:
        yield simulator


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    servers: list[RawServer] = []

    def start(answer: Callable[[Asked], Answer]) -> RawServer:
        servers.append(RawServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@each
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_every_line_arrives_to_the_byte(simulator: Simulator, encoding: str, compression: str) -> None:
    sink = make(f"{simulator.url}/sink/otlp", encoding=encoding, compression=compression)
    events = [event_of(number) for number in range(1, 4)]
    assert sink.send(events) == Accepted(status=200)
    assert simulator.intakes["otlp"].lines == [event.line for event in events]


@each
def test_each_refused_record_of_many_is_a_dead_letter_with_the_receivers_words(
    simulator: Simulator, tmp_path: Path, encoding: str
) -> None:
    simulator.change_settings(poison="poison")
    refused = {17, 18, 90, 199}
    state = State.open(tmp_path, "run")
    state.contracts.enrol([CONTRACT], "default", 0, 0)
    lines = [b'{"n":%d,"k":"%s"}' % (n, b"poison" if n in refused else b"good") for n in range(200)]
    events = [Event(n + 1, n.to_bytes(16), line, True, True) for n, line in enumerate(lines)]
    deliverer = Deliverer(state.outbox, make(f"{simulator.url}/sink/otlp", encoding=encoding))
    commit(state, events, contract=CONTRACT, window=Window(0, 9), now=9)
    while deliverer.step(is_last=True).wait_seconds is not None:
        pass
    letters = state.dead_letters.find()
    assert {msgspec.json.decode(letter.line)["n"] for letter in letters} == refused
    assert {letter.reason for letter in letters} == {"the record cannot be taken"}
    assert set(simulator.intakes["otlp"].lines) == {line for n, line in enumerate(lines) if n not in refused}
    state.close()


def test_a_probe_sends_no_record(simulator: Simulator) -> None:
    assert make(f"{simulator.url}/sink/otlp").probe() == Accepted(status=200)
    assert simulator.intakes["otlp"].stored == 0


def test_check_says_that_it_takes_events_or_what_to_do(simulator: Simulator) -> None:
    def told(path: str) -> Any:
        table = OtlpSink(name="otel", url=f"{simulator.url}{path}")
        (finding,) = check_sink(table, Config(), threading.Event())
        return finding

    assert "takes events" in told("/sink/otlp").message
    assert "check url" in told("/nowhere").hint
