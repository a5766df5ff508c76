"""Segments: how events lie in the outbox. Pure functions between events and bytes.

A segment holds the events of one contract that were committed together, oldest first: their lines, newline-terminated and one
behind the other, and a directory with one fixed-size record per event. A checksum over both tells a flipped bit from an entry.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from poller.core.events import Event, OutboxEvent, Run, StoredEvents
from poller.core.identity import IDENTITY_BYTES

MAX_EVENTS = 1000
MAX_BYTES = 1024 * 1024

_RECORD = struct.Struct(f"<qIH{IDENTITY_BYTES}s")  # time_us, length of the line, ordinal, identity
_LENGTH = struct.Struct(f"<8xI2x{IDENTITY_BYTES}x")  # of a record, the length alone
_MAX_ORDINAL = 0xFFFF


class Segment(NamedTuple):
    """The parts of a segment that are stored, and what is asked of it without opening it."""

    event_count: int
    size_bytes: int
    first_us: int
    directory: bytes
    lines: bytes


def cut(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """The events in slices of at most MAX_EVENTS, and of at most MAX_BYTES unless one alone is larger."""
    start = 0
    size = 0
    for index, event in enumerate(events):
        length = len(event.line) + 1
        if index > start and (index - start == MAX_EVENTS or size + length > MAX_BYTES):
            yield events[start:index]
            start, size = index, 0
        size += length
    if start < len(events):
        yield events[start:]


def encode(events: Sequence[Event]) -> Segment:
    """Put events, oldest first, into a segment."""
    pack = _RECORD.pack
    directory = b"".join(
        [pack(event.time_us, len(event.line), min(event.ordinal, _MAX_ORDINAL), event.identity) for event in events]
    )
    lines = b"\n".join([event.line for event in events]) + b"\n"
    return Segment(len(events), len(lines), events[0].time_us, directory, lines)


def checksum(contract: str, collected_at: int, directory: bytes, lines: bytes) -> int:
    """Of all that is read back from a segment."""
    return zlib.crc32(lines, zlib.crc32(directory, zlib.crc32(f"{contract} {collected_at}".encode())))


class Stored(NamedTuple):
    """A segment as it was read back, its checksum found right."""

    contract: str
    collected_at: int
    directory: bytes
    lines: bytes

    @property
    def event_count(self) -> int:
        return len(self.directory) // _RECORD.size

    @property
    def size_bytes(self) -> int:
        return len(self.lines)

    def is_as_written(self, crc: int, event_count: int) -> bool:
        """Whether it has this checksum, and as many events: places are moved on by that, and a wrong one would leave some out."""
        return checksum(*self) == crc and self.event_count == event_count

    def lengths(self) -> list[int]:
        """The bytes of each line, with its newline."""
        return [length + 1 for (length,) in _LENGTH.iter_unpack(self.directory)]

    def slice(self, start: int, end: int) -> Stored:
        """The events from `start` to `end`, not included."""
        if start == 0 and end == self.event_count:
            return self
        lengths = self.lengths()
        begin = sum(lengths[:start])
        lines = self.lines[begin : begin + sum(lengths[start:end])]
        return self._replace(directory=self.directory[start * _RECORD.size : end * _RECORD.size], lines=lines)

    def fitting(self, max_events: int, max_bytes: int, *, at_least: int) -> int:
        """How many of its first events fit."""
        if self.event_count <= max_events and self.size_bytes <= max_bytes:  # nearly always
            return self.event_count
        fitting = 0
        for length in self.lengths()[:max_events]:
            max_bytes -= length
            if max_bytes < 0:
                break
            fitting += 1
        return max(fitting, at_least)


def stored_events(parts: Sequence[Stored]) -> StoredEvents:
    """The events of segments, one segment behind the other."""
    count = sum(part.event_count for part in parts)
    return StoredEvents(
        count,
        lambda: (Run(part.contract, _RECORD.iter_unpack(part.directory), part.lines) for part in parts),
        lambda: [event for part in parts for event in decode(part)],
        lambda: max(max(part.lengths()) for part in parts),
    )


def decode(stored: Stored) -> list[OutboxEvent]:
    """The events of a segment."""
    contract, collected_at, directory, lines = stored
    events = []
    start = 0
    for time_us, length, ordinal, identity in _RECORD.iter_unpack(directory):
        events.append(OutboxEvent(contract, time_us, collected_at, identity, ordinal, lines[start : start + length]))
        start += length + 1
    return events
