"""What time an entry has, in any of the forms that are in use."""

from __future__ import annotations

import email.utils
import re
from datetime import UTC, datetime
from typing import Any

from poller.core.identity import is_scalar

# A second's nano-, micro- and milliseconds, and itself: how many there are, and from which number on it is that unit.
_EPOCH_UNITS = ((1e9, 1e17), (1e6, 1e14), (1e3, 1e11), (1.0, 1e8))
# From 1970 until 64 bits of nanoseconds are used up, in 2262. Other times cannot be written in every format and for every sink,
# so they are no usable times.
_FIRST_US, _LAST_US = 0, (2**63 - 1) // 1000


def parse_time(value: Any) -> datetime | None:
    """The time in any of the forms that are in use: ISO 8601, HTTP's, seconds since 1970 or smaller units, as number or text."""
    try:
        if isinstance(value, str) and not re.fullmatch(r"[0-9]{9,19}(\.[0-9]+)?", value, re.ASCII):
            return _parse_text_time(value.strip())
        return _parse_epoch(float(value)) if is_scalar(value) else None
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None


def time_us_of(value: object) -> int | None:
    """The time that an entry writes in any of these forms, in microseconds since 1970; None where it is no usable time."""
    time = parse_time(value)
    return None if time is None else micros(time)


def _parse_text_time(text: str) -> datetime:
    if re.search(r"[A-Za-z]{3} ", text):
        return email.utils.parsedate_to_datetime(text)
    zoned = re.sub(r" ?(UTC|GMT)$", "+00:00", text)
    return datetime.fromisoformat(re.sub(r"^(\d{4})/(\d\d)/(\d\d)", r"\1-\2-\3", zoned))


def _parse_epoch(count: float) -> datetime | None:
    """A number is in the unit in which it means a time of this century or so; a small one is no time."""
    for unit, least in _EPOCH_UNITS:
        if count >= least:
            return datetime.fromtimestamp(count / unit, UTC)
    return None


def micros(time: datetime) -> int | None:
    """Microseconds since 1970, UTC where the time does not say; None where that is no time that every sink takes."""
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    time_us = round(time.timestamp() * 1_000_000)
    return time_us if _FIRST_US <= time_us <= _LAST_US else None
