"""A server that is stopped: waiting for it ends with an error, and the waiting worker does not count as stuck."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from poller.core.errors import StateUnavailableError
from poller.store.postgres.database import Connection, Database
from poller.system.liveness import Workers, moves
from tests.support import wait_until

pytestmark = pytest.mark.backends("postgres")


@contextmanager
def standing_still(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.fixture
def database(state: Any, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setattr("poller.store.postgres.database._ANSWER_SECONDS", 0.3)
    found: Database = state._database
    while found._idle:  # only new connections have the new limit
        found._idle.pop()[0].close()
    return found


def query(connection: Connection) -> None:
    connection.execute("SELECT 1").fetchone()


def many(connection: Connection) -> None:
    connection.executemany("INSERT INTO facts VALUES (0, %s, '')", [("a",), ("b",)])


@pytest.mark.parametrize("work", [query, many, lambda connection: None], ids=["a query", "many rows", "COMMIT"])
def test_what_waits_for_a_server_that_stands_still_ends_and_is_tried_again_later(
    database: Database, work: Callable[[Connection], None]
) -> None:
    stopped: list[Any] = []

    def stalled(connection: Connection) -> None:
        stop = standing_still(connection.raw.info.backend_pid)
        stop.__enter__()
        stopped.append(stop)
        work(connection)

    began = time.monotonic()
    try:
        with pytest.raises(StateUnavailableError, match="a statement took too long: no answer for 0 s"):
            database.write(stalled)
    finally:
        for stop in stopped:
            stop.__exit__(None, None, None)
    assert len(stopped) == 1
    assert time.monotonic() - began < 5
    assert database.write(lambda connection: connection.execute("SELECT 7").fetchone()) == (7,)


def test_an_idle_connection_whose_server_stands_still_is_replaced(database: Database) -> None:
    process = lambda connection: connection.raw.info.backend_pid  # noqa: E731 - used twice
    before = database.read(process)
    with standing_still(before):
        assert database.read(process) != before


def test_a_slow_statement_within_the_limit_has_its_answer(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.store.postgres.database._ANSWER_SECONDS", 30.0)
    slow = "SELECT pg_sleep(0.4)"
    assert database.read(lambda connection: connection.execute(slow).rowcount) == 1


def test_who_waits_for_an_answer_is_not_stuck(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.store.postgres.database._ANSWER_SECONDS", 30.0)
    monkeypatch.setattr("poller.system.liveness.GRACE_SECONDS", -0.2)  # a silent worker is stuck at once
    workers, seen = Workers(), list[bool]()

    def look(connection: Connection) -> None:
        raw = connection.raw
        bounded = raw._bounded

        def watched(gen: Any, seconds: float) -> Any:
            seen.append(bool(workers.stuck()))
            return bounded(gen, seconds)

        monkeypatch.setattr(raw, "_bounded", watched)
        query(connection)

    with workers.busy("the job share"):
        assert workers.stuck()
        database.read(look)
        assert workers.stuck()
    assert seen == [False, False]


def test_once_a_connection_broke_the_idle_ones_are_not_tried_one_after_the_other(database: Database) -> None:
    with ThreadPoolExecutor(3) as pool:
        together = threading.Barrier(3)
        pids = list(pool.map(lambda _: database.read(lambda connection: pid_of(connection, together)), range(3)))
    assert len(database._idle) == 3
    with ExitStack() as stops:
        for pid in pids:
            stops.enter_context(standing_still(pid))
        began = time.monotonic()
        database.read(query)
        assert time.monotonic() - began < 0.6


def pid_of(connection: Connection, together: threading.Barrier) -> int:
    together.wait(10)
    return connection.raw.info.backend_pid


def test_who_waits_for_one_that_writes_quiet_polls_is_not_stuck(
    state: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet, workers = state.contracts._quiet, Workers()
    monkeypatch.setattr("poller.system.liveness.GRACE_SECONDS", 0.0)
    waits = threading.Event()

    def flush() -> None:
        with workers.busy("the poll of contract 2"):
            waits.set()
            quiet.flush()

    quiet._writing.acquire()
    with ThreadPoolExecutor(1) as pool, workers.busy("the poll of contract 1"):
        moves(30)  # like a worker that waits for the server
        pool.submit(flush)
        assert waits.wait(10)
        wait_until(lambda: any(worker.is_waiting for worker in workers._busy), what="the second one waits")
        assert workers.stuck() == {}
        quiet._writing.release()
