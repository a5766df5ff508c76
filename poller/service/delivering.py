"""Delivering: a thread and a loop for each sink, so that its speed and failures do not affect others."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from poller.core.errors import PollerError
from poller.pipeline.archive import deliverer_of
from poller.pipeline.deliver import Deliverer
from poller.pipeline.loop import Loop
from poller.service.components import Components
from poller.service.jobs import Jobs
from poller.service.metrics import Metrics
from poller.sinks.base import Sink
from poller.store.protocols import State

log = logging.getLogger(__name__)


class Delivering:
    """The sinks of one configuration on this machine."""

    def __init__(
        self,
        state: State,
        components: Components,
        jobs: Jobs,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._config = components.config
        self._sinks = components.sinks
        self._redactions = components.redactions
        self._jobs = jobs
        self._stop = components.stop
        self._metrics = metrics
        self._clock = clock
        self._deliverers: list[Deliverer] = []
        self._loops: list[Loop] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Take the place of each sink, and deliver."""
        self._warn_of_unknown_sinks()
        here = {sink.name for sink in self._sinks}
        for settings in self._config.sinks:
            if settings.name not in here:  # another machine writes it: events collected from now on wait for that one
                self._state.outbox.register(settings.name, settings.type)
        for sink in self._sinks:
            deliverer = self._deliverer(sink)
            self._deliverers.append(deliverer)
            self._loops.append(self._loop(sink, deliverer))
        for sink, loop in zip(self._sinks, self._loops, strict=True):
            thread = threading.Thread(target=self._work, args=(sink, loop), name=f"sink-{sink.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wake(self) -> None:
        """Something was collected."""
        for loop in self._loops:
            loop.wake()

    def end(self, deadline: float) -> None:
        """After `stop` is set, wait until the deadline (`time.monotonic()`) for the batches in flight."""
        for loop in self._loops:
            loop.end()
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def abandon(self) -> list[str]:
        """Release the places of the sinks for a successor.  Returns: the names of the threads that have not ended."""
        for deliverer in self._deliverers:
            deliverer.abandon()
        return [thread.name for thread in self._threads if thread.is_alive()]

    def _deliverer(self, sink: Sink) -> Deliverer:
        failed = self._metrics.batches_failed
        return deliverer_of(
            self._state,
            sink,
            redact=self._redactions.get(sink.name),
            clock=self._clock,
            on_failed=lambda kind: failed.labels(sink.name, kind).inc(),
        )

    def _loop(self, sink: Sink, deliverer: Deliverer) -> Loop:
        name = f"sink {sink.name}"
        return Loop(
            deliverer,
            self._stop,
            is_alone=len(self._sinks) == 1,
            endured_seconds=math.inf,
            on_unavailable=lambda error: self._jobs.note_unavailable(name, error, sink=sink.name),
            on_available=lambda: self._jobs.note_available(name),
        )

    def _work(self, sink: Sink, loop: Loop) -> None:
        with self._jobs.workers.busy(f"sink {sink.name}"):
            try:
                loop.run()
            except PollerError as error:
                self._jobs.fail(error)

    def _warn_of_unknown_sinks(self) -> None:
        configured = {sink.name for sink in [*self._sinks, *self._config.sinks]}
        for sink in self._state.outbox.sinks():
            if sink.name not in configured:
                log.warning(
                    "sink.unknown",
                    extra={
                        "sink": sink.name,
                        "hint": f"it left the config and holds the outbox: `ionos-poller sinks forget {sink.name}`",
                    },
                )
