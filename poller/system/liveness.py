"""Whether the workers of the daemon make progress: what each one does, and how long its next step may take.

A worker that is `busy` calls `moves` after every request, batch, commit and job. Before an intended wait, it says how long the
wait takes. While it waits for helpers, the helpers are checked. So a worker that is reported as stuck waits for something that
no timeout ends. Uses only the monotonic clock. One-off commands have no workers: there, all of this does nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

# How long a step without a timeout may take: a slow disk, another program that locks the state, a name server.
GRACE_SECONDS = 60.0

_P = ParamSpec("_P")
_T = TypeVar("_T")
_of_thread = threading.local()


class Worker:
    """One piece of work of one thread."""

    __slots__ = ("_moved_at", "_within_seconds", "is_waiting", "name", "until", "workers")

    def __init__(self, name: str, workers: Workers) -> None:
        self.name = name
        self.workers = workers
        self.is_waiting = False
        self.move(0.0)

    def move(self, within_seconds: float | None) -> None:
        """It made progress. Its next progress is due within this time plus the grace; None: within the last given time."""
        if within_seconds is not None:
            self._within_seconds = within_seconds
        self._moved_at = time.monotonic()
        self.until = self._moved_at + self._within_seconds + GRACE_SECONDS

    def silent_seconds(self, now: float) -> float:
        return now - self._moved_at


class Workers:
    """The workers of one schedule."""

    def __init__(self) -> None:
        self._busy: set[Worker] = set()
        self._lock = threading.Lock()
        self._helped_until = 0.0

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """The calling thread does this work until the block ends. `name` is shown to people."""
        before, worker = getattr(_of_thread, "worker", None), Worker(name, self)
        with self._lock:
            self._busy.add(worker)
        _of_thread.worker = worker
        try:
            yield
        finally:
            _of_thread.worker = before
            with self._lock:
                self._busy.discard(worker)
            moves()  # also for the outer work that this was a part of

    def stuck(self) -> dict[str, float]:
        """The workers without progress for longer than allowed, and for how many seconds."""
        now = time.monotonic()
        with self._lock:
            busy = list(self._busy)
            # A worker that waits may wait as long as any helper works: each helper is checked by itself.
            helped_until = self._helped_until = max([self._helped_until, *(worker.until for worker in busy)])
        return {
            worker.name: worker.silent_seconds(now)
            for worker in busy
            if now > (max(worker.until, helped_until) if worker.is_waiting else worker.until)
        }


def moves(within_seconds: float | None = 0.0) -> None:
    """The calling thread made progress. The next is due within this time plus the grace; None: within the last given time."""
    worker: Worker | None = getattr(_of_thread, "worker", None)
    if worker is not None:
        worker.move(within_seconds)


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """The calling thread waits for its `helping` threads until the block ends."""
    worker: Worker | None = getattr(_of_thread, "worker", None)
    if worker is None:
        yield
        return
    worker.is_waiting = True
    try:
        yield
    finally:
        worker.is_waiting = False
        worker.move(0.0)


def helping(work: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same work for another thread, where it is a worker of its own, named after the work of the calling thread."""
    asking: Worker | None = getattr(_of_thread, "worker", None)
    if asking is None:
        return work

    def do(*args: _P.args, **options: _P.kwargs) -> _T:
        with asking.workers.busy(f"{asking.name} (reading)"):
            return work(*args, **options)

    return do


class StopSignal(threading.Event):
    """The event that ends every wait. A worker that waits for it is not stuck until the timeout of the wait is over."""

    def wait(self, timeout: float | None = None) -> bool:
        moves(float("inf") if timeout is None else timeout)
        try:
            return super().wait(timeout)
        finally:
            moves()
