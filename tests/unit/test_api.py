"""The Activity Log client against a real server: every status and every bad answer, retries, tokens, the clock."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from poller.core.clocks import latest_now, trusted_now
from poller.core.delivery import RetryPolicy
from poller.core.errors import AuthError, BodyTooLargeError, PollerError, RejectedError, StoppedError, TransientError
from poller.core.windows import Window
from poller.ionos.api import ActivityLog
from poller.net.transport import RateLimit, Response, Transport
from tests.support import free_port

WINDOW = Window(1_777_621_340, 1_777_621_400)
PAGE = b'{"hits":{"total":1,"hits":[{"_source":{"@uuid":"a"}}]}}'
TOKEN = "Bearer canary-token"


class Reply(NamedTuple):
    """An answer of the server. `is_cut` closes the connection in the middle of the body."""

    status: int = 200
    body: bytes = PAGE
    headers: Mapping[str, str] = MappingProxyType({})
    is_cut: bool = False


class Request(NamedTuple):
    """A request to the server, with header names in lower case."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


class Server(ThreadingHTTPServer):
    """Loopback HTTP that gives `replies` in order, then repeats the last one. It keeps the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        self.replies: list[Reply | Callable[[Request], Reply]] = [Reply()]
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {key: value for key, (value,) in parse_qs(url.query).items()}
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.requests.append(Request(url.path, query, headers))
                reply = server.replies[min(len(server.requests), len(server.replies)) - 1]
                if callable(reply):
                    reply = reply(server.requests[-1])
                self.send_response_only(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body[: len(reply.body) // 2] if reply.is_cut else reply.body)
                self.close_connection = reply.is_cut

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library chose the name
                pass

        super().__init__(("127.0.0.1", 0), Handler)


class Stop(threading.Event):
    """Never set. A wait takes no real time: it only moves `clock`. `waits` keeps the length of each wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def clock(self) -> float:
        return time.monotonic() + sum(self.waits)

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        return self.is_set()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def stop() -> Stop:
    return Stop()


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport(timeout_seconds=(1.0, 2.0))
    yield transport
    transport.close()


Client = Callable[..., ActivityLog]


@pytest.fixture
def client(server: Server, stop: Stop, transport: Transport) -> Client:
    """Makes a client of the server; a test may change its options."""

    def make(**options: Any) -> ActivityLog:
        given = {
            "url": f"http://127.0.0.1:{server.server_port}/",
            "authorization": lambda: TOKEN,
            "transport": transport,
            "rate_limit": RateLimit(0),
            "stop": stop,
            "clock": stop.clock,
            **options,
        }
        return ActivityLog(**given)

    return make


def page(api: ActivityLog, limit: int = 100) -> list[bytes]:
    return [event.line for event in api.page("12345678", WINDOW, 20, limit).events]


def test_a_page_is_asked_for_as_the_api_wants_it(server: Server, client: Client) -> None:
    assert page(client()) == [b'{"@uuid":"a"}']
    (request,) = server.requests
    assert request.path == "/activitylog/v1/contracts/12345678"
    assert request.query == {
        "dateStart": "2026-05-01T07:42:20Z",
        "dateEnd": "2026-05-01T07:43:20Z",
        "offset": "20",
        "limit": "100",
    }
    assert request.headers["authorization"] == TOKEN
    assert request.headers["x-contract-number"] == "12345678"
    assert request.headers["content-type"] == "application/json"


def test_contracts_are_asked_for_without_one(server: Server, client: Client) -> None:
    server.replies = [Reply(body=b'[{"id":1},{"id":"2"}]')]
    assert client().contracts() == ["1", "2"]
    (request,) = server.requests
    assert (request.path, request.query) == ("/activitylog/v1/contracts", {})
    assert "x-contract-number" not in request.headers
    assert request.headers["content-type"] == "application/json"


# Every status


