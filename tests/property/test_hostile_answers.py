"""Answers of any bytes to every sink over HTTP: each becomes an outcome. An event refused by name never counts as taken."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.config import (
    AnyHttpSink,
    Config,
    FirehoseSink,
    LoggingServiceSink,
    LokiSink,
    MoesifSink,
    OpenSearchSink,
    OtlpSink,
    Secret,
    SecretSource,
)
from poller.core.delivery import Accepted, Outcome, Refused, RetryAfter, RetryPolicy, decide
from poller.core.events import OutboxEvent
from poller.sinks.base import Sink
from poller.sinks.build import build_sink
from tests.hostile import RawServer, at_most, headed, http

KEY = SecretSource("inline", "", path="test", inline=Secret("canary-of-a-key"))
TABLES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "http": (AnyHttpSink, {"bearer_token": KEY}),
    "logging-service": (LoggingServiceSink, {"tag": "t", "api_key": KEY}),
    "loki": (LokiSink, {"bearer_token": KEY}),
    "moesif": (MoesifSink, {"application_id": KEY}),
    "opensearch": (OpenSearchSink, {"api_key": KEY}),
    "otlp": (OtlpSink, {"bearer_token": KEY}),
    "otlp-json": (OtlpSink, {"encoding": "json", "bearer_token": KEY}),
}
NOW_US = 4_000_000_000_000_000  # a time that no receiver refuses as too old
EVENTS = [OutboxEvent("1", NOW_US + n, NOW_US // 1_000_000, n.to_bytes(16), 0, b'{"n":%d}' % n) for n in range(3)]
NAMES = [f"1-{event.identity.hex()}".encode() for event in EVENTS]


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with RawServer(lambda asked: b"") as server:
        yield server


def make(kind: str, url: str) -> Sink:
    table, settings = TABLES[kind]
    usual = {"name": "s", "url": url, "keepalive_seconds": 0.0, "requests_per_second": 10_000.0}
    bounds = {"connect_timeout_seconds": 2.0, "read_timeout_seconds": 2.0}
    return build_sink(table(**usual, **bounds, **settings), Config(), threading.Event())


# Answers, and what may happen to them

ODD = [
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\0", b"\t", b"\r\n", b"\x1b[31m", rb"\ud800", rb"\udfff", rb"\u0000"),
    *(b",", b"}", b"]", b"{", b'"', b"\\", b"'", b"null", b"NaN", b"1e999", b"-", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000),
]  # fmt: skip
PARTIAL = b'{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"a text of some length"}}'
PARTIAL_PROTOBUF = b"\x0a\x09\x08\x01\x12\x05words"
ITEMS = [
    b'{"create":{"_id":"%b","status":201}}' % NAMES[0],
    b'{"create":{"_id":"%b","status":400,"error":{"type":"mapper_parsing_exception","reason":"a text"}}}' % NAMES[1],
    b'{"create":{"_id":"%b","status":429,"error":{"type":"busy","caused_by":{"reason":"queue"}}}}' % NAMES[2],
]
BULK = b'{"errors":true,"items":[%b]}' % b",".join(ITEMS)
BODIES = [
    *(b"", b"OK", b"{}", b"[]", b"null", b'{"code":3,"message":"no"}', b"\x08\x03\x12\x02no", b"<!doctype html><p>Sign in"),
    *(PARTIAL, PARTIAL_PROTOBUF, BULK, b'{"items":[]}', b'{"error":{"type":"x","reason":"y"},"status":400}'),
    *(b'{"error":["x"]}', b'{"version":{"number":"2.19.0"}}', b'{"FailedPutCount":1,"RequestResponses":[{"ErrorCode":"x"}]}'),
    *(b'{"__type":"ThrottlingException","message":"slow"}', b'{"messages":[{"errorCode":"x","message":"y"}]}'),
]  # fmt: skip
edits = st.lists(
    st.tuples(st.integers(0, 400), st.integers(0, 6), st.sampled_from(ODD) | st.binary(max_size=3)), max_size=3
)
HEADERS = [
    *("Content-Type: application/json", "Content-Type: application/x-protobuf", "Content-Type: text/html", "Content-Type: \xff"),
    *("Content-Encoding: gzip", "Content-Encoding: br", "Content-Encoding: utf-8", "Retry-After: 7", "Retry-After: 1e9"),
    *("Content-Length: 3", "Transfer-Encoding: chunked", ": x", "Location: http://[::1"),
]  # fmt: skip
STATUSES = (200, 201, 202, 204, 299, 302, 400, 401, 404, 413, 415, 422, 429, 500, 503)


def edited(body: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """The body after these changes. Each is: a position, the number of bytes to replace, and the new bytes."""
    for at, length, put in changes:
        place = at % (len(body) + 1)
        body = body[:place] + put + body[place + length :]
    return body


def reasons(outcome: Outcome) -> list[str]:
    if not isinstance(outcome, Accepted):
        return [outcome.reason]
    return [*outcome.refused.values(), *([outcome.later.reason] if outcome.later else [])]


def check_outcome(outcome: Outcome, count: int) -> None:
    """Check that it is an outcome, that the pipeline can act on it, and that its words are safe to show and to store."""
    assert isinstance(outcome, get_args(Outcome))
    decide(outcome, count, 1, RetryPolicy(), lambda: 0.5)
    for reason in reasons(outcome):
        reason.encode()
        assert reason.isprintable()
        assert len(reason) < 600
        assert "canary" not in reason


any_answer = st.builds(
    lambda status, lines, body, changes, is_bare: (headed if is_bare else http)(
        edited(body, changes), *lines, status=f"{status} x"
    ),
    st.sampled_from(STATUSES),
    st.lists(st.sampled_from(HEADERS), max_size=2),
    st.sampled_from(BODIES) | st.binary(max_size=40),
    edits,
    st.booleans(),
)


def check_any_answer(server: RawServer, sink: Any) -> None:
    """Check that a sink returns an outcome for any answer and raises nothing."""

    @at_most(40)
    @given(answer=any_answer, count=st.integers(1, 3))
    def try_it(answer: bytes, count: int) -> None:
        server.answer = lambda asked: answer
        check_outcome(sink.send(EVENTS[:count]), count)
        check_outcome(sink.probe(), 1)

    try_it()


@pytest.mark.parametrize("kind", TABLES)
def test_any_answer_becomes_an_outcome(server: RawServer, kind: str) -> None:
    check_any_answer(server, make(kind, server.url))


# urllib3 leaves the connection to the garbage collector if a redirect leads to an invalid URL.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_any_answer_becomes_an_outcome_of_firehose(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "canary-of-a-key")
    table = FirehoseSink(
        name="s", stream="x", region="eu-central-1", endpoint_url=server.url, requests_per_second=10_000.0
    )
    check_any_answer(server, build_sink(table, Config(), threading.Event()))
    gc.collect()  # here, not in the next test


# Events that are named as refused


@at_most(100)
@given(
    body=st.sampled_from([PARTIAL, b"\n" + PARTIAL, b"\xef\xbb\xbf" + PARTIAL]),
    changes=edits,
    lines=st.lists(
        st.sampled_from(["Content-Type: application/json", "Content-Encoding: br", "Connection: close"]), max_size=2
    ),
    count=st.integers(1, 3),
)
def test_a_success_that_names_a_refused_record_is_never_taken_for_whole(
    server: RawServer, body: bytes, changes: list[tuple[int, int, bytes]], lines: list[str], count: int
) -> None:
    answer = edited(body, changes)
    server.answer = lambda asked: http(answer, *lines)
    outcome = make("otlp-json", server.url).send(EVENTS[:count])
    if b'"partialSuccess":{"rejectedLogRecords":"1",' in answer:
        assert isinstance(outcome, Refused | RetryAfter)


@at_most(100)
@given(changes=edits)
def test_an_item_that_names_its_refusal_is_never_taken_and_leaves_the_others_alone(
    server: RawServer, changes: list[tuple[int, int, bytes]]
) -> None:
    answer = edited(BULK, changes)
    server.answer = lambda asked: http(answer)
    outcome = make("opensearch", server.url).send(EVENTS)
    if isinstance(outcome, Accepted):
        for index in (1, 2):
            if ITEMS[index].partition(b',"error"')[0] + b',"error"' in answer:
                assert index in outcome.refused or index in outcome.retry
    else:
        assert isinstance(outcome, RetryAfter)


@at_most(60)
@given(
    words=st.lists(st.sampled_from(ODD[:11]) | st.sampled_from([b"a", "ü".encode(), b" "]), max_size=8).map(b"".join)
)
def test_whatever_is_in_the_words_of_a_refusal_it_is_that_of_one_event(server: RawServer, words: bytes) -> None:
    server.answer = lambda asked: http(BULK.replace(b"a text", words))
    outcome = make("opensearch", server.url).send(EVENTS)
    assert isinstance(outcome, Accepted)
    assert (list(outcome.refused), outcome.retry) == ([1], (2,))
    server.answer = lambda asked: http(PARTIAL.replace(b"a text", words))
    assert isinstance(make("otlp", server.url).send(EVENTS), Refused)
