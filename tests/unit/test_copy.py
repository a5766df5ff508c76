"""Copying a state, with two fake sides: what is refused before anything is written, and how progress is reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from poller.core.errors import StateError
from poller.pipeline.copy import copy
from poller.store.archives import WRITER
from tests import views


class Dump:
    def __init__(self, use: str, count: int = 0, finished: str | None = None, **tables: Sequence[tuple[Any, ...]]):
        self.use = use
        self.overview = views.state(finished=finished)
        self._count = count
        self._tables: Mapping[str, Sequence[tuple[Any, ...]]] = tables

    def count(self) -> int:
        return self._count

    def rows(self, table: str) -> Iterator[tuple[Any, ...]]:
        return iter(self._tables.get(table, ()))


class Side:
    """A source with dumps, or a target that loads rows in `steps`."""

    place = "state/"

    def __init__(self, *dumps: Dump, steps: Sequence[int] = ()) -> None:
        self.dumps = dumps
        self.steps = steps
        self.loaded: list[str] = []

    @contextmanager
    def dump(self) -> Iterator[Sequence[Dump]]:
        yield self.dumps

    def where(self, use: str) -> str:
        return f"{self.place}{use}.db"

    def load(self, dumps: Sequence[Dump], tick: Callable[[int], None]) -> None:
        self.loaded = [dump.use for dump in dumps]
        for step in self.steps:
            tick(step)


def copied(source: Side, target: Side) -> tuple[list[str], list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    sides: list[Any] = [source, target]
    return copy(sides[0], sides[1], lambda done, of: told.append((done, of))), told


def test_all_uses_are_copied_and_every_thousandth_row_is_told() -> None:
    source, target = Side(Dump("run", 2000), Dump("fetch", 500)), Side(steps=[1, 999, 1, 999, 500])
    assert copied(source, target) == (["run", "fetch"], [(1000, 2500), (2000, 2500), (2500, 2500)])
    assert target.loaded == ["run", "fetch"]


def test_where_there_is_no_state_nothing_is_copied() -> None:
    with pytest.raises(StateError, match="state/: there is no state to copy"):
        copied(Side(), Side())


@pytest.mark.parametrize(
    ("dump", "why"),
    [
        (Dump("run", archive_batches=[("proof", b"")]), "state/run.db: a batch of the archive proof is being written"),
        (Dump("backfill-1", facts=[("range", "1/2"), (WRITER, "x")]), "state/backfill-1.db: .* is not finished"),
    ],
)
def test_what_belongs_to_where_it_is_written_is_not_copied_nor_is_anything_else(dump: Dump, why: str) -> None:
    target = Side()
    with pytest.raises(StateError, match=why):
        copied(Side(Dump("run"), dump), target)
    assert target.loaded == []


@pytest.mark.parametrize(
    "dump",
    [Dump("backfill-1", 1, "2026-05-01T00:00:00Z", facts=[(WRITER, "x")]), Dump("run", facts=[("range", "1/2")])],
)
def test_what_is_finished_or_writes_to_no_archive_is_copied(dump: Dump) -> None:
    assert copied(Side(dump), Side())[0] == [dump.use]
