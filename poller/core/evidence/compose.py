"""Composes the digest of a batch from the state's values in the transaction that commits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from poller.core.evidence.batches import HOUR_SECONDS, Head
from poller.core.evidence.digest import (
    FORMAT,
    Abandoned,
    Books,
    ContractBooks,
    Digest,
    Object,
    SinkBooks,
    StatedGap,
    StatedRange,
    Statement,
)
from poller.core.windows import Window, format_time


class DueHour(NamedTuple):
    """An hour to state: its start in unix seconds, the API's count (None if not all of it could be counted), and entries held."""

    contract: str
    start: int
    api: int | None
    held: int


class ContractRow(NamedTuple):
    """The books of a contract: complete from `origin` to before `watermark` (unix seconds), except open gaps and ranges.

    Each gap comes with its kind, each range with its purpose.
    """

    contract: str
    fetched: int
    new: int
    seen: int
    filtered: int
    origin: int
    watermark: int
    gaps: Sequence[tuple[Window, str]] = ()
    ranges: Sequence[tuple[Window, str]] = ()


class Facts(NamedTuple):
    """The values of the state. `gaps` are by contract, each with its kind. `waiting` counts the events after this batch."""

    head: Head
    due: Sequence[DueHour]
    gaps: Mapping[str, Sequence[tuple[Window, str]]]
    contracts: Sequence[ContractRow]
    assigned: int
    delivered: int
    dead: int
    waiting: int

    def with_gaps(self, gaps: Iterable[tuple[str, Window, str]]) -> Facts:
        """The same with further gaps that are not in this state: contract, span and kind of each."""
        known = {contract: set(spans) for contract, spans in self.gaps.items()}
        for contract, window, kind in gaps:
            known.setdefault(contract, set()).add((window, kind))
        return self._replace(gaps={contract: sorted(spans) for contract, spans in known.items()})


def compose(
    facts: Facts,
    objects: Iterable[Object],
    *,
    written_at: int,
    program: str,
    entry_format: str,
    key: str | None,
    next_key: str | None,
    abandoned: Iterable[Abandoned] = (),
) -> Digest:
    """The digest that follows the head. `written_at` is in unix seconds."""
    objects = tuple(objects)
    head = facts.head
    contracts = {
        row.contract: ContractBooks(
            row.fetched,
            row.new,
            row.seen,
            row.filtered,
            format_time(row.origin),
            format_time(row.watermark),
            tuple(StatedGap(format_time(window.start), format_time(window.end), kind) for window, kind in row.gaps),
            tuple(
                StatedRange(format_time(window.start), format_time(window.end), purpose)
                for window, purpose in row.ranges
            ),
        )
        for row in facts.contracts
    }
    sink = SinkBooks(facts.assigned, facts.delivered, facts.dead, facts.waiting)
    return Digest(
        format=FORMAT,
        archive=head.archive,
        number=head.number + 1,
        previous=head.sha256,
        written_at=format_time(written_at),
        program=program,
        entry_format=entry_format,
        key=key,
        next_key=next_key,
        entries=head.entries + sum(entry.entries for entry in objects),
        objects=objects,
        statements=tuple(_statements(facts)),
        books=Books(contracts, sink, is_all=facts.waiting == 0),
        abandoned=tuple(abandoned),
    )


def _statements(facts: Facts) -> Iterator[Statement]:
    for contract, start, api, held in facts.due:
        hour = Window(start, start + HOUR_SECONDS)
        gaps = tuple(
            StatedGap(format_time(max(gap.start, hour.start)), format_time(min(gap.end, hour.end)), kind)
            for gap, kind in facts.gaps.get(contract, ())
            if hour.overlaps(gap)
        )
        yield Statement(contract, format_time(start), api, held, gaps)
