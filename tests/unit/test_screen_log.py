"""The log on a terminal: a line of at most 100 columns for each event, and an outage once."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import pytest

from poller.system import telemetry
from poller.system.screen_log import OncePerOutage, fitted, printable
from poller.system.telemetry import setup_logging
from tests.terminal import _ESCAPE
from tests.unit.test_logging import logging_as_it_was

log = logging.getLogger("poller.test")
__all__ = ["logging_as_it_was"]  # a fixture that each test here uses
REFUSED = "connection refused by loki:3100 (check the address, and that something listens there)"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(telemetry, "time", clock)
    return clock


@pytest.fixture
def screen(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Screen()
    setup_logging("info", None, screen)
    return screen


def lines(screen: Screen) -> list[str]:
    return _ESCAPE.sub("", screen.getvalue()).splitlines()


def test_of_what_a_person_did_the_line_says_what_before_who(screen: Screen) -> None:
    at = "2026-11-29T11:40:11Z"
    fields = {"id": 1, "at": at, "uid": 1002, "login": "anna", "action": "gaps retry", "subject": "gap 1"}
    logging.getLogger("poller.journal").info("journal.recorded", extra=fields)
    (line,) = lines(screen)
    assert "journal.recorded action=" in line
    assert "gaps retry" in line
    assert line.index("gap 1") < (line.index("uid") if "uid" in line else len(line))


def test_a_line_says_when_how_grave_what_whom_why_and_what_to_do(screen: Screen) -> None:
    log.warning("batch.sent_late", extra={"events": 3, "sink": "loki", "why": "HTTP 503", "hint": "wait"})
    (line,) = lines(screen)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line[:21])
    assert line[21:] == "WARNING batch.sent_late sink=loki HTTP 503 (wait) events=3"
    assert "\x1b[35mWARNING" in screen.getvalue()
    assert "\x1b[33m" not in screen.getvalue(), "yellow cannot be read on white"


@pytest.mark.parametrize("why", [REFUSED * 4, "x" * 500, "ü" * 99, "a\nb\x1b[2J " * 30])
def test_no_line_has_more_than_100_columns_nor_ends_within_a_word(screen: Screen, why: str) -> None:
    log.error("sink.parked", extra={"sink": "loki", "why": why, "hint": "replace it"})
    (line,) = lines(screen)
    assert len(line) <= 100
    assert line.isprintable()
    assert line.endswith("…")
    if " " in why and why.isprintable():
        assert f"{line.removesuffix('…').split('sink=loki ')[1]} " in f"{why} "


def test_no_colour_where_none_is_wanted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    setup_logging("info", None, screen)
    log.error("sink.parked")
    assert "\x1b" not in screen.getvalue()


def failing(**fields: Any) -> None:
    log.warning("batch.retry_scheduled", extra={"why": REFUSED, **fields})


def test_an_outage_is_told_once_and_again_after_it_was_over(screen: Screen, clock: Clock) -> None:
    for attempt in range(5):
        failing(sink="loki", attempt=attempt)
        clock.now += 60
    assert len(lines(screen)) == 1
    failing(sink="other")
    log.warning("batch.retry_scheduled", extra={"sink": "loki", "why": "HTTP 503"})
    assert len(lines(screen)) == 3, "another sink, and another reason"
    log.info("batch.sent", extra={"sink": "loki"})
    failing(sink="loki")
    assert len(lines(screen)) == 5
    failing(sink="other")
    assert len(lines(screen)) == 5
    clock.now += 3600
    failing(sink="other")
    assert len(lines(screen)) == 6, "after an hour it is another outage"


def test_an_api_that_is_down_is_told_once_for_all_contracts(screen: Screen) -> None:
    log.error("discovery.failed", extra={"account": "default", "why": REFUSED})
    for contract in ("1", "2"):
        log.warning("contract.failed", extra={"contract": contract, "why": f"contract {contract}: {REFUSED}"})
    assert len(lines(screen)) == 1
    log.info("window.collected", extra={"contract": "1"})
    log.warning("contract.failed", extra={"contract": "2", "why": REFUSED})
    assert len(lines(screen)) == 2, "the other one fails still"


def test_what_has_no_reason_is_always_told() -> None:
    once = OncePerOutage(lambda: 0.0)
    record = logging.makeLogRecord({"levelno": logging.WARNING, "msg": "contract.gone", "contract": "1"})
    assert once.filter(record)
    assert once.filter(record)


def test_a_pipe_and_the_format_text_get_every_event_whole(clock: Clock) -> None:
    for format_, stream in (("text", Screen()), (None, io.StringIO()), ("json", Screen())):
        setup_logging("info", format_, stream)  # type: ignore[arg-type]
        failing(sink="loki", hint="y" * 200)
        failing(sink="loki", hint="y" * 200)
        assert stream.getvalue().count("y" * 200) == 2


# A single line

EVENT = {"time": "2026-05-01T07:42:20.530Z", "level": "INFO", "message": "batch.sent"}
HEAD = "2026-05-01T07:42:20Z INFO    "


@pytest.mark.parametrize(
    ("fields", "room", "words"),
    [
        ({}, 10, "batch.sent"),
        ({"a": 1, "sink": "s", "contract": 7}, 40, "batch.sent sink=s contract=7 a=1"),
        ({"hint": "do", "why": "it", "subject": "x", "action": "y"}, 40, "batch.sent action=y subject=x it (do)"),
        ({"a": 1, "b": 22}, 19, "batch.sent a=1 b=22"),
        ({"a": 1, "b": 22}, 18, "batch.sent a=1 …"),
        ({"a": 1, "b": 22}, 16, "batch.sent a=1 …"),
        ({"a": 1, "b": 22}, 15, "batch.sent …"),
        ({"long": "x" * 30, "b": 2}, 18, "batch.sent b=2 …"),
        ({"b": 222}, 12, "batch.sent …"),
        ({"b": 222}, 11, "batch.sent"),
        ({"why": "it broke down"}, 24, "batch.sent it broke down"),
        ({"why": "it broke down"}, 23, "batch.sent it broke…"),
        ({"why": "it broke down", "a": 1}, 20, "batch.sent it broke…"),
        ({"why": "it broke down"}, 19, "batch.sent it…"),
        ({"why": "it broke down"}, 14, "batch.sent it…"),
        ({"why": "it broke down"}, 1, "batch.sen…"),
        ({"why": "a\nb", "hint": "c\td"}, 40, "batch.sent a\\nb (c\\td)"),
    ],
)
def test_what_has_room_is_shown_to_the_column(fields: dict[str, object], room: int, words: str) -> None:
    shown = fitted(EVENT | fields, str, len(HEAD) + room, is_coloured=False)
    assert shown == HEAD + words


@pytest.mark.parametrize(
    ("level", "colour"),
    [("DEBUG", "2"), ("INFO", "32"), ("WARNING", "35"), ("ERROR", "1;31"), ("CRITICAL", "1;31"), ("OTHER", "0")],
)
def test_a_level_has_its_colour_and_nothing_else_has_one(level: str, colour: str) -> None:
    shown = fitted(EVENT | {"level": level, "message": "a\x1bb"}, str, 60, is_coloured=True)
    assert shown == f"2026-05-01T07:42:20Z \x1b[{colour}m{level:<7}\x1b[0m a\\x1bb"


def test_what_moves_a_cursor_or_is_no_text_is_escaped() -> None:
    assert printable("plain ü") == "plain ü"
    assert printable("a\x1b[2J\u202eb\udc80ü") == "a\\x1b[2J\\u202eb\\udc80ü"


# Lines about an outage


def passes(once: OncePerOutage, message: str, level: int = logging.WARNING, **fields: object) -> bool:
    return bool(once.filter(logging.makeLogRecord({"levelno": level, "msg": message, **fields})))


def test_a_reason_is_the_same_whatever_its_numbers_and_whomever_it_concerns() -> None:
    once = OncePerOutage(lambda: 0.0)
    assert passes(once, "contract.failed", contract="1", why="contract 1: no answer in 30 s")
    assert not passes(once, "contract.failed", contract="2", why="contract 2: no answer in 5 s")
    assert not passes(once, "discovery.failed", level=logging.ERROR, account="x", why="account x: no answer in 5 s")
    assert passes(once, "contract.failed", contract="2", why="the contract 2: no answer in 5 s")
    assert passes(once, "sink.failed", sink="a", why="no answer in 30 s")


def test_a_repeat_is_told_again_after_three_minutes_of_silence() -> None:
    now = 0.0
    once = OncePerOutage(lambda: now)
    assert passes(once, "sink.failed", sink="a", why="no")
    now = 179.0
    assert not passes(once, "sink.failed", sink="a", why="no")
    now = 359.0
    assert passes(once, "sink.failed", sink="a", why="no")


@pytest.mark.parametrize(
    ("message", "fields", "is_over"),
    [
        ("batch.sent", {"sink": "a"}, True),
        ("window.collected", {"sink": "a"}, True),
        ("batch.sent", {"sink": "b"}, False),
        ("batch.sent", {"sink": "a", "contract": "7"}, False),
        ("audit.ended", {"sink": "a"}, False),
    ],
)
def test_only_a_success_of_the_same_ends_an_outage(message: str, fields: dict[str, object], is_over: bool) -> None:
    once = OncePerOutage(lambda: 0.0)
    assert passes(once, "sink.failed", sink="a", why="no")
    assert passes(once, "sink.failed", sink="a", why="another")
    for _ in range(2):
        assert passes(once, message, logging.INFO, why="no", **fields), "what is no failure is always told"
    assert passes(once, "sink.failed", sink="a", why="no") is is_over
    assert passes(once, "sink.failed", sink="a", why="another") is is_over
