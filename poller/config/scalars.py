"""From one raw TOML value to the value of its field, by the field's kind.

Pure; every function takes any value and returns what the model wants or raises `ValueError` for the user.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, Never

import msgspec

from poller.config import checks
from poller.config.checks import BadValueError
from poller.config.environment import EnvText
from poller.config.kinds import Field
from poller.config.state_url import check_state_url
from poller.config.values import format_duration, format_size, parse_duration, parse_size, show

_MAX_SECONDS = 10**9
_INTEGER = r"-?[0-9]{1,18}"


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word the user may have meant, or all of them where they are few."""
    from difflib import get_close_matches

    words = list(known)
    if close := get_close_matches(word.lower(), words, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(words)}" if len(words) <= 12 else ""


def decode_json(value: object) -> object:
    """The structure that an environment variable holds as JSON; anything else as it is."""
    if not isinstance(value, EnvText):
        return value
    try:
        return msgspec.json.decode(value.encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise BadValueError("is not valid JSON") from None


def read_scalar(field: Field, raw: object) -> Any:
    """The value of a field of one plain value. Raises: ValueError."""
    if reader := _READERS.get(field.kind):
        return reader(field, raw)
    check = {
        "url": checks.check_url,
        "listen": checks.check_listen,
        "archive": checks.check_archive,
        "index": checks.check_index,
        "state_url": check_state_url,
        "identifier": checks.check_identifier,
    }.get(field.kind, checks.check_name)
    return check(expect_text(raw))


def _duration(field: Field, raw: object) -> float:
    if not isinstance(raw, str):
        example = f'"{raw}s"' if isinstance(raw, int) and 0 < raw < _MAX_SECONDS else '"60s" or "1h30m"'
        raise BadValueError(f"{show(raw)} is not a duration", f"quote it with its unit, such as {example}")
    if re.fullmatch(r"[0-9]{1,9}", raw):
        raise BadValueError(f"{show(raw)} is not a duration", f'it has no unit: "{int(raw)}s", "5m" or "1h30m"')
    seconds = _in_bounds(field, parse_duration(raw), format_duration)
    if field.type is int and not seconds.is_integer():
        raise BadValueError(f"{show(raw)} is not in whole seconds")
    return int(seconds) if field.type is int else seconds


def _size(field: Field, raw: object) -> float:
    if not isinstance(raw, str | int) or isinstance(raw, bool):
        raise BadValueError(f"{show(raw)} is not a size", 'such as "512KiB" or 1000')
    return _in_bounds(field, parse_size(raw if isinstance(raw, str) else show(raw)), format_size)


def _choice(field: Field, raw: object) -> object:
    if raw not in field.choices:
        shown = f"{show(raw)} is not one of {', '.join(field.choices)}"
        raise BadValueError(shown, suggest(show(raw), field.choices))
    return raw


def _flag(field: Field, raw: object) -> bool:
    if isinstance(raw, EnvText) and raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    return raw if isinstance(raw, bool) else _refuse(raw, "true or false")


def _text(field: Field, raw: object) -> str:
    if field.extra.get("is_glob"):
        is_whole = isinstance(raw, int) and not isinstance(raw, bool)
        return checks.check_glob(str(raw) if is_whole else expect_text(raw))
    text = checks.check_text(expect_text(raw))
    if field.extra.get("is_mapping"):
        return checks.check_mapping(text)
    if field.extra.get("is_header") and (" " in text or not text.isascii()):
        raise BadValueError("holds a space or a character beyond ASCII")
    if field.extra.get("is_user") and ":" in text:
        raise BadValueError("must not contain a colon")
    return text


def _number(field: Field, raw: object) -> float:
    if isinstance(raw, EnvText):
        try:
            raw = int(raw) if re.fullmatch(_INTEGER, raw) else float(raw)
        except ValueError:
            raise BadValueError(f"{show(str(raw))} is not a number") from None
    if isinstance(raw, int) and not isinstance(raw, bool):
        # Bounds come before float(): beyond 10**308 an integer has none.
        value = _in_bounds(field, raw, show)
        return value if field.type is int else float(value)
    if isinstance(raw, float) and field.type is float and math.isfinite(raw):
        return _in_bounds(field, raw, show)
    raise BadValueError(f"{show(raw)} is not a {'whole ' if field.type is int else ''}number")


def _in_bounds(field: Field, value: float, display: Callable[[Any], str]) -> float:
    if field.ge is not None and value < field.ge:
        raise BadValueError(f"{display(value)} is too small", f"at least {display(field.ge)}")
    if field.le is not None and value > field.le:
        raise BadValueError(f"{display(value)} is too large", f"at most {display(field.le)}")
    return value


def split_list(raw: object) -> object:
    """The list that an environment variable holds, as JSON or with commas; anything else as it is."""
    if isinstance(raw, EnvText) and not raw.lstrip().startswith("["):
        return [item.strip() for item in raw.split(",") if item.strip()]
    return raw


def expect_text(raw: object) -> str:
    """The value, if it is text."""
    return raw if isinstance(raw, str) else _refuse(raw, "text")


def expect_list(raw: object) -> list[object]:
    """The value, if it is a list, or JSON of one in a variable."""
    value = decode_json(raw)
    return value if isinstance(value, list) else _refuse(value, "a list")


def expect_table(raw: object) -> dict[str, object]:
    """The value, if it is a table, or JSON of one in a variable."""
    value = decode_json(raw)
    return value if isinstance(value, dict) else _refuse(value, "a table")


def _refuse(raw: object, wanted: str) -> Never:
    names = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "a table",
    }
    raise BadValueError(f"must be {wanted}, not {names.get(type(raw), 'a date or time')}")


_READERS: dict[str, Callable[[Field, object], Any]] = {
    "number": _number,
    "duration": _duration,
    "size": _size,
    "choice": _choice,
    "text": _text,
    "flag": _flag,
}
