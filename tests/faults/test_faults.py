"""The fault harness, briefly: a mix of what `make soak` does for hours, all commits in a row, and that it finds mistakes."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any, get_args

import pytest

from poller.simulator import faults as known
from poller.simulator.faults import parse_fault
from tests.daemon import FIRST
from tests.faults.plan import LIVES_A_PLAN, SUBJECTS, End, Life, Plan, Subject, Trouble, draw
from tests.faults.plants import PLANTS
from tests.faults.report import Account, save
from tests.faults.runs import JOBS, carry_out, carry_out_all, pool, sweep_all
from tests.support import seed_of_chance

LIVES = 10


def test_nothing_is_lost_invented_or_needlessly_repeated_whatever_goes_wrong(tmp_path: Path) -> None:
    seed = seed_of_chance()
    plans = [
        draw(seed + number, LIVES, subject)
        for number, subject in enumerate(("run", "run", "damage", "fetch", "backfill"))
    ]
    accounts = carry_out_all(plans, tmp_path)
    assert [account.violations for account in accounts] == [[]] * len(plans), accounts


def test_a_kill_at_any_commit_loses_nothing_and_repeats_at_most_a_batch(tmp_path: Path) -> None:
    swept = sweep_all(tmp_path)
    print({name: len(accounts) for name, accounts in swept.items()})
    assert [account for accounts in swept.values() for account in accounts if account.violations] == []
    # The schema, sinks, contracts, windows, polls and batches: fewer would mean that the sweep ended too early.
    assert min(len(swept["run, before"]), len(swept["run, after"])) >= 14
    assert min(len(accounts) for accounts in swept.values()) >= 6


# Mistakes put in on purpose: what the harness must say of each, and the lives in which it comes to light.


def _lives(*faults: str, count: int = 1, **options: object) -> tuple[Life, ...]:
    return (Life("kill", faults=faults, **{"after_seconds": 0.7, **options}),) * count  # type: ignore[arg-type]


QUIET = _lives()
FOUND_BY = {
    "watermark-first": ("LOST", "0s", _lives(count=2)),
    "ledger-late": ("REPEATED", "10m", _lives(count=2)),
    "settle-first": ("LOST", "10m", _lives("sink=*:500:50%", count=2)),
    "miscount": ("books", "10m", QUIET),
    "forget-overlap": ("LOST", "10m", _lives(late_seconds=1.5) + _lives(count=2)),
    "forget-ledger": ("REPEATED", "10m", _lives(count=2)),
    "drop-on-4xx": ("LOST", "10m", _lives("sink=*:422:60%")),
    "drop-on-5xx": ("LOST", "10m", _lives("sink=*:500:60%")),
    "drop-on-bad-key": ("LOST", "10m", _lives(trouble="keys")),
    "ignore-loki-refusals": ("loki", "10m", _lives("sink=loki:400:60%")),
    "several-streams-in-one-push": ("loki:", "10m", _lives(trouble="loki-limits", after_seconds=1.5, count=2)),
    "advance-too-far": ("future", "10m", QUIET),
    "never-take-back": ("LOST", "10m", _lives("undated", clock=((0.0, 7200.0),)) + _lives(count=2)),
    "skip-failed-page": ("LOST", "0s", _lives(f"contract={FIRST}:500", after_seconds=2.5)),
    "stop-at-first-page": ("LOST", "10m", QUIET),
    "lose-last-of-batch": ("LOST", "10m", QUIET),
    "repeat-first-of-batch": ("REPEATED", "10m", QUIET),
    "change-a-byte": ("INVENTED", "10m", QUIET),
    "keep-torn-lines": ("INVENTED", "10m", (Life("write", at=2), *QUIET)),
    "leave-half-lines": ("INVENTED", "10m", (Life("kill", at=2, trouble="disk-full", after_seconds=2.0), *QUIET)),
    "settle-more-than-sent": ("LOST", "10m", QUIET),
    "never-settle": ("REPEATED", "10m", QUIET),
    "open-twice": ("REPEATED", "10m", _lives(trouble="people", after_seconds=2.5, count=2)),
    "resend-all-after-failure": ("REPEATED", "10m", _lives("sink=*:500:30%")),
    "distrust-bad-bodies": ("REPEATED", "10m", _lives("sink=*:cut", after_seconds=1.5)),
    "forget-gaps": ("LOST", "0s", _lives("null:count=150", after_seconds=2.5)),
    "gap-holds-watermark": ("STANDS STILL", "10m", (Life("heal", faults=("null:count=150",)),)),
}


# All others are in the daemon.
OF_FETCH = ("leave-half-lines",)
# The first entries are those of some hours, so that a batch holds several streams of Loki's.
OVER_HOURS = ("several-streams-in-one-push",)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Account]:
    """All mistakes, and the same lives without one, tried side by side."""
    place = tmp_path_factory.mktemp("planted")
    with pool(JOBS) as workers:
        tried: dict[str, Future[Account]] = {}
        for number, (plant, (_, overlap, lives)) in enumerate(FOUND_BY.items()):
            options: dict[str, Any] = {"plant": plant, "first_entries": 400}
            subject: Subject = "fetch" if plant in OF_FETCH else "run"
            if subject == "run":
                options["overlap"] = overlap
            if plant in OVER_HOURS:
                options["span_seconds"] = 3 * 3600
            tried[plant] = workers.submit(carry_out, Plan(number, subject, lives), place / plant, **options)
        every = tuple(life for _, overlap, lives in FOUND_BY.values() for life in lives if overlap != "0s")
        tried[""] = workers.submit(carry_out, Plan(99, "run", every), place / "none")
        return {plant: future.result() for plant, future in tried.items()}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_mistake_put_in_on_purpose_is_found(planted: dict[str, Account], plant: str) -> None:
    words = " ".join(planted[plant].violations)
    assert FOUND_BY[plant][0] in words, planted[plant]


def test_without_a_mistake_the_same_lives_find_nothing(planted: dict[str, Account]) -> None:
    assert planted[""].violations == []


# The plans


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
