"""The server of `tests.hostile`: after it is closed, no answer goes on."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.hostile import Answer, Asked, RawServer, endless
from tests.support import wait_until

REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def waits(asked: Asked) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    threading.Event().wait(0.2)
    yield b"\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        lambda asked: itertools.repeat(b""),
        endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100_000),
        waits,
    ],
    ids=["nothing, again and again", "more than is read", "late"],
)
def test_an_answer_ends_with_its_server(answer: Callable[[Asked], Answer]) -> None:
    before = threading.active_count()
    with (
        RawServer(answer) as server,
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as asks,
    ):
        asks.sendall(REQUEST)
        wait_until(lambda: server.asked)
        server.close()
        assert threading.active_count() == before


def test_a_connection_that_asks_nothing_ends_with_its_server() -> None:
    with (
        RawServer(lambda asked: b"", is_kept=True) as server,
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as asks,
    ):
        asks.sendall(REQUEST)
        wait_until(lambda: server.asked)
        server.close()
        assert asks.recv(1) == b""
