"""Comparing the collected entries with those of the API, by contract, and requesting the missing ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from poller.config import Config
from poller.core.clocks import trusted_now
from poller.core.errors import RejectedError
from poller.core.gaps import without
from poller.core.narrowing import present_at
from poller.core.windows import Window
from poller.ionos.api import ActivityLog
from poller.pipeline.ahead import windows_held
from poller.pipeline.audit import Audited, Auditor, Difference, NoTotalsError, around, joined, parts_of
from poller.pipeline.discovery import Discovery
from poller.store.journal import Action
from poller.store.protocols import State
from poller.store.rows import Contract

if TYPE_CHECKING:
    from poller.pipeline.archive import HourCloser


class LedgerAuditor:
    """Audits the contracts of a state. It stores no entry: the next poll of the contract reads the missing ones."""

    def __init__(
        self,
        state: State,
        accounts: Mapping[str, ActivityLog],
        config: Config,
        *,
        discovery: Discovery | None = None,
        hours: HourCloser | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`discovery`: an existing one to use. `hours` states to archives how many entries each hour has."""
        self._state = state
        self._accounts = accounts
        self._discovery = discovery or Discovery(state, accounts, config, clock)
        self._hours = hours
        self._overlap_seconds = config.poll.overlap_seconds
        self._limits = config.api.limits(windows_held(config.api.concurrency))  # as it may read beside a collector
        self._clock = clock

    def audit(self, contract: str, span: Window, *, by_reading: bool = False) -> Audited:
        """The hours of a span in which the API and the ledger disagree. Begins where collecting began.

        Closed hours are compared by totals, the hour that is not over entry by entry, which costs a request a page.
        `by_reading`: if the API gives no totals, closed hours are read as well. This costs as many requests as collecting them.
        Gaps are left out because they are known, and the rest of their hours is compared entry by entry. Spans that the API
        refuses or fails at are reported separately if it serves the present.

        Commits: for archives, the counts of the closed hours.
        Raises: AuthError, TransientError, StateError, StoppedError; RejectedError where the API refuses all of it; PollerError
        where its account is not configured.
        """
        row = self._known(contract)
        parts = parts_of(span, row.origin, self._clock(), self._overlap_seconds)
        if parts.compared is None:
            return Audited([])
        auditor = self._auditor(row)
        before = self._hours.counts(contract, span) if self._hours is not None else {}
        gaps = [gap.window for gap in self._state.gaps.find(contract)]

        def read(part: Window) -> Audited:
            counts = self._state.contracts.counts(contract, part.start, part.end)
            return auditor.read(part, counts, lambda events: self._state.contracts.unseen(contract, events))

        found: list[Audited] = []
        by_totals, by_entries = around(parts.closed, gaps) if parts.closed is not None else ([], [])
        for part in by_totals:
            try:
                found.append(auditor.compare(part, self._state.contracts.counts(contract, part.start, part.end)))
            except NoTotalsError:
                if not by_reading:
                    raise
                found.append(read(part))
        by_entries += without(parts.open, gaps) if parts.open is not None else []
        result = joined([*found, *map(read, by_entries)])
        refused = [part.window for part in result.refused]
        if refused and not any(without(part, refused) for part in (*by_totals, *by_entries)):
            raise RejectedError(result.refused[0].reason, hint="audit a span that the API serves", contract=contract)
        if self._hours is not None:
            self._hours.close(contract, before, parts.closed, result)
        return result

    def count_roughly(self, contract: str, span: Window) -> tuple[int, bool]:
        """How many entries the API holds in a span, and whether this is the exact number and not a minimum.

        Raises: AuthError, TransientError, RejectedError, StoppedError.
        """
        return self._auditor(self._known(contract)).count_roughly(span)

    def _known(self, contract: str) -> Contract:
        row = self._state.contracts.get(contract)
        if row is None:
            raise ValueError(f"contract {contract} is not in the state")
        return row

    def _auditor(self, row: Contract) -> Auditor:
        api = self._accounts[self._discovery.account_of(row)]
        now = int(trusted_now(api.clock_skew_seconds, self._clock()))
        return Auditor(api, row.contract, self._limits, present=present_at(now, self._overlap_seconds))

    def repair(self, differences: Iterable[Difference], *, by: Action | None = None) -> int:
        """Request that the next poll of the contract reads the hours with missing entries once more.

        Returns how many entries are missing in them; `by` is the person who requested it. Hours whose identities were pruned are
        skipped, because reading them again would repeat delivered entries.
        """
        wanted = [difference for difference in differences if difference.missing and not difference.forgotten]
        for difference in wanted:
            count = difference.missing
            self._state.contracts.add_range(difference.contract, difference.window, "repair", by=by, count=count)
        return sum(difference.missing for difference in wanted)
