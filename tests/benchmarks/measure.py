"""Running a program and seeing what it cost: wall and CPU seconds, peak memory, bytes written, entries printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import TOP, clean_environment


class Cost(NamedTuple):
    """What one run cost. `lines` is what it printed."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    lines: int


def run(arguments: Sequence[str], *, env: dict[str, str], cwd: Path) -> Cost:
    """Run a program to its end, its output to a file.  Raises: RuntimeError when it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        process = subprocess.Popen(arguments, stdout=output, stderr=errors, env=env, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(arguments)}: {process.returncode}: {errors.read()[-2000:].decode()}")
        output.seek(0)
        lines = sum(chunk.count(b"\n") for chunk in iter(lambda: output.read(1 << 20), b""))
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, lines)


def bare(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.bare", *arguments]


def ours(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "poller", "--log-level", "warning", *arguments]


def environment(url: str, state: Path, **more: str) -> dict[str, str]:
    """The environment of a run of ours against a simulator, with the rate limit out of the way."""
    return clean_environment(
        {
            "PYTHONPATH": str(TOP),
            "IONOS_API_URL": url,
            "IONOS_API_TOKEN": "demo-token",
            "IONOS_POLLER_STATE_DIR": str(state),
            "IONOS_POLLER_API__REQUESTS_PER_SECOND": "10000",
            **more,
        }
    )


@contextmanager
def simulator(*, contracts: int, events: int, span: str, latency_ms: int = 0) -> Iterator[str]:
    """A simulator in a process of its own; gives its URL."""
    arguments = [sys.executable, "-m", "poller", "simulate", "--port", "0"]
    arguments += ["--contracts", str(contracts), "--events", str(events), "--span", span]
    if latency_ms:
        arguments += ["--fault", f"latency:{latency_ms}ms"]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env=clean_environment({"PYTHONPATH": str(TOP)})
    )
    try:
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline())
        if match is None:
            raise RuntimeError("the simulator did not start")
        yield match[0]
    finally:
        process.terminate()
        process.wait()


def state_of(url: str) -> dict[str, Any]:
    """What the simulator has seen so far."""
    with urllib.request.urlopen(f"{url}/_simulator/state") as answer:
        return dict(json.load(answer))
