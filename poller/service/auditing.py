"""The self-audit: compares the collected entries with the API's own counts, and collects missing ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from poller.core.errors import ASKING_ERRORS
from poller.pipeline.audit import compared_by, is_due, remembered, self_audit_span
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.service.components import Components
from poller.service.jobs import Jobs
from poller.service.metrics import Metrics
from poller.store.protocols import State

log = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 1.0  # the contracts are known by then, usually
_LOOK_SECONDS = 60.0  # how often to look for due audits


class Auditing:
    """The audits of one configuration."""

    def __init__(
        self,
        state: State,
        components: Components,
        auditor: LedgerAuditor,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._settings = components.config.poll
        self._auditor = auditor
        self._metrics = metrics
        self._clock = clock
        self._audit_tried_at: dict[str, int] = {}

    def start(self, jobs: Jobs, contracts: Callable[[], Collection[str]], poll: Callable[[str], None]) -> None:
        """Audit the contracts of `contracts` when they are due; `poll` a contract if entries are missing."""
        interval = self._settings.audit_interval_seconds
        if interval:
            work = lambda: self.audit(contracts(), poll)  # noqa: E731
            jobs.add_housekeeping(work, min(interval, _LOOK_SECONDS), "audit", _FIRST_LOOK_SECONDS)
        else:
            self._metrics.audit_missing.clear()  # the results before a reload, which no audit would correct

    def audit(self, contracts: Collection[str], poll: Callable[[str], None]) -> None:
        """Compare each due contract with the API's own counts, and collect missing entries."""
        settings = self._settings
        now = int(self._clock())
        audited = found = repaired = 0
        for row in self._state.contracts.all():
            last = max(row.audited_at, self._audit_tried_at.get(row.contract, 0))
            if row.contract not in contracts or not is_due(last, now, settings.audit_interval_seconds):
                continue
            span = self_audit_span(row, now, settings.audit_span_seconds)
            oldest = now - settings.ledger_retention_seconds
            if span is not None and span.start < oldest:  # what was collected since is remembered, however old it is
                span = remembered(span, self._state.contracts.counts(row.contract, span.start, oldest))
            if span is None:
                continue
            self._audit_tried_at[row.contract] = now
            try:
                result = self._auditor.audit(row.contract, span)
            except ASKING_ERRORS as error:
                log.warning("audit.failed", extra={"contract": row.contract, "why": str(error)})
                continue
            for part in result.refused:
                log.warning(
                    "audit.span_refused",
                    extra={"contract": row.contract, "span": str(part.window), "why": part.reason},
                )
            missing = sum(difference.missing for difference in result.differences)
            self._metrics.audit_missing.labels(row.contract).set(missing)
            for difference in result.differences:
                log.warning(
                    "audit.difference_found",
                    extra={
                        "contract": row.contract,
                        "hour": str(difference.window),
                        "at_api": difference.at_api,
                        "collected": difference.collected,
                    },
                )
            repairing = self._auditor.repair(result.differences)
            compared = compared_by(span, row.origin, now, settings.overlap_seconds, result)
            self._state.contracts.record_audit(row.contract, now, compared)
            audited += 1
            found += missing
            repaired += repairing
            if repairing:
                poll(row.contract)
        if audited:
            log.info("audit.finished", extra={"contracts": audited, "missing": found, "repairing": repaired})
