"""The state on a real file: what is committed together, what is seen again, who waits for what, and what breaks it."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from poller.errors import StateError, StateFullError, StoppedError
from poller.events import IDENTITY_BYTES, Event, OutboxEvent
from poller.store import State
from poller.store.contracts import Commit
from poller.store.database import APPLICATION_ID, SCHEMA_VERSION
from poller.store.ledger import _CHUNK_IDENTITIES as CHUNK
from poller.store.outbox import DeadLetter
from poller.store.overview import overview_of
from poller.store.segments import MAX_BYTES, MAX_EVENTS, cut, decode, encode
from poller.windows import Window
from tests.support import TOP, clean_environment

START = 1_777_593_600  # a whole hour
HOUR = 3600
NOW = START + 30 * HOUR


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
    window: Window = Window(START, START + 60),
    contract: str = "1",
    kept: Sequence[Event] | None = None,
    fetched: int | None = None,
    advance: bool = True,
    advance_to: int | None = None,
    of_range: int | None = None,
    now: int = NOW,
) -> None:
    state.contracts.commit_window(
        Commit(
            contract=contract,
            window=window,
            fetched=len(new) if fetched is None else fetched,
            unseen=new,
            new_count=len(new),
            kept=new if kept is None else kept,
            now=now,
            advance_to=advance_to if advance_to is not None else window.end if advance else None,
            of_range=of_range,
        )
    )


def waiting(state: State, sink: str, max_events: int = 10**9, max_bytes: int = 10**9) -> list[int]:
    """The numbers of the events in the next batch of a sink."""
    batch = state.outbox.batch(sink, max_events, max_bytes)
    return [json.loads(item.line)["n"] for item in batch.events] if batch else []


def counts(state: State, start: int, end: int) -> dict[int, int]:
    """Entries collected by the hour, remembered or not."""
    return {hour: count.collected for hour, count in state.contracts.counts("1", start, end).items()}


def open_state(directory: Path, *, is_fresh_start: bool = False) -> State:
    return State.open(directory, "fetch", is_fresh_start=is_fresh_start)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def state(directory: Path) -> Iterator[State]:
    """An open state with contract 1 and the sink `out`."""
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START)
    state.outbox.register("out", "stdout")
    yield state
    state.close()


# Contracts, watermarks and books


def test_a_contract_is_enrolled_once_and_keeps_its_place(state: State) -> None:
    commit(state, events(1))
    state.contracts.enrol(["1", "2"], "other", START - 500)
    one, two = state.contracts.all()
    assert (one.contract, one.account, one.origin, one.watermark, one.new) == ("1", "other", START, START + 60, 1)
    assert (two.contract, two.origin, two.watermark) == ("2", START - 500, START - 500)
    assert state.contracts.get("1") == one
    assert state.contracts.get("3") is None


@pytest.mark.parametrize(
    ("advance_to", "expected"),
    [
        (None, START + 60),
        (START + 30, START + 60),  # never backwards
        (START + 90, START + 90),
        (START + 120, START + 120),
        (START + 999, START + 120),  # never past the window's end
        (0, START + 60),
    ],
)
def test_the_watermark_goes_neither_backwards_nor_past_the_windows_end(
    state: State, advance_to: int | None, expected: int
) -> None:
    commit(state, [])
    commit(state, [], window=Window(START, START + 120), advance=False, advance_to=advance_to)
    assert state.contracts.all()[0].watermark == expected


def test_the_books_say_what_became_of_every_entry_that_was_fetched(state: State) -> None:
    commit(state, events(1, 2, 3, 4), kept=events(1, 2), fetched=10)
    commit(state, events(5), fetched=3)
    row = state.contracts.all()[0]
    assert (row.fetched, row.new, row.seen, row.filtered) == (13, 3, 8, 2)
    assert state.overview().imbalances() == []


def test_how_a_poll_ended_is_remembered(state: State) -> None:
    state.contracts.record_poll("1", NOW, "no answer")
    state.contracts.record_poll("1", NOW + 1, "")
    row = state.contracts.all()[0]
    assert (row.failed_at, row.succeeded_at, row.failure) == (NOW, NOW + 1, "")


@pytest.mark.parametrize(
    ("table", "action"),
    [
        ("ledger", "INSERT"),
        ("segments", "INSERT"),
        ("outbox_size", "UPDATE"),
        ("sinks", "UPDATE"),
        ("contracts", "UPDATE"),
        ("ranges", "UPDATE"),
        ("ranges", "DELETE"),
    ],
)
def test_a_window_is_committed_whole_or_not_at_all(state: State, directory: Path, table: str, action: str) -> None:
    commit(state, events(1))
    state.contracts.add_range("1", Window(START - 60, START), "since")
    (span,) = state.contracts.ranges("1")
    new = [event(2, START - 60), event(3, START - 1)]
    before = (state.overview(), waiting(state, "out"), state.contracts.ranges("1"))
    state._database._connection.execute(
        f"CREATE TEMP TRIGGER fault BEFORE {action} ON {table} BEGIN SELECT RAISE(ABORT, 'fault'); END"
    )
    with pytest.raises(StateError, match="fault"):
        commit(state, new, window=Window(START - 60, START), of_range=span.id)
    assert (state.overview(), waiting(state, "out"), state.contracts.ranges("1")) == before
    assert state.contracts.unseen("1", [*new, event(1)]) == new
    state._database._connection.execute("DROP TRIGGER fault")
    commit(state, new, window=Window(START - 60, START), of_range=span.id)
    assert waiting(state, "out") == [1, 2, 3]
    assert state.contracts.ranges("1") == []


def test_an_interrupt_in_a_transaction_leaves_nothing_behind(state: State) -> None:
    def interrupt() -> None:
        with state._database.transaction() as connection:
            connection.execute("DELETE FROM contracts")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert len(state.contracts.all()) == 1
    commit(state, events(1))  # and the next transaction begins as ever


def test_what_was_committed_is_there_after_a_crash(state: State, directory: Path, tmp_path: Path) -> None:
    commit(state, events(1, 2))
    state.outbox.settle("out", 1, now=NOW)
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(directory / f"fetch.db{suffix}", crashed)
    other = open_state(crashed)
    assert waiting(other, "out") == [2]
    assert other.contracts.unseen("1", events(1, 2, 3)) == events(3)
    assert other.contracts.all() == state.contracts.all()
    other.close()


def test_threads_take_turns(state: State) -> None:
    state.contracts.enrol([str(number) for number in range(8)], "default", START)

    def work(number: int) -> None:
        for step in range(10):
            new = [event(number * 1000 + step)]
            assert state.contracts.unseen(str(number), new) == new
            commit(state, new, contract=str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waiting(state, "out")) == sorted(number * 1000 + step for number in range(8) for step in range(10))
    assert state.overview().imbalances() == []


# Ranges


def test_a_range_is_read_piece_by_piece_and_gone_at_its_end(state: State) -> None:
    state.contracts.add_range("1", Window(START - 100, START - 40), "since")
    (span,) = state.contracts.ranges("1")
    assert (span.contract, span.window, span.purpose) == ("1", Window(START - 100, START - 40), "since")
    commit(state, events(1), window=Window(START - 100, START - 70), advance=False, of_range=span.id)
    assert [left.window for left in state.contracts.ranges("1")] == [Window(START - 70, START - 40)]
    commit(state, events(2), window=Window(START - 70, START - 40), advance=False, of_range=span.id)
    assert state.contracts.ranges("1") == []
    assert state.contracts.all()[0].watermark == START


def test_a_range_moves_the_origin_back_and_no_watermark(state: State) -> None:
    state.contracts.add_range("1", Window(START - 100, START), "since")
    row = state.contracts.all()[0]
    assert (row.origin, row.watermark) == (START - 100, START)
    state.contracts.add_range("1", Window(START + 10, START + 20), "repair")
    assert state.contracts.all()[0].origin == START - 100


def test_a_range_that_is_wished_for_already_is_not_doubled(state: State) -> None:
    for start, end in ((-100, 0), (-100, 0), (-90, -10), (-110, 0), (-50, 10)):
        state.contracts.add_range("1", Window(START + start, START + end), "since")
    assert [span.window for span in state.contracts.ranges("1")] == [
        Window(START - 110, START),
        Window(START - 100, START),
        Window(START - 50, START + 10),
    ]
    assert state.contracts.ranges("2") == []


# The ledger


def test_what_was_collected_is_seen_and_nothing_else_is(state: State) -> None:
    commit(state, events(1, 2, 3))
    assert state.contracts.unseen("1", events(3, 4, 1, 5)) == events(4, 5)
    assert state.contracts.unseen("1", []) == []
    state.contracts.enrol(["2"], "default", START)
    assert state.contracts.unseen("2", events(1, 2, 3)) == events(1, 2, 3)


def test_what_was_filtered_is_seen_as_well(state: State) -> None:
    commit(state, events(1, 2), kept=[])
    assert state.contracts.unseen("1", events(1, 2)) == []
    assert waiting(state, "out") == []


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("step", [CHUNK - 1, CHUNK, CHUNK + 1, 5000])
def test_no_identity_is_lost_at_the_edge_of_a_chunk(state: State, count: int, step: int) -> None:
    every = [event(number, START + number % HOUR) for number in range(count)]
    every.sort(key=lambda item: item.time_us)
    for start in range(0, count, step):
        commit(state, every[start : start + step], kept=[])
        assert state.contracts.unseen("1", every[: start + step]) == []
    assert state.contracts.unseen("1", [*every, event(count)]) == [event(count)]
    assert counts(state, START, START + HOUR) == {START: count}
    (chunks,) = state._database._connection.execute("SELECT max(length(identities)) FROM ledger").fetchone()
    assert chunks <= CHUNK * IDENTITY_BYTES


def test_an_identity_is_found_at_every_time_of_its_hour_and_over_hours(state: State) -> None:
    edges = [START - 1, START, START + 1, START + HOUR - 1, START + HOUR, START + 5 * HOUR, -1, 0]
    for number, second in enumerate(edges):
        commit(state, [event(number, second)])
    every = sorted((event(number, second) for number, second in enumerate(edges)), key=lambda item: item.time_us)
    assert state.contracts.unseen("1", every) == []
    for item in every:
        assert state.contracts.unseen("1", [item]) == []


def test_an_entry_without_a_time_is_found_wherever_it_is_read_again(state: State) -> None:
    commit(state, [event(1, START, is_timed=False), event(2, START)])
    later = [event(1, START + 20 * HOUR, is_timed=False), event(3, START + 20 * HOUR)]
    assert state.contracts.unseen("1", later) == later[1:]


def test_entries_are_counted_by_the_hour(state: State) -> None:
    commit(state, [event(1), event(2, START + 3599), event(3, START + HOUR), event(4, START + 3 * HOUR)])
    assert counts(state, START, START + 3 * HOUR) == {START: 2, START + HOUR: 1}
    assert counts(state, START + HOUR, START + 4 * HOUR) == {START + HOUR: 1, START + 3 * HOUR: 1}
    assert state.contracts.counts("2", START, START + HOUR) == {}


# Pruning


def forgotten(state: State, retention: int, *, overlap: int = 600, now: int, of: Sequence[Event]) -> list[int]:
    state.prune(retention, overlap, now)
    return [int.from_bytes(item.identity, "big") for item in state.contracts.unseen("1", of)]


def test_identities_older_than_the_retention_are_forgotten_hour_by_hour(state: State) -> None:
    every = [event(number, START + number * HOUR) for number in range(6)]
    for item in every:
        second = item.time_us // 1_000_000
        commit(state, [item], window=Window(second, second + 60), now=second + 60)
    now = START + 6 * HOUR
    assert forgotten(state, 100 * HOUR, now=now, of=every) == []
    assert forgotten(state, 3 * HOUR, now=now, of=every) == [0, 1, 2]
    assert forgotten(state, 0, now=now, of=every) == [0, 1, 2, 3]  # the overlap behind the watermark stays
    assert state.overview().imbalances() == []


def test_nothing_is_forgotten_that_a_pending_read_may_meet(state: State) -> None:
    every = [event(number, START + number * HOUR) for number in range(4)]
    commit(state, every, window=Window(START, START + 3 * HOUR), now=START)
    state.contracts.add_range("1", Window(START + HOUR, START + 2 * HOUR), "repair")
    assert forgotten(state, 0, now=NOW, of=every) == [0]


def test_nothing_is_forgotten_that_lies_behind_a_watermark_that_stands_still(state: State) -> None:
    every = events(1, 2)
    commit(state, every, advance=False, now=START)
    assert forgotten(state, 0, now=NOW + 10**6, of=every) == []


def test_what_was_collected_late_is_kept_for_as_long_as_what_is_new(state: State) -> None:
    commit(state, [event(1)], window=Window(START, NOW), now=NOW)
    assert forgotten(state, HOUR, now=NOW + 60, of=[event(1)]) == []
    commit(state, [], window=Window(NOW, NOW + 2 * HOUR))
    assert forgotten(state, HOUR, now=NOW + 2 * HOUR, of=[event(1)]) == [1]


def test_what_was_forgotten_is_counted_still_also_when_more_comes_and_goes(state: State) -> None:
    commit(state, events(1, 2), window=Window(START, NOW), now=START)
    state.prune(HOUR, 600, NOW)
    commit(state, events(3), window=Window(START, NOW), now=START + 60)
    state.prune(HOUR, 600, NOW)
    (count,) = state.contracts.counts("1", START, START + HOUR).values()
    assert (count.collected, count.forgotten) == (3, 3)
    assert state.contracts.unseen("1", events(1, 2, 3)) == events(1, 2, 3)


def test_free_space_goes_back_to_the_disk(directory: Path) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START)
    state.outbox.register("out", "stdout")
    big = [event(number, line=b'{"n":%d,"x":"%s"}' % (number, b"x" * 10_000)) for number in range(500)]
    commit(state, big)
    state.outbox.settle("out", 500, now=NOW)
    state.prune(HOUR, 600, NOW)
    state.close()
    assert (directory / "fetch.db").stat().st_size < 500_000


# The outbox


def test_a_batch_holds_what_waits_in_order_and_says_whether_there_is_more(state: State) -> None:
    commit(state, events(1, 2))
    commit(state, events(3))
    state.contracts.enrol(["2"], "default", START)
    commit(state, events(4), contract="2", now=NOW + 1)
    batch = state.outbox.batch("out", 4, 10**6)
    assert batch is not None
    assert batch.events[0] == OutboxEvent("1", START * 1_000_000 + 1, NOW, events(1)[0].identity, 0, b'{"n":1}')
    assert (batch.events[3].contract, batch.events[3].collected_at) == ("2", NOW + 1)
    assert not batch.has_more
    assert state.outbox.batch("nobody", 10, 10) is None


@pytest.mark.parametrize(
    ("max_events", "max_bytes", "expected"),
    [
        (10, 1000, [1, 2, 3, 4, 5]),
        (5, 40, [1, 2, 3, 4, 5]),
        (4, 1000, [1, 2, 3, 4]),
        (1, 1000, [1]),
        (10, 39, [1, 2, 3, 4]),  # each takes 8 bytes, its newline included
        (10, 16, [1, 2]),
        (10, 1, [1]),  # always at least one
    ],
)
def test_a_batch_keeps_its_bounds(state: State, max_events: int, max_bytes: int, expected: list[int]) -> None:
    commit(state, events(1, 2))
    commit(state, events(3, 4, 5))
    batch = state.outbox.batch("out", max_events, max_bytes)
    assert batch is not None
    assert [json.loads(item.line)["n"] for item in batch.events] == expected
    assert batch.has_more == (len(expected) < 5)


@pytest.mark.parametrize("sizes", [[3], [1, 1, 1], [2, 3], [1, 4, 2], [5, 0, 1]])
@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_a_sink_advances_over_the_borders_of_segments(state: State, sizes: list[int], step: int) -> None:
    numbers = iter(range(100))
    for size in sizes:
        commit(state, [event(next(numbers)) for _ in range(size)])
    left = list(range(sum(sizes)))
    while left:
        assert waiting(state, "out") == left
        count = min(step, len(left))
        state.outbox.settle("out", count, now=NOW)
        left = left[count:]
        assert state.overview().imbalances() == []
    assert waiting(state, "out") == []
    assert state.outbox.size() == (0, 0)


def test_many_events_are_cut_into_segments_and_come_out_as_they_went_in(state: State) -> None:
    new = events(*range(2 * MAX_EVENTS + 1))
    commit(state, new)
    batch = state.outbox.batch("out", 10**9, 10**9)
    assert batch is not None
    assert [(item.identity, item.line, item.time_us) for item in batch.events] == [
        (item.identity, item.line, item.time_us) for item in new
    ]
    assert state.outbox.size().events == len(new)
    state.outbox.settle("out", MAX_EVENTS, now=NOW)
    assert state.outbox.size().events == MAX_EVENTS + 1


def test_each_sink_goes_at_its_own_pace_and_what_all_have_is_deleted(state: State) -> None:
    state.outbox.register("slow", "file")
    commit(state, events(1, 2))
    commit(state, events(3))
    state.outbox.settle("out", 3, now=NOW)
    assert (waiting(state, "out"), waiting(state, "slow")) == ([], [1, 2, 3])
    assert state.outbox.size().events == 3
    state.outbox.settle("slow", 1, now=NOW)
    assert state.outbox.size().events == 3
    state.outbox.settle("slow", 1, now=NOW)
    assert state.outbox.size().events == 1
    assert waiting(state, "slow") == [3]
    commit(state, events(4))
    assert (waiting(state, "out"), waiting(state, "slow")) == ([4], [3, 4])
    state.outbox.settle("slow", 2, now=NOW)
    state.outbox.settle("out", 1, now=NOW)
    assert state.outbox.size() == (0, 0)


def test_a_sink_added_later_begins_with_what_is_collected_from_then_on(state: State) -> None:
    commit(state, events(1))
    state.outbox.register("late", "file")
    commit(state, events(2))
    assert (waiting(state, "out"), waiting(state, "late")) == ([1, 2], [2])
    state.outbox.settle("out", 2, now=NOW)
    state.outbox.settle("late", 1, now=NOW)
    state.outbox.register("later", "file")  # behind segments that are gone already
    commit(state, events(3))
    assert waiting(state, "later") == [3]
    assert [sink.assigned for sink in state.outbox.sinks()] == [2, 1, 3]  # late, later, out
    assert state.overview().imbalances() == []


def test_a_sink_that_is_known_keeps_its_place(state: State) -> None:
    commit(state, events(1, 2))
    state.outbox.settle("out", 1, now=NOW)
    sink = state.outbox.register("out", "file")
    assert (sink.type, sink.delivered, sink.assigned) == ("file", 1, 2)
    assert waiting(state, "out") == [2]


def test_a_wait_outlives_a_restart_and_ends_with_a_success(directory: Path) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START)
    state.outbox.register("out", "stdout")
    commit(state, events(1))
    state.outbox.postpone("out", 3, NOW + 60.5, "no connection", parked_at=NOW)
    state.close()
    again = open_state(directory)
    sink = again.outbox.register("out", "stdout")
    assert (sink.attempts, sink.retry_at, sink.failure, sink.parked_at) == (3, NOW + 60.5, "no connection", NOW)
    again.outbox.settle("out", 1, now=NOW + 61)
    (sink,) = again.outbox.sinks()
    assert (sink.attempts, sink.retry_at, sink.failure, sink.parked_at) == (0, None, "", None)
    assert sink.succeeded_at == NOW + 61
    again.close()


def test_a_dead_letter_is_written_with_the_move_past_it(state: State) -> None:
    commit(state, events(1, 2, 3))
    batch = state.outbox.batch("out", 10, 10**6)
    assert batch is not None
    state.outbox.settle("out", 2, dead=[DeadLetter(batch.events[1], 400, "bad field")], now=NOW)
    (letter,) = state.dead_letters.find("out")
    assert (letter.line, letter.status, letter.reason, letter.contract) == (b'{"n":2}', 400, "bad field", "1")
    (sink,) = state.outbox.sinks()
    assert (sink.assigned, sink.delivered, sink.dead, sink.succeeded_at) == (3, 1, 1, NOW)
    assert waiting(state, "out") == [3]
    assert state.overview().imbalances() == []


def test_a_batch_of_dead_letters_alone_is_no_success(state: State) -> None:
    commit(state, events(1))
    batch = state.outbox.batch("out", 10, 10**6)
    assert batch is not None
    state.outbox.settle("out", 1, dead=[DeadLetter(batch.events[0], None, "bad")], now=NOW)
    assert state.outbox.sinks()[0].succeeded_at is None


@pytest.mark.parametrize(("table", "action"), [("dead_letters", "INSERT"), ("sinks", "UPDATE"), ("segments", "DELETE")])
def test_a_batch_is_settled_whole_or_not_at_all(state: State, table: str, action: str) -> None:
    commit(state, events(1, 2))
    batch = state.outbox.batch("out", 10, 10**6)
    assert batch is not None
    before = state.overview()
    state._database._connection.execute(
        f"CREATE TEMP TRIGGER fault BEFORE {action} ON {table} BEGIN SELECT RAISE(ABORT, 'fault'); END"
    )
    with pytest.raises(StateError, match="fault"):
        state.outbox.settle("out", 2, dead=[DeadLetter(batch.events[0], 400, "bad")], now=NOW)
    assert state.overview() == before
    assert waiting(state, "out") == [1, 2]
    assert state.dead_letters.find() == []


def test_a_replayed_letter_waits_for_its_own_sink_alone(state: State) -> None:
    state.outbox.register("other", "file")
    commit(state, events(1, 2))
    batch = state.outbox.batch("out", 10, 10**6)
    assert batch is not None
    letters = [DeadLetter(item, 400, "bad") for item in batch.events]
    state.outbox.settle("out", 2, dead=letters, now=NOW)
    state.outbox.settle("other", 2, now=NOW)
    assert state.outbox.size() == (0, 0)
    assert state.dead_letters.replay(state.dead_letters.find(), NOW) == 2
    assert state.dead_letters.find() == []
    assert (waiting(state, "out"), waiting(state, "other")) == ([1, 2], [])
    assert state.overview().imbalances() == []
    commit(state, events(3))
    assert (waiting(state, "out"), waiting(state, "other")) == ([1, 2, 3], [3])
    state.outbox.settle("out", 3, now=NOW)
    state.outbox.settle("other", 1, now=NOW)
    assert state.outbox.size() == (0, 0)
    assert state.overview().imbalances() == []


def test_what_waited_for_a_forgotten_sink_alone_is_deleted(state: State) -> None:
    state.outbox.register("gone", "file")
    commit(state, events(1, 2))
    state.outbox.settle("out", 2, now=NOW)
    assert state.outbox.forget("gone")
    assert not state.outbox.forget("gone")
    assert state.outbox.size() == (0, 0)


def test_nothing_is_held_for_nobody_when_the_last_sink_is_forgotten(state: State) -> None:
    # It would keep the outbox full for ever, and so collecting paused: no sink to come has anything to do with it.
    commit(state, events(1, 2))
    assert state.outbox.forget("out")
    state.outbox.register("new", "file")
    assert waiting(state, "new") == []
    assert state.outbox.size() == (0, 0)


def test_settling_for_a_sink_that_was_forgotten_meanwhile_is_one_of_our_errors(state: State) -> None:
    commit(state, events(1))
    state.outbox.forget("out")
    with pytest.raises(StateError):
        state.outbox.settle("out", 1, now=NOW)


# Segments


def test_segments_hold_so_many_events_and_bytes_and_one_larger_one_alone() -> None:
    big = b"x" * (MAX_BYTES // 2)
    sizes = [1, 1, len(big), len(big), MAX_BYTES * 2, 1]
    items = [event(number, line=b"x" * size) for number, size in enumerate(sizes)]
    assert [len(part) for part in cut(items)] == [3, 1, 1, 1]
    assert [len(part) for part in cut(events(*range(2 * MAX_EVENTS + 1)))] == [MAX_EVENTS, MAX_EVENTS, 1]
    assert list(cut([])) == []


def test_a_segment_gives_back_what_was_put_in() -> None:
    items = [
        Event(-(2**62), b"\x00" * 16, b"{}"),
        Event(2**62, b"\xff" * 16, '{"s":"ä\\n"}'.encode(), ordinal=65_535),
        Event(0, b"a" * 16, b"x" * 2_000_000, ordinal=10**6),
    ]
    segment = encode(items)
    found = decode("1", 7, segment.directory, segment.lines)
    assert [(item.time_us, item.identity, item.line) for item in found] == [
        (item.time_us, item.identity, item.line) for item in items
    ]
    assert [item.ordinal for item in found] == [0, 65_535, 65_535]


# The file


def test_the_state_is_readable_by_nobody_else(directory: Path) -> None:
    before = os.umask(0)
    try:
        state = open_state(directory)
        state.contracts.enrol(["1"], "default", START)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("fetch.db", "fetch.db-wal", "fetch.db-shm", "fetch.lock"), 0o600)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    state.close()


def test_closing_leaves_one_file_and_its_lock(directory: Path) -> None:
    open_state(directory).close()
    assert sorted(path.name for path in directory.iterdir()) == ["fetch.db", "fetch.lock"]


HOLD = """
import sys
from pathlib import Path
from poller.store import State
state = State.open(Path(sys.argv[1]), "fetch")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the state until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        env=clean_environment(),
        cwd=TOP,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_state_is_held_by_one_process_and_the_other_is_told_by_which(
    directory: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(StateError, match=rf"process {holder.pid}\)") as raised:
        open_state(directory)
    assert "--wait" in raised.value.hint
    State.open(directory, "run").close()  # another use is another state


def test_who_waits_gets_it_when_the_other_process_ends_even_by_force(
    directory: Path, holder: subprocess.Popen[str]
) -> None:
    opened: list[State] = []
    waiter = threading.Thread(target=lambda: opened.append(State.open(directory, "fetch", wait=True)))
    waiter.start()
    holder.kill()
    waiter.join(10)
    assert not waiter.is_alive()
    opened[0].close()


def test_waiting_ends_when_asked_to_stop(directory: Path, holder: subprocess.Popen[str]) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        State.open(directory, "fetch", wait=True, stop=stop)


def test_a_state_may_be_looked_at_while_it_is_held(state: State, directory: Path) -> None:
    commit(state, events(1))
    assert overview_of(directory / "fetch.db") == state.overview()


# Files that cannot be used


def damage_random(path: Path) -> None:
    path.write_bytes(random.Random(7).randbytes(50_000))


def damage_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def damage_text(path: Path) -> None:
    path.write_text("not a database\n" * 500)


def damage_middle(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(len(content) - 4096))


def replace_with_foreign(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.commit()
    connection.close()


UNUSABLE = [
    damage_random,
    damage_short,
    damage_half,
    damage_empty,
    damage_zeros,
    damage_text,
    damage_middle,
    replace_with_foreign,
]


@pytest.fixture
def closed(directory: Path) -> Path:
    """The path of a state with two events waiting, held by nobody."""
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START)
    state.outbox.register("out", "stdout")
    commit(state, [event(number, line=b'{"n":%d,"x":"%s"}' % (number, b"x" * 3000)) for number in (1, 2, 3, 4)])
    state.close()
    return directory / "fetch.db"


@pytest.mark.parametrize("damage", UNUSABLE, ids=lambda function: function.__name__)
def test_a_damaged_or_foreign_file_is_set_aside_untouched_and_nothing_starts_in_its_place(
    closed: Path, damage: Callable[[Path], None]
) -> None:
    damage(closed)
    content = closed.read_bytes()
    with pytest.raises(StateError) as raised:
        open_state(closed.parent)
    (aside,) = closed.parent.glob("fetch.db.unusable-*")
    assert aside.read_bytes() == content
    assert not closed.exists()
    assert aside.name in str(raised.value)
    assert "--since" in raised.value.hint
    # And so it stays, with the same way out, until a person decides.
    with pytest.raises(StateError) as again:
        open_state(closed.parent)
    assert aside.name in str(again.value)
    assert "--since" in again.value.hint
    fresh = open_state(closed.parent, is_fresh_start=True)
    assert fresh.contracts.all() == []
    fresh.close()
    open_state(closed.parent).close()
    assert aside.read_bytes() == content


def test_two_files_set_aside_in_one_second_are_both_kept(closed: Path) -> None:
    for _ in range(3):
        damage_text(closed)
        with pytest.raises(StateError):
            open_state(closed.parent)
    assert len(list(closed.parent.glob("fetch.db.unusable-*"))) == 3


def test_deleting_what_was_set_aside_begins_anew_also_where_a_crash_left_side_files(closed: Path) -> None:
    damage_text(closed)
    for suffix in ("-wal", "-shm"):
        closed.with_name(closed.name + suffix).write_bytes(b"left by a crash")
    with pytest.raises(StateError):
        open_state(closed.parent)
    with pytest.raises(StateError) as raised:
        open_state(closed.parent)
    main = next(path for path in closed.parent.glob("fetch.db.unusable-*") if path.name[-4:] not in ("-wal", "-shm"))
    assert f"delete {main} " in raised.value.hint
    main.unlink()
    open_state(closed.parent).close()


def test_a_crash_before_anything_was_written_is_no_damage(directory: Path) -> None:
    # Whatever the first moments leave behind, the next start must not need a person.
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom poller.store import database, State\n"
        "steps = 0\n"
        "def trace(frame, event, arg):\n"
        "    global steps\n"
        "    if event == 'line' and frame.f_code.co_filename == database.__file__:\n"
        "        steps += 1\n"
        "        if steps == int(sys.argv[2]):\n"
        "            os._exit(9)\n"
        "    return trace\n"
        "sys.settrace(trace)\n"
        "State.open(Path(sys.argv[1]), 'fetch')\n"
    )
    process = None
    for steps in range(8, 400, 6):
        process = subprocess.run(
            [sys.executable, "-c", script, str(directory), str(steps)], env=clean_environment(), cwd=TOP, check=False
        )
        state = open_state(directory)
        state.contracts.enrol(["1"], "default", START)
        state.close()
        assert list(directory.glob("*unusable*")) == []
        shutil.rmtree(directory)
        if process.returncode == 0:
            break
    assert process is not None
    assert process.returncode == 0


