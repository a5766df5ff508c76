"""What a database says when it cannot be used: one line with the remedy, and whether to wait or to call a person."""

from __future__ import annotations

import signal
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poller.config import load
from poller.core.errors import EXIT_INCOMPLETE, EXIT_STATE, StateError, StateFullError, StateUnavailableError
from poller.store.opening import stores_of
from poller.store.postgres.translation import translated
from tests.postgres import Server

_schemas = count()


def stores(url: str, tmp_path: Path, schema: str = "", **options: str) -> Any:
    variables = {
        "STATE__URL": url,
        "STATE__SCHEMA": schema or f"errors_{next(_schemas)}",
        **options,
    }
    return stores_of(
        load(None, {f"IONOS_POLLER_{name}": value for name, value in variables.items()}, state_dir=tmp_path)
    )


@pytest.fixture(scope="module")
def server(postgres_server: Server) -> Server:
    """The server with roles that are each refused something."""
    rules = postgres_server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"host all secret 127.0.0.1/32 scram-sha-256\n{before}")
    postgres_server.send(signal.SIGHUP)
    postgres_server.sql("CREATE ROLE secret LOGIN PASSWORD 'right'")
    postgres_server.sql("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
    postgres_server.sql("CREATE ROLE reading LOGIN SUPERUSER")
    postgres_server.sql("ALTER ROLE reading SET default_transaction_read_only = on")
    postgres_server.sql("CREATE ROLE poor LOGIN")
    return postgres_server


@pytest.mark.parametrize(
    ("user", "database", "exit_code", "words", "hint"),
    [
        ("nobody_here", "postgres", EXIT_STATE, "the login was refused", "check user and password"),
        ("secret:wrong", "postgres", EXIT_STATE, "password authentication failed", "check user and password"),
        ("postgres", "missing", EXIT_STATE, "the database does not exist", "create it"),
        ("crowded", "postgres", EXIT_INCOMPLETE, "no connection left for us", "raise max_connections"),
        ("poor", "postgres", EXIT_STATE, "the role lacks a right", "docs/cluster.md"),
        ("reading", "postgres", EXIT_INCOMPLETE, "takes no writes", "target_session_attrs=read-write"),
    ],
)
def test_a_refusal_is_told_in_a_line_with_its_remedy(
    server: Server, tmp_path: Path, user: str, database: str, exit_code: int, words: str, hint: str
) -> None:
    with pytest.raises(StateError) as caught:
        stores(server.url(database, user), tmp_path).open("run")
    error = caught.value
    assert (error.exit_code, words in error.message, hint in error.hint) == (exit_code, True, True), str(error)
    assert "\n" not in str(error)
    assert "wrong" not in str(error).replace("wrong password", "")


def test_a_schema_of_a_newer_program_is_not_touched(server: Server, tmp_path: Path) -> None:
    server.sql("CREATE SCHEMA newer")
    server.sql("CREATE TABLE newer.schema_version AS SELECT 9 AS version, 8 AS needs")
    with pytest.raises(StateError, match="is of a newer ionos-poller") as caught:
        stores(server.url(), tmp_path, "newer").open("run")
    assert caught.value.exit_code == EXIT_STATE
    assert server.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'newer'") == "1"


def test_a_newer_schema_that_this_program_may_still_use_is_used(server: Server, tmp_path: Path) -> None:
    """As during a rolling upgrade: a new replica has migrated, and the old ones go on."""
    state = stores(server.url(), tmp_path, "expanded").open("run")
    state.close()
    server.sql("UPDATE expanded.schema_version SET version = 9")
    state = stores(server.url(), tmp_path, "expanded").open("run")
    state.remember("a", "b")
    assert state.fact("a") == "b"
    state.close()


def test_a_server_that_is_away_is_waited_for_and_a_connection_that_broke_meanwhile_is_replaced(tmp_path: Path) -> None:
    server = Server(settings={"fsync": "off"})
    try:
        server.create()
        server.start()
        opened = stores(server.url(), tmp_path)
        state = opened.open("run")
        state.remember("a", "b")
        server.kill()
        with pytest.raises(StateUnavailableError, match="cannot be reached"):
            state.fact("a")
        server.start()
        assert state.fact("a") == "b"
        server.stop()
        server.start()
        assert state.fact("a") == "b"
        opened.close()
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (psycopg.errors.DiskFull("no"), StateFullError, "free some"),
        (psycopg.errors.DeadlockDetected("no"), StateUnavailableError, "tried again"),
        (psycopg.errors.AdminShutdown("no"), StateUnavailableError, "tried again"),
        (psycopg.errors.QueryCanceled("no"), StateUnavailableError, "load of the server"),
        (psycopg.errors.InvalidSqlStatementName("no"), StateError, "pool_mode"),
        (psycopg.errors.DataCorrupted("no"), StateError, "restore"),
        (psycopg.errors.SyntaxError("no"), StateError, "log of the server"),
        (psycopg.OperationalError("server certificate for x does not match"), StateError, "ca_file"),
        (psycopg.OperationalError("server does not support SSL, but SSL was required"), StateError, "ssl = on"),
        (psycopg.OperationalError("connection timeout expired"), StateUnavailableError, "check that it runs"),
    ],
)
def test_what_passes_is_told_from_what_needs_a_person(error: psycopg.Error, kind: type[StateError], hint: str) -> None:
    found = translated(error, "postgresql://db/x")
    assert type(found) is kind
    assert hint in found.hint


def test_check_says_what_a_database_lacks(server: Server, tmp_path: Path) -> None:
    opened = stores(server.url(), tmp_path, "checked")
    assert "has no tables yet" in "".join(found.message for found in opened.diagnose(1 << 30))
    state = opened.open("run")
    state.contracts.enrol(["1"], "default", 1, 1)
    state.contracts.share(["1"])
    lines = [f"{found.level} {found.message}" for found in opened.diagnose(1 << 30)]
    state.close()
    assert any(line.startswith("ok schema checked, version") for line in lines), lines
    assert any("run: 1 replica: " in line for line in lines), lines
    assert any("fsync" in line and line.startswith("warn") for line in lines), lines
    poor = list(stores(server.url(user="poor"), tmp_path, "checked").diagnose(1 << 30))
    assert (
        any("lacks rights on" in found.message and found.level == "fail" for found in poor) or poor[-1].level == "fail"
    )
    away = list(stores("postgresql://u@127.0.0.1:1/x", tmp_path).diagnose(1 << 30))
    assert [(found.level, found.exit_code) for found in away] == [("fail", EXIT_STATE)]
    opened.close()
