"""A receiver refuses one of a hundred events for good: each of them is a dead letter, every other event is delivered once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.config import AnyHttpSink, Config, OpenSearchSink
from poller.config.sink_base import Sink as Table
from poller.config.sinks import ElasticsearchSink
from poller.core.events import Event
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.simulator import Simulator, SimulatorSettings
from poller.simulator.intakes import digest_of
from poller.sinks.build import build_sink
from poller.store.sqlite import State
from tests.states import commit

CONTRACT = "31960001"
COUNT = 2000


def raw_of_ecs(line: bytes) -> bytes:
    return str(msgspec.json.decode(line)["event"]["original"]).encode()


def as_it_is(line: bytes) -> bytes:
    return line


@pytest.mark.parametrize(
    ("kind", "keys", "raw", "words"),
    [
        (OpenSearchSink, {}, raw_of_ecs, "400 mapper_parsing_exception: failed to parse field"),
        (ElasticsearchSink, {"index": "log-{date}"}, raw_of_ecs, "400 mapper_parsing_exception: failed to parse field"),
        (AnyHttpSink, {"body": "ndjson"}, as_it_is, "HTTP 400"),
        (AnyHttpSink, {"body": "array", "format": "ecs"}, raw_of_ecs, "HTTP 400"),
    ],
)
def test_each_refused_event_is_a_dead_letter_and_every_other_is_there_once(
    tmp_path: Path, kind: type[Any], keys: dict[str, str], raw: Callable[[bytes], bytes], words: str
) -> None:
    lines = [b'{"n":%d,"k":"%s"}' % (n, digest_of(b"%d" % n).hex().encode()) for n in range(COUNT)]
    refused = {line for n, line in enumerate(lines) if digest_of(b"%d" % n)[0] < 3}  # about one of a hundred
    lines = [line.replace(b'"k"', b'"poison"') if line in refused else line for line in lines]
    refused = {line for line in lines if b"poison" in line}
    assert 10 < len(refused) < 40
    with Simulator(SimulatorSettings(events=0, keep_lines=True, poison="poison", poison_stores_before=False)) as place:
        name = "http" if kind is AnyHttpSink else "opensearch"
        table: Table = kind(
            name="s", url=f"{place.url}/sink/{name}", requests_per_second=10_000.0, batch_events=500, **keys
        )
        state = State.open(tmp_path, "run")
        state.contracts.enrol([CONTRACT], "default", 0, 0)
        events = [Event(n + 1, n.to_bytes(16), line, True, True) for n, line in enumerate(lines)]
        deliverer = Deliverer(state.outbox, build_sink(table, Config(), threading.Event()))  # type: ignore[arg-type]
        commit(state, events, contract=CONTRACT, window=Window(0, 9), now=9)
        while deliverer.step(is_last=True).wait_seconds is not None:
            pass
        letters = state.dead_letters.find()
        assert sorted(letter.line for letter in letters) == sorted(refused)
        assert all(letter.reason.startswith(words) for letter in letters)
        stored = [raw(line) for line in place.intakes[name].lines]
        assert sorted(stored) == sorted(set(lines) - refused)
        state.close()
