"""Lines and bars on a terminal, where stdout and stderr are one, and lines have an end."""

from __future__ import annotations

import io
import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from poller.cli import archive, setup_pipeline, state
from poller.cli.messages import wrapped
from poller.cli.progress import BarProgress
from poller.core.windows import Window
from poller.system.log_stream import LogStream


@contextmanager
def terminal() -> Iterator[Callable[[], bytes]]:
    """A terminal as our stderr, with a queue before it that is slow. What it gives is what the terminal shows so far.

    In the test, not before it: pytest puts its own stderr back where a test begins.
    """
    master, slave = pty.openpty()

    def read() -> bytes:
        os.write(slave, b"\n")
        shown = b""
        while not shown.endswith(b"\r\n") or b"the result" not in shown:
            shown += os.read(master, 65536)
        return shown.rstrip()

    stream = LogStream(slave)
    is_out = stream._is_out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_is_out", lambda data: (time.sleep(0.005), is_out(data))[1])
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        yield read
        stream.finish()
    os.close(slave)
    os.close(master)


@pytest.mark.parametrize(
    "bars",
    [
        archive._progress,
        lambda: setup_pipeline._progress("waiting"),
        lambda: BarProgress(["31960001"], Window(0, 60), lambda: pytest.fail("nothing is shown")),
    ],
    ids=["verify", "setup", "backfill"],
)
def test_what_is_printed_after_bars_stands_below_them(
    bars: Callable[[], AbstractContextManager[object]],
) -> None:
    with terminal() as read:
        with bars():
            pass
        os.write(sys.stderr.fileno(), b"the result")  # as stdout, without the queue
        sys.stderr.finish()  # type: ignore[attr-defined]
        assert read().endswith(b"the result")


def test_what_is_printed_after_a_copy_stands_below_its_count() -> None:
    with terminal() as read:
        state._tell(2, 2)
        os.write(sys.stderr.fileno(), b"the result")
        sys.stderr.finish()  # type: ignore[attr-defined]
        assert read().endswith(b"2 of 2 rows\r\nthe result")


def test_a_line_is_cut_between_words_where_a_terminal_shows_it_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line = "3  31960001  2026-05-01T07:42:20Z/2026-05-01T07:42:21Z  1 s  tried once"
    assert wrapped(line, io.StringIO()) == wrapped(line, None) == line
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        assert wrapped(line, stream).splitlines() == [
            "3  31960001",
            "  2026-05-01T07:42:20Z/2026-05-01T07:42:21Z",
            "  1 s  tried once",
        ]
    os.close(master)
