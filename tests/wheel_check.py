"""Install the built wheel in a fresh venv and use it as a user would: `python -m tests.wheel_check dist`.

It checks what no test in the checkout can check: the wheel contains every module and names every dependency, and the quick
starts of the README, typed unchanged, bring entries to a sink. The versions of dependencies come from the lock, so that only
our changes can make it fail.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

from poller import __version__
from poller.simulator import Simulator, SimulatorSettings
from tests.documents import PAGES, blocks, commands
from tests.reader import Reader, path_of
from tests.support import TOP, clean_environment, take_interrupts

CONTRACT_COUNT = 2
EVENT_COUNT = 300
TOKEN = "demo-token"
DEADLINE_SECONDS = 120
QUICK_START_COMMANDS = 4
QUICK_START_SECONDS = 120
README_INSTALL = "pipx install '.[setup]'"
INSTALL = "pip install 'ionos-poller[setup]'"


def main(dist: Path) -> None:
    take_interrupts()
    (wheel,) = dist.resolve().glob("*.whl")
    with tempfile.TemporaryDirectory() as name:
        for number, block in enumerate(quick_starts()):
            room = Path(name) / str(number)
            command = follow(block, wheel, room)
        print(f"wheel-check: {run(command, '--version', cwd=room).strip()}", flush=True)
        run(command, "demo", cwd=room)
        print("wheel-check: demo ran", flush=True)
        fetch_from_simulator(command, room)
        print("wheel-check: fetch printed every entry of the simulator once", flush=True)


def quick_starts() -> list[list[str]]:
    """The quick starts of the README, each as a list of commands: one to install, and the commands of a block with `run`.

    Here pip installs the wheel. tests/integration/test_install.py tests the other line for installing.
    """
    found = [[shown.command for shown in commands(block)] for block in blocks(PAGES[0]) if block.language == "console"]
    starts = [[INSTALL, *typed] for typed in found if "ionos-poller run" in typed]
    if [README_INSTALL] not in found:
        sys.exit(f"wheel-check: the README does not say {README_INSTALL}: {found}")
    if len(starts) != 2 or any(len(typed) > QUICK_START_COMMANDS for typed in starts):
        sys.exit(f"wheel-check: not two quick starts of at most {QUICK_START_COMMANDS} commands: {starts}")
    return starts


def follow(typed: list[str], wheel: Path, room: Path) -> Path:
    """Type a quick start of the README into a shell of a fresh virtual environment.  Returns: the command it installed."""
    venv.create(room / "venv", with_pip=True)
    bin_directory = room / "venv" / "bin"
    with Simulator(SimulatorSettings(events=EVENT_COUNT, live_per_second=2)) as simulator:
        variables = {
            "PATH": path_of(bin_directory, Path("/usr/bin"), Path("/bin")),
            "PIP_CONSTRAINT": str(constraints(room)),
            "PIP_FIND_LINKS": f"{wheel.parent} {os.environ.get('PIP_FIND_LINKS', '')}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "IONOS_API_URL": simulator.url,
            "IONOS_LOGGING_API_URL": simulator.url,
        }
        if any("simulate" in command for command in typed):
            variables = {name: value for name, value in variables.items() if not name.startswith("IONOS_")}
        kept = {name: value for name, value in environment(**variables).items() if name != "PYTHONWARNINGS"}
        reader = Reader(room, kept, lambda command: command.replace("=...", f"={simulator.token}"))
        started = time.monotonic()
        try:
            for command in typed:
                reader.type(command)
            seconds = time.monotonic() - started
            sinks = json.loads("".join(reader.type("ionos-poller status --json")))["uses"]["run"]["sinks"]
            reader.stop_all()
        finally:
            reader.close()
    delivered = {sink["name"]: sink["delivered"] for sink in sinks}
    if not all(delivered.values()) or seconds > QUICK_START_SECONDS:
        sys.exit(f"wheel-check: {typed}: {delivered} delivered after {seconds:.0f} s")
    print(f"wheel-check: README, {len(typed)} commands: entries at {[*delivered]} after {seconds:.1f} s", flush=True)
    subprocess.run([bin_directory / "python", "-m", "pip", "--quiet", "check"], check=True)
    is_ours(wheel, room / "venv")
    if not (room / "venv" / "share" / "man" / "man1" / "ionos-poller.1").exists():
        sys.exit("wheel-check: the wheel installs no manual page")
    return bin_directory / "ionos-poller"


def is_ours(wheel: Path, installed: Path) -> None:
    """Check that pip installed the built wheel, not another package of the same name."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        (found,) = installed.glob(f"lib/python*/site-packages/{name}")
        if found.read_bytes() != archive.read(name):
            sys.exit("wheel-check: pip installed another ionos-poller")


def constraints(room: Path) -> Path:
    """A file that makes pip install our version, and the versions of the lock for everything else."""
    path = room / "constraints.txt"
    lock = (TOP / "requirements-dev.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^([a-z0-9-]+)(?:\[.*?\])?(==.*?) \\$", lock, re.MULTILINE)  # a constraint names no extras
    path.write_text("\n".join([f"ionos-poller=={__version__}", *map("".join, pins)]) + "\n", encoding="utf-8")
    return path


def environment(**extra: str) -> dict[str, str]:
    """A clean environment in which the checkout cannot be imported."""
    return {name: value for name, value in clean_environment(extra).items() if name != "PYTHONPATH"}


def run(command: Path, *args: str, cwd: Path, **extra: str) -> str:
    """Run a command.  Returns: its stdout. If it fails, the check ends with all its output."""
    done = subprocess.run(
        [command, *args],
        cwd=cwd,
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"wheel-check: ionos-poller {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def fetch_from_simulator(command: Path, room: Path) -> None:
    sizes = ("--contracts", str(CONTRACT_COUNT), "--events", str(EVENT_COUNT), "--span", "1h")
    with subprocess.Popen(
        [command, "simulate", "--port", "0", *sizes],
        cwd=room,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as simulator:
        try:
            first_line = simulator.stdout.readline() if simulator.stdout else ""
            url = re.search(r"http://[\w.]+:\d+", first_line)
            if url is None:
                sys.exit(f"wheel-check: simulate does not begin with its address: {first_line!r}")
            api = {"IONOS_API_URL": url[0], "IONOS_API_TOKEN": TOKEN}
            lines = run(command, "fetch", "--since", "2h", cwd=room, **api).splitlines()
            again = run(command, "fetch", cwd=room, **api)
        finally:
            simulator.terminate()
    for line in lines:
        json.loads(line)
    if len(set(lines)) != CONTRACT_COUNT * EVENT_COUNT or len(lines) != len(set(lines)) or again:
        sys.exit(f"wheel-check: fetch printed {len(lines)} lines, {len(set(lines))} distinct, then {again[:200]!r}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
