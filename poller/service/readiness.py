"""The reasons why the daemon is not ready: rules over the books and the clock. Reads nothing, stores nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from poller.config import Config
from poller.core.amounts import duration
from poller.core.delivery import CRASHED
from poller.core.errors import PollerError
from poller.core.gaps import summary
from poller.core.windows import format_time
from poller.pipeline.status import is_stale
from poller.store.gaps import Gap
from poller.store.overview import Overview, SinkOverview
from poller.store.rows import Contract

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
    """One sentence for each reason. None if the last poll of every contract succeeded recently, and no sink is parked or ended in
    an internal error.

    `contracts` are polled here, a part of all that were `found`; `discovery_failures` are those of the last look for contracts,
    None before the first look. Likely causes are named as well, but are no reasons alone: a token may be valid for longer than it
    says, and a failed list of contracts changes nothing for known contracts.
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
        f"account {account}: the API token expired {duration(now - expires_at)} ago"
        for account, expires_at in token_expiries.items()
        if expires_at <= now
    ]
    return expired + reasons if reasons else []


def configured_sinks(state: Overview, config: Config) -> list[SinkOverview]:
    """The sinks of the configuration. Nothing is sent to others, so their failures do not count any more."""
    names = {sink.name for sink in config.sinks}
    return [row for row in state.sinks if row.sink.name in names]


def gaps_told(gaps: Iterable[Gap]) -> dict[str, str]:
    """For each contract with gaps that nobody has accepted: number, length, and the reason of the first one."""
    by_contract: dict[str, list[Gap]] = {}
    for gap in gaps:
        if gap.is_open:
            by_contract.setdefault(gap.contract, []).append(gap)
    return {
        contract: f"{summary([gap.window for gap in rows])}: {rows[0].reason}" for contract, rows in by_contract.items()
    }


def notes(rows: Iterable[Contract], gaps: Iterable[Gap], sinks: Iterable[SinkOverview] = ()) -> list[str]:
    """Notes for a person, one sentence each. They are no reasons: beside a gap, everything else goes on."""
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
    """Accounts that gave no list of contracts and have no known contract: nothing of them is polled."""
    known = {row.account for row in rows if row.contract in found}
    return {failure.account for failure in failures if failure.account} - known


def _unknown_contracts(
    state: Overview, found: Collection[str], failures: Sequence[PollerError] | None
) -> Iterator[str]:
    """Contracts that are not polled because they are unknown: discovery failed or has not run."""
    if failures is None:
        yield "no contracts discovered yet"
        return
    unread = unread_accounts(state.contracts, found, failures)
    for failure in failures:
        if not failure.account or failure.account in unread:
            yield str(failure)


def _stale_polls(state: Overview, config: Config, contracts: Collection[str], now: float) -> Iterator[str]:
    for row in state.contracts:
        if row.contract in contracts and is_stale(row, config.poll, now):
            last = f"{duration(now - row.succeeded_at)} ago" if row.succeeded_at else "never"
            failure = f": {row.failure}" if row.failure else ""
            yield f"contract {row.contract}: last successful poll {last}{failure}"
