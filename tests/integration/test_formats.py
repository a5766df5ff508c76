"""`--format` and `format`: the same entries as without them, each in an event of a standard format."""

from __future__ import annotations

import gzip
import json
import threading
from pathlib import Path

import pytest

from poller.config import Config, FileSink
from poller.core.delivery import Accepted
from poller.core.events import OutboxEvent
from poller.sinks.build import build_sink
from tests.formats import ecs_problems, ocsf_problems
from tests.integration.fetching import Starter, failed, same


@pytest.mark.parametrize("name", ["ocsf", "ecs"])
def test_fetch_and_backfill_make_an_event_of_each_entry(bench: Starter, name: str) -> None:
    place = bench(events=50)
    fetched = place.fetch("--since", "1h", "--format", name, "--time-key", "at", "--max-line-bytes", "20000")
    assert fetched.code == 0
    exported = place.run("backfill", "--from", "1h", "--to", "0s", "--format", name, "--output", "all.ndjson.gz")
    assert exported.code == 0
    lines = gzip.decompress((place.directory / "all.ndjson.gz").read_bytes()).splitlines()
    for made in (fetched.lines, lines):
        events = [json.loads(line) for line in made]
        same([raw_of(event).encode() for event in events], place.oracle())
        for event in events:
            event.pop("at", None)
            assert (ocsf_problems if name == "ocsf" else ecs_problems)(event) == []


def test_a_format_is_of_the_output_and_a_short_line_has_no_room_for_one(bench: Starter) -> None:
    place = bench(events=1)
    run = place.run("backfill", "--from", "1h", "--to", "0s", "--format", "ecs", "--sink", "x")
    failed(run, 2, "--format", "set format in the sink's table")
    failed(place.fetch("--format", "ocsf", "--max-line-bytes", "4096"), 2, "--max-line-bytes", "8192")
    unknown = place.fetch("--format", "cef")
    assert unknown.code == 2
    assert "'cef' is not one of 'raw', 'ocsf'" in unknown.stderr
    (place.directory / "ionos-poller.toml").write_text(
        '[[sinks]]\nname = "f"\ntype = "file"\npath = "x"\nformat = "cef"\n'
    )
    failed(place.fetch(), 2, "sinks[0].format", "ocsf")


@pytest.mark.parametrize("name", ["ocsf", "ecs"])
def test_a_file_holds_events_of_its_format(tmp_path: Path, name: str) -> None:
    table = FileSink(name="f", path=str(tmp_path / "a.ndjson"), format=name)
    sink = build_sink(table, Config(), threading.Event())
    assert sink.send([OutboxEvent("1", 0, 0, b"i", 0, b'{"a":1.10}')]) == Accepted()
    assert raw_of(json.loads((tmp_path / "a.ndjson").read_bytes())) == '{"a":1.10}'


def raw_of(event: dict[str, object]) -> str:
    inner = event.get("event")
    return str(inner["original"] if isinstance(inner, dict) else event["raw_data"])
