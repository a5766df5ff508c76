"""A deleted state is reported like a damaged one. A state that never existed, or was removed on purpose, is not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from poller.store.sqlite import State
from tests.integration.fetching import Bench, Starter, failed

EXPORT = ("backfill", "--from", "1h", "--to", "1m", "--output", "out.ndjson")


@pytest.fixture
def place(bench: Starter) -> Bench:
    return bench(contracts=1, events=20)


def delete(database: Path) -> None:
    for file in database.parent.glob(f"{database.name}*"):
        file.unlink()


def test_a_state_that_was_deleted_is_told_until_a_person_says_from_when(place: Bench) -> None:
    first = place.fetch("--since", "1h")
    assert (first.code, len(first.lines)) == (0, 20)
    delete(place.database)
    for _ in range(2):
        run = place.fetch()
        assert run.lines == []
        failed(run, 4, "fetch.db is gone", "fetch.lock", "--since")
    failed(place.run("dead-letters", "list", "--use", "fetch"), 4, "fetch.db is gone")
    for command in (("status",), ("status", "--json"), ("check", "--offline")):
        looked = place.run(*command)
        assert looked.code == 4
        assert b"fetch.db is gone" in b"\n".join(looked.lines), command
    assert len(place.fetch("--since", "1h").lines) == 20
    assert place.fetch().code == 0
    delete(place.database)
    failed(place.fetch(), 4, "is gone")


def test_deleting_the_lock_too_begins_anew(place: Bench) -> None:
    assert place.fetch().code == 0
    delete(place.database)
    (place.state_dir / "fetch.lock").unlink()
    assert place.fetch().code == 0


def test_run_does_not_begin_anew_either(place: Bench) -> None:
    State.open(place.state_dir, "run").close()
    delete(place.state_dir / "run.db")
    config = place.directory / "config.toml"
    config.write_text('[[sinks]]\nname = "a"\ntype = "file"\npath = "a.ndjson"\n[http]\nlisten = ""\n')
    failed(place.run("--config", str(config), "run"), 4, "run.db is gone", "--since")


def test_a_first_start_that_was_killed_before_there_was_a_state_is_no_loss(place: Bench) -> None:
    place.state_dir.mkdir(mode=0o700)
    for left in (b"", b"4711\n", b"4711               \n"):
        lock = place.state_dir / "fetch.lock"
        lock.write_bytes(left)
        lock.chmod(0o600)
        assert place.fetch().code == 0, left
        delete(place.database)


def test_a_pipe_in_place_of_a_lock_holds_nobody_up(place: Bench) -> None:
    assert place.fetch().code == 0
    os.mkfifo(place.state_dir / "run.lock")
    assert place.run("status").code == 0


def test_a_backfill_that_begins_anew_on_purpose_is_no_loss(place: Bench) -> None:
    assert place.run(*EXPORT).code == 0
    assert place.run(*EXPORT, "--restart").code == 0
    (database,) = place.state_dir.glob("backfill-*.db")
    delete(database)
    (place.directory / "out.ndjson").unlink()
    failed(place.run(*EXPORT), 4, "is gone", "--restart")
    assert place.run(*EXPORT, "--restart").code == 0
    assert (place.directory / "out.ndjson").stat().st_size


def test_status_says_since_when_there_is_a_state(place: Bench) -> None:
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert place.fetch().code == 0
    created = json.loads(place.run("status", "--json").lines[0])["uses"]["fetch"]["created_at"]
    assert before <= created <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert place.fetch().code == 0
    page = b"\n".join(place.run("status").lines).decode()
    assert f"state: created {created}" in page
