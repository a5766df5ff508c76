"""The common part of the sinks over HTTP: one POST, and the meaning of its answer.

Owns the request (compression, pace, login, extra headers) and the one table from statuses to outcomes. Only the statuses that a
sink lists are successes. A status that is neither success nor known refusal keeps the data, with a reason that names the remedy:
a wrong path, or a 413 with `Retry-After`, must not cost an event. The head of an answer decides: the body is read only for its
words, or to detect a page of someone else. If a success has more in its body, the whole body counts.
"""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode

from isal import isal_zlib

from poller.config import AnyHttpSink, HttpSink, LokiSink, OpenSearchSink, OtlpSink, SecretSource
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.errors import BodyTooLargeError, ConfigError, TransientError
from poller.net.connections import MAX_AGE_SECONDS
from poller.net.transport import RateLimit, Response, Transport, retry_after_seconds, unrequested_encoding
from poller.net.words import words_of
from poller.sinks.base import Context

# Measured on entries: as small as zlib's level 3 in a fifth of its time; level 3 takes twice that for 1 % fewer bytes.
_GZIP_LEVEL = 2
_GZIP_FORMAT = 31  # zlib's word for a gzip member; its header has no time, so equal batches are equal bytes
_MIN_MASKED_CHARS = 4
_MARKS = rb"[\s\xef\xbb\xbf\xfe\xff]*"  # of UTF-8 and UTF-16, and space
_PAGE_BEGINS = re.compile(
    _MARKS + rb"(<!--|(<\?xml[^>]*>\s*)?<(!doctype html|(html|head|body|script|meta|title)\b))", re.IGNORECASE
)
_PAGE_HEAD_BYTES = 1024

_NOT_TAKEN = "(unsupported|unknown|unrecognized|invalid|not (support(ed)?|allowed|enabled|accepted))"
# The words name gzip, the header or compression. A refusal of a text encoding does not.
_NO_GZIP = (
    rf"{_NOT_TAKEN}\W+(\w+\W+){{0,3}}(gzip|content-encoding)|(content-encoding|gzip)\W+(\w+\W+){{0,3}}{_NOT_TAKEN}"
    r"|unsupported compression|compression( \w+){0,3} not (supported|allowed|enabled)"
)
# Refusals that do not concern the events, by the words of well-known servers, and the remedy.
_NOT_THE_EVENTS = (
    ("plain HTTP (request|to an SSL)|HTTP request to an HTTPS|port requires TLS", "the url must begin with https://"),
    ("No required SSL certificate|The SSL certificate error", "give cert_file and key_file"),
    ("Invalid (Hostname|Host header|HTTP_HOST)", "check url"),
    ("Request Header (Or Cookie|Fields) Too Large", "check headers"),
    ('"(Data channel is missing|Invalid data channel)"', "give X-Splunk-Request-Channel in headers"),
    (
        '"Incorrect index","code":7',
        "check which indexes the receiver's token may write",
    ),  # of Splunk, as what is before
    ("json encoding isn't supported", 'set encoding = "protobuf"'),  # of VictoriaLogs
    (_NO_GZIP, 'set compression = "none"'),
)
# A refusal of the empty array or request of a probe, because it is empty.
_EMPTINESS = (
    r"empty|at least one|\b(no|missing) ((log|resource|scope)[ _]?)*(events|actions|entries|records|data|items|logs)\b"
    r"|(logs|records|events) (is|are) (missing|required)"
)
_HAS_NO_BODY = ("GET", "HEAD")
_ENDED_EARLY = "the answer ended early, and may have named refused records"
_NO_TENANT = "no org id"


class Login(NamedTuple):
    """Our credentials: `header` holds the secret behind a `scheme`, or Basic with a `username`."""

    header: str
    source: SecretSource
    scheme: str = ""
    username: str | None = None


def login_of(settings: LokiSink | OtlpSink | OpenSearchSink | AnyHttpSink) -> Login | None:
    """The login of a table: a token, a key, or a user name with password; None for none."""
    if isinstance(settings, OpenSearchSink):
        if settings.api_key is not None:
            return Login("Authorization", settings.api_key, scheme="ApiKey")
    elif settings.bearer_token is not None:
        return Login("Authorization", settings.bearer_token, scheme="Bearer")
    if settings.username is not None and settings.password is not None:
        return Login("Authorization", settings.password, username=settings.username)
    return None


