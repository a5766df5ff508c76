"""The daemon's own HTTP endpoint: `/metrics`, `/healthz`, `/readyz`, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import msgspec

from poller.errors import ConfigError, PollerError, Problem

_DIRECTORY = b"/metrics /healthz /readyz\n"


class Health(NamedTuple):
    """Whether all is well, and in a sentence each, why not."""

    is_well: bool
    reasons: tuple[str, ...] = ()


class Endpoint:
    """Serves until closed. The functions are called at each request, from several threads."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        metrics: Callable[[], bytes],
        alive: Callable[[], Health],
        ready: Callable[[], Health],
    ) -> None:
        """Start listening.  Raises: ConfigError when the address is taken or is not ours."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10  # a client that says nothing does not hold a thread

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                health = {"/healthz": alive, "/readyz": ready}.get(path)
                try:
                    if path == "/metrics":
                        self._answer(200, "text/plain; version=0.0.4; charset=utf-8", metrics())
                    elif health is not None:
                        self._answer_health(health())
                    else:
                        self._answer(200 if path == "/" else 404, "text/plain; charset=utf-8", _DIRECTORY)
                except PollerError as error:
                    self._answer_health(Health(False, (str(error),)))

            do_HEAD = do_GET  # noqa: N815  # as the base class names it; the body is left out below

            def _answer_health(self, health: Health) -> None:
                body = {"status": "ok" if health.is_well else "failing", "reasons": health.reasons}
                self._answer(200 if health.is_well else 503, "application/json", msgspec.json.encode(body) + b"\n")

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
                """Keep scrapes out of the log."""

        host, port = address
        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise ConfigError(
                [Problem("http.listen", f"{host}:{port}: {error.strerror}", 'choose another, or "" for none')]
            ) from error
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # 5 are soon full of those who say nothing

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nobody's problem."""
