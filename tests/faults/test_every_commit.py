"""A kill just before or just after each commit of each command loses nothing, and repeats at most a batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from poller.store.sqlite.schema import MIGRATIONS
from tests.faults.plan import Subject
from tests.faults.runs import sweep

PARTS = 3  # each test takes every third commit, so that they run side by side
CREATION = len(MIGRATIONS)  # the commits that create the tables
# The same code creates the tables of each command's state: one sweep over these commits is enough. Nothing outside of the state
# changes between them, so a kill after one commit equals the kill before the next.
FIRST: dict[tuple[Subject, bool], int] = {("run", True): 1}


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("subject", "fewest_commits"),
    # Sinks, contracts, windows, polls and batches: fewer would mean that the sweep ended too early.
    [("run", 14), ("fetch", 9), ("backfill", 6)],
)
def test_a_kill_at_any_commit_loses_nothing_and_repeats_at_most_a_batch(
    tmp_path: Path, subject: Subject, fewest_commits: int, is_before: bool, part: int
) -> None:
    first = FIRST.get((subject, is_before), CREATION + 1)
    swept = sweep(tmp_path, subject, is_before=is_before, first=first + part, step=PARTS)
    print(f"{len(swept)} commits")
    assert [account for account in swept if account.violations] == []
    assert len(swept) >= (CREATION + 1 - first + fewest_commits) // PARTS
