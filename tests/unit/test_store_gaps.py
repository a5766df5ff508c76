"""Gaps in the state on a real file: they open, grow, shrink and close in the transaction that commits their window."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from poller.core.errors import StateError
from poller.core.gaps import DENSE, KEPT_ENTRIES, REFUSED, UNREADABLE, UNSTABLE, Unread
from poller.core.hours import Compared
from poller.core.windows import Window
from poller.store.gaps import Entry
from poller.store.rows import Prepared, WindowRead
from poller.store.sqlite import State
from tests.states import HOUR, NOW, START, claimed, commit, event, events, open_state

MINUTE = Window(START, START + 60)
DAY = 24 * HOUR


def at(second: int, kind: str = UNREADABLE, seconds: int = 1, entries: tuple[bytes, ...] = ()) -> Unread:
    return Unread(Window(START + second, START + second + seconds), kind, f"why {second}", entries)


def spans(state: State) -> list[tuple[int, int]]:
    return [(gap.start - START, gap.end - START) for gap in state.gaps.find("1")]


def test_a_gap_opens_with_its_window_and_the_watermark_moves_on(state: State) -> None:
    settled = commit(state, events(1), unread=[at(7, entries=(b"what came",))])
    (gap,) = settled.opened
    assert state.gaps.find() == [gap]
    assert (gap.contract, gap.window, gap.kind, gap.reason) == ("1", at(7).window, UNREADABLE, "why 7")
    assert (gap.first_seen, gap.tries, gap.next_try_at, gap.is_accepted) == (NOW, 0, NOW + 60, False)
    assert state.gaps.entries(gap.id) == [Entry(b"what came", 9)]
    assert state.contracts.all()[0].watermark == MINUTE.end


def test_gaps_of_one_kind_that_follow_each_other_are_one(state: State) -> None:
    commit(state, [], unread=[at(7), at(8), at(20), at(9, DENSE)])
    assert spans(state) == [(7, 9), (9, 10), (20, 21)]
    assert commit(state, [], window=Window(START + 60, START + 120), unread=[at(60, REFUSED, 60)]).opened
    assert not commit(state, [], window=Window(START + 120, START + 180), unread=[at(120, REFUSED, 60)]).opened
    assert spans(state)[-1] == (60, 180)


def test_a_gap_between_two_of_its_kind_joins_them(state: State) -> None:
    commit(state, [], unread=[at(7, entries=(b"a",)), at(9, entries=(b"c",))])
    commit(state, [], window=Window(START + 8, START + 9), unread=[at(8, entries=(b"b",))])
    (gap,) = state.gaps.find("1")
    assert (gap.window, [entry.content for entry in state.gaps.entries(gap.id)]) == (
        Window(START + 7, START + 10),
        [b"a", b"c", b"b"],
    )


def test_a_gap_closes_when_its_window_is_read_whole(state: State) -> None:
    commit(state, [], unread=[at(7, entries=(b"a",))])
    (gap,) = state.gaps.find()
    settled = commit(state, events(7), window=gap.window, advance=False)
    assert (settled.closed, state.gaps.find(), state.gaps.entries(gap.id)) == ([gap], [], [])


def test_of_a_gap_that_is_read_in_part_the_rest_stays_and_keeps_its_number(state: State) -> None:
    commit(state, [], unread=[at(0, REFUSED, 60)])
    (gap,) = state.gaps.find()
    state.gaps.record_try(gap.id, "still no", NOW + 500)
    settled = commit(state, [], window=Window(START + 20, START + 40), advance=False, unread=[at(30)])
    assert not settled.opened
    assert not settled.closed
    found = state.gaps.find()
    assert [(row.start - START, row.end - START, row.kind) for row in found] == [
        (0, 20, REFUSED),
        (30, 31, UNREADABLE),
        (40, 60, REFUSED),
    ]
    assert found[0].id == gap.id
    assert {(row.first_seen, row.tries, row.next_try_at) for row in found} == {(NOW, 1, NOW + 500)}


def test_what_is_in_no_gap_any_more_was_not_compared_yet(state: State) -> None:
    hours = [Window(START + hour * HOUR, START + (hour + 1) * HOUR) for hour in range(4)]
    commit(state, [], window=Window(START, START + 4 * HOUR), unread=[at(HOUR, REFUSED, 2 * HOUR), at(3 * HOUR + 9)])

    def compared_end() -> int:
        state.contracts.record_audit("1", NOW, Compared(Window(START, START + 4 * HOUR)))
        before = state.contracts.all()[0].compared_end
        assert before == START + 4 * HOUR
        commit(state, [], window=windows.pop(0), unread=unread.pop(0))
        return state.contracts.all()[0].compared_end - START

    again = at(3 * HOUR + 9)
    windows = [hours[0], hours[3], Window(hours[1].start + 60, hours[1].end), hours[2], hours[1], hours[3]]
    unread: list[list[Unread]] = [[], [again], [], [], [], []]
    ends = [compared_end() for _ in range(6)]
    assert ends == [4 * HOUR, 4 * HOUR, HOUR + 60, 2 * HOUR, HOUR, 3 * HOUR + 9]
    assert spans(state) == []


def test_a_try_that_brings_the_same_replaces_what_came(state: State) -> None:
    commit(state, [], unread=[at(7, entries=(b"a",))])
    (gap,) = state.gaps.find()
    commit(state, [], window=gap.window, advance=False, unread=[at(7, entries=(b"b",))])
    assert [entry.content for entry in state.gaps.entries(gap.id)] == [b"b"]
    assert state.gaps.find() == [gap]


def test_what_came_is_kept_within_bounds(state: State) -> None:
    large = b"x" * 100_000
    commit(state, [], unread=[at(7, entries=(large, *(b"%d" % number for number in range(50))))])
    (gap,) = state.gaps.find()
    kept = state.gaps.entries(gap.id)
    assert kept[0] == Entry(large[: 64 * 1024], 100_000)
    assert len(kept) == KEPT_ENTRIES


def test_gaps_of_a_contract_stay_few_whatever_the_api_does(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.store.gaps._MOST", 5)
    for second in range(0, 60, 2):
        commit(state, [], window=MINUTE._replace(start=START + second), unread=[at(second)])
    found = spans(state)
    assert len(found) == 5
    assert all(any(start <= second < end for start, end in found) for second in range(0, 60, 2))


@pytest.mark.parametrize("place", ["before", "between", "behind"])
def test_however_many_gaps_there_are_none_is_widened_that_is_accepted_or_of_another_kind(
    state: State, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("poller.store.gaps._MOST", 5)
    commit(state, [], unread=[at(second, DENSE if second == 28 else UNREADABLE) for second in (20, 22, 24, 26, 28)])
    accepted = [gap for gap in state.gaps.find("1") if gap.kind == UNREADABLE]
    for gap in accepted:
        state.gaps.accept(gap.id)
    before = {gap.id: gap for gap in state.gaps.find("1")}
    second = {"before": 10, "between": 23, "behind": 40}[place]
    (opened,) = commit(state, [], window=at(second).window, unread=[at(second, entries=(b"new",))]).opened
    assert {gap.id: gap for gap in state.gaps.find("1") if gap.id != opened.id} == before
    assert (opened.window, opened.kind, opened.is_open) == (at(second).window, UNREADABLE, True)
    # From then on it is the open gap of its kind, and grows.
    assert not commit(state, [], window=at(second + 4).window, unread=[at(second + 4)]).opened
    (grown,) = [gap for gap in state.gaps.find("1") if gap.id == opened.id]
    assert grown.window == Window(opened.start, at(second + 4).window.end)
    assert len(state.gaps.find("1")) == 6


@pytest.mark.parametrize("is_accepted", [True, False])
def test_a_part_that_reaches_beyond_an_accepted_gap_opens_a_gap_and_an_open_one_grows(
    state: State, is_accepted: bool
) -> None:
    commit(state, [], unread=[at(20, UNSTABLE, 10)])
    (gap,) = state.gaps.find("1")
    if is_accepted:
        state.gaps.accept(gap.id)
    opened = commit(state, [], unread=[at(10, UNSTABLE, 30, entries=(b"what came",))]).opened
    found = [(start, end, row.is_open) for (start, end), row in zip(spans(state), state.gaps.find("1"), strict=True)]
    if is_accepted:
        assert found == [(10, 20, True), (20, 30, False), (30, 40, True)]
        assert [row.start - START for row in opened] == [10, 30]
    else:
        assert (found, opened) == ([(10, 40, True)], [])
    commit(state, [], unread=[])
    assert spans(state) == []


def test_an_accepted_gap_is_told_as_such_until_it_is_retried(state: State) -> None:
    commit(state, [], unread=[at(7)])
    (gap,) = state.gaps.find()
    state.gaps.accept(gap.id)
    assert [row.is_open for row in state.gaps.find()] == [False]
    state.gaps.retry(gap.id, NOW + 5)
    assert state.gaps.find() == [gap._replace(next_try_at=NOW + 5)]


def test_an_accepted_gap_does_not_hide_what_follows_it(state: State) -> None:
    commit(state, [], unread=[at(7)])
    state.gaps.accept(state.gaps.find()[0].id)
    assert commit(state, [], window=Window(START + 8, START + 9), unread=[at(8)]).opened


@pytest.mark.backends("sqlite")
def test_a_gap_that_a_bit_was_flipped_in_is_not_believed(state: State, directory: Path) -> None:
    commit(state, [], unread=[at(7)])
    with closing(sqlite3.connect(directory / "fetch.db", isolation_level=None)) as raw:
        raw.create_function("crc32", 1, lambda text: 4711, deterministic=True)
        raw.execute("UPDATE gaps SET end = end + 1")
    with pytest.raises(StateError, match="damaged"):
        state.gaps.find()


def test_gaps_outlive_the_process(directory: Path) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    commit(state, [], unread=[at(7)])
    known = state.overview().gaps
    state.close()
    again = open_state(directory)
    assert list(again.overview().gaps) == list(known) != []
    again.close()


def test_what_was_read_of_an_hour_with_a_gap_is_remembered_until_the_gap_closes(state: State) -> None:
    early, late = event(1), event(2, START + 2 * HOUR)
    commit(state, [early], unread=[at(7)])
    commit(state, [late], window=Window(START + 60, START + 3 * HOUR))
    commit(state, [], window=Window(START + 60, START + 90 * DAY))
    state.contracts.prune(35 * DAY, 600, START + 90 * DAY)
    assert state.contracts.unseen("1", [early, late]) == [late]


def test_a_claim_knows_of_gaps_that_it_opens_and_closes_itself(state: State) -> None:
    minute = WindowRead(MINUTE, (), 0, NOW, unread=(at(7),), next_try_at=NOW + 60)
    with claimed(state) as claim:
        assert not claim.gaps()
        (opened,) = claim.commit(minute, Prepared).opened
        assert list(claim.gaps()) == [opened]
        assert claim.commit(minute._replace(unread=()), Prepared).closed
        assert not claim.gaps()
        assert claim.commit(minute, Prepared).opened
        assert claim.gaps()
    with claimed(state) as claim:
        assert claim.commit(minute._replace(unread=()), Prepared).closed, "before it has looked for any"


@pytest.mark.backends("sqlite")
def test_gaps_of_others_cost_a_contract_nothing(state: State) -> None:
    def work(contract: str) -> int:
        steps: list[None] = []
        connection = state._database._connection
        connection.set_progress_handler(lambda: steps.append(None), 10)
        with claimed(state, contract) as claim:
            assert claim.gaps()
        connection.set_progress_handler(None, 0)
        return len(steps)

    state.contracts.enrol(map(str, range(2, 300)), "default", START, NOW)
    commit(state, [], unread=[at(7)])
    alone = work("1")
    for contract in range(2, 300):
        commit(state, [], contract=str(contract), unread=[at(7)])
    assert work("1") < alone * 1.5
