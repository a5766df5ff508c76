"""The delivering half of the state on a real file: which sink waits for which events, and what happens to them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poller.core.errors import StateError
from poller.core.events import Event, OutboxEvent
from poller.store.rows import DeadLetter
from poller.store.segments import MAX_BYTES, MAX_EVENTS, Stored, cut, decode, encode
from poller.store.sqlite import State
from tests.states import NOW, START, commit, event, events, next_batch, open_state, postpone, settle, taken, waiting

# The outbox


def test_a_batch_holds_what_waits_in_order_and_says_whether_there_is_more(state: State) -> None:
    commit(state, events(1, 2))
    commit(state, events(3))
    state.contracts.enrol(["2"], "default", START, START)
    commit(state, events(4), contract="2", now=NOW + 1)
    batch = next_batch(state, "out", 4, 10**6)
    assert batch is not None
    assert batch.events[0] == OutboxEvent("1", START * 1_000_000 + 1, NOW, events(1)[0].identity, 0, b'{"n":1}')
    assert (batch.events[3].contract, batch.events[3].collected_at) == ("2", NOW + 1)
    assert not batch.has_more
    with pytest.raises(StateError, match="nobody"):
        state.outbox.take("nobody")


@pytest.mark.parametrize(
    ("max_events", "max_bytes", "expected"),
    [
        (10, 1000, [1, 2, 3, 4, 5]),
        (5, 40, [1, 2, 3, 4, 5]),
        (4, 1000, [1, 2, 3, 4]),
        (1, 1000, [1]),
        (10, 39, [1, 2, 3, 4]),  # each takes 8 bytes, including its newline
        (10, 16, [1, 2]),
        (10, 1, [1]),  # always at least one
    ],
)
def test_a_batch_keeps_its_bounds(state: State, max_events: int, max_bytes: int, expected: list[int]) -> None:
    commit(state, events(1, 2))
    commit(state, events(3, 4, 5))
    batch = next_batch(state, "out", max_events, max_bytes)
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
        settle(state, "out", count, now=NOW)
        left = left[count:]
        assert state.overview().imbalances() == []
    assert waiting(state, "out") == []
    assert state.outbox.size()[:2] == (0, 0)


def test_many_events_are_cut_into_segments_and_come_out_as_they_went_in(state: State) -> None:
    new = events(*range(2 * MAX_EVENTS + 1))
    commit(state, new)
    batch = next_batch(state, "out", 10**9, 10**9)
    assert batch is not None
    assert [(item.identity, item.line, item.time_us) for item in batch.events] == [
        (item.identity, item.line, item.time_us) for item in new
    ]
    assert state.outbox.size().events == len(new)
    settle(state, "out", MAX_EVENTS, now=NOW)
    assert state.outbox.size().events == MAX_EVENTS + 1


def test_each_sink_goes_at_its_own_pace_and_what_all_have_is_deleted(state: State) -> None:
    state.outbox.register("slow", "file")
    commit(state, events(1, 2))
    commit(state, events(3))
    settle(state, "out", 3, now=NOW)
    assert (waiting(state, "out"), waiting(state, "slow")) == ([], [1, 2, 3])
    assert state.outbox.size().events == 3
    settle(state, "slow", 1, now=NOW)
    assert state.outbox.size().events == 3
    settle(state, "slow", 1, now=NOW)
    assert state.outbox.size().events == 1
    assert waiting(state, "slow") == [3]
    commit(state, events(4))
    assert (waiting(state, "out"), waiting(state, "slow")) == ([4], [3, 4])
    settle(state, "slow", 2, now=NOW)
    settle(state, "out", 1, now=NOW)
    assert state.outbox.size()[:2] == (0, 0)


def test_a_sink_added_later_begins_with_what_is_collected_from_then_on(state: State) -> None:
    commit(state, events(1))
    state.outbox.register("late", "file")
    commit(state, events(2))
    assert (waiting(state, "out"), waiting(state, "late")) == ([1, 2], [2])
    settle(state, "out", 2, now=NOW)
    settle(state, "late", 1, now=NOW)
    state.outbox.register("later", "file")  # after segments that are deleted already
    commit(state, events(3))
    assert waiting(state, "later") == [3]
    assert [sink.assigned for sink in state.outbox.sinks()] == [2, 1, 3]  # late, later, out
    assert state.overview().imbalances() == []


def test_a_sink_that_is_known_keeps_its_place(state: State) -> None:
    commit(state, events(1, 2))
    settle(state, "out", 1, now=NOW)
    state.outbox.register("out", "file")
    (sink,) = state.outbox.sinks()
    assert (sink.type, sink.delivered, sink.assigned) == ("file", 1, 2)
    assert waiting(state, "out") == [2]


def test_a_wait_outlives_a_restart_and_ends_with_a_success(directory: Path) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    state.outbox.register("out", "stdout")
    commit(state, events(1))
    postpone(state, "out", 3, NOW, NOW + 60.5, "no connection", parked_at=NOW)
    state.close()
    again = open_state(directory)
    again.outbox.register("out", "stdout")
    (sink,) = again.outbox.sinks()
    assert (sink.attempts, sink.retry_at, sink.failure, sink.parked_at) == (3, NOW + 60.5, "no connection", NOW)
    settle(again, "out", 1, now=NOW + 61)
    (sink,) = again.outbox.sinks()
    assert (sink.attempts, sink.retry_at, sink.failure, sink.parked_at) == (0, None, "", None)
    assert sink.succeeded_at == NOW + 61
    again.close()


def test_a_dead_letter_is_written_with_the_move_past_it(state: State) -> None:
    commit(state, events(1, 2, 3))
    batch = next_batch(state, "out", 10, 10**6)
    assert batch is not None
    settle(state, "out", 2, dead=[DeadLetter(batch.events[1], 400, "bad field")], now=NOW)
    (letter,) = state.dead_letters.find("out")
    assert (letter.line, letter.status, letter.reason, letter.contract) == (b'{"n":2}', 400, "bad field", "1")
    (sink,) = state.outbox.sinks()
    assert (sink.assigned, sink.delivered, sink.dead, sink.succeeded_at) == (3, 1, 1, NOW)
    assert waiting(state, "out") == [3]
    assert state.overview().imbalances() == []


def test_a_batch_of_dead_letters_alone_is_no_success(state: State) -> None:
    commit(state, events(1))
    batch = next_batch(state, "out", 10, 10**6)
    assert batch is not None
    settle(state, "out", 1, dead=[DeadLetter(batch.events[0], None, "bad")], now=NOW)
    assert state.outbox.sinks()[0].succeeded_at is None


@pytest.mark.parametrize(("table", "action"), [("dead_letters", "INSERT"), ("sinks", "UPDATE"), ("segments", "DELETE")])
@pytest.mark.backends("sqlite")
def test_a_batch_is_settled_whole_or_not_at_all(state: State, table: str, action: str) -> None:
    commit(state, events(1, 2))
    batch = next_batch(state, "out", 10, 10**6)
    assert batch is not None
    before = state.overview()
    state._database._connection.execute(
        f"CREATE TEMP TRIGGER fault BEFORE {action} ON {table} BEGIN SELECT RAISE(ABORT, 'fault'); END"
    )
    with pytest.raises(StateError, match="fault"):
        settle(state, "out", 2, dead=[DeadLetter(batch.events[0], 400, "bad")], now=NOW)
    assert state.overview() == before
    assert waiting(state, "out") == [1, 2]
    assert state.dead_letters.find() == []


def test_a_replayed_letter_waits_for_its_own_sink_alone(state: State) -> None:
    state.outbox.register("other", "file")
    commit(state, events(1, 2))
    batch = next_batch(state, "out", 10, 10**6)
    assert batch is not None
    letters = [DeadLetter(item, 400, "bad") for item in batch.events]
    settle(state, "out", 2, dead=letters, now=NOW)
    settle(state, "other", 2, now=NOW)
    assert state.outbox.size()[:2] == (0, 0)
    assert state.dead_letters.replay(state.dead_letters.find(), NOW) == 2
    assert state.dead_letters.find() == []
    assert (waiting(state, "out"), waiting(state, "other")) == ([1, 2], [])
    assert state.overview().imbalances() == []
    commit(state, events(3))
    assert (waiting(state, "out"), waiting(state, "other")) == ([1, 2, 3], [3])
    settle(state, "out", 3, now=NOW)
    settle(state, "other", 1, now=NOW)
    assert state.outbox.size()[:2] == (0, 0)
    assert state.overview().imbalances() == []


def test_what_waited_for_a_forgotten_sink_alone_is_deleted(state: State) -> None:
    state.outbox.register("gone", "file")
    commit(state, events(1, 2))
    settle(state, "out", 2, now=NOW)
    assert state.outbox.forget("gone")
    assert not state.outbox.forget("gone")
    assert state.outbox.size()[:2] == (0, 0)


def test_nothing_is_held_for_nobody_when_the_last_sink_is_forgotten(state: State) -> None:
    # Otherwise the outbox stays full and collecting stays paused. Sinks that are added later do not need these events.
    commit(state, events(1, 2))
    assert state.outbox.forget("out")
    state.outbox.register("new", "file")
    assert waiting(state, "new") == []
    assert state.outbox.size()[:2] == (0, 0)


def test_settling_for_a_sink_that_was_forgotten_meanwhile_changes_nothing(state: State) -> None:
    commit(state, events(1))
    with taken(state, "out") as place:
        place.batch(1, 100)
        state.outbox.forget("out")
        before = state.overview()
        place.settle(1, now=NOW)
    assert state.overview() == before


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
    found = decode(Stored("1", 7, segment.directory, segment.lines))
    assert [(item.time_us, item.identity, item.line) for item in found] == [
        (item.time_us, item.identity, item.line) for item in items
    ]
    assert [item.ordinal for item in found] == [0, 65_535, 65_535]
