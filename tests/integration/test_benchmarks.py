"""The benchmarks do the work that they measure, and their table and comparison are readable. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from poller import __version__
from tests.benchmarks.measure import cost_of_idling
from tests.support import TOP, clean_environment


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.benchmarks", *arguments]
    done = subprocess.run(command, cwd=TOP, env=clean_environment(), capture_output=True, text=True, check=True)
    return done.stdout


def test_a_row_is_measured_shown_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    table = bench("--quick", "--only", "tutorial", "--save", str(kept))
    (first, _) = json.loads(kept.read_text())
    assert first["ratio"] == first["theirs_seconds"] / first["ours_seconds"]
    assert first["cpu_us_per_entry"] > 0
    assert first["peak_mb"] > 10
    heading, _, row = table.splitlines()[:3]
    assert heading.count("|") == row.count("|")
    assert f"| {first['name']} | {first['ratio']:.2f} |" in row


def test_the_table_of_the_documentation_is_that_of_the_kept_results() -> None:
    kept = TOP / "tests" / "benchmarks" / "results" / f"{__version__}.json"
    assert bench("--show", str(kept)) in (TOP / "docs" / "performance.md").read_text()


def test_two_results_are_compared_row_by_row(tmp_path: Path) -> None:
    row = {"name": "deliver", "ratio": 0.5, "peak_mb": 70.0, "cpu_us_per_entry": 9.0}
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps([row]))
    new.write_text(json.dumps([row | {"ratio": 0.75}, row | {"name": "new here"}]))
    *_, deliver, added = bench("--compare", str(old), str(new)).splitlines()
    assert deliver == "| deliver | 0.50 | 0.75 | 70.00 | 70.00 | 9.00 | 9.00 |"
    assert added == "| new here |  | 0.50 |  | 70.00 |  | 9.00 |"


def test_what_a_program_costs_while_it_idles_leaves_out_its_start(tmp_path: Path) -> None:
    # The program is busy, then idle for longer than the measurement. It sleeps itself; the test does not.
    busy = "import time; sum(range(10**7)); print(flush=True); time.sleep(60)"
    cost = cost_of_idling([sys.executable, "-c", busy], 0.5, env=clean_environment(), cwd=tmp_path, settling_seconds=5)
    assert cost.seconds >= 0.5
    # It sleeps when the measurement begins, even on a busy machine: its start takes a third of a second of processor.
    assert cost.cpu_seconds < 0.2
    assert cost.peak_mb > 1
