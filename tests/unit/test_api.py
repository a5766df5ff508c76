"""The Activity Log client against a real server: every status and every bad answer, retries, tokens, the clock."""

from __future__ import annotations

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

from poller.api import ActivityLog
from poller.delivery import RetryPolicy
from poller.errors import AuthError, BodyTooLargeError, PollerError, RejectedError, StoppedError, TransientError
from poller.transport import RateLimit, Response, Transport
from poller.windows import Window
from tests.support import free_port

WINDOW = Window(1_777_621_340, 1_777_621_400)
PAGE = b'{"hits":{"total":1,"hits":[{"_source":{"@uuid":"a"}}]}}'
TOKEN = "Bearer canary-token"


class Reply(NamedTuple):
    """What the server says; `is_cut` closes the connection in the middle of the body."""

    status: int = 200
    body: bytes = PAGE
    headers: Mapping[str, str] = MappingProxyType({})
    is_cut: bool = False


class Request(NamedTuple):
    """What the server was asked, header names in lower case."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


class Server(ThreadingHTTPServer):
    """Loopback HTTP that gives `replies` in order, the last one for ever, and keeps the requests."""

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

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is the library's
                pass

        super().__init__(("127.0.0.1", 0), Handler)


class Stop(threading.Event):
    """Never set, and its waits pass at once; keeps how long they would have been."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

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
    """Make a client of the server, with what a test wants otherwise."""

    def make(**options: Any) -> ActivityLog:
        given = {
            "url": f"http://127.0.0.1:{server.server_port}/",
            "authorization": lambda: TOKEN,
            "transport": transport,
            "rate_limit": RateLimit(0),
            "stop": stop,
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


def test_contracts_are_asked_for_without_one(server: Server, client: Client) -> None:
    server.replies = [Reply(body=b'[{"id":1},{"id":"2"}]')]
    assert client().contracts() == ["1", "2"]
    (request,) = server.requests
    assert (request.path, request.query) == ("/activitylog/v1/contracts", {})
    assert "x-contract-number" not in request.headers


# Every status

ALWAYS_TRANSIENT = [408, 429, 500, 501, 502, 503, 504, 520, 599]
NEVER_RETRIED = [
    *((status, AuthError) for status in (401, 403)),
    *((status, RejectedError) for status in (204, 206, 301, 302, 303, 304, 307, 308)),
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
    assert [request.path for request in server.requests] == ["/activitylog/v1/contracts/12345678"]


@pytest.mark.parametrize(
    ("status", "word"), [(401, "IONOS_API_TOKEN"), (403, "ACCESS_ACTIVITY_LOG"), (404, "api.url"), (302, "api.url")]
)
def test_where_a_person_is_needed_the_hint_says_what_to_do(
    server: Server, client: Client, status: int, word: str
) -> None:
    server.replies = [Reply(status)]
    with pytest.raises(PollerError) as raised:
        page(client())
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
        Reply(body=b'{"hits":{"total":1,"hits":[7]}}'),
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
    api = client(max_page_bytes=1000)
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


def test_a_token_that_is_the_same_is_not_sent_twice(server: Server, client: Client) -> None:
    server.replies = [Reply(401)]
    with pytest.raises(AuthError):
        page(client())
    assert len(server.requests) == 1


def test_a_renewed_token_that_is_refused_as_well_is_the_end(server: Server, client: Client) -> None:
    server.replies = [Reply(401)]
    with pytest.raises(AuthError):
        page(client(authorization=Credentials("Bearer 1", "Bearer 2", "Bearer 3", "Bearer 4")))
    assert len(server.requests) == 2


def test_a_token_renewed_by_another_thread_in_the_meantime_is_used(
    server: Server, client: Client, transport: Transport
) -> None:
    # Two requests go out with the old token. The other one comes back first and has the token read anew; ours, refused
    # later, must see that it was refused with one that is no longer in use.
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
    assert api.clock_skew_seconds == 0.0


@pytest.mark.parametrize(
    ("date", "days"),
    [
        ("Fri, 31 Dec 9999 23:59:59 GMT", -30),
        ("Fri, 01 Jan 2100 00:00:00 GMT", -30),
        ("Mon, 01 Jan 1601 00:00:00 GMT", time.time() / 86_400),
    ],
    ids=["9999", "2100", "1601"],
)
def test_a_date_at_the_end_of_the_calendar_has_nobody_read_all_the_years_until_then(
    server: Server, client: Client, date: str, days: float
) -> None:
    server.replies = [Reply(headers={"Date": date})]
    api = client()
    page(api)
    assert api.clock_skew_seconds == pytest.approx(days * 86_400, abs=3600)
