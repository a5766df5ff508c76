"""Delivery alone: an outbox filled beforehand, emptied into one HTTP sink. `-m tests.benchmarks.deliver FILE CONFIG STATE`.

Prints the seconds that emptying took, without the filling.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from poller.config import load
from poller.events import parse_page
from poller.pipeline.deliver import Deliverer
from poller.sinks import build_sink
from poller.store import State
from poller.store.contracts import Commit
from poller.windows import Window


def main(lines: Path, config_file: Path, directory: Path) -> None:
    config = load(config_file, {"IONOS_API_TOKEN": "demo-token"})
    state = State.open(directory, "run")
    deliverer = Deliverer(state.outbox, build_sink(config.sinks[0], config, threading.Event()))
    fill(state, lines.read_bytes().splitlines())
    started = time.monotonic()
    while deliverer.step().wait_seconds is not None:
        pass
    print(time.monotonic() - started)
    state.close()


def fill(state: State, lines: list[bytes]) -> None:
    state.contracts.enrol(["31960001"], "default", 0, 0)
    now = int(time.time())
    for start in range(0, len(lines), 5000):
        page = parse_page(b"[" + b",".join(lines[start : start + 5000]) + b"]")
        events = list(page.events)
        count = len(events)
        state.contracts.commit_window(Commit("31960001", Window(0, now), count, events, count, events, now - 60))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
