"""`fetch >> FILE`, `run >> FILE` and a shared pipe, cut off in the middle of a line: every entry arrives in a whole line."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disk import Disk
from tests.integration.fetching import FIRST, Bench, Starter, failed, finish, same
from tests.support import wait_until

VICTIM = [sys.executable, "-m", "tests.faults.shim"]  # the real command, which can be killed during a write
HEAD = b'{"of":"an earlier day"}\n'


def killed_in_a_write(place: Bench, output: Any, *args: str, number: int = 1) -> None:
    """Run a command that is killed in the middle of write `number` of entries."""
    process = subprocess.Popen(
        [*VICTIM, *args],
        cwd=place.directory,
        env=place.environment({"FAULT_KILL_AT_WRITE": str(number)}),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
    )
    place.until_closed(process)
    assert process.wait(30) == -signal.SIGKILL, process.communicate()[1]


def entries_of(path: Path, head: bytes = HEAD) -> list[bytes]:
    """The lines after `head`. Checks that `head` is still there, and that the last line is whole."""
    content = path.read_bytes()
    assert content.startswith(head)
    *lines, rest = content.removeprefix(head).split(b"\n")
    assert rest == b"", "half a line"
    return lines


# A full disk


def test_a_full_disk_behind_stdout_leaves_no_half_line(bench: Starter, tmp_path: Path) -> None:
    place = bench(contracts=1, events=40)
    with Disk(tmp_path / "disk") as disk:
        output = disk.place / "out"
        output.write_bytes(HEAD)
        disk.fill(leave_bytes=8192)
        with output.open("ab") as file:
            run = place.fetch("--since", "1h", stdout=file)
        if disk.has_limits:
            failed(run, 1, "No space left", "next run")
            assert 0 < len(entries_of(output)) < 40
        disk.empty()
        with output.open("ab") as file:
            assert place.fetch(stdout=file).code == 0
        same(entries_of(output), place.oracle())


@pytest.mark.parametrize(
    "command", [["fetch", "--since", "1h"], ["backfill", "--from", "1h", "--to", "1m", "--output", "-"]]
)
def test_a_quota_that_is_used_up_leaves_no_half_line(bench: Starter, tmp_path: Path, command: Sequence[str]) -> None:
    place = bench(contracts=1, events=0)
    place.simulator.add_entries(FIRST, count=40, at=datetime.now(UTC) - timedelta(minutes=9), span_seconds=300)
    limit = 1 << 20  # enough for the state
    head = HEAD * ((limit - 10_000) // len(HEAD))
    output = tmp_path / "out"
    output.write_bytes(head)
    with output.open("ab") as file:
        run = place.run(
            *command, stdout=file, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        )
    failed(run, 1, "File too large", "next run")
    assert 0 < len(entries_of(output, head)) < 40
    with output.open("ab") as file:
        assert place.run(*command, stdout=file).code == 0
    same(entries_of(output, head), place.oracle())


# kill -9


def test_what_a_killed_fetch_appended_is_completed_by_the_next_one(bench: Starter, tmp_path: Path) -> None:
    place = bench(contracts=1, events=40)
    output = tmp_path / "out"
    output.write_bytes(HEAD)
    for _ in range(2):
        with output.open("ab") as file:
            killed_in_a_write(place, file, "fetch", "--since", "1h")
        assert not output.read_bytes().endswith(b"\n")
    with output.open("ab") as file:
        assert place.fetch("--since", "1h", stdout=file).code == 0
    lines = entries_of(output)
    assert len(lines) == 40
    same(lines, place.oracle())


def test_what_a_killed_run_appended_is_completed_by_the_next_one(bench: Starter, tmp_path: Path) -> None:
    """As with `StandardOutput=append:` of systemd."""
    place = bench(contracts=1, events=40)
    output = tmp_path / "out"
    output.write_bytes(HEAD)
    (place.directory / "ionos-poller.toml").write_text(
        '[poll]\ninitial_lookback = "2h"\n[http]\nlisten = ""\n[[sinks]]\nname = "out"\ntype = "stdout"\nbatch_age = "0s"\n'
    )
    with output.open("ab") as file:
        killed_in_a_write(place, file, "run")
    assert not output.read_bytes().endswith(b"\n")
    with output.open("ab") as file:
        process = place.start("run", stdout=file)
        wait_until(lambda: output.read_bytes().count(b"\n") > 40, what="everything is there")
        process.terminate()
        assert finish(process).code == 0
    same(entries_of(output), place.oracle())


def test_in_a_pipe_that_two_fetches_share_the_second_begins_with_a_new_line(bench: Starter) -> None:
    place = bench(contracts=1, events=40)
    reader, writer = os.pipe()
    killed_in_a_write(place, writer, "fetch", "--since", "1h")
    assert place.fetch("--since", "1h", stdout=writer).code == 0
    assert place.fetch("--since", "1h", stdout=writer).code == 0  # no entries to print, so no newline either
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = pipe.read().split(b"\n")
    oracle = place.oracle()
    broken = [line for line in lines[:-1] if line not in oracle]
    assert len(broken) == 1
    assert lines[-1] == b""
    same(lines[lines.index(broken[0]) + 1 : -1], oracle)
