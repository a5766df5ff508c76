"""Programs of different versions on one database: which of them may write, and how one changes the tables while others run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poller.config import load
from poller.core.errors import EXIT_STATE, StateError, StateUnavailableError
from poller.store.opening import stores_of
from poller.store.postgres import schema
from tests.postgres import Server
from tests.states import commit, enrolled, events
from tests.support import wait_until

_schemas = count()


class Site:
    """A new schema, and programs that use it."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server = server
        self.schema = f"versions_{next(_schemas)}"
        self._directory = directory

    def stores(self) -> Any:
        """The states, as a starting program opens them."""
        values = {"IONOS_POLLER_STATE__URL": self.server.url(), "IONOS_POLLER_STATE__SCHEMA": self.schema}
        return stores_of(load(None, values, state_dir=self._directory))

    def sql(self, query: str) -> str:
        return self.server.sql(query.replace("$", self.schema))

    def session(self) -> psycopg.Connection[Any]:
        """Another program's connection, in a transaction."""
        session = psycopg.connect(self.server.url(), application_name="pg_dump")
        session.execute(f"SET LOCAL search_path TO {self.schema}")
        return session


@pytest.fixture
def site(postgres_server: Server, tmp_path: Path) -> Site:
    return Site(postgres_server, tmp_path)


@pytest.fixture
def running(site: Site) -> Iterator[Any]:
    """A working replica, with events that wait for a sink."""
    state = enrolled(site.stores().open("run"))
    state.contracts.share(["1"])
    commit(state, events(1, 2))
    yield state
    state.close()


