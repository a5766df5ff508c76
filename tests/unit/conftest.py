"""A state to try the store with, where a test asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from poller.store.sqlite import State
from tests.states import with_a_sink


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def state(directory: Path) -> Iterator[State]:
    """An open state with contract 1 and the sink `out`."""
    state = with_a_sink(directory)
    yield state
    state.close()