def test_an_answer_without_content_says_that_there_is_nothing(server: Server, client: Client) -> None:
    server.replies = [Reply(204, b"")]
    assert page(client()) == []
    server.replies = [Reply(204, b"")]
    assert client().contracts() == []


ALWAYS_TRANSIENT = [408, 500, 501, 502, 503, 504, 520, 599]
NEVER_RETRIED = [
    *((status, AuthError) for status in (403,)),
    *((status, RejectedError) for status in (206, 301, 302, 303, 304, 307, 308)),
    *((status, RejectedError) for status in (400, 402, 404, 405, 406, 409, 410, 413, 414, 422, 451, 499)),
]


@pytest.mark.parametrize("status", ALWAYS_TRANSIENT)
def test_what_may_work_later_is_tried_again_and_then_given_up(
    server: Server, client: Client, stop: Stop, status: int
) -> None:
    server.replies = [Reply(status, b"<html>")]
    with pytest.raises(TransientError, match=str(status)) as raised:
        page(client(max_retries=3))
    assert (raised.value.status, raised.value.contract) == (status, "12345678")
    assert len(server.requests) == 4
    assert len(stop.waits) == 3
    assert max(stop.waits) <= 2.0


@pytest.mark.parametrize("status", ALWAYS_TRANSIENT)
def test_a_failure_that_passes_goes_unnoticed(server: Server, client: Client, status: int) -> None:
    server.replies = [Reply(status, b"<html>"), Reply(status, b""), Reply()]
    assert page(client()) == [b'{"@uuid":"a"}']


@pytest.mark.parametrize(("status", "kind"), NEVER_RETRIED)
def test_what_will_not_work_later_is_not_tried_again(
    server: Server, client: Client, status: int, kind: type[PollerError]
) -> None:
    body = b"" if status in (204, 304) else b'{"httpStatus":400,"messages":[]}'
    server.replies = [Reply(status, body, {"Location": "/elsewhere"})]
    with pytest.raises(kind, match=str(status)) as raised:
        page(client())
    assert raised.value.contract == "12345678"
    assert getattr(raised.value, "status", status) == status
    # If the page size may be the cause, the client asks for the present with the same size, then with a single entry.
    assert len(server.requests) == (3 if status in (400, 413, 422) else 1)
    assert {request.path for request in server.requests} == {"/activitylog/v1/contracts/12345678"}


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (401, "replace /etc/token; `ionos-poller check`"),
        (403, "ACCESS_ACTIVITY_LOG"),
        (404, "api.url"),
        (302, "api.url"),
    ],
)
def test_where_a_person_is_needed_the_hint_says_what_to_do(
    server: Server, client: Client, status: int, word: str
) -> None:
    server.replies = [Reply(status)]
    with pytest.raises(PollerError) as raised:
        page(client(key_remedy="replace /etc/token"))
    assert word in raised.value.hint


# Every bad answer


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"<!DOCTYPE html><html>maintenance</html>", headers={"Content-Type": "text/html"}),
        Reply(body=b""),
        Reply(body=PAGE[:-10]),
        Reply(body=PAGE, is_cut=True),
        Reply(body=b"{}"),
        Reply(body=b'{"hits":{"total":"many","hits":[]}}'),
        Reply(body=b'{"hits":{"total":1,"hits":null}}'),
        Reply(body=b"null"),
        Reply(body=b"not gzip", headers={"Content-Encoding": "gzip"}),
        Reply(body=gzip.compress(PAGE, mtime=0)[:-12], headers={"Content-Encoding": "gzip"}),
        Reply(body=b"[" * 100_000),
    ],
    ids=lambda reply: f"{reply.body[:24]!r}{' cut' if reply.is_cut else ''}",
)
def test_a_bad_answer_is_tried_again_and_then_transient(server: Server, client: Client, reply: Reply) -> None:
    server.replies = [reply, Reply()]
    assert page(client()) == [b'{"@uuid":"a"}']
    server.replies = [reply]
    server.requests.clear()
    with pytest.raises(TransientError) as raised:
        page(client(max_retries=2))
    assert raised.value.contract == "12345678"
    assert len(server.requests) == 3


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'[{"id":"x"}]', b"[{}]"])
def test_bad_contracts_are_transient(server: Server, client: Client, body: bytes) -> None:
    server.replies = [Reply(body=body)]
    with pytest.raises(TransientError):
        client(max_retries=1).contracts()


