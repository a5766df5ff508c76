"""The sink `loki`: what Loki is sent, in which requests, and that no answer makes an event lost or seen twice."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import responses
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.config import Config, LokiSink
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.errors import StoppedError
from poller.core.events import OutboxEvent
from poller.simulator.loki import MAX_BEHIND_NS
from poller.sinks import loki
from poller.sinks.base import Context
from poller.sinks.side_by_side import Pace, side_by_side
from poller.system.liveness import Workers
from tests.loki import Loki, Outbox, deliver

NOON = int(datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp())
NOW = int(time.time())
HOUR = 3600
URL = "https://intake.example"
LABELS = {"tag_name": "activityLog"}


def event(
    age_seconds: float = 0.0,
    *,
    contract: str = "31960001",
    ordinal: int = 0,
    line: bytes = b'{"a":"\\u00e9\\"\xc3\xa9"}',
    collected_at: int = NOON,
) -> OutboxEvent:
    """An event that happened `age_seconds` before it was collected."""
    time_us = round((collected_at - age_seconds) * 1_000_000)
    return OutboxEvent(contract, time_us, collected_at, blake2b(line, digest_size=16).digest(), ordinal, line)


def numbered(
    ages: Sequence[float], *, contract: str = "1", collected_at: int = NOW, size: int = 20
) -> list[OutboxEvent]:
    """Events of these ages, each with a different line."""
    return [
        event(
            age,
            contract=contract,
            collected_at=collected_at,
            line=f'{{"c":"{contract}","n":{number},"at":{collected_at - age}}}'.ljust(size).encode(),
        )
        for number, age in enumerate(ages)
    ]


def of_week(contract: str, step_seconds: int) -> list[OutboxEvent]:
    """The last seven days of a contract, collected just now, oldest first."""
    return numbered(range(7 * 24 * HOUR - HOUR, 0, -step_seconds), contract=contract)


def lines_of(events: Sequence[OutboxEvent]) -> list[bytes]:
    return sorted(event.line for event in events)


def sink_at_noon(**keys: Any) -> loki.LokiSink:
    table = LokiSink(**{"name": "loki", "url": URL, **keys})
    return loki.LokiSink(table, Context(Config(), threading.Event()), clock=lambda: NOON)


# What is sent


def test_a_request_holds_one_stream_oldest_first_and_the_lines_as_they_are() -> None:
    found = Loki()
    sink = found.sink(clock=lambda: NOON)
    bodies: list[dict[str, Any]] = []
    found.post = lambda body, below="": bodies.append(json.loads(body)) or Accepted(status=204)  # type: ignore[method-assign,func-returns-value]
    events = [event(1), event(2), event(3, contract="2"), event(0)]
    assert sink.send([*events]) == Accepted(status=204)
    (mine, other) = sorted(bodies, key=lambda body: -len(body["streams"][0]["values"]))
    assert mine == {
        "streams": [
            {
                "stream": {"contract": "31960001", "tag_name": "activityLog"},
                "values": [[f"{NOON - age}000000000", events[0].line.decode()] for age in (2, 1, 0)],
            }
        ]
    }
    assert other["streams"][0]["stream"]["contract"] == "2"


def test_equal_entries_are_a_nanosecond_apart() -> None:
    duplicates = [event(1, ordinal=ordinal) for ordinal in (0, 1, 2, 60_000)]
    assert [loki.time_ns(duplicate) % 1000 for duplicate in duplicates] == [0, 1, 2, 999]


@pytest.mark.parametrize(
    ("age_seconds", "late"),
    [
        *((-60, 0), (0, 0), (1800, 0), (1800.000001, 4), (3600, 4), (3600.000001, 3)),
        *((2 * HOUR + 1, 2), (3 * HOUR + 1, 1), (4 * HOUR + 1, 4), (40 * HOUR, 1)),
    ],
)
def test_an_event_collected_late_goes_to_one_of_a_few_late_streams_by_its_hour(age_seconds: float, late: int) -> None:
    assert sink_at_noon()._stream_of(event(age_seconds)) == loki.Stream("31960001", late)
    body = json.loads(loki.encode_push(loki.Stream("1", late), [event()], LABELS))
    assert body["streams"][0]["stream"].get("late", "0") == str(late)


@given(
    st.lists(st.tuples(st.sampled_from("12"), st.integers(0, 200_000), st.integers(0, 3 * HOUR)), max_size=80),
    st.integers(2, 6),
)
def test_no_stream_spans_more_than_an_hour_of_what_is_not_settled(
    drawn: Sequence[tuple[str, int, int]], late_streams: int
) -> None:
    events = [event(age, contract=contract, collected_at=NOON + pause) for contract, age, pause in drawn]
    sink = sink_at_noon(late_streams=late_streams)
    parts = list(sink.parts(events))
    assert [one for part in parts for one in part] == events
    for part in parts:
        for stream in {sink._stream_of(one) for one in part}:
            times = [loki.time_ns(one) for one in part if sink._stream_of(one) == stream]
            assert max(times) - min(times) <= MAX_BEHIND_NS


def test_a_batch_of_what_came_in_time_is_not_cut() -> None:
    events = [event(age, contract=str(contract)) for contract in range(50) for age in (1700, 1)]
    assert next(iter(sink_at_noon().parts(events))) is events


# Nothing is lost, and nothing is seen twice


def test_an_event_two_hours_behind_its_stream_is_stored_though_another_stream_is_fine() -> None:
    """Loki answers 204 for the last stream of a push, and drops the refused events of the first."""
    found = Loki()
    sink = found.sink()
    assert sink.send(numbered([0], contract="A")) == Accepted(status=204)
    behind = numbered([0], contract="A", collected_at=NOW - 2 * HOUR)
    outbox = Outbox([*behind, *numbered([0], contract="B")])
    deliver(outbox, sink)
    assert found.intake.stored == 3
    assert outbox.dead == []


def test_a_contract_beyond_the_limit_of_streams_waits_and_the_others_do_not() -> None:
    found = Loki(loki_max_streams=2)
    sink = found.sink()
    events = [one for contract in "CABD" for one in numbered([2, 1], contract=contract)]
    outcome = sink.send(events)
    assert isinstance(outcome, Accepted)
    assert len(outcome.retry) == 4
    assert outcome.later is not None
    assert "stream limit" in outcome.later.reason
    # Smaller batches would not help.
    assert not outcome.later.is_size_suspect
    assert found.lines == lines_of([one for index, one in enumerate(events) if index not in outcome.retry])
    found.settings = Loki(loki_max_streams=4).settings
    outbox = Outbox([events[index] for index in outcome.retry])
    deliver(outbox, sink)
    assert found.lines == lines_of(events)


def test_what_a_limit_per_stream_refuses_is_sent_again() -> None:
    found = Loki(loki_stream_bytes_per_second=300_000, loki_stream_burst_bytes=30_000)
    events = [one for contract in "AB" for one in numbered([60] * 60, contract=contract, size=1000)]
    outbox = Outbox(events)
    deliver(outbox, found.sink())
    assert found.lines == lines_of(events)
    assert outbox.dead == []


def test_a_request_larger_than_the_burst_of_the_tenant_is_sent_in_halves() -> None:
    found = Loki(loki_max_body_bytes=10_000, loki_bytes_per_second=10_000_000)
    events = numbered([60] * 100, size=500)
    outbox = Outbox(events)
    deliver(outbox, found.sink())
    assert found.lines == lines_of(events)
    assert outbox.dead == []


def test_a_stream_stays_below_the_rate_of_a_shard_also_where_answers_are_lost() -> None:
    rate = 400_000
    found = Loki(lambda number: "lost-ack" if number % 5 == 2 else "", loki_shard_bytes_per_second=rate)
    events = numbered([60] * 400, size=1000)
    started = time.monotonic()
    deliver(Outbox(events), found.sink(stream_bytes_per_second=rate))
    assert set(found.intake.streams) == {'{contract="1", tag_name="activityLog"}'}
    assert found.lines == lines_of(events)
    assert time.monotonic() - started < 4 * 400_000 / rate


def test_seven_days_of_many_contracts_need_a_handful_of_streams_each() -> None:
    contracts = [str(number) for number in range(40)]
    found = Loki(loki_max_streams=40 * 5)
    events = [one for contract in contracts for one in of_week(contract, 6 * HOUR + 60)]
    outbox = Outbox(events)
    deliver(outbox, found.sink())
    assert found.lines == lines_of(events)
    assert outbox.dead == []
    assert len(found.intake.streams) <= 40 * 5


def test_a_second_pass_over_the_same_days_is_taken_by_further_streams() -> None:
    found = Loki(loki_max_streams=10)
    first, second = of_week("1", HOUR), [one.with_line(one.line + b" ") for one in of_week("1", HOUR)]
    outbox = Outbox([*first, *second])
    deliver(outbox, found.sink())
    assert found.lines == lines_of([*first, *second])
    assert outbox.dead == []
    assert len(found.intake.streams) == 8


PASSES = st.lists(
    st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 40 * HOUR)), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(PASSES, st.integers(0, 2**32), st.integers(1, 30), st.integers(2, 5))
def test_whatever_order_events_come_in_each_is_stored_once_through_lost_answers_and_kills(
    passes: Sequence[Sequence[tuple[str, int]]], dice: int, batch_events: int, late_streams: int
) -> None:
    """Each pass is oldest first, like a poll, a backfill or a replay. From one pass to the next, time may go back."""
    faults = ("", "", "lost-ack", "503", "", "")
    found = Loki(lambda number: faults[(dice >> number % 28) % len(faults)] if number % 7 < 5 else "")
    events: list[OutboxEvent] = []
    for number, ages in enumerate(passes):
        for contract in "AB":
            mine = sorted((age for name, age in ages if name == contract), reverse=True)
            made = numbered(mine, contract=contract, collected_at=NOW - len(passes) + number)
            events += [one.with_line(one.line + b" %d" % number) for one in made]
    outbox = Outbox(events)
    keys = {"batch_events": batch_events, "late_streams": late_streams}
    for steps in (dice % 5, dice % 7, dice % 3):  # each ends as after a kill
        deliver(outbox, found.sink(**keys), steps=steps)
    deliver(outbox, found.sink(**keys))
    assert (outbox.waiting, outbox.dead) == ([], [])
    assert found.lines == lines_of(events)


def test_an_event_that_loki_refuses_becomes_a_dead_letter_and_the_others_arrive() -> None:
    found = Loki()
    bad = event(1, contract="1", collected_at=NOW + 3600)
    good = [one for contract in "123" for one in numbered([3, 2], contract=contract)]
    outbox = Outbox([good[0], bad, *good[1:]])
    deliver(outbox, found.sink())
    assert found.lines == lines_of(good)
    assert [letter.reason[:8] for letter in outbox.dead] == ["HTTP 400"]
    assert [letter.status for letter in outbox.dead] == [400]


# Parallel requests


def test_the_streams_of_a_batch_go_side_by_side_but_no_more_than_there_are_connections() -> None:
    found = Loki()
    barrier = threading.Barrier(4)
    found.before_answer = lambda: barrier.wait(10)
    events = [one for contract in range(8) for one in numbered([1], contract=str(contract))]
    assert found.sink(connections=4).send(events) == Accepted(status=204)
    assert found.most_at_once == 4


def test_a_loki_that_is_down_is_asked_no_more_often_than_there_are_connections() -> None:
    found = Loki(lambda number: "503")
    events = [one for contract in range(100) for one in numbered([1], contract=str(contract))]
    assert isinstance(found.sink(connections=4).send(events), RetryAfter)
    assert found.requests <= 2 * 4


def test_what_was_accepted_is_not_sent_again_because_another_stream_failed() -> None:
    found = Loki(lambda number: "503" if number == 1 else "")
    events = [one for contract in range(5) for one in numbered([1], contract=str(contract))]
    outbox = Outbox(events)
    deliver(outbox, found.sink(connections=1))
    assert found.requests == 6
    assert found.intake.accepted == 5


def test_a_refused_key_stops_the_batch_at_once() -> None:
    found = Loki()
    found.settings = Loki(loki_authorization="Bearer x").settings
    events = [one for contract in range(50) for one in numbered([1], contract=str(contract))]
    assert isinstance(found.sink(connections=1).send(events), CredentialsRefused)
    assert found.requests == 1


def test_when_nothing_is_taken_the_outcome_says_what_helps() -> None:
    failed = {"wait": RetryAfter("HTTP 503"), "halve": Refused("HTTP 400", 400), "park": CredentialsRefused("HTTP 401")}
    for kinds, kind in ((("wait", "halve"), Refused), (("wait", "park"), CredentialsRefused), (("wait",), RetryAfter)):
        tally = loki.Tally(4)
        for number, name in enumerate(kinds):
            tally.add([2 * number, 2 * number + 1], failed[name])
        assert type(tally.outcome()) is kind


def test_the_longest_wish_to_wait_counts() -> None:
    tally = loki.Tally(3)
    tally.add([0], RetryAfter("HTTP 429", 3.0, is_size_suspect=True))
    tally.add([1], RetryAfter("HTTP 503", 9.0))
    tally.add([2], RetryAfter("HTTP 500"))
    assert tally.outcome() == RetryAfter("HTTP 429", 9.0, is_size_suspect=True)


def test_work_side_by_side_ends_with_the_first_failure() -> None:
    done: Counter[int] = Counter()

    def work(number: int) -> bool:
        done[number] += 1
        if number == 3:
            raise StoppedError("asked to stop")
        return True

    with pytest.raises(StoppedError):
        side_by_side(work, range(100), 1)
    assert sorted(done) == [0, 1, 2, 3]
    side_by_side(work, [4, 5, 6], 8)
    assert max(done.values()) == 1


def test_a_stop_waits_for_the_request_on_its_way_not_for_the_whole_batch(clock: Clock) -> None:
    found = Loki()
    found.before_answer = clock.set
    sink = found.sink(stop=clock)
    outcome = sink.send(numbered([60] * 400, size=1000))
    assert isinstance(outcome, Accepted)
    assert (found.requests, found.intake.stored + len(outcome.retry)) == (1, 400)
    assert outcome.later == RetryAfter("asked to stop")
    found.before_answer = lambda: None
    with pytest.raises(StoppedError):
        sink.send(numbered([60] * 400, size=1000))  # it would have to wait for the pace of its stream


def test_requests_side_by_side_show_that_the_sink_moves_and_each_is_looked_at_by_itself() -> None:
    workers = Workers()
    seen: set[str] = set()
    both = threading.Barrier(2)

    def work(number: int) -> bool:
        both.wait(10)
        seen.update(worker.name for worker in workers._busy)
        both.wait(10)
        return True

    with workers.busy("sink loki"):
        side_by_side(work, range(2), 2)
    assert len(seen) == 2
    assert "sink loki" in seen
    assert workers.stuck() == {}


def test_only_the_calling_thread_holds_up_the_end_of_the_program() -> None:
    both = threading.Barrier(2)
    seen: dict[threading.Thread, bool] = {}

    def work(number: int) -> bool:
        both.wait(10)
        seen[threading.current_thread()] = threading.current_thread().daemon
        return True

    side_by_side(work, range(2), 2)
    del seen[threading.current_thread()]
    assert list(seen.values()) == [True]


def test_a_wait_for_the_pace_of_a_stream_ends_when_asked_to_stop() -> None:
    stop = threading.Event()
    pace = Pace(1.0, stop)
    pace.wait("stream", 1000)
    pace.wait("another", 1000)
    stop.set()
    with pytest.raises(StoppedError, match="asked to stop"):
        pace.wait("stream", 1)


# Requests and streams, to the byte


class Clock(threading.Event):
    """A clock that only waits move on. It records their lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        self.now += timeout or 0.0
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("poller.sinks.side_by_side.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_stream_takes_its_next_bytes_when_it_has_had_time_for_the_last(clock: Clock) -> None:
    pace = Pace(100.0, clock)
    for stream, size in (("a", 50), ("b", 0), ("a", 200), ("a", 1), ("b", 1)):
        pace.wait(stream, size)
    assert clock.waits == [0.5, 2.0]
    assert clock.now == 2.5


def test_a_stream_that_is_forgotten_need_not_have_waited(clock: Clock) -> None:
    pace = Pace(100.0, clock)
    pace.wait("a", 100)
    pace.wait("b", 200)
    clock.now = 1.0
    pace.forget()
    pace.wait("a", 0)
    pace.wait("b", 0)
    assert clock.waits == [1.0]


class Sent:
    """A sink whose requests are recorded. It gets these answers in order; after that, everything is accepted."""

    def __init__(self, clock: Clock, *answers: Outcome, **settings: Any) -> None:
        table = LokiSink(**{"name": "loki", "url": URL, "connections": 1, **settings})
        self.sink = loki.LokiSink(table, Context(Config(), clock), clock=lambda: NOON)
        self.sink._endpoint = self  # type: ignore[assignment]
        self.answers = list(answers)
        self.bodies: list[bytes] = []

    def post(self, body: bytes, below: str = "") -> Outcome:
        self.bodies.append(body)
        return self.answers.pop(0) if self.answers else Accepted(status=204)

    @property
    def counts(self) -> list[int]:
        """How many events each request had."""
        return [len(json.loads(body)["streams"][0]["values"]) for body in self.bodies]

    @property
    def late(self) -> list[int]:
        """The late stream of each request; 0 for none."""
        return [int(json.loads(body)["streams"][0]["stream"].get("late", 0)) for body in self.bodies]


@pytest.mark.parametrize(("rate", "limit"), [(16 * 1024, 1024), (16 * 480_000, 480_000), (1 << 30, 480_000)])
def test_a_request_is_a_sixteenth_of_the_rate_and_never_above_its_own_limit(
    clock: Clock, rate: int, limit: int
) -> None:
    half, rest = limit // 2, limit - limit // 2
    for sizes, counts in (((half, rest), [2]), ((half, rest + 1), [1, 1]), ((limit + 5, 1), [1, 1]), ((1,) * 5, [5])):
        sent = Sent(clock, stream_bytes_per_second=rate)
        clock.waits.clear()
        assert sent.sink.send([event(line=b"x" * size) for size in sizes]) == Accepted(status=204)
        assert sent.counts == counts
        assert clock.waits == pytest.approx([sizes[0] / (rate * 7 / 8)] if len(counts) == 2 else [])


def test_the_body_of_a_push_is_one_stream() -> None:
    events = [event(1, line=b'{"a":"\xff"}'), event(0, ordinal=1)]
    late = loki.encode_push(loki.Stream("1", 3), events, {"tag_name": "x", "contract": "ours"})
    assert json.loads(late) == {
        "streams": [
            {
                "stream": {"tag_name": "x", "contract": "1", "late": "3"},
                "values": [
                    [f"{NOON - 1}000000000", '{"a":"\ufffd"}'],
                    [f"{NOON}000000001", '{"a":"\\u00e9\\"\u00e9"}'],
                ],
            }
        ]
    }
    assert b'"late"' not in loki.encode_push(loki.Stream("1", 0), events, {})


def test_a_part_spans_an_hour_to_the_microsecond(clock: Clock) -> None:
    sink = Sent(clock).sink
    # Each event is collected when it happens, so it is in time, and all are in one stream.
    edge = [msgspec.structs.replace(event(), time_us=at, collected_at=at // 1_000_000) for at in (0, 3_600_000_000)]
    assert list(sink.parts(edge)) == [edge]
    edge[1] = msgspec.structs.replace(edge[1], time_us=3_600_000_001)
    assert list(sink.parts(edge)) == [edge[:1], edge[1:]]
    assert list(sink.parts(edge[::-1])) == [edge[1:], edge[:1]]
    more = [*edge, msgspec.structs.replace(edge[1], time_us=7_200_000_001, collected_at=7200)]
    assert list(sink.parts(more)) == [more[:1], more[1:]]
    assert list(sink.parts([])) == [[]]


def test_hours_that_share_a_late_stream_go_by_requests_of_their_own_oldest_first(clock: Clock) -> None:
    sent = Sent(clock, late_streams=4)
    ages = [10 * HOUR, 2 * HOUR, 6 * HOUR, 10 * HOUR - 1]
    assert sent.sink.send([event(age) for age in ages]) == Accepted(status=204)
    assert (sent.counts, sent.late) == ([2, 1, 1], [3, 3, 3])
    times = [json.loads(body)["streams"][0]["values"][0][0] for body in sent.bodies]
    assert times == [f"{NOON - age}000000000" for age in (10 * HOUR, 6 * HOUR, 2 * HOUR)]


BEHIND = Refused("HTTP 400: entry too far behind", 400)


def test_what_its_stream_does_not_take_any_more_goes_to_the_next_set_of_them(clock: Clock) -> None:
    late = Sent(clock, BEHIND, BEHIND, late_streams=4)
    assert late.sink.send([event(2 * HOUR), event(2 * HOUR - 1)]) == Accepted(status=204)
    assert (late.counts, late.late) == ([2, 2, 2], [3, 7, 11])
    in_time = Sent(clock, BEHIND, late_streams=4)
    assert in_time.sink.send([event(0)]) == Accepted(status=204)
    assert in_time.late == [0, 1]
    several = Sent(clock, BEHIND, late_streams=4)
    assert several.sink.send([event(0), event(1)]) == BEHIND
    assert several.late == [0]
    refused = Sent(clock, Refused("HTTP 400: bad", 400), late_streams=4)
    assert refused.sink.send([event(2 * HOUR)]) == Refused("HTTP 400: bad", 400)
    assert refused.late == [3]


def test_each_hour_that_loki_takes_could_have_a_stream_of_its_own_and_no_more_are_tried(clock: Clock) -> None:
    for late_streams, hours in ((4, 2), (4, 5), (168, 2)):
        sent = Sent(clock, *[BEHIND] * 400, late_streams=late_streams)
        assert sent.sink.send([event(hours * HOUR)]) == BEHIND
        first = sent.late[0]
        assert sent.late == list(range(first, 7 * 24 + late_streams + 1, late_streams))


@pytest.mark.parametrize(
    ("count", "reason", "is_size_suspect"),
    [(1, "HTTP 429: busy", False), (2, "HTTP 429: busy", True), (2, "HTTP 429: stream limit", False)],
)
def test_smaller_batches_are_no_help_where_one_event_fails_or_there_are_too_many_streams(
    clock: Clock, count: int, reason: str, is_size_suspect: bool
) -> None:
    sent = Sent(clock, RetryAfter(reason, 3.0, is_size_suspect=True))
    assert sent.sink.send([event()] * count) == RetryAfter(reason, 3.0, is_size_suspect)


def test_a_stream_that_failed_gets_no_further_request_and_the_others_do(clock: Clock) -> None:
    big = 480_000
    sent = Sent(clock, RetryAfter("busy"), stream_bytes_per_second=1 << 30)
    events = [event(line=b"x" * big, contract=contract) for contract in ("1", "1", "2")]
    outcome = sent.sink.send(events)
    assert outcome == Accepted({}, (0, 1), 204, RetryAfter("busy"))
    assert len(sent.bodies) == 2
    for failure in (TooLarge("much"), Refused("bad")):  # the rest of the stream is sent all the same
        sent = Sent(clock, failure, stream_bytes_per_second=1 << 30)
        sent.sink.send(events)
        assert len(sent.bodies) == 3


def test_after_as_many_failures_as_there_are_connections_no_further_stream_is_tried(clock: Clock) -> None:
    for connections, expected in ((1, 2), (2, 2)):
        tally = loki.Tally(9)
        for number in range(expected):
            assert tally.is_worth_going_on(connections)
            tally.add([number], RetryAfter("busy"))
        assert not tally.is_worth_going_on(connections)
    tally = loki.Tally(9)
    for number in range(3):
        tally.add([number], RetryAfter("busy"))
        tally.add([number + 3], TooLarge("much"))
    assert tally.is_worth_going_on(4)
    tally.add([8], CredentialsRefused("no"))
    assert not tally.is_worth_going_on(9)


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([([0, 1], Accepted(status=204)), ([2], Accepted(status=200))], Accepted(status=204)),
        ([([0, 1], Accepted()), ([2], Accepted(status=200))], Accepted(status=200)),
        ([([0, 1], Accepted(status=204)), ([2], Refused("bad", 400))], Accepted({2: "bad"}, (), 400)),
        (
            [([0], Accepted(status=204)), ([1, 2], Refused("bad", 400))],
            Accepted({}, (1, 2), 204, RetryAfter("bad")),
        ),
        ([([0], Accepted(status=204))], Accepted({}, (1, 2), 204, RetryAfter("asked to stop"))),
        ([([0, 1, 2], Refused("bad", 400))], Refused("bad", 400)),
        ([([0, 1], Refused("bad", 400)), ([2], TooLarge("much"))], TooLarge("much")),
        ([([0, 1], TooLarge("much")), ([2], CredentialsRefused("no"))], CredentialsRefused("no")),
        ([([0], RetryAfter("a")), ([1], RetryAfter("b", 2.0, is_size_suspect=True))], RetryAfter("a", 2.0, True)),
        ([], RetryAfter("asked to stop")),
    ],
)
def test_what_became_of_requests_is_what_becomes_of_the_batch(
    outcomes: list[tuple[list[int], Outcome]], expected: Outcome
) -> None:
    tally = loki.Tally(3)
    assert tally.is_empty()
    for request, outcome in outcomes:
        tally.add(request, outcome)
        assert not tally.is_empty()
    assert tally.outcome() == expected


def test_one_refused_event_that_was_all_there_is_refused_the_batch() -> None:
    tally = loki.Tally(1)
    tally.add([0], Refused("bad", 400))
    assert tally.outcome() == Refused("bad", 400)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Refused("HTTP 422: no", 422), Accepted(status=422)),
        (Refused("HTTP 400: at least one stream", 400), Accepted(status=400)),
        (Refused("HTTP 400: bad", 400), Refused("HTTP 400: bad", 400)),
        (RetryAfter("stream limit"), RetryAfter("stream limit")),
    ],
)
def test_a_probe_pushes_no_stream(clock: Clock, answer: Outcome, expected: Outcome) -> None:
    sent = Sent(clock, answer)
    assert sent.sink.probe() == expected
    assert sent.bodies == [b'{"streams":[]}']


