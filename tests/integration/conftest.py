"""Benches for the tests of commands: a directory, a simulator, and the real command in between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poller.simulator import Simulator, SimulatorSettings
from tests.integration.fetching import Bench, Starter


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Starter]:
    """Gives benches, each with a simulator of its own: two contracts of 300 entries in 50 minutes unless told otherwise."""
    started: list[Simulator] = []

    def make(**settings: Any) -> Bench:
        settings = {"contracts": 2, "events": 300, "span_seconds": 3000, **settings}
        simulator = Simulator(SimulatorSettings(**settings)).start()
        started.append(simulator)
        directory = tmp_path / f"bench{len(started)}"
        directory.mkdir()
        return Bench(directory, simulator)

    yield make
    for simulator in started:
        simulator.stop()
