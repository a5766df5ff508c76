"""A batch of events as objects: one for each contract and hour of the events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from poller.core.events import OutboxEvent, Record, Run, runs
from poller.core.evidence.digest import Object, decode, object_key, pack_identities, sha256
from poller.core.identity import uuid_identity
from poller.core.mapping import format_time_us
from poller.core.windows import format_time

HOUR_SECONDS = 3600
_ID = b'"@uuid":"'
_HOUR_US = HOUR_SECONDS * 1_000_000


Compress = Callable[[Iterable[bytes | memoryview]], bytes]
"""Compresses a text, given in parts, into one gzip member."""


class Group:
    """The entries of a contract and an hour (counted from 1970) in a batch: lines, times, and identities."""

    __slots__ = ("contract", "count", "first_us", "hour", "identities", "last_us", "texts")

    def __init__(self, contract: str, hour: int) -> None:
        self.contract = contract
        self.hour = hour
        self.texts: list[memoryview] = []
        self.count = 0
        self.first_us, self.last_us = (hour + 1) * _HOUR_US, hour * _HOUR_US
        self.identities: dict[int, bytes] = {}  # by index, of the entries whose lines do not show their identity

    def add(self, records: Sequence[Record], lines: bytes, start: int) -> int:
        """Add entries whose lines begin at `start`.  Returns: where the next line begins."""
        times = [record[0] for record in records]
        self.first_us, self.last_us = min(self.first_us, *times), max(self.last_us, *times)
        at = start
        for place, (_, length, _ordinal, identity) in enumerate(records, self.count):
            if _named_in(lines, at, at + length) != identity:
                self.identities[place] = identity
            at += length + 1
        self.texts.append(memoryview(lines)[start:at])
        self.count += len(records)
        return at


def _named_in(lines: bytes, start: int, end: int) -> bytes | None:
    """The identity that the `@uuid` in a line gives. It differs from the entry's own if the `@uuid` was masked, hashed or cut."""
    found = lines.find(_ID, start, end)
    if found < 0:
        return None
    begin = found + len(_ID)
    return uuid_identity(lines[begin : lines.find(b'"', begin, end)])


class Packed(NamedTuple):
    """An object and the bytes that are stored under its key."""

    entry: Object
    content: bytes


class PreparedBatch(NamedTuple):
    """A batch as it was committed before any of it was written: every process that writes it writes these bytes.

    `writer` names the state that the events come from, "" for the state that holds the chain. `events` is their number, and
    `written_at` (unix seconds) the time of the commit. `objects` holds keys and contents.
    """

    number: int
    writer: str
    events: int
    written_at: int
    digest: bytes
    signature: bytes | None
    objects: Sequence[tuple[str, bytes]]

    @property
    def previous(self) -> str:
        """The SHA-256 of the digest that this one follows; empty in the first."""
        return decode(self.digest).previous


class Head(NamedTuple):
    """The end of an archive: its newest complete digest (`number` 0 if none), the key that signs next, the count of all entries.

    `since` (unix seconds): the archive holds what was collected from then on; earlier hours are not stated.
    """

    archive: str
    number: int
    sha256: str
    key: str | None
    entries: int
    since: int
    written_at: float | None


def pack(
    events: Sequence[OutboxEvent],
    number: int,
    compress: Compress,
    each: Callable[[Callable[[Group], Packed], Iterable[Group]], Iterable[Packed]] = map,
) -> list[Packed]:
    """The objects of digest `number`, ordered by contract and hour. The order of entries within each stays the same.

    `each` is `map` or a parallel version of it, because compression takes most of the time.
    """
    groups = _grouped(runs(events))
    return list(each(lambda group: _packed(group, number, compress), groups))


def _grouped(parts: Iterable[Run]) -> list[Group]:
    groups: dict[tuple[str, int], Group] = {}
    for contract, records, lines in parts:
        at = 0
        for hour, members in groupby(records, key=lambda record: record[0] // _HOUR_US):
            group = groups.setdefault((contract, hour), Group(contract, hour))
            at = group.add(list(members), lines, at)
    return [groups[key] for key in sorted(groups)]


def _packed(group: Group, number: int, compress: Compress) -> Packed:
    content = compress(group.texts)
    digest = sha256(content)
    begins = format_time(group.hour * HOUR_SECONDS)
    entry = Object(
        key=object_key(group.contract, begins, number, digest),
        contract=group.contract,
        hour=begins,
        sha256=digest,
        bytes=len(content),
        content_bytes=sum(map(len, group.texts)),
        entries=group.count,
        first=format_time_us(group.first_us),
        last=format_time_us(group.last_us),
        identities=pack_identities(group.identities),
    )
    return Packed(entry, content)
