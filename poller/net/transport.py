"""HTTP for all rooms: the only place that sends requests through `requests`.

Owns the time-outs, TLS and proxy, and the size limit of an answer. Follows no redirect: a token must never reach another host.
Reads no environment: proxies and certificates are parameters. Has no rule for the meaning of a status. The connections are in
`connections`, the messages for missing answers in `failures`.
"""

from __future__ import annotations

import base64
import email.utils
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from types import TracebackType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import requests
import urllib3

from poller import __version__
from poller.core.errors import BodyTooLargeError, StoppedError, TransientError
from poller.net.connections import DRIP_FACTOR, MAX_AGE_SECONDS, Answer, Session
from poller.net.failures import FOREIGN, WAY_HINT, translate
from poller.system.liveness import moves

_CHUNK_BYTES = 256 * 1024
# If only the head of an answer counts, this is the maximum that is read of the body, and the maximum wait for it.
_WORDS_BYTES = 64 * 1024
_WORDS_SECONDS = 1.0


class Response(NamedTuple):
    """An answer. Header names are case-insensitive; `body` is inflated. `is_whole`: the body is complete.

    The headers arrived at `head_at` (unix seconds), `head_seconds` after the start of the request; the body took `body_seconds`
    more. `secrets` are those of a proxy on the way, which may quote them.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_whole: bool = True
    head_at: float = 0.0
    head_seconds: float = 0.0
    body_seconds: float = 0.0
    secrets: tuple[str, ...] = ()


class Transport:
    """Requests to one host. Safe to use from several threads at once, `pool_size` of them without waiting.

    `timeout_seconds` is (connect, read); `send_timeout_seconds` is for each piece of a body that is sent. A connection
    that is older than `max_age_seconds` is not used again; 0: each is used once.
    """

    def __init__(
        self,
        *,
        timeout_seconds: tuple[float, float] = (5.0, 30.0),
        send_timeout_seconds: float = 30.0,
        max_age_seconds: float = MAX_AGE_SECONDS,
        proxies: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        client_cert: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        pool_size: int = 1,
    ) -> None:
        session = Session(pool_size, send_timeout_seconds, max_age_seconds)
        session.proxies = dict(proxies or {})
        session.verify = ca_file or True
        session.cert = client_cert
        session.headers.update(
            {
                "User-Agent": f"ionos-poller/{__version__}",
                "Accept-Encoding": "gzip",
                "Connection": "keep-alive",
            }
        )
        session.headers.update(headers or {})
        self._session = session
        self._timeout_seconds = timeout_seconds
        self._secrets = tuple(secret for url in session.proxies.values() for secret in _login_of(url))
        self._send_timeout_seconds = send_timeout_seconds

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        body: bytes | None = None,
        max_bytes: int = 1024 * 1024,
    ) -> Response:
        """Send one request and read the whole answer, whatever its status.

        Raises: BodyTooLargeError beyond `max_bytes`; TransientError without `status` if no answer came, with a hint if a person
        can do something.
        """
        return self._request(method, url, headers, params, body, lambda answer: _read(answer, max_bytes))

    def ask_status(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes,
        whole: Collection[int] = (),
        max_bytes: int = 1024 * 1024,
    ) -> Response:
        """Send one request of which only the status line and the headers of the answer count.

        The part of the body that comes at once is read for its words; if that is not all, the connection is closed. With a status
        in `whole`, the body counts and is read, even if it ends early.
        Raises: TransientError if the part that counts did not come; BodyTooLargeError beyond `max_bytes`.
        """

        def read(answer: requests.Response) -> Response:
            is_needed = answer.status_code in whole
            return _read(answer, max_bytes, urllib3.exceptions.ProtocolError) if is_needed else _read_words(answer)

        return self._request(method, url, headers, None, body, read)

    def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None,
        params: Mapping[str, str | int] | None,
        body: bytes | None,
        read: Callable[[requests.Response], Response],
    ) -> Response:
        connect_seconds, read_seconds = self._timeout_seconds
        moves(connect_seconds + self._send_timeout_seconds + DRIP_FACTOR * read_seconds)
        started = time.monotonic()
        try:
            with self._session.ask(
                method, url, headers=headers, params=params, body=body, timeout_seconds=self._timeout_seconds
            ) as answer:
                head_at, head = time.time(), time.monotonic()
                response = read(answer)
                return response._replace(
                    head_at=head_at,
                    head_seconds=head - started,
                    body_seconds=time.monotonic() - head,
                    secrets=self._secrets,
                )
        except FOREIGN as error:
            raise translate(error, urlsplit(url).netloc) from error
        finally:
            moves()

    def close(self) -> None:
        self._session.close()


def _login_of(url: str) -> list[str]:
    """The password in a proxy's URL, in all forms in which the proxy could quote it; empty without one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return []
    if not parts.password:
        return []
    username, password = unquote(parts.username or ""), unquote(parts.password)
    return [password, parts.password, base64.b64encode(f"{username}:{password}".encode()).decode()]


