"""Runs a command to its end in the process of the test. It takes a tenth of the time of a started process.

It is for groups of cases that differ only in input and output. One case of each group runs in a real process as well. The exit
code, both outputs, the environment and the directory are as there. Tests of signals, of the end of a process, or of its
resources need a real process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from unittest.mock import patch

from poller.cli import run
from tests.support import clean_environment


def run_here(*args: str, cwd: Path, env: Mapping[str, str]) -> tuple[int, bytes, bytes]:
    """The exit code of `ionos-poller ARGS`, and what it wrote to stdout and stderr. `env` is added to a clean environment."""
    with (
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
        chdir(cwd),
        patch.dict(os.environ, clean_environment(env), clear=True),
        _written_to(1, output.fileno()),
        _written_to(2, errors.fileno()),
        open(os.devnull) as stdin,  # noqa: PTH123 - no file of ours
        patch.object(sys, "stdin", stdin),
        os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogateescape") as stdout,
        os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace", buffering=1) as stderr,
        patch.object(sys, "stdout", stdout),
        patch.object(sys, "stderr", stderr),
    ):
        try:
            code = run(list(args))
        except SystemExit as end:  # click ends shell completion this way
            code = int(end.code or 0)
        stdout.flush()
        stderr.flush()
        output.seek(0)
        errors.seek(0)
        return code, output.read(), errors.read()


@contextmanager
def _written_to(descriptor: int, file: int) -> Iterator[None]:
    """Redirect the writes to a descriptor into a file."""
    kept = os.dup(descriptor)
    os.dup2(file, descriptor)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
