"""The real command as a process: `python -m poller` from this checkout, in an environment without settings from outside."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.forked import Forked, can_be_forked
from tests.support import COMMAND, clean_environment

Stream = int | IO[str] | IO[bytes] | None


def start_process(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: Stream = subprocess.DEVNULL, **options: Any
) -> subprocess.Popen[Any]:
    """As `subprocess.Popen`, without input by default. Forks if the result is the same: that takes a twentieth of the time."""
    is_forked = options.keys() <= {"stdout", "stderr", "encoding"} and can_be_forked(command, env)
    return (Forked if is_forked else subprocess.Popen)(command, cwd=cwd, env=env, stdin=stdin, **options)


def run_command(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run `ionos-poller ARGS` to its end in `cwd`. It looks there for `./state` and `./ionos-poller.toml`.

    `env` is added to a clean environment. stdout and stderr are captured as UTF-8. After `timeout` seconds it kills the
    process and raises subprocess.TimeoutExpired.
    """
    with start_command(*args, cwd=cwd, env=env) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def start_command(
    *args: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdout: Stream = subprocess.PIPE,
    stderr: Stream = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Start `ionos-poller ARGS` and return at once; the `start` fixture does this and cleans up after.

    Give a file as `stderr` (or `stdout`) for a process with much output: the pipe is not read while a test
    waits.
    """
    command = [*COMMAND, *args]
    return start_process(command, cwd=cwd, env=clean_environment(env), stdout=stdout, stderr=stderr, encoding="utf-8")
