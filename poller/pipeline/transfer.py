"""One run of collecting and delivering in parallel until all is done, for `fetch`, `backfill` and `demo`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from poller.core.errors import StoppedError
from poller.core.turns import MOST_OPEN
from poller.pipeline.collect import Collector, PollResult, WindowCommitted
from poller.pipeline.deliver import Deliverer
from poller.pipeline.loop import Loop

Result = TypeVar("Result")


class Transfer:
    """One run from the API to the sinks. Events left over from an earlier run are delivered first."""

    def __init__(self, deliverers: Sequence[Deliverer], stop: threading.Event) -> None:
        """The caller sets `stop` at the end: threads may wait for it until then."""
        self._deliverers = deliverers
        self._stop = stop
        self._delivered: list[int] = []
        self._loops = [
            Loop(deliverer, stop, is_alone=len(deliverers) == 1, on_settled=self._delivered.append)
            for deliverer in deliverers
        ]
        self._failure: Exception | None = None
        self._finished = threading.Semaphore(0)

    @property
    def delivered(self) -> int:
        """Events settled so far, over all sinks."""
        return sum(self._delivered)

    def after_window(self, done: WindowCommitted) -> None:
        """Call this with each committed window (`on_window` of `Collector`)."""
        if done.kept:
            self._wake()

    def run(
        self,
        collector: Collector,
        contracts: Callable[[], Sequence[str]],
        concurrency: int,
        tick: Callable[[], None] = lambda: None,
        tick_seconds: float = 60.0,
    ) -> list[PollResult]:
        """Collect the contracts, several at once, and return when all is delivered. Returns one result each, in their order.

        `contracts` finds them after delivering has begun. `tick` is called about every `tick_seconds` during the run.
        Raises: OutputError when the output is gone, AuthError when a sink refuses our credentials, StateError, StoppedError;
        what was not delivered stays in the outbox.
        """
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        for index, loop in enumerate(self._loops):
            threading.Thread(target=self._deliver, args=(loop,), name=f"deliver-{index}", daemon=True).start()
        pool: ThreadPoolExecutor | None = None
        try:
            found = contracts()
            pool = ThreadPoolExecutor(max(1, min(concurrency * MOST_OPEN, len(found))), thread_name_prefix="collect")
            polls = [pool.submit(self._guarded, partial(collector.collect, contract)) for contract in found]
            for poll in polls:
                poll.add_done_callback(lambda _: self._finished.release())
            self._await(len(polls), tick, tick_seconds)
            for loop in self._loops:
                loop.end()
            self._await(len(self._deliverers), tick, tick_seconds)
            for deliverer in self._deliverers:
                deliverer.abandon()  # release its place for the next run
            return [poll.result() for poll in polls]
        except StoppedError:
            if self._failure is not None:
                raise self._failure from None
            raise
        finally:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def _watch(self) -> None:
        """When `stop` is set, end all waits."""
        self._stop.wait()
        self._wake()
        self._finished.release()

    def _await(self, count: int, tick: Callable[[], None], tick_seconds: float) -> None:
        """Wait until this number of pieces of work has finished.

        Raises: the first failure, or StoppedError, without waiting for the others.
        """
        while count:
            if self._finished.acquire(timeout=tick_seconds):
                count -= 1
            else:
                tick()
            if self._stop.is_set():
                raise self._failure or StoppedError("asked to stop")

    def _guarded(self, work: Callable[[], Result]) -> Result:
        """Do a piece of work. If it fails, stop all others and remember the first failure."""
        try:
            return work()
        except Exception as error:  # of any kind: otherwise all others would wait for this piece of work
            if self._failure is None and not (isinstance(error, StoppedError) and self._stop.is_set()):
                self._failure = error
            self._stop.set()
            raise

    def _deliver(self, loop: Loop) -> None:
        with suppress(Exception):  # `_guarded` has remembered it
            self._guarded(loop.run)
        self._finished.release()

    def _wake(self) -> None:
        for loop in self._loops:
            loop.wake()
