"""Check whether a package in the lock has a known vulnerability: `python -m tests.vulnerabilities requirements-dev.lock`.

`pip-audit` asks, and this module judges its answer, because its exit code is not precise enough: it is 0 with "no known
vulnerabilities" if the index knew none of the packages, and 1 both for a vulnerability and for a missing connection. If the index
does not answer, the check is reported as skipped and does not fail: the server of somebody else must not stop the work.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

DEADLINE_SECONDS = 120
ANSWER_SECONDS = 10
# How its traceback or message ends if the index did not answer, or its answer was not that of an index.
NOT_REACHED = re.compile(r"requests\.exceptions\.\w+|Could not connect to PyPI|PyPI is not redirecting|ServiceError")


class Verdict(NamedTuple):
    """The text to print, and whether it is a failure."""

    is_failed: bool
    lines: tuple[str, ...]


def main(lock: Path) -> int:
    verdict = ask(lock)
    print("\n".join(f"vulnerabilities: {line}" for line in verdict.lines), flush=True)
    return int(verdict.is_failed)


def ask(lock: Path, deadline_seconds: float = DEADLINE_SECONDS) -> Verdict:
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--requirement", str(lock), "--format", "json"]
    try:
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--timeout", str(ANSWER_SECONDS)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=deadline_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _not_checked(f"the index did not answer within {deadline_seconds:g} s")
    return judge(done.stdout, done.stderr)


def judge(stdout: str, stderr: str) -> Verdict:
    """Judge the two outputs of pip-audit. stdout is JSON if it could ask; otherwise stderr has the reason."""
    if not stdout.strip():
        if NOT_REACHED.search(stderr):
            return _not_checked("the index cannot be reached")
        return Verdict(is_failed=True, lines=("pip-audit failed:", *stderr.splitlines()[-10:]))
    packages = json.loads(stdout)["dependencies"]
    asked = [package for package in packages if "skip_reason" not in package]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        f"{package['name']} {package['version']}: {item['id']}, mended in {', '.join(item['fix_versions']) or 'no version'}"
        for package in asked
        for item in package["vulns"]
    ]
    if not asked:
        return _not_checked(f"the index knows none of the {len(unknown)} packages")
    lines = found or [f"none known in {len(asked)} packages"]
    if unknown:
        lines += _not_checked(f"the index does not know {', '.join(unknown)}").lines
    return Verdict(bool(found), tuple(lines))


def _not_checked(reason: str) -> Verdict:
    return Verdict(
        is_failed=False, lines=(f"SKIPPED: NOT CHECKED whether the lock has known vulnerabilities: {reason}",)
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
