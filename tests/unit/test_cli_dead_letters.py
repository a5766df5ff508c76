"""What `dead-letters` says about letters of a sink that was removed, and about when a replay is sent."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from poller.cli import run
from poller.store.rows import DeadLetter
from poller.store.sqlite import Stores
from tests.states import NOW, commit, enrolled, events, next_batch, settle

OUT, TYPO = '[[sinks]]\nname = "out"\ntype = "stdout"\n', "no-such"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A state of `run` with three dead letters of the sink `out`, and no waiting events. The configuration has the sink."""
    with closing(enrolled(Stores(tmp_path / "state").open("run"))) as state:
        commit(state, events(1, 2, 3))
        batch = next_batch(state, "out", 3, 10**9)
        assert batch is not None
        settle(state, "out", 3, dead=[DeadLetter(item, 400, "bad") for item in batch.events], now=NOW)
    configure(tmp_path, OUT)
    return tmp_path


def configure(place: Path, sinks: str) -> None:
    (place / "config.toml").write_text(f'state_dir = "{place}/state"\n{sinks}')


def forget(place: Path) -> None:
    with closing(Stores(place / "state").open("run")) as state:
        state.outbox.forget("out")


def command(place: Path, *words: str) -> int:
    return run(["--config", str(place / "config.toml"), "dead-letters", *words])


def test_a_replay_says_that_nothing_runs_which_could_send_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(place, "replay", "1") == 0
    assert capsys.readouterr().out == "1 of 1 put back; they are sent when `run` runs: it does not run now\n"


def test_a_replay_to_a_sink_that_left_the_configuration_says_so(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(place, "")
    assert command(place, "replay") == 0
    told = capsys.readouterr()
    assert "3 of 3 put back" in told.out
    assert "those of out wait: it left the config" in told.err


def test_letters_of_a_forgotten_sink_stay_and_a_replay_of_them_fails(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(place)
    for which in ((), ("2",), ("--sink", "out")):
        assert command(place, "replay", *which) == 1
        told = capsys.readouterr()
        assert told.out == f"0 of {1 if which == ('2',) else 3} put back\n"
        assert "those of out stay dead letters: the state has forgotten the sink" in told.err


def test_letters_of_a_forgotten_sink_can_be_listed_and_purged_by_its_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(place)
    assert command(place, "list", "--sink", "out", "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert command(place, "list", "--sink", TYPO) == 2
    assert "known are: out" in capsys.readouterr().err
    assert command(place, "purge", "--sink", "out", "--reason", "gone", "--yes", "--no-export") == 0
    assert capsys.readouterr().out == "3 deleted\n"
