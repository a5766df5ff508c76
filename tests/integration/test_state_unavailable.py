"""A state that is locked or unreachable for a while: the daemon waits; a command ends with 1, and can be started again."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from contextlib import closing, suppress

from tests.daemon import LOGGING, LOKI, MakeDaemon
from tests.faults.proxy import Proxy
from tests.postgres import Server
from tests.support import COMMAND, clean_environment, wait_until


def test_a_state_locked_for_longer_than_is_waited_stops_neither_the_daemon_nor_what_comes_after(
    daemon_of: MakeDaemon,
) -> None:
    daemon = daemon_of(contracts=2, events=40)
    daemon.start()
    daemon.await_delivery()
    fetch = [*COMMAND, "fetch"]
    options = {"cwd": daemon.directory, "env": clean_environment(), "capture_output": True, "encoding": "utf-8"}
    assert subprocess.run(fetch, **options, check=False).returncode == 0  # type: ignore[call-overload]
    with (
        closing(sqlite3.connect(daemon.state_dir / "run.db", isolation_level=None)) as run,
        closing(sqlite3.connect(daemon.state_dir / "fetch.db", isolation_level=None)) as fetched,
    ):
        for other in (run, fetched):
            other.execute("BEGIN IMMEDIATE")
        daemon.simulator.add_entries(daemon.simulator.contracts[0], count=7)
        done = subprocess.run(fetch, **options, check=False)  # type: ignore[call-overload]
        assert (done.returncode, done.stdout) == (1, "")
        assert "another program has the state locked" in done.stderr
        wait_until(lambda: daemon.logged("state.unavailable"), what="the daemon says so")
        assert daemon.get("/healthz")[0] == 200
    daemon.await_delivery(LOGGING, LOKI)
    with suppress(AssertionError):
        wait_until(lambda: not daemon.troubles())
    assert daemon.troubles() == []
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_a_daemon_that_starts_while_its_database_is_away_begins_when_it_is_back(
    daemon_of: MakeDaemon, postgres_server: Server
) -> None:
    daemon = daemon_of(contracts=2, events=40)
    way = Proxy(postgres_server.port)
    way.is_refusing = True
    postgres_server.sql("CREATE DATABASE away")
    try:
        daemon.configure(more=f'[state]\nurl = "postgresql://postgres@127.0.0.1:{way.port}/away"\n')
        daemon.start(is_awaited=False)
        wait_until(lambda: daemon.logged("state.unavailable"), what="the daemon says so")
        daemon.signal(signal.SIGHUP)  # must not end it: the configuration is loaded when it begins
        fetch = [*COMMAND, "fetch"]
        options = {"cwd": daemon.directory, "env": clean_environment(), "capture_output": True, "encoding": "utf-8"}
        done = subprocess.run(fetch, **options, check=False)  # type: ignore[call-overload]
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        way.is_refusing = False
        daemon.await_delivery()
        assert daemon.troubles() == []
        daemon.stop()
    finally:
        daemon.close()
        way.close()
    daemon.assert_once()
    assert "Traceback" not in daemon.stderr
