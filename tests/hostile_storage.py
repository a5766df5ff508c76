"""An object storage that fails: a proxy in front of moto's S3 that refuses requests, loses answers, and breaks off uploads."""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_EXPIRED = ((403, "ExpiredToken"), (400, "ExpiredToken"), (403, "InvalidAccessKeyId"))
_BUSY = {"500": (500, "InternalError"), "SlowDown": (503, "SlowDown")}
_NOT_FORWARDED = {"connection", "expect", "transfer-encoding", "content-length"}


class HostileStorage:
    """A context manager. A `share` of all requests fails. While `is_expired`, all are refused, as for an expired key."""

    def __init__(self, url: str, share: float, seed: int = 1) -> None:
        self.faults: Counter[str] = Counter()
        """The number of faults so far, by kind."""
        self.is_expired = False
        self._chance = random.Random(seed)
        self.share = share
        self.requests = 0
        self._address = urlsplit(url).netloc
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"storage": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HostileStorage:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self, method: str) -> str:
        """Choose the fault for a request; empty for none."""
        with self._lock:
            self.requests += 1
            kind = "expired key" if self.is_expired else ""
            if not kind and self._chance.random() < self.share:
                kind = self._chance.choice(("500", "SlowDown", "lost answer", "half upload"))
            if kind == "half upload" and method != "PUT":
                kind = ""
            if kind:
                self.faults[kind] += 1
            return kind

    def refusal(self, kind: str) -> tuple[int, str]:
        """The status and the error code of a refusal."""
        with self._lock:
            return _BUSY.get(kind) or self._chance.choice(_EXPIRED)

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Forward a request to the storage.  Returns: status, headers and body of its answer."""
        connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            kept = {name: value for name, value in headers.items() if name.lower() not in _NOT_FORWARDED}
            connection.request(method, path, body or None, kept | {"Content-Length": str(len(body))})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    """Handles the requests of one connection, and forwards them to the server's storage."""

    protocol_version = "HTTP/1.1"
    storage: HostileStorage

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - a name of the library
        """Log nothing: the log belongs to the daemon."""

    def handle(self) -> None:
        with suppress(OSError):  # a client that was killed
            super().handle()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        kind = self.storage.draw(self.command)
        body = self.rfile.read(length // 2 if kind == "half upload" else length)
        # An upload that breaks off, by us or because the client was killed: the storage gets no whole request and stores nothing.
        self.close_connection = kind in ("half upload", "lost answer") or len(body) < length
        if kind == "half upload" or len(body) < length:
            return
        if kind and kind != "lost answer":
            status, code = self.storage.refusal(kind)
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>words</Message></Error>".encode()
            self._send(status, [("Content-Type", "application/xml")], text)
            return
        answer = self.storage.forward(self.command, self.path, dict(self.headers), body)
        if kind != "lost answer":
            self._send(*answer)

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        is_head = self.command == "HEAD"
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _NOT_FORWARDED or (is_head and name.lower() == "content-length"):
                self.send_header(name, value)
        if not is_head:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not is_head:
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_DELETE = _answer  # noqa: N815 - names of the library
