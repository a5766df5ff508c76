"""Events, windows and states for the tests of the store: the same number is the same entry."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from poller.core.events import Event
from poller.core.gaps import UNREADABLE, Unread
from poller.core.identity import IDENTITY_BYTES
from poller.core.windows import Window
from poller.store import letters
from poller.store.parts import Claim, Place
from poller.store.protocols import State
from poller.store.rows import Batch, Committed, DeadLetter, Prepared, WindowRead
from poller.store.sqlite import State as FileState
from poller.store.sqlite import dead_letters
from poller.store.sqlite.schema import APPLICATION_ID, migrate, with_functions

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
) -> Committed:
    """Commit a window with these events. `kept`: the events that a filter keeps."""
    read = WindowRead(
        window=window,
        events=new,
        fetched=len(new) if fetched is None else fetched,
        now=now,
        unread=unread,
        next_try_at=now + 60,
        advance_to=advance_to if advance_to is not None else window.end if advance else None,
        of_range=of_range,
    )

    def prepare(fresh: Sequence[Event]) -> Prepared:
        return Prepared(fresh) if kept is None else Prepared(kept, {"test": len(fresh) - len(kept)})

    with claimed(state, contract) as claim:
        return claim.commit(read, prepare)


def claim_all(state: State, contracts: Iterable[str]) -> list[Claim]:
    """The claims on those of the contracts that can be claimed."""
    return [claim for contract in contracts if (claim := state.contracts.claim(contract)) is not None]


@contextmanager
def claimed(state: State, contract: str = "1") -> Iterator[Claim]:
    """Hold the claim on a free contract until the block ends."""
    claim = state.contracts.claim(contract)
    try:
        yield claim
    finally:
        claim.release()


@contextmanager
def taken(state: State, sink: str) -> Iterator[Place]:
    """Hold the free place of a sink until the block ends."""
    place = state.outbox.take(sink)
    assert place is not None
    try:
        yield place
    finally:
        place.release()


def patch_pieces(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    """Make the store process many dead letters in smaller pieces."""
    for module in (letters, dead_letters):
        monkeypatch.setattr(module, name, value)


def next_batch(
    state: State, sink: str, max_events: int = 10**9, max_bytes: int = 10**9, *, contract: str | None = None
) -> Batch | None:
    """The next batch of a sink, or of a postponed contract if one is named."""
    with taken(state, sink) as place:
        return place.batch(max_events, max_bytes, contract)


def settle(
    state: State,
    sink: str,
    count: int,
    *,
    dead: Sequence[DeadLetter] = (),
    now: float,
    output_offset: int | None = None,
) -> None:
    """Settle the next events of a sink."""
    with taken(state, sink) as place:
        place.batch(count, 10**9)
        place.settle(count, dead=dead, now=now, output_offset=output_offset)


def postpone(
    state: State,
    sink: str,
    attempts: int,
    now: float,
    retry_at: float,
    failure: str,
    *,
    parked_at: float | None = None,
) -> None:
    with taken(state, sink) as place:
        place.postpone(attempts, now, retry_at, failure, parked_at=parked_at)


def note_output_offset(state: State, sink: str, output_offset: int | None) -> None:
    with taken(state, sink) as place:
        place.note_output_offset(output_offset)


def waiting(state: State, sink: str, max_events: int = 10**9, max_bytes: int = 10**9) -> list[int]:
    """The numbers of the events in the next batch of a sink."""
    found = next_batch(state, sink, max_events, max_bytes)
    return [json.loads(item.line)["n"] for item in found.events] if found else []


def counts(state: State, start: int, end: int) -> dict[int, int]:
    """Entries collected in each hour, whether the ledger still has them or not."""
    return {hour: count.collected for hour, count in state.contracts.counts("1", start, end).items()}


def open_state(directory: Path, *, since: int | None = None) -> State:
    return FileState.open(directory, "fetch", since=since, accounts=["default"])


def first_schema(path: Path) -> None:
    """A state file as the first version left it, with a contract in it."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with closing(with_functions(sqlite3.connect(path, isolation_level=None))) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, until=1)
        connection.execute("INSERT INTO contracts (contract, account, origin, watermark) VALUES ('1', 'default', 5, 9)")


def with_a_sink(directory: Path) -> State:
    """An open state with contract 1 and the sink `out`."""
    return enrolled(open_state(directory))


def enrolled(state: State) -> State:
    """The state with contract 1 and the sink `out`."""
    state.contracts.enrol(["1"], "default", START, START)
    state.outbox.register("out", "stdout")
    return state


def with_dead_letters(directory: Path, use: str) -> None:
    """A state with five dead letters of the sink `out`, one event that waits for it, and a gap."""
    fill_with_dead_letters(FileState.open(directory, use))


def fill_with_dead_letters(state: State) -> None:
    """Fill a new state in the same way, and close it."""
    state.contracts.enrol(["31960001"], "default", START, START)
    state.outbox.register("out", "stdout")
    gap = Unread(Window(START + 7, START + 8), UNREADABLE, "why", ())
    commit(state, events(*range(6)), contract="31960001", unread=[gap])
    refused = next_batch(state, "out", 5)
    assert refused is not None
    settle(state, "out", 5, dead=[DeadLetter(one, 400, "refused") for one in refused.events], now=START)
    state.close()
