"""Work that signals ask to stop. They never interrupt it."""

from __future__ import annotations

import os
import signal
import threading
import time

import click
import pytest

from poller.cli import stopping
from poller.cli.stopping import end_soon_after_a_signal, until_stopped
from poller.core.errors import StoppedError, TransientError
from tests.support import wait_until

NUMBERS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes with which the code under test would have ended this process."""
    codes: list[int] = []
    monkeypatch.setattr(stopping, "_LAST_WORDS_SECONDS", 0.01)
    monkeypatch.setattr(stopping.os, "_exit", codes.append)
    return codes


def test_it_gives_what_the_work_gives() -> None:
    assert until_stopped(lambda stop: not stop.is_set()) is True


def test_it_raises_what_the_work_raises() -> None:
    def work(stop: threading.Event) -> None:
        raise TransientError("no answer")

    with pytest.raises(TransientError, match="no answer"):
        until_stopped(work)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_asks_the_work_to_stop_and_what_it_says_then_counts(number: signal.Signals) -> None:
    def work(stop: threading.Event) -> str:
        os.kill(os.getpid(), number)
        assert stop.wait(10)
        return "stopped in order"

    assert until_stopped(work) == "stopped in order"
    assert not [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, threading.Timer) and not thread.finished.is_set()
    ]


def test_work_that_does_not_stop_is_left_where_it_stands_and_the_process_ends_soon(exits: list[int]) -> None:
    answered = threading.Event()
    ended = threading.Event()

    def work(stop: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        answered.wait(30)
        ended.set()

    began = time.monotonic()
    with pytest.raises(StoppedError):
        until_stopped(work)
    assert time.monotonic() - began < 10
    wait_until(lambda: exits == [130], what="the process would have been ended")
    answered.set()
    assert ended.wait(10)


def test_the_handlers_are_afterwards_as_they_were() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    until_stopped(lambda stop: None)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_work_prints_as_its_command_would() -> None:
    with click.Context(click.Command("fetch"), color=True):
        assert until_stopped(lambda stop: click.get_current_context().color) is True


@pytest.mark.parametrize("number", NUMBERS)
def test_a_process_that_hangs_is_ended_soon_after_a_signal_and_by_no_other(
    exits: list[int], number: signal.Signals
) -> None:
    handlers = {other: signal.signal(other, lambda *_: None) for other in (*NUMBERS, signal.SIGHUP)}
    try:
        end_soon_after_a_signal(0.1)
        signal.raise_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert exits == []
        signal.raise_signal(number)
        wait_until(lambda: exits == [0], what="it ends")
    finally:
        for other, handler in handlers.items():
            signal.signal(other, handler)
