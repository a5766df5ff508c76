"""stderr with a reader that hangs, is slow or goes away: nothing waits for it, and lost lines are counted and reported."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from poller.system import log_stream
from poller.system.log_stream import LogStream
from poller.system.telemetry import dropped_lines, setup_logging

DROPPED = "log lines were dropped: they were not read in time"


class Pipe:
    """A pipe that is read only when a test reads it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fill(self) -> None:
        """Fill the pipe, so that the next write waits for a reader."""
        os.set_blocking(self.writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writer, b"\n" * 4096)
        os.set_blocking(self.writer, True)

    def read(self, size: int = 65_536) -> bytes:
        return os.read(self.reader, size)

    def lines(self, last: bytes) -> list[str]:
        """Read up to a line that ends with `last`."""
        data = b""
        while not data.endswith(last + b"\n"):
            data += self.read()
        return [line for line in data.decode().splitlines() if line]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reader)
    os.close(pipe.writer)


def write_all(stream: LogStream, numbers: range) -> None:
    for number in numbers:
        stream.write(f"line {number:05}\n")


def test_what_is_read_comes_whole_and_in_order_from_many_threads(pipe: Pipe) -> None:
    stream = LogStream(pipe.writer)
    threads = [threading.Thread(target=write_all, args=(stream, range(n, n + 1000))) for n in range(0, 8000, 1000)]
    for thread in threads:
        thread.start()
    data = b""
    while data.count(b"\n") < 8000:
        data += pipe.read()
    for thread in threads:
        thread.join()
    got = [int(line[5:]) for line in data.decode().splitlines()]
    assert sorted(got) == list(range(8000))
    for start in range(0, 8000, 1000):
        mine = [number for number in got if start <= number < start + 1000]
        assert mine == sorted(mine)
    assert stream.dropped == 0


def test_a_reader_that_hangs_keeps_nobody_waiting_and_hears_later_what_it_missed(pipe: Pipe) -> None:
    pipe.fill()
    stream = LogStream(pipe.writer, max_bytes=11_000)
    write_all(stream, range(5000))
    assert stream.dropped == 4000
    got = pipe.lines(b"were not read in time")
    assert got == [*(f"line {number:05}" for number in range(1000)), f"4000 {DROPPED}"]
    stream.write("again\n")
    assert pipe.lines(b"again") == ["again"]


def test_the_notice_stands_where_the_lines_are_missing(pipe: Pipe) -> None:
    pipe.fill()
    stream = LogStream(pipe.writer, max_bytes=1100)
    write_all(stream, range(150))
    is_out, may_go_on = threading.Event(), threading.Event()
    write = os.write

    def slow_write(descriptor: int, data: bytes) -> int:
        if bytes(data).endswith(b"00080\n"):
            is_out.set()
            assert may_go_on.wait(10)
        return write(descriptor, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", slow_write)
        first = pipe.lines(b"00079")
        assert is_out.wait(10)
        write_all(stream, range(150, 152))
        may_go_on.set()
        got = [*first, *pipe.lines(b"00151")]
    assert got == [*(f"line {number:05}" for number in range(100)), f"50 {DROPPED}", "line 00150", "line 00151"]


def test_a_reader_that_went_away_is_counted_and_one_that_comes_back_is_told(pipe: Pipe) -> None:
    other = Pipe()
    stream = LogStream(other.writer)
    os.close(other.reader)
    write_all(stream, range(3))
    stream.finish()
    assert stream.dropped == 3
    os.dup2(pipe.writer, other.writer)
    stream.write("again\n")
    assert pipe.lines(b"again") == [f"3 {DROPPED}", "again"]
    os.close(other.writer)


def test_at_the_end_a_reader_gets_all_and_one_that_hangs_no_more_than_a_moment(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_stream, "IDLE_SECONDS", 0.3)
    pipe.fill()
    stream = LogStream(pipe.writer)
    write_all(stream, range(20_000))
    started = time.monotonic()
    stream.finish()
    assert 0.3 <= time.monotonic() - started < 5
    slow = threading.Thread(target=lambda: pipe.lines(b"19999"))
    slow.start()
    stream.finish()
    assert not stream._waiting
    slow.join()


def test_a_reader_in_drips_does_not_hold_up_the_end_for_ever(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "FLUSH_SECONDS", 0.5)
    pipe.fill()
    stream = LogStream(pipe.writer, max_bytes=1_000_000)
    write_all(stream, range(50_000))
    is_over = threading.Event()

    def drip() -> None:
        while not is_over.wait(0.01):
            pipe.read(4096)

    dripping = threading.Thread(target=drip)
    dripping.start()
    started = time.monotonic()
    stream.finish()
    seconds = time.monotonic() - started
    is_over.set()
    dripping.join()
    assert stream._waiting
    assert seconds < 5
    pipe.lines(b"49999")  # otherwise the stream's thread writes to a descriptor that is used again soon


@pytest.mark.parametrize("format_", ["text", "json"])
def test_dropped_lines_are_told_in_the_form_of_the_log(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    pipe.fill()
    stream = LogStream(pipe.writer, max_bytes=10_000)
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        setup_logging("info", format_)  # type: ignore[arg-type]
        log = logging.getLogger("poller.test")
        for number in range(5000):
            log.info("window.collected", extra={"number": number})
        last = b'or hung"}' if format_ == "json" else b'or hung"'
        line = pipe.lines(last)[-1]
    finally:
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
        logging.captureWarnings(False)
    assert "log.lines_dropped" in line
    assert "WARNING" in line
    if format_ == "json":
        told = json.loads(line)
        assert list(told) == ["time", "level", "message", "lines", "hint"]
        assert (told["level"], told["message"]) == ("WARNING", "log.lines_dropped")
        assert told["lines"] == dropped_lines() > 0
    else:
        assert f"lines={dropped_lines()}" in line


def test_nothing_at_all_is_not_queued(pipe: Pipe) -> None:
    stream = LogStream(pipe.writer)
    assert stream.write("") == 0
    stream.finish()
    assert stream.fileno() == pipe.writer
    assert not stream.isatty()
    assert stream.writable()
    assert stream.write("ä\udc80\n") == 3
    assert "log" in [thread.name for thread in threading.enumerate()]
    assert pipe.lines(b"dc80") == ["ä\\udc80"]