def test_a_newer_schema_is_refused_and_left_as_it_is(closed: Path) -> None:
    connection = sqlite3.connect(closed)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    content = closed.read_bytes()
    with pytest.raises(StateError, match="newer") as raised:
        open_state(closed.parent)
    assert "upgrade" in raised.value.hint
    assert sorted(path.name for path in closed.parent.iterdir()) == ["fetch.db", "fetch.lock"]
    assert closed.read_bytes() == content
    connection = sqlite3.connect(closed)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    connection.close()


def test_a_flipped_bit_in_a_waiting_entry_is_told_from_the_entry(closed: Path) -> None:
    content = closed.read_bytes()
    at = content.index(b'{"n":2,') + 20
    closed.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    state = open_state(closed.parent)
    with pytest.raises(StateError, match="damaged") as raised:
        state.outbox.batch("out", 10, 10**6)
    assert "--since" in raised.value.hint
    state.close()


def test_whatever_bits_are_flipped_nothing_but_our_errors_comes_of_it(closed: Path) -> None:
    content = closed.read_bytes()
    chosen = random.Random(11)
    refused = 0
    for number in range(150):
        flipped = bytearray(content)
        # Half of them in the first page, where everything hangs on every bit.
        for _ in range(chosen.choice((1, 1, 40))):
            flipped[chosen.randrange(4096 if number % 2 else len(content))] ^= 1 << chosen.randrange(8)
        directory = closed.parent.parent / str(number)
        directory.mkdir()
        (directory / closed.name).write_bytes(flipped)
        try:
            overview_of(directory / closed.name)
        except StateError:
            pass
        try:
            state = open_state(directory)
            try:
                state.overview()
                state.contracts.unseen("1", events(1, 9))
                state.contracts.ranges("1")
                state.outbox.batch("out", 10, 10**6)
                commit(state, events(9))
                state.dead_letters.find()
            finally:
                state.close()
        except StateError as error:
            refused += 1
            assert str(directory) in str(error)
    assert refused


