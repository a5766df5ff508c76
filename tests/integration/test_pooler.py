"""The state behind PgBouncer in transaction mode, as managed PostgreSQL has it: no transaction may need the one before it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poller.config import load
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
pool_mode = transaction
default_pool_size = 3
unix_socket_dir =
"""


@pytest.fixture
def pooled_port(postgres_server: Server) -> Iterator[int]:
    """The port of a pooler in front of the server."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        pytest.skip("pgbouncer is not installed: nothing was tried behind a pooler")
    port = free_port()
    users, settings = (postgres_server.directory / name for name in ("users", "pgbouncer.ini"))
    users.write_text('"postgres" ""\n')
    settings.write_text(SETTINGS.format(server=postgres_server.port, port=port, users=users))
    for file in (users, settings):
        file.chmod(0o644)
    process = subprocess.Popen(
        [program, str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **postgres_server.identity
    )
    yield port
    process.kill()
    process.wait()


def test_two_replicas_work_behind_a_pooler_in_transaction_mode(pooled_port: int, tmp_path: Path) -> None:
    url = f"postgresql://postgres@127.0.0.1:{pooled_port}/postgres"
    variables = {"IONOS_POLLER_STATE__URL": url, "IONOS_POLLER_STATE__SCHEMA": "pooled"}
    stores: Any = stores_of(load(None, variables, state_dir=tmp_path))
    wait_until(lambda: all(found.level != "fail" for found in stores.diagnose(1 << 30)), what="a pooler that answers")
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
