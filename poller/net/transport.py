"""HTTP for everybody: one place that talks through `requests` and translates what goes wrong.

Owns the time-outs, TLS and proxy, the cap on an answer's size, and the translation of foreign exceptions into ours. Follows no
redirect: a token must never reach another host. Reads no environment: proxies and certificates are handed in. Knows no rule
about what a status means. What lies under a request is in `connections`.
"""

from __future__ import annotations

import base64
import email.utils
import errno
import re
import socket
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
from poller.core.errors import BodyTooLargeError, PollerError, StoppedError, TransientError
from poller.net.connections import (
    DRIP_FACTOR,
    MAX_AGE_SECONDS,
    Answer,
    EarlyAnswerError,
    SendTimeoutError,
    Session,
    TooSlowError,
)
from poller.system.liveness import moves

_CHUNK_BYTES = 256 * 1024
# Of an answer whose head is what counts, no more of the body is read, and it is not waited for longer.
_WORDS_BYTES = 64 * 1024
_WORDS_SECONDS = 1.0

PROXY_CREDENTIALS_HINT = "put user and password into the URL of the proxy in HTTPS_PROXY or HTTP_PROXY"
_PROXY_HINT = "check HTTPS_PROXY or HTTP_PROXY"
_WAY_HINT = "check the url and any proxy or firewall on the way"

# OpenSSL's words for what went wrong with TLS, and what to do.
_TLS_HINTS = (
    ("issuer|self.signed", "if an unknown CA signed the certificate, name its file in ca_file"),
    ("mismatch, certificate|not valid for", "the certificate is for another name: check the url"),
    ("expired|not yet valid", "check the clock of this machine; if it is right, the server needs a new certificate"),
    (
        "WRONG_VERSION|RECORD_LAYER|HTTP_REQUEST|UNEXPECTED_EOF",
        "check that it speaks TLS at that port; if it does not, the url begins with http://",
    ),
    (
        "KEY_VALUES_MISMATCH|NO_CERTIFICATE|PEM",
        "check that ca_file, cert_file and key_file are PEM, and belong together",
    ),
)

# All that the libraries raise for what a server or the network does.
_FOREIGN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError)


class Response(NamedTuple):
    """An answer. Header names are case-insensitive; `body` is inflated. `is_whole`: that is all of the body.

    The headers came at `head_at` (unix seconds), `head_seconds` after the request was begun; the body took `body_seconds` more.
    `secrets` are those of a proxy on the way, which may quote them.
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

        Raises: BodyTooLargeError beyond `max_bytes`; TransientError for everything that kept an answer from coming
        (its `status` is None), with a hint where a person can do something.
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
        """Send one request whose answer is its status line and headers, whatever its body is.

        Of the body, what comes at once is read for its words; where that is not all, the connection is closed. With a status in
        `whole`, all of it counts and is read, up to where it ends early.
        Raises: TransientError for everything that kept what counts from coming; BodyTooLargeError beyond `max_bytes` of it.
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
        except _FOREIGN as error:
            raise _translate(error, urlsplit(url).netloc) from error
        finally:
            moves()

    def close(self) -> None:
        self._session.close()


def _login_of(url: str) -> list[str]:
    """The password in a proxy's URL, in each form in which the proxy could quote it; nothing where there is none."""
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
    # Endless, cut short, compressed wrongly: none of that changes what its head says.
    return _read_up_to(_WORDS_BYTES, answer, _FOREIGN)


def _original(answer: requests.Response) -> Answer | None:
    original = getattr(answer.raw, "_original_response", None)
    return original if isinstance(original, Answer) else None


def _read(answer: requests.Response, max_bytes: int, *forgiven: type[Exception]) -> Response:
    if (original := _original(answer)) is not None and original.broken_head:
        raise TransientError(original.broken_head, hint=_WAY_HINT)
    response = _read_up_to(max_bytes, answer, forgiven)
    if len(response.body) > max_bytes:
        raise BodyTooLargeError(f"the answer is larger than {max_bytes} bytes")
    return response


def _read_up_to(max_bytes: int, answer: requests.Response, forgiven: tuple[type[Exception], ...]) -> Response:
    """The answer, or as much of it as comes before one of the `forgiven` is raised, or it is larger: then a bit more."""
    body, is_whole = BytesIO(), False  # of which the bytes are had without a copy
    with suppress(*forgiven):
        # read1 gives what has come; read would wait for a whole chunk.
        while body.tell() <= max_bytes and not is_whole:
            is_whole = not body.write(answer.raw.read1(min(max_bytes, _CHUNK_BYTES), decode_content=True))
    return Response(answer.status_code, answer.headers, body.getvalue(), is_whole)


