"""What holds of the archives in a state, whatever that is kept in: rules without SQL.

Invariants of both backends:
1. A batch is committed whole, objects, digest and signature, before anything of it is written. There is one at a time.
2. `complete` moves the head of the chain and, in the same transaction, the place of the sink whose events these are. So no
   number is given twice, and no entry is in two batches.
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
"""So many days are looked through at most for hours to state in one batch: what is left is stated in the next one."""

WRITER = "archive_writer"
"""The fact that names a state among those that write to the chain of another one."""

PLACE = "archive_place "  # and the sink's name
"""The fact that says where a chain is."""

DayKey = tuple[str, int]
"""A contract and a day since 1970."""

Change = Callable[[Day], None]
T = TypeVar("T")


def is_made_for(objects: Iterable[Packed], number: int) -> bool:
    """Whether the keys of all objects are those of digest `number`."""
    return all(batch_of(packed.entry.key) == number for packed in objects)


def is_as_committed(batch: PreparedBatch) -> bool:
    """Whether the objects of a batch are those that its digest names."""
    named = {entry.key: entry.sha256 for entry in decode(batch.digest).objects}
    return named == {key: sha256(content) for key, content in batch.objects}


def hours_of(objects: Iterable[Packed]) -> dict[DayKey, dict[int, int]]:
    """How many entries some objects have: by contract and day, and in it by hour."""
    held: dict[tuple[str, int], int] = {}
    for packed in objects:
        hour = (packed.entry.contract, _seconds_of(packed.entry.hour))
        held[hour] = held.get(hour, 0) + packed.entry.entries
    return by_day(held)


def by_day(held: Mapping[tuple[str, int], T]) -> dict[DayKey, dict[int, T]]:
    """Counts by contract and hour's start as counts by contract and day, and in it by hour."""
    days: dict[DayKey, dict[int, T]] = {}
    for (contract, start), count in held.items():
        day, hour = _hour_of(start)
        days.setdefault((contract, day), {})[hour] = count
    return days


def closing(contract: str, counted: Mapping[int, int | None]) -> dict[DayKey, Change]:
    """What an audit, which counted the hours that begin so, changes of each day."""
    days = by_day({(contract, start): api for start, api in counted.items()})
    return {key: partial(Day.close, counted=hours) for key, hours in days.items()}


def adding(held: Mapping[tuple[str, int], int]) -> dict[DayKey, Change]:
    """What entries that came into the archive, by contract and hour's start, change of each day."""
    return {key: partial(Day.add, added=hours) for key, hours in by_day(held).items()}


def writing(digest: Digest) -> dict[DayKey, Change]:
    """What a digest that is written changes of each day: it holds its entries, and its statements were made."""
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
    """What the head of a chain is after the digest of these bytes: its SHA-256, the key that signs next, all entries."""
    digest = decode(content)
    return sha256(content), digest.next_key or digest.key, digest.entries


def due(days: Mapping[DayKey, Day], added: Mapping[DayKey, Mapping[int, int]], *, is_all: bool) -> Iterator[DueHour]:
    """The hours to state with a batch that adds so many entries. `is_all`: nothing waits for the archive behind it."""
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
    """What the state says to a batch of `events` of the sink's own, with `waiting` behind them.

    `gaps` and `ranges` are all that there are of the contracts in `rows`.
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
