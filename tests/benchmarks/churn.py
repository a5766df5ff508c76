"""Commits and deliveries on a state in PostgreSQL, one after the other, without an API or a receiver.

`-m tests.benchmarks.churn URL USE COMMITS EVENTS CONTRACTS`: COMMITS commits of EVENTS entries each, the contracts in
turn, each delivered at once. Prints JSON in seconds: the total, and the median of a commit with its delivery, of the first and of
the last tenth.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from poller.config import load
from poller.store.postgres import Stores
from tests.states import START, commit, event

LINE = b'{"id":"%032d","text":"' + b"x" * 420 + b'"}'


def main(url: str, use: str, commits: int, size: int, count: int) -> None:
    stores = Stores(load(None, {"IONOS_POLLER_STATE__URL": url}, state_dir=Path(tempfile.gettempdir())))
    state = stores.open(use)
    contracts = [str(31960001 + number) for number in range(count)]
    state.contracts.enrol(contracts, "default", START, START)
    state.outbox.register("out", "http")
    state.contracts.share(contracts)
    place = state.outbox.take("out")
    assert place is not None
    took = []
    began = time.monotonic()
    for number in range(commits):
        second = START + number
        numbers = range(number * size, (number + 1) * size)
        events = [event(one, second, line=LINE % one) for one in numbers]
        started = time.monotonic()
        commit(state, events, contract=contracts[number % count], advance_to=second, now=second)
        batch = place.batch(size, 10**9)
        assert batch is not None
        place.settle(len(batch.events), now=second)
        took.append(time.monotonic() - started)
    seconds = time.monotonic() - began
    (sink,) = state.outbox.sinks()
    assert sink.delivered == commits * size, sink
    state.close()
    tenth = max(1, commits // 10)
    first, last = (statistics.median(part) for part in (took[:tenth], took[-tenth:]))
    print(json.dumps({"seconds": seconds, "first": first, "last": last}))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
