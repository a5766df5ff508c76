"""A line of the table that `make bench` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.benchmarks.measure import Cost

REPEATS = 3  # for short runs that have a goal: their median is used


class Row(NamedTuple):
    """One line of the table. `ratio`: our speed divided by that of the baseline; 1 is equally fast."""

    name: str
    ratio: float | None = None
    goal: str = ""
    ours_seconds: float | None = None
    theirs_seconds: float | None = None
    peak_mb: float | None = None
    cpu_us_per_entry: float | None = None
    written_kb_per_1000: float | None = None
    syncs_per_1000: float | None = None
    note: str = ""


def row_of(name: str, goal: str, mine: Cost, theirs: Cost | None, entries: int, note: str = "") -> Row:
    return Row(
        name,
        theirs.seconds / mine.seconds if theirs else None,
        goal,
        mine.seconds,
        theirs.seconds if theirs else None,
        mine.peak_mb,
        mine.cpu_seconds / entries * 1e6 if entries else None,
        mine.written_bytes / entries * 1000 / 1024 if entries else None,
        note=note,
    )


def middle(pairs: Sequence[tuple[Cost, Cost]]) -> tuple[Cost, Cost]:
    """The pair with the median ratio."""
    return sorted(pairs, key=lambda pair: pair[1].seconds / pair[0].seconds)[len(pairs) // 2]
