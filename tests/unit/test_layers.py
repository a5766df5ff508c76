"""The rooms of poller/ and the imports between them: every import is read and checked.

A room is a package in poller/. A new import between two rooms needs a reason in MAY_IMPORT.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PACKAGE = "poller"

# Room, a package in poller/ -> the rooms it may import besides itself. All may import the version, from poller/__init__.py.
# system comes before net, because a request reports its progress to liveness, and nothing in system needs the network.
BASE = {"core", "config", "system"}
EDGES = BASE | {"net", "ionos", "store", "sinks", "archive"}
MAY_IMPORT = {
    "core": set(),
    "config": {"core"},
    "system": {"core", "config"},
    "net": BASE,
    "ionos": BASE | {"net"},
    "store": BASE,
    "archive": BASE | {"net"},  # places of archives and their keys: sinks write there, pipeline verifies what is there
    "sinks": BASE | {"net", "archive"},  # they use neither the store nor the API
    "pipeline": EDGES,
    "checks": EDGES,  # the preflight tries every edge and needs no use case
    "service": EDGES | {"pipeline"},
    "simulator": {"core"},  # a fake of the other side; if it shared our edges, it would share their mistakes
    "cli": EDGES | {"pipeline", "checks", "service", "simulator"},
}

# Library -> the rooms that may import it. A room inside a room has both names.
NETWORK = {"net", "ionos", "sinks", "system", "service", "simulator"}
LIBRARIES = {
    "sqlite3": {"store.sqlite"},
    "psycopg": {"store.postgres"},
    "apscheduler": {"service"},
    "click": {"cli"},
    "rich": {"cli"},
    "prometheus_client": {"service"},
    "boto3": {"sinks", "archive"},
    "botocore": {"sinks", "archive"},
    "cryptography": {"archive", "sinks"},
    "confluent_kafka": {"sinks"},
    "google": {"simulator"},
    "opentelemetry": {"sinks", "simulator"},
    "ionoscloud_logging": {"ionos"},
    "requests": NETWORK - {"system"},
    "urllib3": NETWORK - {"system"},
    "http": NETWORK,
    "socket": NETWORK,
    "socketserver": NETWORK,
    "urllib.request": NETWORK | {"config"},  # config reads its proxy rules and opens no connection
}
# Modules of those libraries that hold only names: every room may import them.
HARMLESS = {"http.HTTPStatus"}

ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


def module_name(path: Path, top: Path = TOP) -> str:
    """`poller/config/load.py` -> `poller.config.load`; a package is named without `__init__`."""
    parts = path.relative_to(top).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of a module below poller, or None if MAY_IMPORT does not have it."""
    first = module.split(".")[1]
    return "cli" if first == "__main__" else first if first in MAY_IMPORT else None


@cache
def tree_of(source: str) -> ast.Module:
    return ast.parse(source)


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
    """What the module does although its room may not, one line each."""
    tree = tree_of(source)
    if module == PACKAGE:
        names = imports(tree, module, is_package=True)
        return [
            f"{module} holds the version and imports nothing, but has {name}" for name in names if name != "__future__"
        ]
    room = room_of(module)
    if room is None:
        return [f"{module} is in no room: move it into one, or add one to MAY_IMPORT in tests/unit/test_layers.py"]
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
        is_allowed = room in rooms or any(f"{module}.".startswith(f"{PACKAGE}.{place}.") for place in rooms)
        if f"{name}.".startswith(f"{library}.") and not is_allowed and name not in HARMLESS:
            yield f"{module} ({room}) imports {name}, which is for {', '.join(sorted(rooms))}"


