"""SIGTERM and SIGINT for commands that take time: the work is asked to stop, never interrupted. `run` asks for itself.

An exception out of a signal handler may come between any two steps of anything: in a lock half taken, a socket not yet in the
hands of who closes it, a destructor, which swallows it. So the work has a thread of its own, and the main thread waits for its
end or for a signal.
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
    """Do the work, and give what it gives; SIGTERM and SIGINT set the event it is called with. For the main thread only.

    `grace_seconds` is how long it may take to stop. By default that is enough for all but an answer of somebody else, which is
    not worth waiting for.

    Raises: what the work raises; StoppedError when it was asked to stop and did not in time: then the caller ends the process,
    for the work still stands where it stood, and is to be left with it.
    """
    stop = threading.Event()
    outcome: Future[Result] = Future()
    context = click.get_current_context(silent=True)
    with _signals_in_a_pipe() as (reader, writer):

        def do() -> None:
            try:
                with context.scope(cleanup=False) if context else nullcontext():  # click keeps one per thread
                    outcome.set_result(work(stop))
            except BaseException as error:  # noqa: BLE001  # raised where the result is asked for
                outcome.set_exception(error)
            stop.set()  # for threads of its own that wait for that
            os.write(writer, _ENDED)

        threading.Thread(target=do, name="work", daemon=True).start()
        if os.read(reader, 1) != _ENDED:
            stop.set()
            end = _end_in(grace_seconds + _LAST_WORDS_SECONDS)
            wait([outcome], grace_seconds)
            if not outcome.done():
                raise StoppedError("asked to stop")
            if outcome.exception() is None:  # it was done just then, and there may be more to do
                end.cancel()
    return outcome.result()


def end_soon_after_a_signal(seconds: float) -> None:
    """Have the process end, with 0, so long after SIGTERM or SIGINT, whatever keeps it from ending by itself.

    What was committed stands, so nothing is lost by it. Python's own handlers wait for the main thread, which may hang.
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
    """End the process by then, whatever it is at: its last words may be for somebody who does not listen any more."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
    return timer


@contextmanager
def _signals_in_a_pipe() -> Iterator[tuple[int, int]]:
    """Have signals write their number into a pipe, and do nothing else. Gives its two ends.

    Neither a flag, which would have to be looked at, nor an Event: a signal may come while the main thread is inside of one.
    What our parent had us ignore (a shell's background job ignores Ctrl-C) stays ignored.
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
        # The pipe is left open: who did not stop in time may yet write that it ended, and not into another file.
