"""What the sinks over HTTP share: one POST, and what its answer means.

Owns the request (compression, pace, login, extra headers) and the one table from statuses to outcomes. What a sink does not
list as a success is none; what is no known refusal either holds the data, with a reason that names the remedy: a wrong path
must not cost an event, nor a 413 that says when to try again. An answer counts once its head is there: the body is read for its
words only, or to recognise a page that somebody else answered with. Where a success says more in its body, all of that success
counts.
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
# It names gzip, the header or compression: a refusal of the encoding of a text does not.
_NO_GZIP = (
    rf"{_NOT_TAKEN}\W+(\w+\W+){{0,3}}(gzip|content-encoding)|(content-encoding|gzip)\W+(\w+\W+){{0,3}}{_NOT_TAKEN}"
    r"|unsupported compression|compression( \w+){0,3} not (supported|allowed|enabled)"
)
# Refusals that have nothing to do with what was sent, by the words of well-known servers, and the remedy.
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
# A refusal of the empty array or request that a probe sends, and of nothing else.
_EMPTINESS = (
    r"empty|at least one|\b(no|missing) ((log|resource|scope)[ _]?)*(events|actions|entries|records|data|items|logs)\b"
    r"|(logs|records|events) (is|are) (missing|required)"
)
_HAS_NO_BODY = ("GET", "HEAD")
_ENDED_EARLY = "the answer ended early, and may have named refused records"
_NO_TENANT = "no org id"


class Login(NamedTuple):
    """What proves who we are: `header` holds the secret, behind a `scheme`, or Basic with a `username`."""

    header: str
    source: SecretSource
    scheme: str = ""
    username: str | None = None


def login_of(settings: LokiSink | OtlpSink | OpenSearchSink | AnyHttpSink) -> Login | None:
    """The login of a table that takes a token or a key, or a user name and a password; None for none."""
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
    """What an answer means. `words` are the server's; `place` names the keys that say where to.

    `are_chosen`: the successes are those of the key of that name.
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
    """A header's value, and what a receiver may quote of it alone: what stands behind a scheme, or behind a name."""
    words = re.split(r"""[\s;,"']+""", value)
    parts = [value, *words[1:], *(word.partition("=")[2] for word in words)]
    return [part for part in parts if len(part) >= _MIN_MASKED_CHARS]


def _remedy_of_refusal(words: str) -> str:
    """What to do about a refusal that concerns the connection or the request, whatever is in it; empty for any other."""
    return next((remedy for told, remedy in _NOT_THE_EVENTS if re.search(told, words, re.IGNORECASE)), "")


def probed(outcome: Outcome) -> Outcome:
    """What the answer to an empty array or request means: a refusal of its emptiness is a yes."""
    is_yes = isinstance(outcome, Refused) and re.search(_EMPTINESS, outcome.reason, re.IGNORECASE)
    return Accepted(status=outcome.status) if isinstance(outcome, Refused) and is_yes else outcome


def is_page(answer: Response) -> bool:
    """Whether a page for people was answered, as a sign-on portal or a proxy does in place of the receiver."""
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
    """One address that takes bodies, mostly by POST. For as many threads at once as it has `connections`."""

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
        """`are_chosen`: the successes are those of the key of that name.

        `readable` makes of an answer one whose body is text, where it is none.

        `max_success_bytes`: the whole of a success counts, not its head alone, and none is larger.
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
        # A key that a person puts into `headers` or `query` must not appear in a log: their values are masked like secrets.
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
            # 0: each request has a connection of its own. Closing all of them would disturb requests side by side.
            max_age_seconds=MAX_AGE_SECONDS if settings.keepalive_seconds else 0.0,
            pool_size=connections,
        )

    def post(self, body: bytes, below: str = "") -> Outcome:
        """Send a body, with the secret as it is now; `below` goes behind the path.

        Raises: StoppedError while waiting for a turn.
        """
        return self.exchange(body, below)[0]

    def exchange(self, body: bytes, below: str = "", method: str = "POST") -> tuple[Outcome, Response | None]:
        """The same, with the answer for who reads more of it than its status; None where there was none.

        Raises: StoppedError while waiting for a turn.
        """
        with self._rate_limit.wait(self._stop):
            return self._exchange(body, below, method)

    def words(self, answer: Response, sent: bytes) -> str:
        """The words of an answer as a line that may be shown."""
        return words_of(self._readable(answer), [*self._secrets, *self._masked], sent)

    def _exchange(self, body: bytes, below: str, method: str) -> tuple[Outcome, Response | None]:
        headers = {"Content-Type": self._content_type}
        with self._lock:
            if 0 < self._keepalive_seconds <= time.monotonic() - self._used_at:
                # Something in between may have forgotten the connections: a request on one would wait for its time-out.
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
        """Add the login to the headers; all forms in which its secret is now about.  Raises: ConfigError, TransientError."""
        if self._login is None:
            return []
        header, source, scheme, username = self._login
        value = secret = source.read().reveal()
        if username is not None:
            scheme, value = "Basic", base64.b64encode(f"{username}:{secret}".encode()).decode()
        headers[header] = f"{scheme} {value}" if scheme else value
        return [value, secret]
