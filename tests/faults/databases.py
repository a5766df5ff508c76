"""The database of a cluster under faults: a primary, a standby that is promoted without the last commits, a pooler in front."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg

from tests.faults.proxy import Proxy
from tests.postgres import Server, debian_programs, wheel_programs
from tests.support import free_port, wait_until

# A kill of the server may lose no commit. Power cuts are not tested, so `fsync` is off.
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "wal_keep_size": "64MB", "wal_receiver_timeout": "60s"}
_POOLER = """[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
auth_file = {users}
pool_mode = transaction
default_pool_size = 12
server_login_retry = 1
unix_socket_dir =
"""


def pooler_program() -> str | None:
    return shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")


def programs_of(kind: str) -> Path | None:
    """The server's programs of this kind (Debian's or the wheel's), or the other ones if these do not exist."""
    return (debian_programs() or wheel_programs()) if kind == "debian" else (wheel_programs() or debian_programs())


class Database:
    """A database with one fixed port, also after another server was promoted."""

    def __init__(self, programs: Path | None, *, is_pooled: bool) -> None:
        self._programs = programs
        self.primary = Server(programs=programs, settings=_SETTINGS)
        self._servers = [self.primary]
        self.primary.create()
        self.primary.start()
        self._front = Proxy(self.primary.port)
        self._pooler = Pooler(self.primary, self._front.port) if is_pooled else None
        self._held: psycopg.Connection | None = None
        self.version = self.primary.sql("SHOW server_version").split()[0]
        self.is_up = True

    @property
    def port(self) -> int:
        """The port that replicas connect to."""
        return self._pooler.port if self._pooler else self._front.port

    def kill(self) -> None:
        """Kill the server, as a crash does."""
        self.is_up = False
        self.primary.kill()
        self._front.cut()

    def start(self) -> None:
        self.primary.start()
        self.is_up = True

    def restart(self) -> None:
        """Stop and start the server, as an administrator does."""
        self.primary.stop()
        self.primary.start()

    def restart_pooler(self) -> bool:
        """Kill the pooler and start it again.  Returns: whether there is a pooler."""
        if self._pooler is not None:
            self._pooler.kill()
            self._pooler.start()
        return self._pooler is not None

    def hold_snapshot(self) -> None:
        """Leave a transaction with a snapshot of now open, until the server ends."""
        with suppress(psycopg.Error):
            if self._held is not None:
                self._held.close()
        self._held = psycopg.connect(self.primary.url(), autocommit=False)
        self._held.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        self._held.execute("SELECT count(*) FROM pg_class")

    def fail_over(self, meanwhile: Callable[[], None]) -> None:
        """Kill the primary and promote a standby, which lacks all commits that were made while `meanwhile` ran."""
        replication = Proxy(self.primary.port)
        standby = Server(programs=self.primary.programs, settings=_SETTINGS)
        self._servers.append(standby)
        try:
            standby.follow(self.primary, replication.port)
            standby.start()
            reached = self.primary.sql("SELECT pg_current_wal_lsn()")
            has_all = f"SELECT pg_last_wal_replay_lsn() >= '{reached}'"
            wait_until(lambda: standby.sql(has_all) == "t", 30, what="the standby has followed")
            replication.is_refusing = True
            replication.cut()
            meanwhile()
            self.primary.kill()
            standby.sql("SELECT pg_promote()")
        finally:
            replication.close()
        shutil.rmtree(self.primary.data)
        self.primary = standby
        self._front.upstream = standby.port
        self._front.cut()

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
        if self._pooler is not None:
            self._pooler.kill()
        self._front.close()
        for server in reversed(self._servers):
            server.remove()


class Pooler:
    """PgBouncer in transaction mode, in front of a port."""

    def __init__(self, server: Server, upstream: int) -> None:
        program = pooler_program()
        assert program is not None, "no PgBouncer: install Debian's pgbouncer"
        self.port = free_port()
        users, self._settings = (server.directory / name for name in ("users", "pgbouncer.ini"))
        users.write_text('"postgres" ""\n')
        self._settings.write_text(_POOLER.format(server=upstream, port=self.port, users=users))
        for file in (users, self._settings):
            file.chmod(0o644)
        self._command = [program, str(self._settings)]
        self._identity = server.identity
        self.start()

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdout=quiet, stderr=quiet, **self._identity)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
