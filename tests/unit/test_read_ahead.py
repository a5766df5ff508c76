"""Reading ahead: however windows split, and whatever waits for what, each contract gets all of its own, in order."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

import pytest

from poller.core.errors import StoppedError, TransientError
from poller.core.reading import Reading, Split, WindowReader
from poller.core.windows import Window, split
from poller.pipeline.ahead import ReadAhead

SECONDS = 4096
PATIENCE_SECONDS = 30


class Reader:
    """Answers after a moment of chance; windows longer than `fits` are to be split. Fails at the second `fails_at`."""

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
    """Notes which threads read; a window of more than a second is to be split."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def read(self, window: Window) -> Reading | Split:
        self.threads.append(threading.current_thread())
        return Split(split(window, 2)) if window.seconds > 1 else Reading([], 1)


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
    # Every slot was given back.
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
    with pytest.raises(StoppedError):
        list(readings)
