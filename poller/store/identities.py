"""How the ledger looks events up and counts them, whatever it is kept in. Pure."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

from poller.core.events import Event
from poller.core.identity import IDENTITY_BYTES
from poller.store.rows import HOUR_SECONDS, Count

HOUR_US = 3600 * 1_000_000
DAY_HOURS = 24
_DAY_US = DAY_HOURS * HOUR_US
_DAY_COUNTS = struct.Struct(f"<{DAY_HOURS}I")


def spans(times_us: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Sorted times in as few spans as cover them without a gap of more than a day.

    A query for each hour would be hundreds for a quiet month; one for all would read years where one entry's time is off.
    """
    if not times_us:
        return
    first = last = times_us[0]
    for time_us in times_us:
        if time_us - last > _DAY_US:
            yield first, last
            first = time_us
        last = time_us
    yield first, last


def by_hour(events: Iterable[Event]) -> dict[tuple[int, bool], list[Event]]:
    """The events by the hour of their time, those without a time apart."""
    groups: dict[tuple[int, bool], list[Event]] = {}
    for event in events:
        groups.setdefault((event.time_us // HOUR_US, event.is_timed), []).append(event)
    return groups


def counted(remembered: Mapping[int, int], forgotten: Mapping[int, int]) -> dict[int, Count]:
    """What was collected in the hours since 1970, by the start of each hour in unix seconds."""
    hours = sorted(remembered.keys() | forgotten.keys())
    both = {hour: (remembered.get(hour, 0), forgotten.get(hour, 0)) for hour in hours}
    return {hour * HOUR_SECONDS: Count(known + number, number) for hour, (known, number) in both.items()}


def packed(events: Sequence[Event]) -> tuple[int, int, bytes]:
    """The earliest and the latest time of events, and their identities."""
    times = [event.time_us for event in events]
    return min(times), max(times), b"".join([event.identity for event in events])


def unpacked(blobs: Iterable[bytes]) -> Iterator[bytes]:
    """The identities in rows of the ledger."""
    for blob in blobs:
        for start in range(0, len(blob), IDENTITY_BYTES):
            yield blob[start : start + IDENTITY_BYTES]


def without_known(events: Sequence[Event], known: Container[bytes], has_sharing: Callable[[], bool]) -> list[Event]:
    """The events whose identities are not known, in the same order.

    `has_sharing` tells whether different entries of the contract were ever collected under one id, where that matters.
    """
    rest = [event for event in events if event.identity not in known]
    # One of several that share an id may come alone once the others lie before the window.
    if any(event.has_id and not event.shared_id for event in rest) and has_sharing():
        rest = [event for event in rest if event.shared_id or event.apart().identity not in known]
    return rest


def pack_day(day: int, counts: Mapping[int, int]) -> bytes:
    """How many entries the hours of a day have; `counts` by hour since 1970."""
    first = day * DAY_HOURS
    return zlib.compress(_DAY_COUNTS.pack(*(counts.get(hour, 0) for hour in range(first, first + DAY_HOURS))))


def packed_days(gone: Mapping[int, int], read: Callable[[int, int], Mapping[int, int]]) -> Iterator[tuple[int, bytes]]:
    """The days of the hours in `gone`, packed with what `read` knows of the hours between two, both included."""
    for day in sorted({hour // DAY_HOURS for hour in gone}):
        first, last = day * DAY_HOURS, (day + 1) * DAY_HOURS - 1
        before = read(first, last)
        yield day, pack_day(day, {hour: before.get(hour, 0) + gone.get(hour, 0) for hour in range(first, last + 1)})


def unpack_days(rows: Iterable[tuple[int, bytes]], first: int, last: int) -> dict[int, int]:
    """The counts of the hours from `first` to `last`, of days and what was packed of them.  Raises: ValueError."""
    found = [unpack_day(day, blob).items() for day, blob in rows]
    return {hour: number for counts in found for hour, number in counts if first <= hour <= last}


def unpack_day(day: int, blob: bytes) -> dict[int, int]:
    """The counts by hour since 1970, without those that are 0.  Raises: ValueError when that is not what was packed."""
    try:
        numbers = _DAY_COUNTS.unpack(zlib.decompress(blob))
    except (zlib.error, struct.error) as error:
        raise ValueError("the counts of a day fail their checksum") from error
    return {hour: number for hour, number in enumerate(numbers, day * DAY_HOURS) if number}
