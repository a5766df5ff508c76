"""Reading the windows of a contract ahead of time, several at once, and handing them on in order.

Bounds how many windows are held in memory, over all contracts: each needs a slot from when its reading begins until it is
committed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from poller.core.errors import StoppedError
from poller.core.reading import Reading, Split, WindowReader
from poller.core.windows import Window
from poller.system.liveness import helping, waiting_for_others

_LOOK_SECONDS = 0.5


class ReadAhead:
    """The slots, shared by all contracts, and the threads that read."""

    def __init__(
        self, slots: int, readers: int, before_each: Callable[[], None], hanging: Callable[[], int] = lambda: 0
    ) -> None:
        """`slots` windows are held in memory at most, and read by up to `readers` threads.

        `before_each` is called before a window is handed on, and may wait, or raise to end it. `hanging` is how many windows
        wait for an answer that does not come: they weigh nothing, so others may be held in their place.
        """
        self._slots = _Slots(slots, hanging)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._before_each = before_each

    def read(self, reader: WindowReader, windows: Iterable[Window]) -> Generator[tuple[Window, Reading], None, None]:
        """Read windows in order, the later ones ahead of time while there are slots; split ones are replaced by their parts."""
        queue = [_Ahead(window) for window in windows]
        has_changed = threading.Event()
        try:
            while queue:
                self._before_each()
                has_changed.clear()
                queue = [part for item in queue for part in item.parts()]
                self._take_slots(queue)
                if (
                    len(queue) == 1 and queue[0].future is None
                ):  # the usual poll: to hand it to another thread would cost more
                    queue[0].future = _done(reader, queue[0].window)
                for item in queue:
                    if item.has_slot and item.future is None:
                        item.future = self._begin(reader, item.window)
                        item.future.add_done_callback(lambda _: has_changed.set())
                result = queue[0].result()
                if result is None:
                    with waiting_for_others():
                        has_changed.wait()
                elif isinstance(result, Reading):
                    yield queue[0].window, result
                    queue.pop(0)
                    self._slots.release()
        finally:
            for item in queue:
                if item.has_slot:
                    if item.future is not None:
                        item.future.cancel()
                    self._slots.release()

    def _take_slots(self, queue: Sequence[_Ahead]) -> None:
        """Give the first window a slot, however long that takes, and those behind it, in order, the ones nobody else holds."""
        spare = 0
        for item in queue:
            if item.has_slot and item.future is None:  # a part of one that was split: it may not be its turn yet
                item.has_slot = False
                spare += 1
        for item in queue:
            if item.has_slot:
                continue
            if spare:
                spare -= 1
            elif item is queue[0]:
                self._take_first_slot(queue)
            elif not self._slots.acquire(blocking=False):
                break
            item.has_slot = True

    def _take_first_slot(self, queue: Sequence[_Ahead]) -> None:
        """From the last of our own, if need be: were all slots held by windows that are not next, nothing would move."""
        if self._slots.acquire(blocking=False):
            return
        donor = next((item for item in reversed(queue) if item.has_slot), None)
        if donor is None:
            with waiting_for_others():
                self._slots.acquire()
            return
        if donor.future is not None:
            donor.future.cancel()
        donor.has_slot, donor.future = False, None

    def _begin(self, reader: WindowReader, window: Window) -> Future[Reading | Split]:
        try:
            return self._readers.submit(helping(reader.read), window)
        except RuntimeError as error:  # closed since we last looked
            raise StoppedError("asked to stop") from error

    def close(self) -> None:
        """Begin nothing more; what is being read is let go of."""
        self._readers.shutdown(wait=False, cancel_futures=True)


def _done(reader: WindowReader, window: Window) -> Future[Reading | Split]:
    """A window that the calling thread has read, or failed to."""
    future: Future[Reading | Split] = Future()
    try:
        future.set_result(reader.read(window))
    except Exception as error:  # noqa: BLE001 - `result` raises it
        future.set_exception(error)
    return future


class _Slots:
    """A semaphore with more room while requests hang."""

    def __init__(self, count: int, hanging: Callable[[], int]) -> None:
        self._count = count
        self._hanging = hanging
        self._held = 0
        self._freed = threading.Condition()

    def acquire(self, *, blocking: bool = True) -> bool:
        with self._freed:
            while self._held >= self._count and self._held >= self._count + self._hanging():
                if not blocking:
                    return False
                self._freed.wait(_LOOK_SECONDS)  # that a request hangs is told by nobody
            self._held += 1
            return True

    def release(self) -> None:
        with self._freed:
            self._held -= 1
            self._freed.notify()


class _Ahead:
    """A window in the queue of `ReadAhead.read`, perhaps being read."""

    __slots__ = ("future", "has_slot", "window")

    def __init__(self, window: Window, *, has_slot: bool = False) -> None:
        self.window = window
        self.has_slot = has_slot
        self.future: Future[Reading | Split] | None = None

    def parts(self) -> list[_Ahead]:
        """What to read in its place: itself, or the parts if it was found too large; the first of them has its slot."""
        if self.future is None or not self.future.done() or self.future.cancelled() or self.future.exception():
            return [self]
        result = self.future.result()
        if isinstance(result, Reading):
            return [self]
        first, *others = result.windows
        return [_Ahead(first, has_slot=True), *(_Ahead(window) for window in others)]

    def result(self) -> Reading | Split | None:
        """What came of it; None while it is being read.  Raises: what reading it raised; StoppedError when it was called off."""
        if self.future is None or not self.future.done():
            return None
        try:
            return self.future.result()
        except CancelledError as error:  # closed before it began
            raise StoppedError("asked to stop") from error
