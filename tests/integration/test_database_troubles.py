"""`fetch` with a database that takes no writes: one line with the remedy, its exit code, nothing lost."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from poller.core.errors import EXIT_INCOMPLETE
from poller.simulator import Simulator, SimulatorSettings
from tests.commands import run_command
from tests.faults.oracle import compare, given
from tests.postgres import FAST, Server

SMALL = "96m"  # little more than a new server needs
FETCH = ("fetch", "--since", "2h")


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorSettings(contracts=1, events=3000, span_seconds=3000)) as running:
        yield running


@pytest.fixture
def small_disk() -> Iterator[Server]:
    """A server whose disk has little room."""
    if os.geteuid() != 0:
        pytest.skip("NOT CHECKED: a database on a full disk; only root can mount a small one")
    server = Server(settings={**FAST, "min_wal_size": "32MB", "max_wal_size": "32MB"})
    server.data.mkdir()
    nobody = pwd.getpwnam("nobody")
    options = f"size={SMALL},uid={nobody.pw_uid},gid={nobody.pw_gid},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(server.data)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        server.remove()
        pytest.skip("NOT CHECKED: a database on a full disk; mount refuses a small one")
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.kill()
        subprocess.run(["umount", "--lazy", str(server.data)], check=True)
        server.remove()


def run(server: Server, simulator: Simulator, directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "IONOS_API_URL": simulator.url,
        "IONOS_API_TOKEN": simulator.token,
        "IONOS_POLLER_STATE__URL": server.url(),
        "IONOS_POLLER_API__REQUESTS_PER_SECOND": "1000",
    }
    return run_command(*args, cwd=directory, env=environment)


def fill(server: Server, ballast: IO[bytes]) -> None:
    """Fill the server's disk."""
    for size in (1 << 20, 1 << 12):
        while os.statvfs(server.data).f_bavail * 4096 >= size:
            ballast.write(bytes(size))


def assert_told(done: subprocess.CompletedProcess[str], words: str, hint: str) -> None:
    """Check that it ended with the code for a passing problem, and one line."""
    assert done.returncode == EXIT_INCOMPLETE, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "postgresql://" in line]
    assert words in line
    assert hint in line


def test_a_full_disk_of_the_database_stops_collecting_until_there_is_room(
    small_disk: Server, simulator: Simulator, tmp_path: Path
) -> None:
    assert run(small_disk, simulator, tmp_path, "state", "init").returncode == 0
    with (small_disk.data / "ballast").open("wb", buffering=0) as ballast:
        fill(small_disk, ballast)
        full = run(small_disk, simulator, tmp_path, *FETCH)
        assert_told(full, "no space left on the disk of the database", "free some, or enlarge it")
        ballast.truncate(0)
    done = run(small_disk, simulator, tmp_path, *FETCH)
    assert done.returncode == 0, done.stderr
    books = compare(given(simulator), [line.encode() for line in (full.stdout + done.stdout).splitlines()])
    assert (books.lost, books.invented) == (0, 0)


def test_a_standby_is_told_apart_from_a_primary(postgres_server: Server, simulator: Simulator, tmp_path: Path) -> None:
    assert run(postgres_server, simulator, tmp_path, "state", "init").returncode == 0
    standby = Server(programs=postgres_server.programs)
    try:
        standby.follow(postgres_server, postgres_server.port)
        standby.start()
        done = run(standby, simulator, tmp_path, *FETCH)
    finally:
        standby.remove()
    assert done.stdout == ""
    assert_told(done, "it takes no writes", "name the primary in state.url")
