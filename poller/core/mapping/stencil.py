"""Reusing the mapped form of an entry for all entries that differ from it only in ids and times. Pure.

Most entries of a log repeat a few others with different ids. The mapped form of such an entry is learned as a stencil: constant
bytes with a hole for each id. A stencil is used only if the rest of the line is the same, byte for byte. To learn it, two made-up
entries with their own ids, times and identities are mapped. It is kept only if it gives exactly the result of the mapping for
both and for the entry itself. So a mapping may use the rest of an entry in any way, but must copy its ids and times.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import msgspec

from poller.core.events import OutboxEvent
from poller.core.mapping.shorten import format_time_us

# Makes lines equal that differ only in hexadecimal digits.
_MASK = bytes.maketrans(b"0123456789abcdef", b"0" * 16)
_WORD = (b"0", b"-")
_ID = b"00000000-0000-0000-0000-000000000000"  # an id after the mask
_TIME = re.compile(rb'"time":"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z)"')
_NUMBER = re.compile(rb'"queueRefId":([1-9][0-9]{5,15})[,}]')

MAX_STENCILS = 1500
MAX_LINE_BYTES = 4096
MAX_SEEN = 8192
"""Maximum number of kinds of entries without a stencil whose occurrences are counted."""
# The times of the two made-up entries, their collection times, and their identities. No other value of an event equals them.
_PROBES = (
    (34_401_906_789_000, 35_512_017, b"\xad" * 16),
    (1_187_654_321_987_000, 1_198_765_432, b"\xbe" * 16),
)

# Replaces a made-up value: a byte that does not occur in JSON, and the number of the value.
_MARK = re.compile(rb"\x00(.)", re.DOTALL)
_HEX_BYTES = frozenset(b"%c" % char for char in b"0123456789abcdef")

Map = Callable[[OutboxEvent], bytes]


class _Stencil(NamedTuple):
    """`take` cuts a line of `size` bytes into pieces: constant ones, which must equal `same`, alternate with the holes."""

    contract: str
    size: int
    take: Callable[[bytes], tuple[bytes, ...]]
    same: tuple[bytes, ...]
    time_at: int
    number_at: int | None
    constants: tuple[bytes, ...]
    arrange: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]
    """Puts the pieces of an event in order: from the pieces of the line, the other values of the event, and the constants."""


class Stencils:
    """The learned stencils of one mapping. Safe to use from several threads."""

    def __init__(self, map_event: Map) -> None:
        self._map = map_event
        self._known: dict[int, _Stencil] = {}
        self._seen: dict[int, int] = {}

    def pieces(self, event: OutboxEvent) -> tuple[bytes, ...]:
        """The mapped event in pieces: joining the pieces of many events at once saves a copy of each."""
        line = event.line
        if event.ordinal or len(line) > MAX_LINE_BYTES:
            return (self._map(event),)
        key = hash((event.contract, line.translate(_MASK)))
        stencil = self._known.get(key)
        if stencil is None:
            return (self._mapped(key, event),)
        return _filled(stencil, event) or (self._map(event),)

    def _mapped(self, key: int, event: OutboxEvent) -> bytes:
        """Map the event. When its kind comes a 2nd, 4th, 8th ... time, learn its stencil, which takes three times as long."""
        made = self._map(event)
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        self._seen[key] = count = self._seen.get(key, 0) + 1
        if count > 1 and not count & (count - 1):
            self._learn(key, event, made)
        return made

    def _learn(self, key: int, event: OutboxEvent, made: bytes) -> None:
        stencil = _learned(event, self._map)
        if stencil is None or b"".join(_filled(stencil, event)) != made:
            return
        if len(self._known) >= MAX_STENCILS:
            self._known.clear()
        self._known[key] = stencil


def _filled(stencil: _Stencil, event: OutboxEvent) -> tuple[bytes, ...]:
    """The event in pieces; empty if the stencil does not fit it."""
    contract, size, take, same, time_at, number_at, constants, arrange = stencil
    line, time_us = event.line, event.time_us
    if len(line) != size or event.contract != contract:
        return ()
    pieces = take(line)
    if pieces[::2] != same:
        return ()
    second, rest = divmod(time_us, 1_000_000)
    if pieces[time_at] != _second_text(second) + _MILLISECONDS[rest // 1000]:
        return ()
    if number_at is not None and not pieces[number_at].isdigit():
        return ()
    return arrange((*pieces, *_beside(event), *constants))


def _beside(event: OutboxEvent) -> tuple[bytes, bytes, bytes, bytes]:
    """The values that a mapping may use from an event besides its line."""
    return b"%d" % (event.time_us // 1000), *_of_collecting(event.collected_at), event.identity.hex().encode()


_MILLISECONDS = tuple(b"%03dZ" % ms for ms in range(1000))


@lru_cache(64)
def _second_text(second: int) -> bytes:
    """A second as `format_time_us` writes it, up to the dot."""
    return format_time_us(second * 1_000_000)[: -len("000Z")].encode()


@lru_cache(16)
def _of_collecting(second: int) -> tuple[bytes, bytes]:
    return b"%d" % (second * 1000), format_time_us(second * 1_000_000).encode()


def _learned(event: OutboxEvent, map_event: Map) -> _Stencil | None:
    """The stencil of an entry and of all that differ from it only in ids and time; None if there can be none."""
    line = event.line
    times, numbers = ([match.span(1) for match in pattern.finditer(line)] for pattern in (_TIME, _NUMBER))
    if len(times) != 1 or len(numbers) > 1 or line[slice(*times[0])] != format_time_us(event.time_us).encode():
        return None
    spans = sorted([*_ids(line.translate(_MASK)), *times, *numbers])
    time_hole = spans.index(times[0])
    number_hole = spans.index(numbers[0]) if numbers else None
    first, second = (_probe(event, spans, time_hole, number_hole, *values) for values in _PROBES)
    take = _taker(spans, len(line))
    pieces = take(first.line)
    beside = _beside(first)
    values = (*pieces[1::2], *beside)
    cut = _cut(map_event(first), values)
    if cut is None:
        return None
    constants, order = cut
    # Every second piece of the line is a hole. The other values of the event come after the pieces, then the constants.
    end = len(pieces) + len(beside)
    at = [*range(1, len(pieces), 2), *range(len(pieces), end)]
    number_at = None if number_hole is None else at[number_hole]
    arrange = _arranger([at[number] for number in order], end)
    same = take(line)[::2]
    stencil = _Stencil(event.contract, len(line), take, same, at[time_hole], number_at, constants, arrange)
    return stencil if b"".join(_filled(stencil, second)) == map_event(second) else None


def _ids(masked: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each id that is not part of a longer word."""
    end = 0
    while (start := masked.find(_ID, end)) >= 0:
        end = start + len(_ID)
        if masked[start - 1 : start] not in _WORD and masked[end : end + 1] not in _WORD:
            yield start, end


