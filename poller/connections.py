"""What lies under a request: connections that give an answer a deadline, and a session that does only what it was asked.

The libraries bound the time until the next byte, and nothing bounds how many there are: headers in drips, interim answers or
trailers without end would hold a worker for ever. An interim answer (103 Early Hints) would even be taken for the answer, and the
answer itself for that of the next request on the connection.
"""

from __future__ import annotations

import http.client
import http.cookiejar
import io
import socket
import time
from functools import lru_cache
from typing import Any

import requests
from requests.adapters import HTTPAdapter

# A whole answer may take this many read time-outs, so that one byte a second does not hold a worker for ever.
DRIP_FACTOR = 4


class TooSlowError(TimeoutError):
    """The answer is still coming, but its time is up."""


class _UntilDeadline(io.RawIOBase):
    """What comes on a socket, up to a moment of the monotonic clock."""

    def __init__(self, incoming: io.RawIOBase, deadline: float) -> None:
        self._incoming = incoming
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self._deadline:
            raise TooSlowError("the answer came too slowly")
        return self._incoming.readinto(buffer)

    def close(self) -> None:
        self._incoming.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An answer that comes before its deadline, or is given up; it is the final one, whatever was said in the meantime."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        timeout_seconds = sock.gettimeout()
        if timeout_seconds is not None:
            self.fp.close()
            incoming = sock.makefile("rb", buffering=0)
            self.fp = io.BufferedReader(_UntilDeadline(incoming, time.monotonic() + timeout_seconds * DRIP_FACTOR))

    def begin(self) -> None:
        """Read up to the body. The library itself skips only 100; 101 is final.  Source: RFC 9110, 15.2."""
        super().begin()
        while 102 <= self.status < 200:
            self.headers = self.msg = None  # type: ignore[assignment]  # as before it began
            super().begin()


@lru_cache
def _bounded(kind: Any) -> Any:
    """The same kind of connection, but with our answers."""
    return type("Connection", (kind,), {"response_class": Answer})


class _Adapter(HTTPAdapter):
    """Has every connection, through a proxy or not, read its answers as we do."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if pool.ConnectionCls.response_class is not Answer:
            pool.ConnectionCls = _bounded(pool.ConnectionCls)
        return pool


class Session(requests.Session):
    """Requests to one host: no redirect is looked at, no cookie kept, nothing read from the environment or from .netrc."""

    def __init__(self, pool_size: int) -> None:
        super().__init__()
        self.trust_env = False  # no .netrc in place of our token, and no look-up of the environment per request
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))
        self.headers.clear()
        adapter = _Adapter(pool_connections=1, pool_maxsize=pool_size, max_retries=0)
        self.mount("http://", adapter)
        self.mount("https://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: else `requests` would read the whole body of a redirect, however large, even where it is not to follow."""
