"""Reading ahead: each contract gets all of its windows in order, for any splits and any waits."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, cast

import pytest

from poller.core.errors import StoppedError, TransientError
from poller.core.events import Event
from poller.core.reading import Reading, Split, WindowReader
from poller.core.windows import Window, split
from poller.pipeline.ahead import ReadAhead

SECONDS = 4096
PATIENCE_SECONDS = 30


class Reader:
    """Answers after a random time. Windows longer than `fits` must be split. Fails at the second `fails_at`."""

    def __init__(self, seed: int, fits: int, fails_at: int = -1) -> None:
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._fits = fits
        self._fails_at = fails_at
        self.running = self.most_running = 0

    def read(self, window: Window) -> Reading | Split:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            moment = self._dice.random() * 0.004
            is_split = window.seconds > self._fits * self._dice.choice((1, 2))
            parts = self._dice.randint(2, 5)
        time.sleep(moment)
        with self._lock:
            self.running -= 1
        if window.start <= self._fails_at < window.end:
            raise TransientError("as asked for")
        return Split(split(window, parts)) if is_split else Reading([], window.seconds, True)


class Where:
    """Records which threads read. A window of more than a second must be split."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def read(self, window: Window) -> Reading | Split:
        self.threads.append(threading.current_thread())
        return Split(split(window, 2)) if window.seconds > 1 else Reading([], 1)


class Token:
    """A part of a reading, whose deletion a test can see."""


