"""The Activity Log API: contracts, pages and totals, each call with its retries.

Owns authentication, the shared rate limit, retries, and the translation of every status and every bad answer into one of
our errors. Decides nothing about windows. Keeps, as a by-product of each answer, how far the API's clock is from ours.

Source: docs/facts.md, "IONOS Activity Log API".
"""

from __future__ import annotations

import base64
import json
import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from poller.delivery import RetryPolicy
from poller.errors import AuthError, PollerError, RejectedError, StoppedError, TransientError
from poller.events import BadAnswerError, Page, parse_contracts, parse_page
from poller.transport import RateLimit, Response, Transport, parse_http_date, retry_after_seconds
from poller.windows import Window, format_time

log = logging.getLogger(__name__)

T = TypeVar("T")

# From when on a person is told: of a clock that is off, and of a token that expires.
WARN_SKEW_SECONDS = 30.0
WARN_EXPIRY_SECONDS = 14 * 86_400

_BASE_PATH = "/activitylog/v1"
# Longer wishes are left to the next poll: a worker must not sleep for hours, nor for 1e9 seconds.
_MAX_WAIT_SECONDS = 30.0
# An API that is further ahead of us has no clock: believing it would have us read all the years until then.
_MAX_AHEAD_SECONDS = 30 * 86_400.0
_CREDENTIALS_HINT = (
    "set IONOS_API_TOKEN or api.token_file to a valid token of this account; `ionos-poller check` says more"
)
_BAD_ANSWER_HINT = "it is asked again at the next poll; if it stays, check api.url, and what lies in between"
_PRIVILEGE_HINT = "the user needs the privilege ACCESS_ACTIVITY_LOG: grant it in the DCD under User Manager"


class ActivityLog:
    """The API as one account sees it. Safe to use from several threads at once.

    `authorization` gives the value of the header and is asked anew after a 401, so that a rotated token file is picked up.
    `observe` is told the status (or error kind) and the seconds of every request. A set `stop` ends every wait.
    """

    def __init__(
        self,
        url: str,
        authorization: Callable[[], str],
        transport: Transport,
        *,
        rate_limit: RateLimit,
        stop: threading.Event,
        max_retries: int = 4,
        retry: RetryPolicy = RetryPolicy(initial_seconds=0.5, max_seconds=10.0),
        max_page_bytes: int = 8 * 1024 * 1024,
        observe: Callable[[str, float], None] = lambda code, seconds: None,
    ) -> None:
        self._base = url.rstrip("/") + _BASE_PATH
        self._authorization = authorization
        self._authorization_value = ""
        self._transport = transport
        self._rate_limit = rate_limit
        self._stop = stop
        self._max_retries = max_retries
        self._retry = retry
        self.max_page_bytes = max_page_bytes
        self._observe = observe
        self.clock_skew_seconds = 0.0
        """Our clock minus the API's, as of the last answer with a `Date`."""

    def contracts(self) -> list[str]:
        """The contract numbers that the account may see.  Raises: as `page`."""
        return self._get("/contracts", {}, "", self.max_page_bytes, lambda response: parse_contracts(response.body))

    def page(self, contract: str, window: Window, offset: int, limit: int) -> Page:
        """One page of a window, in the API's order.

        Raises: BodyTooLargeError when it is too heavy (ask for a smaller `limit`), RejectedError when the API refuses this
        very query, AuthError, TransientError after the last retry, StoppedError.
        """
        params: dict[str, str | int] = {
            "dateStart": format_time(window.start),
            "dateEnd": format_time(window.end),
            "offset": offset,
            "limit": limit,
        }
        # A single entry may be larger than a page should be: it has to come through all the same.
        max_bytes = self.max_page_bytes if limit > 1 else self.max_page_bytes * 16
        page = self._get(
            f"/contracts/{contract}", params, contract, max_bytes, lambda response: parse_page(response.body)
        )
        if page.is_mended:
            log.warning(
                "page.mended",
                extra={"contract": contract, "window": str(window), "why": "bytes that are not UTF-8"},
            )
        return page

    def _get(
        self,
        path: str,
        params: dict[str, str | int],
        contract: str,
        max_bytes: int,
        parse: Callable[[Response], T],
    ) -> T:
        attempt = 0
        was_refused = False
        while True:
            attempt += 1
            authorization = self._current_authorization()
            try:
                return parse(self._attempt(path, params, contract, max_bytes, authorization))
            except BadAnswerError as error:
                failure = TransientError(
                    f"the API's answer cannot be used: {error}", hint=_BAD_ANSWER_HINT, contract=contract
                )
                failure.__cause__ = error
            except AuthError:
                # The token file may have been replaced since we read it: once more, with what it holds now.
                if was_refused or not self._is_authorization_renewed(authorization):
                    raise
                was_refused = True
                continue
            except TransientError as error:
                failure = error
            wait = self._retry.wait_seconds(attempt, random.random, failure.retry_after_seconds)
            if attempt > self._max_retries or wait > _MAX_WAIT_SECONDS:
                failure.contract = contract
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
            if self._stop.wait(wait):
                raise StoppedError("asked to stop")

    def _attempt(
        self, path: str, params: dict[str, str | int], contract: str, max_bytes: int, authorization: str
    ) -> Response:
        headers = {"Authorization": authorization, "Accept": "application/json"}
        if contract:
            headers["X-Contract-Number"] = contract
        with self._rate_limit.wait(self._stop):
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
        self._compare_clocks(response)
        failure = _failure(response, contract)
        if failure is not None:
            raise failure
        return response

    def _current_authorization(self) -> str:
        if not self._authorization_value:
            self._authorization_value = self._authorization()
        return self._authorization_value

    def _is_authorization_renewed(self, refused: str) -> bool:
        # Another thread may have read it anew since our request went out: then only compare.
        if self._authorization_value == refused:
            self._authorization_value = self._authorization()
        return self._authorization_value != refused

    def _compare_clocks(self, response: Response) -> None:
        at = parse_http_date(response.headers.get("Date", ""))
        if at is not None:
            # Either end of the calendar is no time for a window to begin or end at.
            self.clock_skew_seconds = max(time.time() - max(0.0, at.timestamp()), -_MAX_AHEAD_SECONDS)


def token_expiry(token: str) -> float | None:
    """The `exp` of a JWT in unix seconds, read but not verified; None where it is no JWT or has none."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _failure(response: Response, contract: str) -> PollerError | None:
    """What a status other than 200 means to us; None for 200."""
    status = response.status
    if status == 200:
        return None
    if status == 401:
        return AuthError("the API refused the credentials (401)", hint=_CREDENTIALS_HINT, contract=contract)
    if status == 403:
        message = "the API denied access to the activity log (403)"
        return AuthError(message, is_denied=True, hint=_PRIVILEGE_HINT, contract=contract)
    if status in (429, 408) or status >= 500:
        return TransientError(
            f"the API answered {status}",
            status=status,
            retry_after_seconds=retry_after_seconds(response.headers, datetime.now(UTC)),
            hint="it is asked again at the next poll",
            contract=contract,
        )
    if 300 <= status < 400:
        return RejectedError(
            f"the API answered with a redirect ({status}), which is not followed",
            status=status,
            hint="check api.url",
            contract=contract,
        )
    hint = "check api.url, and that the contract exists" if status == 404 else "check api.url, and what lies in between"
    return RejectedError(f"the API refused the request ({status})", status=status, hint=hint, contract=contract)
