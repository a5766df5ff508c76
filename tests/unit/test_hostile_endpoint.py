"""The daemon's own endpoint is asked anything at all: it answers those who ask properly, and prints nothing."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from poller.health import Endpoint, Health

REASON = 'contract 1: "\x1b[31m\r\nX-Evil: 1\ud800'.encode("utf-8", "replace").decode()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint(
        ("127.0.0.1", 0), metrics=lambda: b"up 1\n", alive=lambda: Health(True), ready=lambda: Health(False, (REASON,))
    )
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
    """What is answered to these bytes, up to the end of the connection."""
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


def test_a_reason_stays_in_its_json(endpoint: Endpoint) -> None:
    status, body = get(endpoint, "/readyz")
    assert status == 503
    assert b"\x1b" not in body
    assert body.count(b"\n") == 1
