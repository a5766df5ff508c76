"""What the sinks over HTTP share: the requests to the transport, and the meaning of an answer."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from poller.config import AnyHttpSink, Config, LokiSink, OpenSearchSink, OtlpSink, Secret, SecretSource
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.errors import BodyTooLargeError, StoppedError, TransientError
from poller.net.connections import MAX_AGE_SECONDS
from poller.net.transport import Response
from poller.sinks.base import Context
from poller.sinks.http import Endpoint, Login, is_page, login_of, outcome_of, probed

URL = "https://intake.example"


def source(value: str) -> SecretSource:
    return SecretSource("inline", "", path="test", is_text=True, inline=Secret(value))


# Who we are


@pytest.mark.parametrize(
    ("table", "keys", "expected"),
    [
        (OpenSearchSink, {"api_key": "a2V5"}, ("a2V5", "ApiKey", None)),
        (OpenSearchSink, {"password": "p"}, ("p", "", "jane")),
        *((table, {"bearer_token": "t"}, ("t", "Bearer", None)) for table in (LokiSink, OtlpSink, AnyHttpSink)),
        *((table, {"password": "p"}, ("p", "", "jane")) for table in (LokiSink, OtlpSink, AnyHttpSink)),
    ],
)
def test_a_token_or_a_password_is_the_login(table: Any, keys: dict[str, str], expected: tuple[str, str, str]) -> None:
    user = {"username": "jane"} if "password" in keys else {}
    login = login_of(table(name="s", url=URL, **user, **{key: source(value) for key, value in keys.items()}))
    assert login is not None
    assert login.header == "Authorization"
    assert (login.source.read().reveal(), login.scheme, login.username) == expected


@pytest.mark.parametrize("table", [OpenSearchSink, LokiSink])
@pytest.mark.parametrize("half", [{}, {"username": "jane"}, {"password": source("p")}])
def test_half_a_login_is_none(table: Any, half: dict[str, Any]) -> None:
    assert login_of(table(name="s", url=URL, **half)) is None


# What an answer means


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (200, "fine", Accepted(status=200)),
        (401, "no", CredentialsRefused("HTTP 401: no", 401)),
        (403, "", CredentialsRefused("HTTP 403", 403)),
        (401, "No Org ID", CredentialsRefused("HTTP 401: No Org ID (set tenant_id)", 401)),
        (413, "no", RetryAfter("HTTP 413: no", 7.0, is_size_suspect=True)),
        (400, "no", Refused("HTTP 400: no", 400)),
        (422, "no", Refused("HTTP 422: no", 422)),
        (
            400,
            "the PLAIN http request was sent",
            RetryAfter("HTTP 400: the PLAIN http request was sent (the url must begin with https://)"),
        ),
        (
            422,
            "The SSL certificate error",
            RetryAfter("HTTP 422: The SSL certificate error (give cert_file and key_file)"),
        ),
        (400, "Invalid Hostname", RetryAfter("HTTP 400: Invalid Hostname (check url)")),
        (
            400,
            "Request Header Fields Too Large",
            RetryAfter("HTTP 400: Request Header Fields Too Large (check headers)"),
        ),
        *(
            (400, words, RetryAfter(f"HTTP 400: {words} ({remedy})"))
            for words, remedy in (
                (
                    "json encoding isn't supported for opentelemetry format. Use protobuf encoding",
                    'set encoding = "protobuf"',
                ),
                ('{"text":"Data channel is missing","code":10}', "give X-Splunk-Request-Channel in headers"),
                (
                    '{"text":"Incorrect index","code":7,"invalid-event-number":1}',
                    "check which indexes the receiver's token may write",
                ),
            )
        ),
        (408, "no", RetryAfter("HTTP 408: no", 7.0, is_size_suspect=True)),
        (429, "no", RetryAfter("HTTP 429: no", 7.0, is_size_suspect=True)),
        (500, "no", RetryAfter("HTTP 500: no", 7.0, is_size_suspect=True)),
        (
            499,
            "no",
            RetryAfter("HTTP 499: no (not an answer that means success: check url and tag)", 7.0),
        ),
        *(
            (
                status,
                "no",
                RetryAfter(f"HTTP {status}: no (redirects are not followed: set url to where it leads)", 7.0),
            )
            for status in (300, 399)
        ),
        *(
            (
                status,
                "no",
                RetryAfter(f"HTTP {status}: no (nothing takes events there: check url and tag)", 7.0),
            )
            for status in (404, 405, 410)
        ),
        (407, "no", RetryAfter("HTTP 407: no (the proxy wants credentials: check HTTPS_PROXY or HTTP_PROXY)", 7.0)),
        (
            415,
            "no",
            RetryAfter(
                'HTTP 415: no (the receiver does not take this compression or type: set compression = "none")', 7.0
            ),
        ),
    ],
)
def test_a_status_and_its_words_have_an_outcome(status: int, words: str, expected: Outcome) -> None:
    assert outcome_of(status, (200,), words, place="url and tag", wait_seconds=7.0) == expected


@pytest.mark.parametrize("wait_seconds", [None, 0.0])
def test_what_is_too_large_is_too_large_for_good_unless_the_receiver_says_when_to_try_again(
    wait_seconds: float | None,
) -> None:
    outcome = outcome_of(413, (200,), "no", place="url", wait_seconds=wait_seconds)
    assert outcome == TooLarge("HTTP 413: no", 413)


@pytest.mark.parametrize(
    "words",
    [
        "unsupported Content-Encoding: gzip",
        "Content-Encoding 'gzip' is not supported",
        "Invalid Content-Encoding header",
        "unsupported compression type",
        "compression of requests is not enabled",
        "unknown encoding: gzip",
        "this endpoint does not support gzip",
        "gzip encoding not supported",
        "gzip: invalid header",
    ],
)
def test_a_refusal_of_the_compression_costs_no_event(words: str) -> None:
    outcome = outcome_of(400, (200,), words, place="url")
    assert outcome == RetryAfter(f'HTTP 400: {words} (set compression = "none")')


@pytest.mark.parametrize(
    "words",
    [
        "invalid UTF-8 encoding in message",
        "unsupported character encoding: latin-1",
        "unsupported encoding of field body",
        "the encoding of the text is not supported",
        "content is not valid: unknown field",
        'unknown field "compression"',
        "value of event.param.encoding is not allowed",
        "payload could not be decoded",
    ],
)
def test_a_refusal_of_the_encoding_of_a_text_is_one_of_the_event(words: str) -> None:
    assert outcome_of(400, (200,), words, place="url") == Refused(f"HTTP 400: {words}", 400)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        *(
            (Refused(f"HTTP 422: {words}", 422), Accepted(status=422))
            for words in (
                *("Empty body", "At least one", "no events", "NO records", "no log records", "no resource logs"),
                *(
                    "no resourceLogs",
                    "missing log_records in request",
                    "Missing scope logs",
                    "resource_logs is required",
                ),
            )
        ),
        *(
            (Refused(f"HTTP 400: {words}", 400), Refused(f"HTTP 400: {words}", 400))
            for words in ("no such logs", "no tenant for logs", "missing header", "piano events", "a field is required")
        ),
        (Refused("HTTP 400: bad", 400), Refused("HTTP 400: bad", 400)),
        (RetryAfter("empty"), RetryAfter("empty")),
        (Accepted(status=200), Accepted(status=200)),
    ],
)
def test_a_refusal_of_emptiness_is_a_yes(outcome: Outcome, expected: Outcome) -> None:
    assert probed(outcome) == expected


@pytest.mark.parametrize(
    ("body", "content_type", "is_whole", "expected"),
    [
        *((begin, None, True, True) for begin in (b"<!DOCTYPE html>", b" \n<HTML>", b"<head", b"<body", b"<script", b"<!--")),
        (b"\xef\xbb\xbf\n<html>", "application/json", True, True),
        (b"<meta name=x>", None, True, True),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC', None, True, True),
        *(("<html>\u2026".encode(encoding), None, True, True) for encoding in ("utf-16", "utf-16-le", "utf-16-be")),
        (b"<?xml?><!-- no page --><answer/>", None, True, False),
        (b"<headers/>", None, True, False),
        (b"<p>", "Text/HTML", True, True),
        (b"<p>", "text/xml", True, False),
        (b"<p>", None, True, False),
        (b"ok", "text/html", True, False),
        (b"", "text/html", True, False),
        (b"", "text/html", False, True),
        (b"ok", "text/html", False, False),
        (b"", "text/plain", False, False),
        (b'"<html>"', None, True, False),
    ],
)  # fmt: skip
def test_a_page_for_people_is_known_by_how_it_begins(
    body: bytes, content_type: str | None, is_whole: bool, expected: bool
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert is_page(Response(200, headers, body, is_whole)) is expected


@pytest.mark.parametrize(("content_type", "expected"), [("text/html", True), ("text/plain", False)])
def test_what_calls_itself_a_page_and_cannot_be_read_is_one(content_type: str, expected: bool) -> None:
    headers = {"Content-Type": content_type, "Content-Encoding": "br"}
    assert is_page(Response(200, headers, b"\x8b\x1a\x80")) is expected


# One request


class Wire:
    """A fake transport: it records its settings and requests, and gives the answers of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []
        self.answer: Response | Exception = Response(200, {}, b"")
        self.closed = 0
        self.now = 1000.0
        self.takes_seconds = 0.0
        monkeypatch.setattr("poller.sinks.http.Transport", self._made)
        monkeypatch.setattr("poller.sinks.http.time", SimpleNamespace(monotonic=lambda: self.now))

    def _made(self, **told: Any) -> Wire:
        self.told.append(told)
        return self

    def ask_status(self, method: str, url: str, **given: Any) -> Response:
        self.asked.append({"method": method, "url": url, **given})
        self.now += self.takes_seconds
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


