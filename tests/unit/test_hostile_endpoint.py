"""The daemon's own endpoint under hostile requests: it still answers the valid ones, and prints nothing."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import NoReturn

import pytest

from poller.core.errors import StateError
from poller.service.health import MAX_CONNECTIONS, Endpoint, Health
from tests.endpoint import routes
from tests.support import open_files

REASON = 'contract 1: "\x1b[31m\r\nX-Evil: 1\ud800'.encode("utf-8", "replace").decode()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint(("127.0.0.1", 0), routes(ready=lambda: Health((REASON,))), hosts=["poller.example.com"])
    yield endpoint
    endpoint.close()


def get(endpoint: Endpoint, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        assert "X-Evil" not in answer.headers
        return answer.status, answer.read()
    finally:
        connection.close()


def say(endpoint: Endpoint, request: bytes) -> bytes:
    """The answer to these bytes, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=15) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"", b""),
        (b"\0\xff" * 100 + b"\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET /../../etc/passwd HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /metrics/../../x HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /%0d%0aX-Evil:1 HTTP/1.0\r\n\r\n", b"404"),
        (b"GET /healthz?" + b"x" * 1000 + b" HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.0\r\nContent-Length: 9999\r\n\r\n", b"200"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.0\r\n\r\n", b"414"),
        (b"GET / HTTP/1.0\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * 500 + b"\r\n", b"431"),
        (b"GET /healthz HTTP/9.9\r\n\r\n", b"505"),
        (b"POST /healthz HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", b"501"),
        (b"\x1b[31m /healthz HTTP/1.0\r\n\r\n", b"501"),
        (b"GET http://evil.example/healthz HTTP/1.0\r\n\r\n", b"404"),
    ],
    ids=lambda value: value[:40].decode("latin-1"),
)
def test_it_answers_what_is_no_request_and_goes_on(
    endpoint: Endpoint, capfd: pytest.CaptureFixture[str], request_bytes: bytes, answer: bytes
) -> None:
    said = say(endpoint, request_bytes)
    assert answer in said
    assert b"\x1b" not in said
    assert get(endpoint, "/healthz")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_those_who_say_nothing_keep_nobody_waiting(endpoint: Endpoint) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(("127.0.0.1", endpoint.port))).sendall(b"GET /he")
        assert get(endpoint, "/metrics") == (200, b"up 1\n")


def connect(endpoint: Endpoint) -> socket.socket:
    return socket.create_connection(("127.0.0.1", endpoint.port), timeout=15)


def test_a_thousand_slow_connections_take_no_more_than_their_share(endpoint: Endpoint) -> None:
    threads, files = threading.active_count(), len(open_files(os.getpid()))
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(endpoint)).sendall(b"GET /he")
        assert get(endpoint, "/metrics") == (200, b"up 1\n")
        assert threading.active_count() - threads <= MAX_CONNECTIONS
        assert len(open_files(os.getpid())) - files - 200 <= MAX_CONNECTIONS


