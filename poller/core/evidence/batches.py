"""A batch of events as objects: one for each contract and hour of the events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from poller.core.events import OutboxEvent
from poller.core.evidence.digest import Object, object_key, pack_identities, sha256
from poller.core.mapping import format_time_us
from poller.core.windows import format_time

HOUR_SECONDS = 3600
_ID = b'"@uuid":"'
_HOUR_US = HOUR_SECONDS * 1_000_000


Group = tuple[tuple[str, int], list[OutboxEvent]]
"""A contract and an hour (since 1970), and the events of both."""


class Packed(NamedTuple):
    """An object and the bytes that are stored under its key."""

    entry: Object
    content: bytes


class PreparedBatch(NamedTuple):
    """A batch as it was committed before anything of it was written: every process that writes it writes these bytes.

    `writer` tells whose events they are: empty for the state that holds the chain, else the name of another one. `events` is how
    many of them, `written_at` (unix seconds) when it was committed. `objects` has the keys and the contents.
    """

    number: int
    writer: str
    events: int
    written_at: int
    digest: bytes
    signature: bytes | None
    objects: Sequence[tuple[str, bytes]]


class Head(NamedTuple):
    """How far an archive is: its newest complete digest (`number` 0: none yet), the key that signs next, and all its entries.

    `since` (unix seconds): what was collected from then on is in it; earlier hours are not stated.
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
    compress: Callable[[bytes], bytes],
    each: Callable[[Callable[[Group], Packed], Iterable[Group]], Iterable[Packed]] = map,
) -> list[Packed]:
    """The objects of digest `number`, ordered by contract and hour. The order of entries within each stays.

    `each` is `map`, or one that works side by side: compressing is most of the work.
    """
    groups: dict[tuple[str, int], list[OutboxEvent]] = {}
    for event in events:
        groups.setdefault((event.contract, event.time_us // _HOUR_US), []).append(event)
    return [_packed(contract, hour, members, number, compress) for (contract, hour), members in sorted(groups.items())]


def _packed(
    contract: str, hour: int, events: Sequence[OutboxEvent], number: int, compress: Callable[[bytes], bytes]
) -> Packed:
    lines = [event.line for event in events]
    text = b"\n".join([*lines, b""])
    content = compress(text)
    digest = sha256(content)
    begins = format_time(hour * HOUR_SECONDS)
    times = [event.time_us for event in events]
    entry = Object(
        key=object_key(contract, begins, number, digest),
        contract=contract,
        hour=begins,
        sha256=digest,
        bytes=len(content),
        content_bytes=len(text),
        entries=len(events),
        first=format_time_us(min(times)),
        last=format_time_us(max(times)),
        identities=pack_identities(
            {index: event.identity for index, event in enumerate(events) if event.ordinal or _ID not in event.line}
        ),
    )
    return Packed(entry, content)


def held_by_hour(objects: Iterable[Object]) -> dict[tuple[str, str], int]:
    """How many entries the objects hold of each contract and hour."""
    held: dict[tuple[str, str], int] = {}
    for entry in objects:
        held[entry.contract, entry.hour] = held.get((entry.contract, entry.hour), 0) + entry.entries
    return held
