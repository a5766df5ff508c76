"""Log lines: one per event for any value of a field; no secret, no traceback, no failure."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from poller.config import Secret
from poller.system.log_stream import LogStream
from poller.system.telemetry import setup_logging

TOP = Path(__file__).resolve().parents[2]
CANARY = "canary-7f3a"
log = logging.getLogger("poller.test")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root, names = (
        logging.getLogger(),
        ("poller", "urllib3", "apscheduler", "requests", "botocore", "boto3", "s3transfer"),
    )
    handlers, level, raises = list(root.handlers), root.level, logging.raiseExceptions
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raises
    logging.captureWarnings(False)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def lines(format_: Any, **fields: object) -> str:
    """The output for one event."""
    stream = io.StringIO()
    setup_logging("info", format_, stream)
    log.info("window.collected", extra=fields)
    return stream.getvalue()


def test_text_is_one_readable_line() -> None:
    line = lines("text", contract="31960001", new=12, share=0.5, ok=True, none=None)
    time, rest = line.split(" ", 1)
    assert abs((datetime.fromisoformat(time) - datetime.now(UTC)).total_seconds()) < 60
    assert time.endswith("Z")
    assert rest == "INFO window.collected contract=31960001 new=12 share=0.5 ok=true none=null\n"


def test_json_has_time_level_message_and_then_the_fields() -> None:
    line = lines("json", contract="31960001", new=12, at=datetime(2026, 5, 1, tzinfo=UTC), path=Path("/x"))
    event = json.loads(line)
    assert list(event) == ["time", "level", "message", "contract", "new", "at", "path"]
    assert (event["level"], event["message"], event["new"]) == ("INFO", "window.collected", 12)
    assert (event["at"], event["path"]) == ("2026-05-01T00:00:00Z", "/x")
    assert event["time"].endswith("Z")


@pytest.mark.parametrize("format_", ["text", "json"])
@pytest.mark.parametrize(
    "value",
    ["a\nINFO forged", "a\r", "\x1b[2J", "\x9b2J", "a\0b", "\u2028",
     "\u202e", "\udc80", "\x7f", b"\xff\n", ["a\n"], {"k\n": "v\n"}],
)  # fmt: skip
def test_control_characters_cannot_forge_a_line(format_: str, value: object) -> None:
    line = lines(format_, why=value)
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    line.encode()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('a"b', '"a\\"b"'),
        ("ä", "ä"),
        ([1, "a"], '[1,"a"]'),
    ],
)
def test_text_quotes_where_a_reader_could_be_misled(value: object, shown: str) -> None:
    assert lines("text", why=value).endswith(f" why={shown}\n")


@pytest.mark.parametrize("format_", ["text", "json"])
def test_secrets_are_masked_at_any_depth(format_: str) -> None:
    secret = Secret(CANARY)
    nested: object = secret
    for _ in range(10):
        nested = [nested]
    line = lines(format_, a=secret, b=[secret], c={"k": (secret,)}, d=nested, e=ValueError(secret))
    assert CANARY not in line
    assert line.count("********") == 5


@pytest.mark.parametrize("wrap", [lambda inner: {"k": inner}, lambda inner: [inner]], ids=["tables", "lists"])
def test_what_is_nested_without_end_becomes_text(wrap: Any) -> None:
    for depth, kind in ((6, int), (7, str)):
        value: Any = 1
        for _ in range(depth):
            value = wrap(value)
        shown = json.loads(lines("json", why=value))["why"]
        for _ in range(6):
            (shown,) = shown.values() if isinstance(shown, dict) else shown
        assert type(shown) is kind


def test_json_stays_json_for_numbers_it_does_not_know() -> None:
    event = json.loads(lines("json", a=float("nan"), b=float("inf"), c=1 << 80), parse_constant=pytest.fail)
    assert (event["a"], event["b"], event["c"]) == ("nan", "inf", 1 << 80)


def test_fields_cannot_replace_time_and_level() -> None:
    event = json.loads(lines("json", time="never", level="FORGED"))
    assert event["level"] == "INFO"
    assert event["time"] != "never"


@pytest.mark.parametrize("format_", ["text", "json"])
def test_an_exception_is_a_field_and_its_trace_for_debugging_only(format_: Any) -> None:
    for level, has_trace in (("info", False), ("debug", True)):
        stream = io.StringIO()
        setup_logging(level, format_, stream)
        try:
            raise ValueError("bad\nthing at https://host/path?token=canary")
        except ValueError:
            log.exception("window.failed")
        text = stream.getvalue()
        assert text.count("\n") == 1
        assert "ValueError: bad\\nthing at https://host/path?..." in text
        assert ("Traceback" in text) is has_trace
        assert "canary" not in text


def test_a_terminal_shows_an_exception_in_one_line_at_any_level() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    setup_logging("debug", None, stream)
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("failed")
    assert stream.getvalue().endswith('failed error="ValueError: bad"\n')


@pytest.mark.parametrize(
    ("level", "heard"),
    [("DEBUG", ["debug", "info", "warning", "error"]), ("info", ["info", "warning", "error"]), ("Error", ["error"])],
)
def test_as_much_is_heard_of_us_as_the_level_says(level: str, heard: list[str]) -> None:
    stream = io.StringIO()
    setup_logging(level, "json", stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)(name)
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == heard


def test_other_libraries_are_heard_from_warning_on_without_queries() -> None:
    stream = io.StringIO()
    setup_logging("debug", "text", stream)
    for name in ("urllib3.connectionpool", "apscheduler.scheduler", "botocore.auth", "anything"):
        logging.getLogger(name).debug("GET /x?offset=0")
        logging.getLogger(name).info("GET /x?offset=0")
    assert stream.getvalue() == ""
    logging.getLogger("apscheduler.scheduler").warning(
        "Execution of job ... skipped: maximum number of running instances"
    )
    assert stream.getvalue() == ""
    logging.getLogger("urllib3.connectionpool").warning("Retrying after %r: %s", OSError("x"), "/x?dateStart=2026")
    assert stream.getvalue().endswith("WARNING Retrying after OSError('x'): /x?...\n")


def test_warnings_become_log_lines() -> None:
    stream = io.StringIO()
    logging.captureWarnings(False)  # a command that ran in this process may have turned it on
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        setup_logging("info", "json", stream)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert "DeprecationWarning: old" in json.loads(stream.getvalue())["message"]


@pytest.mark.parametrize("format_", ["text", "json"])
def test_arguments_that_do_not_fit_lose_no_line(format_: Any) -> None:
    stream = io.StringIO()
    setup_logging("info", format_, stream)
    logging.getLogger("other").warning("%d of %d", "x")  # noqa: PLE1206 - the mistake is the point
    assert "%d of %d" in stream.getvalue()


def test_setting_up_again_replaces_what_was_there() -> None:
    first, second = io.StringIO(), io.StringIO()
    setup_logging("info", "text", first)
    setup_logging("warning", "text", second)
    log.info("window.collected")
    log.warning("window.failed")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


def test_without_a_format_a_terminal_gets_text_and_all_else_json() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, start in ((Terminal(), "2"), (io.StringIO(), "{")):
        setup_logging("info", None, stream)
        log.info("window.collected")
        assert stream.getvalue().startswith(start)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="'loud' is not a log level"):
        setup_logging("loud", "text", io.StringIO())


def test_a_closed_stream_is_harmless() -> None:
    stream = io.StringIO()
    setup_logging("info", "text", stream)
    stream.close()
    log.info("window.collected")


def test_no_stderr_at_all_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    setup_logging("info")
    log.info("window.collected")


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_reader_of_stderr_that_went_away_changes_neither_work_nor_exit_code(format_: str) -> None:
    code = (
        "import logging, sys\n"
        "from poller.system.log_stream import LogStream\n"
        "from poller.system.telemetry import setup_logging\n"
        "sys.stderr = LogStream(2)\n"
        f"setup_logging('info', {format_!r})\n"
        "sys.stdin.readline()\n"
        "for _ in range(3): logging.getLogger('poller').info('window.collected')\n"
        "sys.stderr.finish()\n"
        "print('done', sys.stderr.dropped)\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], cwd=TOP, **pipes) as process:
        assert process.stderr
        process.stderr.close()
        process.stderr = None
        out, _ = process.communicate(b"go\n", timeout=30)
    assert (out, process.returncode) == (b"done 3\n", 0)


def test_text_logging_does_without_the_json_library() -> None:
    code = "import sys, poller.system.telemetry as t; t.setup_logging('info', 'text')\n"
    code += "print('pythonjsonlogger' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_notice_that_cannot_be_written_is_no_dropped_line_of_the_log() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = LogStream(writing)
    for count in range(1, 6):
        stream.write("a line\n")
        stream.finish()
        assert stream.dropped == count
    os.close(writing)
