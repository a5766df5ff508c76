"""`audit --repair` while people work on the same state and no daemon runs."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from poller.store.sqlite.inspection import holder_of
from poller.store.sqlite.schema import with_functions
from tests.daemon import CONTRACTS, FIRST, LOGGING, MakeDaemon
from tests.support import COMMAND, clean_environment, wait_until


def open_files(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


def test_replays_beside_an_audit_that_repairs_lose_nothing(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, faults=("sink=logging:422",))
    daemon.configure(sinks={LOGGING: {}}, poll={"audit_interval": '"0s"'})
    daemon.simulator.add_entries(FIRST, count=5, at=datetime.now(UTC) - timedelta(minutes=1))
    daemon.start()
    wait_until(lambda: daemon.sink(LOGGING)["dead_letters"] == 5, what="five dead letters")
    daemon.stop()
    daemon.simulator.set_faults(["latency:1s"])
    for contract in CONTRACTS:
        daemon.simulator.add_entries(contract, count=15, at=datetime.now(UTC) - timedelta(minutes=90))
    audit = subprocess.Popen(
        [*COMMAND, "audit", "--from", "2h", "--to", "0m", "--repair"],
        cwd=daemon.directory,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    lock = daemon.state_dir / "run.lock"
    wait_until(lambda: holder_of(lock) == audit.pid or audit.poll() is not None, 30, what="the audit collects")
    replayed = []
    for number in range(1, 6):
        polls = daemon.polls()
        replayed.append(daemon.command("dead-letters", "replay", str(number)))
        wait_until(lambda polls=polls: daemon.polls() > polls or audit.poll() is not None, 30)  # type: ignore[misc]
    assert [path for path in open_files(audit.pid) if "(deleted)" in path] == [], "nobody takes its log away"
    told = audit.communicate(timeout=60)[1]
    assert (audit.returncode, "30 entries collected" in told) == (0, True), told
    assert [told.partition(" put back")[0] for told in replayed] == ["1 of 1"] * 5

    with closing(with_functions(sqlite3.connect(daemon.state_dir / "run.db"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert daemon.state()["outbox"]["events"] == 35
    sink = daemon.sink(LOGGING)
    assert (sink["waiting"], sink["dead_letters"], sink["letters_written"], sink["letters_replayed"]) == (35, 0, 5, 5)
    daemon.simulator.set_faults([])
    daemon.start()
    daemon.await_delivery(LOGGING)
    daemon.stop()
    daemon.assert_once(LOGGING)
    daemon.assert_clean()
