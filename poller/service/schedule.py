"""The schedule of the daemon and the threads that deliver, for one configuration: made anew for each reload.

Each contract is polled by one thread at a time; each sink has a thread of its own, so that its pace and failures touch no other.
Decides nothing about entries. Errors of one contract are its own; a trouble of the state ends the daemon.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from poller.config import Config
from poller.core.errors import (
    AuthError,
    LeaseLostError,
    PollerError,
    RejectedError,
    StateError,
    StateFullError,
    StateUnavailableError,
    StoppedError,
    TransientError,
)
from poller.core.events import Event
from poller.core.outages import Outage
from poller.core.turns import MOST_OPEN
from poller.ionos.api import WARN_SKEW_SECONDS, ActivityLog
from poller.pipeline.archive import HourCloser, deliverer_of
from poller.pipeline.audit import compared_by, is_due, self_audit_span
from poller.pipeline.collect import Collector, PollResult, WindowCommitted
from poller.pipeline.deliver import Deliverer
from poller.pipeline.loop import Loop
from poller.service.metrics import Metrics
from poller.service.readiness import not_ready_reasons, notes
from poller.service.tokens import TokenWatch
from poller.service.triggers import Every
from poller.sinks.base import Sink
from poller.store.protocols import State
from poller.store.rows import Prepared
from poller.system.liveness import Workers, moves

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
DRAIN_SECONDS = 8.0
_PRUNE_SECONDS = 3600.0
_SHARE_SECONDS = 2.0  # so soon what a replica left is taken over
_FIRST_AUDIT_LOOK_SECONDS = 1.0  # the contracts are known by then, usually
_AUDIT_LOOK_SECONDS = 60.0  # how often it is looked whose audit is due
_NEXT_TURN_SECONDS = 0.5  # by then this one is over
_TOKEN_SECONDS = 60.0  # so soon a replaced token is known to be good


class Components(NamedTuple):
    """What one configuration makes: built anew for each reload."""

    config: Config
    accounts: Mapping[str, ActivityLog]
    sinks: Sequence[Sink]
    token_expiries: Callable[[], Mapping[str, float]]
    prepare: Callable[[str, Sequence[Event]], Prepared]
    redactions: Mapping[str, Callable[[bytes], bytes]] = {}  # by sink


class Look(NamedTuple):
    """What keeps us from being ready, what to know though we are, a sentence each, and how many entries were ever collected."""

    not_ready: list[str]
    notes: Sequence[str] = ()
    collected: int | None = None


class Schedule:
    """The schedule and the threads of one configuration, from `start` to `stop`."""

    def __init__(
        self,
        state: State,
        components: Components,
        stop: threading.Event,
        metrics: Metrics,
        tick: Callable[[], None],
        fail: Callable[[PollerError], None],
        clock: Callable[[], float],
    ) -> None:
        self.components = components
        self.workers = Workers()
        self._state = state
        self._stop = stop
        self._metrics = metrics
        self._tick = tick
        self._fail = fail
        self._clock = clock
        self._deliverers: dict[str, Deliverer] = {}
        self._loops: dict[str, Loop] = {}
        self._hours = HourCloser(state, components.sinks)
        self._threads = [
            threading.Thread(target=self._work_for, args=(sink,), name=f"sink-{sink.name}", daemon=True)
            for sink in components.sinks
        ]
        self._collector = Collector(
            state,
            components.accounts,
            components.config,
            stop=stop,
            prepare=components.prepare,
            on_window=self._after_window,
            clock=clock,
        )
        self._clocks_lock = threading.Lock()
        self._found: list[str] = []  # all that discovery found, and of these what is polled here
        self._contracts: set[str] = set()
        self._has_all = True
        self._share_lock = threading.Lock()
        self._discovery_failures: list[PollerError] | None = None
        self._outage = Outage()  # of the state
        self._outage_lock = threading.Lock()
        self._unavailable: dict[str, str] = {}  # a job or sink that the state does not let work now, and why
        self._tokens = TokenWatch(components.token_expiries, metrics.token_expires_at, clock)
        self._skewed: set[str] = set()
        self._audit_tried_at: dict[str, int] = {}
        self._scheduler = BackgroundScheduler(
            executors={
                # Polls may wait for a full outbox; the heartbeat must not wait with them. More polls than requests: some hang.
                "default": ThreadPoolExecutor(components.config.api.concurrency * MOST_OPEN),
                "housekeeping": ThreadPoolExecutor(6),
            },
            # A late run is run all the same, once, and never beside itself: a poll takes all there is up to its start.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
            timezone=UTC,
        )

    def start(self) -> None:
        """Start delivering at once, then discover, then poll."""
        settings = self.components.config.poll
        self._warn_of_unknown_sinks()
        here = {sink.name for sink in self.components.sinks}
        for settings_ in self.components.config.sinks:
            if settings_.name not in here:  # another machine's: what is collected from now on waits for it
                self._state.outbox.register(settings_.name, settings_.type)
        for sink in self.components.sinks:
            self._deliverers[sink.name] = deliverer = self._deliverer(sink)
            self._loops[sink.name] = self._loop(sink, deliverer)
        for thread in self._threads:
            thread.start()
        now = datetime.now(UTC)
        every = self._add_housekeeping
        every(self._tick, HEARTBEAT_SECONDS, "heartbeat", now)
        every(self._state.check_in_place, HEARTBEAT_SECONDS, "state", now)
        every(self._discover, settings.discovery_interval_seconds, "discovery", now)
        every(self._take_share, _SHARE_SECONDS, "share", now + timedelta(seconds=_SHARE_SECONDS))
        every(self._prune, _PRUNE_SECONDS, "prune", now + timedelta(seconds=_PRUNE_SECONDS))
        every(self._tokens.look, _TOKEN_SECONDS, "tokens", now)
        if settings.audit_interval_seconds:
            seconds = min(settings.audit_interval_seconds, _AUDIT_LOOK_SECONDS)
            every(self._audit, seconds, "audit", now + timedelta(seconds=_FIRST_AUDIT_LOOK_SECONDS))
        # A poll may take longer than the interval, or wait for a full outbox: `collect_lag_seconds` tells how far behind it is.
        tell_skipped = lambda event: log.debug("job.skipped", extra={"job": event.job_id})  # noqa: E731 - it is all there is
        self._scheduler.add_listener(tell_skipped, EVENT_JOB_MAX_INSTANCES)
        self._scheduler.start()

    def _add_housekeeping(self, job: Callable[[], None], seconds: float, name: str, first: datetime) -> None:
        self._scheduler.add_job(
            self._guarded(f"the job {name}", job),
            Every(seconds),
            id=name,
            executor="housekeeping",
            next_run_time=first,
        )

    def stop(self) -> None:
        """Stop collecting, finish the batches in flight, within `DRAIN_SECONDS`."""
        self._stop.set()
        if self._scheduler.running:  # else its start failed
            self._scheduler.shutdown(wait=False)
        self._collector.close()
        for loop in self._loops.values():
            loop.end()
        deadline = time.monotonic() + DRAIN_SECONDS
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        while self._collector.is_busy and time.monotonic() < deadline:
            time.sleep(0.02)
        self._collector.abandon()
        for deliverer in self._deliverers.values():
            deliverer.abandon()
        unfinished = [thread.name for thread in self._threads if thread.is_alive()]
        if unfinished:
            log.warning("drain.timed_out", extra={"unfinished": unfinished, "seconds": DRAIN_SECONDS})

    def catch_up(self) -> None:
        """Run now what is due later than one interval from now: the clock was set back since it was planned."""
        now = datetime.now(UTC)
        for job in self._scheduler.get_jobs():
            if job.next_run_time - now > job.trigger.interval:
                with suppress(LookupError):  # its contract is gone
                    self._scheduler.modify_job(job.id, next_run_time=now)

    def _guarded(self, name: str, job: Callable[[], None]) -> Callable[[], None]:
        """The job with its errors told. A state that is unavailable may come back; other troubles of it end the daemon."""

        def run() -> None:
            try:
                with self.workers.busy(name):
                    job()
                self._note_available(name)
            except StoppedError:
                pass
            except StateUnavailableError as error:
                self._note_unavailable(name, error)
            except StateError as error:
                if not self._stop.is_set():
                    self._fail(error)
            except PollerError as error:
                log.error("job.failed", extra={"why": str(error)})

        return run

    def _discover(self) -> None:
        try:
            contracts, failures = self._collector.discover()
        except StateUnavailableError:
            self._discover_soon()
            raise
        for contract in sorted(set(self._found).difference(contracts)):
            self._unavailable.pop(f"the poll of contract {contract}", None)
            log.warning("contract.gone", extra={"contract": contract})
        for contract in contracts:
            if contract not in self._found:
                log.info("contract.discovered", extra={"contract": contract})
        self._found = contracts
        self._discovery_failures = failures
        if failures:
            self._discover_soon()
        self._take_share()

    def _take_share(self) -> None:
        """Poll this replica's fair share of the contracts, and leave the others to the replicas that hold them."""
        with self._share_lock:
            held = self._state.contracts.share(self._found)
            before, self._contracts = self._contracts, set(held)
            for contract in sorted(before - self._contracts):
                with suppress(LookupError):  # stopping
                    self._scheduler.remove_job(f"poll-{contract}")
            for contract in held:
                if contract not in before:
                    self._begin_polling(contract)
            # A replica asks for what it holds: with such components, all of them together keep the pace of the account.
            self._metrics.replica_contracts.set(len(held))
            self._collector.take_part(max(1, len(held)) / max(1, len(self._found)))
            if before != self._contracts:
                self._wake_sinks()  # what waits of these contracts is delivered here from now on
                self._tell_of_share(before)

    def _begin_polling(self, contract: str) -> None:
        self._metrics.audit_missing.labels(contract)  # 0 until an audit says otherwise
        poll = self._guarded(f"the poll of contract {contract}", lambda: self._poll(contract))
        interval = self.components.config.poll.interval_seconds
        self._scheduler.add_job(poll, Every(interval, is_spread=True), id=f"poll-{contract}")

    def _tell_of_share(self, before: set[str]) -> None:
        had_all, self._has_all = self._has_all, len(self._contracts) == len(self._found)
        if not (had_all and self._has_all):  # else there is nobody to share with
            taken, given_back = self._contracts - before, before - self._contracts
            extra = {"contracts": len(self._contracts), "of": len(self._found)}
            log.info("share.changed", extra={**extra, "taken": len(taken), "given_back": len(given_back)})

    def _discover_soon(self) -> None:
        """The next regular look is an hour away; a failed one is repeated with the polls."""
        self._run_again("discovery", self.components.config.poll.interval_seconds)

    def _run_again(self, job: str, seconds: float) -> None:
        with suppress(LookupError):  # stopping
            self._scheduler.modify_job(job, next_run_time=datetime.now(UTC) + timedelta(seconds=seconds))

    def _turn_seconds(self) -> float:
        """How long a poll may take before it goes to the end of the row: without end where nobody waits for its thread."""
        settings = self.components.config
        is_crowded = len(self._contracts) > settings.api.concurrency * MOST_OPEN
        return settings.poll.interval_seconds if is_crowded else math.inf

    def _poll(self, contract: str) -> None:
        poll = self._collector.poll(contract, self._turn_seconds())
        if poll.is_elsewhere:
            return
        if poll.is_unfinished:
            self._run_again(f"poll-{contract}", _NEXT_TURN_SECONDS)
        self._after_poll(poll)

    def _after_poll(self, poll: PollResult) -> None:
        self._check_clocks()
        log.debug(
            "contract.polled", extra={"contract": poll.contract, "new": poll.new, "failed": poll.failure is not None}
        )

    def _check_clocks(self) -> None:
        """Tell when our clock and an account's API part ways, and when they agree again."""
        with self._clocks_lock:  # polls end in several threads
            for name, api in self.components.accounts.items():
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

    def _audit(self) -> None:
        """Compare every contract whose time has come with the API's own counts, and collect what is missing."""
        settings = self.components.config.poll
        now = int(self._clock())
        audited = found = repaired = 0
        for row in self._state.contracts.all():
            last = max(row.audited_at, self._audit_tried_at.get(row.contract, 0))
            if row.contract not in self._contracts or not is_due(last, now, settings.audit_interval_seconds):
                continue
            span = self_audit_span(row, now, settings.audit_span_seconds, settings.ledger_retention_seconds)
            if span is None:
                continue
            self._audit_tried_at[row.contract] = now
            counts = self._hours.counts(row.contract, span)
            try:
                result = self._collector.audit(row.contract, span)
            except (TransientError, AuthError, RejectedError) as error:
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
            repairing = self._collector.repair(result.differences)
            compared = compared_by(span, row.origin, now, settings.overlap_seconds, result)
            self._state.contracts.record_audit(row.contract, now, compared)
            self._hours.close(row.contract, counts, compared.window if compared else None, result)
            audited += 1
            found += missing
            repaired += repairing
            if repairing:
                self._poll(row.contract)
        if audited:
            log.info("audit.finished", extra={"contracts": audited, "missing": found, "repairing": repaired})

    def _deliverer(self, sink: Sink) -> Deliverer:
        failed = self._metrics.batches_failed
        return deliverer_of(
            self._state,
            sink,
            redact=self.components.redactions.get(sink.name),
            clock=self._clock,
            on_failed=lambda kind: failed.labels(sink.name, kind).inc(),
        )

    def _loop(self, sink: Sink, deliverer: Deliverer) -> Loop:
        name = f"sink {sink.name}"
        return Loop(
            deliverer,
            self._stop,
            is_alone=len(self.components.sinks) == 1,
            endured_seconds=math.inf,
            on_unavailable=lambda error: self._note_unavailable(name, error, sink=sink.name),
            on_available=lambda: self._note_available(name),
        )

    def _work_for(self, sink: Sink) -> None:
        with self.workers.busy(f"sink {sink.name}"):
            try:
                self._loops[sink.name].run()
            except PollerError as error:
                self._fail_unless_stopping(error)

    def _fail_unless_stopping(self, error: PollerError) -> None:
        if not self._stop.is_set():
            self._fail(error)

    def _after_window(self, done: WindowCommitted) -> None:
        moves()
        if done.kept:
            self._wake_sinks()

    def _wake_sinks(self) -> None:
        for loop in self._loops.values():
            loop.wake()

    def _prune(self) -> None:
        settings = self.components.config.poll
        self._state.prune(settings.ledger_retention_seconds, settings.overlap_seconds, int(self._clock()))

    def _warn_of_unknown_sinks(self) -> None:
        configured = {sink.name for sink in [*self.components.sinks, *self.components.config.sinks]}
        for sink in self._state.outbox.sinks():
            if sink.name not in configured:
                log.warning(
                    "sink.unknown",
                    extra={
                        "sink": sink.name,
                        "hint": f"it left the config and holds the outbox: `ionos-poller sinks forget {sink.name}`",
                    },
                )

    @property
    def token_expiries(self) -> Mapping[str, float]:
        """When the token of each account expires, in unix seconds, as of the last look."""
        return self._tokens.expiries

    def _note_unavailable(self, name: str, error: StateUnavailableError, **where: str) -> None:
        extra = {**where, "why": error.message, "hint": error.hint}
        if isinstance(error, LeaseLostError):  # another process does that work
            log.warning("lease.lost", extra={**extra, "contract": error.contract})
            return
        with self._outage_lock:
            self._unavailable[name] = error.reason
            is_told = self._outage.has_to_be_told(time.monotonic())
        message = "state.full" if isinstance(error, StateFullError) else "state.unavailable"
        log.log(logging.ERROR if is_told else logging.DEBUG, message, extra=extra)

    def _note_available(self, name: str) -> None:
        """A job has worked. That the state is back is seen by one that it kept from working before."""
        if name not in self._unavailable:
            return
        with self._outage_lock:
            self._unavailable.pop(name, None)
            seconds = self._outage.ended(time.monotonic())
        if seconds is not None:
            log.info("state.available", extra={"seconds": round(seconds)})

    def look(self) -> Look:
        """How it is going, as of one moment."""
        try:
            overview = self._state.overview()
        except StateUnavailableError as error:
            return Look([error.reason])
        found = not_ready_reasons(
            overview,
            self.components.config,
            self._clock(),
            contracts=self._contracts,
            discovery_failures=self._discovery_failures,
            token_expiries=self._tokens.expiries,
        )
        return Look(
            [*sorted(set(self._unavailable.copy().values())), *found],
            notes(overview.contracts, [gap for gap in overview.gaps if gap.contract in self._contracts]),
            sum(row.new for row in overview.contracts),
        )
