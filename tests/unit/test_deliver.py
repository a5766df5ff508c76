"""The deliverer: what it does if a sink accepts all, a part or nothing of a batch, and what a full disk changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from poller.config import SecretSource
from poller.config.sinks import FileSink, HttpSink, LoggingServiceSink
from poller.config.sinks import StdoutSink as Settings
from poller.core.delivery import (
    HALVE_AT_ATTEMPT,
    PARKED_RETRY_SECONDS,
    Accepted,
    CredentialsRefused,
    Outcome,
    Refused,
    RetryAfter,
    Settle,
    TooLarge,
)
from poller.core.errors import LeaseLostError, OutputError, StateFullError
from poller.core.events import Event, OutboxEvent
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.sinks.base import OwnOutput, Sink
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.sqlite import State
from tests.states import commit, enrolled, events

CONTRACT = "31960001"
EVENTS = [Event(second * 1_000_000, bytes([second]) * 16, b"{}", True, True) for second in range(1, 4)]


class Taking(StdoutSink):
    """Accepts everything and keeps it."""

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
    commit(state, EVENTS, contract=CONTRACT, window=Window(0, 9), now=9)

    def fail(*args: Any, **options: Any) -> None:
        raise StateFullError("no space left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(deliverer._held(), "settle", fail)
        with pytest.raises(StateFullError):
            deliverer.step()
    deliverer.finish()
    assert len(sink.taken) == 3
    assert [row.waiting for row in state.overview().sinks] == [0]
    deliverer.finish()
    assert deliverer.step().settled == 0
    assert len(sink.taken) == 3
    state.close()


def test_an_event_that_was_neither_taken_nor_refused_cannot_leave_the_outbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State.open(tmp_path, "run")
    deliverer = Deliverer(state.outbox, Taking())
    state.contracts.enrol([CONTRACT], "default", 0, 0)
    commit(state, EVENTS, contract=CONTRACT, window=Window(0, 9), now=9)
    with monkeypatch.context() as patch:
        # A wrong decision: it settles a batch although one event must be sent again.
        patch.setattr("poller.pipeline.deliver.decide", lambda *args, **options: Settle({}, (1,), 200))
        with pytest.raises(RuntimeError, match="neither taken nor refused"):
            deliverer.step()
    assert [row.waiting for row in state.overview().sinks] == [3]
    assert deliverer.step().settled == 3
    state.close()


class Scripted(StdoutSink):
    """Answers as `answer` says, and keeps the number of events of each send."""

    def __init__(self, answer: Callable[[Sequence[OutboxEvent]], Outcome], **settings: Any) -> None:
        super().__init__(Settings(**{"name": "out", "batch_age_seconds": 0.0, **settings}))
        self.sizes: list[int] = []
        self.taken: list[int] = []
        self._answer = answer

    def send(self, events: Any) -> Outcome:
        self.sizes.append(len(events))
        outcome = self._answer(events)
        if isinstance(outcome, Accepted):
            self.taken += [event.time_us for index, event in enumerate(events) if index not in outcome.retry]
        return outcome


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State.open(tmp_path, "run")
    state.contracts.enrol([CONTRACT], "default", 0, 0)
    yield state
    state.close()


def collect(state: State, count: int, start: int = 1) -> None:
    events = [Event(number, number.to_bytes(16), b"{}", True, True) for number in range(start, start + count)]
    commit(state, events, contract=CONTRACT, window=Window(0, 9), now=9)


def run(deliverer: Deliverer, clock: Clock, sends: int = 1000, *, until: Callable[[], bool] = lambda: False) -> None:
    """Deliver until nothing waits, in at most `sends` steps. The clock moves over each wait."""
    for _ in range(sends):
        wait = deliverer.step().wait_seconds
        if wait is None or until():
            return
        clock.now += wait


def test_a_batch_that_times_out_again_and_again_is_sent_in_smaller_ones(state: State, clock: Clock) -> None:
    fits = lambda events: Accepted() if len(events) <= 30 else RetryAfter("time-out", is_size_suspect=True)  # noqa: E731
    sink = Scripted(fits)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 100)
    run(deliverer, clock)
    assert sink.sizes[: HALVE_AT_ATTEMPT + 2] == [100] * HALVE_AT_ATTEMPT + [50, 25]
    assert sink.taken == list(range(1, 101))
    collect(state, 100, 101)
    sink.sizes.clear()
    run(deliverer, clock)
    assert sink.sizes.count(50) <= 1, "a size that fails is not tried again at once"
    assert sink.taken == list(range(1, 201))


def test_batches_grow_to_their_size_again_when_an_outage_is_over(state: State, clock: Clock) -> None:
    answers = iter([RetryAfter("503", is_size_suspect=True)] * 20)
    sink = Scripted(lambda events: next(answers, Accepted()))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 500)
    run(deliverer, clock)
    assert sink.sizes[20:25] == [1, 2, 4, 8, 16]
    assert len(sink.sizes) < 40
    assert sink.taken == list(range(1, 501))


def test_how_often_a_batch_failed_outlives_a_restart(state: State, clock: Clock) -> None:
    sink = Scripted(lambda events: RetryAfter("time-out", is_size_suspect=True))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 8)
    run(deliverer, clock, HALVE_AT_ATTEMPT - 1)
    deliverer.abandon()
    again = Deliverer(state.outbox, sink, clock=clock)
    run(again, clock, 3)
    assert sink.sizes == [8] * HALVE_AT_ATTEMPT + [4]


def test_a_sink_that_takes_one_event_of_many_is_paced_and_what_it_took_first_is_settled(
    state: State, clock: Clock
) -> None:
    rest: Callable[[Sequence[OutboxEvent]], Outcome] = lambda events: Accepted(  # noqa: E731
        retry=tuple(range(1, len(events))), later=RetryAfter("throttled", 7.0)
    )
    sink = Scripted(rest)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 5)
    for number in range(1, 5):
        progress = deliverer.step()
        assert progress.settled == 1
        assert progress.wait_seconds is not None
        assert progress.wait_seconds >= 7.0
        assert deliverer.step().settled == 0
        (row,) = state.outbox.sinks()
        assert (row.delivered, row.attempts, row.failure) == (number, number, "throttled")
        clock.now += progress.wait_seconds
    run(deliverer, clock)
    assert sink.taken == [1, 2, 3, 4, 5]
    assert sink.sizes == [5, 4, 3, 2, 1]


def test_events_taken_behind_one_that_was_not_are_not_sent_again(state: State, clock: Clock) -> None:
    answers = iter([Accepted(retry=(1, 3), later=RetryAfter("throttled"))])
    sink = Scripted(lambda events: next(answers, Accepted()))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 5)
    run(deliverer, clock)
    assert sink.sizes == [5, 2]
    assert sorted(sink.taken) == [1, 2, 3, 4, 5]
    assert state.overview().sinks[0].waiting == 0


def test_the_last_batch_does_not_wait_to_be_filled(state: State, clock: Clock) -> None:
    sink = Scripted(lambda events: Accepted(), batch_age_seconds=3600.0)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 5)
    clock.now = 10.0
    assert deliverer.step() == (0, 3599.0)
    assert deliverer.step(is_last=True).settled == 5


def test_a_sink_that_crashes_waits_and_says_why_without_a_word_of_the_event(state: State, clock: Clock) -> None:
    def crash(events: Sequence[OutboxEvent]) -> Outcome:
        raise KeyError("canary of an event")

    kinds: list[str] = []
    deliverer = Deliverer(state.outbox, Scripted(crash), clock=clock, on_failed=kinds.append)
    collect(state, 5)
    for attempt in range(1, 4):
        with pytest.raises(KeyError) as raised:
            deliverer.step()
        clock.now += deliverer.hold(raised.value) + 1
        (row,) = state.outbox.sinks()
        assert row.attempts == attempt
        assert row.failure.startswith("internal error: KeyError in test_deliver.py:")
        assert "canary" not in row.failure
    assert kinds == ["crashed"] * 3


def test_a_batch_that_makes_a_sink_crash_is_halved_at_the_third_time_and_then_each_time(
    state: State, clock: Clock
) -> None:
    def crash(events: Sequence[OutboxEvent]) -> Outcome:
        if len(events) > 3:
            raise ValueError("too many")
        return Accepted()

    sink = Scripted(crash)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 20)
    for _ in range(40):
        try:
            clock.now += deliverer.step().wait_seconds or 0.0
        except ValueError as error:
            clock.now += deliverer.hold(error)
    assert sink.sizes[: HALVE_AT_ATTEMPT + 3] == [20] * HALVE_AT_ATTEMPT + [10, 5, 2]
    assert sink.taken == list(range(1, 21))


def test_what_comes_before_an_event_that_makes_a_sink_crash_is_delivered(state: State, clock: Clock) -> None:
    def crash_at_7(events: Sequence[OutboxEvent]) -> Outcome:
        if any(event.time_us == 7 for event in events):
            raise ValueError("year 10000 is out of range")
        return Accepted()

    sink = Scripted(crash_at_7)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 8)
    for _ in range(30):
        try:
            deliverer.step()
        except ValueError as error:
            clock.now += deliverer.hold(error)
    assert sink.taken == [1, 2, 3, 4, 5, 6]


def test_a_sink_without_an_output_waits_with_the_reason(state: State, clock: Clock) -> None:
    deliverer = Deliverer(state.outbox, Scripted(lambda events: Accepted()), clock=clock)
    collect(state, 1)
    seconds = deliverer.hold(OutputError("the reader of our output has gone away", hint="start it again"))
    (row,) = state.outbox.sinks()
    assert "the reader of our output" in row.failure
    assert "start it again" in row.failure
    assert row.retry_at == clock.now + seconds
    clock.now += seconds
    run(deliverer, clock)
    assert state.outbox.sinks()[0].delivered == 1


def test_a_parked_sink_is_tried_at_once_after_a_start(state: State, clock: Clock) -> None:
    answers = iter([CredentialsRefused("HTTP 401", 401)])
    sink = Scripted(lambda events: next(answers, Accepted()))
    first = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 1)
    assert first.step() == (0, PARKED_RETRY_SECONDS)
    first.abandon()
    again = Deliverer(state.outbox, sink, clock=clock)
    assert again.step().settled == 1


def test_a_sink_that_waits_is_tried_at_once_when_a_person_asks_for_it(state: State, clock: Clock) -> None:
    answers = iter([CredentialsRefused("HTTP 401"), Accepted()])
    deliverer = Deliverer(state.outbox, Scripted(lambda events: next(answers), retry_max_seconds=600.0), clock=clock)
    collect(state, 5)
    wait = deliverer.step().wait_seconds
    assert wait
    clock.now += wait / 2
    assert deliverer.step().wait_seconds == wait / 2
    assert state.outbox.retry("out", clock.now)
    assert deliverer.step().settled == 5
    assert not state.outbox.retry("out", clock.now), "it waits for nothing any more"
    assert not state.outbox.retry("no such sink", clock.now)


def test_a_parked_sink_says_what_to_do_with_the_key_it_has(state: State, clock: Clock) -> None:
    sink = Scripted(lambda events: CredentialsRefused("HTTP 401"))
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 1)
    deliverer.step()
    (row,) = state.outbox.sinks()
    assert row.failure.startswith("HTTP 401 (")
    key = SecretSource("file", "/etc/key", path="sinks[0].api_key")
    sink.settings = LoggingServiceSink(name="out", url="https://127.0.0.1", tag="activityLog", api_key=key)  # type: ignore[assignment]
    assert "/etc/key" in sink.key_remedy


def test_after_a_success_the_next_failure_waits_as_the_first_one_did(state: State, clock: Clock) -> None:
    answers: Iterator[Outcome] = iter(
        [RetryAfter("no"), RetryAfter("no"), RetryAfter("no"), Accepted(), RetryAfter("no"), Accepted()]
    )
    sink = Scripted(lambda events: next(answers), batch_events=1)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 2)
    attempts: list[int] = []
    for _ in range(6):
        clock.now += deliverer.step().wait_seconds or 0
        attempts.append(state.outbox.sinks()[0].attempts)
    assert attempts == [1, 2, 3, 0, 1, 0]


def test_a_place_that_was_lost_drops_what_is_in_flight_and_is_taken_anew(state: State, clock: Clock) -> None:
    lost: list[bool] = [True]

    def lose(events: Sequence[OutboxEvent]) -> Outcome:
        if lost and lost.pop():
            place = deliverer._held()
            assert place is not None
            place.release()  # as if another replica took it over during this send
        return Accepted()

    sink = Scripted(lose)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 3)
    with pytest.raises(LeaseLostError):
        deliverer.step(is_last=True)
    assert state.outbox.sinks()[0].delivered == 0
    assert deliverer.step(is_last=True).settled == 3
    assert sink.sizes == [3, 3], "at most the batch in flight is repeated"


@pytest.mark.backends("postgres")
def test_a_replica_that_lost_its_lease_while_it_sent_delivers_again_when_it_has_begun_anew(
    opened: Callable[[], Any], clock: Clock
) -> None:
    state = enrolled(opened())
    lost: list[bool] = [True]

    def lose(events: Sequence[OutboxEvent]) -> Outcome:
        if lost and lost.pop():
            query = "UPDATE contracts SET holder = gen_random_uuid() WHERE use_id = %s"
            state._database.write(lambda connection: connection.execute(query, (state._use,)))
        return Accepted()

    sink = Scripted(lose)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    commit(state, events(1, 2, 3))
    with pytest.raises(LeaseLostError):
        deliverer.step(is_last=True)
    state.contracts.share(["1"])
    assert deliverer.step(is_last=True).settled == 3
    assert sink.sizes == [3, 3]
    state.close()


def test_nothing_is_sent_once_the_place_is_lost(state: State, clock: Clock) -> None:
    sink = Scripted(lambda events: Accepted())
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 3)
    deliverer.abandon()
    with pytest.raises(LeaseLostError):
        deliverer.step(is_last=True)
    with pytest.raises(LeaseLostError):
        deliverer.step(is_last=True)
    assert sink.sizes == []


# Bounds


class Network(Sink):
    """A sink on a network, which answers as `answer` says."""

    def __init__(self, answer: Callable[[Sequence[OutboxEvent]], Outcome] = lambda events: Accepted(), **settings: Any):
        super().__init__(HttpSink(**{"name": "out", "url": "http://x", "batch_age_seconds": 0.0, **settings}))
        self.answer = answer
        self.sizes: list[int] = []

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        self.sizes.append(len(events))
        return self.answer(events)

    def probe(self) -> Outcome:
        return Accepted()


@pytest.mark.parametrize(("now", "wait"), [(9.0, 60.0), (68.9, 0.1), (69.0, 0.0), (8.9, 0.0), (9.5, 59.5)], ids=str)
def test_a_batch_waits_to_be_filled_until_its_first_event_is_old_enough(
    state: State, clock: Clock, now: float, wait: float
) -> None:
    sink = Network(batch_age_seconds=60.0, batch_events=10)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 3)
    clock.now = now
    result = deliverer.step()
    assert (result.settled, sink.sizes) == ((0, []) if wait else (3, [3]))
    assert (result.wait_seconds or 0.0) == pytest.approx(wait)


@pytest.mark.parametrize(("count", "sizes"), [(9, []), (10, [10]), (11, [10])])
def test_a_full_batch_or_one_with_more_behind_it_does_not_wait(
    state: State, clock: Clock, count: int, sizes: list[int]
) -> None:
    sink = Network(batch_age_seconds=3600.0, batch_events=10)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, count)
    deliverer.step()
    assert sink.sizes == sizes


def test_a_batch_that_is_full_by_its_bytes_does_not_wait(state: State, clock: Clock) -> None:
    sink = Network(batch_age_seconds=3600.0, batch_bytes=1024)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    events = [Event(number, number.to_bytes(16), b"x" * 600, True, True) for number in (1, 2)]
    commit(state, events, contract=CONTRACT, window=Window(0, 9), now=9)
    deliverer.step()
    assert sink.sizes == [1]


def test_waits_double_from_the_first_to_the_longest(
    state: State, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.pipeline.deliver.random.random", lambda: 1.0)
    sink = Network(lambda events: RetryAfter("no"), retry_initial_seconds=2.0, retry_max_seconds=15.0)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 1)
    waits = []
    for _ in range(5):
        wait = deliverer.step().wait_seconds
        assert wait is not None
        assert deliverer.step() == (0, wait), "it does not send until then"
        waits.append(wait)
        clock.now += wait
    assert (waits, len(sink.sizes)) == ([2.0, 4.0, 8.0, 15.0, 15.0], 5)
    (row,) = state.outbox.sinks()
    assert (row.attempts, row.failure, row.parked_at) == (5, "no", None)
    assert (row.postponed_at, row.retry_at) == (clock.now - 15.0, clock.now)


@pytest.mark.parametrize(
    ("outcome", "kinds"),
    [
        (Accepted(), []),
        (Accepted(refused={0: "no"}), []),
        (Accepted(retry=(1,)), ["partly_accepted"]),
        (RetryAfter("no"), ["unavailable"]),
        (TooLarge("no"), ["too_large"]),
        (Refused("no"), ["refused"]),
        (CredentialsRefused("no"), ["credentials_refused"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_send_that_is_not_accepted_is_told_by_its_kind(
    state: State, clock: Clock, outcome: Outcome, kinds: list[str]
) -> None:
    told: list[str] = []
    deliverer = Deliverer(state.outbox, Network(lambda events: outcome), clock=clock, on_failed=told.append)
    collect(state, 2)
    deliverer.step()
    assert told == kinds


@pytest.mark.parametrize(("now", "is_sent"), [(99.9, True), (100.0, False), (100.9, False), (101.0, True)])
def test_after_a_restart_it_waits_until_the_next_try_unless_the_clock_was_set_back(
    state: State, clock: Clock, monkeypatch: pytest.MonkeyPatch, now: float, is_sent: bool
) -> None:
    monkeypatch.setattr("poller.pipeline.deliver.random.random", lambda: 1.0)
    first = Deliverer(state.outbox, Network(lambda events: RetryAfter("no")), clock=clock)
    collect(state, 1)
    assert first.step().wait_seconds == 1.0
    first.abandon()
    again = Network()
    deliverer = Deliverer(state.outbox, again, clock=clock)
    clock.now = now
    deliverer.step()
    assert again.sizes == [1] * is_sent


def test_a_parked_sink_is_parked_since_the_first_refusal_and_until_it_takes_something(
    state: State, clock: Clock
) -> None:
    answers = iter([CredentialsRefused("HTTP 401"), CredentialsRefused("HTTP 403"), Accepted()])
    deliverer = Deliverer(state.outbox, Network(lambda events: next(answers)), clock=clock)
    collect(state, 1)
    assert deliverer.refusal == ""
    for reason in ("HTTP 401", "HTTP 403"):
        assert deliverer.step() == (0, PARKED_RETRY_SECONDS)
        assert deliverer.refusal == reason
        (row,) = state.outbox.sinks()
        assert (row.parked_at, row.failure) == (100.0, f"{reason} (correct the credentials)")
        clock.now += PARKED_RETRY_SECONDS
    assert deliverer.step().settled == 1
    (row,) = state.outbox.sinks()
    assert (deliverer.refusal, row.parked_at, row.failure, row.attempts) == ("", None, "", 0)


def test_a_failure_of_another_kind_ends_that_it_is_parked(state: State, clock: Clock) -> None:
    answers = iter([CredentialsRefused("HTTP 401"), RetryAfter("HTTP 503")])
    deliverer = Deliverer(state.outbox, Network(lambda events: next(answers)), clock=clock)
    collect(state, 1)
    deliverer.step()
    clock.now += PARKED_RETRY_SECONDS
    deliverer.step()
    (row,) = state.outbox.sinks()
    assert (row.parked_at, row.failure) == (None, "HTTP 503")


def test_what_crosses_a_network_is_news_and_what_is_printed_is_not(
    state: State, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="poller.pipeline.deliver")
    collect(state, 0)
    for sink, name in ((Network(name="network"), "INFO"), (Scripted(lambda events: Accepted(), name="pipe"), "DEBUG")):
        deliverer = Deliverer(state.outbox, sink, clock=clock)
        collect(state, 1, len(caplog.records) + 1)
        deliverer.step()
        assert [record.levelname for record in caplog.records if record.message == "batch.sent"][-1] == name


def test_a_batch_in_parts_is_settled_part_by_part(state: State, clock: Clock) -> None:
    class InParts(Network):
        def parts(self, events: Sequence[OutboxEvent]) -> list[Sequence[OutboxEvent]]:
            return [events[:1], events[1:]]

    sink = InParts()
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 3)
    assert [deliverer.step() for _ in range(3)] == [(1, 0.0), (2, 0.0), (0, None)]
    assert sink.sizes == [1, 2]


# The place of a sink


def test_a_place_is_one_deliverers_until_it_gives_it_back(state: State, clock: Clock) -> None:
    first = Deliverer(state.outbox, Network(), clock=clock)
    with pytest.raises(LeaseLostError, match="its place is another's") as raised:
        Deliverer(state.outbox, Network(), clock=clock)
    assert raised.value.sink == "out"
    collect(state, 1)
    first.abandon()
    with pytest.raises(LeaseLostError, match="its place") as raised:
        first.step()
    assert raised.value.sink == "out"
    with pytest.raises(LeaseLostError):
        first.step()
    assert Deliverer(state.outbox, Network(), clock=clock).step().settled == 1


def test_a_place_is_free_again_where_its_output_cannot_be_gone_on_with(state: State, clock: Clock) -> None:
    class Changed(Scripted):
        def resume(self, offset: int | None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Deliverer(state.outbox, Changed(lambda events: Accepted()), clock=clock)
    Deliverer(state.outbox, Network(), clock=clock)


class Written(OwnOutput):
    """A sink with an output of its own, whose length is stored in the state."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(FileSink(name="out", path="a.ndjson", batch_age_seconds=0.0, **settings))
        self.resumed: list[int | None] = []
        self.early: int | None = None

    def resume(self, offset: int | None) -> None:
        self.resumed.append(offset)
        super().resume(offset)

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        if self.early is not None:
            self.note_offset(self.early)
        self.output_offset = (self.output_offset or 0) + len(events)
        return Accepted()

    def probe(self) -> Outcome:
        return Accepted()