def test_a_file_that_is_damaged_while_it_is_used_is_set_aside_at_the_end(directory: Path) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START)
    commit(state, [event(number, START + number * HOUR) for number in range(300)])
    path = directory / "fetch.db"
    state._database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage_middle(path)
    state._database._connection.execute("PRAGMA shrink_memory")
    with pytest.raises(StateError):
        for number in range(1000, 1100):
            commit(state, [event(number, START + number * HOUR)])
            state.contracts.unseen("1", events(1))
            state.overview()
    state.close()
    with pytest.raises(StateError, match="unusable"):
        open_state(directory)


def test_beside_a_running_process_nothing_is_set_aside_or_migrated(state: State, directory: Path) -> None:
    # Replaying a dead letter is no reason to take the file from under the daemon that is writing to it.
    commit(state, events(1))
    state._database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage_middle(directory / "fetch.db")
    with pytest.raises(StateError):
        beside = State.open_beside(directory, "fetch")
        beside.overview()
        beside.close()
    assert (directory / "fetch.db").exists()


def test_looking_at_a_damaged_file_is_one_of_our_errors(closed: Path) -> None:
    damage_middle(closed)
    with pytest.raises(StateError):
        overview_of(closed)


def test_there_is_nothing_to_look_at_where_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        overview_of(tmp_path / "fetch.db")
    with pytest.raises(StateError, match="does not exist"):
        State.open_beside(tmp_path, "fetch")


