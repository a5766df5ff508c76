"""Polling: the known contracts, the ones that this replica polls, and a poll of each. Decides nothing about entries."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

from poller.core.errors import PollerError
from poller.core.turns import MOST_OPEN
from poller.ionos.api import WARN_SKEW_SECONDS
from poller.pipeline.collect import Collector
from poller.service.components import Components
from poller.service.jobs import Jobs
from poller.service.metrics import Metrics, drop
from poller.service.readiness import unread_accounts
from poller.store.protocols import State

log = logging.getLogger(__name__)

_SHARE_SECONDS = 2.0  # how often to look for contracts that another replica left
_NEXT_TURN_SECONDS = 0.5  # by then the current one has ended


class Polling:
    """The polls of one configuration. Each contract is polled by one thread at a time."""

    def __init__(
        self,
        state: State,
        components: Components,
        collector: Collector,
        jobs: Jobs,
        metrics: Metrics,
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when waiting events of more contracts must be delivered here."""
        self._state = state
        self._config = components.config
        self._accounts = components.accounts
        self._collector = collector
        self._jobs = jobs
        self._metrics = metrics
        self._wake = wake
        self.found: list[str] = []
        """All contracts that discovery found, also those that other replicas poll."""
        self.contracts: set[str] = set()
        """The contracts that are polled here."""
        self.discovery_failures: list[PollerError] | None = None
        """The failures of the last look for contracts; None before the first look."""
        self._has_all = True
        self._share_lock = threading.Lock()
        self._clocks_lock = threading.Lock()
        self._skewed: set[str] = set()

    def start(self) -> None:
        self._jobs.add_housekeeping(self._discover, self._config.poll.discovery_interval_seconds, "discovery")
        self._jobs.add_housekeeping(self._take_share, _SHARE_SECONDS, "share", _SHARE_SECONDS)

    def _discover(self) -> None:
        contracts, failures = self._collector.discover()
        for contract in sorted(set(self.found).difference(contracts)):
            log.warning("contract.gone", extra={"contract": contract})
        for contract in contracts:
            if contract not in self.found:
                log.info("contract.discovered", extra={"contract": contract})
        self.found = contracts
        self.discovery_failures = failures
        unread = unread_accounts(self._state.contracts.all(), contracts, failures)
        for account in self._accounts:
            self._metrics.account_unread.labels(account).set(account in unread)
        if failures:  # the next regular look is an hour away; a failed one is repeated with the polls
            self._jobs.run_again("discovery", self._config.poll.interval_seconds)
        self._take_share()

    def _take_share(self) -> None:
        """Poll this replica's fair share of the contracts, and leave the others to their replicas."""
        with self._share_lock:
            held = self._state.contracts.share(self.found)
            before, self.contracts = self.contracts, set(held)
            for contract in sorted(before - self.contracts):
                self._jobs.remove_poll(contract)
            for contract in held:
                if contract not in before:
                    self._begin_polling(contract)
            # Each replica uses a part of the pace, in proportion to its contracts: together they keep the pace of the account.
            self._metrics.replica_contracts.set(len(held))
            self._collector.take_part(max(1, len(held)) / max(1, len(self.found)))
            if before != self.contracts:
                # Missing entries of a contract are shown by the replica that polls and audits it.
                drop(self._metrics.audit_missing, lambda contract: contract not in self.contracts)
                self._wake()  # waiting events of these contracts are delivered here from now on
                self._tell_of_share(before)

    def _begin_polling(self, contract: str) -> None:
        self._metrics.audit_missing.labels(contract)  # 0 until an audit says otherwise
        self._jobs.add_poll(lambda: self.poll(contract), self._config.poll.interval_seconds, contract)

    def _tell_of_share(self, before: set[str]) -> None:
        had_all, self._has_all = self._has_all, len(self.contracts) == len(self.found)
        if not (had_all and self._has_all):  # otherwise there is no replica to share with
            taken, given_back = self.contracts - before, before - self.contracts
            extra = {"contracts": len(self.contracts), "of": len(self.found)}
            log.info("share.changed", extra={**extra, "taken": len(taken), "given_back": len(given_back)})

    def _turn_seconds(self) -> float:
        """How long a poll may take before others have their turn; infinite if no contract waits for its thread."""
        settings = self._config
        is_crowded = len(self.contracts) > settings.api.concurrency * MOST_OPEN
        return settings.poll.interval_seconds if is_crowded else math.inf

    def poll(self, contract: str) -> None:
        poll = self._collector.poll(contract, self._turn_seconds())
        if poll.is_elsewhere:
            return
        if poll.is_unfinished:
            self._jobs.run_again(f"poll-{contract}", _NEXT_TURN_SECONDS)
        self._check_clocks()
        log.debug(
            "contract.polled", extra={"contract": poll.contract, "new": poll.new, "failed": poll.failure is not None}
        )

    def _check_clocks(self) -> None:
        """Log when our clock and the API of an account differ, and when they agree again."""
        with self._clocks_lock:  # polls end in several threads
            for name, api in self._accounts.items():
                skew = api.clock_skew_seconds
                if skew is not None:
                    self._check_clock(name, skew)

    def _check_clock(self, name: str, skew: float) -> None:
        self._metrics.clock_skew.labels(name).set(skew)
        extra = {"account": name, "seconds_ahead": round(skew, 1)}
        if abs(skew) > WARN_SKEW_SECONDS and name not in self._skewed:
            self._skewed.add(name)
            hint = "set this machine's clock (NTP); no entry is lost meanwhile"
            log.warning("clock.skewed", extra={**extra, "hint": hint})
        elif abs(skew) <= WARN_SKEW_SECONDS and name in self._skewed:
            self._skewed.discard(name)
            log.info("clock.agreed", extra=extra)
