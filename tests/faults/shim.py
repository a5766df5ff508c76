"""The real command with things going wrong inside its process: `python -m tests.faults.shim run ...`. Not part of the product.

FAULT_KILL_AT_COMMIT=N:before|after   kill -9 at the N-th commit of any SQLite file, just before or just after it
FAULT_KILL_AT_WRITE=N                 kill -9 during the N-th write of an output, half of it done
FAULT_CLOCK=S=OFF,S=OFF               from S seconds after the start on, this process's clock is off by OFF seconds
FAULT_PLANT=NAME                      a mistake on purpose, which the harness must find: see `plants`, `cluster_plants`
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import sqlite3
import time
from functools import partial
from typing import Any, NoReturn

_OUTPUT_BYTES = 500  # a smaller write is not a batch of entries


def main() -> None:
    if steps := os.environ.get("FAULT_CLOCK"):
        shift_clock([tuple(map(float, step.split("="))) for step in steps.split(",")])
    if at := os.environ.get("FAULT_KILL_AT_COMMIT"):
        number, _, moment = at.partition(":")
        kill_at_commit(int(number), is_before=moment == "before")
    if number := os.environ.get("FAULT_KILL_AT_WRITE", ""):
        kill_at_write(int(number))
    if plant := os.environ.get("FAULT_PLANT"):
        from tests.faults.cluster_plants import CLUSTER_PLANTS
        from tests.faults.plants import PLANTS

        (PLANTS | CLUSTER_PLANTS)[plant]()
    from poller.__main__ import main as run

    run()


def die() -> NoReturn:
    """End the process with `kill -9`: nothing is flushed, closed or logged."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def kill_at_commit(number: int, *, is_before: bool) -> None:
    """Kill the process at commit `number` of any caller to an SQLite file."""
    count = 0

    class Connection(sqlite3.Connection):
        def __init__(self, database: Any, *args: Any, **options: Any) -> None:
            super().__init__(database, *args, **options)
            self.is_counted = database != ":memory:"

        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            return self._counted(sql, partial(super().execute, sql, *args))

        def executescript(self, script: str) -> sqlite3.Cursor:
            body, commit, rest = script.rpartition("COMMIT")
            if not commit:
                return super().executescript(script)
            super().executescript(body)
            self.execute(commit)
            return super().executescript(rest.removeprefix(";"))

        def commit(self) -> None:
            self._counted("COMMIT", super().commit)

        def _counted(self, sql: str, work: Any) -> Any:
            nonlocal count
            if not self.is_counted or sql.strip().rstrip(";").upper() not in ("COMMIT", "END"):
                return work()
            count += 1
            if count == number and is_before:
                die()
            result = work()
            if count == number:
                die()
            return result

    sqlite3.connect = partial(sqlite3.connect, factory=Connection)


def kill_at_write(number: int) -> None:
    """Kill the process in the middle of write `number` of a batch to a file or pipe. SQLite's writes do not use `os.write`."""
    real = os.write
    count = 0

    def write(descriptor: int, data: Any) -> int:
        nonlocal count
        if len(data) >= _OUTPUT_BYTES:
            count += 1
            if count == number:
                real(descriptor, bytes(data[: len(data) // 2]))
                die()
        return real(descriptor, data)

    os.write = write


def shift_clock(steps: list[Any]) -> None:
    """Shift all of Python's wall clocks, before the program imports one. The monotonic clock stays right."""
    began, real_time, real_ns, real_datetime = time.monotonic(), time.time, time.time_ns, dt.datetime

    def offset() -> float:
        elapsed = time.monotonic() - began
        return next((seconds for at, seconds in reversed(steps) if elapsed >= at), 0.0)

    class Likeness(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, real_datetime)

    class Shifted(real_datetime, metaclass=Likeness):
        def __new__(cls, *args: Any, **options: Any) -> Any:
            return real_datetime(*args, **options)

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real_datetime.fromtimestamp(time.time(), tz)

    time.time = lambda: real_time() + offset()
    time.time_ns = lambda: real_ns() + int(offset() * 1_000_000_000)
    dt.datetime = Shifted


if __name__ == "__main__":
    main()
