"""The hours of a contract's day in one archive: how many entries it holds, the API's count, and the last statement of each.

A statement is due if an audit has closed an hour and its counts differ from the last statement. An hour is stated as incomplete
only if no event waits for the archive: otherwise it might look incomplete for a short time.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

DAY_SECONDS = 86_400
_HOURS = 24
_COUNTS = struct.Struct(f"<{4 * _HOURS}I")
_UNKNOWN = 0xFFFF_FFFF  # closed, but with a gap in it, so the API cannot count it
_MOST = _UNKNOWN - 2


class Due(NamedTuple):
    """An hour (0 to 23) that can be stated: the API's count, None if the hour contains a gap, and how many the archive holds."""

    hour: int
    api: int | None
    held: int


class Day:
    """The 24 hours of a day. Mutable: it is decoded from bytes, changed, and written back in one transaction."""

    def __init__(self, content: bytes | None = None) -> None:
        """`content` is from `encoded`, or None for a day without data.  Raises: ValueError if it is damaged."""
        try:
            counts = _COUNTS.unpack(zlib.decompress(content)) if content is not None else (0,) * (4 * _HOURS)
        except (zlib.error, struct.error) as error:
            raise ValueError("the counts of a day are damaged") from error
        parts: list[list[int]] = [list(counts[start : start + _HOURS]) for start in range(0, 4 * _HOURS, _HOURS)]
        self._held, self._audited, self._stated, self._stated_held = parts

    def encoded(self) -> bytes:
        """The day as bytes, for `__init__`."""
        counts = [*self._held, *self._audited, *self._stated, *self._stated_held]
        return zlib.compress(_COUNTS.pack(*counts))

    def held(self, hour: int) -> int:
        """How many entries of the hour the archive holds."""
        return self._held[hour]

    def add(self, added: Mapping[int, int]) -> None:
        """Add the counts of new entries in the archive, by hour. An hour with more than an audit counted is no longer closed."""
        for hour, count in added.items():
            self._held[hour] += count
            if self._audited[hour] != _UNKNOWN and self._held[hour] > self._audited[hour] - 1:
                self._audited[hour] = 0

    def close(self, counted: Mapping[int, int | None]) -> None:
        """Record that an audit closed hours: the API's count of each, None if the hour contains a gap.

        If the archive holds all that was counted before, a lower count is ignored: the API no longer keeps all of its entries.
        """
        for hour, api in counted.items():
            if api is not None and api < self._held[hour] == self._audited[hour] - 1:
                continue
            self._audited[hour] = _UNKNOWN if api is None else min(api, _MOST) + 1

    def due(self, *, is_all: bool, added: Mapping[int, int]) -> Iterator[Due]:
        """The hours to state in a batch that adds `added` entries, by hour. Call it after `add`.

        `is_all`: no event waits for the archive after this batch.
        """
        for hour in range(_HOURS):
            audited, held = self._audited[hour], self._held[hour]
            if not audited or (self._stated[hour], self._stated_held[hour]) == (audited, held):
                continue
            if audited == _UNKNOWN:
                if is_all:
                    yield Due(hour, None, held)
            elif audited - 1 == held or (is_all and hour not in added):
                yield Due(hour, audited - 1, held)

    def state(self, hour: int, api: int | None, held: int) -> None:
        """Record that an hour was stated with these counts."""
        self._stated[hour], self._stated_held[hour] = _UNKNOWN if api is None else min(api, _MOST) + 1, held

    @property
    def is_open(self) -> bool:
        """Whether a closed hour has not been stated with its present counts."""
        now = zip(self._audited, self._held, strict=True)
        stated = zip(self._stated, self._stated_held, strict=True)
        return any(audited and (audited, held) != before for (audited, held), before in zip(now, stated, strict=True))
