"""Connections: each part of an answer has a deadline, only the final answer counts, and no redirect or cookie is used."""

from __future__ import annotations

import gzip
import http.client as http_client
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import urllib3

from poller.core.errors import BodyTooLargeError, TransientError
from poller.net import connections
from poller.net.connections import Answer as RawAnswer
from poller.net.connections import TooLargeError, TooSlowError, bound_client, bounded, is_closed_after
from poller.net.failures import root_cause
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


# One answer, from a socket whose other end is ours


class Wire:
    """Both ends of a connection, and the clock for its deadlines."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.settimeout(1.0)
        self.now = 100.0

    def answer(self, data: bytes) -> RawAnswer:
        """Read an answer up to its body. The connection ends after `data`."""
        self.theirs.sendall(data)
        self.theirs.shutdown(socket.SHUT_WR)
        answer = RawAnswer(self.ours, method="GET")
        answer.begin()
        return answer


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    wire = Wire()
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: wire.now))
    yield wire
    wire.ours.close()
    wire.theirs.close()


def test_an_answer_may_take_four_time_outs_and_no_longer(wire: Wire) -> None:
    answer = wire.answer(headed(b"x" * 20_000, "Content-Length: 20000"))
    wire.now += 4.0
    assert answer.read(10_000) == b"x" * 10_000
    wire.now += 0.1
    with pytest.raises(TooSlowError):
        answer.read(10_000)
    answer.close()


@pytest.mark.parametrize(("seconds", "after", "is_read"), [(0.5, 0.5, True), (0.5, 0.6, False), (9.0, 4.1, False)])
def test_the_rest_of_an_answer_can_be_given_less_time_and_not_more(
    wire: Wire, seconds: float, after: float, is_read: bool
) -> None:
    answer = wire.answer(headed(b"x" * 20_000, "Content-Length: 20000"))
    answer.hurry(seconds)
    assert wire.ours.gettimeout() == seconds
    wire.now += after
    if is_read:
        assert len(answer.read()) == 20_000
    else:
        with pytest.raises(TooSlowError):
            answer.read()
    answer.close()


def test_an_answer_whose_connection_is_closed_already_need_not_hurry(wire: Wire) -> None:
    answer = wire.answer(headed(b"", "Content-Length: 0"))
    wire.ours.close()
    wire.theirs.close()
    answer.hurry(1.0)
    answer.close()


def test_of_an_answer_no_more_is_read_than_there_is_room_for(wire: Wire) -> None:
    answer = wire.answer(headed(b"x" * 50_000, "Content-Length: 50000"))
    answer.bound(20_000)
    with pytest.raises(TooLargeError):
        answer.read()
    answer.close()


def test_an_answer_on_a_socket_without_a_time_out_is_read_as_it_comes(wire: Wire) -> None:
    wire.ours.settimeout(None)
    answer = wire.answer(headed(b"body", "Content-Length: 4"))
    answer.bound(1)
    answer.hurry(5.0)
    wire.now += 1000
    assert answer.read() == b"body"
    assert wire.ours.gettimeout() == 5.0


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_what_is_said_in_the_meantime_is_skipped_with_its_headers(wire: Wire, status: int) -> None:
    interim = headed(b"", "X-A: 1", status=f"{status} Wait")
    answer = wire.answer(interim + interim + headed(b"ok", "Content-Length: 2"))
    assert (answer.status, answer.headers.get("X-A"), answer.read(), answer.will_close) == (200, None, b"ok", False)


def test_a_switch_of_protocols_is_no_word_in_the_meantime(wire: Wire) -> None:
    answer = wire.answer(headed(b"", "X-A: 1", status="101 Switching Protocols"))
    assert (answer.status, answer.headers["X-A"]) == (101, "1")
    answer.close()


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        (["Content-Length: 2", "Content-Length: 3"], "contradict each other"),
        (["content-length: 2, 7"], "contradict each other"),
        ([f"X-{number}: y" for number in range(150)], "cannot be read"),
    ],
)
def test_an_answer_whose_headers_cannot_be_believed_has_a_status_and_nothing_else(
    wire: Wire, headers: list[str], why: str
) -> None:
    answer = wire.answer(headed(b"{}", *headers))
    assert (answer.status, list(answer.headers), answer.will_close) == (200, [], True)
    assert why in answer.broken_head
    assert answer.read() == b""
    answer.close()


def test_lengths_that_agree_are_no_contradiction(wire: Wire) -> None:
    answer = wire.answer(headed(b"{}", "Content-Length: 2", "Content-Length: 2"))
    assert (answer.broken_head, answer.read()) == ("", b"{}")


@pytest.mark.parametrize("interim", [b"", headed(b"", status="103 Wait")])
def test_headers_that_cannot_be_read_before_the_answer_are_no_answer(wire: Wire, interim: bytes) -> None:
    for data in (interim + b"nonsense\r\n\r\n", interim + headed(b"", f"X: {'y' * 70_000}", status="103 Wait")):
        with pytest.raises(http_client.HTTPException):
            wire.answer(data)
        wire.ours.close()
        wire.theirs.close()
        fresh = Wire()
        wire.ours, wire.theirs = fresh.ours, fresh.theirs


@pytest.mark.parametrize(
    ("status", "is_closed"),
    [
        *((status, False) for status in (200, 407, 409, 428, 430, 499)),
        *((status, True) for status in (408, 429, 500, 503, 599)),
    ],
)
def test_after_an_answer_that_tells_of_trouble_its_connection_is_closed(
    wire: Wire, status: int, is_closed: bool
) -> None:
    answer = wire.answer(http(b"", status=f"{status} X"))
    assert answer.will_close is is_closed
    assert is_closed_after(status) is is_closed


@pytest.mark.parametrize(
    ("data", "is_closed"),
    [
        (headed(b"", status="204 X"), False),
        (http(b"", status="204 X"), False),
        (http(b"", status="204 X", length=4), True),
        (http(b"", status="200 X", length=4), False),
    ],
)
def test_a_connection_is_not_used_again_where_a_204_says_that_it_has_a_body(
    wire: Wire, data: bytes, is_closed: bool
) -> None:
    answer = wire.answer(data)
    assert answer.will_close is is_closed
    answer.close()


# One connection


def test_a_connection_that_is_at_its_age_is_closed_after_its_answer(
    serve: Callable[..., RawServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(connections, "time", SimpleNamespace(monotonic=lambda: now))
    server = serve(lambda asked: http(b""), is_kept=True)
    transport = Transport(timeout_seconds=(1.0, 1.0), max_age_seconds=10.0)
    counts = []
    for seconds in (0.0, 9.9, 0.1, 0.0):
        now += seconds
        transport.request("GET", server.url)
        counts.append(server.connection_count)
    assert counts == [1, 1, 1, 2]
    transport.close()


def test_what_waits_in_the_kernel_is_bounded_and_so_is_an_answer_on_a_connection(
    serve: Callable[..., RawServer],
) -> None:
    server = serve(lambda asked: http(b"x" * int(asked.path[1:])), is_kept=True)
    kind = bounded(http_client.HTTPConnection, 1.0, 300.0, 20_000)
    connection = kind("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=1.0)
    connection.request("GET", "/100")
    assert connection.getresponse().read() == b"x" * 100
    assert connection.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 * 1024
    connection.request("GET", "/40000")
    answer = connection.getresponse()
    with pytest.raises(TooLargeError):
        answer.read()
    answer.close()
    connection.close()


def test_the_time_to_connect_is_that_for_the_proxy_and_for_tls_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts a connection and sends nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for host, proxies in ((address, {}), ("api.example:443", {"https": f"http://{address}"})):
            transport = Transport(timeout_seconds=(0.1, 1.0), send_timeout_seconds=1.0, proxies=proxies)
            with pytest.raises(TransientError, match=f"no connection to {host} within connect_timeout") as raised:
                transport.request("POST", f"https://{host}/", body=b"[]")
            assert not raised.value.is_size_suspect
            transport.close()


def test_the_connections_of_awss_library_send_and_read_as_ours_do(serve: Callable[..., RawServer]) -> None:
    server = serve(lambda asked: http(b"x" * int(asked.path[1:])), is_kept=True)
    pools = {"http": urllib3.HTTPConnectionPool, "https": urllib3.HTTPSConnectionPool}
    session = SimpleNamespace(_pool_classes_by_scheme=pools)
    bound_client(SimpleNamespace(_endpoint=SimpleNamespace(http_session=session)), 2.5, 20_000)
    assert [pool.__name__ for pool in pools.values()] == ["HTTPConnectionPool", "HTTPSConnectionPool"]
    assert issubclass(pools["https"].ConnectionCls, urllib3.connection.HTTPSConnection)
    assert {pool.ConnectionCls.send_timeout_seconds for pool in pools.values()} == {2.5}  # type: ignore[attr-defined]
    assert {pool.ConnectionCls.max_age_seconds for pool in pools.values()} == {300.0}  # type: ignore[attr-defined]
    with pools["http"]("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=1.0, retries=False) as pool:
        assert len(pool.request("GET", "/100", preload_content=False).read()) == 100
        answer = pool.request("GET", "/40000", preload_content=False)
        with pytest.raises(urllib3.exceptions.HTTPError) as raised:
            answer.read()
        assert isinstance(root_cause(raised.value), TooLargeError)
