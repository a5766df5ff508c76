"""Runs another program, with limits for its time and its output. All processes that it started are killed at its end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_SECONDS = 10.0
_MAX_SAID_BYTES = 64 * 1024


class Answer(NamedTuple):
    """The exit code of a program, and its output on stdout and stderr, cut if it is too long."""

    code: int
    said: str


def ask(command: Sequence[str], *, directory: Path | None = None) -> Answer:
    """Run a program to its end.  Raises: OSError if it cannot be run; TimeoutError."""
    with subprocess.Popen(  # noqa: S603 - named by the user who runs the check
        command,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        is_late = threading.Event()

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        def end_late() -> None:
            is_late.set()
            end()

        timer = threading.Timer(_SECONDS, end_late)
        timer.start()
        try:
            said = process.stdout.read(_MAX_SAID_BYTES)
            if len(said) == _MAX_SAID_BYTES:
                end()
            code = process.wait()
        finally:
            timer.cancel()
            end()
        if is_late.is_set():
            raise TimeoutError(f"did not end within {_SECONDS:.0f} s")
    return Answer(code, said.decode(errors="replace"))
