"""What may be done to an entry's line on its way out. Pure: bytes in, bytes out.

Nothing here is done unless it was asked for: by default a line leaves as the API gave it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec

_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def format_time_us(time_us: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC with milliseconds: `2026-05-01T07:42:20.530Z`."""
    at = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{time_us // 1000 % 1000:03d}Z"


def with_time(line: bytes, key: str, time_us: int) -> bytes:
    """The line with a first top-level field `key` that holds the event's time; as it is where it has such a field."""
    try:
        if key in _decode_keys(line):
            return line
    except msgspec.DecodeError:  # a lone surrogate somewhere: it is JSON all the same
        pass
    field = json.dumps(key).encode() + b':"' + format_time_us(time_us).encode() + b'"'
    return b"{" + field + (b"}" if line == b"{}" else b"," + line[1:])


SHORTEST_BYTES = 512
"""Below this, `truncated` has nothing left to cut."""

_LONGEST_TEXTS = (4096, 1024, 256, 64, 16)


def truncated(line: bytes, max_bytes: int) -> bytes:
    """The line if it fits in `max_bytes`, else a shorter entry of the same shape that says so.

    Long texts and lists are cut until it fits, and `_truncated` is added with the original size; what identifies the
    entry (`@uuid`, `meta`, `event.type`) goes last.
    """
    if len(line) <= max_bytes:
        return line
    entry = json.loads(line)
    marker = {"_truncated": {"original_bytes": len(line)}}
    for longest in _LONGEST_TEXTS:
        shorter = _dump({**marker, **_shortened(entry, longest)})
        if len(shorter) <= max_bytes:
            return shorter
    event = entry.get("event")
    meta = entry.get("meta")
    core = {
        "@uuid": entry.get("@uuid"),
        "meta": {"time": meta.get("time")} if isinstance(meta, dict) else None,
        "event": {"type": event.get("type")} if isinstance(event, dict) else None,
    }
    return _dump({**marker, **_shortened({key: value for key, value in core.items() if value is not None}, 64)})


def _shortened(value: Any, longest: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= longest else value[:longest] + "..."
    if isinstance(value, list):
        return [_shortened(item, longest) for item in value[:longest]]
    if isinstance(value, dict):
        return {key[:256]: _shortened(item, longest) for key, item in value.items()}
    return value


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
