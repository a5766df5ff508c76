"""The Debian package: built, installed in an environment with its own systemd, started, upgraded, removed and purged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poller import __version__
from poller.simulator import Simulator, SimulatorSettings
from tests.debian import program
from tests.machine import RUN, Machine, NoMachineError, new_cgroup
from tests.support import TOP, wait_until

UNCHECKED = "whether the Debian package installs and works"
BUILD_SECONDS = 300
COMMAND = "/usr/bin/ionos-poller"


def run(*command: str | Path, **extra: str) -> str:
    done = subprocess.run(
        command,
        cwd=TOP,
        env={**os.environ, **extra},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=BUILD_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program("dpkg-deb", "dpkg", UNCHECKED)
    if not Path("/usr/bin/python3").exists():
        pytest.skip(f"NOT CHECKED: {UNCHECKED}; the distribution has no Python here")
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist)
    (wheel,) = dist.glob("*.whl")
    pip = dist / "pip"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
    pip.chmod(0o755)
    # Without compression: that would take ten times as long as the rest.
    run(TOP / "packaging" / "build-deb", wheel, pip, dist, DPKG_DEB_COMPRESSOR_TYPE="none")
    (built,) = dist.glob("*.deb")
    return built


def test_it_holds_what_the_page_says_and_belongs_to_root(package: Path) -> None:
    control = run("dpkg-deb", "--field", package)
    assert f"Version: {__version__}\n" in control
    assert "Depends: python3 (>= 3." in control
    lines = run("dpkg-deb", "--contents", package).splitlines()
    names = {line.split()[5].removeprefix(".") for line in lines}
    for name in (
        COMMAND,
        "/usr/lib/ionos-poller/poller/service/web/page.css",
        "/usr/lib/systemd/system/ionos-poller.service",
        "/usr/lib/systemd/system/ionos-poller-backfill@.service",
        "/usr/lib/sysusers.d/ionos-poller.conf",
        "/usr/share/man/man1/ionos-poller.1.gz",
        "/usr/share/bash-completion/completions/ionos-poller",
        "/usr/share/zsh/vendor-completions/_ionos-poller",
        "/usr/share/fish/vendor_completions.d/ionos-poller.fish",
    ):
        assert name in names
    assert {line.split()[1] for line in lines} == {"root/root"}
    assert not [line for line in lines if line[8] == "w" and line[0] != "l"], "nobody else writes to it"
    assert not [name for name in names if "__pycache__" in name]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.skip(f"NOT CHECKED: {UNCHECKED}; only root can boot a systemd")
    if shutil.which("systemctl") is None:
        pytest.skip(f"NOT CHECKED: {UNCHECKED}; there is no systemd")
    with Simulator(SimulatorSettings(contracts=1, events=50)) as simulator:
        try:
            machine = Machine(tmp_path, new_cgroup(), simulator)
        except (NoMachineError, OSError) as error:
            pytest.skip(f"NOT CHECKED: {UNCHECKED}; {error}")
        try:
            try:
                machine.boot()
            except NoMachineError as error:
                pytest.skip(f"NOT CHECKED: {UNCHECKED}; systemd does not boot here: {error}")
            yield machine
        finally:
            machine.close()


def test_it_is_installed_started_upgraded_removed_and_purged(package: Path, machine: Machine) -> None:
    user = "ionos-poller"
    shutil.copy(package, machine.etc / "package.deb")
    machine.command("dpkg", "--install", "/etc/ionos-poller/package.deb")
    assert machine.command("id", "--user", user).strip().isdigit()
    assert f"ionos-poller {__version__}" in machine.command(COMMAND, "--version")
    assert machine.systemctl("is-active", RUN, code=3).strip() == "inactive", "it waits for a configuration"
    # The test machine reads units from another directory: copy the package's unit there.
    unit = machine.root / "usr/lib/systemd/system" / RUN
    assert f"ExecStart={COMMAND} run" in unit.read_text()
    shutil.copy(unit, machine.units)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", RUN)
    wait_until(lambda: machine.simulator.intakes["logging"].distinct == 50, what="all is delivered")
    first = machine.show("MainPID")
    assert int(machine.command("stat", "--format=%u", f"/proc/{first}").strip()) == int(
        machine.command("id", "--user", user)
    )

    machine.command("dpkg", "--install", "/etc/ionos-poller/package.deb")
    assert machine.show("MainPID") not in ("0", first), "the new version runs"

    machine.command("dpkg", "--remove", "ionos-poller")
    assert machine.systemctl("is-active", RUN, code=3).strip() == "inactive"
    assert not (machine.root / "usr/lib/ionos-poller").exists()
    assert (machine.state_dir / "run.db").exists()
    assert (machine.etc / "config.toml").exists()

    machine.command("dpkg", "--purge", "ionos-poller")
    assert not machine.state_dir.exists()
    assert not (machine.root / "var/lib/ionos-poller").is_symlink()
    machine.command("getent", "passwd", user, code=2)
    assert (machine.etc / "config.toml").exists(), "what a person wrote stays"
