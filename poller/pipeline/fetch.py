"""One poll from start to end: collect every contract once, and deliver to one sink while that goes on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from poller.errors import PollerError
from poller.pipeline.collect import Collector, Poll
from poller.pipeline.deliver import Deliverer


class Fetched(NamedTuple):
    """How it went: a poll per contract, what failed besides, and the events delivered."""

    polls: list[Poll]
    failures: list[PollerError]
    delivered: int


class Wakeup:
    """Lets the delivering thread sleep until something was committed."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def wait(self, seconds: float) -> None:
        self._event.wait(seconds)
        self._event.clear()


def fetch(
    collector: Collector,
    deliverer: Deliverer,
    *,
    concurrency: int,
    since: int | None,
    only: Sequence[str],
    wakeup: Wakeup,
) -> Fetched:
    """Poll the contracts once and deliver all that waits, leftovers of earlier runs first.

    Raises: OutputError when the output is gone, StateError, StoppedError; what was not delivered stays in the outbox.
    """
    delivered = 0
    while (progress := deliverer.step()).settled:
        delivered += progress.settled
    contracts, failures = collector.discover(since=since, only=only)
    pool = ThreadPoolExecutor(max(1, min(concurrency, len(contracts))), thread_name_prefix="collect")
    futures = [pool.submit(collector.collect, contract) for contract in contracts]
    for future in futures:
        future.add_done_callback(lambda _: wakeup.set())
    try:
        while True:
            # Asked before the step: what is committed in between is delivered by it, or by a later one.
            is_collected = all(future.done() for future in futures)
            progress = deliverer.step()
            delivered += progress.settled
            if progress.wait_seconds is None:
                if is_collected:
                    break
                wakeup.wait(1.0)
            elif progress.wait_seconds:
                wakeup.wait(progress.wait_seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return Fetched([future.result() for future in futures], failures, delivered)
