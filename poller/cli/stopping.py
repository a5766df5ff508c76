"""SIGTERM and SIGINT for commands that take time: the work is asked to stop, never interrupted. `run` handles them itself.

A signal handler may raise between any two steps of the main thread: while a lock is half taken, before a socket has an owner
that closes it, or in a destructor, which swallows the exception. So the work runs in a thread of its own, and the main thread
only waits for the end of the work or for a signal.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import click

from poller.core.errors import EXIT_INTERRUPTED, EXIT_OK, StoppedError

Result = TypeVar("Result")

_LAST_WORDS_SECONDS = 2.0
_ENDED = b"\0"


def until_stopped(work: Callable[[threading.Event], Result], *, grace_seconds: float = 1.0) -> Result:
    """Do the work and return its result. SIGTERM and SIGINT set the event that it is called with. For the main thread only.

    `grace_seconds`: how long the work may take to stop. The default is enough for everything except a pending answer of a
    server, which is not worth waiting for.

    Raises: what the work raises; StoppedError if it was asked to stop and did not stop in time. The caller must then end the
    process, because the work's thread is still running.
    """
    stop = threading.Event()
    outcome: Future[Result] = Future()
    context = click.get_current_context(silent=True)
    with _signals_in_a_pipe() as (reader, writer):

        def do() -> None:
            try:
                with context.scope(cleanup=False) if context else nullcontext():  # click has one context per thread
                    outcome.set_result(work(stop))
            except BaseException as error:  # noqa: BLE001  # raised again when the result is read
                outcome.set_exception(error)
            stop.set()  # for threads of the work that wait for it
            os.write(writer, _ENDED)

        threading.Thread(target=do, name="work", daemon=True).start()
        if os.read(reader, 1) != _ENDED:
            stop.set()
            end = _end_in(grace_seconds + _LAST_WORDS_SECONDS)
            wait([outcome], grace_seconds)
            if not outcome.done():
                raise StoppedError("asked to stop")
            if outcome.exception() is None:  # it ended in time, and the caller may go on
                end.cancel()
    return outcome.result()


def end_soon_after_a_signal(seconds: float) -> None:
    """End the process with 0 this many seconds after SIGTERM or SIGINT, even if something keeps it from ending by itself.

    Nothing is lost, because what was committed is kept. Python's own handlers need the main thread, which may hang.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(reader, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
            pass
        _end_in(seconds, EXIT_OK)

    threading.Thread(target=watch, name="end", daemon=True).start()


def _end_in(seconds: float, code: int = EXIT_INTERRUPTED) -> threading.Timer:
    """End the process after this time, even while it prints: the reader of its output may have stopped reading."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer


@contextmanager
def _signals_in_a_pipe() -> Iterator[tuple[int, int]]:
    """Let signals write their number into a pipe, and do nothing else. Yields the two ends of the pipe.

    A flag would have to be polled, and an Event can deadlock: a signal may come while the main thread holds its lock.
    Signals that the parent process told us to ignore (a shell's background job ignores Ctrl-C) stay ignored.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    others = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handled = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, lambda *_: None) for number in handled}
    try:
        yield reader, writer
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(others)
        # The pipe stays open: work that ends too late still writes to it, and must not write into another file.
