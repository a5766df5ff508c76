"""The daemon's own HTTP endpoint: the page, `/status.json`, `/metrics`, `/healthz`, `/readyz`, in its own threads.

It needs no login, so clients are limited: few connections at once, each with a deadline. A request with a foreign host name is
refused. Otherwise a web page could point its own name at this address and read the answers (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import NamedTuple

import msgspec

from poller.core.errors import PollerError
from poller.system.listening import Address, failure, listen, stop_listening

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
# Time from the connection or the previous answer to the end of a request, and from there to the end of its answer.
REQUEST_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_ROOM_SECONDS = 1.0
_DIRECTORY = b"/ /status.json /metrics /healthz /readyz\n"
# Answers are not cached, and not available to pages of other sites.
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Health(NamedTuple):
    """The problems, one sentence each, and notes that are no problems."""

    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_well(self) -> bool:
        return not self.reasons


class Routes(NamedTuple):
    """The answers. Called for each request, from several threads. `page` is called with whether the whole page is wanted."""

    metrics: Callable[[], bytes]
    alive: Callable[[], Health]
    ready: Callable[[], Health]
    page: Callable[[bool], Answer]
    status: Callable[[], bytes]


class Answer(NamedTuple):
    """A complete answer."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = {}


class Endpoint:
    """Serves until closed. `hosts`: names it answers to, beside IP addresses, localhost, this machine's and that of `address`."""

    def __init__(self, address: Address, routes: Routes, *, hosts: Collection[str] = ()) -> None:
        """Start listening.  Raises: TransientError while the address is in use or missing; ConfigError if we may not use it."""
        self._address = address
        try:
            listener = listen(address)
        except OSError as error:
            raise failure(address, error) from error
        machine = socket.gethostname()
        ours = ("localhost", machine, machine.partition(".")[0], *(() if isinstance(address, Path) else (address[0],)))
        names = {name.lower() for name in (*hosts, *ours)}
        is_any = isinstance(address, Path) or "*" in hosts  # a web page cannot make a browser use a socket file
        self._server = _Server(listener, routes, None if is_any else names)
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.socket.getsockname()[1])

    def close(self) -> None:
        """Stop listening. Current answers may still end."""
        self._server.shutdown()
        stop_listening(self._address, self._server.socket)


class _Server(ThreadingMixIn, TCPServer):
    """A thread per connection, at most `MAX_CONNECTIONS`. For a new one, the connection longest without a request is closed."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, routes: Routes, names: Collection[str] | None) -> None:
        self.address_family = listener.family
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.routes = routes
        self.names = names
        # In the order in which they began to wait: the deadline of each, and whether it is being answered.
        self._open: dict[socket.socket, tuple[float, bool]] = {}
        self._changed = threading.Condition()

    def verify_request(self, request: socket.socket, client_address: object) -> bool:  # type: ignore[override]  # wider there
        """Whether there is room for a connection, if needed by closing another one."""
        with self._changed:
            if len(self._open) >= MAX_CONNECTIONS:
                waiting = next((one for one, (_, is_answered) in self._open.items() if not is_answered), None)
                if waiting is not None:
                    _hang_up(waiting)
                if not self._changed.wait_for(lambda: len(self._open) < MAX_CONNECTIONS, _ROOM_SECONDS):
                    return False
            self._open[request] = (time.monotonic() + REQUEST_SECONDS, False)
            return True

    def await_request(self, request: socket.socket) -> None:
        """Start the time of a connection for its request."""
        with self._changed:
            if self._open.pop(request, None):
                self._open[request] = (time.monotonic() + REQUEST_SECONDS, False)

    def begin_answer(self, request: socket.socket) -> None:
        """Note that its request has arrived: until it is answered, it is not closed for a new connection."""
        with self._changed:
            if request in self._open:
                self._open[request] = (time.monotonic() + _ANSWER_SECONDS, True)

    def service_actions(self) -> None:
        """Twice a second: close connections after their deadline, even if bytes still arrive."""
        now = time.monotonic()
        with self._changed:
            for request, (deadline, _) in self._open.items():
                if now > deadline:
                    _hang_up(request)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]  # wider there
        super().shutdown_request(request)
        with self._changed:
            self._open.pop(request, None)
            self._changed.notify_all()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no problem."""


def _hang_up(connection: socket.socket) -> None:
    """Shut the connection down, so that its thread ends and closes it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS

    def handle_one_request(self) -> None:
        self.server.await_request(self.connection)
        super().handle_one_request()

    def do_GET(self) -> None:
        self.server.begin_answer(self.connection)
        lengths = {length.strip() for length in self.headers.get_all("Content-Length", ())}
        if "Transfer-Encoding" in self.headers or lengths - {"0"} or self.headers.defects:
            self.close_connection = True  # otherwise its body would be read as the next request
        self._send(self._answer())

    do_HEAD = do_GET  # noqa: N815  # as the base class names it; the body is left out below

    def _answer(self) -> Answer:
        path, _, query = self.path.partition("?")
        routes = self.server.routes
        if not self._is_meant_for_us():
            return _text(HTTPStatus.MISDIRECTED_REQUEST, b"this host name is not ours: see http.hosts\n")
        try:
            match path:
                case "/":
                    return routes.page(query == "all")
                case "/status.json":
                    return Answer(HTTPStatus.OK, "application/json", routes.status())
                case "/metrics":
                    return Answer(HTTPStatus.OK, "text/plain; version=0.0.4; charset=utf-8", routes.metrics())
                case "/healthz":
                    return _health(routes.alive())
                case "/readyz":
                    return _health(routes.ready())
                case _:
                    return _text(HTTPStatus.NOT_FOUND, _DIRECTORY)
        except PollerError as error:
            log.warning("endpoint.failed", extra={"path": path, "why": str(error)})
            return _health(Health((str(error),)))
        except Exception:  # a bug of ours: the client gets a 500 without a traceback, and the log has it
            log.exception("endpoint.failed", extra={"path": path})
            answer = _health(Health(("internal error: the log says more",)))
            return answer._replace(status=HTTPStatus.INTERNAL_SERVER_ERROR)

    def _is_meant_for_us(self) -> bool:
        names = self.server.names
        hosts = self.headers.get_all("Host", [])
        return names is None or all(_is_ours(host, names) for host in hosts)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in (_HEADERS | dict(answer.headers)).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def send_response(self, code: int, message: str | None = None) -> None:
        """As in the base class, without a `Server` header."""
        self.send_response_only(code, message)
        self.send_header("Date", self.date_time_string())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        """Keep scrapes out of the log."""


def _is_ours(host: str, names: Collection[str]) -> bool:
    """Whether a `Host` is an IP address or one of our names. The port does not matter."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name.removesuffix(".") in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _text(status: int, body: bytes) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", body)


def _health(health: Health) -> Answer:
    body = {"status": "ok" if health.is_well else "failing", "reasons": health.reasons}
    if health.notes:
        body["notes"] = health.notes
    status = HTTPStatus.OK if health.is_well else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(status, "application/json", msgspec.json.encode(body) + b"\n")