def _translate(error: Exception, host: str) -> TransientError:
    """Our error for a foreign one. The text names kind and host, never the URL: a query may hold what should not be logged."""
    root = root_cause(error)
    reason = type(root).__name__
    match error:
        case _ if (ours := _connection_error(error, root, host)) is not None:
            return ours
        case requests.exceptions.ProxyError():
            why, hint = (
                ("it wants credentials (407)", PROXY_CREDENTIALS_HINT) if "407" in str(root) else (reason, _PROXY_HINT)
            )
            return TransientError(f"the proxy did not let the request through: {why}", hint=hint)
        case requests.exceptions.SSLError():
            why = getattr(root, "verify_message", "") or getattr(root, "reason", "") or reason
            return TransientError(f"TLS failed with {host}: {why}", hint=_tls_hint(why))
        case requests.exceptions.ConnectTimeout():
            return TransientError(
                f"no connection to {host} within connect_timeout", hint="check the address and the firewall"
            )
        case requests.exceptions.Timeout() | urllib3.exceptions.TimeoutError() | TimeoutError():
            what = "the answer came too slowly" if isinstance(root, TooSlowError) else "no answer within read_timeout"
            return TransientError(what, hint="raise read_timeout if the network is that slow", is_size_suspect=True)
        case requests.exceptions.InvalidURL() | requests.exceptions.InvalidHeader() | ValueError():
            return TransientError(f"the request could not be made: {reason}", hint="check the url, and that of a proxy")
        case requests.exceptions.ContentDecodingError() | urllib3.exceptions.DecodeError():
            return TransientError("the answer's compression is broken", hint=_WAY_HINT)
        case _:
            hint = f"it is tried again; if that does not help, {_WAY_HINT}"
            return TransientError(f"the connection to {host} broke: {reason}", hint=hint, is_size_suspect=True)


def _connection_error(error: Exception, root: BaseException, host: str) -> TransientError | None:
    """What to say of a connection that broke or did not come about, by what the operating system or we said of it."""
    match root:
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            hint = "raise the limit of open files (LimitNOFILE=, ulimit -n)"
            return TransientError(f"no connection to {host}: too many open files", hint=hint)
        case _ if type(error) is not requests.exceptions.ConnectionError:  # a proxy's, or of TLS
            return None
        case SendTimeoutError():
            hint = "raise send_timeout, or lower batch_bytes, if the network is that slow"
            return TransientError(
                f"{host} took no more of the request within send_timeout", hint=hint, is_size_suspect=True
            )
        case EarlyAnswerError():
            return TransientError(f"{host} answered before the request was sent whole", hint=_WAY_HINT)
        case socket.gaierror():
            return TransientError(f"the host name of {host} is not known", hint="check the url and the DNS")
        case ConnectionRefusedError():
            hint = "check the address, and that a server listens there"
            return TransientError(f"connection refused by {host}", hint=hint)
        case _:
            return None


def _tls_hint(why: str) -> str:
    """What to do about a TLS error, by OpenSSL's word for it."""
    return next((hint for words, hint in _TLS_HINTS if re.search(words, why)), "check the url, and its certificate")


def root_cause(error: BaseException) -> BaseException:
    """The innermost exception: what the operating system or OpenSSL said. Not one of ours, in whose handling it was raised."""
    for _ in range(10):
        inner = (
            error.__cause__
            or error.__context__
            or next((arg for arg in error.args if isinstance(arg, BaseException)), None)
            or getattr(error, "reason", None)
        )
        if not isinstance(inner, BaseException) or isinstance(inner, PollerError) or inner is error:
            break
        error = inner
    return error


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """`Retry-After` as seconds from `now`, given as seconds or as a date; None where it is missing or makes no sense."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 12:
        return float(text)
    at = parse_http_date(text)
    return max(0.0, (at - now).total_seconds()) if at else None


def unrequested_encoding(headers: Mapping[str, str]) -> str:
    """The `Content-Encoding` of an answer, where it is none that was asked for; "" where it is."""
    encoding = headers.get("Content-Encoding", "").strip().lower()
    known = {"", "identity", "gzip", "x-gzip", "deflate"}
    is_known = all(part.strip() in known for part in encoding.split(","))
    return "" if is_known else "".join(char for char in encoding[:40] if char.isprintable())


def parse_http_date(text: str) -> datetime | None:
    """An HTTP date as aware UTC; None where it is missing or makes no sense."""
    try:
        at = email.utils.parsedate_to_datetime(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class RateLimit:
    """At most `per_second` requests in any second, shared by all threads. 0 means no limit.

    A sliding second rather than a steady pace: a short poll need not wait at all. It is a second of the other side's, which
    gets some requests later after they were sent than others.
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
            # Below one a second the span grows instead: 0.5 is one request in any two seconds.
            self._count = max(1, int(per_second))
            self._span_seconds = max(1.0, 1 / per_second) if per_second > 0 else 0.0
            self._turns = sorted(self._turns, key=lambda turn: turn.at)[-self._count :]

    def wait(self, stop: threading.Event) -> Turn:
        """Wait for a turn, within which the request is sent.  Raises: StoppedError when `stop` is set while waiting."""
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
            # The one a span before us may have been answered, that is arrived, later than it was sent.
            if earliest is not None:
                turn.at = max(turn.at, earliest.at + self._span_seconds)
        return turn


class Turn:
    """The right to send one request, within a `with`. `at` is when the other side may have got it, at the latest."""

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at

    def __enter__(self) -> None:
        """Send it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It has arrived by now: only from here on does its span run out for sure."""
        self.at = max(self.at, time.monotonic())
