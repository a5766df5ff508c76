"""Rights on a state: a claim on a contract and the place of a sink. Each has one holder at a time. A released one is void."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from poller.core.errors import LeaseLostError
from poller.core.events import Event
from poller.core.windows import Window
from poller.store.protocols import State
from poller.store.rows import Prepared, WindowRead
from tests.states import FIRST_MINUTE, NOW, START, claim_all, claimed, commit, events, taken, waiting


def read(*numbers: int, window: Window = FIRST_MINUTE) -> WindowRead:
    return WindowRead(window, events(*numbers), len(numbers), NOW, advance_to=window.end)


def test_a_contract_has_one_claim_until_it_is_released(state: State) -> None:
    state.contracts.enrol(["2", "3"], "default", START, START)
    with claimed(state, "1"):
        assert state.contracts.claim("1") is None
        others = claim_all(state, ["1", "2", "unknown"])
        assert [claim.row.contract for claim in others] == ["2"]
        for claim in others:
            claim.release()
    with claimed(state, "1") as claim:
        assert claim.row.account == "default"


def test_a_claim_that_was_given_back_commits_nothing(state: State) -> None:
    claim = state.contracts.claim("1")
    claim.release()
    before = state.overview()
    for write in (
        lambda: claim.commit(read(1, 2), Prepared),
        lambda: claim.record_poll(NOW, ""),
        lambda: claim.end_range(1),
    ):
        with pytest.raises(LeaseLostError, match="1"):
            write()
    claim.release()
    assert state.overview() == before


def test_what_is_new_is_decided_when_it_is_committed_and_not_when_it_was_read(state: State) -> None:
    first, second = read(1, 2), read(2, 3)  # both were read before either was committed
    with claimed(state) as claim:
        assert [event.identity for event in claim.commit(first, Prepared).unseen] == [
            event.identity for event in events(1, 2)
        ]
    with claimed(state) as claim:
        done = claim.commit(second, Prepared)
    assert done.unseen == events(3)
    assert waiting(state, "out") == [1, 2, 3]
    row = state.contracts.all()[0]
    assert (row.fetched, row.new, row.seen) == (4, 3, 1)
    assert state.overview().imbalances() == []


def test_a_filter_sees_what_is_new_and_nothing_else(state: State) -> None:
    seen: list[Sequence[Event]] = []

    def prepare(fresh: Sequence[Event]) -> Prepared:
        seen.append(fresh)
        return Prepared(fresh[1:], {"test": 1})

    commit(state, events(1))
    with claimed(state) as claim:
        done = claim.commit(read(1, 2, 3), prepare)
        claim.commit(read(1, 2, 3), prepare)
    assert seen == [events(2, 3)]
    assert (done.new_count, done.kept_count) == (2, 1)
    assert state.overview().imbalances() == []


def test_what_another_use_has_delivered_is_entered_and_not_sent_again(state: State) -> None:
    elsewhere = {event.identity for event in events(2)}
    with claimed(state) as claim:
        done = claim.commit(read(1, 2)._replace(elsewhere=elsewhere), Prepared)
        again = claim.commit(read(1, 2), Prepared)
    assert (len(done.unseen), done.new_count, done.kept_count, len(again.unseen)) == (2, 1, 1, 0)
    assert waiting(state, "out") == [1]
    assert state.overview().imbalances() == []


def test_a_sink_has_one_place_until_it_is_released(state: State) -> None:
    commit(state, events(1, 2))
    with taken(state, "out") as place:
        assert state.outbox.take("out") is None
        place.batch(1, 100)
        place.settle(1, now=NOW)
    assert waiting(state, "out") == [2]


def test_a_place_that_was_given_back_moves_nothing_on(state: State) -> None:
    commit(state, events(1, 2))
    before = state.outbox.take("out")
    assert before is not None
    assert before.batch(2, 100) is not None
    before.release()
    with taken(state, "out") as place:
        place.batch(2, 100)
        for write in (
            before.ensure_held,
            lambda: before.settle(2, now=NOW),
            lambda: before.postpone(1, NOW, NOW + 60, "down", parked_at=None),
            lambda: before.note_output_offset(7),
        ):
            with pytest.raises(LeaseLostError, match="out"):
                write()
        before.release()
        place.settle(1, now=NOW)
    assert waiting(state, "out") == [2]
    (sink,) = state.outbox.sinks()
    assert (sink.delivered, sink.attempts, sink.output_offset) == (1, 0, None)
