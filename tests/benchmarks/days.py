"""A large archive to verify: `-m tests.benchmarks.days FILE DIRECTORY DAYS`. Each day has the lines of FILE, spread over it.

A process of its own, because its memory would count in the peak memory of every process that it starts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from poller.archive.directory import DirectoryPlace
from poller.core.events import OutboxEvent
from tests.archives import Writer, signer

_DAY_US = 86_400_000_000


def main(file: Path, directory: Path, days: int) -> None:
    lines = file.read_bytes().splitlines()
    writer = Writer(DirectoryPlace(directory), signer())
    step_us = _DAY_US // len(lines)
    for day in range(days):
        times = range(day * _DAY_US, (day + 1) * _DAY_US, step_us)
        writer.write(
            [OutboxEvent("31960001", time_us, 0, b"", 0, line) for time_us, line in zip(times, lines, strict=False)]
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
