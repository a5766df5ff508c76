"""The jobs of a schedule: when each runs, what its errors mean, and which jobs the state blocks now."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from poller.core.errors import (
    LeaseLostError,
    PollerError,
    StateError,
    StateFullError,
    StateUnavailableError,
    StoppedError,
)
from poller.core.outages import Outage
from poller.service.triggers import Every
from poller.system.liveness import Workers

log = logging.getLogger(__name__)

# How soon to try a job again that the state blocked; the next regular run may be an hour away.
_AGAIN_SECONDS = 5.0


class _Note(NamedTuple):
    """Why and since when the state blocks a job or sink. `is_away`: the state was unreachable, so it blocks all of them."""

    reason: str
    is_away: bool
    at: float


class Jobs:
    """Polls and housekeeping, each in their own threads. An error affects its job only; a broken state ends the daemon."""

    def __init__(self, stop: threading.Event, fail: Callable[[PollerError], None], *, polls_at_once: int) -> None:
        self.workers = Workers()
        self._stop = stop
        self._fail = fail
        self._outage = Outage()  # of the state
        self._lock = threading.Lock()
        self._notes: dict[str, _Note] = {}  # of the jobs and sinks that the state blocks now
        self._kept: set[str] = set()  # those that it ever blocked: if one of them works, the state works
        self._removed: set[str] = set()  # removed polls: errors of one that still runs are not reported
        self.scheduler = BackgroundScheduler(
            executors={
                # Polls may wait for a full outbox; the heartbeat must not wait with them.
                "default": ThreadPoolExecutor(polls_at_once),
                "housekeeping": ThreadPoolExecutor(6),
            },
            # A late run still runs, once, and never in parallel to itself: a poll reads everything up to its start.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
            timezone=UTC,
        )
        # A poll may take longer than the interval, or wait for a full outbox: `collect_lag_seconds` shows how far behind it is.
        tell_skipped = lambda event: log.debug("job.skipped", extra={"job": event.job_id})  # noqa: E731 - it is all there is
        self.scheduler.add_listener(tell_skipped, EVENT_JOB_MAX_INSTANCES)

    def start(self) -> None:
        self.scheduler.start()

    def stop(self) -> None:
        if self.scheduler.running:  # else its start failed
            self.scheduler.shutdown(wait=False)

    def add_housekeeping(self, job: Callable[[], None], seconds: float, name: str, first_seconds: float = 0.0) -> None:
        """Run a job every `seconds`, for the first time `first_seconds` from now."""
        first = datetime.now(UTC) + timedelta(seconds=first_seconds)
        again = lambda: self.run_again(name, min(seconds, _AGAIN_SECONDS))  # noqa: E731
        run = self.guarded(f"the job {name}", job, again)
        self.scheduler.add_job(run, Every(seconds), id=name, executor="housekeeping", next_run_time=first)

    def add_poll(self, job: Callable[[], None], seconds: float, contract: str) -> None:
        """Poll a contract every `seconds`, the contracts one after the other."""
        run = self.guarded(_poll_of(contract), job)
        with self._lock:
            self._removed.discard(_poll_of(contract))
        self.scheduler.add_job(run, Every(seconds, is_spread=True), id=f"poll-{contract}")

    def remove_poll(self, contract: str) -> None:
        """Stop polling a contract: it is gone, or another replica has it. Errors of its last poll are not reported."""
        with suppress(LookupError):  # stopping
            self.scheduler.remove_job(f"poll-{contract}")
        with self._lock:
            self._removed.add(_poll_of(contract))
            self._notes.pop(_poll_of(contract), None)

    def run_again(self, job: str, seconds: float) -> None:
        """Run a job once in `seconds`, and then as usual."""
        with suppress(LookupError):  # stopping
            self.scheduler.modify_job(job, next_run_time=datetime.now(UTC) + timedelta(seconds=seconds))

    def catch_up(self) -> None:
        """Run all jobs now that are due later than one interval from now: the clock was set back since they were planned."""
        now = datetime.now(UTC)
        for job in self.scheduler.get_jobs():
            if job.next_run_time - now > job.trigger.interval:
                with suppress(LookupError):  # its contract is gone
                    self.scheduler.modify_job(job.id, next_run_time=now)

    def guarded(
        self, name: str, job: Callable[[], None], again: Callable[[], None] = lambda: None
    ) -> Callable[[], None]:
        """The job with its errors logged. An unavailable state may come back; other errors of the state end the daemon.

        `again` runs the job once more soon, if the state blocked it.
        """

        def run() -> None:
            began_at = time.monotonic()
            try:
                with self.workers.busy(name):
                    job()
                self.note_available(name, began_at)
            except StoppedError:
                pass
            except StateUnavailableError as error:
                self.note_unavailable(name, error)
                again()
            except StateError as error:
                self.fail(error)
            except PollerError as error:
                log.error("job.failed", extra={"why": str(error)})

        return run

    def fail(self, error: PollerError) -> None:
        """End the daemon with an error, unless it is ending already."""
        if not self._stop.is_set():
            self._fail(error)

    @property
    def unavailable(self) -> list[str]:
        """Why the state blocks some work now, one sentence each."""
        with self._lock:
            return sorted({note.reason for note in self._notes.values()})

    def note_unavailable(self, name: str, error: StateUnavailableError, **where: str) -> None:
        extra = {**where, "why": error.message, "hint": error.hint}
        if isinstance(error, LeaseLostError):  # another process does that work
            log.warning("lease.lost", extra={**extra, "contract": error.contract})
            return
        is_full = isinstance(error, StateFullError)
        with self._lock:
            now = time.monotonic()
            if name not in self._removed:
                self._kept.add(name)
                self._notes[name] = _Note(error.reason, not is_full, now)
            is_told = self._outage.has_to_be_told(now)
        message = "state.full" if is_full else "state.unavailable"
        log.log(logging.ERROR if is_told else logging.DEBUG, message, extra=extra)

    def note_available(self, name: str, began_at: float | None = None) -> None:
        """Note that a job or sink that began then has worked. If the state ever blocked it, the state works again, for all."""
        if name not in self._kept or not self._notes:
            return
        with self._lock:
            now = time.monotonic()
            began_at = now if began_at is None else began_at  # a later note may be the next outage
            over = [one for one, note in self._notes.items() if one == name or (note.is_away and note.at <= began_at)]
            for one in over:
                del self._notes[one]
            seconds = self._outage.ended(now) if over else None
        if seconds is not None:
            log.info("state.available", extra={"seconds": round(seconds)})


def _poll_of(contract: str) -> str:
    return f"the poll of contract {contract}"