def test_how_far_its_own_output_is_goes_with_each_batch_and_is_known_after_a_restart(
    state: State, clock: Clock
) -> None:
    sink = Written()
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 2)
    deliverer.step()
    assert state.outbox.sinks()[0].output_offset == 2
    deliverer.abandon()
    again = Written()
    Deliverer(state.outbox, again, clock=clock)
    assert (sink.resumed, again.resumed, again.output_offset) == ([None], [2], 2)


def test_what_must_be_known_before_it_writes_is_in_the_state_at_once(state: State, clock: Clock) -> None:
    sink = Written()
    sink.early = 7
    seen: list[int | None] = []
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    send = sink.send

    def noting(events: Sequence[OutboxEvent]) -> Outcome:
        outcome = send(events)
        seen.append(state.outbox.sinks()[0].output_offset)
        return outcome

    sink.send = noting  # type: ignore[method-assign]
    collect(state, 1)
    deliverer.step()
    assert (seen, state.outbox.sinks()[0].output_offset) == ([7], 1)


def test_where_every_machine_writes_a_part_there_is_no_one_offset(state: State, clock: Clock) -> None:
    sink = Written(shared=True)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collect(state, 2)
    deliverer.step()
    assert (sink.resumed, state.outbox.sinks()[0].output_offset) == ([], None)


def test_a_sink_with_an_output_of_its_own_has_one_order_of_all(state: State, clock: Clock) -> None:
    """Such a sink waits for a contract that it does not take. A sink on a network postpones only that contract."""
    state.contracts.enrol(["2"], "default", 0, 0)
    for sink, postponed in ((Scripted(lambda events: RetryAfter("no"), name="a"), 0), (Network(name="b"), 2)):
        sink.answer = sink._answer = lambda events: RetryAfter("no")  # type: ignore[union-attr]
        deliverer = Deliverer(state.outbox, sink, clock=clock)
        collect(state, 1, 10 + postponed)
        commit(
            state, [Event(5, bytes([50 + postponed]) * 16, b"{}", True, True)], contract="2", window=Window(0, 9), now=9
        )
        for _ in range(12):
            clock.now += deliverer.step().wait_seconds or 0
        (row,) = [row for row in state.overview().sinks if row.sink.name == sink.name]
        assert len(row.postponed) == postponed
