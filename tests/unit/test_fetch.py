"""The use case behind `fetch`: it polls everything once, delivers it, and forgets identities that are old enough."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config
from poller.core.delivery import Accepted, Outcome
from poller.core.errors import AuthError
from poller.core.windows import Window
from poller.pipeline.fetch import Fetched, fetch
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.sqlite import State
from tests.fake_api import BEGAN, H, Log
from tests.states import commit, event


class Taking(StdoutSink):
    def __init__(self) -> None:
        super().__init__(PRINTED)
        self.lines: list[bytes] = []

    def send(self, events: Any) -> Outcome:
        self.lines.extend(event.line for event in events)
        return Accepted()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[State]:
    with closing(State.open(tmp_path / "state", "fetch")) as state:
        yield state


def fetched(state: State, log: Log, sink: Taking, **options: Any) -> Fetched:
    accounts: Any = {"default": log}
    stop = threading.Event()
    try:
        return fetch(state, accounts, Config(), sink, stop, clock=lambda: log.now, **options)
    finally:
        stop.set()


def test_each_entry_is_delivered_once_however_often_it_is_fetched(fresh: State) -> None:
    log, sink = Log("1", "2"), Taking()
    first = fetched(fresh, log, sink)
    assert (first.delivered, len(sink.lines), first.failures) == (10, 10, [])
    log.now += 120
    assert fetched(fresh, log, sink).delivered == 4
    assert not fresh.overview().imbalances()


def test_only_what_was_asked_for_is_fetched_and_a_failure_is_told(fresh: State) -> None:
    log, sink = Log("1", "2"), Taking()
    assert [poll.contract for poll in fetched(fresh, log, sink, only=("2",)).polls] == ["2"]

    def refuse(*args: object, **options: object) -> None:
        raise AuthError("the token was refused")

    log.page = refuse  # type: ignore[assignment, method-assign]
    log.now += 60
    assert {type(error) for error in fetched(fresh, log, sink).failures} == {AuthError}


def test_what_an_earlier_run_has_left_of_a_contract_that_is_not_polled_any_more_is_delivered(
    opened: Callable[[], State],
) -> None:
    # In a database, no replica held the contract, so its entries were once never printed.
    log, sink = Log("1"), Taking()
    with closing(opened()) as state:
        state.outbox.register("stdout", "stdout")
        state.contracts.enrol(["7"], "gone", BEGAN, BEGAN)
        commit(state, [event(1, BEGAN), event(2, BEGAN)], contract="7", window=Window(BEGAN, BEGAN + 60))
    with closing(opened()) as state:
        assert fetched(state, log, sink, only=("1",)).failures == []
        assert [poll.contract for poll in fetched(state, log, sink).polls] == ["1"]
        assert {event(1, BEGAN).line, event(2, BEGAN).line} <= set(sink.lines)
        assert [row.waiting for row in state.overview().sinks] == [0]
        assert not state.overview().imbalances()


def test_identities_that_are_old_enough_are_forgotten(fresh: State) -> None:
    log, sink = Log("1"), Taking()
    fresh.contracts.enrol(["1"], "default", BEGAN - 100 * 24 * H, 0)
    old = BEGAN - 90 * 24 * H
    commit(fresh, [event(1, old)], window=Window(old - 9, old + 9), now=old, advance_to=BEGAN - 60)
    fetched(fresh, log, sink)
    assert fresh.contracts.unseen("1", [event(1, old)]) == [event(1, old)]
