"""`make soak`: the fault harness for as long as you like, with a report.

    make soak ARGS="--kills 1000"            until the program was killed 1000 times; report: build/faults.md and .json
    make soak ARGS="--seed 7 --lives 25"     the plan of that seed once more, and no other
    make soak ARGS="--seconds 28800"         for a night
    make soak ARGS="--cluster --faults 1000" three replicas on a PostgreSQL database, until 1000 faults struck
    make soak ARGS="--cluster --rolling"     three replicas, each replaced three times under load

Ends with 1 if anything was found. The directories of plans that found something are kept, and their names printed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.faults.cluster_plan import ClusterPlan, draw_cluster, rolling_restart
from tests.faults.plan import LIVES_A_PLAN, Plan, draw
from tests.faults.report import Account, as_markdown, save
from tests.faults.runs import JOBS, carry_out_all


def main() -> int:
    arguments = read_arguments(sys.argv[1:])
    print(f"seed {arguments.seed}, {arguments.jobs} plans at a time", flush=True)
    os.umask(0o077)  # a key file that others can read is refused
    started = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    accounts: list[Account] = []

    def tell(account: Account) -> None:
        accounts.append(account)
        print(account, flush=True)

    def is_enough() -> bool:
        if arguments.cluster:
            is_done = sum(account.faults.total() for account in accounts) >= arguments.faults
        else:
            is_done = sum(account.kills for account in accounts) >= arguments.kills
        return is_done or time.monotonic() - started >= arguments.seconds

    with contextlib.suppress(KeyboardInterrupt):  # the findings so far are still reported
        carry_out_all(
            _chosen(arguments), place, jobs=arguments.jobs, tell=tell, is_enough=is_enough, plant=arguments.plant
        )
    if not accounts:
        return 1
    seconds = time.monotonic() - started
    save(accounts, seconds, arguments.report)
    print(as_markdown(accounts, seconds), end="")
    if any(account.violations for account in accounts):
        print(f"what was found lies in {place}")
        return 1
    shutil.rmtree(place)
    return 0


def read_arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first plan; the next has the next")
    parser.add_argument("--kills", type=int, help="stop after so many `kill -9` (default: 1000, without another end)")
    parser.add_argument("--lives", type=int, help="stop after so many lives, in plans of 25")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--jobs", type=int, default=JOBS, help="so many plans at a time")
    parser.add_argument("--report", type=Path, default=Path("build/faults"), help="where to, without the suffix")
    parser.add_argument("--cluster", action="store_true", help="plans of three replicas on a database instead")
    parser.add_argument("--faults", type=int, default=1000, help="of a cluster: stop after so many")
    parser.add_argument(
        "--rolling", action="store_true", help="of a cluster: a rolling restart, three times, and no other plan"
    )
    parser.add_argument(
        "--plant", default="", help="a mistake of tests/faults/plants.py or cluster_plants.py to put in"
    )
    arguments = parser.parse_args(given)
    if arguments.kills is None:
        has_another_end = arguments.lives is not None or arguments.seconds is not None
        arguments.kills = float("inf") if has_another_end else 1000
    if arguments.seconds is None:
        arguments.seconds = float("inf")
    return arguments


def _chosen(arguments: argparse.Namespace) -> Iterable[Plan] | Iterable[ClusterPlan]:
    if not arguments.cluster:
        return _plans(arguments.seed, arguments.lives)
    if arguments.rolling:
        return [rolling_restart(arguments.seed)]
    return map(draw_cluster, itertools.count(arguments.seed))


def _plans(seed: int, lives: int | None) -> Iterable[Plan]:
    """Whole plans, one seed after the other. With `lives`, the plans have that many lives in total; the last may be shorter."""
    if lives is None:
        return map(draw, itertools.count(seed))
    starts = range(0, lives, LIVES_A_PLAN)
    return [draw(seed + number, min(LIVES_A_PLAN, lives - start)) for number, start in enumerate(starts)]


if __name__ == "__main__":
    raise SystemExit(main())
