"""Install the built wheel in a fresh venv and use it as a user would: `python -m tests.wheel_check dist`.

Proves what no test in the checkout can: that the wheel holds every module and names every dependency. These
come in the versions of the lock, so that it fails for our reasons only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.support import TOP, clean_environment

CONTRACT_COUNT = 2
EVENT_COUNT = 300
TOKEN = "demo-token"
DEADLINE_SECONDS = 120


def main(dist: Path) -> None:
    (wheel,) = dist.resolve().glob("*.whl")
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        command = install(wheel, room)
        print(f"wheel-check: {run(command, '--version', cwd=room).strip()}", flush=True)
        run(command, "demo", cwd=room)
        print("wheel-check: demo ran", flush=True)
        fetch_from_simulator(command, room)
        print("wheel-check: fetch printed every entry of the simulator once", flush=True)


def install(wheel: Path, room: Path) -> Path:
    """Return the installed command."""
    constraints = room / "constraints.txt"
    lock = (TOP / "requirements-dev.lock").read_text(encoding="utf-8")
    constraints.write_text("\n".join(re.findall(r"^[a-z0-9].*?==.*?(?= \\$)", lock, re.MULTILINE)), encoding="utf-8")
    venv.create(room / "venv", with_pip=True)
    bin_directory = room / "venv" / "bin"
    pip = [str(bin_directory / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--constraint", str(constraints), str(wheel)], check=True)
    subprocess.run([*pip, "check"], check=True)
    return bin_directory / "ionos-poller"


def environment(**extra: str) -> dict[str, str]:
    """A clean environment in which the checkout cannot be imported."""
    return {name: value for name, value in clean_environment(extra).items() if name != "PYTHONPATH"}


def run(command: Path, *args: str, cwd: Path, **extra: str) -> str:
    """Return its stdout; what went wrong, with all it said, ends the check."""
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