def outcome_of(
    status: int,
    successes: Collection[int],
    words: str,
    *,
    place: str,
    are_chosen: bool = False,
    wait_seconds: float | None = None,
) -> Outcome:
    """The outcome of an answer. `words` are those of the server; `place` names the keys of the address.

    `are_chosen`: the successes come from the key `successes`.
    """
    reason = f"HTTP {status}: {words}" if words else f"HTTP {status}"
    if status in successes:
        return Accepted(status=status)
    match status:
        case 401 | 402 | 403:
            return CredentialsRefused(f"{reason} (set tenant_id)" if _NO_TENANT in words.lower() else reason, status)
        case 413 if not wait_seconds:
            return TooLarge(reason, status)
        case 400 | 422:
            remedy = _remedy_of_refusal(words)
            return RetryAfter(f"{reason} ({remedy})") if remedy else Refused(reason, status)
        case _ if status in (408, 413, 429) or status >= 500:
            return RetryAfter(reason, wait_seconds, is_size_suspect=True)
        case _:
            return RetryAfter(f"{reason} ({_remedy(status, place, are_chosen=are_chosen)})", wait_seconds)


def _quotable(value: str) -> list[str]:
    """A header's value, and the parts that a receiver may quote alone: the text behind a scheme or behind a name."""
    words = re.split(r"""[\s;,"']+""", value)
    parts = [value, *words[1:], *(word.partition("=")[2] for word in words)]
    return [part for part in parts if len(part) >= _MIN_MASKED_CHARS]


def _remedy_of_refusal(words: str) -> str:
    """The remedy for a refusal of the connection or of the request as a whole; empty for any other refusal."""
    return next((remedy for told, remedy in _NOT_THE_EVENTS if re.search(told, words, re.IGNORECASE)), "")


def probed(outcome: Outcome) -> Outcome:
    """The outcome of an empty array or request: a refusal because it is empty counts as accepted."""
    is_yes = isinstance(outcome, Refused) and re.search(_EMPTINESS, outcome.reason, re.IGNORECASE)
    return Accepted(status=outcome.status) if isinstance(outcome, Refused) and is_yes else outcome


def is_page(answer: Response) -> bool:
    """Whether the answer is a web page, from a sign-on portal or a proxy instead of the receiver."""
    text = answer.body[:_PAGE_HEAD_BYTES].replace(b"\0", b"")  # of UTF-16, what is ASCII
    if _PAGE_BEGINS.match(text):
        return True
    is_html = "html" in answer.headers.get("Content-Type", "").lower()
    is_unreadable = unrequested_encoding(answer.headers) or not (text or answer.is_whole)
    return is_html and bool(is_unreadable or re.match(_MARKS + b"<", text))


def _remedy(status: int, place: str, *, are_chosen: bool) -> str:
    if are_chosen and 200 <= status < 300:
        return "if it means that all events were taken, add it to successes"
    if 300 <= status < 400:
        return "redirects are not followed: set url to where it leads"
    match status:
        case 404 | 405 | 410:
            return f"nothing takes events there: check {place}"
        case 407:
            return "the proxy wants credentials: check HTTPS_PROXY or HTTP_PROXY"
        case 415:
            return 'the receiver does not take this compression or type: set compression = "none"'
        case _:
            return f"not an answer that means success: check {place}"


