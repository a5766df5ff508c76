"""The rooms of the house and the doors between them, held by reading every import in poller/.

A new module fails here until it is given a room in ROOMS; a new door wants a reason in MAY_IMPORT.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PACKAGE = "poller"

# Room -> its modules below poller/; a package stands for all that is in it.
ROOMS = {
    "core": {
        "clocks",
        "damage",
        "delivery",
        "errors",
        "events",
        "gaps",
        "listing",
        "mapping",
        "narrowing",
        "pace",
        "reading",
        "sifting",
        "turns",
        "windows",
    },
    "config": {"config"},
    "liveness": {"liveness"},
    "telemetry": {"telemetry", "log_stream"},
    "listening": {"listening"},
    "reporting": {"health", "metrics", "notify", "readiness", "tokens"},
    "transport": {"transport", "connections", "words"},
    "api": {"api", "asking"},
    "store": {"store"},
    "sinks": {"sinks"},
    "files": {"files"},
    "pipelines": {"pipelines"},
    "checks": {"checks"},
    "pipeline": {"pipeline"},
    "daemon": {"daemon", "schedule", "triggers"},
    "simulator": {"simulator"},
    "cli": {"cli", "__main__"},
}

# Room -> the rooms it may import besides itself. All may know the version, in poller/__init__.py.
BASE = {"core", "config", "liveness"}
EDGES = BASE | {"telemetry", "transport", "api", "store", "sinks"}
MAY_IMPORT = {
    "core": set(),
    "config": {"core"},
    "liveness": set(),
    "telemetry": BASE,
    "transport": BASE | {"telemetry"},
    "api": BASE | {"telemetry", "transport"},
    "store": BASE | {"telemetry", "files"},
    "sinks": BASE | {"telemetry", "transport", "files"},
    "listening": {"core"},
    "reporting": EDGES | {"listening"},  # what the daemon says of itself: the books, read from the state
    "files": {"core"},
    "pipelines": BASE | {"telemetry", "transport"},  # the Logging Service's management API, for `setup`
    "checks": EDGES | {"listening"},  # the preflight tries every edge and knows no use case
    "pipeline": EDGES,
    "daemon": EDGES | {"pipeline", "reporting", "listening"},
    "simulator": {"core"},  # a stand-in for the other side shares none of our edges, or it would share their mistakes
    "cli": EDGES | {"pipeline", "daemon", "reporting", "simulator", "checks", "pipelines", "files"},
}

# Library -> the rooms that may import it.
NETWORK = {"transport", "api", "sinks", "telemetry", "reporting", "simulator"}
LIBRARIES = {
    "sqlite3": {"store"},
    "apscheduler": {"daemon"},
    "click": {"cli"},
    "rich": {"cli"},
    "prometheus_client": {"reporting"},
    "boto3": {"sinks"},
    "botocore": {"sinks"},
    "ionoscloud_logging": {"pipelines"},
    "requests": NETWORK,
    "urllib3": NETWORK,
    "http": NETWORK,
    "socket": NETWORK | {"listening"},
    "socketserver": NETWORK,
    "urllib.request": NETWORK | {"config"},  # whose proxy rules config reads; it opens nothing
}
# Modules of those libraries that are tables of names, free to all.
HARMLESS = {"http.HTTPStatus"}

ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def module_name(path: Path, top: Path = TOP) -> str:
    """`poller/config/load.py` -> `poller.config.load`; a package is named without `__init__`."""
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """Return the room of a module below poller, or None where the table knows none."""
    first = module.split(".")[1]
    return next((room for room, modules in ROOMS.items() if first in modules), None)


def imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Every dotted name the module imports, at its top or inside a function, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                here = parts[: len(parts) - node.level + is_package]
                base = ".".join([*here, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def breaches(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What the module does that its room may not, one line each."""
    tree = ast.parse(source)
    if module == PACKAGE:
        names = imports(tree, module, is_package=True)
        return [
            f"{module} holds the version and imports nothing, but has {name}" for name in names if name != "__future__"
        ]
    room = room_of(module)
    if room is None:
        return [f"{module} has no room yet: add it to ROOMS in tests/unit/test_layers.py"]
    found: list[str] = []
    for name in imports(tree, module, is_package):
        if name.startswith(f"{PACKAGE}."):
            found += breach_of_house(module, room, name)
        else:
            found += breach_of_library(module, room, name)
    return [*found, *breaches_of_speech(tree, module, room)]


