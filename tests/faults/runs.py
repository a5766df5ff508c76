"""Runs plans, several at a time, each in a process and a directory of its own; and the sweep over commits."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tests.daemon import LOGGING, LOKI
from tests.faults.cluster import ClusterHarness
from tests.faults.cluster_plan import ClusterPlan
from tests.faults.commands import CommandHarness
from tests.faults.harness import Harness
from tests.faults.oracle import FILE, KAFKA
from tests.faults.plan import Life, Plan, Subject
from tests.faults.report import Account

# `slack`: other tests run at the same time and make everything slower. `make soak` checks the strict time limits.
BESIDE_OTHERS = 3.0
JOBS = max(1, min(4, os.cpu_count() or 1))
_SWEPT_ENTRIES = 15  # by contract: two batches at each sink, one window for each contract
_SWEPT_SINKS = (LOGGING, LOKI, KAFKA, FILE)  # and an archive; the other sinks over HTTP commit like the Logging Service
_SWEPT_PATIENCE_SECONDS = 8.0  # a busy machine must not end the sweep before its last commit


def carry_out(plan: Plan | ClusterPlan, directory: Path, **options: Any) -> Account:
    """Run one plan with the harness of its command."""
    if isinstance(plan, ClusterPlan):
        account = ClusterHarness(directory, plan, **options).run()
    else:
        harness = Harness if plan.subject in ("run", "damage") else CommandHarness
        account = harness(directory, plan, **options).run()
    if account.violations:
        (directory / "account").write_text(f"{account}\n")
    return account


def carry_out_all(
    plans: Iterable[Plan] | Iterable[ClusterPlan],
    directory: Path,
    *,
    jobs: int = JOBS,
    tell: Callable[[Account], None] = print,
    is_enough: Callable[[], bool] = lambda: False,
    plant: str = "",
) -> list[Account]:
    """Run plans, `jobs` at a time, until none is left or `is_enough()`. `tell` is called with each account.

    Returns the accounts, ordered by seed. If the harness failed, the account of the plan says why.
    """
    accounts: list[Account] = []
    waiting: dict[Future[Account], Plan | ClusterPlan] = {}
    rest: Iterator[Plan | ClusterPlan] = iter(plans)
    with pool(jobs) as workers:
        while True:
            if not is_enough():
                for plan in itertools.islice(rest, jobs - len(waiting)):
                    waiting[workers.submit(carry_out, plan, directory / f"{plan.subject}-{plan.seed}", plant=plant)] = (
                        plan
                    )
            if not waiting:
                return sorted(accounts, key=lambda account: account.seed)
            for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                account = _account(done, waiting.pop(done))
                accounts.append(account)
                tell(account)


def _account(done: Future[Account], plan: Plan | ClusterPlan) -> Account:
    error = done.exception()
    if error is None:
        return done.result()
    account = Account.of(plan)
    account.violate(f"the harness failed: {error!r}")
    return account


def pool(jobs: int) -> ProcessPoolExecutor:
    """Processes that run plans. Spawned, not forked, because we have threads."""
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def sweep(directory: Path, subject: Subject, *, is_before: bool, first: int = 1, step: int = 1) -> list[Account]:
    """Run a small task of the command again and again, and kill it at one commit after the other, until it has no more commits.

    From commit number `first` on, every `step`-th. One account for each. After each kill it is started again without faults.
    """
    kills = _kills(directory, subject, is_before, itertools.count(first, step))
    return list(itertools.takewhile(lambda account: account.ends["commit"], kills))


def _kills(directory: Path, subject: Subject, is_before: bool, numbers: Iterable[int]) -> Iterator[Account]:
    options: dict[str, Any] = {"first_entries": _SWEPT_ENTRIES, "slack": BESIDE_OTHERS}
    if subject == "run":
        options["sinks"] = _SWEPT_SINKS
        options["interval"] = "1m"  # otherwise there is always one more commit, of an empty poll
    for number in numbers:
        life = Life("commit", at=number, is_before=is_before, entries=(0, 0), patience_seconds=_SWEPT_PATIENCE_SECONDS)
        yield carry_out(Plan(number, subject, (life,)), directory / f"{subject}-{is_before}-{number}", **options)
