"""The state behind PgBouncer in transaction mode, as in managed PostgreSQL: no transaction may depend on the one before it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poller.config import load
from poller.core.errors import EXIT_STATE, StateError
from poller.store.opening import stores_of
from tests.postgres import Server
from tests.states import commit, enrolled, events, settle, waiting
from tests.support import free_port, wait_until

SETTINGS = """[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
auth_file = {users}
pool_mode = {mode}
default_pool_size = 3
unix_socket_dir =
"""


@pytest.fixture
def mode() -> str:
    """The mode of the pooler. The program is made for this one; tests may choose another."""
    return "transaction"


@pytest.fixture
def pooled_port(postgres_server: Server, mode: str) -> Iterator[int]:
    """The port of a pooler in front of the server."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("pgbouncer is not installed: nothing was tried behind a pooler")
    port = free_port()
    users, settings = (postgres_server.directory / name for name in ("users", "pgbouncer.ini"))
    users.write_text('"postgres" ""\n')
    settings.write_text(SETTINGS.format(server=postgres_server.port, port=port, users=users, mode=mode))
    for file in (users, settings):
        file.chmod(0o644)
    process = subprocess.Popen(
        [program, str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **postgres_server.identity
    )
    wait_until(lambda: answers(port), what="a pooler that answers")
    yield port
    process.kill()
    process.wait()


def answers(port: int) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(pooled_url(port), autocommit=True):
        return True
    return False


def pooled_url(port: int, database: str = "postgres") -> str:
    return f"postgresql://postgres@127.0.0.1:{port}/{database}"


def stores_at(url: str, tmp_path: Path) -> Any:
    variables = {"IONOS_POLLER_STATE__URL": url, "IONOS_POLLER_STATE__SCHEMA": "pooled"}
    return stores_of(load(None, variables, state_dir=tmp_path))


@pytest.mark.parametrize("mode", ["statement"])
@pytest.mark.parametrize("has_tables", [False, True])
def test_a_pooler_that_takes_no_transactions_is_refused_with_the_remedy(
    pooled_port: int, postgres_server: Server, tmp_path: Path, *, has_tables: bool
) -> None:
    postgres_server.sql("DROP SCHEMA IF EXISTS pooled CASCADE")
    if has_tables:
        stores_at(postgres_server.url(), tmp_path).prepare()
    stores = stores_at(pooled_url(pooled_port), tmp_path)
    *_, last = stores.diagnose(1 << 30)
    assert (last.level, "takes no transactions" in last.message, "pool_mode" in last.hint) == ("fail", True, True)
    with pytest.raises(StateError, match="takes no transactions") as error:
        stores.open("run")
    assert error.value.exit_code == EXIT_STATE


def test_the_encoding_of_a_database_is_known_behind_a_pooler(
    pooled_port: int, postgres_server: Server, tmp_path: Path
) -> None:
    postgres_server.sql("CREATE DATABASE plain TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        with pytest.raises(StateError, match="is encoded in SQL_ASCII"):
            stores_at(pooled_url(pooled_port, "plain"), tmp_path).prepare()
    finally:
        postgres_server.sql("DROP DATABASE plain WITH (FORCE)")


def test_two_replicas_work_behind_a_pooler_in_transaction_mode(
    pooled_port: int, postgres_server: Server, tmp_path: Path
) -> None:
    postgres_server.sql("DROP SCHEMA IF EXISTS pooled CASCADE")
    stores = stores_at(pooled_url(pooled_port), tmp_path)
    one, other = enrolled(stores.open("run")), stores.open("run")
    one.contracts.share(["1"])
    for number in range(30):
        commit(one, events(number), advance=False)
    settle(one, "out", 20, now=1.0)
    assert len(waiting(one, "out")) == 10
    assert one.overview().imbalances() == []
    assert other.contracts.share(["1"]) == []
    assert any("behind a pooler" in found.message for found in stores.diagnose(1 << 30))
    one.close()
    assert other.contracts.share(["1"]) == ["1"]
    assert len(waiting(other, "out")) == 10
    other.close()
    stores.close()
