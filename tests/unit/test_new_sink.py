"""A new sink is one short file, its table, and one entry of `FACTORIES`. This file holds the smallest one, and its test."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from poller.config import AnySink, Config
from poller.config.sink_base import Sink as Table
from poller.core.delivery import Accepted, Outcome, RetryAfter
from poller.core.events import Event, OutboxEvent
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.sinks.base import Context, OwnOutput, Sink
from poller.sinks.build import FACTORIES, build_sink
from poller.store.sqlite import State
from tests.states import commit

CONTRACT = "31960001"


class SpoolTable(Table, frozen=True, kw_only=True, tag="spool"):
    """The table of the sink in a configuration."""

    path: str


class SpoolSink(Sink):
    """Writes a file for each batch. It has everything that a sink must have."""

    def __init__(self, settings: SpoolTable, context: Context) -> None:
        super().__init__(settings)
        self._path = Path(settings.path)

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        try:
            (self._path / f"{events[0].time_us}.ndjson").write_bytes(b"".join(event.line + b"\n" for event in events))
        except OSError as error:
            return RetryAfter(f"{self._path}: {error.strerror}")
        return Accepted()

    def probe(self) -> Outcome:
        return Accepted() if self._path.is_dir() else RetryAfter(f"{self._path} is no directory")


@pytest.fixture
def spool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FACTORIES, "spool", (__name__, "SpoolSink"))


@pytest.fixture
def state(tmp_path: Path) -> Any:
    state = State.open(tmp_path / "state", "run")
    state.contracts.enrol([CONTRACT], "default", 0, 0)
    events = [Event(number, number.to_bytes(16), b'{"n":%d}' % number, True, True) for number in range(1, 4)]
    yield (
        state,
        lambda: commit(state, events, contract=CONTRACT, window=Window(0, 9), now=9),
    )
    state.close()


@pytest.mark.usefixtures("spool")
def test_the_smallest_sink_is_built_from_its_table_and_delivered_to(state: Any, tmp_path: Path) -> None:
    (books, collect), place = state, tmp_path / "spool"
    sink = build_sink(SpoolTable(name="out", path=str(place), batch_events=2), Config(), threading.Event())  # type: ignore[arg-type]
    assert isinstance(sink.probe(), RetryAfter)
    deliverer = Deliverer(books.outbox, sink)
    place.mkdir()
    collect()
    while deliverer.step(is_last=True).wait_seconds is not None:
        pass
    assert [path.read_bytes() for path in sorted(place.iterdir())] == [b'{"n":1}\n{"n":2}\n', b'{"n":3}\n']
    (row,) = books.overview().sinks
    assert (row.sink.type, row.sink.delivered, row.waiting) == ("spool", 3, 0)


@pytest.mark.usefixtures("spool")
def test_what_is_removed_for_a_sink_is_removed_by_who_delivers(state: Any, tmp_path: Path) -> None:
    (books, collect) = state
    sink = build_sink(SpoolTable(name="out", path=str(tmp_path)), Config(), threading.Event())  # type: ignore[arg-type]
    deliverer = Deliverer(books.outbox, sink, redact=lambda line: b"{}")
    collect()
    assert deliverer.step(is_last=True).settled == 3
    assert (tmp_path / "1.ndjson").read_bytes() == b"{}\n" * 3


class CountingSink(OwnOutput):
    """A sink with its own output. It notes an offset before it writes, and another one with the written batch."""

    def __init__(self) -> None:
        super().__init__(SpoolTable(name="own", path="/"))
        self.resumed: list[int | None] = []

    def resume(self, offset: int | None) -> None:
        super().resume(offset)
        self.resumed.append(offset)

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        self.note_offset(-1)
        self.output_offset = (self.output_offset or 0) + len(events)
        return Accepted()

    def probe(self) -> Outcome:
        return Accepted()


def test_only_a_sink_with_an_output_of_its_own_has_an_offset_and_it_outlives_a_restart(state: Any) -> None:
    (books, collect), sink = state, CountingSink()
    deliverer = Deliverer(books.outbox, sink)
    collect()
    deliverer.step(is_last=True)
    deliverer.abandon()
    again = CountingSink()
    Deliverer(books.outbox, again)
    assert (sink.resumed, again.resumed) == ([None], [3])


def test_every_table_has_a_factory_and_every_factory_a_table() -> None:
    assert set(FACTORIES) == {table.__struct_config__.tag for table in get_args(AnySink)}
