"""The sink for any receiver over HTTP: what it sends, which answers are a success, what a probe finds."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

import pytest
import responses

from poller.checks.sinks import check_sink
from poller.config import AnyHttpSink, Config, Secret, SecretSource
from poller.core.delivery import Accepted, CredentialsRefused, Refused, RetryAfter, TooLarge
from poller.core.events import OutboxEvent
from poller.sinks.build import build_sink
from tests.hostile import Answer, Asked, RawServer, http

LINES = [b'{"n":1.10}', b'{"n":2}']
EVENTS = [OutboxEvent("1", 0, 0, b"i", 0, line) for line in LINES]


class Receiver:
    """A receiver that answers each request with one status, and records the requests."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.status = "200 OK"
        self.words: Callable[[Asked], bytes] = lambda asked: b""
        self._server = RawServer(self._answer)
        self.url = self._server.url

    def _answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        return http(self.words(asked), "Connection: close", status=self.status)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def sink_for(receiver: Receiver, **settings: Any) -> Any:
    usual = {"name": "s", "url": f"{receiver.url}/v2/events", "requests_per_second": 10_000.0}
    return build_sink(AnyHttpSink(**{**usual, **settings}), Config(), threading.Event())


@pytest.mark.parametrize(
    ("body", "expected", "content_type"),
    [
        ("array", b'[{"n":1.10},{"n":2}]', "application/json"),
        ("ndjson", b'{"n":1.10}\n{"n":2}\n', "application/x-ndjson"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_batch_is_an_array_or_lines(receiver, body, expected, content_type, method):
    sink = sink_for(receiver, body=body, method=method, headers={"X-Team": "audit"})
    assert list(sink.parts(EVENTS)) == [EVENTS]
    assert sink.send(EVENTS) == Accepted(status=200)
    (asked,) = receiver.asked
    assert (asked.method, asked.path) == (method, "/v2/events")
    assert (asked.headers["content-type"], asked.headers["x-team"]) == (content_type, "audit")
    assert gzip.decompress(asked.body) == expected


@pytest.mark.parametrize("body", ["array", "ndjson", "object"])
def test_a_query_goes_with_each_request_escaped_and_the_receiver_may_quote_it(receiver, body):
    query = {"_time_field": "meta.time", "query": "INSERT INTO ü FORMAT JSONEachRow", "api-key": "canary&a=b"}
    sink = sink_for(receiver, body=body, query=query)
    sink.probe()
    assert sink.send(EVENTS[:1]) == Accepted(status=200)
    assert len(receiver.asked) == 2
    for asked in receiver.asked:
        path, _, text = asked.path.partition("?")
        assert (path, dict(parse_qsl(text, strict_parsing=True))) == ("/v2/events", query)
    receiver.status, receiver.words = "400 Bad Request", lambda asked: f"no: canary&a=b, {asked.path}".encode()
    outcome = sink.send(EVENTS[:1])
    assert "no: ********" in outcome.reason
    assert "canary" not in outcome.reason


def test_an_event_a_request_is_settled_on_its_own(receiver):
    sink = sink_for(receiver, body="object", compression="none")
    parts = list(sink.parts(EVENTS))
    assert [sink.send(part) for part in parts] == [Accepted(status=200)] * 2
    assert [asked.body for asked in receiver.asked] == LINES


def test_it_sends_any_format(receiver):
    sink_for(receiver, body="ndjson", format="ocsf", compression="none").send(EVENTS)
    assert [json.loads(line)["raw_data"].encode() for line in receiver.asked[0].body.splitlines()] == LINES


@pytest.mark.parametrize(
    ("status", "successes", "expected"),
    [
        (200, (200, 202), Accepted),
        (204, (200, 202), RetryAfter),
        (207, (207,), Accepted),
        (201, (200,), RetryAfter),
        (302, (200,), RetryAfter),
        (400, (200,), Refused),
        (401, (200,), CredentialsRefused),
        (413, (200,), TooLarge),
        (429, (200,), RetryAfter),
        (500, (200,), RetryAfter),
    ],
)
def test_only_a_status_that_is_named_is_a_success(receiver, status, successes, expected):
    receiver.status = f"{status} Something"
    assert isinstance(sink_for(receiver, successes=successes).send(EVENTS), expected)


@pytest.mark.parametrize(
    ("settings", "header"),
    [
        ({"bearer_token": "t0ken"}, "Bearer t0ken"),
        ({"username": "u", "password": "p"}, "Basic dTpw"),
    ],
)
def test_a_login_is_sent(receiver, settings, header):
    def source(value: str) -> Any:
        return SecretSource("inline", "", path="x", inline=Secret(value))

    given = {key: value if key == "username" else source(value) for key, value in settings.items()}
    sink_for(receiver, **given).send(EVENTS)
    assert receiver.asked[0].headers["authorization"] == header


@pytest.mark.parametrize("body", ["array", "ndjson", "object"])
def test_a_probe_sends_no_event(receiver, body):
    assert sink_for(receiver, body=body).probe() == Accepted(status=200)
    (asked,) = receiver.asked
    sent = gzip.decompress(asked.body) if asked.body else b""
    assert (asked.method, sent) == (("POST", b"[]") if body == "array" else ("HEAD", b""))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (405, Refused),
        (404, RetryAfter),
        (401, CredentialsRefused),
        (503, RetryAfter),
        (206, Refused),
        (413, RetryAfter),
    ],
)
def test_a_probe_by_head_believes_what_it_is_told(receiver, status, expected):
    receiver.status = f"{status} Something"
    assert isinstance(sink_for(receiver, body="ndjson").probe(), expected)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (202, Accepted(status=202)),
        *((status, Refused(f"HTTP {status} to HEAD", status)) for status in (200, 299, 400, 405, 415, 422, 501)),
        (413, RetryAfter("HTTP 413 to HEAD")),
        (300, RetryAfter("HTTP 300 (redirects are not followed: set url to where it leads)")),
        (500, RetryAfter("HTTP 500", is_size_suspect=True)),
    ],
)
@responses.activate
def test_a_probe_by_head_tells_what_was_reached_from_what_was_not(status, expected):
    responses.head("https://intake.example/in", status=status)
    table = AnyHttpSink(name="s", url="https://intake.example/in", body="ndjson", successes=(202,))
    assert build_sink(table, Config(), threading.Event()).probe() == expected


