"""The lines of docs/install.md that install from a checkout, typed by a user who is not root and has an empty home."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from poller import __version__
from poller.simulator import Simulator, SimulatorSettings
from tests.debian import program
from tests.documents import blocks, commands
from tests.support import TOP, clean_environment, free_port, wait_until

INSTALL_SECONDS = 300
UV = "uv>=0.8,<1"
COPIED = ("LICENSE", "README.md", "man", "poller", "pyproject.toml", "systemd")
LINES = [
    shown.command
    for block in blocks(TOP / "docs/install.md")
    if block.heading == "From a checkout"
    for shown in commands(block)
]
TOOLS = ["pipx", "uv", "python3"]
NEEDS_IT = "ionos-poller archive keygen evidence.key"
# Installer -> the command that adds an extra later.
ADDS = dict(
    re.findall(
        r"^\| (pipx|uv|pip)\b[^|]* \| `([^`]*archive[^`]*)` \|$", (TOP / "docs/install.md").read_text(), re.MULTILINE
    )
)


def test_there_is_a_line_for_each_way() -> None:
    assert [line.split()[0] for line in LINES] == TOOLS
    assert list(ADDS) == ["pipx", "uv", "pip"]


@pytest.fixture(scope="module")
def uv() -> Path:
    """uv: from the path, otherwise from PyPI, kept in build/ for later runs."""
    if found := shutil.which("uv"):
        return Path(found)
    directory = TOP / "build" / "uv"
    if not (directory / "bin" / "uv").exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--target",
            directory,
            UV,
        ]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=INSTALL_SECONDS)
        if done.returncode:
            pytest.skip(f"NOT CHECKED: whether uv installs it; pip cannot fetch {UV}: {done.stderr[-300:]}")
    return directory / "bin" / "uv"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that another user can read: those of pytest are private."""
    with tempfile.TemporaryDirectory(prefix="install-") as name:
        yield Path(name)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_user_without_root_installs_it_with_the_line_of_the_page(
    tool: str, place: Path, request: pytest.FixtureRequest
) -> None:
    (line,) = [line for line in LINES if line.split()[0] == tool]
    add = ADDS["pip" if tool == "python3" else tool]
    if tool == "uv":
        found = request.getfixturevalue("uv")
    else:
        package = "python3-venv" if tool == "python3" else tool
        found = Path(program(tool, package, f"whether {tool} installs it"))
    programs = place / "programs"
    programs.mkdir()
    if tool == "uv":  # another user may not be able to read its directory
        shutil.copy(found, programs)
    places = [programs, found.parent, Path("/usr/bin"), Path("/bin")]
    home, checkout = place / "home", place / "checkout"
    home.mkdir()
    checkout.mkdir()
    for name in COPIED:
        source = TOP / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout)
    user = _give_to_a_user(place)
    environment = {
        name: value for name, value in clean_environment().items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")
    }
    environment |= {
        "HOME": str(home),
        "PATH": ":".join(map(str, places)),
        "UV_CACHE_DIR": str(home / "uv"),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_SYSTEM_CERTS": "true",  # as pip does it
    }
    done = subprocess.run(
        [
            "bash",
            "-ec",
            f'{line}\nPATH="$HOME/.local/bin:$PATH"\nionos-poller --version\nionos-poller demo\n{add}\n{NEEDS_IT}',
        ],
        cwd=checkout,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=INSTALL_SECONDS,
        **user,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert __version__ in done.stdout
    assert "lost 0" in done.stdout
    if tool == "python3":
        _runs_as_in_the_container(checkout / "venv/bin/ionos-poller", place, user)


def _runs_as_in_the_container(command: Path, place: Path, user: dict[str, Any]) -> None:
    """Run it as in compose.yaml: a user without a home, secrets that only this user may read, only the state is writable."""
    (service,) = yaml.safe_load((TOP / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    with Simulator(SimulatorSettings(events=20)) as simulator:
        secrets = place / "secrets"
        secrets.mkdir()
        (place / "state").mkdir()
        for name, text in (("token", simulator.token), ("logging.key", simulator.settings.api_key)):
            (secrets / name).write_text(text)
            (secrets / name).chmod(0o400)
        _give_to_a_user(place)
        config = place / "config.toml"
        config.write_text(
            f'[api]\nurl = "{simulator.url}"\n[poll]\ninitial_lookback = "2h"\n'
            f'[[sinks]]\nname = "logging"\ntype = "logging-service"\nurl = "{simulator.url}/sink/logging"\ntag = "a"\n'
        )
        config.chmod(0o644)
        environment = {
            "PATH": "/usr/bin:/bin",
            **dict.fromkeys(service["environment"], str(secrets)),
            "IONOS_POLLER_CONFIG": str(config),
            "IONOS_POLLER_STATE_DIR": str(place / "state"),
            "IONOS_POLLER_HTTP__LISTEN": f"127.0.0.1:{free_port()}",
        }
        process = subprocess.Popen([command, "run"], cwd="/", env=environment, stderr=subprocess.PIPE, **user)
        try:
            wait_until(lambda: process.poll() is not None or simulator.intakes["logging"].distinct >= 40, what="it")
        finally:
            process.terminate()
            said = process.communicate(timeout=15)[1].decode()
        assert process.returncode == 0, said
        assert simulator.intakes["logging"].distinct == 40, said


def _give_to_a_user(directory: Path) -> dict[str, Any]:
    """Give a directory to a user who is not root.  Returns: options to run a command as that user."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in (directory, *directory.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