def _read_words(answer: requests.Response) -> Response:
    if (original := _original(answer)) is not None:
        original.hurry(_WORDS_SECONDS)
    # An endless, cut or wrongly compressed body does not change the meaning of the head.
    return _read_up_to(_WORDS_BYTES, answer, FOREIGN)


def _original(answer: requests.Response) -> Answer | None:
    original = getattr(answer.raw, "_original_response", None)
    return original if isinstance(original, Answer) else None


def _read(answer: requests.Response, max_bytes: int, *forgiven: type[Exception]) -> Response:
    if (original := _original(answer)) is not None and original.broken_head:
        raise TransientError(original.broken_head, hint=WAY_HINT)
    response = _read_up_to(max_bytes, answer, forgiven)
    if len(response.body) > max_bytes:
        raise BodyTooLargeError(f"the answer is larger than {max_bytes} bytes")
    return response


def _read_up_to(max_bytes: int, answer: requests.Response, forgiven: tuple[type[Exception], ...]) -> Response:
    """The answer. If one of the `forgiven` is raised, or it is too large, the part up to there."""
    body, is_whole = BytesIO(), False  # gives its bytes without a copy
    with suppress(*forgiven):
        # read1 returns the bytes that have arrived; read would wait for a whole chunk.
        while body.tell() <= max_bytes and not is_whole:
            is_whole = not body.write(answer.raw.read1(min(max_bytes, _CHUNK_BYTES), decode_content=True))
    return Response(answer.status_code, answer.headers, body.getvalue(), is_whole)


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """`Retry-After` in seconds from now, from seconds or a date; None if it is missing or invalid.

    A date follows the server's clock, which `Date` shows; without `Date`, `now` is used.
    """
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 12:
        return float(text)
    at = parse_http_date(text)
    answered_at = parse_http_date(headers.get("Date", "")) or now
    return max(0.0, (at - answered_at).total_seconds()) if at else None


def unrequested_encoding(headers: Mapping[str, str]) -> str:
    """The `Content-Encoding` of an answer if we did not ask for it, else ""."""
    encoding = headers.get("Content-Encoding", "").strip().lower()
    known = {"", "identity", "gzip", "x-gzip", "deflate"}
    is_known = all(part.strip() in known for part in encoding.split(","))
    return "" if is_known else "".join(char for char in encoding[:40] if char.isprintable())


def parse_http_date(text: str) -> datetime | None:
    """An HTTP date as aware UTC; None if it is missing or invalid."""
    try:
        at = email.utils.parsedate_to_datetime(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class RateLimit:
    """At most `per_second` requests in any second, for all threads together. 0 means no limit.

    It uses a sliding second, not a steady pace, so that a short poll need not wait. The second counts at the server, where
    requests arrive with different delays.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._turns: list[Turn] = []
        self._lock = threading.Lock()
        self.take_part(1.0)

    def take_part(self, part: float) -> None:
        """Use only this part of the pace, above 0 and at most 1: other processes use the rest."""
        per_second = self._per_second * part
        with self._lock:
            # Below one per second, the span grows instead: 0.5 is one request in any two seconds.
            self._count = max(1, int(per_second))
            self._span_seconds = max(1.0, 1 / per_second) if per_second > 0 else 0.0
            self._turns = sorted(self._turns, key=lambda turn: turn.at)[-self._count :]

    def wait(self, stop: threading.Event) -> Turn:
        """Wait for a turn, in which the request is sent.  Raises: StoppedError when `stop` is set while waiting."""
        if not self._span_seconds:
            return Turn(0.0)
        with self._lock:
            turn = Turn(time.monotonic())
            earliest = None
            if len(self._turns) == self._count:
                earliest = min(self._turns, key=lambda past: past.at)
                self._turns.remove(earliest)
                turn.at = max(turn.at, earliest.at + self._span_seconds)
            self._turns.append(turn)  # turns are handed out in order, so waiting happens outside the lock
        due = 0.0
        while due < turn.at:
            due = turn.at
            wait = due - time.monotonic()
            if wait > 0 and stop.wait(wait):
                raise StoppedError("asked to stop")
            # The request one span before may have arrived later than it was sent; its answer shows when.
            if earliest is not None:
                turn.at = max(turn.at, earliest.at + self._span_seconds)
        return turn


class Turn:
    """The right to send one request, in a `with` block. `at` is the latest time at which the server may have got it."""

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at

    def __enter__(self) -> None:
        """Send it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The request has arrived: its span starts now at the latest."""
        self.at = max(self.at, time.monotonic())
