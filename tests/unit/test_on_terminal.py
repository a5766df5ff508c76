"""Lines and progress bars on a terminal, which shows stdout and stderr together."""

from __future__ import annotations

import io
import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import click
import pytest

from poller.checks import fail
from poller.cli import archive, check, setup_pipeline, state
from poller.cli.messages import wants_color, wrapped
from poller.cli.progress import BarProgress
from poller.core.windows import Window
from poller.system.log_stream import LogStream
from poller.system.terminals import allows_colours, is_capable


@contextmanager
def terminal() -> Iterator[Callable[[], bytes]]:
    """Make a terminal our stderr, behind a slow queue. The yielded function returns what the terminal shows so far.

    It is used inside the test, because pytest restores its own stderr when a test begins.
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


@pytest.mark.parametrize("name_length", [1, 18, 19, 40, 73, 74])
def test_a_finding_of_check_begins_on_a_line_of_its_own_where_its_name_is_longer_than_the_column(
    name_length: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, url = "n" * name_length, "http://127.0.0.1:9/a/path/that/has/its/length"
    finding = fail(name, f"connection refused by {url}, which is no address that answers", "check the address")
    shown = {}
    for is_terminal in (True, False):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        check.show([finding])
        shown[is_terminal] = click.unstyle(capsys.readouterr().out).splitlines()
    first, *rest, total = shown[True]
    assert (first == f"fail  {name}") == (name_length > 18)
    assert total == "0 ok, 0 warn, 1 fail"
    assert all(line.startswith(" " * 26) and len(line) <= 80 for line in rest)
    assert len(first) <= 80
    assert url in " ".join([first, *rest]), "no word is broken"
    assert len(shown[False]) == 2, "one line in a pipe"
    assert " ".join(" ".join([first, *rest]).split()) == " ".join(shown[False][0].split())


@pytest.mark.parametrize(
    ("env", "is_capable_there", "has_colours"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "vt100"}, True, True),
        ({}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "Dumb"}, False, False),
        ({"TERM": "unknown"}, False, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
    ],
)
def test_what_a_terminal_can_show_is_judged_in_one_place(
    env: dict[str, str], is_capable_there: bool, has_colours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    screen = io.StringIO()
    assert not is_capable(screen)
    assert not is_capable(None)
    monkeypatch.setattr(screen, "isatty", lambda: True)
    assert is_capable(screen) == is_capable_there
    assert allows_colours() == has_colours
    assert (wants_color() is None) == has_colours
