"""The Activity Log API: contracts, pages and totals, each call with its retries.

Owns authentication, retries, and the translation of every bad answer into one of our errors; `statuses` translates a status.
Decides nothing about windows. From each answer it learns the difference between the API's clock and ours. `asking` decides when
a request may be sent.

Source: docs/facts.md, "IONOS Activity Log API".
"""

from __future__ import annotations

import base64
import json
import logging
import math
import random
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from poller.core.answers import NOTHING, BadAnswerError, Page, PartialAnswerError, parse_page
from poller.core.clocks import measured_skew
from poller.core.delivery import RetryPolicy
from poller.core.errors import (
    AuthError,
    BodyTooLargeError,
    RejectedError,
    StoppedError,
    TransientError,
    UnusableAnswerError,
)
from poller.core.listing import MAX_CONTRACTS, ContractList, ContractPage, next_contracts, parse_contracts
from poller.core.page_size import accepted_limit
from poller.core.windows import Window, format_time
from poller.ionos.asking import LONG_PATIENCE_SECONDS, PATIENCE_SECONDS, Asking, PausedError, SharedTurns
from poller.ionos.statuses import WAY_HINT, failure_of, secrets_in
from poller.net.transport import (
    RateLimit,
    Response,
    Transport,
    parse_http_date,
    unrequested_encoding,
)
from poller.net.words import error_words_of

log = logging.getLogger(__name__)

T = TypeVar("T")

# The limits for a warning: of a wrong clock, and of a token that expires soon.
WARN_SKEW_SECONDS = 30.0
WARN_EXPIRY_SECONDS = 14 * 86_400

_BASE_PATH = "/activitylog/v1"
# A longer `Retry-After` is left to the next poll: a worker must not sleep for hours, or for 1e9 seconds.
_MAX_WAIT_SECONDS = 30.0
_ASK_AGAIN_SECONDS = 1.0  # after a 401
_TURNS = 64  # if no limit is given
_PRESENT_SECONDS = 60  # a time this long ago has passed by both clocks
SINGLE_FACTOR = 2
"""How many times larger than a page an answer with a single entry may be. All its copies must fit into memory."""
# One answer is parsed at a time. With the interpreter's lock this is not slower, and its copies exist only once.
_parsing = threading.Lock()
_MAX_LIST_PAGES = 1000
_BAD_ANSWER_HINT = f"it is asked again at the next poll; if that does not help, {WAY_HINT}"
_PARTIAL_HINT = "it is asked again at the next poll; if that does not help, report it to IONOS"
_ENCODING_HINT = "a proxy or gateway on the way to the API adds it: have it pass Accept-Encoding on unchanged"


