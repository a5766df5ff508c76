"""Rules for the archives in a state, for every backend, without SQL.

Invariants of both backends:
1. A batch is committed whole (objects, digest and signature) before anything of it is written. There is one at a time.
2. `complete` moves the head of the chain and the place of the sink in the same transaction. So no number is used twice, and no
   entry is in two batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from poller.core.evidence.batches import HOUR_SECONDS, Head, Packed, PreparedBatch
from poller.core.evidence.compose import ContractRow, DueHour, Facts
from poller.core.evidence.digest import Digest, batch_of, decode, sha256
from poller.core.evidence.hours import DAY_SECONDS, Day
from poller.core.windows import Window
from poller.store.gaps import Gap
from poller.store.rows import Contract, Range, Sink

MOST_DAYS = 500
"""Maximum number of days that are searched for hours to state in one batch. The rest is stated in the next batch."""

WRITER = "archive_writer"
"""The fact that names a state among those that write to the chain of another one."""

PLACE = "archive_place "  # and the sink's name
"""The fact with the place of a chain."""

DayKey = tuple[str, int]
"""A contract and a day since 1970."""

Change = Callable[[Day], None]
T = TypeVar("T")


def is_made_for(objects: Iterable[Packed], number: int) -> bool:
    """Whether all objects have keys of digest `number`."""
    return all(batch_of(packed.entry.key) == number for packed in objects)


def is_as_committed(batch: PreparedBatch) -> bool:
    """Whether the objects of a batch are the ones that its digest names."""
    named = {entry.key: entry.sha256 for entry in decode(batch.digest).objects}
    return named == {key: sha256(content) for key, content in batch.objects}


def hours_of(objects: Iterable[Packed]) -> dict[DayKey, dict[int, int]]:
    """The number of entries in objects: by contract and day, and within the day by hour."""
    held: dict[tuple[str, int], int] = {}
    for packed in objects:
        hour = (packed.entry.contract, _seconds_of(packed.entry.hour))
        held[hour] = held.get(hour, 0) + packed.entry.entries
    return by_day(held)


def by_day(held: Mapping[tuple[str, int], T]) -> dict[DayKey, dict[int, T]]:
    """Counts by contract and start of the hour, regrouped by contract and day."""
    days: dict[DayKey, dict[int, T]] = {}
    for (contract, start), count in held.items():
        day, hour = _hour_of(start)
        days.setdefault((contract, day), {})[hour] = count
    return days


def closing(contract: str, counted: Mapping[int, int | None]) -> dict[DayKey, Change]:
    """The change of each day by an audit with these counts by start of the hour."""
    days = by_day({(contract, start): api for start, api in counted.items()})
    return {key: partial(Day.close, counted=hours) for key, hours in days.items()}


def adding(held: Mapping[tuple[str, int], int]) -> dict[DayKey, Change]:
    """The change of each day by new entries in the archive, by contract and start of the hour."""
    return {key: partial(Day.add, added=hours) for key, hours in by_day(held).items()}


def writing(digest: Digest) -> dict[DayKey, Change]:
    """The change of each day by a written digest: its entries are in the archive, and its statements are made."""
    added = by_day({(entry.contract, _seconds_of(entry.hour)): entry.entries for entry in digest.objects})
    stated: dict[DayKey, list[tuple[int, int | None, int]]] = {}
    for statement in digest.statements:
        day, hour = _hour_of(_seconds_of(statement.hour))
        stated.setdefault((statement.contract, day), []).append((hour, statement.api, statement.archived))

    def change(key: DayKey, known: Day) -> None:
        known.add(added.get(key, {}))
        for hour in stated.get(key, ()):
            known.state(*hour)

    return {key: partial(change, key) for key in sorted({*added, *stated})}


def next_head(content: bytes) -> tuple[str, str | None, int]:
    """The head of a chain after the digest with these bytes: its SHA-256, the next signing key, all entries."""
    digest = decode(content)
    return sha256(content), digest.next_key or digest.key, digest.entries


def due(days: Mapping[DayKey, Day], added: Mapping[DayKey, Mapping[int, int]], *, is_all: bool) -> Iterator[DueHour]:
    """The hours to state with a batch that adds these entries. `is_all`: nothing else waits for the archive."""
    for (contract, day), known in sorted(days.items(), key=lambda item: item[0]):
        hours = added.get((contract, day), {})
        known.add(hours)
        for hour, api, held in known.due(is_all=is_all, added=hours):
            yield DueHour(contract, day * DAY_SECONDS + hour * HOUR_SECONDS, api, held)


def facts(
    head: Head,
    hours: Sequence[DueHour],
    gaps: Sequence[Gap],
    ranges: Sequence[Range],
    rows: Sequence[Contract],
    sink: Sink,
    events: int,
    waiting: int,
) -> Facts:
    """The facts of the state for a batch of `events` of the sink, with `waiting` events behind them.

    `gaps` and `ranges` are all gaps and unread spans of the contracts in `rows`.
    """
    by_contract: dict[str, list[tuple[Window, str]]] = {}
    open_: dict[str, list[tuple[Window, str]]] = {}
    spans: dict[str, list[tuple[Window, str]]] = {}
    for gap in gaps:
        for those in (by_contract, open_) if gap.is_open else (by_contract,):
            those.setdefault(gap.contract, []).append((gap.window, gap.kind))
    for span in ranges:
        spans.setdefault(span.contract, []).append((span.window, span.purpose))
    books = [
        ContractRow(
            row.contract, row.fetched, row.new, row.seen, row.filtered, row.origin, row.watermark,
            open_.get(row.contract, []), spans.get(row.contract, []),
        )
        for row in rows
    ]  # fmt: skip
    return Facts(head, hours, by_contract, books, sink.assigned, sink.delivered + events, sink.dead, waiting)


def _hour_of(start: int) -> tuple[int, int]:
    return start // DAY_SECONDS, start % DAY_SECONDS // HOUR_SECONDS


def _seconds_of(hour: str) -> int:
    return int(datetime.fromisoformat(hour).replace(tzinfo=UTC).timestamp())
