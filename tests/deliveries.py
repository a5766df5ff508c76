"""Delivery with a clock that jumps over each wait, so that hours take no time."""

from __future__ import annotations

from poller.pipeline.deliver import Deliverer


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def deliver(deliverer: Deliverer, clock: Clock, seconds: float) -> bool:
    """Deliver for `seconds` of the clock.  Returns: whether nothing waits any more."""
    until = clock.now + seconds
    for _ in range(5000):
        wait = deliverer.step().wait_seconds
        if wait is None or clock.now + wait > until:
            clock.now = until
            return wait is None
        clock.now += wait
    raise AssertionError("it does not come to rest")
