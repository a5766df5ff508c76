"""The bugs that the harness found, each as the shortest plan that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.plan import Life, Plan
from tests.faults.report import Account
from tests.faults.runs import BESIDE_OTHERS, carry_out


def after(tmp_path: Path, *lives: Life) -> Account:
    return carry_out(Plan(1, "run", lives), tmp_path / "plan", first_entries=100, slack=BESIDE_OTHERS)


@pytest.mark.parametrize("seconds", [-7200.0, 7200.0])
def test_a_clock_that_is_set_while_it_runs_keeps_no_poll_from_coming(tmp_path: Path, seconds: float) -> None:
    # The bug: the schedule waited for the next poll's wall-clock time, which was suddenly two hours away.
    account = after(tmp_path, Life("heal", after_seconds=1.5, clock=((1.0, seconds),)))
    assert account.violations == []
    assert account.recoveries == 2, "while it ran, and when it was started once more"


def test_when_a_full_disk_has_room_again_it_goes_on_within_seconds(tmp_path: Path) -> None:
    # The bug: a sink whose place could not be written waited for ten seconds, and delivered nothing meanwhile.
    account = after(tmp_path, Life("heal", after_seconds=1.5, trouble="disk-fills", entries=(400, 400)))
    assert account.violations == []
    assert 0 < account.recovery_seconds < 9  # usually three, more on a busy machine; ten with the bug


def test_a_clock_that_is_set_back_while_a_window_is_read_leaves_no_watermark_in_the_future(tmp_path: Path) -> None:
    # The bug: the start time of a poll was corrected by the clocks' difference at its end. tests/unit/test_clocks.py tests
    # this, too, and does not depend on when the clock is set.
    life = Life("heal", after_seconds=1.0, clock=((0.0, 7200.0), (1.2, 90.0)), faults=("latency:100ms",))
    assert after(tmp_path, life).violations == []
