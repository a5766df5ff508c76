"""Shared by the tests of `fetch`: the real command, a simulator as the API, and the results."""

from __future__ import annotations

import fcntl
import json
import struct
import subprocess
import termios
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from poller.simulator import Simulator
from tests.commands import start_process
from tests.in_process import run_here
from tests.support import COMMAND, clean_environment

Given = TypeVar("Given")

BATCH_EVENTS = 1000
FIRST, SECOND = 31960001, 31960002


class Run(NamedTuple):
    """A finished command. `lines` are complete lines of stdout; `rest`: the bytes after the last newline."""

    code: int
    lines: list[bytes]
    rest: bytes
    stderr: str

    @property
    def told(self) -> list[str]:
        """The messages for a person: the lines of stderr that are not log lines."""
        return [line for line in self.stderr.splitlines() if not line.startswith("{")]

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]


def unread_bytes(pipe: Any) -> int:
    """How many bytes in a pipe are not read yet."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


class Bench:
    """A directory with the state of `fetch`, and the simulator that it uses."""

    def __init__(self, directory: Path, simulator: Simulator) -> None:
        self.directory = directory
        self.simulator = simulator
        self.state_dir = directory / "state"
        self.database = self.state_dir / "fetch.db"
        self._started: list[subprocess.Popen[bytes]] = []
        self._until_closed = ExitStack()

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return clean_environment(
            {
                "IONOS_API_URL": self.simulator.url,
                "IONOS_API_TOKEN": self.simulator.token,
                "IONOS_POLLER_API__REQUESTS_PER_SECOND": "1000",
                **(extra or {}),
            }
        )

    def run(self, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> Run:
        """Run any command to its end. It must never print a Python traceback.

        It runs in the test's process, unless `options` or patched modules (PYTHONPATH) need a process of its own.
        """
        if options or "PYTHONPATH" in (env or {}):
            return finish(self.start(*args, env=env, **options), timeout=60)
        return finished(*run_here(*args, cwd=self.directory, env=self.environment(env)))

    def fetch(self, *args: str, **options: Any) -> Run:
        return self.run("fetch", *args, **options)

    def start(self, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command. `finish` waits for its end, `close` kills it."""
        process = start_process(
            [*COMMAND, *args],
            cwd=self.directory,
            env=self.environment(env),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        self._started.append(process)
        return process

    def until_closed(self, context: AbstractContextManager[Given]) -> Given:
        """Enter a context. The bench leaves it at `close`."""
        return self._until_closed.enter_context(context)

    def close(self) -> None:
        """Kill all started processes that still run, and stop the simulator."""
        self._until_closed.close()
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.simulator.stop()

    def oracle(self, *contracts: int) -> list[bytes]:
        """Every entry of these contracts (default: all) as `fetch` should print it."""
        return [line for number in contracts or self.simulator.contracts for line in self.simulator.oracle(number)]

    def requests(self, kind: str = "entries") -> int:
        """How many requests of a kind the API has answered so far, or failed to answer."""
        return sum(self.simulator.traffic.counts.get(kind, {}).values())


Starter = Callable[..., Bench]


def finish(process: subprocess.Popen[bytes], timeout: float = 30) -> Run:
    """Wait for a started command, and return the result."""
    stdout, stderr = process.communicate(timeout=timeout)
    return finished(process.returncode, stdout or b"", stderr or b"")


def finished(code: int, stdout: bytes, stderr: bytes) -> Run:
    *lines, rest = stdout.split(b"\n")
    run = Run(code, lines, rest, stderr.decode())
    assert "Traceback" not in run.stderr, run.stderr
    assert 'File "' not in run.stderr, run.stderr
    return run


def failed(run: Run, code: int, *words: str) -> str:
    """Check that a run ended with this code and one line that has these words and a hint.  Returns: the line."""
    assert run.code == code, (run.code, run.stderr)
    assert len(run.told) == 1, run.stderr
    line = run.told[0]
    assert line.startswith("ionos-poller: "), line
    for word in words:
        assert word in line, (word, line)
    assert line.endswith(")"), f"no hint: {line}"
    assert len(line) < 600, line
    return line


def same(lines: Iterable[bytes], oracle: Iterable[bytes]) -> None:
    """Check that the lines are the oracle's, each as often. A failure has a short message instead of megabytes."""
    got, expected = Counter(lines), Counter(oracle)
    lost, invented = expected - got, got - expected
    if lost or invented:
        raise AssertionError(
            f"lost {lost.total()} of {expected.total()}, repeated or invented {invented.total()}; "
            f"for example {[*lost][:1]} {[*invented][:1]}"
        )


def times_by_contract(lines: Iterable[bytes]) -> dict[str, list[datetime]]:
    """Contract -> times of its entries, in order. Entries without a contract number are left out."""
    times: dict[str, list[datetime]] = {}
    for entry in map(json.loads, lines):
        if contract := contract_of(entry):
            times.setdefault(contract, []).append(datetime.fromisoformat(entry["meta"]["time"]))
    return times


def contract_of(entry: Any) -> str:
    """The contract number in an entry; "" if it has none."""
    return str(entry.get("principal", {}).get("identity", {}).get("contractNumber", ""))


def is_oldest_first(lines: Iterable[bytes]) -> bool:
    """Whether each contract's lines are oldest first. Entries of the same time may be in any order."""
    return all(times == sorted(times) for times in times_by_contract(lines).values())
