"""Rows on a terminal of any width, and in a pipe."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import msgspec
import pytest
from click import unstyle
from rich.cells import cell_len

from poller.cli.messages import echo_json
from poller.cli.rows import heading, line_for_pipe, line_for_terminal
from poller.core.events import Event
from poller.core.mapping.rows import Row, row_of

SERVER = "5f3c2b1a-1111-4111-8111-111111111111"
ROW = Row(
    "2026-05-01T07:42:20.530Z",
    "anna.becker@example.org",
    "31960001",
    "Provision",
    "vr.server.create",
    "server",
    SERVER,
    "DONE",
)
LONG = ROW._replace(user="ünal" * 30, what="a.b" * 30, resource_type="x" * 90, contract="9" * 19, result="FAILED 422")
EMPTY = Row(ROW.time, "", ROW.contract, "", "", "", "", "")


def test_a_row_of_80_columns_has_all_six_things() -> None:
    text = unstyle(line_for_terminal(ROW, 80))
    assert text == "07:42:20 anna.becker@e… 31960001 vr.server.create   server 5f3c2b1a   DONE"


def test_a_row_of_120_columns_has_them_whole() -> None:
    text = unstyle(line_for_terminal(ROW, 120))
    assert text.split() == ["07:42:20", ROW.user, ROW.contract, ROW.what, "server", "5f3c2b1a", "DONE"]
    assert SERVER in line_for_terminal(ROW, 150)


@pytest.mark.parametrize("width", [64, 80, 100, 120, 200])
@pytest.mark.parametrize("row", [ROW, LONG._replace(contract="31960001"), EMPTY])
def test_no_row_is_wider_than_the_terminal_and_columns_stand_below_their_names(row: Row, width: int) -> None:
    text, names = unstyle(line_for_terminal(row, width)), unstyle(heading(width))
    assert cell_len(text) <= width
    assert len(names) <= width
    place = names.index("contract")
    assert text[place:].startswith("31960001")
    assert text[names.index("result") :].strip() in {row.result, "-"}


def test_a_failed_row_is_red_and_none_is_yellow_which_a_light_terminal_hides() -> None:
    failed = line_for_terminal(LONG, 80)
    assert "\x1b[31m" in failed
    assert "\x1b[33m" not in failed + line_for_terminal(ROW, 80)


def test_a_pipe_gets_a_row_whole() -> None:
    line = line_for_pipe(ROW)
    assert line.split() == [ROW.time, ROW.user, ROW.contract, ROW.what, "server", SERVER, "DONE"]
    for text in (LONG.user, LONG.what, LONG.resource, LONG.contract, LONG.result):
        assert text in line_for_pipe(LONG)
    assert line_for_pipe(EMPTY).split() == [ROW.time, "-", ROW.contract, "-", "-", "-"]


def test_what_does_something_to_a_terminal_is_shown_as_an_escape() -> None:
    hostile = ROW._replace(user="a\x1b[2Jb\u202ec\n")
    for line in (line_for_terminal(hostile, 120), line_for_pipe(hostile)):
        assert unstyle(line).isprintable()
        assert "\\x1b[2Jb\\u202ec\\n" in line


class Told(msgspec.Struct):
    name: str
    at: datetime = datetime(2026, 5, 1, tzinfo=UTC)


LONE = "x\ud800"


@pytest.mark.parametrize("is_terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            row_of("31960001", Event(0, b"", rb'{"principal":{"identity":{"username":"x\ud800"}}}'))._asdict(),
            {"user": LONE},
        ),
        ({LONE: [LONE, ("ü", LONE)], "n": 1.5}, {LONE: [LONE, ["ü", LONE]], "n": 1.5}),
        ([Told(LONE)], [{"name": LONE, "at": "2026-05-01T00:00:00Z"}]),
        (LONE, LONE),
    ],
    ids=["row", "key", "struct", "text"],
)
def test_a_lone_surrogate_is_told_as_json_as_the_api_wrote_it(
    value: object,
    expected: object,
    is_terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    echo_json(value)
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert r"x\ud800" in line
    assert {**told, **expected} == told if isinstance(expected, dict) else told == expected
