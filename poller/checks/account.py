"""Checks of an IONOS account: whether the API answers, the token and its expiry, the clocks, the contracts that it may read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice

from poller.checks import Finding, fail, from_error, ok, warn
from poller.config import Account, Credentials, Poll
from poller.core.amounts import duration, plural
from poller.core.clocks import believed_skew
from poller.core.errors import (
    EXIT_AUTH,
    EXIT_CONFIG,
    AuthError,
    BodyTooLargeError,
    ConfigError,
    PollerError,
    RejectedError,
    is_access_refused,
)
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.ionos.api import WARN_EXPIRY_SECONDS, WARN_SKEW_SECONDS, ActivityLog, token_expiry

FAIL_SKEW_SECONDS = 3600
_MAX_ASKED = 25
_DAY_SECONDS = 86_400


class AccountCheck:
    """The checks of one account. After `run`, `contracts` are the contracts that it lists; None if there is no list.

    `may_read`: its credentials were not refused. `read` are the findings of contracts that it may read. `denied` are those of
    contracts that it lists but may not read; `run` does not yield them if there are other accounts.
    """

    def __init__(self, account: Account, client: ActivityLog, poll: Poll, page_size: int, *, is_only: bool) -> None:
        self.contracts: ContractList | None = None
        self.may_read = False
        self.read: list[Finding] = []
        self.denied: list[Finding] = []
        self._page_size = page_size
        self._account = account
        self._client = client
        self._poll = poll
        self._suffix = "" if is_only else f" {account.name}"

    def run(self) -> Iterator[Finding]:
        """Ask the API, and yield the findings. Needs the network."""
        name = f"api{self._suffix}"
        started = time.monotonic()
        failure: AuthError | None = None
        try:
            self.contracts = self._client.contracts()
        except AuthError as error:
            failure = error
            if error.is_denied and self._poll.contracts:
                failure = None
                yield self._list_refused(error)
        except RejectedError as error:
            yield self._list_refused(error)
            if not self._poll.contracts:
                yield from self._unasked_token()
                return
        except ConfigError as error:
            yield from from_error(name, error)
            return
        except PollerError as error:
            hint = error.hint or "check api.url; if it is right, the API has trouble, and is asked again at each poll"
            yield fail(name, f"{self._account.url}: {error.message}", hint)
            yield from self._unasked_token()
            return
        self.may_read = failure is None
        # A refused token is tried twice, with a wait between.
        within = "" if failure else f" within {round((time.monotonic() - started) * 1000)} ms"
        yield ok(name, f"{self._account.url} answers{within}")
        yield check_clock(self._client.clock_skew_seconds, f"clock{self._suffix}")
        yield check_token(self._account.credentials(), time.time(), f"token{self._suffix}", refusal=failure)
        if self.contracts is not None:
            yield from self._check_contracts(self.contracts)

    def _list_refused(self, error: PollerError) -> Finding:
        """The finding for a refused list of contracts. Contracts that the configuration names are still polled."""
        if not self._poll.contracts:
            return fail(f"api{self._suffix}", f"{self._account.url}: {error.message}", error.hint)
        hint = "the contracts of poll.contracts are still polled"
        return warn(f"contracts{self._suffix}", f"the list of contracts cannot be read: {error.message}", hint)

    def _unasked_token(self) -> Iterator[Finding]:
        """A problem that the token itself shows, such as its expiry, if the API cannot be asked."""
        finding = check_token(self._account.credentials(), time.time(), f"token{self._suffix}", is_asked=False)
        if finding.level != "ok":
            yield finding

    def _check_contracts(self, numbers: ContractList) -> Iterator[Finding]:
        wanted = [number for number in numbers if self._poll.wants(number)]
        if numbers.missing:
            hint = "name the others in poll.contracts, and report it to IONOS"
            yield warn(f"contracts{self._suffix}", numbers.missing, hint)
        if not numbers and not self._poll.contracts:
            hint = "use the token of a user of this contract: the DCD shows users and groups in the User Manager"
            yield fail(f"contracts{self._suffix}", "the token sees no contract", hint)
        elif not wanted and not self._poll.contracts:
            hint = "remove from it what you want to collect"
            yield warn(f"contracts{self._suffix}", "poll.exclude_contracts leaves out all that the token sees", hint)
        for number in islice(wanted, _MAX_ASKED):
            finding, is_denied = asked_contract(self._client, number, time.time(), self._page_size)
            if is_denied and self._suffix:  # another account may read it
                self.denied.append(finding)
                continue
            self.read += [finding] if finding.level == "ok" else []
            yield finding
        if self._client.limit_words:
            hint = f"set api.page_size to {self._client.max_limit}, which is used meanwhile"
            yield warn(f"page_size{self._suffix}", self._client.limit_words, hint)
        if len(wanted) > _MAX_ASKED:
            yield ok(f"contracts{self._suffix}", f"and {len(wanted) - _MAX_ASKED:,} more, which were not asked for")


def check_local_token(account: Account, name: str, now: float) -> Finding:
    """Whether there is a token, and when it expires by its own date. Sends no request."""
    try:
        return check_token(account.credentials(), now, name, is_asked=False)
    except ConfigError as error:
        return from_error(name, error)[0]


def check_token(
    credentials: Credentials, now: float, name: str, *, refusal: AuthError | None = None, is_asked: bool = True
) -> Finding:
    """Whether the API accepted the token, and how long it is valid. `now` in unix seconds."""
    expires_at = token_expiry(credentials.token.reveal()) if credentials.token is not None else None
    what = "token" if credentials.token is not None else "user name and password"
    renew = f"make a new one in the DCD (Token Manager) and put it where it comes from: {credentials.origin}"
    days = None if expires_at is None else (expires_at - now) / _DAY_SECONDS
    if refusal is not None and refusal.is_denied:
        return fail(name, refusal.message, refusal.hint, EXIT_AUTH)
    if days is not None and days <= 0 and (refusal is not None or not is_asked):
        return fail(name, f"the token expired {_date(expires_at)}", renew, EXIT_AUTH)
    if refusal is not None:
        hint = renew if credentials.token is not None else "check both; with 2FA they do not work: use a token"
        return fail(name, f"the API refused the {what} (401)", hint, EXIT_AUTH)
    if days is not None and days <= 0:
        return warn(name, f"accepted, though it expired {_date(expires_at)}", "check the clock of this machine")
    state = "accepted" if is_asked else f"{what} found, not tried"
    if days is None:
        return ok(name, f"{state}; it does not say when it expires" if credentials.token is not None else state)
    left = f"{days:.0f} days" if days >= 2 else duration(days * _DAY_SECONDS)
    if days * _DAY_SECONDS < WARN_EXPIRY_SECONDS:
        return warn(name, f"{state}, but it expires {_date(expires_at)}, in {left}", renew)
    return ok(name, f"{state}, expires {_date(expires_at)}, in {left}")


def _date(at: float | None) -> str:
    try:
        return f"on {datetime.fromtimestamp(at or 0, UTC):%Y-%m-%d at %H:%M UTC}"
    except (OverflowError, ValueError, OSError):  # `exp` may be any number
        return "at a time beyond the calendar"


def check_clock(skew_seconds: float | None, name: str = "clock") -> Finding:
    """`skew_seconds`: our clock minus the API's; None if the API's answers have no `Date`."""
    if skew_seconds is None:
        hint = "a proxy on the way may take `Date` out of them; keep this machine's clock right (`timedatectl set-ntp true`)"
        return warn(name, "the API's answers do not say what time it is", hint)
    skew = abs(skew_seconds)
    if skew <= WARN_SKEW_SECONDS:
        return ok(name, "agrees with the API's")
    direction = "ahead of" if skew_seconds > 0 else "behind"
    message = f"this machine's clock is {_span(skew)} {direction} the API's"
    hint = "turn on time synchronisation: `timedatectl set-ntp true`"
    return fail(name, message, hint) if skew >= FAIL_SKEW_SECONDS else warn(name, message, hint)


def _span(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def check_denied(checks: Sequence[AccountCheck]) -> Iterator[Finding]:
    """Contracts that an account lists but may not read: a warning if another account may read them, otherwise a failure."""
    read = {finding.name for check in checks for finding in check.read}
    told: set[str] = set()
    for finding in (finding for check in checks for finding in check.denied):
        if finding.name in read:
            hint = "it is collected through another account, which may read it"
            yield warn(finding.name, f"not every account that lists it may read it: {finding.message}", hint)
        elif finding.name not in told:
            yield finding
        told.add(finding.name)


def check_contract(client: ActivityLog, number: str, now: float, page_size: int = 1) -> Finding:
    """Whether its log can be read, and how many entries it has today (UTC, by the API's clock)."""
    return asked_contract(client, number, now, page_size)[0]


def asked_contract(client: ActivityLog, number: str, now: float, page_size: int) -> tuple[Finding, bool]:
    """As `check_contract`, and whether it failed because this account is refused: another account may not be."""
    name = f"contract {number}"
    end = int(now - believed_skew(client.clock_skew_seconds, now)) + 1
    today = Window(end - 1 - (end - 1) % _DAY_SECONDS, end)
    try:
        page = client.page(number, today, 0, page_size)
    except BodyTooLargeError as error:
        if page_size > 1:  # as in collecting
            return asked_contract(client, number, now, max(1, page_size // 8))
        return fail(name, error.message, "raise api.max_page_bytes"), False
    except PollerError as error:
        hint = error.hint or "it is asked again at each poll"
        return fail(name, error.message, hint, error.exit_code), is_access_refused(error)
    if page.total is None:
        return ok(name, f"{'has' if page.events else 'has no'} entries today"), False
    more = " or more" if page.is_capped else ""
    return ok(name, f"{plural(page.total, 'entry')}{more} today (UTC)"), False


def check_unlisted_contracts(
    wanted: Sequence[str], seen: Sequence[str], clients: Sequence[ActivityLog], page_size: int
) -> Iterator[Finding]:
    """Check whether an account may read the contracts of `poll.contracts` that no account lists. They are still polled."""
    for number in wanted:
        if number in seen:
            continue
        findings = [check_contract(client, number, time.time(), page_size) for client in clients]
        readable = next((finding for finding in findings if finding.level == "ok"), None)
        if readable is not None:
            yield readable._replace(message=f"{readable.message}; no account lists it")
        elif findings:
            hint = "correct poll.contracts, or use a token of a user of that contract"
            message = f"is in poll.contracts, but no token sees it: {findings[0].message}"
            yield fail(f"contract {number}", message, hint, EXIT_CONFIG)