def test_a_request_in_drips_is_ended_by_its_deadline(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.service.health.REQUEST_SECONDS", 1.0)
    started = time.monotonic()
    with connect(endpoint) as connection, suppress(OSError):
        connection.settimeout(0.1)
        while time.monotonic() - started < 8:
            connection.sendall(b"X")
            with suppress(TimeoutError):
                if connection.recv(1) == b"":
                    break
    assert 0.9 < time.monotonic() - started < 6


def test_one_that_is_being_answered_makes_room_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.service.health.MAX_CONNECTIONS", 2)
    is_asked, may_answer = threading.Event(), threading.Event()

    def slow() -> bytes:
        is_asked.set()
        assert may_answer.wait(15)
        return b"up 1\n"

    endpoint = Endpoint(("127.0.0.1", 0), routes(metrics=slow))
    try:
        with connect(endpoint) as asking, ExitStack() as stack:
            asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert is_asked.wait(15)
            for _ in range(10):
                stack.enter_context(connect(endpoint)).sendall(b"GET /he")
            assert get(endpoint, "/healthz")[0] == 200
            may_answer.set()
            assert b"up 1\n" in b"".join(iter(lambda: asking.recv(65_536), b""))
    finally:
        endpoint.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:9464", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:9464", 200),
        ("10.7.222.5:9464", 200), ("poller.example.com", 200), ("poller.example.com.:9464", 200), ("", 421),
        ("evil.example", 421), ("evil.example:9464", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example", 421),
        (f"{socket.gethostname()}:9464", 200),
        ("poller.example.org", 421), ("[evil.example]", 421), ("127.0.0.1@evil.example", 421), ("localhost, evil.example", 421),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/", "/status.json"])
def test_only_addresses_and_names_of_ours_may_be_asked(endpoint: Endpoint, host: str, status: int, path: str) -> None:
    said = say(endpoint, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 %d " % status)


def test_each_answer_has_its_type_and_is_for_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.service.health.listen", lambda address: socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr("poller.service.health.stop_listening", lambda address, listener: listener.close())
    health = Health(notes=("a note",))
    endpoint = Endpoint(("poller.internal", 0), routes(ready=lambda: health), hosts=["Named.example"])

    def ask(path: str, host: str = "poller.internal", method: str = "GET") -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=5)
        connection.request(method, path, headers={"Host": host})
        answer = connection.getresponse()
        body = answer.read()
        assert method == "HEAD" or answer.headers["Content-Length"] == str(len(body))
        assert [answer.headers[name] for name in ("Cache-Control", "X-Content-Type-Options", "Referrer-Policy")] == [
            "no-store",
            "nosniff",
            "no-referrer",
        ]
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        connection.close()
        return answer.status, answer.headers["Content-Type"], body

    try:
        assert ask("/metrics") == (200, "text/plain; version=0.0.4; charset=utf-8", b"up 1\n")
        assert ask("/status.json") == (200, "application/json", b"{}\n")
        assert ask("/healthz") == (200, "application/json", b'{"status":"ok","reasons":[]}\n')
        assert ask("/readyz")[2] == b'{"status":"ok","reasons":[],"notes":["a note"]}\n'
        assert ask("/healthz", method="HEAD") == (200, "application/json", b"")
        assert ask("/x") == (404, "text/plain; charset=utf-8", b"/ /status.json /metrics /healthz /readyz\n")
        words = b"this host name is not ours: see http.hosts\n"
        assert ask("/", "evil.example") == (421, "text/plain; charset=utf-8", words)
        assert [ask("/", host)[0] for host in ("named.example", "NAMED.EXAMPLE:1", "localhost")] == [200] * 3
        assert ask("/?all")[0] == ask("/?x")[0] == 200
    finally:
        endpoint.close()


def test_all_of_the_page_is_given_to_who_asks_for_all(endpoint: Endpoint) -> None:
    for query, is_whole in (("?all", b"True"), ("?al", b"False"), ("", b"False")):
        said = say(endpoint, b"GET /%s HTTP/1.0\r\n\r\n" % query.encode())
        assert b"X-Page: " + is_whole in said


def test_of_two_hosts_both_are_looked_at(endpoint: Endpoint) -> None:
    said = say(endpoint, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert b" 421 " in said


def test_a_name_of_any_kind_is_asked_where_that_is_configured() -> None:
    endpoint = Endpoint(("127.0.0.1", 0), routes(), hosts=["*"])
    try:
        assert b" 200 " in say(endpoint, b"GET /healthz HTTP/1.1\r\nHost: any\r\nConnection: close\r\n\r\n")
    finally:
        endpoint.close()


@pytest.mark.parametrize(
    "head",
    [
        *(b"Content-Length: 40", b"Transfer-Encoding: chunked"),
        *(b"Content-Length: 0\r\nContent-Length: 40", b"Transfer-Encoding : chunked", b"Content-Length : 40"),
    ],
)
def test_the_body_of_a_get_is_not_taken_for_the_next_request(endpoint: Endpoint, head: bytes) -> None:
    smuggled = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    said = say(endpoint, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n\r\n" + smuggled)
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in said


@pytest.mark.parametrize("request_bytes", [b"GET /metrics HTTP/1.0\r\n\r\n", b"POST / HTTP/1.0\r\n\r\n", b"x\r\n\r\n"])
def test_no_answer_says_what_we_are_made_of(endpoint: Endpoint, request_bytes: bytes) -> None:
    said = say(endpoint, request_bytes)
    assert b"Server:" not in said
    assert b"Python" not in said


def test_a_reason_stays_in_its_json(endpoint: Endpoint) -> None:
    status, body = get(endpoint, "/readyz")
    assert status == 503
    assert b"\x1b" not in body
    assert body.count(b"\n") == 1


@pytest.mark.parametrize("path", ["/metrics", "/readyz", "/", "/status.json"])
@pytest.mark.parametrize(
    ("failure", "status"), [(StateError("disk I/O error", hint="check the disk"), 503), (ZeroDivisionError("x"), 500)]
)
def test_a_failure_of_ours_is_answered_in_a_line_and_logged(
    caplog: pytest.LogCaptureFixture, path: str, failure: Exception, status: int
) -> None:
    def fail() -> NoReturn:
        raise failure

    endpoint = Endpoint(("127.0.0.1", 0), routes(metrics=fail, ready=fail, page=lambda is_whole: fail(), status=fail))
    try:
        answered, body = get(endpoint, path)
        assert answered == status
        assert b"Traceback" not in body
        assert json.loads(body)["status"] == "failing"
        (record,) = [record for record in caplog.records if record.message == "endpoint.failed"]
        assert vars(record)["path"] == path
        assert get(endpoint, "/healthz")[0] == 200
    finally:
        endpoint.close()
