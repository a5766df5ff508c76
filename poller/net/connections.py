"""Connections that give each answer a deadline, and a session without automatic behaviour.

The libraries limit the time until the next byte, but not the whole time: slow headers, or interim answers and trailers without
end, would block a worker. They would even take an interim answer (103 Early Hints) for the answer, and the real answer for that
of the next request on the connection. And a whole body would have to be sent within the connect time-out.

A connection is closed after an answer that shows a failing server, and at a maximum age. The next connection looks up the name
again, and finds a server that moved.
"""

from __future__ import annotations

import http.client
import http.cookiejar
import io
import re
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urlencode

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import check_header_validity
from urllib3.exceptions import ConnectTimeoutError
from urllib3.util import wait_for_read

from poller.system.liveness import moves

# A whole answer may take this many read time-outs, so that one byte per second does not block a worker.
DRIP_FACTOR = 4
# Maximum bytes of an answer if the calling library has no limit.
MAX_ANSWER_BYTES = 1024 * 1024
# This much of a body must be sent within one send time-out.
SEND_BYTES = 64 * 1024
MAX_AGE_SECONDS = 300.0
# Nothing in it is to be quoted, lowered or left out.
_LABEL = "[a-z0-9][a-z0-9-]*"
_PLAIN_URL = re.compile(
    rf"https?://{_LABEL}(\.{_LABEL})*(:[1-9][0-9]{{0,3}}|:[1-5][0-9]{{4}})?(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+/?"
)


class TooSlowError(TimeoutError):
    """The answer is not complete at its deadline."""


class TooLargeError(OSError):
    """An answer is larger than the calling library may hold."""


class SendTimeoutError(TimeoutError):
    """The server did not accept more of the request in time."""


class EarlyAnswerError(OSError):
    """The answer is a success, but the request was not sent completely."""


def is_closed_after(status: int) -> bool:
    """Whether the server fails, so that the next request should look up the name again."""
    return status in (408, 429) or status >= 500


class _UntilDeadline(io.RawIOBase):
    """The bytes from a socket, up to a time of the monotonic clock and a number of bytes."""

    def __init__(self, incoming: io.RawIOBase, deadline: float) -> None:
        self.deadline = deadline
        self.room_bytes = sys.maxsize
        self._incoming = incoming

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self.deadline:
            raise TooSlowError("the answer came too slowly")
        size = self._incoming.readinto(buffer)
        self.room_bytes -= size or 0
        if self.room_bytes < 0:
            raise TooLargeError("the answer is too large")
        return size

    def close(self) -> None:
        self._incoming.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """The final answer, after any interim answers. It must be complete before its deadline."""

    is_last = False
    """Whether the connection is closed after the answer."""
    broken_head = ""
    """The defect of its headers if they do not show where the body ends. Then no header and no body is kept."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._socket = sock
        self._incoming: _UntilDeadline | None = None
        timeout_seconds = sock.gettimeout()
        if timeout_seconds is not None:
            self.fp.close()
            incoming = sock.makefile("rb", buffering=0)
            self._incoming = _UntilDeadline(incoming, time.monotonic() + timeout_seconds * DRIP_FACTOR)
            self.fp = io.BufferedReader(self._incoming)

    def begin(self) -> None:
        """Read up to the body. The library skips only 100; 101 is final.  Source: RFC 9110, 15.2."""
        self._read_head()
        while 102 <= self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]  # as before it began
            self._read_head()
        # A 204 must not have a body. If it has one, it would be read as the next answer.
        has_odd_body = self.status == 204 and self.headers.get("Content-Length", "0") != "0"
        self.will_close = self.will_close or self.is_last or has_odd_body or is_closed_after(self.status)

    def _read_head(self) -> None:
        try:
            super().begin()
        except http.client.HTTPException as error:
            status: Any = self.status  # a word of the library's until the status line is there
            if not isinstance(status, int) or status < 200:
                raise
            self._drop_headers(f"the headers of the answer cannot be read: {error}")
            return
        lengths = {part.strip() for value in self.headers.get_all("Content-Length", ()) for part in value.split(",")}
        if len(lengths) > 1:
            self._drop_headers("the headers of the answer contradict each other")

    def _drop_headers(self, why: str) -> None:
        self.broken_head = why
        self.headers = self.msg = http.client.HTTPMessage()
        self.chunked, self.length, self.will_close = False, 0, True

    def bound(self, max_bytes: int) -> None:
        """Limit the bytes that are read of it."""
        if self._incoming is not None:
            self._incoming.room_bytes = max_bytes

    def hurry(self, seconds: float) -> None:
        """Limit the time for the rest of it."""
        if self._incoming is not None:
            self._incoming.deadline = min(self._incoming.deadline, time.monotonic() + seconds)
        with suppress(OSError):  # closed already
            self._socket.settimeout(seconds)


class LastAnswer(Answer):
    """An answer on a connection that is not used again."""

    is_last = True


class _Bounded:
    """Our additions to a kind of connection: time-outs while sending, our answers, a maximum age."""

    send_timeout_seconds: float
    max_age_seconds: float
    max_answer_bytes: int
    sock: Any
    response_class: Any
    _connected_at = 0.0
    _is_connecting = False
    _is_cut = False

    def connect(self) -> None:
        """Connect, through a proxy and with TLS if configured, within the connect time-out.

        Raises: ConnectTimeoutError, for each of these steps.
        """
        self._is_connecting = True
        try:
            super().connect()  # type: ignore[misc]
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "not connected in time") from error
        finally:
            self._is_connecting = False
        self._connected_at = time.monotonic()
        with suppress(OSError, AttributeError):
            # Otherwise megabytes wait in the kernel and count as sent, and their time counts for the answer.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * SEND_BYTES)

    def send(self, data: Any) -> None:
        """Send in pieces, each with a time-out of its own.

        Raises: SendTimeoutError; BrokenPipeError if the server has answered already and accepts nothing more.
        """
        if self.sock is None:
            self._is_cut = False
            self.connect()
        if not self._is_connecting:  # else it is for the proxy, within the time to connect
            self.sock.settimeout(self.send_timeout_seconds)
        rest = memoryview(data)
        try:
            while rest:
                super().send(rest[:SEND_BYTES])  # type: ignore[misc]
                moves(None)
                rest = rest[SEND_BYTES:]
        except TimeoutError:
            self._is_cut = True
        except OSError:
            self._is_cut = True
            raise
        if rest:
            has_answer = wait_for_read(self.sock, timeout=0)
            raise BrokenPipeError if has_answer else SendTimeoutError("the request was taken too slowly")

    def getresponse(self) -> Any:
        """The answer.  Raises: EarlyAnswerError."""
        usual = self.response_class
        is_old = time.monotonic() - self._connected_at >= self.max_age_seconds
        if usual is Answer and (is_old or self._is_cut):
            self.response_class = LastAnswer
        try:
            answer = super().getresponse()  # type: ignore[misc]
        finally:
            self.response_class = usual
        if self._is_cut and answer.status < 300:
            answer.close()
            raise EarlyAnswerError("answered before the request was sent whole")
        original = getattr(answer, "_original_response", answer)
        if isinstance(original, Answer):
            original.bound(self.max_answer_bytes)
        return answer


@lru_cache
def bounded(kind: Any, send_timeout_seconds: float, max_age_seconds: float, max_answer_bytes: int = sys.maxsize) -> Any:
    """The same kind of connection, with our answers and our way of sending."""
    members = {
        "response_class": Answer,
        "send_timeout_seconds": send_timeout_seconds,
        "max_age_seconds": max_age_seconds,
        "max_answer_bytes": max_answer_bytes,
    }
    return type("Connection", (_Bounded, kind), members)


def bound_client(client: Any, send_timeout_seconds: float, max_answer_bytes: int = MAX_ANSWER_BYTES) -> None:
    """Make the connections of a client of AWS's library send and read like ours."""
    pools = client._endpoint.http_session._pool_classes_by_scheme  # noqa: SLF001 - the library has no public way to this
    for scheme, pool in pools.items():
        kind = bounded(pool.ConnectionCls, send_timeout_seconds, MAX_AGE_SECONDS, max_answer_bytes)
        pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": kind})


