"""The deliverer, where the state cannot take down what the sink has taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poller.delivery import Accepted, Outcome
from poller.errors import StateFullError
from poller.events import Event, OutboxEvent
from poller.pipeline.deliver import Deliverer
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store import State
from poller.store.contracts import Commit
from poller.windows import Window

CONTRACT = "31960001"
EVENTS = [Event(second * 1_000_000, bytes([second]) * 16, b"{}", True, True) for second in range(1, 4)]


class Taking(StdoutSink):
    """Takes everything, and keeps it."""

    def __init__(self) -> None:
        super().__init__(PRINTED)
        self.taken: list[OutboxEvent] = []

    def send(self, events: Any) -> Outcome:
        self.taken.extend(events)
        return Accepted()


def test_what_a_sink_took_while_the_disk_was_full_is_settled_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State.open(tmp_path, "run")
    sink = Taking()
    deliverer = Deliverer(state.outbox, sink)
    state.contracts.enrol([CONTRACT], "default", 0, 0)
    state.contracts.commit_window(Commit(CONTRACT, Window(0, 9), 3, EVENTS, 3, EVENTS, 9, advance_to=9))

    def fail(*args: Any, **options: Any) -> None:
        raise StateFullError("no space left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(state.outbox, "settle", fail)
        with pytest.raises(StateFullError):
            deliverer.step()
    deliverer.finish()
    assert len(sink.taken) == 3
    assert [row.waiting for row in state.overview().sinks] == [0]
    deliverer.finish()
    assert deliverer.step().settled == 0
    assert len(sink.taken) == 3
    state.close()
