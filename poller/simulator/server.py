"""The HTTP edge of the simulator: sockets, headers, and the faults that only a socket can show.

One answer is one `sendall`; connections are kept alive. No rule of the API or of an intake lives here.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from poller.simulator.answers import Answer, Request, api_error, json_answer
from poller.simulator.control import PREFIX as CONTROL_PATH
from poller.simulator.control import answer_control
from poller.simulator.event_streams import PREFIX as CLUSTERS_PATH
from poller.simulator.event_streams import answer_clusters
from poller.simulator.faults import BAD_BODIES, Fault
from poller.simulator.pipelines import PREFIX as PIPELINES_PATH
from poller.simulator.rules import BASE_PATH, answer_api, path_kind
from poller.simulator.settings import MIB
from poller.simulator.world import World

_SINK_PATH = "/sink/"
_SINK_ROUTES: dict[str, Callable[[list[str]], bool]] = {
    "logging": lambda rest: len(rest) == 1,  # the tag
    "loki": lambda rest: rest == ["loki", "api", "v1", "push"],
    "moesif": lambda rest: rest in (["v1", "actions"], ["v1", "actions", "batch"]),
    "otlp": lambda rest: rest == ["v1", "logs"],
    "opensearch": lambda rest: len(rest) <= 2,
    "http": lambda _: True,
}
_SINK_METHODS = {"http": ("POST", "PUT", "PATCH"), "opensearch": ("POST", "GET", "HEAD")}
_INSTEAD = {
    "html": Answer(200, b"<!DOCTYPE html><html><body><h1>Back soon</h1></body></html>", "text/html; charset=utf-8"),
    "missing-hits": Answer(200, b'{"status":"ok"}'),
    "wrong-types": Answer(200, b'{"hits":{"total":"many","hits":{"_source":[]}}}'),
}
_DRIP_PIECES = 20
_BLOCK_BYTES = 1 << 16


class _DroppedError(Exception):
    """Raised to drop the connection without (the rest of) an answer."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: SimulatorServer
    _is_dated = True  # whether the answer that is being sent has a `Date`

    def log_message(self, *_: Any) -> None:
        """Log nothing: the state counts the requests."""

    def do_GET(self) -> None:
        world = self.server.world
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._is_dated = True
        try:
            request = Request(self.command, parts.path, query, headers, self._read_body(headers))
            if parts.path.startswith(BASE_PATH):
                self._serve_api(world, request)
            elif parts.path.startswith(_SINK_PATH):
                self._serve_sink(world, request)
            elif parts.path.startswith(PIPELINES_PATH):
                self._send(world.pipelines.answer(request, world.settings, self.server.url))
            elif parts.path.startswith(CLUSTERS_PATH):
                self._send(answer_clusters(request, world.settings))
            elif parts.path.startswith(CONTROL_PATH):
                self._send(answer_control(world, request))
            else:
                self._send(api_error(404, "NOT_FOUND", f"{parts.path} does not exist"))
        except _DroppedError:
            self.close_connection = True

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET  # noqa: N815 - the names http.server looks for

    def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self._read_exactly(int(headers.get("content-length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
            pieces.append(self._read_exactly(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(pieces)

    def _read_exactly(self, size: int) -> bytes:
        """Raises: _DroppedError if the client disconnected before the end: an incomplete request is not processed."""
        body = self.rfile.read(size) if size >= 0 else b""
        if len(body) != size:
            raise _DroppedError
        return body

    # The API and the intakes, with their faults

    def _serve_api(self, world: World, request: Request) -> None:
        kind, contract = path_kind(request.path)
        world.traffic.arrive()
        draw = world.faults.draw(path=kind, contract=contract)
        self._pause(draw.latency_seconds + world.settings.latency_seconds)
        fault = draw.failure
        self._is_dated = draw.is_dated
        if fault and fault.kind not in ("truncate", "cut", "drip"):
            world.traffic.answer(kind, fault.kind)
            self._send(_INSTEAD.get(fault.kind) or self._fail(fault))
            return
        answer = answer_api(
            request,
            world.logs,
            world.settings,
            base_url=self.server.url,
            is_total_capped=draw.is_total_capped or bool(fault and fault.kind == "capped-total"),
            refused_limit=draw.max_limit,
            list_page=draw.list_page,
            unlisted=draw.unlisted,
            oddities={fault.kind: fault for fault in draw.oddities},
        )
        world.traffic.answer(kind, fault.kind if fault else str(answer.status))
        if fault is None:
            self._send(answer)
        elif fault.kind == "truncate":
            self._send(answer._replace(body=answer.body[: len(answer.body) // 2]))
        else:
            self._send_slowly(answer, fault)

    def _serve_sink(self, world: World, request: Request) -> None:
        name, *rest = request.path.removeprefix(_SINK_PATH).strip("/").split("/")
        if name == "loki" and rest == ["ready"]:
            self._send(Answer(200, b"ready\n", "text/plain"))
            return
        if name not in _SINK_ROUTES or not _SINK_ROUTES[name](rest):
            self._send(json_answer(404, {"message": "not found"}))
            return
        if request.method not in _SINK_METHODS.get(name, ("POST",)):
            self._send(json_answer(405, {"message": "method not allowed"}))
            return
        traffic = world.sink_traffic[name]
        traffic.arrive()
        draw = world.faults.draw(sink=name)
        self._pause(draw.latency_seconds)
        fault = draw.failure
        if fault is None:
            answer = world.receive(name, request)
            traffic.answer(name, str(answer.status))
            self._send(answer)
            return
        traffic.answer(name, fault.kind)
        if fault.kind in BAD_BODIES:
            self._send_bad_body(world.receive(name, request), request, fault)
            return
        if fault.kind in ("lost-ack", "partial"):
            world.receive(name, request, share=1.0 if fault.kind == "lost-ack" else 0.5)
        if fault.kind == "lost-ack":
            raise _DroppedError
        if fault.kind == "partial":
            self._send(api_error(500, "PARTIAL", "Internal Server Error"))
        else:
            self._send(_INSTEAD.get(fault.kind) or self._fail(fault))

    def _send_bad_body(self, answer: Answer, request: Request, fault: Fault) -> None:
        """Send the answer with an unusable body. Its head is right."""
        status = HTTPStatus.OK if answer.status == HTTPStatus.NO_CONTENT else answer.status  # 204 has no body
        answer = answer._replace(status=status, body=answer.body or b'{"status": "accepted"}')
        match fault.kind:
            case "echo":
                self._send(answer._replace(body=request.body * max(1, 2 * MIB // max(1, len(request.body)))))
            case "encoding":
                self._send(answer._replace(headers=(*answer.headers, ("Content-Encoding", "gzip"))))
            case _:
                self._send_slowly(answer, fault)

    def _fail(self, fault: Fault) -> Answer:
        """The answer for a fault that the API and the intakes share. Raises: _DroppedError if there is no answer."""
        if fault.kind == "hang":
            self._pause(fault.seconds)
            raise _DroppedError
        if fault.kind == "reset":
            self.server.reset(self.connection)
            raise _DroppedError
        status = int(fault.kind)
        headers: tuple[tuple[str, str], ...] = ()
        if fault.retry_after:
            is_date, _, seconds = fault.retry_after.rpartition("+")
            value = formatdate(self._clock() + int(seconds), usegmt=True) if is_date else seconds
            headers = (("Retry-After", value),)
        return api_error(status, f"SIMULATED_{status}", _phrase(status))._replace(headers=headers)

    def _pause(self, seconds: float) -> None:
        if seconds > 0 and self.server.stopping.wait(seconds):
            raise _DroppedError

    # Sending

    def _clock(self) -> float:
        return self.server.world.now()

    def _head(self, answer: Answer, framing: str) -> bytes:
        extra = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
        date = f"Date: {formatdate(self._clock(), usegmt=True)}\r\n" if self._is_dated else ""
        return (
            f"HTTP/1.1 {answer.status} {_phrase(answer.status)}\r\n"
            f"{date}"
            f"Content-Type: {answer.content_type}\r\n{framing}\r\n{extra}\r\n"
        ).encode("latin-1")

    def _send(self, answer: Answer) -> None:
        if answer.lines is not None:
            self._send_lines(answer)
        elif answer.status == HTTPStatus.NO_CONTENT:
            self.wfile.write(self._head(answer, "X-Simulator: yes"))
        else:
            self.wfile.write(self._head(answer, f"Content-Length: {len(answer.body)}") + answer.body)

    def _send_lines(self, answer: Answer) -> None:
        self.wfile.write(self._head(answer, "Transfer-Encoding: chunked"))
        block: list[bytes] = []
        size = 0
        for line in answer.lines or ():
            block += (line, b"\n")
            size += len(line) + 1
            if size >= _BLOCK_BYTES:
                self.wfile.write(b"%x\r\n%s\r\n" % (size, b"".join(block)))
                block, size = [], 0
        last = b"%x\r\n%s\r\n" % (size, b"".join(block)) if size else b""
        self.wfile.write(last + b"0\r\n\r\n")

    def _send_slowly(self, answer: Answer, fault: Fault) -> None:
        """`cut`: send half of the answer, then drop the connection. `drip`: send all of it, over the duration."""
        head = self._head(answer, f"Content-Length: {len(answer.body)}")
        if fault.kind == "cut":
            self.wfile.write(head + answer.body[: len(answer.body) // 2])
            raise _DroppedError
        self.wfile.write(head)
        size = max(1, -(-len(answer.body) // _DRIP_PIECES))
        for start in range(0, len(answer.body), size):
            self._pause(fault.seconds / _DRIP_PIECES)
            self.wfile.write(answer.body[start : start + size])


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Simulated"


class SimulatorServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1 and serves each connection in a thread of its own, until `stop`."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, world: World, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.world = world
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._to_reset: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="simulator", daemon=True)

    def server_bind(self) -> None:
        """As in the base class, but without looking up the host's name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, end all pauses, and close all connections."""
        self.stopping.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # it may be closed already
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def reset(self, connection: socket.socket) -> None:
        """Make this connection end with a reset instead of a normal close."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._to_reset.add(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        if request in self._to_reset:
            self._to_reset.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that disconnected. Show any other error: it is a bug of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)
