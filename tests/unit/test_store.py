"""The collecting half of the state on a real file: what is committed together, and which entries were seen before."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from poller.core.clocks import Trail
from poller.core.errors import StateError
from poller.core.events import Event
from poller.core.gaps import REFUSED, Unread
from poller.core.identity import IDENTITY_BYTES
from poller.core.sifting import told_apart
from poller.core.windows import Window
from poller.store.protocols import Stores
from poller.store.rows import Prepared, WindowRead
from poller.store.sqlite import State, database
from poller.store.sqlite.ledger import _CHUNK_IDENTITIES as CHUNK
from tests.states import HOUR, NOW, START, claimed, commit, counts, event, events, open_state, settle, waiting

# Contracts, watermarks and books


def test_a_contract_is_enrolled_once_and_keeps_its_place(state: State) -> None:
    commit(state, events(1))
    state.contracts.enrol(["1", "2"], "other", START - 500, START)
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
    with claimed(state) as claim:
        claim.record_poll(NOW, "no answer")
        claim.record_poll(NOW + 1, "")
    row = state.contracts.all()[0]
    assert (row.failed_at, row.succeeded_at, row.failure) == (NOW, NOW + 1, "")


def test_when_a_contract_was_audited_is_remembered_from_its_beginning_on(state: State) -> None:
    assert state.contracts.all()[0].audited_at == START
    state.contracts.record_audit("1", NOW)
    state.contracts.enrol(["1", "2"], "default", START, NOW + 9)
    assert [row.audited_at for row in state.contracts.all()] == [NOW, NOW + 9]


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
@pytest.mark.backends("sqlite")
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


@pytest.mark.backends("sqlite")
def test_an_interrupt_in_a_transaction_leaves_nothing_behind(state: State) -> None:
    def interrupt() -> None:
        with state._database.transaction() as connection:
            connection.execute("DELETE FROM contracts")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert len(state.contracts.all()) == 1
    commit(state, events(1))  # the next transaction begins as usual


@pytest.mark.backends("sqlite")
def test_what_was_committed_is_there_after_a_crash(state: State, directory: Path, tmp_path: Path) -> None:
    commit(state, events(1, 2))
    settle(state, "out", 1, now=NOW)
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
    state.contracts.enrol([str(number) for number in range(8)], "default", START, START)

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
    commit(state, events(2), window=Window(START - 70, START - 41), advance=False, of_range=span.id)
    assert [left.window for left in state.contracts.ranges("1")] == [Window(START - 41, START - 40)]
    commit(state, events(3), window=Window(START - 41, START - 40), advance=False, of_range=span.id)
    assert state.contracts.ranges("1") == []
    assert state.contracts.all()[0].watermark == START


def test_a_range_moves_the_origin_back_and_no_watermark(state: State) -> None:
    state.contracts.add_range("1", Window(START - 100, START), "since")
    row = state.contracts.all()[0]
    assert (row.origin, row.watermark) == (START - 100, START)
    state.contracts.add_range("1", Window(START + 10, START + 20), "repair")
    assert state.contracts.all()[0].origin == START - 100


def test_a_range_that_ends_before_collecting_began_leaves_the_origin_where_it_is(state: State) -> None:
    state.contracts.add_range("1", Window(START - 100, START - 1), "repair")
    assert state.contracts.all()[0].origin == START, "nobody has read what lies between"


def test_a_range_that_is_wished_for_already_is_not_doubled(state: State) -> None:
    for start, end in ((-100, 0), (-100, 0), (-90, -10), (-110, 0), (-50, 10)):
        state.contracts.add_range("1", Window(START + start, START + end), "since")
    assert [span.window for span in state.contracts.ranges("1")] == [
        Window(START - 110, START),
        Window(START - 100, START),
        Window(START - 50, START + 10),
    ]
    assert state.contracts.ranges("2") == []


def test_of_several_ranges_one_is_ended(state: State) -> None:
    for end in (10, 20):
        state.contracts.add_range("1", Window(START - 100, START + end), "since")
    first, second = state.contracts.ranges("1")
    with claimed(state) as claim:
        claim.end_range(first.id)
        assert claim.ranges() == [second]
    assert state.contracts.ranges("1") == [second]


# Watermarks that are set


def test_what_is_skipped_is_counted_unless_the_watermark_is_there_already(state: State) -> None:
    state.contracts.enrol(["2"], "default", START, START)
    for contract, to, count in (("1", START + 10, 7), ("1", START + 10, 50), ("1", START + 9, 50), ("2", START + 5, 3)):
        state.contracts.skip_to(contract, to, count)
    assert [row.watermark for row in state.contracts.all()] == [START + 10, START + 5]
    assert state.fact("skipped") == "10"


def test_a_poll_goes_on_from_a_watermark_that_it_has_taken_back(state: State) -> None:
    commit(state, [], window=Window(START, START + 600))
    with claimed(state) as claim:
        assert state.contracts.take_back(claim.row, START + 60, NOW)
        claim.commit(WindowRead(Window(START + 60, START + 120), events(1), 1, NOW, advance_to=START + 120), Prepared)
    assert [row.watermark for row in state.contracts.all()] == [START + 120]


@pytest.mark.parametrize(("to", "origin"), [(START - 5, START - 5), (START + 5, START)])
def test_a_watermark_is_taken_back_and_the_origin_is_not_behind_it(state: State, to: int, origin: int) -> None:
    state.contracts.enrol(["2"], "default", START, START)
    commit(state, [], window=Window(START, START + 60))
    assert state.contracts.take_back(state.contracts.all()[0], to, NOW)
    one, other = state.contracts.all()
    assert (one.watermark, one.origin) == (to, origin)
    assert (other.watermark, other.origin) == (START, START)
    found = state.overview().taken_back
    assert found is not None
    assert (found.at, found.watermark) == (NOW, to)


def test_a_watermark_that_went_back_meanwhile_stays_and_nothing_is_told(state: State) -> None:
    # As after a failover that lost commits.
    commit(state, [], window=Window(START, START + 60))
    (row,) = state.contracts.all()
    assert not state.contracts.take_back(row._replace(watermark=START + 61), START + 30, NOW)
    assert not state.contracts.take_back(row._replace(contract="7"), START + 30, NOW)
    assert state.contracts.all()[0].watermark == START + 60
    assert state.overview().taken_back is None


def test_a_contract_is_found_by_its_number_and_follows_to_another_account(state: State) -> None:
    assert state.contracts.get("7") is None
    state.contracts.enrol(["1"], "other", START + 99, NOW)
    row = state.contracts.get("1")
    assert row is not None
    assert (row.contract, row.account, row.origin, row.watermark) == ("1", "other", START, START)
    assert row == state.contracts.all()[0]


# Facts


def test_a_wish_to_read_again_holds_at_its_earliest_until_it_is_done(state: State) -> None:
    assert state.requested_reread("a") is None
    for since in (1000, 999, 9999, 1001):
        state.request_reread(["a", "b"], since)
    assert (state.requested_reread("a"), state.requested_reread("b")) == (999, 999)
    state.forget_reread("a")
    assert (state.requested_reread("a"), state.requested_reread("b")) == (None, 999)


def test_the_times_of_polls_are_remembered(state: State) -> None:
    assert state.clock_trail() == Trail(0, ())
    for trail in (Trail(5, ((1, 2), (3, 4))), Trail(9, ())):
        state.remember_clock_trail(trail)
        assert state.clock_trail() == trail


def test_nothing_is_forgotten_that_a_clock_which_was_ahead_will_have_read_again(state: State) -> None:
    commit(state, events(1), now=START + 60)
    commit(state, [], window=Window(START, START + 50 * HOUR), now=START + 60)
    state.remember_clock_trail(Trail(START + 50 * HOUR, ((START + HOUR, START + 50 * HOUR),)))
    state.prune(HOUR, 600, START + 50 * HOUR)
    assert state.contracts.unseen("1", events(1)) == []
    state.remember_clock_trail(Trail(START + 50 * HOUR, ()))
    state.prune(HOUR, 600, START + 50 * HOUR)
    assert state.contracts.unseen("1", events(1)) == events(1)


# The ledger


def test_what_was_collected_is_seen_and_nothing_else_is(state: State) -> None:
    commit(state, events(1, 2, 3))
    assert state.contracts.unseen("1", events(3, 4, 1, 5)) == events(4, 5)
    assert state.contracts.unseen("1", []) == []
    state.contracts.enrol(["2"], "default", START, START)
    assert state.contracts.unseen("2", events(1, 2, 3)) == events(1, 2, 3)


def test_what_was_filtered_is_seen_as_well(state: State) -> None:
    commit(state, events(1, 2), kept=[])
    assert state.contracts.unseen("1", events(1, 2)) == []
    assert waiting(state, "out") == []


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("step", [CHUNK - 1, CHUNK, CHUNK + 1, 5000])
@pytest.mark.backends("sqlite")
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
    assert forgotten(state, 2 * HOUR, now=now, of=every) == [0, 1, 2]
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


def test_a_clock_that_is_ahead_forgets_nothing_early(state: State) -> None:
    every = [event(number, START + number * HOUR) for number in range(6)]
    commit(state, every, window=Window(START, START + 6 * HOUR), now=START)
    assert forgotten(state, 3 * HOUR, now=START + 40 * 24 * HOUR, of=every) == [0, 1, 2]


def test_what_was_forgotten_is_counted_still_also_when_more_comes_and_goes(state: State) -> None:
    commit(state, events(1, 2), window=Window(START, NOW), now=START)
    state.prune(HOUR, 600, NOW)
    commit(state, events(3), window=Window(START, NOW), now=START + 60)
    state.prune(HOUR, 600, NOW)
    (count,) = state.contracts.counts("1", START, START + HOUR).values()
    assert (count.collected, count.forgotten) == (3, 3)
    assert state.contracts.unseen("1", events(1, 2, 3)) == events(1, 2, 3)


def test_free_space_goes_back_to_the_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_VACUUM_BYTES", 1024 * 1024)
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    state.outbox.register("out", "stdout")
    big = [event(number, line=b'{"n":%d,"x":"%s"}' % (number, b"x" * 10_000)) for number in range(500)]
    commit(state, big)
    settle(state, "out", 500, now=NOW)
    state.prune(HOUR, 600, NOW)
    state.close()
    assert (directory / "fetch.db").stat().st_size < 500_000


# Different entries under one id


def sharing(*contents: str) -> list[Event]:
    """The events of a reading for entries with these contents under one id."""
    return told_apart(
        [Event(START * 1_000_000, b"u" * IDENTITY_BYTES, b'{"m":"%s"}' % one.encode()) for one in contents]
    )


def collected(state: State, *contents: str) -> list[str]:
    """The contents that are new when a poll reads entries with these contents."""
    new = state.contracts.unseen("1", sharing(*contents))
    commit(state, new)
    return [event.line.decode()[6:-2] for event in new]


def test_entries_under_one_id_that_come_one_by_one_are_each_delivered(state: State) -> None:
    shown = "abcdefgh"
    assert collected(state, *shown[:2]) == ["a", "b"]
    assert [collected(state, *shown[:count]) for count in range(3, 9)] == [[content] for content in shown[2:]]
    assert collected(state, *shown) == []


def test_the_second_entry_under_an_id_may_repeat_the_first_once(state: State) -> None:
    assert [collected(state, *"abcd"[:count]) for count in range(1, 5)] == [["a"], ["a", "b"], ["c"], ["d"]]


def test_one_of_several_under_an_id_that_comes_alone_later_is_known(state: State) -> None:
    assert collected(state, "a", "b") == ["a", "b"]
    assert [collected(state, content) for content in "abc"] == [[], [], ["c"]]


def test_what_another_use_has_collected_is_told_from_when_its_sinks_are_known(some_stores: Stores) -> None:
    with closing(some_stores.open("first")) as state:
        state.contracts.enrol(["1"], "default", START, START)
        commit(state, [event(1)])
        state.outbox.register("a", "stdout")
        commit(state, [event(2)])
        state.outbox.register("b", "stdout")
        commit(state, [event(3)])
    candidates = [event(number) for number in (1, 2, 3, 4)]
    for sinks, unseen in (
        ([], [4]),
        (["a"], [1, 4]),
        (["a", "b"], [1, 2, 4]),
        (["b"], [1, 2, 4]),
        (["a", "c"], [1, 2, 3, 4]),
    ):
        with closing(some_stores.collected("first", sinks)) as collected:
            assert collected.unseen("1", candidates) == [event(number) for number in unseen], sinks
            assert collected.knows_sinks is ("c" not in sinks)
            assert collected.unknown("1", candidates) == [event(4)]
            row = collected.contract("1")
            assert row is not None
            assert (row.contract, collected.contract("2")) == ("1", None)


def test_the_gaps_that_another_use_does_not_try_again_are_told(some_stores: Stores) -> None:
    spans = [Window(START, START + 60), Window(START + 120, START + 180)]
    with closing(some_stores.open("first")) as state:
        state.contracts.enrol(["1"], "default", START, START)
        for span in spans:
            commit(state, [], window=span, unread=[Unread(span, REFUSED, "too old")])
        state.gaps.accept(state.gaps.find()[1].id)
    with closing(some_stores.collected("first", [])) as collected:
        assert [collected.accepted_gaps(contract) for contract in ("1", "2")] == [spans[1:], []]


def test_what_another_use_has_forgotten_is_told_by_its_number(some_stores: Stores) -> None:
    with closing(some_stores.open("forgetful")) as state:
        state.contracts.enrol(["1"], "default", START, START)
        state.outbox.register("a", "stdout")
        late = event(9, START + HOUR + 5)
        commit(state, [*events(1, 2, 3), late], window=Window(START, START + 3 * HOUR), now=START)
        state.prune(HOUR, 600, START + 3 * HOUR)
        commit(state, [event(4)], window=Window(START, START + 3 * HOUR), now=START + HOUR)
    for sinks, start, end, forgotten in (
        (["a"], START, START + 3 * HOUR, 4),
        (["a"], START + 1800, START + HOUR, 3),
        (["a"], START + HOUR, START + HOUR + 1, 1),
        (["a"], START + 2 * HOUR, START + 3 * HOUR, 0),
        (["a", "c"], START, START + 3 * HOUR, 0),
    ):
        with closing(some_stores.collected("forgetful", sinks)) as collected:
            assert collected.forgotten("1", Window(start, end)) == forgotten, (sinks, start, end)
            assert collected.forgotten("2", Window(start, end)) == 0
