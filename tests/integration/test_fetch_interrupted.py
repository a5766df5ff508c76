"""`fetch` that is interrupted: closed pipes, signals, `kill -9`, and a second one at the same time."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.fetching import (
    BATCH_EVENTS,
    FIRST,
    SECOND,
    Bench,
    Starter,
    failed,
    finish,
    is_oldest_first,
    same,
    unread_bytes,
)
from tests.support import COMMAND, open_files, seed_of_chance, wait_until


def union(lines: list[bytes], oracle: list[bytes], *, repeats: int) -> int:
    """Check that the lines are the oracle's, with at most `repeats` repeated.  Returns: how many were repeated."""
    counts = Counter(lines)
    same(set(lines), set(oracle))
    repeated = sum(counts.values()) - len(counts)
    assert repeated <= repeats, f"{repeated} repeated, {repeats} allowed"
    return repeated


# Closed pipes


def test_fetch_into_head_loses_nothing(bench: Starter) -> None:
    place = bench(events=6000)
    command = f"{{ {shlex.join([*COMMAND, 'fetch', '--since', '1h'])} 2>stderr; echo $? >code; }} | head -5"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=place.directory,
        env=place.environment(),
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert (place.directory / "code").read_text() == "1\n"
    stderr = (place.directory / "stderr").read_text()
    assert "Traceback" not in stderr
    told = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert len(told) == 1, stderr
    head = done.stdout.splitlines()
    assert len(head) == 5
    rest = place.fetch()
    assert rest.code == 0
    union(head + rest.lines, place.oracle(), repeats=BATCH_EVENTS)


def test_a_reader_that_is_gone_before_the_first_line_takes_nothing(bench: Starter) -> None:
    place = bench(events=5)
    read_end, write_end = os.pipe()
    os.close(read_end)
    run = place.fetch("--since", "1h", stdout=write_end)
    os.close(write_end)
    failed(run, 1, "gone")
    same(place.fetch().lines, place.oracle())


# Partial writes. Python's streams write the rest, unless PYTHONUNBUFFERED is set.

LARGEST_FILE_BYTES = 64 * 1024 * 1024
BUFFERING = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])


@BUFFERING
def test_stopped_and_continued_while_nobody_reads_it_writes_on(bench: Starter, unbuffered: str) -> None:
    place = bench(events=3000)
    process = place.start("fetch", "--since", "1h", env={"PYTHONUNBUFFERED": unbuffered})
    wait_until(lambda: unread_bytes(process.stdout) >= 65_536, what="the pipe is full")
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(process) == "T", what="it stands still")
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: state_of(process) != "T", what="it goes on")
    run = finish(process)
    assert (run.code, run.rest) == (0, b"")
    same(run.lines, place.oracle())