def breach_of_house(module: str, room: str, name: str) -> Iterator[str]:
    other = room_of(name)
    if other is None:
        if name != f"{PACKAGE}.__version__":
            yield f"{module} imports {name}, which has no room"
    elif other != room and other not in MAY_IMPORT[room]:
        yield f"{module} ({room}) imports {name} ({other})"


def breach_of_library(module: str, room: str, name: str) -> Iterator[str]:
    for library, rooms in LIBRARIES.items():
        if f"{name}.".startswith(f"{library}.") and room not in rooms and name not in HARMLESS:
            yield f"{module} ({room}) imports {name}, which is for {', '.join(sorted(rooms))}"


def breaches_of_speech(tree: ast.Module, module: str, room: str) -> Iterator[str]:
    """Prints outside cli, and looks into the environment outside config."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")) if room != "cli":
                yield f"{module}:{node.lineno} prints; only cli does"
            case ast.Attribute(attr=name) if name in ENVIRONMENT and room != "config":
                yield f"{module}:{node.lineno} reads {name}; only config does"
            case ast.ImportFrom(module="os", names=names) if room != "config":
                if any(alias.name in ENVIRONMENT for alias in names):
                    yield f"{module}:{node.lineno} imports the environment; only config does"


FILES = sorted((TOP / PACKAGE).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[module_name(path) for path in FILES])
def test_a_module_uses_only_the_doors_of_its_room(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert breaches(source, module_name(path), is_package=path.name == "__init__.py") == []


def test_the_tables_speak_of_the_same_rooms() -> None:
    assert set(MAY_IMPORT) == set(ROOMS)
    assert set().union(*MAY_IMPORT.values(), *LIBRARIES.values()) <= set(ROOMS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("poller.errors", "from poller.config import Config"),
        ("poller.windows", "import poller.store"),
        ("poller.events", "from . import store"),
        ("poller.config.load", "from ..telemetry import setup_logging"),
        ("poller.sinks.loki", "from poller import store"),
        ("poller.sinks.loki", "def send():\n    from poller.api import Client"),
        ("poller.sinks.loki", "import sqlite3"),
        ("poller.store", "import requests"),
        ("poller.pipeline", "from poller.daemon import run"),
        ("poller.pipeline", "import apscheduler.schedulers.background"),
        ("poller.pipeline", "from urllib.request import urlopen"),
        ("poller.pipeline", "from urllib import request"),
        ("poller.pipeline", "from http import client"),
        ("poller.simulator.server", "from poller.transport import Session"),
        ("poller.daemon", "import poller.cli"),
        ("poller.daemon", "import boto3"),
        ("poller.daemon", "print('polling')"),
        ("poller.api", "import os\ntoken = os.environ['IONOS_API_TOKEN']"),
        ("poller.api", "from os import getenv"),
        ("poller.cli", "import requests"),
        ("poller.cli", "from poller.utilities import chunks"),
        ("poller.utilities", ""),
        ("poller", "import requests"),
    ],
)
def test_a_planted_breach_is_found(module: str, source: str) -> None:
    assert len(breaches(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("poller.cli", "from poller import __version__, store\nprint(__version__)"),
        ("poller.config", "import os\ndefaults = os.environ"),
        ("poller.pipeline", "from http import HTTPStatus\nfrom urllib.parse import urlsplit"),
        ("poller.sinks.loki", "from . import Sink\nfrom ..delivery import Outcome\nimport requests"),
        ("poller.store", "import sqlite3\nfrom .errors import StateError"),
    ],
)
def test_what_the_rooms_are_for_is_allowed(module: str, source: str) -> None:
    assert breaches(source, module) == []
