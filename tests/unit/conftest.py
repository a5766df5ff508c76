"""A state for tests of the store: on every backend, unless the test is about one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from poller.store.protocols import State, Stores
from poller.store.sqlite import Stores as FileStores
from tests.states import enrolled, open_state

_numbers = count()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses a `state` on both backends, or on those that its mark `backends` names."""
    if "backend" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("backends")
        metafunc.parametrize("backend", mark.args if mark else ("sqlite", "postgres"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def some_stores(backend: str, directory: Path, request: pytest.FixtureRequest) -> Stores:
    """States of several uses. In PostgreSQL, the states of other tests are among them."""
    stores: Stores = FileStores(directory) if backend == "sqlite" else request.getfixturevalue("postgres_stores")
    return stores


@pytest.fixture
def opened(backend: str, directory: Path, request: pytest.FixtureRequest) -> Callable[[], State]:
    """Opens the same state each time. It is new and empty at first."""
    if backend == "sqlite":
        return lambda: open_state(directory)
    use = f"test-{next(_numbers)}"
    stores = request.getfixturevalue("postgres_stores")
    return lambda: stores.open(use)


@pytest.fixture
def state(opened: Callable[[], State]) -> Iterator[State]:
    """An open state with contract 1 and the sink `out`."""
    state = enrolled(opened())
    yield state
    state.close()
