"""The schedule of one configuration, in its parts: polling, delivering, auditing, housekeeping. Each reload makes a new one.

Errors of one contract affect that contract only; an error of the state ends the daemon.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from poller.core.errors import PollerError, StateUnavailableError
from poller.core.turns import MOST_OPEN
from poller.pipeline.archive import HourCloser, archives_in
from poller.pipeline.collect import Collector, WindowCommitted
from poller.pipeline.discovery import Discovery
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.service.auditing import Auditing
from poller.service.components import Components
from poller.service.delivering import Delivering
from poller.service.jobs import Jobs
from poller.service.metrics import Metrics
from poller.service.polling import Polling
from poller.service.readiness import configured_sinks, not_ready_reasons, notes
from poller.service.tokens import TokenWatch
from poller.store.protocols import State
from poller.system.liveness import moves

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
DRAIN_SECONDS = 8.0
_PRUNE_SECONDS = 3600.0
_TOKEN_SECONDS = 60.0  # how often to look at the tokens


class Look(NamedTuple):
    """The reasons for not being ready and the notes, one sentence each, and the total of collected entries."""

    not_ready: list[str]
    notes: Sequence[str] = ()
    collected: int | None = None


class Schedule:
    """The schedule and the threads of one configuration, from `start` to `stop`."""

    def __init__(
        self,
        state: State,
        components: Components,
        metrics: Metrics,
        tick: Callable[[], None],
        fail: Callable[[PollerError], None],
        clock: Callable[[], float],
    ) -> None:
        self.components = components
        config = components.config
        self._state = state
        self._tick = tick
        self._clock = clock
        discovery = Discovery(state, components.accounts, config, clock)
        self._collector = Collector(
            state,
            components.accounts,
            config,
            stop=components.stop,
            prepare=components.prepare,
            on_window=self._after_window,
            discovery=discovery,
            clock=clock,
        )
        # More polls than requests: some hang.
        self.jobs = Jobs(components.stop, fail, polls_at_once=config.api.concurrency * MOST_OPEN)
        self._delivering = Delivering(state, components, self.jobs, metrics, clock)
        self.polling = Polling(state, components, self._collector, self.jobs, metrics, self._delivering.wake)
        hours = HourCloser(state, archives_in(components.sinks))
        auditor = LedgerAuditor(state, components.accounts, config, discovery=discovery, hours=hours, clock=clock)
        self.auditing = Auditing(state, components, auditor, metrics, clock)
        self._tokens = TokenWatch(components.token_expiries, metrics.token_expires_at, clock)

    def start(self) -> None:
        """Start delivering at once, then discover, then poll."""
        self._delivering.start()
        every = self.jobs.add_housekeeping
        every(self._tick, HEARTBEAT_SECONDS, "heartbeat")
        every(self._state.check_in_place, HEARTBEAT_SECONDS, "state")
        every(self._prune, _PRUNE_SECONDS, "prune", _PRUNE_SECONDS)
        every(self._tokens.look, _TOKEN_SECONDS, "tokens")
        self.polling.start()
        self.auditing.start(self.jobs, lambda: self.polling.contracts, self.polling.poll)
        self.jobs.start()

    def stop(self) -> None:
        """Stop collecting, finish the batches in flight, within `DRAIN_SECONDS`."""
        self.components.stop.set()
        self.jobs.stop()
        self._collector.close()
        deadline = time.monotonic() + DRAIN_SECONDS
        self._delivering.end(deadline)
        while self._collector.is_busy and time.monotonic() < deadline:
            time.sleep(0.02)
        self._collector.abandon()
        if unfinished := self._delivering.abandon():
            log.warning("drain.timed_out", extra={"unfinished": unfinished, "seconds": DRAIN_SECONDS})

    def _after_window(self, done: WindowCommitted) -> None:
        moves()
        if done.kept:
            self._delivering.wake()

    def _prune(self) -> None:
        settings = self.components.config.poll
        self._state.prune(settings.ledger_retention_seconds, settings.overlap_seconds, int(self._clock()))

    @property
    def token_expiries(self) -> Mapping[str, float]:
        """When the token of each account expires, in unix seconds, as of the last look."""
        return self._tokens.expiries

    def look(self) -> Look:
        """The current look at the state."""
        try:
            overview = self._state.overview()
        except StateUnavailableError as error:
            return Look([error.reason])
        found = not_ready_reasons(
            overview,
            self.components.config,
            self._clock(),
            found=set(self.polling.found),
            contracts=self.polling.contracts,
            discovery_failures=self.polling.discovery_failures,
            token_expiries=self._tokens.expiries,
        )
        return Look(
            [*self.jobs.unavailable, *found],
            notes(
                overview.contracts,
                [gap for gap in overview.gaps if gap.contract in self.polling.contracts],
                configured_sinks(overview, self.components.config),
            ),
            sum(row.new for row in overview.contracts),
        )