def next_version(monkeypatch: pytest.MonkeyPatch, script: str, *, needs: int = 1) -> None:
    """Give programs that start from now on one more version of the schema."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, schema.Migration(script, needs)))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", len(schema.MIGRATIONS))


# A schema that is too new is never written

WRITES: dict[str, Callable[[Any], object]] = {
    "collect": lambda state: commit(state, events(3)),
    "share": lambda state: state.contracts.share(["1"]),
    "register": lambda state: state.outbox.register("another", "http"),
    "remember": lambda state: state.remember("a", "b"),
    "enrol": lambda state: state.contracts.enrol(["2"], "default", 0, 0),
    "retry": lambda state: state.outbox.retry("out", 0.0),
    "accept": lambda state: state.gaps.accept(1),
    "renew": lambda state: state._joined().renew(),
}


@pytest.mark.parametrize("work", WRITES.values(), ids=WRITES.keys())
def test_a_running_replica_writes_nothing_more_once_a_newer_program_needs_others_to_stop(
    site: Site, running: Any, work: Callable[[Any], object]
) -> None:
    place = running.outbox.take("out")
    assert place.batch(2, 10**6)
    seen = site.sql("SELECT seen_at FROM $.replicas")
    site.sql("UPDATE $.schema_version SET version = 99, needs = 98")
    with pytest.raises(StateError, match=r"newer ionos-poller \(version 99") as raised:
        running._joined().renew()
    with pytest.raises(StateError, match=r"newer ionos-poller \(version 99") as again:
        work(running)
    with pytest.raises(StateError, match="newer ionos-poller"):
        place.settle(2, now=0.0)
    assert [error.value.exit_code for error in (raised, again)] == [EXIT_STATE] * 2
    assert "upgrade ionos-poller" in again.value.hint
    running.close()
    found = site.sql("SELECT seen_at, (SELECT count(*) FROM $.ledger), (SELECT count(*) FROM $.sinks) FROM $.replicas")
    assert found == f"{seen}|1|1"


def test_a_running_program_opens_no_other_use_of_a_schema_that_is_too_new(site: Site) -> None:
    stores = site.stores()
    stores.open("run").close()
    site.sql("UPDATE $.schema_version SET version = 99, needs = 98")
    for begin in (
        lambda: stores.open("fetch"),
        lambda: stores.attach("run"),
        lambda: stores.discard("run"),
        lambda: stores.load([], lambda *args: None),
    ):
        with pytest.raises(StateError, match="newer ionos-poller"):
            begin()
    assert site.sql("SELECT name FROM $.uses") == "run"


def test_a_running_replica_goes_on_beside_a_newer_program_that_lets_it(site: Site, running: Any) -> None:
    site.sql("UPDATE $.schema_version SET version = 99")
    running._joined().renew()
    commit(running, events(3))
    assert running.lost_leases == 0


def test_a_replica_whose_lease_ended_looks_before_it_begins_anew(site: Site, running: Any) -> None:
    site.sql("UPDATE $.replicas SET expires_at = clock_timestamp() - interval '1 second'")
    site.sql("UPDATE $.schema_version SET version = 99, needs = 98")
    with pytest.raises(StateError, match="newer ionos-poller"):
        running._joined().renew()
    assert site.sql("SELECT count(*) FROM $.replicas") == "1"


# Who changes the tables


@pytest.mark.parametrize("newer", [schema.SCHEMA_VERSION, 99])
def test_a_program_that_waited_for_a_newer_one_to_change_the_tables_changes_nothing(site: Site, newer: int) -> None:
    site.stores().prepare()
    site.sql("DROP TABLE $.postponed")
    site.sql("ALTER TABLE $.replicas DROP COLUMN shares")
    site.sql("UPDATE $.schema_version SET version = 2")  # as an earlier release left it
    applied: list[list[int]] = []
    older = threading.Thread(target=lambda: applied.append(site.stores().prepare()))
    with site.session() as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (schema._LOCK,))
        older.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        wait_until(lambda: site.sql(waiting) == "1", what="the older program waits")
        for step in schema.MIGRATIONS[2:]:
            other.execute(step.script)
        other.execute("UPDATE schema_version SET version = %s, needs = 2", (newer,))
    older.join()
    assert applied == [[]]
    assert site.sql("SELECT * FROM $.schema_version") == f"{newer}|2"


def test_a_newer_step_never_lowers_what_an_earlier_one_needs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.stores().prepare()
    site.sql("UPDATE $.schema_version SET needs = 3")
    next_version(monkeypatch, "CREATE TABLE another (x integer)")
    assert site.stores().prepare() == [schema.SCHEMA_VERSION]
    assert site.sql("SELECT * FROM $.schema_version") == f"{schema.SCHEMA_VERSION}|3"


@pytest.mark.parametrize("table", ["sinks", "contracts"])
def test_who_reads_a_table_for_long_delays_the_new_version_and_not_the_old_one(
    site: Site, running: Any, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    next_version(monkeypatch, f"ALTER TABLE {table} ADD COLUMN something uuid")
    with site.session() as dump:
        dump.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - our own names; pg_dump holds this lock for hours
        starting: list[StateError] = []

        def start() -> None:
            with pytest.raises(StateUnavailableError) as raised:
                site.stores().open("run")
            starting.append(raised.value)

        newer = threading.Thread(target=start)
        newer.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
        wait_until(lambda: site.sql(waiting) == "1", what="the newer program waits for the table")
        running.outbox.register("another", "http")
        commit(running, events(3))
        newer.join()
        pid = dump.info.backend_pid
        assert f"process {pid} (pg_dump) has used {table} for" in starting[0].message
        assert starting[0].hint.endswith(f"SELECT pg_terminate_backend({pid})")
        assert site.sql("SELECT version FROM $.schema_version") == str(schema.SCHEMA_VERSION - 1)
    assert site.stores().prepare() == [schema.SCHEMA_VERSION]
    commit(running, events(4))


def test_another_program_that_changes_the_tables_is_waited_for_and_then_told_of(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_OTHERS_SECONDS", 1)
    with site.session() as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", (schema._LOCK,))
        with pytest.raises(StateUnavailableError, match="the tables cannot be changed"):
            site.stores().prepare()
    assert site.stores().prepare() == list(range(1, schema.SCHEMA_VERSION + 1))


def test_a_replica_of_an_earlier_version_is_counted_where_contracts_are_shared_out(site: Site, running: Any) -> None:
    # Its row lacks the column `shares`, so it counts as one that wants its share.
    site.sql(
        "INSERT INTO $.replicas SELECT gen_random_uuid(), use_id, 'old', 7, '0', '', since, seen_at, expires_at FROM $.replicas"
    )
    running.contracts.enrol(["2"], "default", 0, 0)
    assert len(running.contracts.share(["1", "2"])) == 1
