"""People who work beside the process under test: several commands at the same time on its state.

None of these commands may crash, or find a damaged state. The books count what they do to entries.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.commands import start_process
from tests.support import COMMAND, UNMEASURED, clean_environment

_PATIENCE_SECONDS = 15.0

# Two replays compete for the same dead letters. The sink to forget does not exist. Only the letters of one sink are purged.
_COMMANDS = (
    ("dead-letters", "replay", "--use", "{use}"),
    ("status", "--json"),
    ("dead-letters", "list", "--json", "--use", "{use}"),
    ("sinks", "forget", "nobody", "--use", "{use}"),
    ("dead-letters", "replay", "--use", "{use}"),
    ("sinks", "retry", "{sink}", "--use", "{use}"),
    ("gaps", "retry", "--use", "{use}"),
)
_AUDIT = ("audit", "--from", "1h", "--to", "0m", "--repair", "--use", "{use}")
_FORGET = ("backfill", "forget", "--finished")
_PURGE = ("dead-letters", "purge", "--sink", "{sink}", "--reason", "test", "--no-export", "--yes", "--use", "{use}")
PURGED_SINK = "logging"


class People:
    """The commands of these people, from `start` to `finish`."""

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        self._environment = clean_environment({**(environment or {}), **UNMEASURED})
        self._processes: list[tuple[str, subprocess.Popen[str]]] = []

    def start(self, use: str, *, may_purge: bool = False) -> None:
        commands: list[Sequence[str]] = [*_COMMANDS]
        if use in ("run", "fetch"):
            commands += [_AUDIT, _FORGET]
        if may_purge:
            commands.append(_PURGE)
        for command in commands:
            args = [part.format(use=use, sink=PURGED_SINK) for part in command]
            process = start_process(
                [*COMMAND, *args],
                cwd=self._directory,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
            self._processes.append((" ".join(args), process))

    def finish(self) -> list[str]:
        """Wait until the commands have ended; Ctrl-C ends those that take too long.  Returns: what went wrong."""
        wrong = []
        for args, process in self._processes:
            try:
                told = process.communicate(timeout=_PATIENCE_SECONDS)[1]
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                try:
                    told = process.communicate(timeout=_PATIENCE_SECONDS)[1]
                except subprocess.TimeoutExpired:
                    process.kill()
                    told = process.communicate()[1]
                    wrong.append(f"a person's `{args}` did not end")
            with suppress(StopIteration):
                line = next(
                    line for line in told.splitlines() if "Traceback" in line or "damaged" in line or "balance" in line
                )
                wrong.append(f"a person's `{args}`: {line}")
        self._processes = []
        return wrong
