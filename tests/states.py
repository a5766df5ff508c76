"""Events, windows and states for the tests of the store: the same number is the same entry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from poller.core.events import IDENTITY_BYTES, Event
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window
from poller.store import State
from poller.store.contracts import Commit
from poller.store.gaps import Settled
from poller.store.outbox import DeadLetter

START = 1_777_593_600  # a whole hour
HOUR = 3600
NOW = START + 30 * HOUR
FIRST_MINUTE = Window(START, START + 60)


def event(number: int, second: int = START, *, is_timed: bool = True, line: bytes | None = None) -> Event:
    return Event(
        second * 1_000_000 + number % 1_000_000,
        number.to_bytes(IDENTITY_BYTES, "big"),
        line if line is not None else b'{"n":%d}' % number,
        is_timed=is_timed,
    )


def events(*numbers: int) -> list[Event]:
    return [event(number) for number in numbers]


def commit(
    state: State,
    new: Sequence[Event],
    *,
    window: Window = FIRST_MINUTE,
    contract: str = "1",
    kept: Sequence[Event] | None = None,
    fetched: int | None = None,
    advance: bool = True,
    advance_to: int | None = None,
    of_range: int | None = None,
    now: int = NOW,
    unread: Sequence[Unread] = (),
) -> Settled:
    return state.contracts.commit_window(
        Commit(
            contract=contract,
            window=window,
            fetched=len(new) if fetched is None else fetched,
            unseen=new,
            new_count=len(new),
            kept=new if kept is None else kept,
            now=now,
            unread=unread,
            next_try_at=now + 60,
            advance_to=advance_to if advance_to is not None else window.end if advance else None,
            of_range=of_range,
            filtered={} if kept is None else {"test": len(new) - len(kept)},
        )
    )


def waiting(state: State, sink: str, max_events: int = 10**9, max_bytes: int = 10**9) -> list[int]:
    """The numbers of the events in the next batch of a sink."""
    batch = state.outbox.batch(sink, max_events, max_bytes)
    return [json.loads(item.line)["n"] for item in batch.events] if batch else []


def counts(state: State, start: int, end: int) -> dict[int, int]:
    """Entries collected by the hour, remembered or not."""
    return {hour: count.collected for hour, count in state.contracts.counts("1", start, end).items()}


def open_state(directory: Path, *, since: int | None = None) -> State:
    return State.open(directory, "fetch", since=since, accounts=["default"])


def with_a_sink(directory: Path) -> State:
    """An open state with contract 1 and the sink `out`."""
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    state.outbox.register("out", "stdout")
    return state


def with_dead_letters(directory: Path, use: str) -> None:
    """A state with five dead letters of the sink `out`, one event that waits for it, and a gap."""
    state = State.open(directory, use)
    state.contracts.enrol(["31960001"], "default", START, START)
    state.outbox.register("out", "stdout")
    gap = Unread(Window(START + 7, START + 8), UNREADABLE, "why", ())
    commit(state, events(*range(6)), contract="31960001", unread=[gap])
    batch = state.outbox.batch("out", 5, 10**9)
    assert batch is not None
    state.outbox.settle("out", 5, dead=[DeadLetter(one, 400, "refused") for one in batch.events], now=START)
    state.close()