def breaches_of_speech(tree: ast.Module, module: str, room: str) -> Iterator[str]:
    """Prints outside cli, and accesses to the environment outside config."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")) if room != "cli":
                yield f"{module}:{node.lineno} prints; only cli does"
            case ast.Attribute(attr=name) if name in ENVIRONMENT and room != "config":
                yield f"{module}:{node.lineno} reads {name}; only config does"
            case ast.ImportFrom(module="os", names=names) if room != "config":
                if any(alias.name in ENVIRONMENT for alias in names):
                    yield f"{module}:{node.lineno} imports the environment; only config does"


def neighbours(source: str, module: str, modules: Collection[str], *, is_package: bool = False) -> set[str]:
    """The files of poller/ that this one imports: at its top, inside a function, or only for types."""
    names = imports(tree_of(source), module, is_package)
    return {file_of(name, modules) for name in names} - {"", PACKAGE, module}


def file_of(name: str, modules: Collection[str]) -> str:
    """The module that a dotted name is in, or ""."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def circles(neighbours_of: Mapping[str, set[str]]) -> list[str]:
    """Pairs of files that import each other."""
    return [
        f"{one} and {other} import each other"
        for one, others in neighbours_of.items()
        for other in others
        if one < other and one in neighbours_of.get(other, set())
    ]


FILES = sorted((TOP / PACKAGE).rglob("*.py"))
SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in FILES}
PACKAGES = {module_name(path) for path in FILES if path.name == "__init__.py"}


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_uses_only_the_doors_of_its_room(module: str) -> None:
    assert breaches(SOURCES[module], module, is_package=module in PACKAGES) == []


def test_no_two_files_import_each_other() -> None:
    graph = {
        module: neighbours(source, module, SOURCES, is_package=module in PACKAGES) for module, source in SOURCES.items()
    }
    assert circles(graph) == []


@pytest.mark.parametrize(
    "back",
    [
        "from poller.store.b import thing",
        "def late():\n    from poller.store import b",
        "if TYPE_CHECKING:\n    import poller.store.b",
        "from .b import thing",
    ],
)
def test_a_planted_circle_is_found_wherever_the_import_is(back: str) -> None:
    modules = {"poller.store", "poller.store.a", "poller.store.b"}
    graph = {
        "poller.store.a": neighbours(back, "poller.store.a", modules),
        "poller.store.b": neighbours("from poller.store.a import other", "poller.store.b", modules),
    }
    assert len(circles(graph)) == 1


def test_the_tables_speak_of_the_rooms_that_there_are() -> None:
    assert set(MAY_IMPORT) == {path.name for path in (TOP / PACKAGE).iterdir() if (path / "__init__.py").exists()}
    places = set().union(*MAY_IMPORT.values(), *LIBRARIES.values())
    assert {place.partition(".")[0] for place in places} <= set(MAY_IMPORT)


def test_the_root_holds_packages_and_the_way_in_alone() -> None:
    assert {path.name for path in (TOP / PACKAGE).glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("poller.core.errors", "from poller.config import Config"),
        ("poller.core.windows", "import poller.store"),
        ("poller.core.events", "from .. import store"),
        ("poller.config.load", "from ..telemetry import setup_logging"),
        ("poller.sinks.loki", "from poller import store"),
        ("poller.sinks.loki", "def send():\n    from poller.ionos.api import Client"),
        ("poller.sinks.loki", "import sqlite3"),
        ("poller.store.sqlite.state", "import requests"),
        ("poller.store.rows", "import sqlite3"),
        ("poller.store.sqlite.state", "import psycopg"),
        ("poller.store", "import sqlite3"),
        ("poller.pipeline", "from poller.service.daemon import run"),
        ("poller.pipeline", "import apscheduler.schedulers.background"),
        ("poller.pipeline", "from urllib.request import urlopen"),
        ("poller.pipeline", "from urllib import request"),
        ("poller.pipeline", "from http import client"),
        ("poller.simulator.server", "from poller.net.transport import Session"),
        ("poller.service.daemon", "import poller.cli"),
        ("poller.service.daemon", "import boto3"),
        ("poller.service.daemon", "print('polling')"),
        ("poller.ionos.api", "import os\ntoken = os.environ['IONOS_API_TOKEN']"),
        ("poller.ionos.api", "from os import getenv"),
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
        ("poller.sinks.loki", "from .base import Sink\nfrom ..core.delivery import Outcome\nimport requests"),
        ("poller.store.sqlite.database", "import sqlite3\nfrom ...core.errors import StateError"),
    ],
)
def test_what_the_rooms_are_for_is_allowed(module: str, source: str) -> None:
    assert breaches(source, module) == []
