"""Logging: one line per event on stderr, as text for people or as JSON for machines.

A message is a constant such as `window.collected`; all that varies is a field, given as `extra={...}`.
An event is always one line: control characters in fields are escaped. Secrets are masked. Other libraries
log only from WARNING on, without the queries of their URLs. Logging never makes the program fail or wait (see
`log_stream`), and prints no traceback: an exception becomes the field `error`, and at DEBUG also `traceback`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

from poller.config.secrets import MASK, Secret
from poller.system.log_stream import LogStream
from poller.system.screen_log import MAX_COLUMNS, OncePerOutage, fitted, printable
from poller.system.terminals import allows_colours

LogFormat = Literal["text", "json"]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

# Below WARNING, these libraries log addresses, bodies or credentials, so their level is fixed.
_TAMED = dict.fromkeys(("urllib3", "requests", "botocore", "boto3", "s3transfer"), logging.WARNING)
# It warns of each run that it skips, in unclear words. The schedule logs that itself.
_TAMED["apscheduler"] = logging.ERROR
_NO_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_MAX_DEPTH = 6


def setup_logging(level: str, format: LogFormat | None = None, stream: TextIO | None = None) -> None:  # noqa: A002 - reads best at the call
    """Send the log of this process to `stream` (stderr). Without a format: short text on a terminal, otherwise JSON.

    Raises: ValueError if the level is not in LEVELS.
    """
    if level.lower() not in LEVELS:
        raise ValueError(f"{level!r} is not a log level: {', '.join(LEVELS)}")
    # stderr may be closed or missing (a service manager, a GUI).
    target = stream or sys.stderr
    handler: logging.Handler = logging.StreamHandler(target) if target is not None else logging.NullHandler()
    is_screen = format is None and target is not None and target.isatty()
    formatter = _ScreenFormatter(target) if is_screen else _TextFormatter() if format == "text" else _json_formatter()
    handler.setFormatter(formatter)
    if is_screen:
        handler.addFilter(OncePerOutage(time.monotonic))
    if isinstance(target, LogStream):
        target.notice = lambda lines: _dropped(formatter, lines)
    root = logging.getLogger()
    for old in [old for old in root.handlers if getattr(old, "is_pollers", False)]:
        root.removeHandler(old)
    handler.is_pollers = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("poller").setLevel(LEVELS[level.lower()])
    for name, least in _TAMED.items():
        logging.getLogger(name).setLevel(least)
    logging.captureWarnings(True)
    logging.raiseExceptions = False


def dropped_lines() -> int:
    """How many lines of the log were dropped so far, because nobody read them."""
    return sys.stderr.dropped if isinstance(sys.stderr, LogStream) else 0


def _dropped(formatter: logging.Formatter, lines: int) -> str:
    fields = {"lines": lines, "hint": "check the reader of stderr: it was too slow, or hung"}
    record = {"name": "poller.system.log_stream", "levelname": "WARNING", "levelno": logging.WARNING}
    return formatter.format(logging.makeLogRecord({**record, "msg": "log.lines_dropped", **fields})) + "\n"


class _TextFormatter(logging.Formatter):
    """`2026-05-01T07:42:20.530Z INFO window.collected contract=31960001 new=12`."""

    def format(self, record: logging.LogRecord) -> str:
        event = _event(record)
        head = f"{event.pop('time')} {event.pop('level')} {printable(str(event.pop('message')))}"
        return " ".join([head, *(f"{printable(key)}={_text(value)}" for key, value in event.items())])


class _ScreenFormatter(logging.Formatter):
    """The same in one line that fits the terminal. The rest is left out."""

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream
        self._is_coloured = allows_colours()

    def format(self, record: logging.LogRecord) -> str:
        event = {printable(key): value for key, value in _event(record).items()}
        event.pop("traceback", None)
        return fitted(event, _text, min(MAX_COLUMNS, self._columns()), is_coloured=self._is_coloured)

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns if self._stream else MAX_COLUMNS
        except (OSError, ValueError):
            return MAX_COLUMNS


def _json_formatter() -> logging.Formatter:
    # Imported here, because text mode and interactive use do not need it.
    from pythonjsonlogger.json import JsonFormatter

    class EventFormatter(JsonFormatter):
        def format(self, record: logging.LogRecord) -> str:
            return self.jsonify_log_record(_event(record))

    # ASCII only: JSON then escapes every control character, and lone surrogates.
    return EventFormatter(json_ensure_ascii=True)


def _event(record: logging.LogRecord) -> dict[str, object]:
    """The line as data, in the order in which it is shown; values are plain."""
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    event: dict[str, object] = {
        "time": at.replace("+00:00", "Z"),
        "level": record.levelname,
        "message": _message(record),
    }
    for name, value in vars(record).items():
        if name not in _NO_FIELDS and name not in event:
            event[name] = _plain(value)
    if record.exc_info and record.exc_info[1] is not None:
        error = record.exc_info[1]
        event.setdefault("error", _without_queries(f"{type(error).__name__}: {error}"))
        if logging.getLogger("poller").isEnabledFor(logging.DEBUG):
            trace = logging.Formatter().formatException(record.exc_info)
            event.setdefault("traceback", _without_queries(trace))
    return event


def _message(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except (TypeError, ValueError):
        # The arguments do not fit the message: log the message without them.
        message = str(record.msg)
    return message if record.name.partition(".")[0] == "poller" else _without_queries(message)


def _without_queries(text: str) -> str:
    return re.sub(r"\?[^\s'\")>]+", "?...", text)


def _plain(value: object, depth: int = 0) -> object:
    """The value in JSON's types, with secrets masked at any depth."""
    if isinstance(value, Secret):
        return MASK
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {str(key): _plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_plain(item, depth + 1) for item in value]
    return str(value)


def _text(value: object) -> str:
    """One value of a text line: bare if that is unambiguous, otherwise quoted as in JSON."""
    if isinstance(value, str):
        if value and value.isprintable() and not re.search(r"[\s\"'=\\]", value):
            return value
        return printable(json.dumps(value, ensure_ascii=False))
    return printable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
