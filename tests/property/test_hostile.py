"""Any input from outside quickly becomes one of our values or one of our errors. The message of an error is one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.answers import parse_page
from poller.core.delivery import (
    Accepted,
    CredentialsRefused,
    Refused,
    RetryAfter,
    RetryPolicy,
    Settle,
    TooLarge,
    decide,
)
from poller.core.errors import BodyTooLargeError, TransientError
from poller.core.events import OutboxEvent
from poller.core.mapping import truncated, with_time
from poller.core.mapping.filter import Filter
from poller.core.mapping.moesif import ActionMaker
from poller.core.mapping.redact import Redactor
from poller.net.transport import Response, Transport
from poller.net.words import words_of
from poller.sinks import logging_service, loki, moesif
from poller.sinks.http import outcome_of
from tests.hostile import RawServer, at_most, headed

any_text = st.text(st.characters(exclude_categories=()), max_size=30)

# JSON as text, so that it can contain things that no encoder writes

white = st.sampled_from(["", " ", "\n\t\r "])
numbers = st.sampled_from(["0", "-0", "1.10", "1e999", "-1E-999", "9" * 25, "9" * 5000, "1e+5", "18446744073709551616"])
strings = st.lists(
    st.sampled_from([r"\ud800", r"\udfff", r"\ud83d\ude00", r"\u0000", r"\"", r"\\", r"\/", "a", "é", "\u2028", "\x7f"])
    | st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters='"\\'),
    max_size=8,
).map(lambda parts: f'"{"".join(parts)}"')
names = strings | st.sampled_from(
    [
        *(
            '"@uuid"',
            '"meta"',
            '"time"',
            '"event"',
            '"type"',
            '"principal"',
            '"sourceIP"',
        ),
        *(
            '"identity"',
            '"username"',
            '"param"',
            '"uri"',
            '"resources"',
            '"id"',
            '"\\u0040uuid"',
        ),
        *('"eve\\u006et"',),
    ]
)


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects in which a name may occur twice."""
    pairs = st.lists(st.tuples(white, names, white, values), max_size=5)
    return pairs.map(lambda found: "{" + ",".join(f"{w}{name}{v}:{value}" for w, name, v, value in found) + "}")


texts = st.recursive(
    st.sampled_from(["null", "true", "false"]) | numbers | strings,
    lambda inner: st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]") | objects(inner),
    max_leaves=15,
)
usual = st.sampled_from(
    [
        '{"@uuid":"a","meta":{"time":"2026-05-01T07:42:20.530Z"},"event":{"type":"Provision","param":{"uri":"/x"}}}',
        '{"principal":{"sourceIP":"::1","identity":{"username":"x"}},"event":{"resources":[{"id":1,"type":"a"}]}}',
    ]
)
entries = usual | objects(texts)


def meaning(line: bytes | str) -> Any:
    return json.loads(line, parse_int=str, parse_float=str)


@given(st.lists(entries, max_size=4), st.integers(0, 2))
def test_any_json_there_is_comes_out_as_it_went_in(found: list[str], shape: int) -> None:
    listed = ",".join(found)
    body = (f'{{"hits":{{"total":{len(found)},"hits":[{{"_source":{entry}}}]}}}}' for entry in [listed])
    if shape == 0:
        hits = ",".join(f'{{"_source":{entry}}}' for entry in found)
        body = iter([f'{{"hits":{{"total":{len(found)},"hits":[{hits}]}}}}'])
    elif shape == 1:
        body = iter([f'{{"items":[{listed}]}}'])
    else:
        body = iter([f"[{listed}]"])
    page = parse_page(next(body).encode())
    assert [meaning(event.line) for event in page.events] == [meaning(entry) for entry in found]
    assert all(b"\n" not in event.line for event in page.events)


REDACTORS = [
    Redactor(drop=["event.message"], mask=["principal.sourceIP"], hashed=["principal.identity.username"], key=b"k"),
    Redactor(drop=["event"], mask=["event.resources[].id"], hashed=["@uuid"], key=b"k"),
]
FILTER = Filter([{"type": "P*", "resource_type": "a"}], [{"username": "?"}, {"source_ip": "[!x]*"}])
ACTIONS = [ActionMaker(), ActionMaker(action_name="{event.type} {event.param.uri}", company_id="event.resources[].id")]


