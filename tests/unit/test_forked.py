"""A forked command behaves like a started one, but is faster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import coverage
import pytest

from poller import __version__
from tests.commands import run_command, start_command, start_process
from tests.forked import Forked, can_be_forked
from tests.support import COMMAND, MEASURING, UNMEASURED, clean_environment, open_files

ENVIRONMENT = clean_environment(UNMEASURED)


@pytest.mark.parametrize(
    "arguments", ["--version", "fetch --help", "config example", "no-such-command", "fetch", "config check"]
)
def test_it_says_the_same_and_ends_with_the_same_code(tmp_path: Path, arguments: str) -> None:
    command = [*COMMAND, *arguments.split()]
    environment = ENVIRONMENT | {"IONOS_POLLER_POLL__INTERVAL": "wrong"}
    forked = start_process(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    said = forked.communicate(timeout=60)
    assert isinstance(forked, Forked)
    started = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert (*said, forked.returncode) == (started.stdout, started.stderr, started.returncode)


def _simulator(directory: Path, environment: dict[str, str]) -> Any:
    command = [*COMMAND, "simulate", "--port", "0"]
    process = start_process(
        command, cwd=directory, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()  # it has started
    return process


@pytest.fixture
def simulator(tmp_path: Path) -> Any:
    with _simulator(tmp_path, {}) as process:
        yield process
        process.kill()


def test_it_is_our_child_with_a_directory_and_streams_of_its_own_and_nothing_else_open(
    tmp_path: Path, simulator: Any
) -> None:
    with _simulator(tmp_path, {"PYTHONUNBUFFERED": "1"}) as started:
        assert isinstance(simulator, Forked)
        assert not isinstance(started, Forked)
        assert _kinds(simulator.pid) == _kinds(started.pid)
        started.kill()
    own = Path("/proc", str(simulator.pid))
    assert f"PPid:\t{os.getpid()}\n" in (own / "status").read_text()
    assert (own / "cwd").readlink() == tmp_path


def _kinds(pid: int) -> list[str]:
    return sorted(re.sub("[0-9]+", "", name) for name in open_files(pid))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -9)])
def test_signals_end_it_as_they_end_any_other(simulator: Any, number: signal.Signals, code: int) -> None:
    simulator.send_signal(number)
    assert simulator.wait(timeout=60) == code


def test_one_that_ended_is_waited_for_once(tmp_path: Path) -> None:
    process = start_command("--version", cwd=tmp_path, env=UNMEASURED)
    with process:
        assert process.communicate(timeout=60)[1] == ""
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)


def test_threads_may_ask_at_the_same_time(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        ends = list(threads.map(lambda _: run_command("--version", cwd=tmp_path, env=UNMEASURED), range(8)))
    assert {(end.returncode, end.stdout) for end in ends} == {(0, f"ionos-poller {__version__}\n")}


def test_one_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_command("simulate", "--port", "0", cwd=tmp_path, env=UNMEASURED, timeout=0.2)


def test_one_that_is_measured_counts_what_it_runs_itself(tmp_path: Path) -> None:
    measured = coverage.Coverage(data_file=str(tmp_path / "lines"), config_file=False, source=["poller"])
    measured.set_option("run:parallel", True)
    measured.set_option("run:patch", ["_exit"])
    environment = ENVIRONMENT | {MEASURING: measured.config.serialize()}
    with start_process(
        [*COMMAND, "config", "example"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    ) as process:
        assert isinstance(process, Forked)
    measured.combine([str(tmp_path)])
    ran = {Path(file).name: measured.get_data().lines(file) for file in measured.get_data().measured_files()}
    assert ran["config.py"]
    assert not ran["deliver.py"]  # the template has imported it, and none of its lines run


@pytest.mark.parametrize(
    "changed", [{"PYTHONUNBUFFERED": "1"}, {"PYTHONPATH": "/elsewhere"}, {"LC_ALL": "C"}, {"TZ": "Asia/Tokyo"}]
)
def test_what_python_reads_at_its_start_is_for_one_that_is_started(changed: dict[str, str]) -> None:
    assert can_be_forked(COMMAND, ENVIRONMENT)
    assert not can_be_forked(COMMAND, ENVIRONMENT | changed)
    assert not can_be_forked([sys.executable, "-c", "pass"], ENVIRONMENT)


def test_other_options_than_streams_are_for_one_that_is_started(tmp_path: Path) -> None:
    with start_process([*COMMAND, "--version"], cwd=tmp_path, env=ENVIRONMENT, start_new_session=True) as process:
        assert type(process) is subprocess.Popen
