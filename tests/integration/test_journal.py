"""Actions of people on a state are in its journal and in the log: who, when, what, how many, and why."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
import stat
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from poller.config import load
from poller.store.opening import stores_of
from tests.daemon import LOGGING, LOKI, MakeDaemon
from tests.integration.fetching import Bench, Run, Starter, failed
from tests.postgres import Server
from tests.states import fill_with_dead_letters, with_dead_letters
from tests.support import wait_until

SINK = "out"
LOGIN = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def place(bench: Starter) -> Bench:
    """A state of `fetch` with five dead letters of a sink that is not configured, one event that waits for it, and a gap."""
    made = bench(contracts=1, events=0)
    with_dead_letters(made.state_dir, "fetch")
    return made


def journal(place: Bench, *args: str) -> list[dict[str, Any]]:
    run = place.run("journal", "--json", "--use", "fetch", *args)
    assert run.code == 0, run.stderr
    return [json.loads(line) for line in run.lines]


def recorded(run: Run) -> list[dict[str, Any]]:
    assert run.code == 0, run.stderr
    return [line for line in run.log if line["message"] == "journal.recorded"]


@pytest.mark.parametrize(
    ("command", "action", "subject", "count"),
    [
        (("dead-letters", "replay"), "dead-letters replay", "all", 5),
        (("dead-letters", "replay", "2", "3"), "dead-letters replay", "2 3", 2),
        (("dead-letters", "purge", "--yes", "--reason", "old"), "dead-letters purge", "all", 5),
        (("sinks", "forget", SINK), "sinks forget", SINK, 1),
        (("gaps", "retry"), "gaps retry", "all that are open", 1),
        (("gaps", "accept", "1"), "gaps accept", "gap 1: contract 31960001", 1),
        (("fetch", "--since", "2026-05-01"), "fetch --since", "2026-05-01T00:00:00Z", None),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_person_does_is_in_the_journal_and_in_the_log(
    command: tuple[str, ...], action: str, subject: str, count: int | None, place: Bench
) -> None:
    before = int(time.time())
    use = () if command[0] == "fetch" else ("--use", "fetch")
    (logged,) = recorded(place.run(*command, *use, env={"SUDO_USER": "anna"}))
    (entry,) = journal(place)
    sudo_user = "anna" if os.geteuid() == 0 else ""
    assert (entry["uid"], entry["login"], entry["sudo_user"]) == (os.getuid(), LOGIN, sudo_user)
    assert (entry["action"], entry["count"]) == (action, count)
    assert entry["subject"].startswith(subject)
    assert before <= time.mktime(time.strptime(entry["at"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone <= time.time()
    for name in ("at", "uid", "login", "action", "subject"):
        assert logged[name] == entry[name]
    assert logged.get("count") == count
    (line,) = place.run("journal", "--use", "fetch").lines
    who = f"{LOGIN} (sudo: anna)" if sudo_user else LOGIN
    assert line.decode().startswith(f"{entry['at']}  {who}  {action}  {subject}")
    status = place.run("status", "--json").lines[0]
    assert json.loads(status)["uses"]["fetch"]["last_action"] == entry
    assert action in b"\n".join(place.run("status").lines).decode()


def test_what_changes_nothing_is_not_in_the_journal(place: Bench) -> None:
    assert place.run("dead-letters", "list", "--use", "fetch").code == 0
    assert place.run("sinks", "forget", "nobody", "--use", "fetch").code == 2
    assert place.run("dead-letters", "purge", "--sink", SINK, "--reason", "x", "--use", "fetch").code == 2
    assert place.fetch().code == 0
    assert journal(place) == []
    assert place.run("journal", "--use", "fetch").told == ["nothing was done by hand"]


def test_the_journal_lists_the_latest_from_a_time_on(place: Bench) -> None:
    for number in ("1", "2", "3"):
        assert place.run("dead-letters", "replay", number, "--use", "fetch").code == 0
    assert [entry["subject"] for entry in journal(place)] == ["1", "2", "3"]
    assert [entry["subject"] for entry in journal(place, "--limit", "2")] == ["2", "3"]
    assert journal(place, "--limit", "9" * 25) == journal(place)
    with closing(sqlite3.connect(place.database, isolation_level=None)) as raw:
        raw.execute("UPDATE journal SET at = at - 7200 WHERE id = 1")
    assert [entry["subject"] for entry in journal(place, "--since", "1h")] == ["2", "3"]


def test_an_audit_that_repairs_and_an_adopted_state_are_in_the_journal(bench: Starter) -> None:
    place = bench(contracts=1, events=20, span_seconds=3000)
    script = place.directory / "state.json"
    script.write_text('{"last_run": "2026-05-01T00:00:00+00:00"}')
    (logged,) = recorded(place.fetch("--adopt-state", str(script)))
    assert (logged["action"], logged["subject"]) == ("fetch --adopt-state", str(script))
    assert recorded(place.fetch("--adopt-state", str(script))) == [], "it was adopted already"
    place.simulator.add_entries(place.simulator.contracts[0], count=3, at=datetime.now(UTC) - timedelta(minutes=30))
    (logged,) = recorded(place.run("audit", "--from", "2h", "--to", "0m", "--repair"))
    assert (logged["action"], logged["count"]) == ("audit --repair", 3)
    assert [entry["action"] for entry in journal(place)] == ["fetch --adopt-state", "audit --repair"]


def test_a_reload_is_in_the_journal_and_the_daemon_logs_what_others_do_beside_it(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1)
    daemon.configure()
    daemon.start("--since", "1h")
    daemon.reload()
    daemon.configure(sinks={LOKI: {}})
    daemon.reload()
    daemon.command("sinks", "forget", LOGGING)
    wait_until(lambda: daemon.logged("journal.recorded", action="sinks forget"), what="the daemon logs it")
    daemon.stop()
    told = [(line["action"], line["login"]) for line in daemon.logged("journal.recorded")]
    assert told == [("run --since", LOGIN), ("reload", "signal"), ("reload", "signal"), ("sinks forget", LOGIN)]
    since, reload, *_ = [json.loads(line) for line in daemon.command("journal", "--json").splitlines()]
    assert (since["action"], since["login"]) == ("run --since", LOGIN)
    assert (reload["action"], reload["login"], reload["uid"]) == ("reload", "signal", None)


# Purging


def purge(place: Bench, *args: str, **options: Any) -> Run:
    return place.run("dead-letters", "purge", "--yes", "--use", "fetch", *args, **options)


@pytest.mark.parametrize("reason", [(), ("--reason", " ")])
def test_a_purge_without_a_reason_is_refused(reason: tuple[str, ...], place: Bench) -> None:
    failed(purge(place, *reason), 2, "--reason: missing")
    assert len(place.run("dead-letters", "list", "--json", "--use", "fetch").lines) == 5


def test_a_purge_keeps_what_it_deletes_in_a_file_for_its_owner_alone(place: Bench) -> None:
    listed = place.run("dead-letters", "list", "--json", "--use", "fetch").lines
    assert purge(place, "1", "2", "--reason", "test data").code == 0
    (kept,) = place.state_dir.glob("purged-fetch-*.ndjson")
    assert kept.read_bytes().splitlines() == listed[:2]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    (entry,) = journal(place)
    assert (entry["count"], entry["reason"], entry["export"]) == (2, "test data", str(kept.absolute()))


def test_letters_are_listed_as_many_as_are_asked_for(place: Bench) -> None:
    for more in ((), ("--json",)):
        listed = place.run("dead-letters", "list", "--use", "fetch", *more).lines
        assert len(listed) == 5
        assert place.run("dead-letters", "list", "--use", "fetch", "--limit", "2", *more).lines[:2] == listed[:2]
    assert len(place.run("dead-letters", "list", "--use", "fetch", "--limit", "2", "--json").lines) == 2


def test_a_purge_of_a_state_in_a_database_keeps_it_in_the_state_directory(
    place: Bench, postgres_server: Server
) -> None:
    given = {"STATE__URL": postgres_server.url(), "STATE__SCHEMA": "purged"}
    variables = {f"IONOS_POLLER_{name}": value for name, value in given.items()}
    directory = place.directory / "none-yet"
    stores = stores_of(load(None, variables, state_dir=directory))
    fill_with_dead_letters(stores.open("fetch"))
    stores.close()
    done = purge(place, "1", "2", "--reason", "test", env={**variables, "IONOS_POLLER_STATE_DIR": str(directory)})
    assert done.code == 0, done.stderr
    (kept,) = directory.glob("purged-fetch-*.ndjson")
    assert len(kept.read_bytes().splitlines()) == 2


def test_a_purge_keeps_it_where_one_says_or_not_at_all(place: Bench) -> None:
    kept = place.directory / "kept.ndjson"
    assert purge(place, "1", "--reason", "x", "--export", str(kept)).code == 0
    assert len(kept.read_bytes().splitlines()) == 1
    failed(purge(place, "2", "--reason", "x", "--export", str(kept)), 2, "exists")
    failed(purge(place, "2", "--reason", "x", "--export", "/nowhere/file"), 2, "cannot be written")
    failed(purge(place, "2", "--reason", "x", "--export", "a", "--no-export"), 2, "--no-export")
    assert len(place.run("dead-letters", "list", "--json", "--use", "fetch").lines) == 4, "nothing goes without a copy"
    assert purge(place, "--reason", "x", "--no-export").code == 0
    assert list(place.state_dir.glob("*.ndjson")) == []
    assert [entry["export"] for entry in journal(place)] == [str(kept), None]


def test_words_that_are_no_text_or_move_the_cursor_do_no_harm(place: Bench) -> None:
    assert purge(place, "1", "--reason", b"\xff\x1b[2Jx".decode(errors="surrogateescape")).code == 0
    (line,) = place.run("journal", "--use", "fetch").lines
    assert line.decode().isprintable()