def windows(count: int) -> Iterator[Window]:
    for start in range(0, SECONDS, SECONDS // count):
        yield Window(start, start + SECONDS // count)


def reader_of(**options: Any) -> WindowReader:
    return cast(WindowReader, Reader(**options))


def test_a_single_window_is_read_by_the_thread_that_wants_it_and_several_are_read_by_others() -> None:
    ahead, where = ReadAhead(2, 2, lambda: None), Where()
    assert [window for window, _ in ahead.read(cast(WindowReader, where), [Window(0, 1)])] == [Window(0, 1)]
    assert where.threads == [threading.current_thread()]
    assert len(list(ahead.read(cast(WindowReader, where), [Window(0, 2)]))) == 2
    assert threading.current_thread() not in where.threads[2:-1]
    ahead.close()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("slots", "readers", "contracts"), [(1, 1, 3), (2, 2, 5), (6, 4, 3), (12, 8, 3), (12, 8, 1)])
def test_every_contract_gets_all_of_its_windows_in_order(slots: int, readers: int, contracts: int, seed: int) -> None:
    ahead = ReadAhead(slots, readers, lambda: None)
    sources = [Reader(seed * 100 + number, fits=64) for number in range(contracts)]
    got: list[list[Window]] = [[] for _ in sources]

    def collect(number: int) -> None:
        with closing(ahead.read(cast(WindowReader, sources[number]), windows(8))) as readings:
            got[number].extend(window for window, _ in readings)

    threads = [threading.Thread(target=collect, args=(number,), daemon=True) for number in range(contracts)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        assert not thread.is_alive(), "nothing moves any more"
    ahead.close()
    for mine in got:
        edges = [mine[0].start, *(window.end for window in mine)]
        assert [window.start for window in mine] == edges[:-1]
        assert (edges[0], edges[-1]) == (0, SECONDS)
    # Every slot was released.
    assert all(ahead._slots.acquire(blocking=False) for _ in range(slots))
    assert not ahead._slots.acquire(blocking=False)


def test_windows_are_read_at_the_same_time_and_no_more_than_there_are_readers() -> None:
    ahead = ReadAhead(12, 8, lambda: None)
    reader = Reader(1, fits=64)
    assert sum(reading.fetched for _, reading in ahead.read(cast(WindowReader, reader), windows(64))) == SECONDS
    ahead.close()
    assert 4 <= reader.most_running <= 8


def test_what_comes_before_a_failure_is_handed_on_and_the_slots_are_given_back() -> None:
    ahead = ReadAhead(4, 4, lambda: None)
    got: list[Window] = []
    with (
        pytest.raises(TransientError, match="as asked for"),
        closing(ahead.read(reader_of(seed=1, fits=64, fails_at=2048), windows(64))) as readings,
    ):
        got.extend(window for window, _ in readings)
    assert got[-1].end == 2048
    # Another contract can read with all of them.
    assert len(list(ahead.read(reader_of(seed=2, fits=SECONDS), windows(8)))) == 8
    ahead.close()


def test_closing_ends_a_reading_that_waits() -> None:
    ahead = ReadAhead(2, 2, lambda: None)
    readings = ahead.read(reader_of(seed=1, fits=64), windows(8))
    next(readings)
    ahead.close()
    with pytest.raises(StoppedError, match=r"^asked to stop$"):
        list(readings)
    with pytest.raises(StoppedError, match=r"^asked to stop$"):
        list(ahead.read(reader_of(seed=1, fits=64), windows(8)))


class Held:
    """Reads a few windows at once, and the others when a test allows it."""

    def __init__(self, at_once: int = 0) -> None:
        self.may_read = threading.Event()
        self.is_reading = threading.Semaphore(0)
        self.threads: list[threading.Thread] = []
        self._at_once = at_once

    def read(self, window: Window) -> Reading:
        self.threads.append(threading.current_thread())
        self.is_reading.release()
        assert len(self.threads) <= self._at_once or self.may_read.wait(PATIENCE_SECONDS)
        return Reading([], 1)


def test_what_waits_to_be_read_when_it_is_closed_is_not_read() -> None:
    ahead, held = ReadAhead(4, 1, lambda: None), Held(1)
    readings = ahead.read(cast(WindowReader, held), windows(8))
    next(readings)
    for _ in range(2):
        assert held.is_reading.acquire(timeout=PATIENCE_SECONDS)
    ahead.close()
    held.may_read.set()
    with pytest.raises(StoppedError, match=r"^asked to stop$"):
        list(readings)
    for reader in held.threads:
        reader.join(PATIENCE_SECONDS)
    assert [thread.name.partition("_")[0] for thread in held.threads] == ["read"] * 2


def test_windows_that_hang_leave_their_slots_to_others() -> None:
    hanging = 0
    ahead, held = ReadAhead(2, 8, lambda: None, lambda: hanging), Held()
    readings = ahead.read(cast(WindowReader, held), windows(8))
    thread = threading.Thread(target=lambda: list(readings), daemon=True)
    thread.start()
    for _ in range(2):
        assert held.is_reading.acquire(timeout=PATIENCE_SECONDS)
    assert not ahead._slots.acquire(blocking=False)
    hanging = 2
    assert ahead._slots.acquire(blocking=False)
    assert ahead._slots.acquire(blocking=False)
    assert not ahead._slots.acquire(blocking=False)
    for _ in range(2):
        ahead._slots.release()
    held.may_read.set()
    thread.join(PATIENCE_SECONDS)
    assert len(held.threads) == 8
    ahead.close()


class Heavy:
    """Every window is heavy: only one may be held at a time."""

    def __init__(self, before_heavy: Callable[[Window], None], fails_at: int = -1) -> None:
        self._before_heavy = before_heavy
        self._fails_at = fails_at

    def read(self, window: Window) -> Reading | Split:
        self._before_heavy(window)
        if window.start == self._fails_at:
            raise TransientError("as asked for")
        return Reading([], window.seconds)


def test_one_heavy_window_is_held_at_a_time_and_each_contract_gets_all_of_its_own_in_order() -> None:
    ahead = ReadAhead(6, 4, lambda: None)
    got: list[list[Window]] = [[] for _ in range(5)]
    held = most_held = 0
    lock = threading.Lock()

    def collect(number: int) -> None:
        nonlocal held, most_held
        turn = ahead.turn()
        reader = cast(WindowReader, Heavy(turn.take))
        for window, _ in ahead.read(reader, windows(8), turn):
            with lock:
                held += 1
                most_held = max(most_held, held)
            time.sleep(0)  # another thread may run
            got[number].append(window)
            with lock:
                held -= 1

    threads = [threading.Thread(target=collect, args=(number,), daemon=True) for number in range(len(got))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive(), "nothing moves any more"
    ahead.close()
    assert got == [list(windows(8))] * len(got)
    assert most_held == 1


def test_a_contract_that_fails_or_is_left_gives_the_turn_to_hold_a_heavy_window_back() -> None:
    ahead = ReadAhead(2, 2, lambda: None)
    turn = ahead.turn()
    with (
        pytest.raises(TransientError),
        closing(ahead.read(cast(WindowReader, Heavy(turn.take, 0)), windows(8), turn)) as it,
    ):
        next(it)
    turn = ahead.turn()
    with closing(ahead.read(cast(WindowReader, Heavy(turn.take)), windows(8), turn)) as readings:
        next(readings)
    turn = ahead.turn()
    assert len(list(ahead.read(cast(WindowReader, Heavy(turn.take)), windows(8), turn))) == 8
    ahead.close()


def test_nothing_that_was_handed_on_is_kept_while_the_next_window_is_waited_for() -> None:
    """Otherwise it is in memory at the same time as the window that another contract holds."""
    ahead = ReadAhead(1, 1, lambda: None)
    kept: list[weakref.ref[Token]] = []

    class Giving:
        def read(self, window: Window) -> Reading | Split:
            assert all(token() is None for token in kept)
            token = Token()
            kept.append(weakref.ref(token))
            return Reading(cast(list[Event], [token]), 1)

    for _, reading in ahead.read(cast(WindowReader, Giving()), windows(4)):
        del reading
    assert len(kept) == 4
    ahead.close()