def state_of(process: subprocess.Popen[bytes]) -> str:
    """The state of the process as in ps; `T` is stopped."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@BUFFERING
def test_a_pipe_that_is_not_to_block_gets_every_line_once(bench: Starter, unbuffered: str) -> None:
    place = bench(events=3000)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = place.start("fetch", "--since", "1h", env={"PYTHONUNBUFFERED": unbuffered}, stdout=writer)
    os.close(writer)
    wait_until(lambda: unread_bytes(reader) >= 60_000, what="the pipe is full")
    with os.fdopen(reader, "rb") as pipe:
        lines = pipe.read().splitlines()
    assert finish(process).code == 0
    same(lines, place.oracle())


@BUFFERING
def test_a_disk_that_is_full_in_the_middle_of_a_line_has_it_repeated(bench: Starter, unbuffered: str) -> None:
    place = bench(events=3000)
    env = {"PYTHONUNBUFFERED": unbuffered}
    cut = place.directory / "cut"
    with cut.open("wb") as file:
        file.seek(LARGEST_FILE_BYTES - 100_001)
        file.write(b"\n")  # the existing content ends with a whole line
        file.flush()
        done = subprocess.run(
            [
                "/bin/sh",
                "-c",
                f'ulimit -f {LARGEST_FILE_BYTES // 512} && exec "$@"',
                "sh",
                *COMMAND,
                "fetch",
                "--since",
                "1h",
            ],
            cwd=place.directory,
            env=place.environment(env),
            stdout=file,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1, done.stderr
    assert b"output cannot be written" in done.stderr
    whole, _, half = cut.read_bytes()[LARGEST_FILE_BYTES - 100_000 :].rpartition(b"\n")
    assert not half, "half a line stays"
    rest = place.fetch(env=env)
    assert rest.code == 0
    union(whole.splitlines() + rest.lines, place.oracle(), repeats=BATCH_EVENTS)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_api_hangs_ends_it_at_once(bench: Starter, number: signal.Signals) -> None:
    place = bench(faults=(f"contract={FIRST}:hang:60s",))
    process = place.start("fetch", "--since", "1h")
    wait_until(lambda: place.requests() and place.simulator.traffic.max_per_second >= 3, what="requests came")
    process.send_signal(number)
    run = finish(process, timeout=20)
    assert run.code == 130
    assert run.told == []
    place.simulator.set_faults([])
    rest = place.fetch()
    assert rest.code == 0
    union(run.lines + rest.lines, place.oracle(), repeats=BATCH_EVENTS)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_while_nobody_reads_ends_it_at_once(bench: Starter, number: signal.Signals, code: int) -> None:
    place = bench(events=3000)
    process = place.start("fetch", "--since", "1h", stderr=subprocess.DEVNULL)
    wait_until(lambda: unread_bytes(process.stdout) >= 65_536, what="the pipe is full")
    process.send_signal(number)
    assert process.wait(timeout=20) == code
    run = finish(process)
    rest = place.fetch("--since", "1h")
    assert rest.code == 0
    repeated = union(run.lines + rest.lines, place.oracle(), repeats=BATCH_EVENTS)
    assert repeated > 0, "it was in the middle of a batch"


def test_a_signal_at_any_moment_loses_nothing(bench: Starter) -> None:
    place = bench(events=2000, latency_seconds=0.01)
    place.simulator.change_settings(max_limit=200)
    dice = random.Random(7)
    lines: list[bytes] = []
    runs = 0
    for _ in range(8):
        process = place.start("fetch", "--since", "1h")
        try:
            process.wait(timeout=dice.uniform(0.15, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            runs += 1
        run = finish(process, timeout=20)
        # Before its signal handlers are set, SIGTERM ends it directly.
        assert run.code in (0, 130, -signal.SIGTERM), run
        assert run.told == []
        lines += run.lines
        place.simulator.add_entries(FIRST, count=100)
    rest = place.fetch("--since", "1h")
    assert rest.code == 0
    lines += rest.lines
    wait_for_the_last_second(place, lines)
    union(lines, place.oracle(), repeats=BATCH_EVENTS * runs)


def wait_for_the_last_second(place: Bench, lines: list[bytes]) -> None:
    """Fetch until the entries of the last second are there: a second is read only when it is over."""

    def is_complete() -> bool:
        lines.extend(place.fetch().lines)
        return set(place.oracle()) <= set(lines)

    wait_until(is_complete, what="the last second")


# Killed


def test_fifty_kills_lose_nothing_and_repeat_at_most_a_batch_each(bench: Starter) -> None:
    dice = random.Random(seed_of_chance())
    place = bench(events=9000, latency_seconds=0.02, span_seconds=3400)
    env = {"IONOS_POLLER_API__PAGE_SIZE": "200", "IONOS_POLLER_API__RESULT_WINDOW": "1000"}
    lines: list[bytes] = []
    kills = 0
    while kills < 50:
        process = place.start("fetch", "--since", "1h", env=env, stderr=subprocess.DEVNULL)
        try:
            # The kill may come before our first statement; mostly it comes in the middle of the work.
            stdout, _ = process.communicate(timeout=dice.uniform(0.05, 0.45))
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, _ = process.communicate()
            kills += 1
        # A partial line does not count as delivered.
        lines += stdout.split(b"\n")[:-1]
        # Few enough that ten additions in the same second fit in a window. Otherwise there would be a gap.
        place.simulator.add_entries(dice.choice((FIRST, SECOND)), count=90)
    rest = place.fetch("--since", "1h", env=env)
    assert rest.code == 0, rest.told
    lines += rest.lines
    wait_for_the_last_second(place, lines)
    repeated = union(lines, place.oracle(), repeats=BATCH_EVENTS * kills)
    print(f"{kills} kills, {len(place.oracle())} entries, {repeated} repeated")
    assert place.fetch("--since", "2h").lines == []


# Two at a time


def test_a_second_one_is_refused_and_named_or_waits_its_turn(bench: Starter) -> None:
    place = bench(faults=("path=contracts:hang:60s",))
    first = place.start("fetch", "--since", "1h")
    # When it asks the API, it holds the lock, and its `--since` is stored.
    wait_until(lambda: place.simulator.faults.struck["api", "hang"] > 0, what="the first asks for contracts")
    failed(place.fetch(), 4, "another process holds this state", str(first.pid), "--wait")
    elsewhere = place.start("fetch", "--state-dir", "elsewhere", "--since", "1h")
    second = place.start("fetch", "--wait")
    third = place.start("fetch", "--wait")
    wait_until(lambda: all(lock_is_open_in(process.pid) for process in (second, third)), what="both wait")
    third.send_signal(signal.SIGTERM)
    assert finish(third, timeout=20).code == 130
    place.simulator.set_faults([])
    first.kill()
    assert finish(first).lines == []
    run = finish(second)
    assert run.code == 0
    same(run.lines, place.oracle())  # `--since` of the first one is kept until it is done
    elsewhere.kill()
    finish(elsewhere)


def lock_is_open_in(pid: int) -> bool:
    """Whether this process has opened its lock file, and handles signals."""
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 - /proc is no place for pathlib's extra calls
        caught = next(int(line.split()[1], 16) for line in status if line.startswith("SigCgt"))
    return bool(caught & (1 << (signal.SIGTERM - 1))) and any(name.endswith("fetch.lock") for name in open_files(pid))


def test_what_an_interrupted_run_left_comes_first_and_in_order(bench: Starter) -> None:
    place = bench(contracts=1, events=3000)
    read_end, write_end = os.pipe()
    os.close(read_end)
    assert place.fetch("--since", "1h", stdout=write_end).code == 1
    os.close(write_end)
    place.simulator.set_faults(["500"])
    offline = place.fetch(env={"IONOS_POLLER_API__MAX_RETRIES": "0"})
    assert offline.code == 1
    assert len(offline.lines) > 0, "what was collected does not need the API"
    place.simulator.set_faults([])
    rest = place.fetch()
    same(offline.lines + rest.lines, place.oracle())
    assert is_oldest_first(offline.lines + rest.lines)
    assert json.loads(offline.lines[0])
