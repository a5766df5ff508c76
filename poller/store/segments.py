"""Segments: how events lie in the outbox. Pure functions between events and bytes.

A segment holds the events of one contract that were committed together, oldest first: their lines, newline-terminated and one
behind the other, and a directory with one fixed-size record per event. A checksum over both tells a flipped bit from an entry.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from poller.events import IDENTITY_BYTES, Event, OutboxEvent

MAX_EVENTS = 1000
MAX_BYTES = 1024 * 1024

_RECORD = struct.Struct(f"<qIH{IDENTITY_BYTES}s")  # time_us, length of the line, ordinal, identity
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


def decode(contract: str, collected_at: int, directory: bytes, lines: bytes) -> list[OutboxEvent]:
    """The events of a segment whose checksum was found right."""
    events = []
    start = 0
    for time_us, length, ordinal, identity in _RECORD.iter_unpack(directory):
        events.append(OutboxEvent(contract, time_us, collected_at, identity, ordinal, lines[start : start + length]))
        start += length + 1
    return events
