"""Adopting the state of the old script: which times are used, and which files are refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from poller.core.errors import ConfigError
from poller.pipeline.adopt import adopt
from poller.store.journal import Action, Person
from poller.store.sqlite import State

NOW = 1_800_000_000


def by() -> Action:
    return Action(Person(1000, "anna"), "fetch --adopt-state", clock=lambda: NOW)


@pytest.fixture
def fresh(directory: Path) -> State:
    return State.open(directory, "fetch")


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("2026-05-01T07:42:20+00:00", 1_777_621_340),
        ("2026-05-01T09:42:20+02:00", 1_777_621_340),
        ("2026-05-01T07:42:20", 1_777_621_340),  # the script wrote UTC in every time zone
    ],
)
def test_it_begins_where_the_script_stopped(
    fresh: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, since: int
) -> None:
    monkeypatch.setenv("TZ", "XYZ+7")
    time.tzset()
    file = tmp_path / "old.json"
    file.write_text(f'{{"last_run": "{text}"}}')
    adopt(file, fresh, ["default"], now=NOW, by=by())
    assert fresh.requested_reread("default") == since
    last = fresh.overview().last_action
    assert last is not None
    assert (last.login, last.action) == ("anna", "fetch --adopt-state")
    fresh.close()
    monkeypatch.undo()
    time.tzset()


def test_a_state_that_has_begun_is_left_as_it_is(state: State, tmp_path: Path) -> None:
    adopt(tmp_path / "missing.json", state, ["default"], now=NOW, by=by())
    assert state.requested_reread("default") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"last_run": 7}',
        '{"last_run": "1969-12-31T00:00:00"}',
    ],
)
def test_what_is_no_state_of_the_script_changes_nothing(fresh: State, tmp_path: Path, content: str) -> None:
    file = tmp_path / "old.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="not a state of the tutorial's script"):
        adopt(file, fresh, ["default"], now=NOW, by=by())
    with pytest.raises(ConfigError, match="cannot be read"):
        adopt(tmp_path / "missing.json", fresh, ["default"], now=NOW, by=by())
    assert fresh.requested_reread("default") is None
    fresh.close()


def test_a_last_run_in_the_future_is_refused_in_words_of_its_own(fresh: State, tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    file.write_text('{"last_run": "2099-01-01T00:00:00"}')
    with pytest.raises(ConfigError, match=r"last_run in .*, 2099-01-01T00:00:00, lies in the future .check the clock"):
        adopt(file, fresh, ["default"], now=NOW, by=by())
    assert fresh.requested_reread("default") is None
    fresh.close()
