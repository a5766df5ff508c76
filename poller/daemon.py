"""`run`: polls every contract on a schedule and delivers to every sink until told to stop.

Owns the process: signals, the HTTP endpoint and what systemd is told. What is done when is `schedule`'s. On SIGTERM collecting
stops, the batch in flight is finished, and the process ends within seconds; on SIGHUP a new configuration takes the place of
the old one if it is good.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from poller.errors import EXIT_OK, PollerError
from poller.health import Endpoint, Health
from poller.metrics import Metrics
from poller.notify import Notifier
from poller.schedule import HEARTBEAT_SECONDS, Parts, Schedule
from poller.store import State

log = logging.getLogger(__name__)

_WAKE_SECONDS = 1.0
_CLOCK_SET_SECONDS = 2.0
# Three heartbeats missed mean that the scheduler no longer ticks.
_DEAD_AFTER_SECONDS = 3 * HEARTBEAT_SECONDS + 5


class Daemon:
    """One running daemon. `build` makes the parts of the configuration as it is now, and raises ConfigError when it is bad."""

    def __init__(
        self,
        state: State,
        build: Callable[[threading.Event, Callable[[str, float], None]], Parts],
        notifier: Notifier,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._build = build
        self._notifier = notifier
        self._clock = clock
        self.metrics = Metrics(state.overview, clock)
        # Not an Event: a signal may come while the main thread is inside of one, which would then wait for itself.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_stopping = False
        self._is_reloading = False
        self._fatal: PollerError | None = None
        self._ticked_at = time.monotonic()
        self._clock_lead = self._clock() - time.monotonic()
        self._work: Schedule | None = None
        self._endpoint: Endpoint | None = None

    def run(self) -> int:
        """Work until SIGTERM or SIGINT. Returns 0.  Raises: ConfigError at the start; StateError when the state fails."""
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a shell's background job is not to hear Ctrl-C
                signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        parts, stop = self._build_parts()
        self._endpoint = self._listen(parts)
        self._start(parts, stop)
        self._notifier.tell(READY="1", STATUS="collecting")
        log.info("daemon.started", extra={"sinks": [sink.name for sink in self._parts.sinks]})
        try:
            while not self._is_stopping and self._fatal is None:
                # A signal that comes in the moment before we begin to wait does not end the wait: hence the time-out.
                with suppress(queue.Empty):
                    self._wake.get(timeout=_WAKE_SECONDS)
                if self._is_reloading:
                    self._is_reloading = False
                    self._reload()
                self._mind_clock()
        finally:
            self._notifier.tell(STOPPING="1", STATUS="finishing what is in flight")
            self._stop_work()
            if self._endpoint is not None:
                self._endpoint.close()
        if self._fatal is not None:
            raise self._fatal
        log.info("daemon.stopped")
        return EXIT_OK

    @property
    def _parts(self) -> Parts:
        assert self._work is not None  # noqa: S101  # set before anything that asks for it runs
        return self._work.parts

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True
        self._wake.put(None)

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        self._is_reloading = True
        self._wake.put(None)

    def _build_parts(self) -> tuple[Parts, threading.Event]:
        stop = threading.Event()
        return self._build(stop, self.metrics.observe_request), stop

    def _listen(self, parts: Parts) -> Endpoint | None:
        """The endpoint that is configured.  Raises: ConfigError when its address is taken."""
        address = parts.config.http.address
        if address is None:
            return None
        return Endpoint(address, metrics=self.metrics.render, alive=self.alive, ready=self.ready)

    def _start(self, parts: Parts, stop: threading.Event) -> None:
        is_reload = self._work is not None
        self.metrics.is_polled = parts.config.poll.wants
        self._work = Schedule(
            self._state, parts, stop, self.metrics, self._tick, self._fail, self._clock, is_reload=is_reload
        )
        self._work.start()

    def _stop_work(self) -> None:
        if self._work is not None:
            self._work.stop()

    def _reload(self) -> None:
        self._notifier.tell(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))
        try:
            parts, stop = self._build_parts()
            is_moving = parts.config.http.listen != self._parts.config.http.listen
            endpoint = self._listen(parts) if is_moving else self._endpoint
        except PollerError as error:
            log.error("config.reload_failed", extra={"why": str(error), "hint": "the old configuration stays in force"})
        else:
            self._stop_work()
            if is_moving and self._endpoint is not None:
                self._endpoint.close()
            self._endpoint = endpoint
            try:
                self._start(parts, stop)
                log.info("config.reloaded")
            except PollerError as error:
                log.error("config.reload_failed", extra={"why": str(error)})
                self._fail(error)
        self._notifier.tell(READY="1")

    def _mind_clock(self) -> None:
        """Notice when the clock is set back: what is due by the clock would wait for as long as that."""
        before, self._clock_lead = self._clock_lead, self._clock() - time.monotonic()
        if self._work is not None and before - self._clock_lead > _CLOCK_SET_SECONDS:
            log.warning("clock.set_back", extra={"seconds": round(before - self._clock_lead)})
            self._work.catch_up()

    def _fail(self, error: PollerError) -> None:
        """End the daemon: what is wrong concerns everything."""
        self._fatal = self._fatal or error
        self._wake.put(None)

    def _tick(self) -> None:
        self._ticked_at = time.monotonic()
        health = self.ready()
        self._notifier.tell(WATCHDOG="1", STATUS=("ready" if health.is_well else "; ".join(health.reasons))[:500])

    def alive(self) -> Health:
        """Whether the scheduler ticks."""
        silent = time.monotonic() - self._ticked_at
        if silent > _DEAD_AFTER_SECONDS:
            return Health(False, (f"the scheduler has not ticked for {silent:.0f} s",))
        return Health(True)

    def ready(self) -> Health:
        """Whether every contract was polled lately and every sink takes what we send."""
        work = self._work
        if work is None:
            return Health(False, ("starting",))
        reasons = work.troubles()
        return Health(not reasons, tuple(reasons))
