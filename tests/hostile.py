"""A server on loopback that answers with any bytes, at any speed, and records its requests.

It sends answers that no HTTP library would send: with a wrong length, without an end, or not HTTP at all. A function makes the
answer to each request. Each request needs a new connection, unless `is_kept` is set.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from hypothesis import HealthCheck, settings


def at_most(count: int) -> settings:
    """Settings for a property with slow examples: at most `count` of them. Under `make fuzz` more, in proportion."""
    return settings(
        max_examples=count * settings.default.max_examples // 100,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


class Asked(NamedTuple):
    """A request as it came. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Answer = bytes | Iterable[bytes]
"""The answer to send: whole, or piece by piece."""


class RawServer:
    """Answers on loopback from its creation until `close`, each request in its own thread."""

    def __init__(
        self, answer: Callable[[Asked], Answer], *, is_kept: bool = False, tls: ssl.SSLContext | None = None
    ) -> None:
        """`is_kept`: a connection takes further requests. With `tls` the server uses HTTPS."""
        self.answer = answer
        self.asked: list[Asked] = []
        self.connection_count = 0
        self.released = threading.Event()
        """Set when the test is over: an answer that waits for it ends then."""
        self._served: dict[threading.Thread, socketserver.StreamRequestHandler] = {}
        server = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = 60  # so that a forgotten connection does not stay open

            def handle(self) -> None:
                server.connection_count += 1
                server._served[threading.current_thread()] = self
                with contextlib.suppress(OSError, ValueError):
                    if tls is not None:
                        self._speak_tls(tls)
                    while (asked := _read_request(self.rfile)) is not None:
                        server.asked.append(asked)
                        answer = server.answer(asked)
                        for piece in [answer] if isinstance(answer, bytes) else answer:
                            self.wfile.write(piece)
                            if server.released.is_set():
                                return
                        if not is_kept:
                            break

            def _speak_tls(self, context: ssl.SSLContext) -> None:
                self.connection = context.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()
                self.connection.close()
                del server._served[threading.current_thread()]

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

            def shutdown_request(self, request: Any) -> None:
                # End our side first. Otherwise data that the client still sends causes a reset, and the client loses the answer.
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_WR)
                self.close_request(request)

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._listening = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._listening.start()

    def close(self) -> None:
        """End all running answers. Otherwise they would slow down every later test."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._listening.join()
        for thread, handler in list(self._served.items()):
            with contextlib.suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            assert not thread.is_alive(), "an answer goes on although its server was closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _read_request(stream: Any) -> Asked | None:
    head = stream.readline()
    if not head:
        return None
    method, path, _ = head.decode("latin-1").split(" ", 2)
    headers = {}
    while (line := stream.readline().decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Asked(method, path, headers, stream.read(int(headers.get("content-length", 0))))


def http(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """An ordinary answer. `length`: a wrong Content-Length, if given."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def headed(body: bytes = b"", *headers: str, status: str = "200 OK") -> bytes:
    """An answer with these headers alone."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode("latin-1") + body


def endless(first: bytes, piece: bytes, pause_seconds: float = 0.0) -> Callable[[Asked], Iterator[bytes]]:
    """An answer that begins with `first` and never ends: `piece` is repeated, with a pause before each."""

    def answer(asked: Asked) -> Iterator[bytes]:
        yield first
        while True:
            time.sleep(pause_seconds)  # the answer is slow on purpose
            yield piece

    return answer


def page_of(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """A page of the Activity Log with these entries."""
    hits = [{"_source": entry} for entry in entries]
    return json.dumps({"hits": {"total": len(hits), "hits": hits}}).encode()