# Directories and disks that cannot be written


def test_a_file_where_the_directory_should_be_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match="cannot be written") as raised:
            open_state(path)
        assert "--state-dir" in raised.value.hint


def test_a_directory_where_the_file_should_be_is_one_clear_error(directory: Path) -> None:
    (directory / "fetch.db").mkdir(parents=True)
    with pytest.raises(StateError):
        open_state(directory)


FILL = """
import json, os, resource, sys
from pathlib import Path
from poller.errors import StateError, StateFullError
from poller.events import Event
from poller.store import State
from poller.store.contracts import Commit
from poller.windows import Window

directory, limit = Path(sys.argv[1]), int(sys.argv[2])
state = State.open(directory, "fetch")
state.contracts.enrol(["1"], "default", 0)
state.outbox.register("out", "stdout")

def commit(number):
    new = [Event(number, number.to_bytes(16, "big"), b'{"n":%d,"x":"%s"}' % (number, os.urandom(5000).hex().encode()))]
    state.contracts.commit_window(
        Commit(
            contract="1", window=Window(number, number + 1), fetched=1, unseen=new, new_count=1, kept=new, now=0,
            advance_to=number + 1,
        )
    )

soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
committed, kinds = 0, []
for _ in range(3):  # it stays full, and goes on being the same error
    try:
        while committed < 10_000:
            commit(committed)
            committed += 1
    except StateError as error:
        kinds.append(type(error).__name__)
before = state.overview()
batch = state.outbox.batch("out", 10_000, 10**9)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
(directory / "ballast").unlink(missing_ok=True)
commit(committed)  # when there is room again, it goes on
after = state.overview()
state.close()
reopened = State.open(directory, "fetch")
print(json.dumps({
    "kinds": kinds, "committed": committed, "waiting": len(batch.events), "watermark": before.contracts[0].watermark,
    "imbalances": before.imbalances() + after.imbalances(),
    "after": reopened.overview().sinks[0].waiting,
}))
reopened.close()
"""


def assert_intact(output: str) -> dict[str, object]:
    """What the filling process says: all that was committed is there, and nothing that was not."""
    found: dict[str, object] = json.loads(output)
    assert found["committed"] == found["waiting"] == found["watermark"]
    assert found["after"] == int(str(found["committed"])) + 1
    assert found["imbalances"] == []
    assert len(found["kinds"]) == 3  # type: ignore[arg-type]
    return found


def test_a_file_that_may_not_grow_leaves_the_state_as_it_was(directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(directory), "600000"],
        env=clean_environment(),
        cwd=TOP,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_intact(done.stdout)


def test_a_full_disk_is_called_so_and_leaves_the_state_as_it_was(directory: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no disk of our own to fill: this machine allows no mount namespaces")
    directory.mkdir(mode=0o700)
    done = subprocess.run(
        [
            *("unshare", "-rm", "sh", "-c"),
            'mount -t tmpfs -o size=2m tmpfs "$1" && head -c 700000 /dev/zero >"$1/ballast" && exec "$2" -c "$3" "$1" 0',
            *("sh", str(directory), sys.executable, FILL),
        ],
        env=clean_environment(),
        cwd=TOP,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert assert_intact(done.stdout)["kinds"] == [StateFullError.__name__] * 3
