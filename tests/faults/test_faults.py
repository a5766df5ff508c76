"""The fault harness on `run`: a short mix of what `make soak` does for hours, and proof that it finds what it looks for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.harness import Harness, run_plans

LIVES = 30


def test_nothing_is_lost_invented_or_needlessly_repeated_whatever_goes_wrong(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    reports = run_plans(tmp_path, LIVES, seed, lives_a_plan=LIVES)
    assert [report.violations for report in reports] == [[]], reports


@pytest.mark.parametrize(
    ("plant", "overlap"), [("", "0s"), ("watermark-first", "0s"), ("settle-first", "10m"), ("forget-ledger", "10m")]
)
def test_a_mistake_put_in_on_purpose_is_found(tmp_path: Path, plant: str, overlap: str) -> None:
    report = Harness(tmp_path, 7, plant=plant, patience_seconds=8, overlap=overlap).run(10)
    assert bool(report.violations) == bool(plant), report