@given(entries, st.integers(512, 2000), any_text.filter(bool))
def test_whatever_is_done_to_an_entry_is_done_to_any(text: str, max_bytes: int, key: str) -> None:
    (event,) = parse_page(f"[{text}]".encode()).events
    line = event.line
    sent = OutboxEvent("31960001", event.time_us, 0, event.identity, 0, line)
    FILTER.reason("31960001", line)
    shown = [redact(line) for redact in REDACTORS]
    shown += [action.make(sent) for action in ACTIONS]
    shown += [action.make(sent, max_bytes=max_bytes) for action in ACTIONS]
    shown += [truncated(line, max_bytes), with_time(line, key, event.time_us)]
    shown += [loki.encode_push(loki.Stream("31960001", 1), [sent], {"a": "b"})]
    for made in shown:
        meaning(made)
        assert b"\n" not in made
    for redact in REDACTORS:
        assert redact(redact(line)) == redact(line)


# Answers of any bytes


head_lines = st.sampled_from(
    [
        *(
            "Content-Length: 5",
            "Content-Length: -1",
            "Content-Length: 5, 6",
            "Content-Length: five",
        ),
        *(
            "Content-Encoding: gzip",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
        ),
        *(
            "Connection: close",
            "Location: http://[::1",
            "Set-Cookie: a=b; domain=[",
        ),
        *(
            "Retry-After: 1e9",
            "Date: x",
            ": x",
            " folded",
            "X\x00: \x01",
            "Content-Encoding: x,gzip",
        ),
    ]
) | st.text(st.characters(max_codepoint=255), max_size=20)
bodies = st.binary(max_size=40) | st.sampled_from(
    [b"5\r\nhello\r\n0\r\n\r\n", b"-1\r\n", b"{}", b"\x1f\x8b\x08\0", b"0\r\n"]
)
statuses = st.sampled_from(
    ["200 OK", "100 Continue", "103 x", "101 x", "204 x", "304 x", "302 x", "999 x", "99 x", "x"]
)
answers = st.binary(max_size=60) | st.builds(
    lambda status, lines, body: headed(body, *lines, status=status),
    statuses,
    st.lists(head_lines.map(lambda line: line.encode("latin-1", "replace").decode("latin-1")), max_size=4),
    bodies,
)


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with RawServer(lambda asked: b"") as server:
        yield server


@pytest.fixture(scope="module")
def transport() -> Iterator[Transport]:
    transport = Transport(timeout_seconds=(2.0, 2.0))
    yield transport
    transport.close()


@at_most(40)
@given(answer=answers)
def test_any_bytes_are_an_answer_or_one_of_our_errors(server: RawServer, transport: Transport, answer: bytes) -> None:
    server.answer = lambda asked: answer
    with suppress(TransientError, BodyTooLargeError):
        response = transport.request("GET", server.url, headers={"Authorization": "Bearer x"}, max_bytes=1000)
        assert 100 < response.status < 1000
        assert len(response.body) <= 1000


@given(
    status=st.integers(100, 999),
    body=st.binary(max_size=300) | any_text.map(lambda text: text.encode("utf-8", "surrogatepass")),
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4, max_size=12),
    wish=st.none() | st.floats(0, 1e12),
    count=st.integers(1, 5),
    successes=st.sampled_from([logging_service.SUCCESSES, loki.SUCCESSES, moesif.SUCCESSES]),
)
def test_no_answer_of_a_sink_costs_an_event_or_shows_a_secret(
    status: int, body: bytes, secret: str, wish: float | None, count: int, successes: tuple[int, ...]
) -> None:
    echoed = body + secret.encode() + body
    words = words_of(Response(status, {"Content-Type": "text/html"}, echoed), [secret], b"{}" * 100)
    assert words.isprintable() or not words
    assert len(words) <= 203
    assert secret not in words or secret in "*" * 20
    outcome = outcome_of(status, successes, words, place="url", wait_seconds=wish)
    assert isinstance(outcome, Accepted) == (status in successes)
    decision = decide(outcome, count, 1, RetryPolicy(), lambda: 0.5)
    if isinstance(decision, Settle):
        # A settled event was accepted, or it is the only event and was refused by name.
        assert isinstance(outcome, Accepted) or (count == 1 and isinstance(outcome, Refused) and 0 in decision.dead)
    elif isinstance(outcome, RetryAfter | CredentialsRefused):
        assert 0 <= getattr(decision, "seconds", 0.0) <= 4000
    else:
        assert isinstance(outcome, TooLarge | Refused)


def test_what_is_no_entry_is_not_taken_for_one() -> None:
    for body in (b"[1]", b"[null]", b'["a"]', b"[[]]", b'{"items":[1]}', b'{"hits":{"hits":[{"_source":1}]}}'):
        assert (parse_page(body).events, parse_page(body).count) == ((), 1)
