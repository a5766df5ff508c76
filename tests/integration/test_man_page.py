"""The manual page, read by the programs that show such pages."""

from __future__ import annotations

import subprocess

from tests.debian import program
from tests.generate_docs import MAN_PAGE


def test_mandoc_finds_nothing_wrong_but_that_it_has_no_date() -> None:
    mandoc = program("mandoc", "mandoc", "whether the manual page is well-formed")
    done = subprocess.run(
        [mandoc, "-Tlint", "-W", "warning", MAN_PAGE], capture_output=True, encoding="utf-8", timeout=30, check=False
    )
    assert [line for line in (done.stdout + done.stderr).splitlines() if "missing date" not in line] == []


def test_groff_shows_it_without_a_warning() -> None:
    man = program("man", "man-db", "whether the manual page can be shown")
    done = subprocess.run(
        [man, "--warnings", "--local-file", MAN_PAGE], capture_output=True, encoding="utf-8", timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for heading in ("NAME", "SYNOPSIS", "OPTIONS", "COMMANDS", "ENVIRONMENT", "FILES"):
        assert f"\n{heading}\n" in done.stdout
