"""`sinks forget` forgets sinks that left the config, but not the output of a command."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from poller.cli import run
from poller.store.sqlite import Stores
from tests.states import START, commit, events


@pytest.mark.parametrize(
    ("use", "sink", "code"),
    [
        ("fetch", "stdout", 2),
        ("backfill-0a", "stdout", 2),
        ("backfill-0a", "output", 2),
        ("backfill-0a", "loki", 0),
        ("run", "stdout", 0),
        ("run", "output", 0),
    ],
)
def test_the_output_of_a_command_itself_is_not_forgotten_and_what_waits_for_it_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], use: str, sink: str, code: int
) -> None:
    with closing(Stores(tmp_path / "state").open(use)) as state:
        state.contracts.enrol(["1"], "default", START, START)
        state.outbox.register(sink, "stdout")
        commit(state, events(1, 2, 3))
    (tmp_path / "config.toml").write_text(f'state_dir = "{tmp_path}/state"\n')
    assert run(["--config", str(tmp_path / "config.toml"), "sinks", "forget", sink, "--use", use]) == code
    assert ("is the output of" in capfd.readouterr().err) == bool(code)
    with closing(Stores(tmp_path / "state").open(use)) as state:
        assert [row.waiting for row in state.overview().sinks] == ([3] if code else [])