NAMED = '{a="%s", b="}"}' % ("x" * 900)


@responses.activate
def test_an_event_that_is_too_new_by_a_clock_of_lokis_that_is_behind_waits() -> None:
    said = f"entry for stream '{NAMED}' has timestamp too new: 2026-05-01T12:00:00Z"
    responses.post(f"{URL}/loki/api/v1/push", status=400, body=said)
    sink = sink_at_noon(connections=1)
    waiting = sink.send([event()])
    assert isinstance(waiting, RetryAfter)
    assert waiting.reason.endswith("(check the clock of Loki's machine: it is behind)")
    assert isinstance(sink.send([event(), event(60)]), Refused), "it may take the older one"
    assert isinstance(sink.send([event(-1)]), Refused), "its time has not come by ours either"


@responses.activate
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (f"missing required labels app,env for user fake for stream {NAMED}", "check labels"),
        (f"entry for stream '{NAMED}' has 16 label names; limit 15", "check labels"),
        (f"stream '{NAMED}' has label name too long: 'tag_name'", "check labels"),
        (f"stream '{NAMED}' has label value too long: 'activityLog'", "check labels"),
        (f"stream '{NAMED}' has duplicate label name: 'tag_name'", "check labels"),
        ("error at least one label pair is required per stream", "check labels"),
        (f"Error parsing labels '{NAMED}' with error: parse error", "check labels"),
        ("ingestion blocked for user fake until '2026-12-01' with status code '400'", "ask who runs this Loki"),
    ],
)
def test_a_refusal_of_the_stream_costs_no_event(said: str, remedy: str, count: int) -> None:
    responses.post(f"{URL}/loki/api/v1/push", status=400, body=said)
    outcome = sink_at_noon(connections=1).send([event()] * count)
    assert isinstance(outcome, RetryAfter)
    assert outcome.reason.endswith(f"({remedy})")
    assert not outcome.is_size_suspect