class Endpoint:
    """One address that accepts bodies, mostly by POST. For as many threads at once as it has `connections`."""

    def __init__(
        self,
        settings: HttpSink,
        context: Context,
        *,
        path: str,
        successes: Collection[int],
        place: str,
        are_chosen: bool = False,
        login: Login | None,
        headers: Mapping[str, str] | None = None,
        connections: int = 1,
        content_type: str = "application/json",
        readable: Callable[[Response], Response] = lambda answer: answer,
        max_success_bytes: int | None = None,
        query: Mapping[str, str] | None = None,
    ) -> None:
        """`are_chosen`: the successes come from the key `successes`.

        `readable` turns an answer without text in its body into one with text.

        `max_success_bytes`: the whole body of a success counts, with this size at most; not its head alone.
        """
        self._url = settings.url + path
        self._query = f"?{urlencode(query)}" if query else ""
        self._stop = context.stop
        self._successes = successes
        self._judge = partial(outcome_of, successes=successes, place=place, are_chosen=are_chosen)
        self._place = place
        self._login = login
        given = {name.lower(): value for name, value in settings.headers.items()}
        self._content_type = given.pop("content-type", content_type)
        self._readable = readable
        self._reading: dict[str, Any] = (
            {"whole": successes, "max_bytes": max_success_bytes} if max_success_bytes else {}
        )
        self._secrets: list[str] = []
        self._is_gzip = settings.compression == "gzip"
        self._rate_limit = RateLimit(settings.requests_per_second)
        self._keepalive_seconds = settings.keepalive_seconds
        self._used_at = time.monotonic()
        self._lock = threading.Lock()  # of `_used_at`
        # Values of `headers` and `query` are masked like secrets, because a person may put a key there.
        parameters = [form for value in (query or {}).values() for form in (value, quote_plus(value))]
        self._masked = [
            *(part for value in given.values() for part in _quotable(value)),
            *(form for form in parameters if len(form) >= _MIN_MASKED_CHARS),
        ]
        cert_file, key_file = settings.cert_file, settings.key_file or settings.cert_file
        self._transport = Transport(
            timeout_seconds=(settings.connect_timeout_seconds, settings.read_timeout_seconds),
            send_timeout_seconds=settings.send_timeout_seconds,
            proxies=context.config.proxies_for(settings.url),
            ca_file=str(settings.ca_file) if settings.ca_file else context.config.ca_bundle,
            client_cert=(str(cert_file), str(key_file)) if cert_file else None,
            headers={**settings.headers, **(headers or {})},
            # With 0, each request has its own connection. Closing all connections would disturb parallel requests.
            max_age_seconds=MAX_AGE_SECONDS if settings.keepalive_seconds else 0.0,
            pool_size=connections,
        )

    def post(self, body: bytes, below: str = "") -> Outcome:
        """Send a body with the current secret; `below` is appended to the path.

        Raises: StoppedError while waiting for a turn.
        """
        return self.exchange(body, below)[0]

    def exchange(self, body: bytes, below: str = "", method: str = "POST") -> tuple[Outcome, Response | None]:
        """The same, also returning the answer for callers that read its body; None if there was no answer.

        Raises: StoppedError while waiting for a turn.
        """
        with self._rate_limit.wait(self._stop):
            return self._exchange(body, below, method)

    def words(self, answer: Response, sent: bytes) -> str:
        """The words of an answer as a line without secrets."""
        return words_of(self._readable(answer), [*self._secrets, *self._masked], sent)

    def _exchange(self, body: bytes, below: str, method: str) -> tuple[Outcome, Response | None]:
        headers = {"Content-Type": self._content_type}
        with self._lock:
            if 0 < self._keepalive_seconds <= time.monotonic() - self._used_at:
                # A device on the way may have dropped idle connections: a request on one would wait for its time-out.
                self._transport.close()
            self._used_at = time.monotonic()
        try:
            self._secrets = self._log_in(headers)
        except ConfigError as error:
            return CredentialsRefused(str(error)), None
        except TransientError as error:
            return RetryAfter(str(error)), None
        sent = body
        if self._is_gzip and method not in _HAS_NO_BODY:
            headers["Content-Encoding"] = "gzip"
            sent = isal_zlib.compress(body, _GZIP_LEVEL, _GZIP_FORMAT)
        try:
            url = self._url + below + self._query
            answer = self._transport.ask_status(method, url, headers=headers, body=sent, **self._reading)
        except TransientError as error:
            return RetryAfter(str(error), error.retry_after_seconds, error.is_size_suspect), None
        except BodyTooLargeError as error:
            return RetryAfter(f"{error} (check {self._place})", is_size_suspect=True), None
        self._used_at = time.monotonic()
        is_success = answer.status in self._successes
        if is_success and not is_page(answer):
            if self._reading and not answer.is_whole:
                return RetryAfter(_ENDED_EARLY, is_size_suspect=True), answer
            return Accepted(status=answer.status), answer
        words = self.words(answer, body)
        if is_success:
            remedy = (
                f"a page for people, not the receiver's answer: check {self._place} and any proxy or sign-on portal"
            )
            return RetryAfter(f"HTTP {answer.status}: {words} ({remedy})"), answer
        wait_seconds = retry_after_seconds(answer.headers, datetime.now(UTC))
        return self._judge(answer.status, words=words, wait_seconds=wait_seconds), answer

    def _log_in(self, headers: dict[str, str]) -> list[str]:
        """Add the login to the headers. Returns all forms of its secret, to mask them.  Raises: ConfigError, TransientError."""
        if self._login is None:
            return []
        header, source, scheme, username = self._login
        value = secret = source.read().reveal()
        if username is not None:
            scheme, value = "Basic", base64.b64encode(f"{username}:{secret}".encode()).decode()
        headers[header] = f"{scheme} {value}" if scheme else value
        return [value, secret]
