"""The collector around its windows: who may collect, which entries are left out, its waits, and what a failure leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.config import Config
from poller.core.errors import AuthError, LeaseLostError, RejectedError, StoppedError, TransientError
from poller.core.events import Event
from poller.core.windows import Window
from poller.pipeline.collect import Collector, PollResult, WindowCommitted
from poller.store.rows import Contract, Prepared
from poller.store.sqlite import State
from tests.fake_api import BEGAN, H, Log
from tests.states import claimed, waiting

MINUTE = 60


class Account(Log):
    """The API of an account. `admits`: whether a poll may begin. `dismissed`: the contracts whose polls are over."""

    def __init__(self, *contracts: str) -> None:
        super().__init__(*contracts)
        self.admits = True
        self.dismissed: list[str] = []

    def admit(self, contract: str) -> bool:
        return self.admits

    def dismiss(self, contract: str) -> None:
        self.dismissed.append(contract)


class Place:
    def __init__(self, state: State) -> None:
        self.state = state
        self.log = Account("1")
        self.stop = threading.Event()
        self.windows: list[WindowCommitted] = []
        self._made: list[Collector] = []
        state.outbox.register("out", "stdout")

    def collector(self, config: Config | None = None, **options: Any) -> Collector:
        accounts: Any = {"default": self.log}
        made = Collector(
            self.state,
            accounts,
            config or Config(),
            stop=self.stop,
            clock=lambda: self.log.now,
            on_window=self.windows.append,
            **options,
        )
        made.discover()
        self._made.append(made)
        return made

    def row(self) -> Contract:
        row = self.state.contracts.get("1")
        assert row is not None
        return row

    def close(self) -> None:
        self.stop.set()
        for collector in self._made:
            collector.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with closing(State.open(tmp_path, "run")) as state:
        place = Place(state)
        yield place
        place.close()


def small_windows() -> Config:
    """A configuration in which a window holds ten entries."""
    config = Config()
    return msgspec.structs.replace(config, api=msgspec.structs.replace(config.api, page_size=10, result_window=10))


def test_a_poll_says_what_it_brought_and_leaves_the_watermark_at_its_end(place: Place) -> None:
    poll = place.collector().collect("1")
    assert poll == PollResult("1", fetched=5, new=5)
    assert (place.row().watermark, place.row().succeeded_at, place.row().failure) == (BEGAN, BEGAN, "")
    assert [(done.fetched, done.kept, done.left_out) for done in place.windows] == [(5, 5, 0)]


def test_what_comes_again_is_seen_before_and_not_new(place: Place) -> None:
    collector = place.collector()
    collector.collect("1")
    place.log.now += 2 * MINUTE
    poll = collector.collect("1")
    assert (poll.new, poll.late) == (2, 0)
    assert poll.fetched > 2, "the overlap"


def test_what_is_filtered_is_counted_and_waits_for_nobody(place: Place) -> None:
    collector = place.collector(prepare=lambda contract, events: Prepared(events[1:], {"reads": 1}))
    poll = collector.collect("1")
    assert (poll.fetched, poll.new, poll.filtered) == (5, 4, 1)
    assert place.row().filtered == 1


def test_what_another_use_has_delivered_is_left_out_and_told(place: Place) -> None:
    def elsewhere(contract: str, events: Sequence[Event]) -> list[bytes]:
        return [event.identity for event in events[:2]]

    poll = place.collector(elsewhere=elsewhere).collect("1")
    assert (poll.fetched, poll.new) == (5, 3)
    assert [(done.kept, done.left_out) for done in place.windows] == [(3, 2)]
    assert not place.state.overview().imbalances()


def test_it_reads_to_the_given_end_and_no_further(place: Place) -> None:
    end = BEGAN - 2 * MINUTE
    assert place.collector(until=end).collect("1").new == 3
    assert place.row().watermark == end
    assert all(done.window.end <= end for done in place.windows)


def test_an_entry_that_is_shown_late_is_counted_as_late(place: Place) -> None:
    collector = place.collector()
    collector.collect("1")
    place.log.show("1", BEGAN - 90)
    place.log.now += MINUTE
    poll = collector.collect("1")
    assert (poll.new, poll.late) == (2, 1)


def test_a_contract_that_another_thread_collects_is_left_to_it(place: Place) -> None:
    collector = place.collector()
    with claimed(place.state, "1"):
        assert collector.collect("1") == PollResult("1", is_elsewhere=True)
        assert collector.poll("1") == PollResult("1", is_elsewhere=True)
    assert place.row().succeeded_at is None
    assert collector.poll("1").new == 5
    assert place.log.dismissed == ["1"]
    assert not collector.is_busy


def test_a_poll_whose_turn_has_not_come_does_nothing(place: Place) -> None:
    collector = place.collector()
    place.log.admits = False
    assert collector.poll("1") == PollResult("1", is_elsewhere=True)
    assert place.log.dismissed == []
    place.log.admits = True
    assert collector.poll("1").new == 5


@pytest.mark.parametrize("error", [AuthError("refused"), TransientError("no answer")], ids=type)
def test_a_failure_is_in_the_state_and_its_poll_and_the_watermark_stays(place: Place, error: Any) -> None:
    collector = place.collector()
    before = place.row().watermark

    def fail(*args: Any, **options: Any) -> None:
        raise error

    page, place.log.page = place.log.page, fail  # type: ignore[method-assign, assignment]
    assert collector.collect("1").failure is error
    assert error.contract == "1"
    row = place.row()
    assert (row.watermark, row.failed_at, row.succeeded_at) == (before, BEGAN, None)
    assert str(error.message) in row.failure
    place.log.page = page  # type: ignore[method-assign]
    place.log.now += MINUTE
    assert collector.collect("1").new == 6
    assert (place.row().failure, place.row().watermark) == ("", BEGAN + MINUTE)


def test_a_turn_that_is_over_ends_with_the_window_that_was_committed(place: Place) -> None:
    collector = place.collector(small_windows())
    place.state.request_reread(["default"], BEGAN - 2 * H)
    collector.discover()
    poll = collector.collect("1", turn_seconds=0.0)
    assert poll.is_unfinished
    assert 0 < poll.new < 120
    assert not collector.collect("1").is_unfinished
    assert (place.row().new, place.state.contracts.ranges("1")) == (120, [])


def test_while_the_outbox_is_full_nothing_is_collected_and_it_goes_on_when_there_is_room(place: Place) -> None:
    config = Config()
    config = msgspec.structs.replace(config, outbox=msgspec.structs.replace(config.outbox, max_bytes=1))
    place.collector(config).collect("1")
    place.log.now += MINUTE
    polls: list[PollResult] = []
    thread = threading.Thread(target=lambda: polls.append(place.collector(config).collect("1")), daemon=True)
    thread.start()
    thread.join(0.3)
    assert (thread.is_alive(), place.row().new) == (True, 5)
    place.state.outbox.forget("out")
    thread.join(10)
    assert [poll.new for poll in polls] == [1]


def test_a_wait_for_room_ends_when_asked_to_stop(place: Place) -> None:
    config = Config()
    config = msgspec.structs.replace(config, outbox=msgspec.structs.replace(config.outbox, max_bytes=1))
    collector = place.collector(config)
    collector.collect("1")
    place.log.now += MINUTE
    place.stop.set()
    with pytest.raises(StoppedError):
        collector.collect("1")
    assert place.row().new == 5


def test_what_is_collected_after_the_claims_were_given_back_is_not_committed(place: Place) -> None:
    collector = place.collector()
    page = place.log.page

    def abandoned(*args: Any, **options: Any) -> Any:
        collector.abandon()
        return page(*args, **options)

    place.log.page = abandoned  # type: ignore[method-assign]
    with pytest.raises(LeaseLostError):
        collector.collect("1")
    assert place.row().new == 0
    assert waiting(place.state, "out") == []


def test_a_second_that_is_refused_is_a_gap_that_is_tried_again_at_longer_and_longer_waits(place: Place) -> None:
    place.log.rejected = Window(BEGAN - 120, BEGAN - 119)
    collector = place.collector()
    poll = collector.collect("1")
    (gap,) = poll.gaps
    assert (gap.window, poll.failure) == (place.log.rejected, None)
    assert poll.new == 4
    assert gap.next_try_at > BEGAN
    waits = []
    for _ in range(6):
        place.log.now = float(gap.next_try_at)
        (gap,) = collector.collect("1").gaps
        waits.append(gap.next_try_at - int(place.log.now))
    assert gap.tries == 6
    assert waits[-1] > 2 * waits[0]
    place.log.rejected = None
    place.log.now = float(gap.next_try_at)
    assert collector.collect("1").gaps == ()
    assert place.row().new == 5 + (int(place.log.now) - 1) // MINUTE - (BEGAN - 1) // MINUTE


def test_a_gap_tried_by_a_clock_that_was_hours_ahead_does_not_wait_for_these_hours(place: Place) -> None:
    place.log.rejected = Window(BEGAN - 120, BEGAN - 119)
    collector = place.collector()
    collector.collect("1")
    tries = []
    for now in (BEGAN + 5 * H, BEGAN + MINUTE, BEGAN + MINUTE):
        place.log.now = float(now)
        (gap,) = collector.collect("1").gaps
        tries.append(gap.tries)
    assert tries == [1, 2, 2]


def test_where_even_the_present_is_refused_the_contract_fails_and_nothing_is_called_a_gap(place: Place) -> None:
    collector = place.collector()
    before = place.row().watermark
    place.log.rejected = Window(0, BEGAN + H)
    poll = collector.collect("1")
    assert isinstance(poll.failure, RejectedError)
    assert (poll.gaps, place.row().watermark) == ((), before)


# Several accounts


class Pace(Account):
    def __init__(self, *contracts: str) -> None:
        super().__init__(*contracts)
        self.parts: list[float] = []

    def take_part(self, part: float) -> None:
        self.parts.append(part)


def test_the_first_account_keeps_the_turns_and_the_pace_of_all(place: Place) -> None:
    first, second = Pace("1"), Pace("2")
    accounts: Any = {"first": first, "second": second}
    collector = Collector(place.state, accounts, Config(), stop=place.stop, clock=lambda: BEGAN)
    collector.discover()
    collector.take_part(0.25)
    assert (first.parts, second.parts) == ([0.25], [])
    assert collector.poll("2").new == 5
    assert (first.dismissed, second.dismissed) == (["2"], [])
    first.admits = False
    assert collector.poll("1").is_elsewhere
    collector.close()


def test_a_poll_that_fails_gives_its_turn_back(place: Place) -> None:
    collector = place.collector()
    place.stop.set()
    with pytest.raises(StoppedError):
        collector.poll("1")
    assert (place.log.dismissed, collector.is_busy) == (["1"], False)


# Reports


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.message) for record in caplog.records if record.name.startswith("poller")]


@pytest.mark.parametrize(
    ("error", "level"), [(AuthError("refused"), "ERROR"), (TransientError("no answer"), "WARNING")], ids=type
)
def test_only_what_wants_a_hand_is_an_error(
    place: Place, caplog: pytest.LogCaptureFixture, error: Any, level: str
) -> None:
    place.collector()
    collector = place.collector()

    def fail(*args: Any, **options: Any) -> None:
        raise error

    place.log.page = fail  # type: ignore[method-assign, assignment]
    collector.collect("1")
    assert messages(caplog) == [(level, "contract.failed")]


def test_windows_with_something_new_are_told_and_the_others_for_who_looks_closely(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="poller.pipeline.collect")
    collector = place.collector()
    for _ in range(2):
        collector.collect("1")
    assert [level for level, message in messages(caplog) if message == "window.collected"] == ["INFO", "DEBUG"]


def test_entries_without_a_time_and_different_ones_under_one_id_are_told(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    page = place.log.page

    def odd(*args: Any, **options: Any) -> Any:
        found = page(*args, **options)
        first, second, *others = found.events
        first = msgspec.structs.replace(first, is_timed=False)
        second = msgspec.structs.replace(second, shared_id="x")
        return msgspec.structs.replace(found, events=(first, second, *others))

    place.log.page = odd  # type: ignore[method-assign]
    collector = place.collector()
    collector.collect("1")
    told = {record.message: vars(record) for record in caplog.records}
    assert told["entries.untimed"]["entries"] == told["entries.shared_an_id"]["entries"] == 1
    caplog.clear()
    place.log.page = page  # type: ignore[method-assign]
    place.log.now += MINUTE
    collector.collect("1")
    assert messages(caplog) == []


def test_a_gap_is_told_when_it_opens_and_when_it_closes(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="poller.pipeline.collect")
    place.log.rejected = Window(BEGAN - 120, BEGAN - 119)
    collector = place.collector()
    (gap,) = collector.collect("1").gaps
    place.log.rejected = None
    place.log.now = float(gap.next_try_at)
    collector.collect("1")
    gaps = [entry for entry in messages(caplog) if entry[1].startswith("gap.")]
    assert gaps == [("ERROR", "gap.opened"), ("INFO", "gap.closed")]


# Gaps and spans


def test_a_span_that_fails_is_read_after_the_present_the_next_time(place: Place) -> None:
    collector = place.collector()
    collector.collect("1")
    place.state.request_reread(["default"], BEGAN - 2 * H)
    collector.discover()
    place.log.refused = Window(BEGAN - 2 * H, BEGAN - H)
    place.log.now += MINUTE
    assert collector.collect("1").failure is not None
    assert place.row().watermark == BEGAN + MINUTE, "the present is read all the same"
    asked: list[int] = []
    page = place.log.page

    def noting(contract: str, window: Window, *args: Any, **options: Any) -> Any:
        asked.append(window.start)
        return page(contract, window, *args, **options)

    place.log.page = noting  # type: ignore[method-assign]
    place.log.now += MINUTE
    collector.collect("1")
    assert (asked[0] > BEGAN - H, BEGAN - 2 * H in asked) == (True, True)
    place.log.refused = None
    collector.collect("1")
    place.state.contracts.add_range("1", Window(BEGAN - 3 * H, BEGAN - 2 * H), "since")
    asked.clear()
    collector.collect("1")
    assert asked[0] == BEGAN - 3 * H, "where nothing failed, what is older comes first"


def test_of_many_gaps_that_are_due_so_many_are_tried_as_wanted_those_first_that_wait_longest(place: Place) -> None:
    place.log.rejected = Window(BEGAN - 250, BEGAN - 60)
    place.log.seconds["1"] = [BEGAN - 240, BEGAN - 180, BEGAN - 120]
    for tries_at_once in (1, 2):
        collector = place.collector(gaps_at_once=tries_at_once)
        collector.collect("1")
        due = max((gap.next_try_at for gap in place.state.gaps.find("1")), default=BEGAN)
        place.log.now = float(due)
        before = {gap.id: gap.tries for gap in place.state.gaps.find("1")}
        assert before
        collector.collect("1")
        tried = [gap.id for gap in place.state.gaps.find("1") if gap.tries != before.get(gap.id)]
        assert len(tried) == min(tries_at_once, len(before))
