"""The hours of a contract's day in one archive: what it holds of each, what the API counted, what was stated last.

A statement is due when an audit has closed an hour and what could be stated differs from what was stated last. What an hour
lacks is stated only when nothing of it waits for the archive any more: else it would look incomplete for a moment.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

DAY_SECONDS = 86_400
_HOURS = 24
_COUNTS = struct.Struct(f"<{4 * _HOURS}I")
_UNKNOWN = 0xFFFF_FFFF  # closed, but with a gap in it: the API could not be asked
_MOST = _UNKNOWN - 2


class Due(NamedTuple):
    """An hour (0 to 23) that can be stated: what the API counted, None where a gap lies in it, and what the archive holds."""

    hour: int
    api: int | None
    held: int


class Day:
    """The 24 hours of a day. Mutable: it is read from its bytes, changed, and written back in one transaction."""

    def __init__(self, content: bytes | None = None) -> None:
        """`content` as `encoded` gave it; None for a day of which nothing is known.  Raises: ValueError when it is damaged."""
        try:
            counts = _COUNTS.unpack(zlib.decompress(content)) if content is not None else (0,) * (4 * _HOURS)
        except (zlib.error, struct.error) as error:
            raise ValueError("the counts of a day are damaged") from error
        parts: list[list[int]] = [list(counts[start : start + _HOURS]) for start in range(0, 4 * _HOURS, _HOURS)]
        self._held, self._audited, self._stated, self._stated_held = parts

    def encoded(self) -> bytes:
        """Its bytes, for `__init__`."""
        counts = [*self._held, *self._audited, *self._stated, *self._stated_held]
        return zlib.compress(_COUNTS.pack(*counts))

    def held(self, hour: int) -> int:
        """How many entries of the hour the archive holds."""
        return self._held[hour]

    def add(self, added: Mapping[int, int]) -> None:
        """Entries came into the archive: how many, by hour. What an audit counted before a late one is no longer true."""
        for hour, count in added.items():
            self._held[hour] += count
            if self._audited[hour] != _UNKNOWN and self._held[hour] > self._audited[hour] - 1:
                self._audited[hour] = 0

    def close(self, counted: Mapping[int, int | None]) -> None:
        """An audit closed hours: what the API counted of each, None where a gap lies in it.

        What the API counted of an hour that is whole stays counted, also when it does not keep all of its entries any longer.
        """
        for hour, api in counted.items():
            if api is not None and api < self._held[hour] == self._audited[hour] - 1:
                continue
            self._audited[hour] = _UNKNOWN if api is None else min(api, _MOST) + 1

    def due(self, *, is_all: bool, added: Mapping[int, int]) -> Iterator[Due]:
        """The hours to state in a batch that adds so many entries by hour, after `add`.

        `is_all`: nothing waits for the archive behind this batch.
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
        """An hour was stated so."""
        self._stated[hour], self._stated_held[hour] = _UNKNOWN if api is None else min(api, _MOST) + 1, held

    @property
    def is_open(self) -> bool:
        """Whether an hour is closed, and not stated as it is."""
        now = zip(self._audited, self._held, strict=True)
        stated = zip(self._stated, self._stated_held, strict=True)
        return any(audited and (audited, held) != before for (audited, held), before in zip(now, stated, strict=True))
