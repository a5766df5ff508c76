"""The systemd units: what systemd says of them, that their sandbox lets the program work, and what the program tells systemd.

The sandbox is tried for real: a systemd of the test's own, process 1 of namespaces of its own (`tests/systemd_boot.sh`), runs the
units as they are, in front of a simulator. That needs root; without it these tests are skipped, and say so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from poller import daemon as daemon_module
from poller.errors import EXIT_AUTH, EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_STATE
from poller.simulator import Simulator, SimulatorSettings
from tests.support import TOP, clean_environment, free_port, wait_until

UNITS = TOP / "systemd"
RUN, BACKFILL = "ionos-poller.service", "ionos-poller-backfill@.service"
EXAMPLE = UNITS / "ionos-poller.service.d" / "example.conf"
PROGRAM = "/usr/local/bin/ionos-poller"
EXPOSURE = 2.0
CONTRACTS = (31960001, 31960002)
EVENTS = 500
# What units ask for that a machine without a distribution's own units has not.
STUBS = ("sysinit", "basic", "shutdown", "network-online", "multi-user")


def options(unit: str) -> dict[str, list[str]]:
    """What a unit sets, by name: every section, in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


# What the units say


@pytest.fixture(scope="module")
def systemd() -> None:
    """systemd's tools; installed where that may be done."""
    if shutil.which("systemd-analyze") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "systemd"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=environment, capture_output=True, check=False, timeout=300)
        subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT CHECKED: the systemd units; systemd-analyze is missing (apt-get install systemd)")


def analyze(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *args], cwd=cwd, capture_output=True, encoding="utf-8", timeout=60, check=False
    )


@pytest.fixture
def units(tmp_path: Path, systemd: None) -> Path:
    """The units with a program that is there, since `verify` looks for it, and the example drop-in with all it offers."""
    for name in (RUN, BACKFILL):
        (tmp_path / name).write_text((UNITS / name).read_text().replace(PROGRAM, sys.executable))
        drop_in = tmp_path / f"{name}.d" / "example.conf"
        drop_in.parent.mkdir()
        drop_in.write_text(re.sub(r"(?m)^#(?=[A-Z]\w+=)", "", EXAMPLE.read_text()).replace("/opt/ionos-poller", "/usr"))
    (tmp_path / "plain").mkdir()
    for name in (RUN, BACKFILL):
        shutil.copy(tmp_path / name, tmp_path / "plain")
    return tmp_path


@pytest.mark.parametrize("unit", [RUN, BACKFILL])
def test_systemd_finds_nothing_wrong_with_a_unit(units: Path, unit: str) -> None:
    done = analyze("verify", f"./{unit}", cwd=units / "plain")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_nothing_wrong_with_the_example_drop_in(units: Path) -> None:
    assert EXAMPLE.read_text().count("\n#LoadCredential=") > 1
    done = analyze("verify", f"./{RUN}", cwd=units)
    # The program elsewhere, which is not there, shows that the drop-in was read.
    assert done.stderr.splitlines() == [
        f"{RUN}: Command /usr/bin/ionos-poller is not executable: No such file or directory"
    ]


@pytest.mark.parametrize("unit", [RUN, BACKFILL])
def test_a_unit_is_exposed_to_little(units: Path, unit: str) -> None:
    done = analyze("security", "--offline=yes", "--no-pager", f"./{unit}", cwd=units / "plain")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done
    assert float(found[1]) <= EXPOSURE
    for readme in re.findall(r"rates both units ([0-9.]+)", (UNITS / "README.md").read_text()):
        assert readme == found[1]


def test_both_units_have_the_same_sandbox_secrets_and_state() -> None:
    run, backfill = options(RUN), options(BACKFILL)
    own = {"Description", "Type", "ExecStart", "ExecReload", "WatchdogSec", "RestartSec", "RestartPreventExitStatus"}
    own |= {"SuccessExitStatus", "EnvironmentFile"}
    assert {name: value for name, value in run.items() if name not in own} == {
        name: value for name, value in backfill.items() if name not in own
    }
    assert run["DynamicUser"] == ["yes"]
    assert run["StateDirectory"] == [run["User"][0]]


