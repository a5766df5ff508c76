"""One process of the program, run by the shim, started and ended as its life says."""

from __future__ import annotations

import random
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.commands import start_process
from tests.faults.plan import Life
from tests.support import UNMEASURED, clean_environment, wait_until

STOPS_WITHIN_SECONDS = 12.0
_WORK_WITHIN_SECONDS = 5.0
_FILE_LIMIT_BYTES = 400 * 1024


class Death(NamedTuple):
    """How a process ended: its exit code, and the kind of its end. `deaf`: it did not end after the signal."""

    code: int
    kind: str  # kill, commit, write, term, exit, deaf

    @property
    def is_kill(self) -> bool:
        return self.kind in ("kill", "commit", "write")


def fixed_port() -> int:
    """A port for a server that stops and starts again: below the range from which the kernel gives free ports."""
    while True:
        port = random.randint(10_240, 32_000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def start(
    args: Sequence[str],
    life: Life,
    *,
    directory: Path,
    stderr: Path,
    stdout: Path | None = None,
    environment: Mapping[str, str] | None = None,
    plant: str = "",
) -> subprocess.Popen[bytes]:
    """Start the command with the faults of this life. Its messages are appended to `stderr`."""
    with stderr.open("ab") as said, (stdout or stderr).open("ab") as output:
        process = start_process(
            [sys.executable, "-m", "tests.faults.shim", *args],
            cwd=directory,
            env=clean_environment({**(environment or {}), **_faults(life), "FAULT_PLANT": plant, **UNMEASURED}),
            stdout=output,
            stderr=said,
        )
    if (
        life.trouble == "file-limit"
    ):  # set from outside at once: a slow process could set it after the harness removed it
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (_FILE_LIMIT_BYTES, resource.RLIM_INFINITY))
    return process


def _faults(life: Life) -> dict[str, str]:
    faults = {}
    if life.clock:
        faults["FAULT_CLOCK"] = ",".join(f"{at}={seconds}" for at, seconds in life.clock)
    if life.end == "commit":
        faults["FAULT_KILL_AT_COMMIT"] = f"{life.at}:{'before' if life.is_before else 'after'}"
    if life.end == "write":
        faults["FAULT_KILL_AT_WRITE"] = str(life.at)
    return faults


def end(process: subprocess.Popen[bytes], life: Life, is_at_work: Callable[[], bool]) -> Death:
    """Wait for its end, or end it. `is_at_work` returns whether it has made a request yet."""
    if life.end in ("commit", "write"):
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(life.patience_seconds)
            return Death(code, life.end if code == -signal.SIGKILL else "exit")
        return _strike(process, signal.SIGKILL)  # that commit or write never came
    if life.is_from_work:
        with suppress(AssertionError):
            wait_until(lambda: is_at_work() or process.poll() is not None, _WORK_WITHIN_SECONDS)
    with suppress(subprocess.TimeoutExpired):
        code = process.wait(life.after_seconds)
        return Death(code, "kill" if code == -signal.SIGKILL else "exit")  # killed by a plant
    return _strike(process, signal.SIGTERM if life.end == "term" else signal.SIGKILL)


def _strike(process: subprocess.Popen[bytes], number: signal.Signals) -> Death:
    """Send the signal and wait. A kill counts only if it ended the process: one that had ended has another exit code."""
    process.send_signal(number)
    try:
        code = process.wait(STOPS_WITHIN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return Death(process.wait(), "deaf")
    if number == signal.SIGKILL:
        return Death(code, "kill" if code == -signal.SIGKILL else "exit")
    return Death(code, "term")
