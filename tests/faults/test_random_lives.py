"""The fault harness, briefly: a mix of what `make soak` does for hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.plan import Subject, draw
from tests.faults.runs import BESIDE_OTHERS, carry_out
from tests.support import seed_of_chance

LIVES = 10


@pytest.mark.parametrize(("number", "subject"), list(enumerate(("run", "run", "damage", "fetch", "backfill"))), ids=str)
def test_nothing_is_lost_invented_or_needlessly_repeated_whatever_goes_wrong(
    tmp_path: Path, number: int, subject: Subject
) -> None:
    account = carry_out(draw(seed_of_chance() + number, LIVES, subject), tmp_path / "plan", slack=BESIDE_OTHERS)
    assert account.violations == [], account