def test_what_no_restart_mends_is_not_restarted() -> None:
    assert options(RUN)["RestartPreventExitStatus"] == [f"{EXIT_CONFIG} {EXIT_STATE}"]
    assert options(BACKFILL)["RestartPreventExitStatus"] == [f"{EXIT_CONFIG} {EXIT_AUTH} {EXIT_STATE}"]
    assert options(BACKFILL)["SuccessExitStatus"] == [str(EXIT_INTERRUPTED)]


def test_systemd_waits_longer_than_the_daemon_takes() -> None:
    run = options(RUN)
    assert float(run["TimeoutStopSec"][0]) > daemon_module._DRAIN_SECONDS + 5
    assert float(run["WatchdogSec"][0]) > 5 * daemon_module._HEARTBEAT_SECONDS


# What the daemon tells systemd


class Ear:
    """The socket that systemd listens on."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(address.replace("@", "\0", 1))

    def heard(self, **values: str) -> list[dict[str, str]]:
        """The messages with these values so far, or words of them."""
        with suppress(BlockingIOError):
            while data := self._socket.recv(65536):
                self._heard.append(dict(line.split("=", 1) for line in data.decode().split("\n")))
        return [said for said in self._heard if all(value in said.get(name, "") for name, value in values.items())]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    address = (
        str(tmp_path / "notify") if request.param == "path" else f"@ionos-poller-{os.getpid()}-{time.monotonic_ns()}"
    )
    ear = Ear(address)
    yield ear
    ear.close()


def config_of(simulator: Simulator, port: int) -> str:
    """A config as it lies in /etc: no secret, no state directory."""
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


def test_the_daemon_tells_systemd_how_it_is(
    tmp_path: Path, ear: Ear, start: Callable[..., subprocess.Popen[str]]
) -> None:
    state, credentials = tmp_path / "state", tmp_path / "credentials"
    credentials.mkdir()
    with Simulator(SimulatorSettings(contracts=2, events=EVENTS)) as simulator:
        (credentials / "token").write_text(simulator.token)
        (credentials / "logging.key").write_text(simulator.settings.api_key)
        config = tmp_path / "config.toml"
        config.write_text(config_of(simulator, free_port()))
        # As systemd would: in /, without a home, everything it needs named by the environment.
        environment = {
            "IONOS_POLLER_CONFIG": str(config),
            "NOTIFY_SOCKET": ear.address,
            "STATE_DIRECTORY": str(state),
            "CREDENTIALS_DIRECTORY": str(credentials),
            "WATCHDOG_USEC": "60000000",
            "HOME": "/",
        }
        stderr = (tmp_path / "stderr").open("w")
        process = start("run", cwd=Path("/"), env=environment, stderr=stderr)
        stderr.close()
        wait_until(lambda: ear.heard(READY="1"), what="READY=1")
        wait_until(lambda: is_delivered(simulator), what="delivered")
        assert (state / "run.db").exists()
        wait_until(lambda: ear.heard(WATCHDOG="1", STATUS="ready"), 12, what="a heartbeat that says ready")
        process.send_signal(signal.SIGHUP)
        reloading = wait_until(lambda: ear.heard(RELOADING="1"), what="RELOADING=1")[0]
        assert 0 < int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        wait_until(lambda: len(ear.heard(READY="1")) == 2, what="READY=1 after the reload")
        # The key is refused: `systemctl status` says so.
        (credentials / "logging.key").write_text("an-old-key")
        simulator.add_entries(CONTRACTS[0], count=1)
        wait_until(
            lambda: ear.heard(WATCHDOG="1", STATUS="sink logging is parked"), 15, what="it says that a key is refused"
        )
        process.terminate()
        assert process.wait(15) == 0
        assert len(ear.heard(STOPPING="1")) == 1
        assert not ear.heard(STATUS="an-old-key")


# The units at work


class NoMachineError(Exception):
    """systemd cannot be booted here, which is no fault of the units."""


class Machine:
    """A systemd of our own with the units, the files they ask for, and the simulator they are pointed to."""

    def __init__(self, directory: Path, cgroup: Path, simulator: Simulator) -> None:
        self.simulator = simulator
        self.units, self.etc = directory / "units", directory / "etc"
        self._cgroup = cgroup
        self.units.mkdir()
        self.etc.mkdir(mode=0o755)
        for name in STUBS:
            (self.units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        for name in (RUN, BACKFILL):
            shutil.copy(UNITS / name, self.units)
            # What is said where a test can read it, and without the patience that is not its subject.
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
            wait_until(lambda: self.show("ActiveState", "basic.target") == "active", 20, what="systemd is up")
        except (OSError, IndexError, AssertionError) as error:
            raise NoMachineError(str(error)) from error

    def close(self) -> None:
        self._boot.kill()
        self._boot.communicate()
        wait_until(lambda: not self._populated(), what="the machine is gone")
        for directory, _, _ in os.walk(self._cgroup, topdown=False):
            Path(directory).rmdir()

    def _populated(self) -> bool:
        return "populated 1" in (self._cgroup / "cgroup.events").read_text()

    def write(self, name: str, text: str, mode: int = 0o600) -> None:
        path = self.etc / name
        path.unlink(missing_ok=True)
        path.touch(mode)
        path.chmod(mode)
        path.write_text(text)

    def command(self, *args: str, code: int = 0, env: dict[str, str] | None = None) -> str:
        """A command inside, as root, to its end; its stdout."""
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
        """What the services said on stderr."""
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
        wait_until(lambda: is_delivered(self.simulator), 20, what="delivered")
        wait_until(lambda: self.sink()["waiting"] == 0, what="the last batch is settled")
        assert self.simulator.books("logging").invented == 0


def _cgroup() -> Path:
    """An empty group of the unified hierarchy.  Raises: NoMachineError, OSError."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            group = Path(where) / f"ionos-poller-test-{os.getpid()}"
            group.mkdir()
            return group
    raise NoMachineError("no unified cgroup hierarchy")


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory, systemd: None) -> Iterator[Machine]:
    why = "NOT CHECKED: that the units' sandbox lets the program work; "
    if os.geteuid() != 0:
        pytest.skip(f"{why}only root can boot a systemd")
    with Simulator(SimulatorSettings(contracts=CONTRACTS, events=EVENTS)) as simulator:
        try:
            machine = Machine(tmp_path_factory.mktemp("machine"), _cgroup(), simulator)
        except (NoMachineError, OSError) as error:
            pytest.skip(f"{why}{error}")
        try:
            try:
                machine.boot()
            except NoMachineError as error:
                pytest.skip(f"{why}systemd does not boot here: {error}")
            yield machine
        finally:
            machine.close()


