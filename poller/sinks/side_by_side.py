"""Parallel work for one batch, and a pace for each of its streams. Knows nothing of requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from poller.core.errors import StoppedError
from poller.system.liveness import helping, waiting_for_others

Item = TypeVar("Item")


def side_by_side(work: Callable[[Item], bool], items: Iterable[Item], workers: int) -> None:
    """Do `work` for each item, up to `workers` at once, and return when all work has ended.

    After `work` returned False or failed, no further item is started.
    Raises: the first exception of `work`.
    """
    waiting = list(reversed(list(items)))
    failures: list[BaseException] = []

    def go_on() -> None:
        try:
            while waiting and work(waiting.pop()):
                pass
        except IndexError:  # another thread took the last item
            return
        except BaseException as error:  # noqa: BLE001 - raised again where the caller sees it
            failures.append(error)
        waiting.clear()

    # Daemon threads, so that a server that does not answer does not delay the end of the program.
    others = [threading.Thread(target=helping(go_on), daemon=True) for _ in range(min(workers, len(waiting)) - 1)]
    for thread in others:
        thread.start()
    go_on()
    with waiting_for_others():
        for thread in others:
            thread.join()
    if failures:
        raise failures[0]


class Pace:
    """Keeps each stream below a rate. A stream is used by one thread at a time."""

    def __init__(self, bytes_per_second: float, stop: threading.Event) -> None:
        self._bytes_per_second = bytes_per_second
        self._stop = stop
        self._due: dict[Hashable, float] = {}  # when the stream may continue, by the monotonic clock

    def wait(self, stream: Hashable, size_bytes: int) -> None:
        """Wait until the stream may take this number of bytes.  Raises: StoppedError when asked to stop while waiting."""
        due = self._due.get(stream, 0.0)
        while (seconds := due - time.monotonic()) > 0:
            if self._stop.wait(seconds):
                raise StoppedError("asked to stop")
        self._due[stream] = time.monotonic() + size_bytes / self._bytes_per_second

    def forget(self) -> None:
        """Forget the streams that need not wait. Call it while no stream is used."""
        now = time.monotonic()
        self._due = {stream: due for stream, due in self._due.items() if due > now}