def _probe(
    event: OutboxEvent,
    spans: list[tuple[int, int]],
    time_hole: int,
    number_hole: int | None,
    time_us: int,
    collected_at: int,
    identity: bytes,
) -> OutboxEvent:
    """The entry with made-up ids, time and identity that occur nowhere else in it."""
    pieces, end = [], 0
    for hole, (start, stop) in enumerate(spans):
        pieces.append(event.line[end:start])
        if hole == time_hole:
            pieces.append(format_time_us(time_us).encode())
        elif hole == number_hole:
            pieces.append(str(time_us * 7)[: stop - start].encode())
        else:
            pieces.append(b"c0ffee%02x-%04x-4a5b-8c6d-%012x" % (hole % 256, hole, time_us // 1000 + hole))
        end = stop
    line = b"".join([*pieces, event.line[end:]])
    return msgspec.structs.replace(event, line=line, time_us=time_us, collected_at=collected_at, identity=identity)


def _taker(spans: list[tuple[int, int]], length: int) -> Callable[[bytes], tuple[bytes, ...]]:
    """A function that cuts a line of this length at both ends of each span."""
    ends = [0, *(place for span in spans for place in span), length]
    return struct.Struct("".join(f"{end - start}s" for start, end in pairwise(ends))).unpack


def _cut(made: bytes, values: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], list[int]] | None:
    """The bytes around the values, and the number of the value in each hole; None if a value is part of a longer word."""
    for number, value in enumerate(values):
        made = made.replace(value, b"\0%c" % number)
    pieces = _MARK.split(made)
    constants = tuple(pieces[::2])
    if any(left[-1:] in _HEX_BYTES for left in constants[:-1]) or any(
        right[:1] in _HEX_BYTES for right in constants[1:]
    ):
        return None
    return constants, [piece[0] for piece in pieces[1::2]]


def _arranger(holes: list[int], first: int) -> Callable[[tuple[bytes, ...]], tuple[bytes, ...]]:
    """A function that puts the holes, at these indexes, between the constants, which begin at index `first`."""
    order = [first]
    for number, hole in enumerate(holes, 1):
        order += [hole, first + number]
    if len(order) == 1:
        return lambda values: (values[first],)
    arrange: Callable[[tuple[bytes, ...]], tuple[bytes, ...]] = itemgetter(*order)
    return arrange