class ActivityLog:
    """The API as one account sees it. Safe to use from several threads at once.

    `authorization` returns the value of the header. It is called again after a 401, so that a rotated token file is used.
    `key_remedy`: what a person must do with new credentials. `observe` is called with the status (or kind of error) and the
    seconds of each request. Setting `stop` ends every wait.
    """

    def __init__(
        self,
        url: str,
        authorization: Callable[[], str],
        transport: Transport,
        *,
        rate_limit: RateLimit,
        stop: threading.Event,
        turns: SharedTurns | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_retries: int = 4,
        retry: RetryPolicy = RetryPolicy(initial_seconds=0.5, max_seconds=10.0),
        max_page_bytes: int = 8 * 1024 * 1024,
        key_remedy: str = "give this account valid credentials",
        observe: Callable[[str, float], None] = lambda code, seconds: None,
    ) -> None:
        self._base = url.rstrip("/") + _BASE_PATH
        self._authorization = authorization
        self._authorization_value = ""
        self._transport = transport
        self._rate_limit = rate_limit
        self._asking = Asking(rate_limit, turns or SharedTurns(_TURNS), stop, clock)
        self._stop = stop
        self._max_retries = max_retries
        self._retry = retry
        self.max_page_bytes = max_page_bytes
        self._observe = observe
        self._key_remedy = key_remedy
        self.max_limit = sys.maxsize
        """Maximum entries per page that the API accepts, as far as known, and its words about it."""
        self.limit_words = ""
        self._api_clock: float | None = None  # the API's time at which the monotonic clock shows 0

    @property
    def clock_skew_seconds(self) -> float | None:
        """Our clock now minus the API's, by the last answer with a `Date`; None without one.

        If our clock is set, this shows at once, because the time since that answer is measured with another clock.
        """
        return None if self._api_clock is None else time.time() - (self._api_clock + _steady_seconds())

    def hanging_count(self) -> int:
        """How many requests, of all accounts, wait so long for an answer that others are sent beside them."""
        return self._asking.turns.hanging_count()

    def take_part(self, part: float) -> None:
        """Use only this part of `requests_per_second`, above 0 and at most 1: other replicas use the rest."""
        self._rate_limit.take_part(part)

    def admit(self, contract: str) -> bool:
        """Whether a poll of this contract may begin now. Only a few hanging or failing contracts may be polled at once."""
        return self._asking.turns.admit(contract)

    def dismiss(self, contract: str) -> None:
        """Its poll is over."""
        self._asking.turns.dismiss(contract)

    def contracts(self) -> ContractList:
        """The contract numbers that the account can see, from all pages of the list.  Raises: as `page`."""
        found: dict[str, None] = {}
        params: dict[str, str | int] = {}
        missing = ""
        unreadable_count = 0
        for _ in range(_MAX_LIST_PAGES):
            page = self._get("/contracts", params, "", self.max_page_bytes, _parse_contracts)
            unreadable_count += page.unreadable_count
            before = len(found)
            found.update(dict.fromkeys(page.numbers))
            if len(found) > MAX_CONTRACTS:
                missing = f"the list of contracts names more than {MAX_CONTRACTS:,}: the others are not polled"
                return ContractList(list(found)[:MAX_CONTRACTS], missing)
            follow = next_contracts(page, len(found), f"{self._base}/contracts")
            if follow is None:
                missing = f"{unreadable_count} in the list of contracts have no number: these are not polled"
                return ContractList(list(found), missing if unreadable_count else "")
            missing = page.missing(len(found))
            if len(found) == before or follow == params:
                break  # it gives the same page again
            params = follow
        return ContractList(list(found), missing)

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        """One page of a window, in the API's order. If the API refuses `limit` as too large, a smaller one is used.
        A failed request is retried, unless `is_retried` is false.

        Raises: BodyTooLargeError if it is too large (use a smaller `limit`), RejectedError if the API refuses this query,
        AuthError, TransientError after the last retry (UnusableAnswerError if an answer came), StoppedError.
        """
        page = self._page_within_limit(contract, window, offset, limit, is_retried=is_retried)
        if page.is_mended:
            log.warning(
                "page.mended",
                extra={"contract": contract, "window": str(window), "why": "bytes that are not UTF-8"},
            )
        return page

    def _page_within_limit(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool) -> Page:
        while True:
            asked = min(limit, self.max_limit)
            try:
                return self._page(contract, window, offset, asked, is_retried=is_retried)
            except RejectedError as error:
                accepted = accepted_limit(asked, error.status, error.message, partial(self._is_refused, contract))
                if not accepted:
                    raise
                self.max_limit, self.limit_words = accepted, error.message
                hint = f"set api.page_size to {accepted}, which is used meanwhile"
                log.warning("page_size.refused", extra={"limit": asked, "why": error.message, "hint": hint})

    def _is_refused(self, contract: str, limit: int) -> bool:
        """Whether the API refuses this `limit` for the present time.  Raises: as `page`, except for the refusal."""
        second = int(time.time() - (self.clock_skew_seconds or 0.0)) - _PRESENT_SECONDS
        try:
            self._page(contract, Window(second, second + 1), 0, limit, is_retried=True)
        except RejectedError:
            return True
        except BodyTooLargeError:
            pass
        return False

    def _page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool) -> Page:
        params: dict[str, str | int] = {
            "dateStart": format_time(window.start),
            "dateEnd": format_time(window.end),
            "offset": offset,
            "limit": limit,
        }
        # A single entry may be larger than a page should be, and must still be read.
        max_bytes = self.max_page_bytes if limit > 1 else self.max_page_bytes * SINGLE_FACTOR

        def parse(response: Response) -> Page:
            return NOTHING if response.status == 204 and not response.body else parse_page(response.body, max_bytes)

        max_retries = self._max_retries if is_retried else 0
        return self._get(f"/contracts/{contract}", params, contract, max_bytes, parse, max_retries)

    def _get(
        self,
        path: str,
        params: dict[str, str | int],
        contract: str,
        max_bytes: int,
        parse: Callable[[Response], T],
        max_retries: int | None = None,
    ) -> T:
        max_retries = self._max_retries if max_retries is None else max_retries
        attempt, was_refused = 0, False
        failure: TransientError | None = None
        while True:
            authorization = self._current_authorization()
            was_slow = self._asking.turns.is_slow(contract)
            try:
                found = self._attempt(path, params, contract, max_bytes, authorization, parse)
                self._asking.turns.ended_after(contract, 0)
                return found
            except AuthError as error:
                # The token file may have been replaced since we read it, or the API made a short mistake: try once more.
                if error.is_denied or was_refused:
                    raise
                was_refused = True
                if not self._is_authorization_renewed(authorization):
                    self._pause(_ASK_AGAIN_SECONDS)
                continue
            except PausedError as error:
                if failure is None:
                    raise
                failure.retry_after_seconds = error.retry_after_seconds
                raise failure from error
            except TransientError as error:
                failure = error
            if failure.status == 429:
                continue  # the account waits before its next request, and this one with it
            attempt += 1
            wait = self._retry.wait_seconds(attempt, random.random, failure.retry_after_seconds)
            is_hopeless = was_slow and self._asking.turns.is_slow(contract)
            if attempt > max_retries or wait > _MAX_WAIT_SECONDS or is_hopeless:
                self._asking.turns.ended_after(contract, attempt)
                raise failure
            log.debug(
                "request.retry_scheduled",
                extra={
                    "contract": contract,
                    "attempt": attempt,
                    "wait_seconds": round(wait, 3),
                    "why": failure.message,
                },
            )
            self._pause(wait)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise StoppedError("asked to stop")

    def _attempt(
        self,
        path: str,
        params: dict[str, str | int],
        contract: str,
        max_bytes: int,
        authorization: str,
        parse: Callable[[Response], T],
    ) -> T:
        # Its documentation calls the content type mandatory, though a GET has no content.
        headers = {
            "Authorization": authorization,
            "Accept": "application/json",
            "Content-Type": "application/json",
        }
        if contract:
            headers["X-Contract-Number"] = contract

        def send() -> Response:
            started = time.monotonic()
            code = "error"
            try:
                response = self._transport.request(
                    "GET", self._base + path, headers=headers, params=params, max_bytes=max_bytes
                )
                code = str(response.status)
            finally:
                seconds = time.monotonic() - started
                self._observe(code, seconds)
                log.debug("request.ended", extra={"path": path, **params, "code": code, "seconds": round(seconds, 3)})
            return response

        try:
            patience = LONG_PATIENCE_SECONDS if params.get("offset") else PATIENCE_SECONDS
            response = self._asking.ask(contract, send, patience)
        except TransientError as error:
            error.contract = contract
            raise
        self._compare_clocks(response)
        failure = failure_of(response, contract, secrets_in(authorization), self._key_remedy)
        if failure is not None:
            raise failure
        try:
            with _parsing:
                return parse(response)
        except PartialAnswerError as error:
            message = f"the API searched only a part of its log: {error}"
            raise TransientError(message, hint=_PARTIAL_HINT, contract=contract) from error
        except BadAnswerError as error:
            if encoding := unrequested_encoding(response.headers):
                message = f"the API's answer came in the encoding {encoding}, which was not asked for"
                raise TransientError(message, hint=_ENCODING_HINT, contract=contract) from error
            said = error_words_of(response, secrets_in(authorization))
            message = f"the API's answer cannot be used: {said or error}"
            raise UnusableAnswerError(message, response.body, hint=_BAD_ANSWER_HINT, contract=contract) from error

    def _current_authorization(self) -> str:
        if not self._authorization_value:
            self._authorization_value = self._authorization()
        return self._authorization_value

    def _is_authorization_renewed(self, refused: str) -> bool:
        # Another thread may have read it again since our request was sent. Then it is only compared.
        if self._authorization_value == refused:
            self._authorization_value = self._authorization()
        return self._authorization_value != refused

    def _compare_clocks(self, response: Response) -> None:
        at = parse_http_date(response.headers.get("Date", ""))
        if at is not None:
            skew = measured_skew(at.timestamp(), response.head_at, response.head_seconds)
            self._api_clock = response.head_at - skew - (_steady_seconds() - response.body_seconds)


def _steady_seconds() -> float:
    """A clock that nobody sets. If possible, it also runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _parse_contracts(response: Response) -> ContractPage:
    if response.status == 204 and not response.body:
        return ContractPage([])
    return parse_contracts(response.body, response.headers.get("Link", ""))


def token_expiry(token: str) -> float | None:
    """The `exp` of a JWT in unix seconds, not verified; None if it is no JWT or has no `exp`."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        seconds = float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    return seconds if math.isfinite(seconds) else None