@responses.activate
@pytest.mark.parametrize(
    "said",
    [
        f"entry for stream '{NAMED}' has timestamp too old: 2026-05-01T07:42:20Z, oldest acceptable timestamp is: 2026-05-02",
        f"max entry size '262144' bytes exceeded for stream '{NAMED}' while adding an entry with length '262145' bytes",
    ],
)
def test_a_refusal_of_an_event_is_told_in_the_words_behind_the_name_of_its_stream(said: str) -> None:
    responses.post(f"{URL}/loki/api/v1/push", status=400, body=said)
    outcome = sink_at_noon(connections=1).send([event()])
    assert outcome == Refused("HTTP 400: " + said.replace(NAMED, "{...}"), 400)


@responses.activate
def test_an_address_that_is_not_lokis_is_named() -> None:
    responses.post(f"{URL}/loki/api/v1/push", status=404)
    outcome = sink_at_noon(tenant_id="team").send([event()])
    assert isinstance(outcome, RetryAfter)
    assert "check url)" in outcome.reason
    assert "X-Scope-OrgID" in list(responses.calls[0].request.headers), "spelt as it is documented"


# Age and size


@responses.activate
def test_what_loki_would_call_too_old_costs_no_request() -> None:
    week = 7 * 86_400
    outcome = sink_at_noon().send([event(week + age) for age in range(5)])
    assert isinstance(outcome, Accepted)
    assert sorted(outcome.refused) == [0, 1, 2, 3, 4]
    assert "2026-04-24T12:00:00" in outcome.refused[0]
    assert outcome.status is None
    assert len(responses.calls) == 0


