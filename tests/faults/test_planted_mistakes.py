"""Mistakes put in on purpose: the harness must find each of them, and must find nothing without a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.daemon import FIRST, LOGGING, LOKI
from tests.faults.oracle import FILE, KAFKA
from tests.faults.plan import Life, Plan, Subject
from tests.faults.plants import PLANTS
from tests.faults.runs import BESIDE_OTHERS, carry_out

FEW_ENTRIES = 400
# Up to this many plans must find a mistake: chance decides what a plan hits, and on a slow machine it hits less.
PLANS = 3
# One sink for each way of delivery, without a broker: with all sinks each life takes twice as long.
FEW_SINKS = (LOGGING, LOKI, FILE)


def _lives(*faults: str, count: int = 1, **options: object) -> tuple[Life, ...]:
    return (Life("kill", faults=faults, **{"after_seconds": 0.7, **options}),) * count  # type: ignore[arg-type]


QUIET = _lives()
# Mistake -> a word of the violation that the harness must report, the overlap, and the lives that show it.
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
    "ignore-loki-refusals": ("loki", "10m", _lives("sink=loki:400:60%", after_seconds=1.5, count=2)),
    "several-streams-in-one-push": ("loki:", "10m", _lives(trouble="loki-limits", after_seconds=1.5, count=2)),
    "settle-before-kafka-reports": ("kafka:", "10m", QUIET),
    "forget-transaction-in-doubt": (
        "kafka:",
        "10m",
        _lives("sink=*:lost-ack:30%", after_seconds=2.5, count=2, entries=(1500, 1500)),
    ),
    "advance-too-far": ("future", "10m", QUIET),
    "never-take-back": ("LOST", "10m", _lives("undated", clock=((0.0, 7200.0),)) + _lives(count=2)),
    "skip-failed-page": ("LOST", "0s", _lives(f"contract={FIRST}:500", after_seconds=2.5)),
    "stop-at-first-page": ("LOST", "10m", QUIET),
    "lose-last-of-batch": ("LOST", "10m", QUIET),
    "repeat-first-of-batch": ("REPEATED", "10m", QUIET),
    "change-a-byte": ("INVENTED", "10m", QUIET),
    "keep-torn-lines": ("INVENTED", "10m", _lives(count=2)),
    "leave-half-lines": ("INVENTED", "10m", (Life("kill", at=2, trouble="disk-full", after_seconds=2.0), *QUIET)),
    "settle-more-than-sent": ("LOST", "10m", QUIET),
    "never-settle": ("REPEATED", "10m", QUIET),
    "open-twice": ("REPEATED", "10m", _lives(trouble="people", after_seconds=2.5, count=2)),
    "resend-all-after-failure": ("REPEATED", "10m", _lives("sink=*:500:30%")),
    "distrust-bad-bodies": ("REPEATED", "10m", _lives("sink=*:cut", after_seconds=1.5)),
    "forget-gaps": ("LOST", "0s", _lives("null:count=150", after_seconds=2.5)),
    # Without the digest, nothing more is written after it.
    "archive-complete-first": ("proof:", "10m", _lives(after_seconds=2.0, count=2)),
    "archive-composed-anew": ("REPEATED", "10m", _lives(after_seconds=2.0, count=2)),
    "gap-holds-watermark": ("STANDS STILL", "10m", (Life("heal", faults=("null:count=150",)),)),
    "one-contract-holds-all": ("STANDS STILL", "10m", (Life("heal", trouble="contract-limited"),)),
    # Lost, or blocking the others: that depends on the events behind it when it is refused.
    "postpone-unwritten": ("loki", "10m", (Life("heal", trouble="contract-limited"),)),
}


# All others are tested with the daemon.
OF_FETCH = ("leave-half-lines",)
OF_A_BROKER = ("settle-before-kafka-reports", "forget-transaction-in-doubt")
# The first entries are spread over hours, so that a batch holds several Loki streams.
OVER_HOURS = ("several-streams-in-one-push",)


@pytest.mark.parametrize("plant", PLANTS)
def test_a_mistake_put_in_on_purpose_is_found(tmp_path: Path, plant: str) -> None:
    what, overlap, lives = FOUND_BY[plant]
    subject: Subject = "fetch" if plant in OF_FETCH else "run"
    options: dict[str, Any] = {"plant": plant, "first_entries": FEW_ENTRIES}
    if subject == "run":
        options["overlap"] = overlap
        options["sinks"] = (*FEW_SINKS, KAFKA) if plant in OF_A_BROKER else FEW_SINKS
    if plant in OVER_HOURS:
        options["span_seconds"] = 3 * 3600
    accounts = []
    for seed in range(1, PLANS + 1):
        accounts.append(carry_out(Plan(seed, subject, lives), tmp_path / f"plan-{seed}", **options))
        if what in " ".join(accounts[-1].violations):
            return
    pytest.fail(f"not found by {PLANS} plans: {accounts}")


LIVES_WITH_AN_OVERLAP = list(
    dict.fromkeys(life for _, overlap, lives in FOUND_BY.values() for life in lives if overlap != "0s")
)


@pytest.mark.parametrize("part", range(3))
def test_without_a_mistake_the_same_lives_find_nothing(tmp_path: Path, part: int) -> None:
    plan = Plan(99, "run", tuple(LIVES_WITH_AN_OVERLAP[part::3]))
    account = carry_out(plan, tmp_path / "plan", first_entries=FEW_ENTRIES, sinks=FEW_SINKS, slack=BESIDE_OTHERS)
    assert account.violations == [], account
