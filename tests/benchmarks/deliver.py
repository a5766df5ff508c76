"""Delivery alone: it fills an outbox, then empties it into one sink.

`-m tests.benchmarks.deliver FILE CONFIG STATE [CONTRACTS]`: the lines of FILE, shared out among CONTRACTS (default: 1).

Prints the seconds of emptying it, without filling it.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from poller.config import load
from poller.core.answers import parse_page
from poller.core.windows import Window
from poller.pipeline.archive import deliverer_of
from poller.sinks.build import build_sink
from poller.store.sqlite import State
from tests.states import commit


def main(lines: Path, config_file: Path, directory: Path, contracts: int = 1) -> None:
    config = load(config_file, {"IONOS_API_TOKEN": "demo-token"})
    state = State.open(directory, "run")
    deliverer = deliverer_of(state, build_sink(config.sinks[0], config, threading.Event()))
    fill(state, lines.read_bytes().splitlines(), contracts)
    started = time.monotonic()
    while (wait := deliverer.step(is_last=True).wait_seconds) is not None:
        time.sleep(wait)  # the deliverer's own waits are part of the measurement
    print(time.monotonic() - started)
    state.close()


def fill(state: State, lines: list[bytes], contracts: int) -> None:
    names = [str(31960001 + number) for number in range(contracts)]
    state.contracts.enrol(names, "default", 0, 0)
    now = int(time.time())
    # Each contract gets entries of the whole span.
    runs = [(name, lines[number::contracts]) for number, name in enumerate(names)]
    for contract, mine in (
        (name, run[start : start + 5000]) for name, run in runs for start in range(0, len(run), 5000)
    ):
        events = list(parse_page(b"[" + b",".join(mine) + b"]").events)
        commit(state, events, contract=contract, window=Window(0, now), now=now - 60, advance=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), *map(int, sys.argv[4:]))
