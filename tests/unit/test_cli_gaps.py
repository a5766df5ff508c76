"""What `gaps retry` says about when gaps are tried: each poll of a contract tries one gap, and a named gap comes first."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from poller.cli import run
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window
from poller.store.sqlite import Stores
from tests.states import START, commit, enrolled

SPANS = [Window(START + second, START + second + 1) for second in (5, 25, 45)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A state of `run` with three gaps of one contract."""
    with closing(enrolled(Stores(tmp_path / "state").open("run"))) as state:
        commit(
            state, [], window=Window(START, START + 60), unread=[Unread(span, UNREADABLE, "why", ()) for span in SPANS]
        )
    (tmp_path / "config.toml").write_text(f'state_dir = "{tmp_path}/state"\n')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "3 will be tried in the next 3 polls: a contract tries one at each"),
        (("2",), "1 will be tried at the next poll"),
        (("3",), "1 will be tried at the next poll"),
    ],
)
def test_it_says_at_which_poll(
    place: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert run(["--config", str(place / "config.toml"), "gaps", "retry", *words]) == 0
    assert capfd.readouterr().out == f"{said}\n"
    with closing(Stores(place / "state").open("run")) as state:
        turns = {gap.id: gap.next_try_at for gap in state.gaps.find()}
        assert not words or min(turns, key=lambda id_: turns[id_]) == int(words[0])


def test_a_contract_that_the_configuration_leaves_out_has_no_next_poll(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = place / "config.toml"
    config = file.read_text()
    for words, left_out in (([], "contracts = [2]"), (["2"], "exclude_contracts = [1]")):
        file.write_text(f"{config}[poll]\n{left_out}\n")
        assert run(["--config", str(file), "gaps", "retry", *words]) == 0
        output, errors = capfd.readouterr()
        assert output == "0 will be tried at the next poll\n"
        assert "not polled, as the configuration leaves it out: contract 1\n" in errors


@pytest.mark.parametrize("words", [(), ("2",)])
def test_those_of_a_backfill_are_tried_when_it_is_run_again(
    place: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    Stores(place / "state").rename("run", "backfill-1")
    file = place / "config.toml"
    file.write_text(file.read_text() + "[poll]\ncontracts = [2]\n")  # a backfill may have other contracts
    command = ["--config", str(file), "gaps", "retry", "--use", "backfill-1", *words]
    assert run(command) == 0
    assert capfd.readouterr().out == f"{1 if words else 3} will be tried when the same backfill is run again\n"


@pytest.mark.parametrize("words", [(), ("2",)])
def test_a_gap_is_due_by_the_clock_that_the_replicas_share(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    # The time is that of the shared clock. By the clock of a machine that is ahead, the gap would be tried too late.
    monkeypatch.setattr("poller.store.sqlite.State.shared_now", lambda state: START + 100.5)
    assert run(["--config", str(place / "config.toml"), "gaps", "retry", *words]) == 0
    with closing(Stores(place / "state").open("run")) as state:
        assert min(gap.next_try_at for gap in state.gaps.find()) <= START + 100
