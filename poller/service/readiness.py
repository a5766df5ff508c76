"""What keeps the daemon from being ready: a rule over the books and the clock. Reads nothing, remembers nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta

from poller.config import Config
from poller.core.delivery import CRASHED
from poller.core.errors import PollerError
from poller.core.gaps import summary
from poller.core.windows import format_time
from poller.store.gaps import Gap
from poller.store.overview import Overview, SinkOverview
from poller.store.rows import Contract

_STALE_INTERVALS = 3
_MOST_POSTPONED = 5


def not_ready_reasons(
    state: Overview,
    config: Config,
    now: float,
    *,
    found: Collection[str],
    contracts: Collection[str],
    discovery_failures: Sequence[PollerError] | None,
    token_expiries: Mapping[str, float],
) -> list[str]:
    """A sentence for each; none while the last poll of every contract succeeded lately and no sink is parked or
    ended in an internal error.

    `contracts` are those that are polled here, of all that were `found`; `discovery_failures` what the last look for them could
    not tell, None before the first. What is likely to have led to a trouble is named too, but is none by itself: a token may be
    good for longer than it says, and a list of contracts that cannot be had now changes nothing for those that are known.
    """
    sinks = configured_sinks(state, config)
    reasons = [
        *_unknown_contracts(state, found, discovery_failures),
        *_stale_polls(state, config, contracts, now),
        *(f"sink {row.sink.name} is parked: {row.sink.failure}" for row in sinks if row.sink.parked_at is not None),
        *(f"sink {row.sink.name}: {row.sink.failure}" for row in sinks if row.sink.failure.startswith(CRASHED)),
    ]
    if state.outbox.bytes >= config.outbox.max_bytes:
        reasons.append("the outbox is full: collecting is paused until a sink takes more")
    elif state.outbox.used_bytes >= config.outbox.max_bytes:
        reasons.append(
            "dead letters fill the outbox: collecting is paused until you replay or purge them (`dead-letters`)"
        )
    expired = [
        f"account {account}: the API token expired {_ago(now - expires_at)} ago"
        for account, expires_at in token_expiries.items()
        if expires_at <= now
    ]
    return expired + reasons if reasons else []


def configured_sinks(state: Overview, config: Config) -> list[SinkOverview]:
    """The sinks of the configuration. To one that left it nothing is sent: what kept it from taking events is of the past."""
    names = {sink.name for sink in config.sinks}
    return [row for row in state.sinks if row.sink.name in names]


def gaps_told(gaps: Iterable[Gap]) -> dict[str, str]:
    """For each contract with gaps that nobody has accepted: how many, how long, and why the first of them."""
    by_contract: dict[str, list[Gap]] = {}
    for gap in gaps:
        if gap.is_open:
            by_contract.setdefault(gap.contract, []).append(gap)
    return {
        contract: f"{summary([gap.window for gap in rows])}: {rows[0].reason}" for contract, rows in by_contract.items()
    }


def notes(rows: Iterable[Contract], gaps: Iterable[Gap], sinks: Iterable[SinkOverview] = ()) -> list[str]:
    """What a person should know though all is well, in a sentence each: beside a gap, all else goes on."""
    told = gaps_told(gaps)
    return [
        f"contract {row.contract}: complete up to {format_time(row.watermark)}, but for {told[row.contract]}"
        for row in rows
        if row.contract in told
    ] + [
        f"sink {row.sink.name}: contract {one.contract} waits on its own: {one.failure}"
        for row in sinks
        for one in row.postponed[:_MOST_POSTPONED]
    ]


def unread_accounts(rows: Iterable[Contract], found: Collection[str], failures: Iterable[PollerError]) -> set[str]:
    """The accounts that did not say which contracts they have, and have none that is known: nothing of them is polled."""
    known = {row.account for row in rows if row.contract in found}
    return {failure.account for failure in failures if failure.account} - known


def _unknown_contracts(
    state: Overview, found: Collection[str], failures: Sequence[PollerError] | None
) -> Iterator[str]:
    """Contracts that are to be polled and are not, because nobody told us of them."""
    if failures is None:
        yield "no contracts discovered yet"
        return
    unread = unread_accounts(state.contracts, found, failures)
    for failure in failures:
        if not failure.account or failure.account in unread:
            yield str(failure)


def _stale_polls(state: Overview, config: Config, contracts: Collection[str], now: float) -> Iterator[str]:
    for row in state.contracts:
        if row.contract in contracts and is_stale(row, config, now):
            last = f"{_ago(now - row.succeeded_at)} ago" if row.succeeded_at else "never"
            failure = f": {row.failure}" if row.failure else ""
            yield f"contract {row.contract}: last successful poll {last}{failure}"


def is_stale(row: Contract, config: Config, now: float) -> bool:
    """Whether the last good poll of a contract is too long ago. `now` in unix seconds."""
    return now - (row.succeeded_at or 0) > config.poll.interval_seconds * _STALE_INTERVALS


def _ago(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
