"""Reading the time of an entry, in any of the forms in use."""

from __future__ import annotations

import email.utils
import re
from datetime import UTC, datetime
from typing import Any

from poller.core.identity import is_scalar

# Nanoseconds, microseconds, milliseconds, seconds: how many there are in a second, and the smallest number read as that unit.
_EPOCH_UNITS = ((1e9, 1e17), (1e6, 1e14), (1e3, 1e11), (1.0, 1e8))
# From 1970 to 2262, when nanoseconds no longer fit in 64 bits. Not every format and sink can hold other times, so those do not
# count as usable.
_FIRST_US, _LAST_US = 0, (2**63 - 1) // 1000


def parse_time(value: Any) -> datetime | None:
    """The time: ISO 8601, an HTTP date, or seconds or smaller units since 1970, as number or text. None if it is not one."""
    try:
        if isinstance(value, str) and not re.fullmatch(r"[0-9]{9,19}(\.[0-9]+)?", value, re.ASCII):
            return _parse_text_time(value.strip())
        return _parse_epoch(float(value)) if is_scalar(value) else None
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None


def time_us_of(value: object) -> int | None:
    """A time in any of these forms, in microseconds since 1970; None if it is not a usable time."""
    time = parse_time(value)
    return None if time is None else micros(time)


def _parse_text_time(text: str) -> datetime:
    if re.search(r"[A-Za-z]{3} ", text):
        return email.utils.parsedate_to_datetime(text)
    zoned = re.sub(r" ?(UTC|GMT)$", "+00:00", text)
    return datetime.fromisoformat(re.sub(r"^(\d{4})/(\d\d)/(\d\d)", r"\1-\2-\3", zoned))


def _parse_epoch(count: float) -> datetime | None:
    """The size of the number shows its unit: the one that gives a plausible date. A number below 1e8 is not a time."""
    for unit, least in _EPOCH_UNITS:
        if count >= least:
            return datetime.fromtimestamp(count / unit, UTC)
    return None


def micros(time: datetime) -> int | None:
    """Microseconds since 1970; a time without a zone is UTC. None if not every sink can hold this time."""
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    time_us = round(time.timestamp() * 1_000_000)
    return time_us if _FIRST_US <= time_us <= _LAST_US else None
