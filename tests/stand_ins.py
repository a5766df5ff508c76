"""Stand-ins for programs that would change the machine: `python -m tests.stand_ins PROGRAM ARGUMENTS`.

Each stand-in checks that its arguments name things that exist, and does as much as is possible in a directory ($ROOT stands for
/). It refuses everything else with a reason, so that the documentation shows only tested commands.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from tests.faults.__main__ import read_arguments
from tests.support import COMMAND, TOP, wait_until

ROOT = Path(os.environ.get("ROOT", "/nowhere"))


def fail(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 1


def pip(arguments: list[str]) -> int:
    """Check that the name is ours and that the extras exist. The wheel check tests the installation itself."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    match arguments:
        case ["install", requirement]:
            pass
        case _:
            return fail(f"pip: not known here: {arguments}")
    match = re.fullmatch(rf"(?:{project['name']}|\.)(?:\[([a-z,-]+)\])?", requirement)
    if match is None:
        return fail(f"pip: not this project: {requirement}")
    unknown = set((match[1] or "").split(",")) - {"", *project["optional-dependencies"]}
    return fail(f"pip: no such extra: {unknown}") if unknown else 0


def pipx(arguments: list[str]) -> int:
    """As `pip`: its directory of commands is on the path already."""
    return pip(arguments)


def uv(arguments: list[str]) -> int:
    return pip(arguments[1:]) if arguments[:1] == ["tool"] else fail(f"uv: not known here: {arguments}")


def python3(arguments: list[str]) -> int:
    """`-m venv DIR`: makes a directory with the stand-in for pip and the program."""
    match arguments:
        case ["-m", "venv", directory]:
            place = Path(directory) / "bin"
            place.mkdir(parents=True)
            write_script(place / "pip", 'exec "$PYTHON" -m tests.stand_ins pip "$@"')
            (place / "ionos-poller").symlink_to(os.environ["PROGRAM"])
            (place / "activate").write_text(f'PATH="{place.resolve()}:$PATH"\n')
            return 0
        case _:
            return fail(f"python3: not known here: {arguments}")


def make(arguments: list[str]) -> int:
    """Check that the target exists and takes the arguments. `demo` is run."""
    match arguments:
        case [target]:
            pass
        case ["soak" as target, given] if given.startswith("ARGS="):
            read_arguments(shlex.split(given.removeprefix("ARGS=")))
        case _:
            return fail(f"make: not known here: {arguments}")
    plan = subprocess.run(["/usr/bin/make", "-C", TOP, "-n", target], capture_output=True, text=True, check=False)
    if plan.returncode or target != "demo":
        print(plan.stderr, file=sys.stderr)
        return plan.returncode
    (program,) = re.findall(r"^\.venv/bin/ionos-poller (.*)$", plan.stdout, re.MULTILINE)
    return subprocess.run([*COMMAND, *shlex.split(program)], check=False).returncode


def systemctl(arguments: list[str]) -> int:
    """Starts the command of a unit, in the environment of the unit."""
    match arguments:
        case ["daemon-reload"]:
            return 0
        case ["enable", "--now", unit] | ["start", unit]:
            return Unit(unit).start()
        case ["restart" | "reload", unit]:
            return 0 if Unit(unit).text else 1
        case _:
            return fail(f"systemctl: not known here: {arguments}")


def journalctl(arguments: list[str]) -> int:
    """Check that the unit has written a log."""
    match arguments:
        case ["-fu", unit]:
            return 0 if Unit(unit).log.read_text() else fail(f"journalctl: {unit} said nothing")
        case _:
            return fail(f"journalctl: not known here: {arguments}")


class Unit:
    """A service whose file was installed. `NAME@INSTANCE` is an instance of a template."""

    def __init__(self, name: str) -> None:
        self.name, _, self.instance = name.partition("@")
        file = f"{self.name}@.service" if self.instance else f"{self.name}.service"
        self.text = (ROOT / "etc/systemd/system" / file).read_text().replace("%i", self.instance)
        self.log = ROOT / f"run/{name}.log"

    def values(self, key: str) -> list[str]:
        return re.findall(rf"^{key}=(.*)$", self.text, re.MULTILINE)

    def start(self) -> int:
        """`run` is started in the background, with its process id in $ROOT/run. Other commands run to their end."""
        (command,) = self.values("ExecStart")
        environment = {**os.environ, "CREDENTIALS_DIRECTORY": str(self._credentials())}
        environment.pop("IONOS_API_TOKEN", None)  # a service does not see what a user has exported
        (state,) = self.values("StateDirectory")
        environment["STATE_DIRECTORY"] = str(ROOT / "var/lib" / state)
        for file in self.values("EnvironmentFile"):
            if not file.startswith("-"):
                lines = under_root(file).read_text().splitlines()
                environment |= dict(line.split("=", 1) for line in lines)
        program, *words = command.split()
        arguments = [part for word in words for part in expanded(word, environment)]
        with self.log.open("w") as log:
            process = subprocess.Popen(
                [under_root(program), *arguments], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        if words != ["run"]:
            return process.wait() and fail(self.log.read_text())
        (ROOT / f"run/{self.name}.pid").write_text(str(process.pid))
        wait_until(lambda: process.poll() is not None or "batch.sent" in self.log.read_text(), 60, what="it delivers")
        return fail(self.log.read_text()) if process.poll() is not None else 0

    def _credentials(self) -> Path:
        directory = ROOT / "run/credentials"
        directory.mkdir(parents=True, exist_ok=True)
        defaults = dict(value.split(":", 1) for value in self.values("SetCredential"))
        for value in self.values("LoadCredential"):
            name, file = value.split(":", 1)
            if name not in defaults or under_root(file).exists():
                (directory / name).write_text(under_root(file).read_text())
        return directory


def under_root(path: str) -> Path:
    return ROOT / path.lstrip("/")


def expanded(word: str, environment: dict[str, str]) -> list[str]:
    """Expands variables as systemd does: a separate word `$NAME` becomes the words of its value."""
    return environment[word[1:]].split() if word.startswith("$") else [word]


def write_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


PROGRAMS: dict[str, Callable[[list[str]], int]] = {
    "pip": pip,
    "pipx": pipx,
    "uv": uv,
    "python3": python3,
    "make": make,
    "systemctl": systemctl,
    "journalctl": journalctl,
}

if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](sys.argv[2:]))
