"""`make soak`: the fault harness for as long as you like, with a report.

python -m tests.faults [--lives N] [--seconds S] [--seed N] [--report FILE]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.daemon import LOGGING, LOKI
from tests.faults.harness import Report, run_plans


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--lives", type=int, default=1000, help="how many times the daemon is to die")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="where the plans begin")
    parser.add_argument("--report", type=Path, help="append what was found to this file")
    arguments = parser.parse_args()
    started = time.monotonic()
    reports: list[Report] = []
    while sum(sum(report.lives.values()) for report in reports) < arguments.lives:
        if time.monotonic() - started > arguments.seconds:
            break
        lives = min(50, arguments.lives - sum(sum(report.lives.values()) for report in reports))
        with tempfile.TemporaryDirectory() as place:
            reports += run_plans(
                Path(place), lives, arguments.seed + len(reports), tell=lambda text: print(text, flush=True)
            )
    summary = summarise(reports, time.monotonic() - started)
    print(summary)
    if arguments.report:
        arguments.report.write_text("\n".join([*map(str, reports), summary, ""]))
    return 1 if any(report.violations for report in reports) else 0


def summarise(reports: list[Report], seconds: float) -> str:
    lives = sum(sum(report.lives.values()) for report in reports)
    kills = sum(report.lives["kill"] + report.lives["commit"] for report in reports)
    repeats = {name: sum(report.repeats[name] for report in reports) for name in (LOGGING, LOKI)}
    found = sum(len(report.violations) for report in reports)
    entries = sum(report.entries for report in reports)
    return (
        f"{lives} lives, {kills} of them killed, {entries} entries to two sinks, in {seconds / 60:.0f} min: "
        f"{found} violations; repeats: {repeats}; seeds {reports[0].seed}"
        f" to {reports[-1].seed}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
