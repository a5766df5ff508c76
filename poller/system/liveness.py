"""Whether the workers of the daemon move: what each one does, and how long its next step may take.

A worker that is `busy` calls `moves` after every request, batch, commit and job. Before a wait that is meant, it says how long
that takes; while it waits for helpers, the helpers are looked at. So a worker that is called stuck waits for something that no
time-out ends. Uses the monotonic clock only. One-off commands have no workers; there, all of this does nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

# What no time-out of ours bounds may take this long: a slow disk, another program that locks the state, a name server.
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
        """Its next sign comes within this, and the grace; None: within what was said last."""
        if within_seconds is not None:
            self._within_seconds = within_seconds
        self._moved_at = time.monotonic()
        self.until = self._moved_at + self._within_seconds + GRACE_SECONDS

    def silent_seconds(self, now: float) -> float:
        return now - self._moved_at


class Workers:
    """Those who work for one schedule."""

    def __init__(self) -> None:
        self._busy: set[Worker] = set()
        self._lock = threading.Lock()
        self._helped_until = 0.0

    @contextmanager
    def busy(self, name: str) -> Iterator[None]:
        """The calling thread works at this, named as a person is to read it, until the block ends."""
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
            moves()  # the work that this was a part of

    def stuck(self) -> dict[str, float]:
        """The workers that have not moved for longer than they may, and for how many seconds."""
        now = time.monotonic()
        with self._lock:
            busy = list(self._busy)
            # Whose helpers work may wait: each of those is looked at by itself.
            helped_until = self._helped_until = max([self._helped_until, *(worker.until for worker in busy)])
        return {
            worker.name: worker.silent_seconds(now)
            for worker in busy
            if now > (max(worker.until, helped_until) if worker.is_waiting else worker.until)
        }


def moves(within_seconds: float | None = 0.0) -> None:
    """The calling thread moves; its next sign comes within this, and the grace. None: within what it said last."""
    worker: Worker | None = getattr(_of_thread, "worker", None)
    if worker is not None:
        worker.move(within_seconds)


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """The calling thread waits for what `helping` threads do for it."""
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
    """The same work, for another thread: a worker of its own there, in the name of what the calling thread is busy with."""
    asking: Worker | None = getattr(_of_thread, "worker", None)
    if asking is None:
        return work

    def do(*args: _P.args, **options: _P.kwargs) -> _T:
        with asking.workers.busy(f"{asking.name} (reading)"):
            return work(*args, **options)

    return do


class StopSignal(threading.Event):
    """The event that ends every wait. Who waits for it is not stuck, for as long as the wait was meant to take."""

    def wait(self, timeout: float | None = None) -> bool:
        moves(float("inf") if timeout is None else timeout)
        try:
            return super().wait(timeout)
        finally:
            moves()