def test_a_probe_of_a_receiver_out_of_reach_says_so(receiver):
    receiver.close()
    assert isinstance(sink_for(receiver, body="object", connect_timeout_seconds=0.2).probe(), RetryAfter)


@pytest.mark.parametrize(
    ("status", "level", "words"),
    [(200, "ok", "takes events"), (405, "warn", "HTTP 405"), (401, "fail", "bearer_token")],
)
def test_check_says_what_it_found(receiver, status, level, words):
    receiver.status = f"{status} Something"
    table = AnyHttpSink(name="s", url=receiver.url, body="object")
    (finding,) = check_sink(table, Config(), threading.Event())
    assert finding.level == level
    assert words in f"{finding.message} {finding.hint}"


@pytest.mark.parametrize("status", ["202 Accepted", "206 Partial Content"])
def test_a_success_that_is_not_named_says_where_to_name_it(receiver: Receiver, status: str) -> None:
    receiver.status = status
    sink = sink_for(receiver, successes=(200,))
    remedy = "(if it means that all events were taken, add it to successes)"
    for outcome in (sink.send(EVENTS), sink.probe()):
        assert outcome == RetryAfter(f"HTTP {status[:3]} {remedy}")
    receiver.status = "404 Not Found"
    assert sink.send(EVENTS) == RetryAfter("HTTP 404 (nothing takes events there: check url)")