class _Adapter(HTTPAdapter):
    """Makes every connection, with or without a proxy, send and read in our way."""

    def __init__(self, send_timeout_seconds: float, max_age_seconds: float, pool_size: int) -> None:
        super().__init__(pool_maxsize=pool_size, max_retries=0)
        self._bounds = (send_timeout_seconds, max_age_seconds)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if not issubclass(pool.ConnectionCls, _Bounded):
            pool.ConnectionCls = bounded(pool.ConnectionCls, *self._bounds)
        return pool


def _normal(url: str) -> str:
    """A URL with its host in ASCII and its path quoted.  Raises: requests.RequestException."""
    if _PLAIN_URL.fullmatch(url):
        return url
    request = requests.PreparedRequest()
    request.prepare_url(url, None)
    assert request.url is not None  # noqa: S101  # it is, where nothing was raised
    return request.url


class Session(requests.Session):
    """Requests to one host: without redirects, cookies, the environment and .netrc."""

    def __init__(self, pool_size: int, send_timeout_seconds: float, max_age_seconds: float = MAX_AGE_SECONDS) -> None:
        super().__init__()
        self.trust_env = False  # no .netrc in place of our token, and no look-up of the environment per request
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))
        self.headers.clear()
        adapter = _Adapter(send_timeout_seconds, max_age_seconds, pool_size)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None,
        params: Mapping[str, str | int] | None,
        body: bytes | None,
        timeout_seconds: tuple[float, float],
    ) -> requests.Response:
        """Send a request and read the head of the answer. With `params`, the URL must have no query.

        It does the same as `request`, but does not merge settings, which are equal for all requests of a session, and does not
        parse each URL: that took a seventh of the processor time of a poll that finds nothing.
        """
        request = requests.PreparedRequest()
        request.method = method
        request.url = f"{_normal(url)}?{urlencode(params)}" if params else _normal(url)
        request.headers = CaseInsensitiveDict(self.headers)  # type: ignore[arg-type]  # its types call them bytes, too
        for header in (headers or {}).items():
            check_header_validity(header)
            request.headers[header[0]] = header[1]
        if body is not None or method != "GET":
            request.headers["Content-Length"] = str(len(body or b""))
        request.body = body
        request.hooks = {"response": []}
        return self.send(
            request,
            proxies=self.proxies,
            verify=self.verify,
            cert=self.cert,
            timeout=timeout_seconds,
            allow_redirects=False,
            stream=True,
        )

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Always None. Otherwise `requests` reads the whole body of a redirect, even if it does not follow it."""
