"""The sink `loki`: what Loki is sent, in which requests, and that nothing is lost or seen twice whatever it answers."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import pytest
import responses
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.config import Config, LokiSink
from poller.core.delivery import Accepted, CredentialsRefused, Refused, RetryAfter
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
    """One that happened so long before it was collected."""
    time_us = round((collected_at - age_seconds) * 1_000_000)
    return OutboxEvent(contract, time_us, collected_at, blake2b(line, digest_size=16).digest(), ordinal, line)


def numbered(
    ages: Sequence[float], *, contract: str = "1", collected_at: int = NOW, size: int = 20
) -> list[OutboxEvent]:
    """Events of these ages, each with a line of its own."""
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
    """Loki answers 204 for the last stream of a push, and drops what it refused of the first."""
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
    """Each pass is oldest first, as a poll, a backfill and a replay are; between two, time may go back."""
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
    for steps in (dice % 5, dice % 7, dice % 3):  # each ends as by a kill
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


# Side by side


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


def test_a_stop_waits_for_the_request_on_its_way_not_for_the_whole_batch() -> None:
    found, stop = Loki(), threading.Event()
    found.before_answer = stop.set
    sink = found.sink(stop=stop)
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


def test_a_wait_for_the_pace_of_a_stream_ends_when_asked_to_stop() -> None:
    stop = threading.Event()
    pace = Pace(1.0, stop)
    pace.wait("stream", 1000)
    pace.wait("another", 1000)
    stop.set()
    with pytest.raises(StoppedError):
        pace.wait("stream", 1)


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
