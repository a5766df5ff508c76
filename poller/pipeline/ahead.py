"""Reading the windows of a contract ahead, several at once, and returning them in order.

Limits how many windows are in memory, over all contracts: a window needs a slot from the start of its reading until it is
committed. Only one window at a time may be heavier than its share (a second full of entries, an entry of many megabytes).
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
_Result = Reading | Split | None  # None: it is heavy, and must wait for its turn


def windows_held(concurrency: int) -> int:
    """How many windows are in memory at once. Some are read already, and wait to be committed."""
    return concurrency + concurrency // 2


class ReadAhead:
    """The slots, shared by all contracts, and the threads that read."""

    def __init__(
        self, slots: int, readers: int, before_each: Callable[[], None], hanging: Callable[[], int] = lambda: 0
    ) -> None:
        """At most `slots` windows are in memory, read by up to `readers` threads.

        `before_each` is called before a window is returned. It may wait, or raise to end the reading. `hanging` returns how many
        windows wait for a slow answer: these need no memory, so others may use their slots.
        """
        self._slots = _Slots(slots, hanging)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._before_each = before_each
        self._heavy = _Right()

    def turn(self) -> HeavyTurn:
        """The turn that the windows of one `read` take before they hold more than their share."""
        return HeavyTurn(self._heavy)

    def read(
        self, reader: WindowReader, windows: Iterable[Window], turn: HeavyTurn | None = None
    ) -> Generator[tuple[Window, Reading], None, None]:
        """Read windows in order, later ones ahead while there are slots. A split window is replaced by its parts.

        `turn` is taken by the reader (`before_heavy` of `WindowReader`).
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
                ):  # the usual poll: another thread would cost more than it saves
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
        """Wait for a slot for the first window, and give free slots to the next ones in order."""
        spare = 0
        for item in queue:
            if item.has_slot and item.future is None:  # a part of a split window, which may have to wait for its turn
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
        """Take the slot of our last window if needed: if only later windows had slots, nothing would move."""
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
        """Start reading the windows that have a slot. The event is set when one of them is read."""
        for item in queue:
            if not item.has_slot or item.future is not None:
                continue
            try:
                item.future = self._readers.submit(helping(_read), reader, item.window)
            except RuntimeError as error:  # closed since we last looked
                raise StoppedError("asked to stop") from error
            item.future.add_done_callback(lambda _: has_changed.set())

    def close(self) -> None:
        """Start nothing more, and drop the windows that are being read."""
        self._readers.shutdown(wait=False, cancel_futures=True)


def _read(reader: WindowReader, window: Window) -> _Result:
    try:
        return reader.read(window)
    except _PutOffError:  # keeping the error would keep the entries that were read
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
    """The right to hold a heavy window. Over all contracts, one window has it at a time, and only the next one of its queue.

    Without the right, the entries that were read are dropped and read again later, because keeping them would use the memory
    that this limits. A window that is read ahead never gets it, because the window before it might then wait without end.
    """

    def __init__(self, right: _Right) -> None:
        self._right = right
        self._next: Window | None = None
        self._is_over = False

    def take(self, window: Window) -> None:
        """Take the right.  Raises: `_PutOffError` if another window has it, or others of its queue come first."""
        with self._right.changed:
            is_free = self._right.holder in (None, self)
            if not is_free or window != self._next or self._is_over:
                raise _PutOffError
            self._right.holder = self

    def wait(self) -> None:
        """Wait for the right, and take it."""
        with self._right.changed, waiting_for_others():
            self._right.changed.wait_for(lambda: self._right.holder in (None, self))
            self._right.holder = self

    def move_to(self, window: Window | None) -> None:
        """This window is the next one, because the one before it is committed or split. None: not known yet."""
        with self._right.changed:
            if window != self._next:
                self._give_back()
            self._next = window

    def end(self) -> None:
        """This queue holds nothing any more."""
        with self._right.changed:
            self._is_over = True
            self._give_back()

    def _give_back(self) -> None:
        if self._right.holder is self:
            self._right.holder = None
            self._right.changed.notify_all()


class _Right:
    """The holder of the one heavy window."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.holder: HeavyTurn | None = None


class _PutOffError(Exception):
    """A window is heavy and must wait for its turn."""


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
                self._freed.wait(_LOOK_SECONDS)  # nothing signals that a request hangs
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
        """The windows to read for it: itself, or its parts if it was too large. The first one has its slot."""
        if not self._is_read:
            return [self]
        result = self.future.result()  # type: ignore[union-attr]
        if not isinstance(result, Split):
            return [self]
        first, *others = result.windows
        return [_Ahead(first, has_slot=True), *(_Ahead(window) for window in others)]

    @property
    def is_put_off(self) -> bool:
        """Whether it was heavy before its turn. Then it is read once more."""
        return self._is_read and self.future.result() is None  # type: ignore[union-attr]

    @property
    def _is_read(self) -> bool:
        future = self.future
        return future is not None and future.done() and not future.cancelled() and future.exception() is None

    def result(self) -> Reading | Split | None:
        """Its result; None while it is being read.  Raises: what the reading raised; StoppedError if it was cancelled."""
        if self.future is None or not self.future.done():
            return None
        try:
            return self.future.result()
        except CancelledError as error:  # closed before it began
            raise StoppedError("asked to stop") from error