def endpoint(
    *,
    config: Config | None = None,
    stop: threading.Event | None = None,
    given: dict[str, Any] | None = None,
    **keys: Any,
) -> Endpoint:
    table = AnyHttpSink(**{"name": "s", "url": URL, "compression": "none", "requests_per_second": 0.0, **keys})
    usual: dict[str, Any] = {"path": "/in", "successes": (200, 202), "place": "url and path", "login": None}
    return Endpoint(table, Context(config or Config(), stop or threading.Event()), **{**usual, **(given or {})})


TOLD: dict[str, Any] = {
    "timeout_seconds": (5.0, 30.0),
    "send_timeout_seconds": 30.0,
    "proxies": {},
    "ca_file": None,
    "client_cert": None,
    "headers": {},
    "max_age_seconds": MAX_AGE_SECONDS,
    "pool_size": 1,
}


@pytest.mark.parametrize(
    ("keys", "given", "expected"),
    [
        ({}, {}, {}),
        (
            {"connect_timeout_seconds": 1.0, "read_timeout_seconds": 2.0, "send_timeout_seconds": 3.0},
            {"connections": 4},
            {"timeout_seconds": (1.0, 2.0), "send_timeout_seconds": 3.0, "pool_size": 4},
        ),
        ({"keepalive_seconds": 0.0}, {}, {"max_age_seconds": 0.0}),
        (
            {"ca_file": "/ca.pem", "cert_file": "/cert.pem"},
            {},
            {"ca_file": "/ca.pem", "client_cert": ("/cert.pem", "/cert.pem")},
        ),
        ({"cert_file": "/cert.pem", "key_file": "/key.pem"}, {}, {"client_cert": ("/cert.pem", "/key.pem")}),
        (
            {"headers": {"X-A": "1", "X-B": "2"}},
            {"headers": {"X-B": "3", "X-C": "4"}},
            {"headers": {"X-A": "1", "X-B": "3", "X-C": "4"}},
        ),
    ],
)
def test_the_transport_is_told_what_the_table_says(
    wire: Wire, keys: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    endpoint(given=given, **keys)
    assert wire.told == [{**TOLD, **expected}]


def test_the_environment_says_the_rest(wire: Wire) -> None:
    network = SimpleNamespace(ca_bundle="/ours.pem", proxies_for=lambda url: {"https": f"http://proxy for {url}"})
    config = Config(network=network)  # type: ignore[arg-type]
    endpoint(config=config)
    endpoint(config=config, ca_file="/ca.pem")
    assert [told["ca_file"] for told in wire.told] == ["/ours.pem", "/ca.pem"]
    assert wire.told[0]["proxies"] == {"https": f"http://proxy for {URL}"}


def test_a_body_is_posted_as_it_is(wire: Wire) -> None:
    assert endpoint().post(b"[]") == Accepted(status=200)
    assert endpoint(given={"content_type": "text/x"}).post(b"[]", "/batch") == Accepted(status=200)
    assert wire.asked == [
        {"method": "POST", "url": f"{URL}/in", "headers": {"Content-Type": "application/json"}, "body": b"[]"},
        {"method": "POST", "url": f"{URL}/in/batch", "headers": {"Content-Type": "text/x"}, "body": b"[]"},
    ]


def test_a_content_type_of_the_table_is_sent_in_place_of_ours_and_is_no_secret(wire: Wire) -> None:
    wire.answer = Response(415, {}, b"application/json is not what text/x2 is, nor what is in secret-2")
    outcome = endpoint(headers={"content-TYPE": "text/x2", "X-A": "secret-2"}).post(b"[]")
    assert [asked["headers"] for asked in wire.asked] == [{"Content-Type": "text/x2"}]
    assert isinstance(outcome, RetryAfter)
    assert "application/json is not what text/x2 is, nor what is in ****" in outcome.reason


def test_a_body_is_compressed_and_no_body_is_not(wire: Wire) -> None:
    compressed = endpoint(compression="gzip")
    assert compressed.exchange(b"[]", "/x", "PUT") == (Accepted(status=200), wire.answer)
    assert compressed.exchange(b"", method="GET") == (Accepted(status=200), wire.answer)
    assert compressed.exchange(b"", method="POST") == (Accepted(status=200), wire.answer)
    put, get, post = wire.asked
    assert (gzip.decompress(post["body"]), post["headers"]["Content-Encoding"]) == (b"", "gzip"), "as an event would be"
    assert gzip.decompress(put["body"]) == b"[]"
    assert (put["method"], put["url"]) == ("PUT", f"{URL}/in/x")
    assert put["headers"] == {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert (get["method"], get["url"], get["body"]) == ("GET", f"{URL}/in", b"")
    assert get["headers"] == {"Content-Type": "application/json"}


def test_who_wants_the_whole_of_a_success_says_how_large_it_may_be(wire: Wire) -> None:
    endpoint(given={"max_success_bytes": 99}).post(b"[]")
    assert wire.asked[0] == {
        "method": "POST",
        "url": f"{URL}/in",
        "headers": {"Content-Type": "application/json"},
        "body": b"[]",
        "whole": (200, 202),
        "max_bytes": 99,
    }
    wire.answer = BodyTooLargeError("the answer is larger than 99 bytes")
    assert endpoint(given={"max_success_bytes": 99}).post(b"[]") == RetryAfter(
        "the answer is larger than 99 bytes (check url and path)", is_size_suspect=True
    )
    early = RetryAfter("the answer ended early, and may have named refused records", is_size_suspect=True)
    wire.answer = Response(200, {}, b"{", is_whole=False)
    assert endpoint(given={"max_success_bytes": 99}).post(b"[]") == early
    assert endpoint().post(b"[]") == Accepted(status=200), "its head is what counts"
    wire.answer = Response(503, {}, b"busy", is_whole=False)
    assert endpoint(given={"max_success_bytes": 99}).post(b"[]") == RetryAfter("HTTP 503: busy", is_size_suspect=True)
    wire.answer = Response(200, {"Content-Type": "text/html"}, b"<p>", is_whole=False)
    page = endpoint(given={"max_success_bytes": 99}).post(b"[]")
    assert isinstance(page, RetryAfter)
    assert "a page for people" in page.reason


@pytest.mark.parametrize(
    ("login", "header"),
    [
        (Login("APIKEY", source("k ey")), ("APIKEY", "k ey")),
        (Login("Authorization", source("tok"), "Bearer"), ("Authorization", "Bearer tok")),
        (Login("Authorization", source("p:w"), username="jane"), ("Authorization", "Basic amFuZTpwOnc=")),
    ],
)
def test_the_secret_is_sent_in_its_header_and_masked_in_all_its_forms(
    wire: Wire, login: Login, header: tuple[str, str]
) -> None:
    secret, form = (
        login.source.read().reveal(),
        header[1].rpartition(" ")[2] if login.scheme or login.username else header[1],
    )
    wire.answer = Response(400, {}, f"<{secret}> <{form}>".encode())
    assert endpoint(given={"login": login}).post(b"[]") == Refused("HTTP 400: <********> <********>", 400)
    name, value = header
    assert wire.asked[0]["headers"] == {"Content-Type": "application/json", name: value}


def test_values_of_headers_are_masked_unless_they_are_too_short_to_be_secrets(wire: Wire) -> None:
    wire.answer = Response(400, {}, b"1234 567")
    assert endpoint(headers={"X-A": "1234", "X-B": "567"}).post(b"[]") == Refused("HTTP 400: ******** 567", 400)


def test_an_answer_is_made_readable_and_what_was_sent_is_left_out(wire: Wire) -> None:
    body = b'["' + b"canary " * 20 + b'"]'
    wire.answer = Response(400, {}, b"?")
    readable: Callable[[Response], Response] = lambda answer: answer._replace(body=b"no: " + body)  # noqa: E731
    outcome = endpoint(compression="gzip", given={"readable": readable}).post(body)
    assert isinstance(outcome, Refused)
    assert "canary" not in outcome.reason


def test_a_key_that_cannot_be_read_sends_nothing(wire: Wire, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    gone = SecretSource("file", str(tmp_path / "gone"), path="sinks[0].api_key_file")
    sink = endpoint(given={"login": Login("APIKEY", gone)})
    outcome, answer = sink.exchange(b"[]")
    assert isinstance(outcome, CredentialsRefused)
    assert "gone" in outcome.reason
    assert answer is None

    def not_now(self: SecretSource) -> Secret:
        raise TransientError("too many open files")

    monkeypatch.setattr(SecretSource, "read", not_now)
    assert sink.exchange(b"[]") == (RetryAfter("too many open files"), None)
    assert wire.asked == []


def test_a_request_that_is_not_answered_is_tried_again(wire: Wire) -> None:
    wire.answer = TransientError("no answer", retry_after_seconds=3.0, is_size_suspect=True)
    assert endpoint().exchange(b"[]") == (RetryAfter("no answer", 3.0, is_size_suspect=True), None)
    wire.answer = TransientError("no connection")
    assert endpoint().exchange(b"[]") == (RetryAfter("no connection"), None)


def test_a_page_in_place_of_an_answer_is_no_success(wire: Wire) -> None:
    wire.answer = Response(202, {"Content-Type": "text/html"}, b"<html>Sign in</html>")
    outcome, answer = endpoint().exchange(b"[]")
    assert outcome == RetryAfter(
        "HTTP 202: Sign in (a page for people, not the receiver's answer: check url and path and any proxy or sign-on portal)"
    )
    assert answer is wire.answer


def test_a_refusal_comes_with_its_answer_and_the_wish_to_wait(wire: Wire) -> None:
    wire.answer = Response(503, {"Retry-After": "7"}, b"busy")
    assert endpoint().exchange(b"[]") == (RetryAfter("HTTP 503: busy", 7.0, is_size_suspect=True), wire.answer)
    wire.answer = Response(404, {}, b"no")
    outcome = endpoint().post(b"[]")
    assert outcome == RetryAfter("HTTP 404: no (nothing takes events there: check url and path)")


def test_connections_that_were_idle_for_too_long_are_closed_first(wire: Wire) -> None:
    sink = endpoint(keepalive_seconds=60.0)
    wire.takes_seconds = 10.0
    closed = []
    for idle_seconds in (59, 59, 60, 0):
        wire.now += idle_seconds
        sink.post(b"[]")
        closed.append(wire.closed)
    assert closed == [0, 0, 1, 1], "a request that takes long is no idle time"


def test_what_is_idle_counts_from_the_last_try_also_where_it_was_not_answered(wire: Wire) -> None:
    sink = endpoint(keepalive_seconds=60.0)
    wire.answer = TransientError("no answer")
    for _ in range(2):
        wire.now += 59
        sink.post(b"[]")
    assert wire.closed == 0


def test_without_keepalive_there_is_nothing_to_close(wire: Wire) -> None:
    sink = endpoint(keepalive_seconds=0.0)
    wire.now += 1_000_000
    sink.post(b"[]")
    assert wire.closed == 0


def test_requests_keep_the_pace_and_a_stop_ends_the_wait(wire: Wire) -> None:
    stop = threading.Event()
    sink = endpoint(stop=stop, requests_per_second=0.01)
    sink.post(b"[]")
    stop.set()
    with pytest.raises(StoppedError):
        sink.post(b"[]")
    assert len(wire.asked) == 1
