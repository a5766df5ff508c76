"""Runs programs and measures the cost: wall and CPU seconds, peak memory, bytes written, entries printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support import TOP, clean_environment


class Cost(NamedTuple):
    """The cost of one run. `written_bytes`: bytes that the kernel wrote to disk for it. `lines`: how many lines it printed."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    written_bytes: int
    lines: int = 0
    last_line: str = ""


def run(arguments: Sequence[str], *, env: dict[str, str], cwd: Path) -> Cost:
    """Run a program to its end, with its output in a file.  Raises: RuntimeError if it fails."""
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
        lines, last = 0, b""
        for lines, last in enumerate(output, 1):  # noqa: B007  # for the last line
            pass
    cpu_seconds = usage.ru_utime + usage.ru_stime
    written_bytes = usage.ru_oublock * 512
    return Cost(seconds, cpu_seconds, usage.ru_maxrss / 1024, written_bytes, lines, last[:100].decode().strip())


def sync_count(arguments: Sequence[str], *, env: dict[str, str], cwd: Path) -> int | None:
    """How often a program waits for the disk (fsync, fdatasync), in a separate run; None without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    with tempfile.NamedTemporaryFile("r") as trace:
        traced = [strace, "-f", "-qq", "-e", "trace=fsync,fdatasync", "-e", "signal=none", "-o", trace.name]
        subprocess.run([*traced, *arguments], env=env, cwd=cwd, check=True, capture_output=True)
        return sum(re.search(r"\bf(data)?sync\(", line) is not None for line in trace)


def cost_of_idling(
    arguments: Sequence[str],
    seconds: float,
    *,
    env: dict[str, str],
    cwd: Path,
    settling_seconds: float = 20.0,
    look: Callable[[], None] = lambda: None,
) -> Cost:
    """The cost of `seconds` of a program that runs until SIGTERM, measured after `settling_seconds`.

    `look` is called at the start and at the end of the measurement.
    """
    process = subprocess.Popen(arguments, env=env, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(settling_seconds)  # its start is not measured here
        look()
        before, started = _so_far(process.pid), time.monotonic()
        time.sleep(seconds)  # the idle time that is measured
        look()
        after, elapsed = _so_far(process.pid), time.monotonic() - started
    finally:
        process.terminate()
        process.wait()
    return Cost(elapsed, after[0] - before[0], after[2], after[1] - before[1])


def _so_far(pid: int) -> tuple[float, int, float]:
    """CPU seconds, bytes written and peak MB of a process up to now.  Source: proc(5)."""
    place = Path(f"/proc/{pid}")
    fields = (place / "stat").read_text().rpartition(")")[2].split()
    cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    written = re.search(r"^write_bytes: (\d+)", (place / "io").read_text(), re.MULTILINE)
    peak = re.search(r"^VmHWM:\s+(\d+) kB", (place / "status").read_text(), re.MULTILINE)
    assert written is not None
    assert peak is not None
    return cpu_seconds, int(written[1]), int(peak[1]) / 1024


def bare(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.bare", *arguments]


def ours(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "poller", "--log-level", "warning", *arguments]


def environment(url: str, state: Path, **more: str) -> dict[str, str]:
    """The environment for a run of ionos-poller against a simulator, practically without the request limit."""
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
def simulator(*, contracts: int, events: int, span: str, latency_ms: int = 0, fault: str = "") -> Iterator[str]:
    """A simulator in a process of its own; gives its URL."""
    arguments = [sys.executable, "-m", "poller", "simulate", "--port", "0"]
    arguments += ["--contracts", str(contracts), "--events", str(events), "--span", span]
    if latency_ms:
        arguments += ["--fault", f"latency:{latency_ms}ms"]
    if fault:
        arguments += ["--fault", fault]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env=clean_environment({"PYTHONPATH": str(TOP)})
    )
    try:
        assert process.stdout is not None
        match = re.search(r"http://\S+", process.stdout.readline())
        if match is None:
            raise RuntimeError("the simulator did not start")
        # The bare loop does not limit its rate, and the intake would refuse faster requests.
        control(match[0], "settings", {"logging_requests_per_second": 0})
        yield match[0]
    finally:
        process.terminate()
        process.wait()


def control(url: str, path: str, value: dict[str, Any]) -> None:
    """Change the simulator at a path of its control API."""
    body = json.dumps(value).encode()
    urllib.request.urlopen(f"{url}/_simulator/{path}", body, timeout=10).close()


def state_of(url: str) -> dict[str, Any]:
    """The counts of the simulator so far."""
    with urllib.request.urlopen(f"{url}/_simulator/state") as answer:
        return dict(json.load(answer))
