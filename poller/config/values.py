"""The text formats of the configuration: durations, sizes and points in time. Pure: `now` is an argument.

Every parser accepts any text, and returns a value or raises `ValueError` with a sentence for the user.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_DURATION_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_DURATION = r"(?:[0-9]{1,15}(?:ms|[dhms]))+"
_DURATION_PART = r"([0-9]+)(ms|[dhms])"
_MAX_DURATION_MS = 36_500 * 86_400_000

_SIZE = r"([0-9]{1,20}) ?([KMGT]i?)?B?"
_MAX_SIZE_BYTES = 1 << 60

_DATE = r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
_RFC3339 = (
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:\.([0-9]{1,30}))?(?:([Zz])|([+-])([0-9]{2}):([0-9]{2}))"
)

_LOCAL = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?"


def show(value: object) -> str:
    """A value for a message: quoted as in Python, control characters escaped, cut at 40 characters."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number this large"
    try:
        text = repr(value[:41] if isinstance(value, str) else value)
    except RecursionError:  # a key with a thousand dots is a table nested a thousand deep
        return "a value nested this deep"
    return text if len(text) <= 42 else f"{text[:40]}..."


def parse_duration(text: str) -> float:
    """Seconds of `10s`, `1h30m`, `7d`, `500ms`, `0s`: whole numbers, units from large to small, each once."""
    if not re.fullmatch(_DURATION, text):
        raise ValueError(f"{show(text)} is not a duration such as 10s, 5m, 1h30m or 7d")
    milliseconds, previous = 0, _MAX_DURATION_MS
    for digits, unit in re.findall(_DURATION_PART, text):
        factor = _DURATION_UNITS_MS[unit]
        if factor >= previous:
            raise ValueError(f"{show(text)} must name its units from large to small, each once")
        previous = factor
        milliseconds += int(digits) * factor
    if milliseconds > _MAX_DURATION_MS:
        raise ValueError(f"{show(text)} is longer than 100 years")
    return milliseconds / 1000


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads back as `seconds`, to the millisecond."""
    rest = round(seconds * 1000)
    parts = []
    for unit, factor in _DURATION_UNITS_MS.items():
        count, rest = divmod(rest, factor)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_size(text: str) -> int:
    """Bytes of `512KiB`, `1GiB`, `10MB`, `1000`: powers of 1024 with an `i`, otherwise of 1000. Case is ignored."""
    match = re.fullmatch(_SIZE, text, re.IGNORECASE | re.ASCII)
    if not match or (match[2] and text[-1] not in "bB"):
        raise ValueError(f"{show(text)} is not a size such as 512KiB, 1GiB, 10MB or 1000")
    prefix = (match[2] or "").lower()
    size_bytes: int = int(match[1])
    for _ in range(" kmgt".index(prefix[:1] or " ")):
        size_bytes *= 1024 if prefix.endswith("i") else 1000
    if size_bytes > _MAX_SIZE_BYTES:
        raise ValueError(f"{show(text)} is larger than 1 EiB")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """A short text that `parse_size` reads back as exactly `size_bytes`."""
    for factor, unit in (
        (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (10**9, "GB"), (10**6, "MB"), (1000, "KB"),
    ):  # fmt: skip
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def parse_time(text: str, now: datetime) -> datetime:
    """The aware UTC datetime of RFC 3339, `YYYY-MM-DD` (midnight), `now`, or an age before it (`36h`)."""
    text = text.strip(" ")
    try:
        if match := re.fullmatch(_DATE, text):
            return datetime(int(match[1]), int(match[2]), int(match[3]), tzinfo=UTC)
        if match := re.fullmatch(_RFC3339, text):
            return _from_rfc3339(match)
    except (ValueError, OverflowError):
        raise ValueError(f"{show(text)} is not a date and time that exists") from None
    if text == "now":
        return now.astimezone(UTC)
    if re.fullmatch(_LOCAL, text):
        raise ValueError(f"{show(text)} is not a time with its zone: add Z or +02:00")
    try:
        age = timedelta(seconds=parse_duration(text))
    except ValueError:
        raise ValueError(
            f"{show(text)} is not a time: write 2026-05-01T07:42:20Z, 2026-05-01, now, or an age such as 36h"
        ) from None
    try:
        return now.astimezone(UTC) - age
    except OverflowError:
        raise ValueError(f"{show(text)} lies before the calendar begins") from None


def _from_rfc3339(match: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second = (int(group) for group in match.groups()[:6])
    microsecond = int((match[7] or "0")[:6].ljust(6, "0"))
    local = datetime(year, month, day, hour, minute, second, microsecond, tzinfo=UTC)
    if match[8]:
        return local
    offset_hours, offset_minutes = int(match[10]), int(match[11])
    if offset_hours > 23 or offset_minutes > 59:
        raise ValueError("offset out of range")
    offset = timedelta(hours=offset_hours, minutes=offset_minutes)
    return local - offset if match[9] == "+" else local + offset
