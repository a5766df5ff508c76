"""The systemd units: systemd accepts them, the program works in their sandbox, and its messages to systemd.

The sandbox is real: a systemd of the test, process 1 in its own namespaces (`tests/systemd_boot.sh`), runs the unchanged units
against a simulator. That needs root; without it these tests are skipped, and say so.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from poller.config.kinds import fields_of
from poller.config.model import Api
from poller.core.errors import EXIT_AUTH, EXIT_CONFIG, EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_STATE
from poller.service import schedule
from poller.service.health import MAX_CONNECTIONS
from poller.simulator import Simulator, SimulatorSettings
from tests.debian import program
from tests.machine import (
    BACKFILL,
    PROGRAM,
    RUN,
    STDOUT,
    UNITS,
    Machine,
    NoMachineError,
    config_of,
    is_delivered,
    new_cgroup,
)
from tests.support import free_port, wait_until

EXAMPLE = UNITS / "ionos-poller.service.d" / "example.conf"
EXPOSURE = 2.0
CONTRACTS = (31960001, 31960002)
EVENTS = 500


def options(unit: str) -> dict[str, list[str]]:
    """Name of a setting -> its values, from all sections of a unit, in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / unit).read_text().splitlines():
        if not line.startswith(("#", "[")) and "=" in line:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


# The content of the units


@pytest.fixture(scope="module")
def systemd() -> None:
    """Needs systemd's tools; installs them if possible."""
    program("systemd-analyze", "systemd", "the systemd units")


def analyze(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *args], cwd=cwd, capture_output=True, encoding="utf-8", timeout=60, check=False
    )


@pytest.fixture
def units(tmp_path: Path, systemd: None) -> Path:
    """The units with an existing program, because `verify` checks it, and the example drop-in with all its settings enabled."""
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
    # This error shows that the drop-in was read: the program in it does not exist.
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


def test_the_ceilings_are_above_what_any_configuration_takes() -> None:
    run = options(RUN)
    concurrency = next(field.kind.le for field in fields_of(Api) if field.name == "concurrency")
    workers = 2 * concurrency + MAX_CONNECTIONS
    assert int(run["TasksMax"][0]) > 2 * workers
    assert int(run["LimitNOFILE"][0]) > 4 * workers
    assert run["MemoryMax"] == ["1G"]


def test_systemd_waits_longer_than_the_daemon_takes() -> None:
    run = options(RUN)
    assert float(run["TimeoutStopSec"][0]) > schedule.DRAIN_SECONDS + 5
    assert float(run["WatchdogSec"][0]) > 5 * schedule.HEARTBEAT_SECONDS


# The daemon's messages to systemd


