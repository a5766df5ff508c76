"""SIGTERM and SIGINT at any moment of a command: it ends at once with 130, without a traceback and without loss."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fetching import Bench, Starter, finish
from tests.support import COMMAND, open_files, seed_of_chance, wait_until

ASKING = {
    "fetch": ("fetch", "--since", "1h"),
    "fetch --explain-filter": ("fetch", "--explain-filter"),
    "backfill": ("backfill", "--from", "1h", "--to", "1m", "--output", "out.ndjson"),
    "audit": ("audit", "--from", "3h", "--to", "1m"),  # at least one of these hours is over
    "check": ("check",),
    "setup": ("setup", "--region", "de-txl", "--pipeline", "audit", "--yes"),
}
ANY = [
    *ASKING.values(),
    ("status", "--watch"),
    ("demo",),
    ("simulate", "--port", "0"),
    ("sinks", "list"),
    ("config", "show"),
]

# 0: over before the signal. 130: stopped. -SIGTERM: its signal handlers were not set yet.
CODES = {0, 130, -signal.SIGTERM}


@pytest.fixture
def deaf() -> Iterator[str]:
    """The URL of a socket that accepts no connection: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield "http://{}:{}".format(*listener.getsockname())


def is_connecting(process: Any) -> bool:
    """Whether a process has sent a SYN and has no answer yet."""
    names = open_files(process.pid)
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == "02" and f"socket:[{row[9]}]" in names for row in rows)


def has_begun(process: Any) -> bool:
    """Whether a process has run our first statement (it loaded msgspec, which only we import), or has ended."""
    return process.poll() is not None or "msgspec" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ASKING)
def test_while_it_connects(bench: Starter, deaf: str, command: str, number: signal.Signals) -> None:
    place: Bench = bench(events=20)
    assert place.fetch("--since", "3h").code == 0
    env = {"IONOS_API_URL": deaf, "IONOS_LOGGING_API_URL": deaf, "IONOS_POLLER_API__CONNECT_TIMEOUT": "60s"}
    process = place.start(*ASKING[command], env=env)
    wait_until(lambda: is_connecting(process), what="it connects")
    process.send_signal(number)
    run = finish(process, timeout=20)  # less than connect_timeout
    assert run.code == 130
    assert "internal error" not in run.stderr


def test_at_any_moment(bench: Starter) -> None:
    dice = random.Random(seed_of_chance())
    place: Bench = bench(events=500, latency_seconds=0.01)
    # No port: another test may use it, and `check` would report that.
    (place.directory / "ionos-poller.toml").write_text('[http]\nlisten = ""\n')
    assert place.fetch("--since", "3h").code == 0
    for command in [*ANY, *ANY, *ANY]:
        number = dice.choice((signal.SIGTERM, signal.SIGINT))
        process = place.start(*command, env={"IONOS_LOGGING_API_URL": place.simulator.url})
        wait_until(lambda: has_begun(process), what="our first statement")  # noqa: B023  # before that, Python handles the signal
        try:
            process.wait(timeout=dice.uniform(0, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        run = finish(process, timeout=20)
        assert run.code in CODES, (command, run)
        assert "internal error" not in run.stderr


@pytest.fixture
def unread() -> Iterator[int]:
    """The writing end of a full pipe that nobody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


def test_work_is_done_although_nobody_reads_what_it_says(bench: Starter, unread: int) -> None:
    place: Bench = bench(events=20)
    run = finish(place.start("--log-level", "debug", *ASKING["fetch"], stderr=unread), timeout=20)
    assert run.code == 0
    assert len(run.lines) == sum(log.counts()[0] for log in place.simulator.logs.values())


@pytest.mark.parametrize("command", ["fetch", "backfill"])
def test_while_nobody_reads_what_it_says(bench: Starter, deaf: str, unread: int, command: str) -> None:
    place: Bench = bench(events=20)
    process = place.start(*ASKING[command], env={"IONOS_API_URL": deaf}, stderr=unread)
    wait_until(lambda: is_connecting(process), what="it connects")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 130


def test_what_the_parent_had_it_ignore_is_ignored(bench: Starter, deaf: str) -> None:
    place: Bench = bench(events=20)
    deaf_to_ctrl_c = ["/bin/sh", "-c", 'trap "" INT && exec "$@"', "sh", *COMMAND]
    env = place.environment({"IONOS_API_URL": deaf, "IONOS_POLLER_API__CONNECT_TIMEOUT": "60s"})
    process = subprocess.Popen(
        [*deaf_to_ctrl_c, *ASKING["fetch"]], cwd=place.directory, env=env, stdout=subprocess.PIPE
    )
    with process:
        wait_until(lambda: is_connecting(process), what="it connects")
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 130
