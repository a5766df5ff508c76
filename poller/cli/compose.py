"""Builds from the configuration what several commands need: API clients, filter and redaction, credentials."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from poller.config import Account, Config
from poller.core.clocks import MAX_SKEW_SECONDS, trusted_now
from poller.core.errors import ConfigError
from poller.core.events import Event
from poller.core.turns import MOST_OPEN
from poller.ionos.api import ActivityLog, token_expiry
from poller.ionos.asking import SharedTurns
from poller.net.transport import RateLimit, Transport
from poller.sinks.redaction import build_redact
from poller.store.rows import Prepared

if TYPE_CHECKING:
    from poller.core.mapping.filter import Filter

_COMPARING_SECONDS = 60.0  # how long to wait for the API's time before using our clock alone


def transport_to(url: str, config: Config, *, pool_size: int = 1) -> Transport:
    """A transport to an API of IONOS at this URL, with the settings of `[api]`."""
    return Transport(
        timeout_seconds=(config.api.connect_timeout_seconds, config.api.read_timeout_seconds),
        proxies=config.proxies_for(url),
        ca_file=str(config.api.ca_file) if config.api.ca_file else config.ca_bundle,
        pool_size=pool_size,
    )


def activity_logs(
    config: Config,
    stop: threading.Event,
    observe: Callable[[str, float], None] = lambda code, seconds: None,
    *,
    concurrency: int | None = None,
) -> dict[str, ActivityLog]:
    """One client per account. All share one rate limit, and one limit of requests at once: `concurrency`, or `api.concurrency`.

    Raises: ConfigError if an account has no credentials.
    """
    at_once = concurrency or config.api.concurrency
    rate_limit, turns = RateLimit(config.api.requests_per_second), SharedTurns(at_once)
    clients = {}
    for account in config.accounts:
        credentials = account.credentials()  # raises now if something is missing
        url = account.url or config.api.url
        clients[account.name] = ActivityLog(
            url,
            lambda account=account: authorization(account),  # type: ignore[misc]
            transport_to(url, config, pool_size=at_once * MOST_OPEN),
            rate_limit=rate_limit,
            turns=turns,
            stop=stop,
            max_retries=config.api.max_retries,
            max_page_bytes=config.api.max_page_bytes,
            key_remedy=credentials.remedy,
            observe=observe,
        )
    return clients


def trusted_clock(
    accounts: Mapping[str, ActivityLog],
    clock: Callable[[], float] = time.time,
    steady: Callable[[], float] = time.monotonic,
) -> Callable[[], float | None]:
    """The earliest time that our clock and the clocks of the accounts' APIs show.

    None while a clock is so far off that it is unclear which one is right, and at first, until an answer gives the API's time.
    If no answer gives it within 60 seconds (a proxy may remove `Date`), our clock is used alone.
    """
    began = steady()

    def now() -> float | None:
        ours = clock()
        skews = [api.clock_skew_seconds for api in accounts.values()]
        known = [skew for skew in skews if skew is not None]
        if any(abs(skew) > MAX_SKEW_SECONDS for skew in known):
            return None
        if not known:
            return ours if steady() - began >= _COMPARING_SECONDS else None
        return min(trusted_now(skew, ours) for skew in known)

    return now


def entry_filter(config: Config) -> Filter | None:
    """The filter that decides which entries are kept; None if all are."""
    if not (config.filter.exclude or config.filter.include):
        return None
    from poller.core.mapping.filter import Filter

    exclude, include = (
        [
            {key: pattern for key, pattern in msgspec.structs.asdict(rule).items() if pattern is not None}
            for rule in rules
        ]
        for rules in (config.filter.exclude, config.filter.include)
    )
    return Filter(exclude, include)


def preparation(config: Config) -> Callable[[str, Sequence[Event]], Prepared]:
    """The function that a `Collector` applies to new events before it stores them: first `[filter]`, then `[redact]`.

    Raises: ConfigError if the key of the hashes cannot be read.
    """
    rules, redact = entry_filter(config), build_redact(config.redact, None)

    def prepare(contract: str, events: Sequence[Event]) -> Prepared:
        # A rule that removes nothing is counted as 0.
        filtered = dict.fromkeys(rules.reasons if rules else (), 0)
        kept = []
        for event in events:
            reason = rules.reason(contract, event.line) if rules else None
            if reason is not None:
                filtered[reason] += 1
            else:
                kept.append(event if redact is None else msgspec.structs.replace(event, line=redact(event.line)))
        return Prepared(kept, filtered)

    return prepare if rules or redact else lambda contract, events: Prepared(events)


def authorization(account: Account) -> str:
    """The value of the `Authorization` header. Reads the credentials from their source each time.  Raises: ConfigError."""
    credentials = account.credentials()
    if credentials.token is not None:
        return f"Bearer {credentials.token.reveal()}"
    password = credentials.password.reveal() if credentials.password else ""
    pair = f"{credentials.username}:{password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def token_expiries(config: Config) -> dict[str, float | None]:
    """When each account's token expires, in unix seconds; None if the token does not say. Accounts whose token cannot be read are
    left out.
    """
    expiries: dict[str, float | None] = {}
    for account in config.accounts:
        with suppress(ConfigError):  # a missing token is reported when it is used
            token = account.credentials().token
            expiries[account.name] = token_expiry(token.reveal()) if token is not None else None
    return expiries