class Ear:
    """The socket that systemd listens on."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(address.replace("@", "\0", 1))

    def heard(self, **values: str) -> list[dict[str, str]]:
        """The messages so far whose values contain these texts."""
        with suppress(BlockingIOError):
            while data := self._socket.recv(65536):
                self._heard.append(dict(line.split("=", 1) for line in data.decode().split("\n")))
        return [said for said in self._heard if all(value in said.get(name, "") for name, value in values.items())]

    def close(self) -> None:
        self._socket.close()


class Service:
    """The daemon, started as systemd does: in /, without a home, with all paths in environment variables."""

    def __init__(self, directory: Path, simulator: Simulator, address: str) -> None:
        self.state_dir, self.credentials = directory / "state", directory / "credentials"
        self.credentials.mkdir()
        self.give("token", simulator.token)
        self.give("logging.key", simulator.settings.api_key)
        config = directory / "config.toml"
        config.write_text(config_of(simulator, free_port()))
        self.environment = {
            "IONOS_POLLER_CONFIG": str(config),
            "NOTIFY_SOCKET": address,
            "STATE_DIRECTORY": str(self.state_dir),
            "CREDENTIALS_DIRECTORY": str(self.credentials),
            "WATCHDOG_USEC": "60000000",
            "HOME": "/",
        }

    def give(self, name: str, secret: str) -> None:
        (self.credentials / name).write_text(secret)


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorSettings(contracts=CONTRACTS, events=EVENTS)) as simulator:
        yield simulator


@pytest.fixture(params=["path", "abstract"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ear]:
    address = (
        str(tmp_path / "notify") if request.param == "path" else f"@ionos-poller-{os.getpid()}-{time.monotonic_ns()}"
    )
    ear = Ear(address)
    yield ear
    ear.close()


def test_the_daemon_tells_systemd_that_it_is_ready_alive_and_stopping(
    tmp_path: Path, simulator: Simulator, ear: Ear, start: Callable[..., subprocess.Popen[str]]
) -> None:
    service = Service(tmp_path, simulator, ear.address)
    process = start("run", cwd=Path("/"), env=service.environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: ear.heard(READY="1", STATUS="collecting"), what="READY=1")
    wait_until(lambda: ear.heard(WATCHDOG="1"), what="WATCHDOG=1")
    wait_until(lambda: is_delivered(simulator), what="delivered")
    assert (service.state_dir / "run.db").exists()
    process.terminate()
    assert process.wait(15) == 0
    assert len(ear.heard(STOPPING="1")) == 1


@pytest.mark.parametrize("ear", ["path"], indirect=True)
def test_the_daemon_tells_systemd_of_a_reload_and_of_a_key_that_is_refused(
    tmp_path: Path, simulator: Simulator, ear: Ear, start: Callable[..., subprocess.Popen[str]]
) -> None:
    service = Service(tmp_path, simulator, ear.address)
    process = start("run", cwd=Path("/"), env=service.environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: ear.heard(WATCHDOG="1", STATUS="ready"), what="a heartbeat that says ready")
    process.send_signal(signal.SIGHUP)
    reloading = wait_until(lambda: ear.heard(RELOADING="1"), what="RELOADING=1")[0]
    assert 0 < int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    wait_until(lambda: len(ear.heard(READY="1")) == 2, what="READY=1 after the reload")
    service.give("logging.key", "an-old-key")
    simulator.add_entries(CONTRACTS[0], count=1)
    wait_until(
        lambda: ear.heard(WATCHDOG="1", STATUS="sink logging is parked"), 15, what="it says that a key is refused"
    )
    process.terminate()
    assert process.wait(15) == 0
    assert not ear.heard(STATUS="an-old-key")


# The units at work


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory, systemd: None) -> Iterator[Machine]:
    why = "NOT CHECKED: that the units' sandbox lets the program work; "
    if os.geteuid() != 0:
        pytest.skip(f"{why}only root can boot a systemd")
    with Simulator(SimulatorSettings(contracts=CONTRACTS, events=EVENTS)) as simulator:
        try:
            machine = Machine(tmp_path_factory.mktemp("machine"), new_cgroup(), simulator)
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
    """The machine as after an installation. After the test, the service is stopped and its files are reset."""
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
    wait_until(lambda: machine.show("StatusText") == "ready", what="it says that it is ready")
    # The sandbox works: another user, no capability, system calls filtered.
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
    machine.systemctl("reload", RUN, code=1)
    wait_until(lambda: "config.reload_failed" in machine.log, what="refused")
    assert "is not valid TOML" in machine.log, "as the reason that the command gives"
    unusable = re.sub("listen = .*", 'listen = "192.0.2.1:1"', machine.config)
    machine.write("config.toml", unusable, 0o644)
    machine.systemctl("reload", RUN, code=1)
    wait_until(
        lambda: "the old configuration stays in force: http.listen" in machine.log, what="the daemon's own reason"
    )
    machine.write("config.toml", machine.config, 0o644)  # for `status`; the daemon does not reload it
    machine.simulator.add_entries(CONTRACTS[0], count=1)
    machine.await_delivery()
    assert machine.show("MainPID") == before


def test_a_missing_key_is_an_error_only_where_a_sink_needs_it(machine: Machine) -> None:
    (machine.etc / "logging.key").unlink()
    machine.systemctl("start", RUN, code=1)
    assert "logging.key is empty" in machine.log
    assert machine.show("ExecMainStatus") == str(EXIT_INCOMPLETE), "started again: it may be put there any time"
    assert machine.show("SubState") == "auto-restart"
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
    wait_until(lambda: machine.show("ActiveState", unit) == "inactive", what="the backfill is complete")
    assert machine.show("Result", unit) == "success"
    lines = (machine.state_dir / "january.ndjson").read_bytes().splitlines()
    assert len(lines) == sum(log.counts()[0] for log in machine.simulator.logs.values())
    # The daemon can still write its state.
    machine.simulator.add_entries(CONTRACTS[0], count=5)
    machine.await_delivery()
    assert machine.show("NRestarts") == "0"
    # Wrong arguments need a person: it is not restarted.
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


def test_setup_makes_a_service_of_a_token_and_a_configuration(machine: Machine) -> None:
    for name in ("token", "logging.key", "config.toml"):
        (machine.etc / name).unlink()
    local = machine.root / "srv/mine"
    local.mkdir(exist_ok=True)
    (local / "ionos-poller.toml").write_text(machine.config + 'api_key_file = "logging.key"\n')
    (local / "logging.key").write_text(machine.simulator.settings.api_key)
    for path in local.iterdir():
        path.chmod(0o600)
    env = {"IONOS_API_TOKEN": machine.simulator.token}
    inside = ("sh", "-c", 'cd /srv/mine && exec "$@"', "sh", PROGRAM, "setup", "--service")
    steps = machine.command(*inside, "--dry-run", env=env)
    assert "would write /etc/ionos-poller/token (mode 0600)" in steps
    assert not (machine.etc / "token").exists()
    told = machine.command(*inside, "--yes", env=env)
    assert "the service runs and delivers: 3" not in steps
    assert "the service runs and delivers: " in told
    assert 'look: in the Grafana that the DCD shows for the pipeline, {tag_name="activityLog"} | json' in told
    assert machine.simulator.token not in told + machine.log
    assert (machine.etc / "token").stat().st_mode & 0o777 == 0o600
    assert machine.show("ActiveState") == "active"
    machine.await_delivery()
    assert "write " not in machine.command(*inside, "--yes", env=env), "again, nothing is left to write"
    (machine.etc / "token").write_text("wrong\n")
    seen = machine.command(PROGRAM, "check", env={"IONOS_API_TOKEN": "of the shell"})
    assert "secrets of /run/credentials/ionos-poller.service" in seen
    assert "ok    token               accepted" in seen, "the service's copy, not the file and not the shell's"
    assert "ok    sink logging" in seen
    assert "/var/lib/ionos-poller: writable" in seen
    machine.systemctl("stop", RUN)
    machine.command(PROGRAM, "check", "--no-send", code=3)


def test_without_root_setup_prints_the_command_that_makes_a_service(machine: Machine) -> None:
    env = {"IONOS_API_TOKEN": machine.simulator.token}
    done = machine.command("setpriv", "--reuid=65534", "--clear-groups", PROGRAM, "setup", "--service", env=env)
    assert done == f"sudo --preserve-env=IONOS_API_TOKEN {PROGRAM} setup --service\n"


def test_from_a_token_alone_to_a_running_service(machine: Machine) -> None:
    shutil.rmtree(machine.root / "srv/mine", ignore_errors=True)
    for path in machine.etc.iterdir():
        path.unlink()
    url = machine.simulator.url
    machine.write("environment", f"IONOS_API_URL={url}\n")
    for contract in CONTRACTS:
        machine.simulator.add_entries(contract, count=5)
    env = {"IONOS_API_TOKEN": machine.simulator.token, "IONOS_API_URL": url, "IONOS_LOGGING_API_URL": url}
    options = ("--region", "de-txl", "--pipeline", "first-hour", "--yes")
    told = machine.command(PROGRAM, "setup", "--service", *options, env=env)
    assert "the service runs and delivers: " in told
    assert sorted(path.name for path in machine.etc.iterdir()) == ["config.toml", "environment", "logging.key", "token"]
    assert 'state_dir = "/var/lib/ionos-poller"' in (machine.etc / "config.toml").read_text()
    assert "run   at work" in machine.command(PROGRAM, "status"), "root finds its state"
