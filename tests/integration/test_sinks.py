"""The HTTP sinks against the simulator's intakes over real HTTP, with faults."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from poller.config import Config, LoggingServiceSink, LokiSink, Secret, SecretSource
from poller.core.delivery import (
    Accepted,
    CredentialsRefused,
    Halve,
    Outcome,
    Refused,
    RetryAfter,
    RetryPolicy,
    Settle,
    TooLarge,
    decide,
)
from poller.core.events import OutboxEvent
from poller.simulator import Simulator, SimulatorSettings
from poller.sinks.base import Sink
from poller.sinks.build import build_sink
from poller.sinks.loki import MAX_AGE_SECONDS
from tests.support import free_port

LOGGING, LOKI = "logging", "loki"
KEY = "demo-key"
MINUTE, HOUR, DAY = 60, 3600, 86_400

both = pytest.mark.parametrize("name", [LOGGING, LOKI])


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorSettings(contracts=1, events=0, keep_lines=True)) as started:
        yield started


def secret(value: str, *, is_text: bool = False) -> SecretSource:
    return SecretSource("inline", "", path="test", is_text=is_text, inline=Secret(value))


def make(simulator: Simulator | str, name: str, **settings) -> Sink:
    url = simulator if isinstance(simulator, str) else f"{simulator.url}/sink/{name}"
    settings = {"name": name, "url": url, "read_timeout_seconds": 1.0, **settings}
    if name == LOGGING:
        table = LoggingServiceSink(**{"tag": "activityLog", "api_key": secret(KEY), **settings})
    else:
        table = LokiSink(**settings)
    return build_sink(table, Config(), threading.Event())


def make_events(
    count: int = 3, *, age_seconds: float = 1, collected_at: float | None = None, text: str = ""
) -> list[OutboxEvent]:
    """Events, newest last, a millisecond apart. The last one happened `age_seconds` before all were collected."""
    collected = int(time.time() if collected_at is None else collected_at)
    last_us = round((collected - age_seconds) * 1_000_000)
    return [
        OutboxEvent(
            "31960001",
            last_us - (count - 1 - number) * 1000,
            collected,
            number.to_bytes(16),
            0,
            b'{"n":%d,"age":"%d","text":"%s"}' % (number, age_seconds, text.encode()),
        )
        for number in range(count)
    ]


def lines(events: list[OutboxEvent]) -> list[bytes]:
    return [event.line for event in events]


def deliver(sink: Sink, events: list[OutboxEvent]) -> tuple[list[OutboxEvent], int]:
    """Send as the deliverer does, halving if needed.  Returns: the events refused for good, and the number of requests."""
    todo, refused, requests = [events], [], 0
    while todo:
        piece = todo.pop(0)
        requests += 1
        match decide(sink.send(piece), len(piece), 1, RetryPolicy(), lambda: 0.0):
            case Settle(dead, ()):
                refused += [piece[index] for index in dead]
            case Halve():
                todo[:0] = [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
            case decision:
                raise AssertionError(decision)
    return refused, requests


# Both


@both
def test_a_batch_arrives_whole_and_in_order_on_one_connection(simulator, name):
    sink, events = make(simulator, name), make_events(1000, text='caf\u00e9 \\u00e9 \\"quoted\\"')
    for batch in (events[:500], events[500:]):
        assert sink.send(batch) == Accepted(status=201 if name == LOGGING else 204)
    assert simulator.intakes[name].lines == lines(events)
    assert simulator.intakes[name].repeats == 0


@both
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_probe_is_accepted_and_stores_nothing(simulator, name, compression):
    outcome = make(simulator, name, compression=compression).probe()
    assert isinstance(outcome, Accepted)
    assert simulator.intakes[name].stored == 0
    assert simulator.state()["intakes"][name]["requests"] == 1


@both
@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("500", RetryAfter, "HTTP 500"),
        ("503:retry-after=7", RetryAfter, "HTTP 503"),
        ("429", RetryAfter, "HTTP 429"),
        ("401", CredentialsRefused, "HTTP 401"),
        ("403", CredentialsRefused, "HTTP 403"),
        ("413", TooLarge, "HTTP 413"),
        ("400", Refused, "HTTP 400"),
        ("422", Refused, "HTTP 422"),
        ("404", RetryAfter, "check url"),
        ("hang", RetryAfter, "read_timeout"),
        ("reset", RetryAfter, " broke: "),
        ("lost-ack", RetryAfter, " broke: "),
    ],
)
def test_every_failure_has_its_outcome_and_the_next_send_works(simulator, name, fault, kind, reason):
    sink, events = make(simulator, name), make_events()
    simulator.set_faults([f"sink={name}:{fault}:x1"])
    outcome = sink.send(events)
    assert isinstance(outcome, kind)
    assert reason in outcome.reason
    assert isinstance(sink.send(events), Accepted)
    assert set(simulator.intakes[name].lines) == set(lines(events))
    # Loki drops an exact repeat; the Logging Service cannot recognise one.
    assert simulator.intakes[name].repeats == (len(events) if (name, fault) == (LOGGING, "lost-ack") else 0)


@both
@pytest.mark.parametrize(("wish", "seconds"), [("7", 7.0), ("date+60", 60.0)])
def test_a_wish_to_wait_is_heard(simulator, name, wish, seconds):
    simulator.set_faults([f"sink={name}:429:retry-after={wish}"])
    outcome = make(simulator, name).send(make_events())
    assert outcome.seconds == pytest.approx(seconds, abs=2)


@both
def test_a_receiver_that_is_not_there_holds_the_data_until_it_is(simulator, name):
    sink = make(simulator, name)
    simulator.stop()
    outcome = sink.send(make_events())
    assert isinstance(outcome, RetryAfter)
    assert "refused" in outcome.reason
    simulator.start()
    assert isinstance(sink.send(make_events()), Accepted)


def test_a_connection_that_says_nothing_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = make(f"http://127.0.0.1:{listener.getsockname()[1]}", LOGGING)
        started = time.monotonic()
        assert isinstance(sink.send(make_events()), RetryAfter)
        assert time.monotonic() - started < 10


def test_an_address_without_a_receiver_says_what_to_check(simulator):
    outcome = make(f"http://127.0.0.1:{free_port()}", LOGGING).probe()
    assert isinstance(outcome, RetryAfter)
    assert "check the address" in outcome.reason
    outcome = make(f"{simulator.url}/sink/nowhere", LOGGING).probe()
    assert isinstance(outcome, RetryAfter)
    assert "check url and tag" in outcome.reason


# The Logging Service


def test_a_key_replaced_on_disk_is_used_at_once_and_none_is_told(simulator, tmp_path):
    file = tmp_path / "logging.key"
    sink = make(simulator, LOGGING, api_key=SecretSource("file", str(file), path="sinks[0].api_key_file"))
    outcomes: list[Outcome] = [sink.send(make_events())]
    for key in ("canary-old", "", "demo-key\n"):
        file.write_text(key)
        outcomes.append(sink.send(make_events()))
    assert [type(outcome) for outcome in outcomes] == [CredentialsRefused] * 3 + [Accepted]
    assert "unreadable key file" in outcomes[0].reason
    assert "HTTP 401" in outcomes[1].reason
    assert "is empty" in outcomes[2].reason
    assert "canary" not in repr(outcomes)
    assert simulator.intakes[LOGGING].stored == 3


@pytest.mark.parametrize("stores_before", [False, True])
def test_the_culprit_of_a_400_is_found_by_halving(simulator, stores_before):
    simulator.change_settings(poison='"n":137,', poison_stores_before=stores_before)
    events = make_events(200)
    refused, requests = deliver(make(simulator, LOGGING), events)
    assert [event.identity for event in refused] == [events[137].identity]
    assert requests <= 17
    good = {event.line for event in events if event not in refused}
    assert set(simulator.intakes[LOGGING].lines) == good


def test_a_body_too_large_is_halved_until_it_fits(simulator):
    simulator.change_settings(max_body_bytes=4000)
    events = make_events(200)
    assert deliver(make(simulator, LOGGING), events)[0] == []
    assert simulator.intakes[LOGGING].lines == lines(events)


def test_the_pace_is_kept(simulator):
    sink = make(simulator, LOGGING, requests_per_second=5)
    started = time.monotonic()
    for _ in range(6):
        assert isinstance(sink.send(make_events(1)), Accepted)
    assert time.monotonic() - started >= 1


# Loki


@pytest.mark.parametrize(
    ("required", "settings"),
    [
        ({"loki_tenant": "team-a"}, {"tenant_id": "team-a"}),
        ({"loki_authorization": "Bearer tok"}, {"bearer_token": secret("tok")}),
        (
            {"loki_authorization": "Basic amFuZTpwIHc="},
            {"username": "jane", "password": secret("p w", is_text=True)},
        ),
    ],
)
def test_loki_lets_in_whom_it_knows(simulator, required, settings):
    simulator.change_settings(**required)
    assert isinstance(make(simulator, LOKI).send(make_events()), CredentialsRefused)
    assert isinstance(make(simulator, LOKI).probe(), CredentialsRefused)
    assert isinstance(make(simulator, LOKI, **settings).probe(), Accepted)
    assert isinstance(make(simulator, LOKI, **settings).send(make_events()), Accepted)


def test_equal_entries_stay_two_and_a_repeat_stays_one(simulator):
    (entry,) = make_events(1)
    duplicates = [
        OutboxEvent(entry.contract, entry.time_us, entry.collected_at, b"%d" % at, at, entry.line) for at in range(3)
    ]
    sink = make(simulator, LOKI)
    for _ in range(2):
        assert isinstance(sink.send(duplicates), Accepted)
    assert simulator.loki.stored == 3


def age_order(events: list[OutboxEvent]) -> list[OutboxEvent]:
    return sorted(events, key=lambda event: event.time_us)


@pytest.mark.parametrize("order", [age_order, lambda events: age_order(events)[::-1], lambda events: events])
def test_entries_of_a_week_in_any_order_are_all_taken(simulator, order: Callable):
    sink, events = make(simulator, LOKI), []
    for age in (10 * HOUR, MINUTE, 29 * MINUTE, 31 * MINUTE, 2 * HOUR, 6 * DAY, 20 * MINUTE, 7 * DAY - 300):
        events += make_events(5, age_seconds=age)
    for start in range(0, len(events), 7):
        assert isinstance(sink.send(order(events)[start : start + 7]), Accepted)
    assert sorted(simulator.intakes[LOKI].lines) == sorted(lines(events))
    late = [stream for stream in simulator.loki.streams if "late=" in stream]
    assert '{contract="31960001", tag_name="activityLog"}' in simulator.loki.streams
    assert 2 <= len(late) <= 7  # one stream for each hour: ages are in five to seven hours, and some share a stream


def test_entries_too_old_cost_no_request_and_the_rest_arrives(simulator):
    old, young = make_events(500, age_seconds=MAX_AGE_SECONDS + HOUR), make_events(500)
    events = [event for pair in zip(old, young, strict=True) for event in pair]
    refused, requests = deliver(make(simulator, LOKI), events)
    assert (len(refused), requests) == (500, 1)
    assert simulator.intakes[LOKI].lines == lines(young)
    assert deliver(make(simulator, LOKI), old) == (old, 1)
    assert simulator.state()["intakes"][LOKI]["requests"] == 1


def test_what_loki_refuses_of_a_batch_is_named_and_the_good_ones_are_stored_once(simulator):
    events = make_events(64)
    future = make_events(1, age_seconds=-HOUR)
    refused, _ = deliver(make(simulator, LOKI), [*events[:40], *future, *events[40:]])
    assert refused == future
    assert sorted(simulator.intakes[LOKI].lines) == sorted(lines(events))
    assert simulator.loki.repeats == 0
