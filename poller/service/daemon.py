"""`run`: polls every contract on a schedule and delivers to every sink until told to stop.

Owns the process: signals, the HTTP endpoint and the notices to systemd. `schedule` decides what runs when. On SIGTERM, collecting
stops, the batch in flight is finished, and the process ends within seconds. On SIGHUP, a new configuration replaces the old one,
if it is valid.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from types import FrameType

import msgspec

from poller.config import Config
from poller.config.tables import write_table
from poller.core.errors import EXIT_OK, ConfigError, PollerError, StateError, TransientError
from poller.pipeline.reloads import Reload, note_reload
from poller.pipeline.status import Seen, read_status, status_data
from poller.service.components import Components
from poller.service.health import Answer, Endpoint, Health, Routes
from poller.service.metrics import Metrics
from poller.service.notify import Notifier
from poller.service.rate import Rate
from poller.service.schedule import HEARTBEAT_SECONDS, Look, Schedule
from poller.service.web.html import HEADERS, render
from poller.service.web.view import View
from poller.store.journal import SIGNAL, Action
from poller.store.opening import stores_of
from poller.store.protocols import State
from poller.system.liveness import StopSignal, Workers, moves

log = logging.getLogger(__name__)

_WAKE_SECONDS = 1.0
_CLOCK_SET_SECONDS = 2.0
_LISTEN_AGAIN_SECONDS = 5.0
_OLD_STAYS = "the old configuration stays in force"
# After three missed heartbeats, the scheduler has stopped.
_DEAD_AFTER_SECONDS = 3 * HEARTBEAT_SECONDS + 5


class Daemon:
    """One running daemon. `build` makes the components of the current configuration. It raises ConfigError if that is invalid.

    Called with a configuration, it makes the components of that one, to return to it.
    """

    def __init__(
        self,
        state: State,
        build: Callable[[threading.Event, Callable[[str, float], None], Config | None], Components],
        notifier: Notifier,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._build = build
        self._notifier = notifier
        self._clock = clock
        self.metrics = Metrics(state.overview, clock, lambda: state.lost_leases, self._unavailable)
        # Not an Event: if a signal arrives while the main thread is inside an Event, the thread would wait for itself.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_stopping = False
        self._is_reloading = False
        self._fatal: PollerError | None = None
        self._ticked_at = time.monotonic()
        self._is_ticking = False
        self._clock_lead = self._clock() - time.monotonic()
        self._work: Schedule | None = None
        self._workers = Workers()
        self._told_stuck: frozenset[str] = frozenset()
        self.metrics.workers_stuck.set_function(lambda: len(self._stuck()))
        self._config = Config()
        self._rate = Rate()
        self._endpoint: Endpoint | None = None
        self._endpoint_failure = ""
        self._listen_again_at = math.inf

    def run(self) -> int:
        """Work until SIGTERM or SIGINT. Returns 0.

        Raises: ConfigError at the start; StateError when the state fails, StateUnavailableError only while it starts.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a background job of a shell ignores Ctrl-C
                signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)
        components = self._build_components()
        self._stores, self._state_table = stores_of(components.config), components.config.state
        self._config = components.config
        self._open_endpoint(components)
        try:
            self._state.journal.unseen()  # earlier actions were logged by their commands
            log.info(
                "daemon.started",
                extra={
                    "config": str(components.config.source or "environment"),
                    "sinks": [sink.name for sink in components.sinks],
                },
            )
            self._start(components)
            self._notifier.tell(READY="1", STATUS="collecting")
            with self._workers.busy("the main thread"):
                self._loop()
        finally:
            self._notifier.tell(STOPPING="1", STATUS="finishing what is in flight")
            self._stop_work()
            self._close_endpoint()
        if self._fatal is not None:
            raise self._fatal
        log.info("daemon.stopped")
        return EXIT_OK

    def _loop(self) -> None:
        """Handle signals and retries until the end."""
        while not self._is_stopping and self._fatal is None:
            # A signal just before the wait does not end it, so the wait has a time-out.
            with suppress(queue.Empty):
                self._wake.get(timeout=_WAKE_SECONDS)
            moves()
            if self._is_reloading:
                self._is_reloading = False
                self._reload()
            if self._endpoint is None and time.monotonic() >= self._listen_again_at:
                with suppress(ConfigError):  # it may be valid again later; at the start it would have ended the daemon
                    self._open_endpoint(self._components)
            self._mind_clock()

    @property
    def _components(self) -> Components:
        assert self._work is not None  # noqa: S101  # set before anything that asks for it runs
        return self._work.components

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True
        self._wake.put(None)

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        self._is_reloading = True
        self._wake.put(None)

    def _build_components(self, config: Config | None = None) -> Components:
        """The components of the current configuration, or of `config`."""
        return self._build(StopSignal(), self.metrics.observe_request, config)

    def _listen(self, components: Components) -> Endpoint | None:
        """The configured endpoint.  Raises: TransientError while its address is not free; ConfigError."""
        http = components.config.http
        if http.address is None:
            return None
        routes = Routes(self.metrics.render, self.alive, self.ready, self._page, self._status)
        return Endpoint(http.address, routes, hosts=http.hosts)

    def _page(self, is_whole: bool) -> Answer:
        """The page for a browser."""
        body = render(self._view(), is_whole=is_whole).encode("utf-8", "replace")
        return Answer(HTTPStatus.OK, "text/html; charset=utf-8", body, HEADERS)

    def _status(self) -> bytes:
        """The same for programs, as `status --json` prints it.  Raises: StateError."""
        return msgspec.json.encode(status_data(read_status(self._stores), self._config)) + b"\n"

    def _view(self) -> View:
        try:
            seen = read_status(self._stores)
        except StateError as error:  # the page says so
            seen = Seen([], [error])
        now = self._clock()
        reasons = [*self.alive().reasons, *self.ready().reasons]
        expiries = self._work.token_expiries if self._work is not None else {}
        return View(now, self._config, seen, reasons, expiries, self._rate.per_minute(now))

    def _open_endpoint(self, components: Components) -> None:
        """Listen now, or as soon as the address is free. Collecting does not wait for this.  Raises: ConfigError."""
        self._listen_again_at = time.monotonic() + _LISTEN_AGAIN_SECONDS
        try:
            self._endpoint = self._listen(components)
        except TransientError as error:
            if not self._endpoint_failure:
                extra = {"why": error.message, "hint": error.hint, "wait_seconds": _LISTEN_AGAIN_SECONDS}
                log.warning("endpoint.unavailable", extra=extra)
            self._endpoint_failure = str(error)
        else:
            if self._endpoint_failure:
                log.info("endpoint.opened")
            self._endpoint_failure = ""

    def _move_endpoint(self, components: Components, before: Components) -> None:
        """Listen at the address of the new configuration.  Raises: PollerError; then it listens at the old address."""
        if components.config.http == before.config.http:
            return
        try:
            endpoint = self._listen(components)
        except TransientError:
            if self._endpoint is None:
                raise
            # The old address may block the new one: "all addresses" of a port excludes each single address.
            self._close_endpoint()
            try:
                endpoint = self._listen(components)
            except PollerError:
                self._open_endpoint(before)
                raise
        self._close_endpoint()
        self._endpoint = endpoint
        self._endpoint_failure = ""

    def _close_endpoint(self) -> None:
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None

    def _start(self, components: Components) -> None:
        self._config = components.config
        self._state.adopt_config(components.config)
        self.metrics.keep(
            components.accounts.keys(), components.config.poll.wants, [sink.name for sink in components.config.sinks]
        )
        work = Schedule(self._state, components, self.metrics, self._tick, self._fail, self._clock)
        self._work = work
        try:
            work.start()
        except BaseException:  # also after an interrupt, no thread of the new schedule may remain
            work.stop()
            raise

    def _stop_work(self) -> None:
        if self._work is not None:
            self._work.stop()

    def _reload(self) -> None:
        self._notifier.tell(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))
        before = self._components
        try:
            components = self._build_components()
            self._move_endpoint(components, before)
        except PollerError as error:
            self._tell_reload_failed(str(error))
        else:
            self._stop_work()
            try:
                self._start(components)
            except Exception as error:  # noqa: BLE001  # after any error, the old configuration can run again
                self._tell_reload_failed(_words(error))
                self._go_back(before)
            else:
                self._record_reload()
                self._note_reload("")
                self._tell_of_restart(components)
                log.info("config.reloaded")
        self._notifier.tell(READY="1")
        # The old components have reference cycles, and keep their connections until they are collected as garbage.
        del before
        gc.collect()

    def _tell_reload_failed(self, why: str) -> None:
        log.error("config.reload_failed", extra={"why": why, "hint": _OLD_STAYS})
        self._note_reload(why)

    def _note_reload(self, failure: str) -> None:
        with suppress(StateError):  # what collects meets it, too, and knows what follows
            note_reload(self._state, Reload(os.getpid(), self._clock(), failure))

    def _record_reload(self) -> None:
        try:
            self._state.journal.add(Action(SIGNAL, "reload", clock=self._clock))
        except StateError as error:  # what collects meets it, too, and knows what follows
            log.warning("journal.unavailable", extra={"why": str(error)})

    def _go_back(self, before: Components) -> None:
        """Return to the old configuration. If this fails, too, the daemon ends, because the configuration is not the cause."""
        try:
            components = self._build_components(before.config)
            with suppress(PollerError):  # it is tried again
                self._move_endpoint(components, self._components)
            self._start(components)
        except PollerError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(PollerError(f"cannot go on: {_words(error)}"))

    def _tell_of_restart(self, components: Components) -> None:
        """A reload changes everything except the state, which is open and locked."""
        place = stores_of(components.config).place
        in_use, configured = write_table(self._state_table), write_table(components.config.state)
        changed = sorted(key for key in {*in_use, *configured} if in_use.get(key) != configured.get(key))
        hint = "restart to use it; until then the old one is used, and everything else of the new configuration"
        if place != self._stores.place:
            extra = {"key": "state_dir", "in_use": self._stores.place, "configured": place}
            log.warning("config.restart_needed", extra={**extra, "hint": hint})
        elif changed:
            keys = ", ".join(f"state.{key}" for key in changed)
            log.warning("config.restart_needed", extra={"key": keys, "hint": hint})

    def _mind_clock(self) -> None:
        """Detect that the clock was set back: jobs that are due by the clock would wait as long as that."""
        before, self._clock_lead = self._clock_lead, self._clock() - time.monotonic()
        if self._work is not None and before - self._clock_lead > _CLOCK_SET_SECONDS:
            log.warning("clock.set_back", extra={"seconds": round(before - self._clock_lead)})
            self._work.jobs.catch_up()

    def _fail(self, error: PollerError) -> None:
        """End the daemon after an error that concerns everything."""
        self._fatal = self._fatal or error
        self._wake.put(None)

    def _tick(self) -> None:
        """Report to systemd; to its watchdog only while everything makes progress."""
        self._is_ticking = True  # from here on it is like other workers, and may wait for the state
        try:
            self._look_and_tell()
        finally:
            self._ticked_at = time.monotonic()
            self._is_ticking = False

    def _look_and_tell(self) -> None:
        stuck = self._stuck()  # called once, so that log and watchdog agree
        self._tell_of_stuck(stuck)
        try:
            look = self._look()
        except PollerError as error:  # this does not stop the work
            look = Look([str(error)])
        reasons = [*self.alive().reasons, *look.not_ready]
        watchdog = {} if stuck else {"WATCHDOG": "1"}
        self._notifier.tell(**watchdog, STATUS=("; ".join(reasons) or "ready")[:500])
        with suppress(PollerError):  # what collects meets it, too
            if look.collected is not None:
                self._rate.observe(self._clock(), look.collected)
            for entry in self._state.journal.unseen():
                log.info("journal.recorded", extra=entry.fields)

    def _tell_of_stuck(self, stuck: Mapping[str, float]) -> None:
        for name in sorted(stuck.keys() - self._told_stuck):
            hint = "check the disk, pipe or name server that it waits for, or restart"
            log.error("worker.stuck", extra={"worker": name, "seconds": round(stuck[name]), "hint": hint})
        for name in sorted(self._told_stuck - stuck.keys()):
            log.info("worker.moved", extra={"worker": name})
        self._told_stuck = frozenset(stuck)

    def _stuck(self) -> dict[str, float]:
        return self._workers.stuck() | (self._work.jobs.workers.stuck() if self._work is not None else {})

    def _unavailable(self) -> list[str]:
        """Why some work cannot be done now because of the state."""
        return self._work.jobs.unavailable if self._work is not None else []

    def alive(self) -> Health:
        """Whether the scheduler runs, and every poll, sink and job makes progress."""
        reasons = [f"{name} has not moved for {seconds:.0f} s" for name, seconds in sorted(self._stuck().items())]
        silent = time.monotonic() - self._ticked_at
        if not self._is_ticking and silent > _DEAD_AFTER_SECONDS:
            reasons.append(f"the scheduler has not ticked for {silent:.0f} s")
        return Health(tuple(reasons))

    def ready(self) -> Health:
        """Whether every contract was polled recently and every sink accepts events."""
        look = self._look()
        return Health(tuple(look.not_ready), tuple(look.notes))

    def _look(self) -> Look:
        work = self._work
        if work is None:
            return Look(["starting"])
        look = work.look()
        return look._replace(not_ready=[*look.not_ready, *filter(None, [self._endpoint_failure])])


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, PollerError) else f"{type(error).__name__}: {error}"
