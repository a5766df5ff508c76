"""Plans and reports, without a process: the plan of a seed, and the text of the findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from poller.simulator import faults as known
from poller.simulator.faults import parse_fault
from tests.faults.plan import LIVES_A_PLAN, SUBJECTS, End, Trouble, draw
from tests.faults.report import Account, save


def test_a_seed_gives_the_same_plan_and_another_seed_another() -> None:
    assert draw(4) == draw(4)
    assert draw(4).lives != draw(14).lives
    assert len(draw(4).lives) == LIVES_A_PLAN


def test_ten_seeds_in_a_row_have_every_command_and_a_hundred_every_fault_there_is() -> None:
    plans = [draw(seed) for seed in range(100)]
    assert {plan.subject for plan in plans[40:50]} == set(SUBJECTS)
    lives = [life for plan in plans for life in plan.lives]
    drawn = [parse_fault(fault) for life in lives for fault in life.faults]
    assert {fault.kind for fault in drawn if not fault.sink} >= set(known._BOTH) | set(known._API_ONLY)
    assert {fault.kind for fault in drawn if fault.sink} >= set(known._BOTH) | set(known._SINK_ONLY)
    assert {life.end for life in lives} == set(get_args(End))
    assert {life.trouble for life in lives} == set(get_args(Trouble))
    assert {life.damage.is_cut for life in lives if life.damage} == {True, False}
    steps = [seconds for life in lives for at, seconds in life.clock if at]
    assert min(steps) < 0 < max(steps)


def test_the_report_names_what_was_found(tmp_path: Path) -> None:
    account = Account(3, "run", lives=2, violations=["life 1: 5 LOST"])
    account.ends.update({"kill": 1, "commit": 1})
    save([account], 60, tmp_path / "report")
    text = (tmp_path / "report.md").read_text()
    assert "| **2**, 0 of them with entries on their way |" in text
    assert "seed 3: life 1: 5 LOST" in text
    (plan,) = json.loads((tmp_path / "report.json").read_text())["plans"]
    assert (plan["seed"], plan["ends"]) == (3, {"kill": 1, "commit": 1})