@pytest.fixture
def machine(booted: Machine) -> Iterator[Machine]:
    """The machine with the service stopped and a state of its own, as after an installation."""
    yield booted
    booted.systemctl("stop", RUN)
    booted.systemctl("reset-failed")
    shutil.rmtree(booted.state_dir, ignore_errors=True)
    booted.write("config.toml", booted.config, 0o644)
    booted.write("logging.key", booted.simulator.settings.api_key)
    (booted.root / "run" / "log").unlink(missing_ok=True)


def test_in_its_sandbox_the_service_works_and_stops(machine: Machine) -> None:
    machine.systemctl("start", RUN)
    machine.await_delivery()
    wait_until(lambda: machine.show("StatusText") == "ready", 12, what="it says that it is ready")
    # The sandbox is there: another user, no capability, system calls filtered.
    process = machine.root / "proc" / machine.show("MainPID") / "status"
    status = dict(line.split(":\t", 1) for line in process.read_text().splitlines() if ":\t" in line)
    assert (status["CapBnd"].strip("0"), status["NoNewPrivs"], status["Seccomp"]) == ("", "1", "2")
    user = int(status["Uid"].split()[0])
    assert 61184 <= user <= 65519  # Source: systemd.exec(5), DynamicUser=
    found = machine.state_dir.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (user, 0o700)
    assert {path.stat().st_mode & 0o777 for path in machine.state_dir.iterdir()} == {0o600}
    started = time.monotonic()
    machine.systemctl("stop", RUN)
    assert time.monotonic() - started < 10
    assert (machine.show("Result"), machine.show("ExecMainStatus")) == ("success", "0")
    assert "Traceback" not in machine.log


def test_a_killed_service_starts_again_and_goes_on(machine: Machine) -> None:
    machine.systemctl("start", RUN)
    machine.await_delivery()
    machine.systemctl("kill", "--signal=KILL", RUN)
    wait_until(lambda: machine.show("NRestarts") == "1", what="it starts again")
    for contract in CONTRACTS:
        machine.simulator.add_entries(contract, count=5)
    machine.await_delivery()
    assert machine.show("ActiveState") == "active"


