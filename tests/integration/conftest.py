"""Fixtures for the tests of commands: a directory, a simulator, and the real command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from poller.simulator import Simulator, SimulatorSettings
from tests.daemon import Daemon, MakeDaemon
from tests.integration.fetching import Bench, Starter


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Starter]:
    """Makes benches, each with a simulator of its own. By default it has two contracts with 300 entries in 50 minutes."""
    made: list[Bench] = []

    def make(**settings: Any) -> Bench:
        settings = {"contracts": 2, "events": 300, "span_seconds": 3000, **settings}
        directory = tmp_path / f"bench{len(made) + 1}"
        directory.mkdir()
        made.append(Bench(directory, Simulator(SimulatorSettings(**settings)).start()))
        return made[-1]

    yield make
    for place in made:
        place.close()


@pytest.fixture
def daemon_of(tmp_path: Path) -> Iterator[MakeDaemon]:
    """Makes a daemon and its simulator with these settings. It is not started yet, and is killed at the end."""
    with ExitStack() as cleanup:

        def make(**settings: Any) -> Daemon:
            simulator = cleanup.enter_context(Simulator(SimulatorSettings(**{"events": 0, **settings})))
            daemon = Daemon(tmp_path, simulator)
            cleanup.callback(daemon.close)
            return daemon

        yield make
