"""Puts the parts together: API clients from the configuration, sinks, the collector."""

from __future__ import annotations

import base64
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

import msgspec

from poller.api import ActivityLog, token_expiry
from poller.config import Account, Config
from poller.errors import ConfigError, StoppedError
from poller.events import Event
from poller.pipeline.collect import Prepared
from poller.sinks import build_redact
from poller.transport import RateLimit, Transport

if TYPE_CHECKING:
    from poller.mapping.filter import Filter

_M_MMAP_THRESHOLD = -3  # malloc.h
_M_TRIM_THRESHOLD = -1
_M_ARENA_MAX = -8


def activity_logs(
    config: Config,
    stop: threading.Event,
    observe: Callable[[str, float], None] = lambda code, seconds: None,
) -> dict[str, ActivityLog]:
    """A client per account, all under one rate limit.  Raises: ConfigError when one has no credentials."""
    _return_memory_promptly()
    rate_limit = RateLimit(config.api.requests_per_second)
    clients = {}
    for account in config.accounts:
        authorization(account)  # tell at once what is missing
        url = account.url or config.api.url
        ca_file = str(config.api.ca_file) if config.api.ca_file else config.ca_bundle
        transport = Transport(
            timeout_seconds=(config.api.connect_timeout_seconds, config.api.read_timeout_seconds),
            proxies=config.proxies_for(url),
            ca_file=ca_file,
            pool_size=config.api.concurrency * 2,
        )
        clients[account.name] = ActivityLog(
            url,
            lambda account=account: authorization(account),  # type: ignore[misc]
            transport,
            rate_limit=rate_limit,
            stop=stop,
            max_retries=config.api.max_retries,
            max_page_bytes=config.api.max_page_bytes,
            observe=observe,
        )
    return clients


def entry_filter(config: Config) -> Filter | None:
    """What says which entries go on; None where all do."""
    if not (config.filter.exclude or config.filter.include):
        return None
    from poller.mapping.filter import Filter

    exclude, include = (
        [
            {key: pattern for key, pattern in msgspec.structs.asdict(rule).items() if pattern is not None}
            for rule in rules
        ]
        for rules in (config.filter.exclude, config.filter.include)
    )
    return Filter(exclude, include)


def preparation(config: Config) -> Callable[[str, Sequence[Event]], Prepared]:
    """What is done to new events before anything of them is stored: `[filter]`, then `[redact]`. For a `Collector`.

    Raises: ConfigError when the key of the hashes cannot be read.
    """
    rules, redact = entry_filter(config), build_redact(config.redact, None)

    def prepare(contract: str, events: Sequence[Event]) -> Prepared:
        # A rule that removes nothing shows as 0.
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


def _return_memory_promptly() -> None:
    """Have glibc take blocks of 1 MiB and more from the kernel, and give back what is free beyond 4 MiB.

    By itself it raises the first limit to the largest block it ever freed; pages and windows of megabytes then come from the
    arenas of threads and leave them in pieces. Measured with entries of 100 KB: 400 MB resident instead of 70. Fixing the one
    fixes the other at 128 KiB, though, and then every page of memory is asked for again and again.

    And have all threads share one arena: with the interpreter's lock they do not get in each other's way, while each arena keeps
    what its thread once needed. Measured with a backfill of `--jobs 8`: 99 MB resident instead of 60 with one, and no faster.
    """
    import ctypes

    with suppress(OSError, AttributeError):  # another libc: it has its own ways
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1024 * 1024)
        libc.mallopt(_M_TRIM_THRESHOLD, 4 * 1024 * 1024)
        libc.mallopt(_M_ARENA_MAX, 1)


def authorization(account: Account) -> str:
    """The value of the `Authorization` header, read anew from its source.  Raises: ConfigError."""
    credentials = account.credentials()
    if credentials.token is not None:
        return f"Bearer {credentials.token.reveal()}"
    password = credentials.password.reveal() if credentials.password else ""
    pair = f"{credentials.username}:{password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def stop_on_signals(stop: threading.Event) -> None:
    """Have SIGTERM and SIGINT set `stop` and end what the main thread does with a StoppedError."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            stop.set()
            raise StoppedError(f"stopped by {signal.Signals(number).name}")

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)


def token_expiries(config: Config) -> dict[str, float]:
    """When each account's token expires, in unix seconds; accounts whose token does not say are left out."""
    expiries = {}
    for account in config.accounts:
        with suppress(ConfigError):  # a missing token is told where it is used
            token = account.credentials().token
            expires_at = token_expiry(token.reveal()) if token is not None else None
            if expires_at is not None:
                expiries[account.name] = expires_at
    return expiries
