"""Lines that have to fit, and carry their time. Pure: bytes in, bytes out."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from poller.core.damage import without_lone_surrogates

_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def format_time_us(time_us: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC with milliseconds: `2026-05-01T07:42:20.530Z`."""
    second, rest = divmod(time_us, 1_000_000)
    return f"{_format_second(second)}.{rest // 1000:03d}Z"


@lru_cache(64)  # entries are in order, many of them of the same second
def _format_second(second: int) -> str:
    return (
        datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()
    )  # strftime drops the zeros of the year 1


def with_time(line: bytes, key: str, time_us: int) -> bytes:
    """The line with a first top-level field `key` that holds the event's time; as it is where it has such a field."""
    try:
        if key in _decode_keys(line):
            return line
    except msgspec.DecodeError:  # a lone surrogate somewhere: it is JSON all the same
        with suppress(ValueError, RecursionError):
            if key in json.loads(line):
                return line
    field = json.dumps(key).encode() + b':"' + format_time_us(time_us).encode() + b'"'
    return b"{" + field + (b"}" if line == b"{}" else b"," + line[1:])


SHORTEST_BYTES = 512
"""Below this, `truncated` has nothing left to cut."""

SHORTEST_MADE_BYTES = 8192
"""An event of a standard, made of an entry that was shortened to that, is not longer."""

SHORTEST_ACTION_BYTES = 1024
"""A line with a Moesif action, made of an entry that was shortened to that, is not longer."""

_LONGEST_TEXTS = (4096, 1024, 256, 64, 16)
_CORE_CHARS = 64  # no text is made shorter: a UUID, a time, a type stay whole
_CORE_BYTES = 98  # of one of them as JSON, where every character may take twelve


def truncated(line: bytes, max_bytes: int) -> bytes:
    """The line if it fits in `max_bytes`, else a shorter entry of the same shape that says so.

    Long texts and lists are cut until it fits, and `_truncated` is added with the original size; what identifies the
    entry (`@uuid`, `meta`, `event.type`) goes last.
    """
    if len(line) <= max_bytes:
        return line
    marker = {"_truncated": {"original_bytes": len(line)}}
    with suppress(ValueError, RecursionError):  # brackets hundreds deep
        entry = json.loads(line, parse_int=_Number, parse_float=_Number)
        for longest in _LONGEST_TEXTS:
            shorter = _shortened({**marker, **entry}, longest)
            if len(shorter) <= max_bytes:
                return shorter.encode()
    return json.dumps({**marker, **_core(line)}, separators=(",", ":")).encode()


def _core(line: bytes) -> dict[str, Any]:
    """What identifies the entry, as far as it is short text."""
    core: dict[str, Any] = {}
    with suppress(msgspec.DecodeError):
        fields = _decode_keys(without_lone_surrogates(line))
        for outer, inner in (("@uuid", ""), ("meta", "time"), ("event", "type")):
            with suppress(msgspec.DecodeError, KeyError):
                text = msgspec.json.decode(_decode_keys(fields[outer])[inner] if inner else fields[outer], type=str)
                short = short_text(text)
                core[outer] = {inner: short} if inner else short
    return core


def short_text(text: str) -> str:
    """The text, or its beginning: 64 characters and what is at most 98 bytes as JSON."""
    short = _cut(text, _CORE_CHARS)
    while len(json.dumps(short)) > _CORE_BYTES:
        short = short[: len(short) // 2]
    return short


class _Number(str):
    """A number as it is written: `1.10`, `-0`, `1e400`."""

    __slots__ = ()


def _shortened(value: Any, longest: int) -> str:
    """The value as compact JSON in ASCII, with no text and no list longer than that."""
    match value:
        case _Number():
            return value
        case str():
            return json.dumps(_cut(value, max(longest, _CORE_CHARS)))
        case list():
            return f"[{','.join([_shortened(item, longest) for item in value[:longest]])}]"
        case dict():
            shorter = {key[:256]: item for key, item in value.items()}
            fields = [f"{json.dumps(key)}:{_shortened(item, longest)}" for key, item in shorter.items()]
            return f"{{{','.join(fields)}}}"
        case _:
            return json.dumps(value)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest] + "..."
