"""The real command with things going wrong inside it: `python -m tests.faults.shim run ...`. Not part of the product.

FAULT_KILL_AT_COMMIT=N:before|after   kill -9 at the N-th commit of the state, just before or just after it
FAULT_CLOCK_SECONDS=S                 this process's clock is off by S
FAULT_FILE_BYTES=N                    no file may grow beyond N bytes: a full disk
FAULT_PLANT=NAME                      a mistake put in on purpose, which the harness must find:
    watermark-first    the watermark is committed before the entries that it covers
    settle-first       a batch counts as delivered before it is sent
    forget-ledger      nothing is remembered as seen
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def main() -> None:
    if seconds := float(os.environ.get("FAULT_CLOCK_SECONDS", "0")):
        real = time.time
        time.time = lambda: real() + seconds  # before the program binds it
    if limit := int(os.environ.get("FAULT_FILE_BYTES", "0")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if at := os.environ.get("FAULT_KILL_AT_COMMIT"):
        number, _, moment = at.partition(":")
        kill_at_commit(int(number), moment)
    if plant := os.environ.get("FAULT_PLANT"):
        PLANTS[plant]()
    from poller.cli import main as run

    run("ionos-poller")


def kill_at_commit(number: int, moment: str) -> None:
    from poller.store.database import Database

    real = Database.transaction
    count = 0

    @contextmanager
    def transaction(self: Database) -> Iterator[Any]:
        nonlocal count
        with real(self) as connection:
            yield connection
            count += 1
            if count == number and moment == "before":
                die()
        if count == number and moment == "after":
            die()

    Database.transaction = transaction  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def plant_watermark_first() -> None:
    from poller.store.contracts import Commit, Contracts

    real = Contracts.commit_window

    def commit_window(self: Contracts, commit: Commit) -> None:
        real(self, commit._replace(fetched=0, unseen=[], new_count=0, kept=[], late=0, repaired=0))
        if commit.kept and random.random() < 0.3:
            die()  # the moment in which a kill does harm
        real(self, commit)

    Contracts.commit_window = commit_window  # type: ignore[method-assign]


def plant_settle_first() -> None:
    from poller.pipeline.deliver import Deliverer

    real = Deliverer.step

    def step(self: Deliverer) -> Any:
        batch = self._outbox.batch(self._sink.name, self._sink.batch_events, self._sink.batch_bytes)
        if batch is None or self._pieces:
            return real(self)
        self._outbox.settle(self._sink.name, len(batch.events), now=time.time())
        self._sink.send(batch.events)
        return type(real(self))(len(batch.events), 0.0)

    Deliverer.step = step  # type: ignore[method-assign]


def plant_forget_ledger() -> None:
    from poller.store import ledger

    ledger.add = lambda *args, **kwargs: None


PLANTS = {
    "watermark-first": plant_watermark_first,
    "settle-first": plant_settle_first,
    "forget-ledger": plant_forget_ledger,
}

if __name__ == "__main__":
    sys.argv[0] = "ionos-poller"
    main()
