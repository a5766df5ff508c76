"""What the tests of `fetch` share: the real command, a simulator as the API, and what came of it."""

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
    """A finished command. `lines` are complete lines of stdout; `rest` is what came behind the last newline."""

    code: int
    lines: list[bytes]
    rest: bytes
    stderr: str

    @property
    def told(self) -> list[str]:
        """What a person is told: the lines of stderr that are no log."""
        return [line for line in self.stderr.splitlines() if not line.startswith("{")]

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]


def unread_bytes(pipe: Any) -> int:
    """What lies in a pipe, written and not read."""
    return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))[0])


class Bench:
    """A directory with the state of `fetch`, and the simulator it is pointed to."""

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
        """Run any command to its end; whatever happens, there must be no trace of Python in what it says.

        In the process of the test, but where it needs one of its own: for `options`, or modules in place of ours.
        """
        if options or "PYTHONPATH" in (env or {}):
            return finish(self.start(*args, env=env, **options), timeout=60)
        return finished(*run_here(*args, cwd=self.directory, env=self.environment(env)))

    def fetch(self, *args: str, **options: Any) -> Run:
        return self.run("fetch", *args, **options)

    def start(self, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command; `finish` waits for its end, `close` makes sure of it."""
        process = start_process(
            [*COMMAND, *args],
            cwd=self.directory,
            env=self.environment(env),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        self._started.append(process)
        return process

    def until_closed(self, context: AbstractContextManager[Given]) -> Given:
        """Enter a context that is left when the bench closes."""
        return self._until_closed.enter_context(context)

    def close(self) -> None:
        """Kill and reap what was started and still runs, and stop the simulator."""
        self._until_closed.close()
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self.simulator.stop()

    def oracle(self, *contracts: int) -> list[bytes]:
        """Every entry of these contracts (default: all) as it should be printed."""
        return [line for number in contracts or self.simulator.contracts for line in self.simulator.oracle(number)]

    def requests(self, kind: str = "entries") -> int:
        """How many requests of a kind the API has answered, or failed to, so far."""
        return sum(self.simulator.traffic.counts.get(kind, {}).values())


Starter = Callable[..., Bench]


def finish(process: subprocess.Popen[bytes], timeout: float = 30) -> Run:
    """Wait for a started command, and give what came of it."""
    stdout, stderr = process.communicate(timeout=timeout)
    return finished(process.returncode, stdout or b"", stderr or b"")


def finished(code: int, stdout: bytes, stderr: bytes) -> Run:
    *lines, rest = stdout.split(b"\n")
    run = Run(code, lines, rest, stderr.decode())
    assert "Traceback" not in run.stderr, run.stderr
    assert 'File "' not in run.stderr, run.stderr
    return run


def failed(run: Run, code: int, *words: str) -> str:
    """That a run ended with this code and told a person one line with these words, and a hint; the line."""
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
    """That the lines are the oracle's, each as often as there; a short message instead of megabytes where not."""
    got, expected = Counter(lines), Counter(oracle)
    lost, invented = expected - got, got - expected
    if lost or invented:
        raise AssertionError(
            f"lost {lost.total()} of {expected.total()}, repeated or invented {invented.total()}; "
            f"for example {[*lost][:1]} {[*invented][:1]}"
        )


def times_by_contract(lines: Iterable[bytes]) -> dict[str, list[datetime]]:
    """The times of the entries that say whose they are: not all do."""
    times: dict[str, list[datetime]] = {}
    for entry in map(json.loads, lines):
        if contract := contract_of(entry):
            times.setdefault(contract, []).append(datetime.fromisoformat(entry["meta"]["time"]))
    return times


def contract_of(entry: Any) -> str:
    """The contract number in an entry; empty where it has none."""
    return str(entry.get("principal", {}).get("identity", {}).get("contractNumber", ""))


def is_oldest_first(lines: Iterable[bytes]) -> bool:
    """Per contract; entries of the same time may stand either way."""
    return all(times == sorted(times) for times in times_by_contract(lines).values())
