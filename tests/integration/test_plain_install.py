"""Without extras, none of their packages is installed, and `fetch` imports none of them."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from poller.simulator import Simulator, SimulatorSettings
from tests.support import TOP, clean_environment

NAME = "ionos-poller"
# The packages of a plain installation. A new one needs a decision, and a reason in pyproject.toml.
PLAIN = frozenset(
    {
        *(
            "apscheduler",
            "certifi",
            "charset-normalizer",
            "click",
            "idna",
            "isal",
            "markdown-it-py",
            "mdurl",
            "msgspec",
        ),
        *("prometheus-client", "pygments", "python-json-logger", "requests", "rich", "tzlocal", "urllib3"),
    }
)
MOST_BYTES = 2_500_000
"""The maximum size of the program itself."""


def needed(*extras: str) -> set[str]:
    """The packages that an installation with these extras installs, without our own."""
    found: set[str] = set()
    waiting = [(NAME, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # only for another platform
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                other = re.sub(r"[-_.]+", "-", requirement.name).lower()
                if other not in found:
                    found.add(other)
                    waiting.append((other, frozenset(requirement.extras)))
    return found


def test_a_plain_installation_brings_no_library_more_than_it_needs() -> None:
    assert needed() <= PLAIN | {"typing-extensions", "colorama", "tzdata"}  # needed on other versions and platforms
    size = sum(path.stat().st_size for path in (TOP / "poller").rglob("*") if path.suffix != ".pyc" and path.is_file())
    assert size < MOST_BYTES


def modules_of_extras() -> set[str]:
    extras = needed("firehose", "otlp", "kafka", "archive", "setup", "fluent-bit", "postgres") - needed()
    assert {"confluent-kafka", "opentelemetry-proto", "boto3", "psycopg"} <= extras
    return {
        module
        for module, names in packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", name).lower() in extras for name in names)
    }


@pytest.mark.parametrize("options", [(), ("--format", "ocsf"), ("--format", "ecs")])
def test_fetch_imports_no_library_of_an_extra(tmp_path: Path, options: tuple[str, ...]) -> None:
    forbidden = modules_of_extras()
    with Simulator(SimulatorSettings(contracts=1, events=5)) as simulator:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "poller", "fetch", "--since", "2h", *options],
            cwd=tmp_path,
            env=clean_environment({"IONOS_API_URL": simulator.url, "IONOS_API_TOKEN": simulator.token}),
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 5), done.stderr[-2000:]
    imported = set(re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\w+)", done.stderr, re.MULTILINE))
    assert "msgspec" in imported
    assert imported & forbidden <= {"typing_extensions"}  # one of our libraries imports it if it is installed