def test_a_reload_takes_a_good_configuration_and_keeps_the_process(machine: Machine) -> None:
    machine.systemctl("start", RUN)
    before = machine.show("MainPID")
    machine.systemctl("reload", RUN)
    wait_until(lambda: "config.reloaded" in machine.log, what="reloaded")
    machine.write("config.toml", "nonsense", 0o644)
    machine.systemctl("reload", RUN)
    wait_until(lambda: "config.reload_failed" in machine.log, what="refused")
    machine.simulator.add_entries(CONTRACTS[0], count=1)
    machine.await_delivery()
    assert machine.show("MainPID") == before


def test_a_key_that_only_root_can_read_is_missed_only_where_it_is_needed(machine: Machine) -> None:
    (machine.etc / "logging.key").unlink()
    machine.systemctl("start", RUN, code=1)
    assert "logging.key is empty" in machine.log
    assert (machine.show("ExecMainStatus"), machine.show("NRestarts")) == (str(EXIT_CONFIG), "0")
    machine.write("config.toml", machine.config[: machine.config.index("[[sinks]]")] + STDOUT, 0o644)
    machine.systemctl("start", RUN)
    assert machine.show("ActiveState") == "active"


def test_a_damaged_state_is_set_aside_and_nothing_starts_anew_by_itself(machine: Machine) -> None:
    machine.systemctl("start", RUN)
    machine.await_delivery()
    machine.systemctl("stop", RUN)
    (machine.state_dir / "run.db").write_bytes(b"no state" * 1000)
    for _ in range(2):
        machine.systemctl("start", RUN, code=1)
        assert (machine.show("ExecMainStatus"), machine.show("NRestarts")) == (str(EXIT_STATE), "0")
    assert "set aside" in machine.log
    assert not (machine.state_dir / "run.db").exists()


def test_a_backfill_runs_beside_the_daemon_and_leaves_its_files_alone(machine: Machine) -> None:
    machine.systemctl("start", RUN)
    machine.await_delivery()
    unit = BACKFILL.replace("@", "@january")
    output = "--output /var/lib/ionos-poller/january.ndjson"
    machine.write("backfill-january.env", f"BACKFILL_ARGS=--from 2h --to 0s {output}\n")
    machine.systemctl("start", unit)
    wait_until(lambda: machine.show("ActiveState", unit) == "inactive", 20, what="the backfill is complete")
    assert machine.show("Result", unit) == "success"
    lines = (machine.state_dir / "january.ndjson").read_bytes().splitlines()
    assert len(lines) == sum(log.counts()[0] for log in machine.simulator.logs.values())
    # The daemon goes on writing its state.
    machine.simulator.add_entries(CONTRACTS[0], count=5)
    machine.await_delivery()
    assert machine.show("NRestarts") == "0"
    # Wrong arguments are for a person to mend.
    machine.write("backfill-january.env", "BACKFILL_ARGS=--from 1h --to 2h --sink logging\n")
    machine.systemctl("start", unit)
    wait_until(lambda: machine.show("ActiveState", unit) == "failed", what="it is not tried again")
    assert (machine.show("ExecMainStatus", unit), machine.show("NRestarts", unit)) == (str(EXIT_CONFIG), "0")


def test_what_root_does_by_hand_leaves_the_state_to_the_service(machine: Machine) -> None:
    machine.write("config.toml", f'state_dir = "/var/lib/ionos-poller"\n{machine.config}', 0o644)
    machine.systemctl("start", RUN)
    machine.await_delivery()
    for _ in ("running", "stopped"):
        machine.command(PROGRAM, "status")
        machine.command(PROGRAM, "dead-letters", "list")
        machine.command(PROGRAM, "sinks", "list")
        secrets = {"CREDENTIALS_DIRECTORY": "/etc/ionos-poller"}
        assert "equal" in machine.command(PROGRAM, "audit", "--from", "2h", "--to", "0s", env=secrets)
        machine.systemctl("stop", RUN)
    machine.systemctl("start", RUN)
    machine.simulator.add_entries(CONTRACTS[1], count=5)
    machine.await_delivery()
    assert {path.stat().st_uid for path in machine.state_dir.iterdir()} == {machine.state_dir.stat().st_uid}
