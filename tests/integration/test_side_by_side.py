"""Tests run in parallel with the options of the Makefile: one worker runs all tests of a unit."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support import TOP, clean_environment


def test_one_worker_takes_all_tests_of_a_unit() -> None:
    options = re.search(r"(?m)^SIDE_BY_SIDE := (.*)$", (TOP / "Makefile").read_text())
    assert options
    command = f"-m pytest -v {options[1].replace('$(WORKERS)', '2')} -p no:cacheprovider tests/unit/test_order.py"
    run = subprocess.run(
        [sys.executable, *command.split()],
        cwd=TOP,
        env=clean_environment(),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    workers = re.findall(r"(?m)^\[(gw\d)\].* PASSED ", run.stdout)
    assert (run.returncode, len(workers), len(set(workers))) == (0, 5, 1), run.stdout + run.stderr