@responses.activate
def test_the_others_are_sent_beside_those_too_old() -> None:
    answer = responses.post(f"{URL}/loki/api/v1/push", status=204)
    batch = [event(8 * 86_400), event(1), event(loki.MAX_AGE_SECONDS + 1), event(2)]
    outcome = sink_at_noon(compression="none").send(batch)
    assert isinstance(outcome, Accepted)
    assert sorted(outcome.refused) == [0, 2]
    (stream,) = json.loads(answer.calls[0].request.body)["streams"]  # type: ignore[arg-type]
    assert len(stream["values"]) == 2
    responses.replace(responses.POST, f"{URL}/loki/api/v1/push", status=500)
    assert isinstance(sink_at_noon().send(batch), RetryAfter)


def test_no_body_is_larger_than_a_megabyte_unless_one_line_is() -> None:
    sizes: list[int] = []
    found = Loki()
    found.post = lambda body, below="": sizes.append(len(body)) or Accepted(status=204)  # type: ignore[method-assign,func-returns-value]
    quoted = event(line=b'{"a":"' + b'\\"' * 60_000 + b'"}')
    sink = found.sink(clock=lambda: NOON, stream_bytes_per_second=1 << 30)
    assert sink.send([quoted] * 20) == Accepted(status=204)
    assert len(sizes) == 7
    assert max(sizes) < 1_000_000
