"""Connections: an answer has a deadline in all its parts, the final one is taken, and nothing is done that was not asked for."""

from __future__ import annotations

import gzip
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from poller.core.errors import BodyTooLargeError, TransientError
from poller.net.transport import Response, Transport
from tests.hostile import Answer, Asked, RawServer, endless, headed, http

READ_TIMEOUT_SECONDS = 0.15
MAX_BYTES = 1024 * 1024


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    servers: list[RawServer] = []

    def make(answer: Callable[[Asked], Answer], **options: bool) -> RawServer:
        servers.append(RawServer(answer, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport(timeout_seconds=(1.0, READ_TIMEOUT_SECONDS))
    yield transport
    transport.close()


def get(transport: Transport, server: RawServer) -> Response:
    return transport.request("GET", server.url, headers={"Authorization": "Bearer token"}, max_bytes=MAX_BYTES)


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"HT", b"T"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"),
        (headed(b"", "Content-Length: 9999"), b"y"),
        (headed(b"", "Transfer-Encoding: chunked"), b"1\r\ny\r\n"),
        (headed(b"", "Transfer-Encoding: chunked"), b"1"),
        (headed(b"1\r\ny\r\n0\r\n", "Transfer-Encoding: chunked"), b"X: y\r\n"),
        (headed(gzip.compress(b"")[:10], "Content-Encoding: gzip"), b"\0\0\0\xff\xff"),
        (headed(b"", "Location: /elsewhere", status="302 Found"), b"y"),
    ],
    ids=[
        "status line",
        "header",
        "headers",
        "continue",
        "early hints",
        "body",
        "chunks",
        "size of a chunk",
        "trailers",
        "blocks that inflate to nothing",
        "body of a redirect",
    ],
)
def test_no_part_of_an_answer_holds_a_worker_for_ever(
    serve: Callable[..., RawServer], transport: Transport, first: bytes, piece: bytes
) -> None:
    started = time.monotonic()
    with pytest.raises(TransientError):
        get(transport, serve(endless(first, piece, 0.02)))
    assert time.monotonic() - started < READ_TIMEOUT_SECONDS * 4 + 3


def test_an_interim_answer_is_not_taken_for_the_answer(serve: Callable[..., RawServer], transport: Transport) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\nTransfer-Encoding: chunked\r\n\r\n"
    server = serve(lambda asked: [early, b"HTTP/1.1 102 Processing\r\n\r\n", http(asked.path.encode())], is_kept=True)
    for path in ("/a", "/b", "/c"):
        response = transport.request("GET", server.url + path)
        assert (response.status, response.body) == (200, path.encode())
    assert server.connection_count == 1


@pytest.mark.parametrize("location", ["http://[::1", "\xff\xfe", "//", "http://\x00/", "javascript:x", "é" * 10_000])
def test_where_a_redirect_leads_is_not_even_read(
    serve: Callable[..., RawServer], transport: Transport, location: str
) -> None:
    server = serve(lambda asked: http(b"gone", f"Location: {location}", status="302 Found"))
    assert get(transport, server)[:3:2] == (302, b"gone")


BOMB = gzip.compress(bytes(64 * MAX_BYTES), 1)


@pytest.mark.parametrize(
    "answer",
    [
        http(BOMB, "Content-Encoding: gzip", "Location: /elsewhere", status="307 Elsewhere"),
        http(gzip.compress(BOMB, 1), "Content-Encoding: gzip, gzip"),
    ],
    ids=["in the body of a redirect", "in a bomb"],
)
def test_a_bomb_is_given_up_before_it_goes_off(
    serve: Callable[..., RawServer], transport: Transport, answer: bytes
) -> None:
    server = serve(lambda asked: answer)
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError):
            get(transport, server)
        assert tracemalloc.get_traced_memory()[1] < 8 * MAX_BYTES
    finally:
        tracemalloc.stop()


def test_a_cookie_is_neither_kept_nor_sent_to_anybody(serve: Callable[..., RawServer], transport: Transport) -> None:
    biscuits = [f"Set-Cookie: name{number}={'x' * 1000}; Path=/; Domain=127.0.0.1" for number in range(50)]
    server = serve(
        lambda asked: http(b"{}", *biscuits, "Set-Cookie: ;=\xff; expires=\x01; max-age=9e999; port=x"), is_kept=True
    )
    for _ in range(3):
        get(transport, server)
    other = serve(lambda asked: http(b"{}"))
    get(transport, other)
    assert [asked.headers.get("cookie") for asked in [*server.asked, *other.asked]] == [None] * 4
    assert not transport._session.cookies


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        http(b"[]", status="99 Low"),
        http(b"[]", status="1000 High"),
        http(b"[]", status="-1 Below"),
        headed(b"[]", "Content-Length: 2", "Content-Length: 3"),
        http(b"[]", length=3),
        headed(b"-5\r\n[]\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        headed(b"f" * 30 + b"\r\n[]\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        headed(b"0" * 100_000 + b"2\r\n[]\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        headed(b"2;ext\r\n[]\r\n", "Transfer-Encoding: chunked"),
        headed(b"[]", "Transfer-Encoding: chunked", "Content-Length: 2"),
        http(b"[]", "Content-Encoding: gzip"),
        http(b"[]", "Content-Encoding: " + ", ".join(["gzip"] * 100)),
        http(b"[]", *["X: y"] * 5000),
        http(b"[]", "X: " + "y" * 100_000),
    ],
    ids=lambda value: value[:60].decode("latin-1"),
)
def test_an_answer_that_lies_about_itself_is_no_answer(
    serve: Callable[..., RawServer], transport: Transport, answer: bytes
) -> None:
    with pytest.raises(TransientError):
        get(transport, serve(lambda asked: answer))


@pytest.mark.parametrize(
    "answer",
    [
        http(b"[]", length=-5),
        headed(b"[]", "Content-Length: two"),
        headed(b"[]", "Content-Length: 2, 2"),
        headed(b"[]", "Content-Type: text/html; charset=\xff"),
        headed(b"[]", "X\x00: a\x00b", ": nameless", " folded", "X-É: é"),
        http(b"[]", status="200 \xff\x1b[31m"),
        http(b"[]", "Content-Encoding: \xff"),
        http(gzip.compress(b"") * 10_000 + gzip.compress(b"[]"), "Content-Encoding: gzip"),
        http(gzip.compress(b"[]")[:-8], "Content-Encoding: gzip"),
        http(b"[]", "Connection: upgrade", "Upgrade: h2c"),
    ],
    ids=lambda value: value[:60].decode("latin-1"),
)
def test_an_answer_that_is_odd_but_whole_is_taken(
    serve: Callable[..., RawServer], transport: Transport, answer: bytes
) -> None:
    assert get(transport, serve(lambda asked: answer))[:3:2] == (200, b"[]")


def test_many_workers_are_each_given_their_own_answer(serve: Callable[..., RawServer]) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    server = serve(lambda asked: [early, http(asked.path.encode())], is_kept=True)
    transport = Transport(timeout_seconds=(1.0, 5.0), pool_size=4)
    wrong: list[tuple[str, bytes]] = []

    def work(worker: int) -> None:
        for number in range(20):
            path = f"/{worker}/{number}"
            body = transport.request("GET", server.url + path).body
            if body != path.encode():
                wrong.append((path, body))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    transport.close()
    assert (wrong, len(server.asked)) == ([], 160)
