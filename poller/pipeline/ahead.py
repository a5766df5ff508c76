"""Reading the windows of a contract ahead of time, several at once, and handing them on in order.

Bounds how many windows are held in memory, over all contracts: each needs a slot from when its reading begins until it is
committed. One of them at a time may be heavier than its share (a second full of entries, an entry of many megabytes).
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
_Result = Reading | Split | None  # None: it is heavy, and its turn to be so has not come


def windows_held(concurrency: int) -> int:
    """How many windows are held in memory at once: some are read already, and wait for their turn to be committed."""
    return concurrency + concurrency // 2


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
        self._heavy = _Right()

    def turn(self) -> HeavyTurn:
        """What the windows of one `read` take before they hold more than their share."""
        return HeavyTurn(self._heavy)

    def read(
        self, reader: WindowReader, windows: Iterable[Window], turn: HeavyTurn | None = None
    ) -> Generator[tuple[Window, Reading], None, None]:
        """Read windows in order, the later ones ahead of time while there are slots; split ones are replaced by their parts.

        `turn` is the one that the reader takes (`WindowReader`'s `before_heavy`).
        """
        turn = turn or self.turn()
        queue = [_Ahead(window) for window in windows]
        has_changed = threading.Event()
        try:
            while queue:
                self._before_each()
                has_changed.clear()
                queue = [part for item in queue for part in item.parts()]
                self._take_slots(queue)
                turn.move_to(queue[0].window)
                if queue[0].is_put_off:
                    queue[0].future = None
                    turn.wait()
                if (
                    len(queue) == 1 and queue[0].future is None
                ):  # the usual poll: to hand it to another thread would cost more
                    queue[0].future = _done(reader, queue[0].window)
                self._begin(reader, queue, has_changed)
                if queue[0].is_put_off:
                    continue
                result = queue[0].result()
                if result is None:
                    with waiting_for_others():
                        has_changed.wait()
                elif isinstance(result, Reading):
                    try:
                        yield queue.pop(0).window, result
                    finally:
                        del result  # before others may hold as much
                        turn.move_to(None)
                        self._slots.release()
        finally:
            turn.end()
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

    def _begin(self, reader: WindowReader, queue: Sequence[_Ahead], has_changed: threading.Event) -> None:
        """Have those read that have a slot; the event is set when one of them has been."""
        for item in queue:
            if not item.has_slot or item.future is not None:
                continue
            try:
                item.future = self._readers.submit(helping(_read), reader, item.window)
            except RuntimeError as error:  # closed since we last looked
                raise StoppedError("asked to stop") from error
            item.future.add_done_callback(lambda _: has_changed.set())

    def close(self) -> None:
        """Begin nothing more, and drop what is being read."""
        self._readers.shutdown(wait=False, cancel_futures=True)


def _read(reader: WindowReader, window: Window) -> _Result:
    try:
        return reader.read(window)
    except _PutOffError:  # kept, it would keep what was read
        return None


def _done(reader: WindowReader, window: Window) -> Future[_Result]:
    """A window that the calling thread has read, or failed to."""
    future: Future[_Result] = Future()
    try:
        future.set_result(_read(reader, window))
    except Exception as error:  # noqa: BLE001 - `result` raises it
        future.set_exception(error)
    return future


class HeavyTurn:
    """The right to hold a heavy window: one has it at a time, over all contracts, and only the window that is next in its queue.

    Where it cannot be had, what was read of the window is dropped, and read again when it can: to wait with it would take the
    memory that this is to bound. A window that is read ahead never gets it: the one before it could wait for ever.
    """

    def __init__(self, right: _Right) -> None:
        self._right = right
        self._next: Window | None = None
        self._is_over = False

    def take(self, window: Window) -> None:
        """Have the right from now on.  Raises: `_PutOffError` if another has it, or others of its queue come first."""
        with self._right.changed:
            is_free = self._right.holder in (None, self)
            if not is_free or window != self._next or self._is_over:
                raise _PutOffError
            self._right.holder = self

    def wait(self) -> None:
        """Have the right from now on, however long that takes."""
        with self._right.changed, waiting_for_others():
            self._right.changed.wait_for(lambda: self._right.holder in (None, self))
            self._right.holder = self

    def move_to(self, window: Window | None) -> None:
        """This window is next: the one before it is committed, or was split. None: what comes next is not known yet."""
        with self._right.changed:
            if window != self._next:
                self._give_back()
            self._next = window

    def end(self) -> None:
        """Nothing of this queue is held any more."""
        with self._right.changed:
            self._is_over = True
            self._give_back()

    def _give_back(self) -> None:
        if self._right.holder is self:
            self._right.holder = None
            self._right.changed.notify_all()


class _Right:
    """Who holds the one heavy window."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.holder: HeavyTurn | None = None


class _PutOffError(Exception):
    """A window is heavy, and its turn to be so has not come."""


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
        self.future: Future[_Result] | None = None

    def parts(self) -> list[_Ahead]:
        """What to read in its place: itself, or the parts if it was found too large; the first of them has its slot."""
        if not self._is_read:
            return [self]
        result = self.future.result()  # type: ignore[union-attr]
        if not isinstance(result, Split):
            return [self]
        first, *others = result.windows
        return [_Ahead(first, has_slot=True), *(_Ahead(window) for window in others)]

    @property
    def is_put_off(self) -> bool:
        """Whether it was found to be heavy before its turn: it is read once more."""
        return self._is_read and self.future.result() is None  # type: ignore[union-attr]

    @property
    def _is_read(self) -> bool:
        future = self.future
        return future is not None and future.done() and not future.cancelled() and future.exception() is None

    def result(self) -> Reading | Split | None:
        """What came of it; None while it is being read.  Raises: what reading it raised; StoppedError when it was called off."""
        if self.future is None or not self.future.done():
            return None
        try:
            return self.future.result()
        except CancelledError as error:  # closed before it began
            raise StoppedError("asked to stop") from error
