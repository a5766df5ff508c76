"""Shared by the tests of `backfill` and `audit`: configurations, and checks that every entry came once and in order."""

from __future__ import annotations

import gzip
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from poller.simulator import Simulator
from poller.simulator.intakes import digest_of
from poller.simulator.world import Traffic
from tests.integration.fetching import Bench, Run, failed
from tests.support import wait_until

LOGGING, LOKI = "logging", "loki"
DAY_SECONDS = 86_400
HOUR_SECONDS = 3600

# Windows of a few hundred entries, so that a small export takes many of them.
SMALL_WINDOWS = {"IONOS_POLLER_API__RESULT_WINDOW": "400", "IONOS_POLLER_API__PAGE_SIZE": "100"}
AT_ONCE = {"IONOS_POLLER_API__MAX_RETRIES": "0"}


class _Identity(msgspec.Struct, frozen=True):
    number: str | int = msgspec.field(name="contractNumber", default="")


class _Principal(msgspec.Struct, frozen=True):
    identity: _Identity = _Identity()


class _Meta(msgspec.Struct):
    time: datetime


class _Entry(msgspec.Struct):
    meta: _Meta
    principal: _Principal = _Principal()


def ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def text(at: datetime) -> str:
    """A time as a person types it."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def hour_of(at: datetime) -> str:
    """The hour of a time, as `audit` prints it."""
    start = at.replace(minute=0, second=0, microsecond=0)
    return f"{text(start)}/{text(start + timedelta(hours=1))}"


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of an export. Each must be whole."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            assert line.endswith(b"\n"), line
            yield line[:-1]


def assert_complete(lines: Iterable[bytes], expected: Iterable[bytes]) -> int:
    """Check that each line is there as often as expected, and each contract's lines oldest first.  Returns: how many lines.

    It keeps digests, not lines, so that it works for large exports.
    """
    had: Counter[bytes] = Counter()
    latest: dict[str, datetime] = {}
    decode = msgspec.json.Decoder(_Entry).decode
    for line in lines:
        had[digest_of(line)] += 1
        entry = decode(line)
        if contract := str(entry.principal.identity.number):
            before = latest.get(contract, entry.meta.time)
            assert before <= entry.meta.time, f"{contract}: {entry.meta.time} after {before}"
            latest[contract] = entry.meta.time
    wanted = Counter(digest_of(line) for line in expected)
    lost, invented = (wanted - had).total(), (had - wanted).total()
    assert (lost, invented) == (0, 0), f"lost {lost}, repeated or invented {invented} of {wanted.total()}"
    return wanted.total()


def everything(simulator: Simulator) -> Iterator[bytes]:
    for contract in simulator.contracts:
        yield from simulator.oracle(contract)


def assert_exported(path: Path, simulator: Simulator) -> int:
    """Check that a file holds all entries of the simulator, and that no partial file is left beside it."""
    assert path.exists(), list(path.parent.iterdir())
    assert not list(path.parent.glob("*.part"))
    return assert_complete(read_lines(path), everything(simulator))


class AtOnce(Traffic):
    """The traffic of a simulator, and the maximum number of requests that were answered at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._now = 0
        self._counting = threading.Lock()

    def arrive(self) -> None:
        super().arrive()
        with self._counting:
            self._now += 1
            self.most = max(self.most, self._now)

    def answer(self, kind: str, outcome: str) -> None:
        super().answer(kind, outcome)
        with self._counting:
            self._now -= 1


def configure(bench: Bench, *sinks: str, **keys: str) -> None:
    """Write a configuration with these sinks, each with the intake of its name. All sinks get `keys`."""
    (bench.directory / "api.key").write_text(bench.simulator.settings.api_key)
    quick = {"retry_initial": '"50ms"', "retry_max": '"200ms"', "requests_per_second": "1000", **keys}
    special = {
        LOGGING: ['type = "logging-service"', 'tag = "activityLog"', 'api_key_file = "api.key"'],
        LOKI: ['type = "loki"'],
    }
    tables = []
    for name in sinks:
        rows = [
            "[[sinks]]",
            f'name = "{name}"',
            f'url = "{bench.simulator.url}/sink/{name}"',
            *special[name],
            *(f"{key} = {value}" for key, value in quick.items()),
        ]
        tables.append("\n".join(rows))
    (bench.directory / "ionos-poller.toml").write_text("\n\n".join(tables) + "\n")


def backfill(bench: Bench, *args: str, code: int = 0, env: Mapping[str, str] | None = None, **options: Any) -> Run:
    run = bench.run("backfill", *args, env=env, **options)
    assert run.code == code, (run.code, run.stderr[-2000:])
    return run


def refused(bench: Bench, *args: str, code: int, words: Iterable[str], env: Mapping[str, str] | None = None) -> str:
    """Check that the command ends with this code and one clear line."""
    return failed(bench.run(*args, env=env), code, *words)


def books(run: Run) -> list[str]:
    return [line for line in run.told if line.startswith("books: ")]


def balanced(fetched: int, sink: str, *, dead: int = 0, seen: int = 0) -> list[str]:
    """The expected books of a complete export."""
    new = fetched - seen
    return [
        f"books: fetched {fetched:,} = new {new:,} + seen before {seen:,} + filtered 0",
        f"books: {sink}: new {new:,} = delivered {new - dead:,} + dead {dead:,} + waiting 0",
    ]


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process.  Returns: its peak memory in bytes."""
    peak = 0
    path = Path(f"/proc/{process.pid}/status")

    def is_over() -> bool:
        nonlocal peak
        for line in path.read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak = max(peak, int(line.split()[1]) * 1024)
        return process.poll() is not None

    wait_until(is_over, 300, what="it ends")
    return peak
