"""A systemd for a test: process 1 in its own namespaces (`systemd_boot.sh`), with the unchanged units of `systemd/`.

It needs root, a unified cgroup hierarchy and systemd, and raises `NoMachineError` if it does not start. It shares the network
with the test, so that its services reach the test's simulator. It leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from poller.simulator import Simulator
from tests.support import TOP, clean_environment, free_port, wait_until

UNITS = TOP / "systemd"
RUN, BACKFILL = "ionos-poller.service", "ionos-poller-backfill@.service"
PROGRAM = "/usr/local/bin/ionos-poller"
# Targets that the units need and that exist only with the units of a distribution.
STUBS = ("sysinit", "basic", "shutdown", "network-online", "multi-user")


def config_of(simulator: Simulator, port: int) -> str:
    """A config as in /etc: no secret, no state directory."""
    return f"""
[api]
url = "{simulator.url}"
requests_per_second = 1000
[poll]
interval = "1s"
initial_lookback = "2h"
[http]
listen = "127.0.0.1:{port}"
[[sinks]]
name = "logging"
type = "logging-service"
url = "{simulator.url}/sink/logging"
tag = "activityLog"
batch_age = "100ms"
requests_per_second = 1000
"""


STDOUT = """
[[sinks]]
name = "journal"
type = "stdout"
"""


def is_delivered(simulator: Simulator) -> bool:
    books = simulator.books("logging")
    return books.lost == 0 and simulator.intakes["logging"].distinct > 0


class NoMachineError(Exception):
    """systemd cannot be booted here. The units are not the reason."""


class Machine:
    """A systemd with the units, the files that they need, and the simulator that their config names."""

    def __init__(self, directory: Path, cgroup: Path, simulator: Simulator) -> None:
        self.simulator = simulator
        self.units, self.etc = directory / "units", directory / "etc"
        self._cgroup = cgroup
        self.units.mkdir()
        self.etc.mkdir()
        self.etc.chmod(0o755)  # the tests' umask is stricter
        for name in STUBS:
            (self.units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        for name in (RUN, BACKFILL):
            shutil.copy(UNITS / name, self.units)
            # The output goes where a test can read it, and waits are short.
            drop_in = self.units / f"{name}.d" / "test.conf"
            drop_in.parent.mkdir()
            drop_in.write_text("[Service]\nStandardError=append:/run/log\nRestartSec=200ms\n")
        self.config = config_of(simulator, free_port())
        self.write("config.toml", self.config, 0o644)
        self.write("token", simulator.token)
        self.write("logging.key", simulator.settings.api_key)
        script = (str(TOP / "tests" / "systemd_boot.sh"), str(cgroup), str(directory))
        self._boot = subprocess.Popen(
            [*script, sys.base_prefix, sysconfig.get_path("purelib"), str(TOP)],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def boot(self) -> None:
        """Wait until systemd has come up.  Raises: NoMachineError when it does not."""
        assert self._boot.stdout is not None
        said = []
        for line in self._boot.stdout:
            if line == "booting\n":
                break
            said.append(line.strip())
        else:
            raise NoMachineError(" ".join(said[-3:]))
        try:
            children = Path(f"/proc/{self._boot.pid}/task/{self._boot.pid}/children").read_text()
            self._inside = ("nsenter", "--target", children.split()[0], "--all")
            self.root = Path(f"/proc/{children.split()[0]}/root")
            wait_until(self._is_up, what="systemd is up")
        except (OSError, IndexError, AssertionError) as error:
            raise NoMachineError(str(error)) from error

    def _is_up(self) -> bool:
        done = subprocess.run(
            [*self._inside, "systemctl", "is-active", "--quiet", "basic.target"], capture_output=True, check=False
        )
        return done.returncode == 0

    def close(self) -> None:
        """End systemd and all its processes, and remove all its files."""
        self._boot.kill()
        self._boot.communicate()
        wait_until(lambda: not self._has_processes(), what="the machine is gone")
        for directory, _, _ in os.walk(self._cgroup, topdown=False):
            Path(directory).rmdir()

    def _has_processes(self) -> bool:
        return "populated 1" in (self._cgroup / "cgroup.events").read_text()

    def write(self, name: str, text: str, mode: int = 0o600) -> None:
        path = self.etc / name
        path.unlink(missing_ok=True)
        path.touch(mode)
        path.chmod(mode)
        path.write_text(text)

    def command(self, *args: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        """Run a command inside, as root, to its end.  Returns: its stdout."""
        done = subprocess.run(
            [*self._inside, *args],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        assert done.returncode == code, (args, done.returncode, done.stdout, done.stderr, self.log[-2000:])
        return done.stdout

    def systemctl(self, *args: str, code: int = 0) -> str:
        return self.command("systemctl", *args, code=code)

    def show(self, name: str, unit: str = RUN) -> str:
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    @property
    def log(self) -> str:
        """The stderr of the services."""
        path = self.root / "run" / "log"
        return path.read_text() if path.exists() else ""

    @property
    def state_dir(self) -> Path:
        return self.root / "var" / "lib" / "private" / "ionos-poller"

    def sink(self) -> dict[str, int]:
        """What `status` says of the sink."""
        state = json.loads(self.command(PROGRAM, "--state-dir", "/var/lib/ionos-poller", "status", "--json"))
        return dict(state["uses"]["run"]["sinks"][0])

    def await_delivery(self) -> None:
        wait_until(lambda: is_delivered(self.simulator), what="delivered")
        wait_until(lambda: self.sink()["waiting"] == 0, what="the last batch is settled")
        assert self.simulator.books("logging").invented == 0


def new_cgroup() -> Path:
    """A new, empty group of the unified hierarchy.  Raises: NoMachineError, OSError."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            group = Path(where) / f"ionos-poller-test-{os.getpid()}"
            group.mkdir()
            return group
    raise NoMachineError("no unified cgroup hierarchy")
