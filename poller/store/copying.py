"""What a state is made of, whatever it is kept in: the rows that a copy of it must have. Pure.

Rows are tuples in the order of the columns below. `ledger` and `segments` are numbered by contract, oldest first, from 1. The
number in `places` is the last one that a sink is done with, and that in `cuts` the last one from before the sink was known. Rows
of `archive_batches` tell that a batch of an archive is being written; it is not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from poller.core.evidence.batches import Head
from poller.store.journal import JournalEntry
from poller.store.letters import StoredLetter
from poller.store.overview import Overview
from poller.store.rows import SINK_COLUMNS, Contract

Row = tuple[Any, ...]

COLUMNS = {
    "contracts": Contract._fields[:-1],  # nobody holds what is copied
    "ranges": ("contract", "start", "end", "purpose"),
    "filtered": ("reason", "count"),
    "facts": ("name", "value"),
    "forgotten": ("contract", "day", "counts"),
    "gaps": (
        "id", "contract", "start", "end", "kind", "reason", "first_seen", "tries", "next_try_at", "is_accepted", "is_narrow",
    ),
    "gap_entries": ("gap", "size", "content"),
    "journal": JournalEntry._fields[1:],
    "letter_books": ("sink", "written", "replayed", "purged"),
    "dead_letters": StoredLetter._fields[1:],
    "sinks": SINK_COLUMNS,
    "ledger": ("contract", "number", "hour", "is_timed", "first_us", "last_us", "updated_at", "identities"),
    "cuts": ("sink", "contract", "number"),
    "segments": (
        "contract", "number", "sink", "collected_at", "events", "bytes", "first_us", "checksum", "directory", "lines",
    ),
    "places": ("sink", "contract", "number", "position"),
    "archives": ("sink", *Head._fields),
    "archive_days": ("sink", "contract", "day", "counts", "is_open"),
    "archive_batches": ("sink", "number"),
}  # fmt: skip

CLOCK_TRAIL = "clock_trail"
"""The fact with the times of this machine's polls."""


class Dump(Protocol):
    """A state that nobody works on, as it is at one moment."""

    @property
    def use(self) -> str: ...

    @property
    def overview(self) -> Overview: ...

    def count(self) -> int:
        """How many rows there are, about: for progress."""

    def rows(self, table: str) -> Iterator[Row]:
        """The rows of one of `COLUMNS`, in its order of columns."""


Tick = Callable[[int], None]
"""Told how many more rows were copied."""


def differences(source: Overview, target: Overview) -> Sequence[str]:
    """What a copy has otherwise than its source, a line each."""
    pairs: tuple[tuple[str, object, object], ...] = (
        (
            "contracts",
            [row._replace(holder="") for row in source.contracts],
            [row._replace(holder="") for row in target.contracts],
        ),
        # What waits on its own in the one is found to be refused, and does so again, in the other.
        (
            "sinks",
            [row._replace(postponed=()) for row in source.sinks],
            [row._replace(postponed=()) for row in target.sinks],
        ),
        ("filtered", source.filtered, target.filtered),
        ("letters", source.letters, target.letters),
        ("pending", [row[1:] for row in source.pending], [row[1:] for row in target.pending]),
        ("archives", source.archives, target.archives),
        ("finished", source.finished, target.finished),
        ("taken_back", source.taken_back, target.taken_back),
        ("gaps", [row[1:] for row in source.gaps], [row[1:] for row in target.gaps]),
    )
    return [name for name, before, after in pairs if _as_kept(before) != _as_kept(after)]


def _as_kept(value: Any) -> Any:
    """The value with its texts as every backend can keep them: a database takes no NUL, which a file does."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {_as_kept(name): _as_kept(item) for name, item in value.items()}
    return [_as_kept(item) for item in value] if isinstance(value, list | tuple) else value
