"""Shortening lines to a size, and adding the event's time to them. Pure: bytes in, bytes out."""

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


@lru_cache(64)  # entries are ordered by time, and many share a second
def _format_second(second: int) -> str:
    return (
        datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()
    )  # strftime drops the zeros of the year 1


def with_time(line: bytes, key: str, time_us: int) -> bytes:
    """The line with a new first top-level field `key` that holds the event's time; unchanged if it has such a field."""
    try:
        if key in _decode_keys(line):
            return line
    except msgspec.DecodeError:  # a lone surrogate: msgspec refuses it, but it is valid JSON
        with suppress(ValueError, RecursionError):
            if key in json.loads(line):
                return line
    field = json.dumps(key).encode() + b':"' + format_time_us(time_us).encode() + b'"'
    return b"{" + field + (b"}" if line == b"{}" else b"," + line[1:])


SHORTEST_BYTES = 512
"""The smallest useful limit for `truncated`: it cannot shorten an entry further."""

SHORTEST_MADE_BYTES = 8192
"""An OCSF or ECS event of an entry that was shortened to SHORTEST_BYTES is never longer than this."""

SHORTEST_ACTION_BYTES = 1024
"""A line with a Moesif action is never longer than this after its entry and its own texts were shortened."""

_LONGEST_TEXTS = (4096, 1024, 256, 64, 16)
_CORE_CHARS = 64  # no text is cut below this, so a UUID, a time or a type stays whole
_CORE_BYTES = 98  # maximum of such a text as JSON, as a character may take twelve bytes


def truncated(line: bytes, max_bytes: int) -> bytes:
    """The line if it fits in `max_bytes`, otherwise a shorter entry of the same shape with the marker `_truncated`.

    Long texts and lists are cut until it fits, and `_truncated` holds the original size. If that is not enough, only the marker
    and short texts that identify the entry stay (`@uuid`, `meta.time`, `event.type`).
    """
    if len(line) <= max_bytes:
        return line
    marker = {"_truncated": {"original_bytes": len(line)}}
    with suppress(ValueError, RecursionError):  # RecursionError: hundreds of nested brackets
        entry = json.loads(line, parse_int=_Number, parse_float=_Number)
        for longest in _LONGEST_TEXTS:
            shorter = _shortened({**marker, **entry}, longest)
            if len(shorter) <= max_bytes:
                return shorter.encode()
    return json.dumps({**marker, **_core(line)}, separators=(",", ":")).encode()


def _core(line: bytes) -> dict[str, Any]:
    """The fields that identify the entry, each shortened; a field that is not text is left out."""
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
    """The text or its beginning: at most 64 characters plus "...", and at most 98 bytes as JSON."""
    short = _cut(text, _CORE_CHARS)
    while len(json.dumps(short)) > _CORE_BYTES:
        short = short[: len(short) // 2]
    return short


class _Number(str):
    """A number as it is written: `1.10`, `-0`, `1e400`."""

    __slots__ = ()


def _shortened(value: Any, longest: int) -> str:
    """The value as compact JSON in ASCII, with lists cut to `longest` items and texts to `longest` (at least 64) characters."""
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
