"""The journal on a real file: a line is committed together with its action, or neither is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from poller.store.journal import Action, JournalEntry, Person
from poller.store.letters import StoredLetter
from poller.store.rows import DeadLetter
from poller.store.sqlite import Stores, spots
from poller.store.sqlite.overview import journal_of
from tests.states import NOW, commit, events, next_batch, patch_pieces, postpone, settle, with_a_sink

ANNA = Person(1000, "anna")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A state with four dead letters of the sink `out`."""
    with closing(with_a_sink(tmp_path / "state")) as state:
        commit(state, events(1, 2, 3, 4))
        batch = next_batch(state, "out", 9, 10**9)
        assert batch is not None
        settle(state, "out", 4, dead=[DeadLetter(one, 400, "no") for one in batch.events], now=NOW)
    return tmp_path / "state"


def entries(directory: Path) -> list[JournalEntry]:
    return journal_of(directory / "fetch.db", since=0, limit=None)


def test_what_is_done_in_pieces_has_one_line_that_says_how_much_was_done(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_pieces(monkeypatch, "PIECE_LETTERS", 2)
    with closing(Stores(directory).attach("fetch")) as state:

        def interrupted() -> Iterator[StoredLetter]:
            yield from state.dead_letters.find()[:3]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            state.dead_letters.purge(interrupted(), by=Action(ANNA, "purge", reason="old", clock=lambda: NOW))
        (entry,) = entries(directory)
        assert (entry.affected, len(state.dead_letters.find())) == (2, 2)
        state.dead_letters.replay(state.dead_letters.find(), NOW, by=Action(ANNA, "replay", clock=lambda: NOW))
    assert entries(directory) == [
        JournalEntry(1, NOW, 1000, "anna", "", "purge", "", 2, "old", None),
        JournalEntry(2, NOW, 1000, "anna", "", "replay", "", 2, "", None),
    ]


def fail(*args: object, **options: object) -> None:
    raise RuntimeError("the disk is full")


def test_what_does_not_happen_has_no_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Stores(directory).attach("fetch")) as state:
        action = Action(ANNA, "purge")
        assert state.dead_letters.purge([], by=action) == 0
        assert not state.outbox.forget("nobody", by=action)
        assert action.entry is None
        with monkeypatch.context() as patch:
            patch.setattr(spots, "count_letters", fail)
            with pytest.raises(RuntimeError):
                state.dead_letters.purge(state.dead_letters.find(), by=action)
            with pytest.raises(RuntimeError):
                state.dead_letters.replay(state.dead_letters.find(), NOW, by=action)
        assert len(state.dead_letters.find()) == 4
    assert entries(directory) == []


def test_a_person_is_shown_with_the_login_behind_sudo() -> None:
    assert [str(ANNA), str(Person(0, "root", "anna"))] == ["anna", "root (sudo: anna)"]


def test_a_retry_has_a_line_if_the_sink_waited_and_none_otherwise(directory: Path) -> None:
    with closing(Stores(directory).attach("fetch")) as state:
        by = Action(ANNA, "sinks retry", "out", clock=lambda: NOW)
        assert not state.outbox.retry("out", NOW, by=by)
        assert entries(directory) == []
        postpone(state, "out", 1, NOW, NOW + 60, "down")
        assert state.outbox.retry("out", NOW + 1, by=by)
        assert state.outbox.retry_at("out") == NOW + 1
        assert state.outbox.retry("out", NOW + 9)
        assert state.outbox.retry_at("out") == NOW + 1, "not later than it was"
        assert state.outbox.retry_at("unknown") is None
    assert [(entry.action, entry.subject, entry.affected) for entry in entries(directory)] == [
        ("sinks retry", "out", None)
    ]