def test_bytes_that_are_not_utf8_are_mended_and_told(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.replies = [Reply(body=b'[{"s":"\xff"}]')]
    assert page(client()) == ['{"s":"\ufffd"}'.encode()]
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert record.message == "page.mended"


def test_a_page_too_heavy_is_not_tried_again_but_asked_for_smaller_by_who_knows_how(
    server: Server, client: Client
) -> None:
    server.replies = [Reply(body=b'[{"s":"' + b"x" * 5000 + b'"}]')]
    api = client(max_page_bytes=3000)
    with pytest.raises(BodyTooLargeError):
        page(api)
    assert len(server.requests) == 1
    assert len(page(api, limit=1)) == 1  # a single entry may be larger than a page


def test_a_bomb_is_too_heavy(server: Server, client: Client) -> None:
    server.replies = [Reply(body=gzip.compress(bytes(20_000_000)), headers={"Content-Encoding": "gzip"})]
    with pytest.raises(BodyTooLargeError):
        page(client())


def test_no_connection_is_tried_again_and_then_transient(client: Client, stop: Stop) -> None:
    with pytest.raises(TransientError, match="connection refused") as raised:
        page(client(url=f"http://127.0.0.1:{free_port()}", max_retries=2))
    assert raised.value.hint
    assert len(stop.waits) == 2


# Retry-After


@pytest.mark.parametrize("headers", [{"Retry-After": "7"}, {"retry-after": "7"}])
def test_the_other_sides_wish_is_a_floor(server: Server, client: Client, stop: Stop, headers: dict[str, str]) -> None:
    server.replies = [Reply(429, b"", headers), Reply()]
    page(client())
    (wait,) = stop.waits
    assert 7.0 <= wait <= 7.7


def test_the_wish_may_be_a_date(server: Server, client: Client, stop: Stop) -> None:
    at = datetime.now(UTC) + timedelta(seconds=20)
    server.replies = [Reply(503, b"", {"Retry-After": format_datetime(at, usegmt=True)}), Reply()]
    page(client())
    (wait,) = stop.waits
    assert 17.0 <= wait <= 22.0


@pytest.mark.parametrize("wish", ["1000000000", "3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_wish_too_long_to_wait_for_is_left_to_the_next_poll(
    server: Server, client: Client, stop: Stop, wish: str
) -> None:
    server.replies = [Reply(429, b"", {"Retry-After": wish})]
    with pytest.raises(TransientError) as raised:
        page(client())
    assert raised.value.retry_after_seconds is not None
    assert raised.value.retry_after_seconds >= 3600
    assert stop.waits == []
    assert len(server.requests) == 1


@pytest.mark.parametrize("wish", ["1e9", "soon", "-1", "0", "Fri, 01 Jan 2010 00:00:00 GMT"])
def test_a_wish_that_makes_no_sense_or_has_passed_leaves_our_own_backoff(
    server: Server, client: Client, stop: Stop, wish: str
) -> None:
    server.replies = [Reply(429, b"", {"Retry-After": wish}), Reply()]
    page(client(retry=RetryPolicy(initial_seconds=20.0, max_seconds=20.0)))
    (wait,) = stop.waits
    assert 0.0 < wait <= 20.0


# Credentials


class Credentials:
    """A token file that is replaced while we run."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = list(tokens)

    def __call__(self) -> str:
        return self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]


def accept(token: str) -> Callable[[Request], Reply]:
    return lambda request: Reply() if request.headers["authorization"] == token else Reply(401, b"{}")


def test_a_token_that_was_renewed_is_read_anew_after_a_401(server: Server, client: Client, stop: Stop) -> None:
    server.replies = [accept("Bearer new")]
    api = client(authorization=Credentials("Bearer old", "Bearer new"))
    assert page(api) == [b'{"@uuid":"a"}']
    assert page(api) == [b'{"@uuid":"a"}']
    assert [request.headers["authorization"] for request in server.requests] == [
        "Bearer old",
        "Bearer new",
        "Bearer new",
    ]
    assert stop.waits == []


def test_a_refused_token_is_asked_with_once_more_and_no_more_than_that(
    server: Server, client: Client, stop: Stop
) -> None:
    server.replies = [Reply(401)]
    with pytest.raises(AuthError):
        page(client())
    assert len(server.requests) == 2
    assert len(stop.waits) == 1


def test_a_401_of_one_moment_goes_unnoticed(server: Server, client: Client) -> None:
    server.replies = [Reply(401), Reply()]
    assert page(client()) == [b'{"@uuid":"a"}']


def test_a_renewed_token_that_is_refused_as_well_is_the_end(server: Server, client: Client) -> None:
    server.replies = [Reply(401)]
    with pytest.raises(AuthError):
        page(client(authorization=Credentials("Bearer 1", "Bearer 2", "Bearer 3", "Bearer 4")))
    assert len(server.requests) == 2


def test_a_token_renewed_by_another_thread_in_the_meantime_is_used(
    server: Server, client: Client, transport: Transport
) -> None:
    # Two requests are sent with the old token. The other request is refused first, and the token file is read again.
    # Our request is refused later, and must see that the token in use is newer than its own.
    class Overtaken:
        is_first = True

        def request(self, *args: Any, **options: Any) -> Response:
            response = transport.request(*args, **options)
            if self.is_first:
                self.is_first = False
                assert page(api) == [b'{"@uuid":"a"}']
            return response

    server.replies = [accept("Bearer new")]
    api = client(authorization=Credentials("Bearer old", "Bearer new"), transport=Overtaken())
    assert page(api) == [b'{"@uuid":"a"}']


def test_no_error_and_no_log_holds_the_token(server: Server, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for reply in (Reply(401), Reply(403), Reply(404), Reply(500), Reply(302), Reply(body=b"<html>")):
        server.replies = [reply]
        server.requests.clear()
        with pytest.raises(PollerError) as raised:
            page(client(max_retries=1))
        assert "canary" not in f"{raised.value} {raised.value.hint}"
    ours = [record.__dict__ for record in caplog.records if record.name.startswith("poller")]
    assert ours
    assert "canary" not in json.dumps(ours, default=str)


# Waiting, stopping, observing


def test_a_wait_between_retries_ends_when_asked_to_stop(server: Server, client: Client, stop: Stop) -> None:
    stop.set()
    server.replies = [Reply(500)]
    with pytest.raises(StoppedError):
        page(client())
    assert len(server.requests) == 1


def test_every_request_is_observed_with_its_status(server: Server, client: Client) -> None:
    seen: list[str] = []
    server.replies = [Reply(500), Reply(429), Reply(is_cut=True), Reply()]
    page(client(observe=lambda code, seconds: seen.append(code) if seconds >= 0 else None))
    assert seen == ["500", "429", "error", "200"]


def test_every_attempt_takes_its_turn(server: Server, client: Client, stop: Stop) -> None:
    server.replies = [Reply(500), Reply(500), Reply()]
    page(client(rate_limit=RateLimit(1), retry=RetryPolicy(0.0, 0.0)))
    turns = [wait for wait in stop.waits if wait]
    assert len(turns) == 2
    assert 0.5 < turns[0] <= 1.0 < turns[1] <= 2.0


@pytest.mark.parametrize(("hours", "expected"), [(-1, 3600), (0, 0), (2, -7200)])
def test_the_difference_between_the_clocks_is_kept(server: Server, client: Client, hours: int, expected: int) -> None:
    at = datetime.now(UTC) + timedelta(hours=hours)
    server.replies = [Reply(headers={"Date": format_datetime(at, usegmt=True)})]
    api = client()
    page(api)
    assert api.clock_skew_seconds == pytest.approx(expected, abs=5)


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 99 May 2026 07:43:20 GMT"])
def test_a_date_that_makes_no_sense_says_nothing_about_the_clocks(server: Server, client: Client, date: str) -> None:
    server.replies = [Reply(headers={"Date": date})]
    api = client()
    page(api)
    assert api.clock_skew_seconds is None


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 01 Jan 2100 00:00:00 GMT",
        "Mon, 01 Jan 1601 00:00:00 GMT",
        "Thu, 01 Jan 1970 00:00:00 GMT",
    ],
)
def test_a_clock_of_the_api_that_is_not_set_is_not_believed(server: Server, client: Client, date: str) -> None:
    server.replies = [Reply(headers={"Date": date})]
    api = client()
    page(api)
    now = time.time()
    assert abs(api.clock_skew_seconds or 0.0) > 86_400
    assert trusted_now(api.clock_skew_seconds, now) == latest_now(api.clock_skew_seconds, now) == now


def test_a_body_that_takes_long_is_no_difference_between_the_clocks(server: Server, client: Client) -> None:
    class Slow(Transport):
        def request(self, *args: Any, **options: Any) -> Response:
            answer = super().request(*args, **options)
            return answer._replace(head_at=answer.head_at - 40, body_seconds=40.0)

    date = format_datetime(datetime.now(UTC) - timedelta(seconds=40), usegmt=True)
    server.replies = [Reply(headers={"Date": date})]
    api = client(transport=Slow())
    page(api)
    assert api.clock_skew_seconds == pytest.approx(0, abs=1.5)


def test_a_clock_of_ours_that_is_set_shows_before_the_next_answer(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.replies = [Reply(headers={"Date": format_datetime(datetime.now(UTC), usegmt=True)})]
    api = client()
    page(api)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7200)
    assert api.clock_skew_seconds == pytest.approx(7200, abs=2)


# What the API says


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"httpStatus":400,"messages":[{"errorCode":"309","message":"no such range"}]}', ": 309: no such range"),
        (b'{"httpStatus":400,"messages":[{"message":"a"},{"message":"b\\n\\u001b[1mc"}]}', ": a; b [1mc"),
        (b'{"messages":["plain"]}', ": plain"),
        (b"out of\r\n\x07order", ": out of order"),
        (b'{"messages":[]}', ""),
        (b"x" * 100_000, ": " + "x" * 200),
        (b"you sent canary-token", ": you sent ********"),
        (b'{"hits":{"total":1,"hits":[{"_source":{"user":"jane"}}]}}', ""),
        (b'{"items":[{"@uuid" : "a"}]}', ""),
    ],
)
def test_the_words_of_the_api_are_told(server: Server, client: Client, status: int, body: bytes, words: str) -> None:
    server.replies = [Reply(status, body)]
    with pytest.raises(PollerError) as raised:
        page(client(max_retries=0))
    assert raised.value.message.endswith(f"{words}" if words else str(status) if status == 500 else f"({status})")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            b'{"httpStatus":503,"messages":[{"errorCode":"7","message":"the log is being moved"}]}',
            "7: the log is being moved",
        ),
        (b'{"messages":["you sent canary-token"]}', "you sent ********"),
        (b'{"messages":[]}', "missing required field `hits`"),
        (b'{"hits":{"hits":[{"_source":{"x":"canary"}}],"total":"7"}}', "Expected"),
    ],
)
def test_the_words_of_an_error_that_comes_as_a_success_are_told_and_no_entry_is(
    server: Server, client: Client, body: bytes, words: str
) -> None:
    server.replies = [Reply(200, body)]
    with pytest.raises(TransientError, match="the API's answer cannot be used") as raised:
        page(client(max_retries=0))
    assert words in raised.value.message
    assert "canary" not in raised.value.message


def test_the_password_of_a_basic_login_is_not_told(server: Server, client: Client) -> None:
    server.replies = [Reply(400, b"canary-password is wrong")]
    pair = base64.b64encode(b"user:canary-password").decode()
    with pytest.raises(RejectedError) as raised:
        page(client(authorization=lambda: f"Basic {pair}"))
    assert raised.value.message.endswith("******** is wrong")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br", "aws-chunked"])
def test_an_encoding_that_was_not_asked_for_is_named(server: Server, client: Client, encoding: str) -> None:
    server.replies = [Reply(body=b"\x8b\x03\x80", headers={"Content-Encoding": encoding})]
    with pytest.raises(TransientError, match=r"encoding|compression") as raised:
        page(client(max_retries=0))
    assert encoding in raised.value.message or "gzip" in encoding


def test_an_error_that_cannot_be_read_has_no_words(server: Server, client: Client) -> None:
    server.replies = [Reply(500, b"canary", {"Content-Encoding": "br"})]
    with pytest.raises(TransientError) as raised:
        page(client(max_retries=0))
    assert raised.value.message == "the API answered 500"


def test_a_proxy_that_wants_credentials_is_named(server: Server, client: Client) -> None:
    server.replies = [Reply(407, b"who are you?")]
    with pytest.raises(TransientError, match="proxy wants credentials") as raised:
        page(client(max_retries=0))
    assert "HTTPS_PROXY" in raised.value.hint


# Pages that the API finds too large


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    ("words", "most"),
    [
        ("limit must not exceed 100", 100),
        ("the parameter 'limit' must be between 1 and 100", 100),
        ("invalid page size", 250),
        ("[limit] is too large", 125),
        ("size [1000] is too large, the most is [100]", 100),
        ("GET /contracts/1?dateStart=2026-03-01&limit=1000: limit must not exceed 100", 100),
        ('{"dateEnd": "2026-03-01T00:00:00Z", "limit": "must not exceed 100"}', 100),
        ("limit must be 100 at most at a time", 100),
    ],
)
def test_a_page_that_the_api_finds_too_large_is_asked_for_smaller(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture, status: int, words: str, most: int
) -> None:
    body = json.dumps({"httpStatus": status, "messages": [{"message": words}]}).encode()
    server.replies = [lambda request: Reply(status, body) if int(request.query["limit"]) > most else Reply()]
    api = client()
    assert page(api, limit=1000) == [b'{"@uuid":"a"}']
    assert page(api, limit=1000) == [b'{"@uuid":"a"}']
    limits = [int(request.query["limit"]) for request in server.requests]
    assert limits[-2:] == [most, most]
    assert api.max_limit == most
    assert words in api.limit_words
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["page_size.refused"]


@pytest.mark.parametrize(
    "body", [b"", b"no", b"{}", b"<html>Bad Request</html>", b'{"messages":[{"message":"invalid"}]}']
)
def test_a_page_that_is_refused_for_its_size_in_no_words_is_asked_for_smaller(
    server: Server, client: Client, body: bytes
) -> None:
    server.replies = [lambda request: Reply(400, body) if int(request.query["limit"]) > 100 else Reply()]
    api = client()
    assert page(api, limit=1000) == [b'{"@uuid":"a"}']
    assert (api.max_limit, "400" in api.limit_words) == (62, True)


def test_a_limit_that_the_api_lowers_later_is_found_as_well(server: Server, client: Client) -> None:
    taken = 1000
    server.replies = [lambda request: Reply(400, b"no") if int(request.query["limit"]) > taken else Reply()]
    api = client()
    page(api, limit=1000)
    taken = 500
    page(api, limit=1000)
    assert api.max_limit == 500


@pytest.mark.parametrize(
    "words",
    [
        "dateStart is more than 90 days ago",
        "the limit is 90 days",
        "a span over the limit of 744 hours",
        "start date exceeds the limit of 3 months",
        "limit must not exceed 100",
        "rate limit",
        "",
    ],
)
def test_a_query_that_is_refused_for_something_else_costs_one_request_more_and_changes_no_limit(
    server: Server, client: Client, words: str
) -> None:
    old = "2026-05-01T07:42:20Z"
    server.replies = [lambda request: Reply(400, words.encode()) if request.query["dateStart"] == old else Reply()]
    api = client()
    with pytest.raises(RejectedError):
        page(api, limit=1000)
    assert len(server.requests) == 2
    assert api.limit_words == ""
    assert server.requests[1].query["limit"] == "1000"


def test_an_api_that_refuses_everything_is_told_with_its_first_words_after_three_requests(
    server: Server, client: Client
) -> None:
    server.replies = [Reply(400, b"limit no 1"), Reply(400, b"limit no 2")]
    with pytest.raises(RejectedError, match="limit no 1"):
        page(client(), limit=1000)
    assert [request.query["limit"] for request in server.requests] == ["1000", "1000", "1"]


def test_a_single_entry_that_is_refused_is_not_refused_for_its_size(server: Server, client: Client) -> None:
    server.replies = [Reply(400, b"limit must not exceed 100")]
    with pytest.raises(RejectedError):
        page(client(), limit=1)
    assert len(server.requests) == 1


def test_the_size_is_tried_on_the_present_by_the_clock_of_the_api(server: Server, client: Client) -> None:
    api_time = datetime(2027, 3, 1, 12, 0, 0, tzinfo=UTC)
    dated = {"Date": format_datetime(api_time, usegmt=True)}
    server.replies = [Reply(400, b"no", dated), Reply(headers=dated)]
    with pytest.raises(RejectedError):
        page(client(), limit=1000)
    tried = datetime.fromisoformat(server.requests[1].query["dateStart"])
    assert 30 <= (api_time - tried).total_seconds() <= 90


# 429


def test_an_account_that_is_refused_waits_once_for_all_its_requests(server: Server, client: Client, stop: Stop) -> None:
    server.replies = [Reply(429, b""), Reply(429, b""), Reply()]
    api = client()
    page(api)
    assert [round(wait) for wait in stop.waits[:2]] == [1, 2]
    page(api)
    assert len(server.requests) == 4


def test_an_account_that_stays_refused_is_given_up_until_the_next_poll(
    server: Server, client: Client, stop: Stop
) -> None:
    server.replies = [Reply(429, b"slow down")]
    api = client()
    for number in "123":
        with pytest.raises(TransientError, match="429") as raised:
            api.page(number, WINDOW, 0, 100)
        assert (raised.value.status, raised.value.contract) == (429, number)
    assert len(server.requests) <= 6
    assert sum(stop.waits) <= 31


def test_a_window_of_which_pages_were_read_is_waited_for_longer(server: Server, client: Client, stop: Stop) -> None:
    server.replies = [*[Reply(429, b"")] * 12, Reply()]
    assert page(client()) == [b'{"@uuid":"a"}']
    assert sum(stop.waits) > 60


# The list of contracts


def pages_of(total: int, limit: int, shape: Callable[[list[int], int, str], bytes]) -> Callable[[Request], Reply]:
    """Answers with the list in pages, by offset and limit."""

    def answer(request: Request) -> Reply:
        offset, size = int(request.query.get("offset", 0)), int(request.query.get("limit", limit))
        numbers = list(range(total))[offset : offset + size]
        follow = f"?offset={offset + size}&limit={size}" if offset + size < total else ""
        return Reply(body=shape(numbers, total, follow))

    return answer


def listed(numbers: list[int]) -> list[dict[str, int]]:
    return [{"id": 31_000_000 + number} for number in numbers]


@pytest.mark.parametrize(
    "shape",
    [
        lambda numbers, total, follow: {"items": listed(numbers), "total": total},
        lambda numbers, total, follow: {"items": listed(numbers), "total": str(total)},
        lambda numbers, total, follow: {
            "items": listed(numbers),
            "_links": {"next": f"contracts{follow}"} if follow else {},
        },
        lambda numbers, total, follow: {
            "items": listed(numbers),
            "_links": {"next": {"href": f"contracts{follow}"}} if follow else {},
        },
        lambda numbers, total, follow: {"items": listed(numbers), "next": f"contracts{follow}" if follow else None},
        lambda numbers, total, follow: {
            "items": listed(numbers),
            "links": [{"rel": "next", "href": f"contracts{follow}"}] if follow else [],
        },
        lambda numbers, total, follow: {"items": listed(numbers), "hasMore": bool(follow)},
        lambda numbers, total, follow: {"items": listed(numbers), "page": {"offset": numbers[0], "total": total}},
        lambda numbers, total, follow: {
            "items": listed(numbers),
            "total": total,
            "_links": {"next": f"https://elsewhere.example/contracts{follow}"},
        },
    ],
)
def test_a_list_of_contracts_in_pages_is_read_to_its_end(
    server: Server, client: Client, shape: Callable[[list[int], int, str], Any]
) -> None:
    server.replies = [pages_of(5, 2, lambda *page: json.dumps(shape(*page)).encode())]
    found = client().contracts()
    assert found == [str(31_000_000 + number) for number in range(5)]
    assert found.missing == ""
    assert {request.headers["authorization"] for request in server.requests} == {TOKEN}


def test_a_link_in_a_header_is_followed(server: Server, client: Client) -> None:
    link = {"Link": '<contracts?cursor=x>; rel="next"'}
    server.replies = [Reply(body=b'[{"id":1}]', headers=link), Reply(body=b'[{"id":2}]')]
    assert client().contracts() == ["1", "2"]
    assert server.requests[-1].query == {"cursor": "x"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"items":[{"id":1},{"id":2}],"total":3}',
        b'{"items":[{"id":1},{"id":2}],"_links":{"next":"contracts?page=2"}}',
        b'{"items":[{"id":1},{"id":2}],"nextPageToken":"abc"}',
    ],
)
def test_a_list_that_gives_the_same_page_again_is_told(server: Server, client: Client, body: bytes) -> None:
    server.replies = [Reply(body=body)]
    found = client().contracts()
    assert found == ["1", "2"]
    assert "contracts" in found.missing
    assert len(server.requests) <= 3


def test_what_names_no_contract_in_the_list_is_told_and_the_others_are_polled(server: Server, client: Client) -> None:
    server.replies = [Reply(body=b'[{"id":1},null,{"id":2}]')]
    found = client().contracts()
    assert found == ["1", "2"]
    assert "1 in the list" in found.missing


def test_of_a_list_of_contracts_without_end_a_bounded_part_is_polled_and_told(server: Server, client: Client) -> None:
    server.replies = [Reply(body=b"[" + b",".join(b'{"id":%d}' % number for number in range(60_000)) + b"]")]
    found = client().contracts()
    assert len(found) == 50_000
    assert "more than 50,000" in found.missing
    server.replies = [Reply(body=b"[" + b",".join(b'{"id":%d}' % number for number in range(50_000)) + b"]")]
    found = client().contracts()
    assert (len(found), found.missing) == (50_000, "")


def test_an_answer_of_a_part_of_the_log_is_asked_again(server: Server, client: Client) -> None:
    found = b'"hits":{"total":0,"hits":[]}}'
    server.replies = [Reply(body=b'{"timed_out":true,' + found), Reply(body=b'{"timed_out":false,' + found)]
    assert page(client(max_retries=1)) == []
    assert len(server.requests) == 2
    server.replies = [Reply(body=b'{"_shards":{"total":2,"failed":1},' + found)]
    with pytest.raises(TransientError, match="1 of its 2 shards failed"):
        page(client(max_retries=0))
