"""Dead letters in the state: their books, which show a loss, and how hundreds of thousands of them are processed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from poller.core.errors import StateError
from poller.store.journal import Action, Person
from poller.store.letters import LetterBooks
from poller.store.rows import DeadLetter
from poller.store.sqlite import State, Stores
from poller.store.sqlite.schema import APPLICATION_ID, migrate, with_functions
from tests.states import NOW, START, commit, events, next_batch, open_state, patch_pieces, settle, waiting

PIECE = 3


def refuse(state: State, *numbers: int) -> None:
    """Events that the sink `out` refuses for good."""
    commit(state, events(*numbers))
    batch = next_batch(state, "out", len(numbers), 10**9)
    assert batch is not None
    letters = [DeadLetter(item, 400, "bad") for item in batch.events]
    settle(state, "out", len(letters), dead=letters, now=NOW)


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_pieces(monkeypatch, "PIECE_LETTERS", PIECE)
    monkeypatch.setattr("poller.store.sqlite.database._GIVE_WAY_SECONDS", 0.0)


def test_what_became_of_every_letter_is_in_the_books(state: State) -> None:
    refuse(state, 1, 2, 3, 4, 5)
    assert state.overview().letters == {"out": LetterBooks(written=5, at_hand=5)}
    state.dead_letters.replay(state.dead_letters.find(limit=2), NOW)
    state.dead_letters.purge(state.dead_letters.find(limit=1))
    assert state.overview().letters == {"out": LetterBooks(written=5, at_hand=2, replayed=2, purged=1)}
    assert state.overview().imbalances() == []
    assert state.dead_letters.replay([], NOW) == state.dead_letters.purge([]) == 0


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, -(10**30)])
def test_a_number_that_no_letter_has_is_none(state: State, number: int) -> None:
    refuse(state, 1, 2)
    first = state.dead_letters.numbers()[0]
    assert state.dead_letters.numbers(ids=(number,)) == state.dead_letters.find("out", (number,)) == []
    assert state.dead_letters.numbers(ids=(number, first)) == [first]


def test_the_books_of_letters_outlive_the_sink_they_are_of(state: State) -> None:
    refuse(state, 1, 2)
    state.outbox.forget("out")
    assert state.dead_letters.replay(state.dead_letters.find(), NOW) == 0
    assert state.dead_letters.purge(state.dead_letters.find(limit=1)) == 1
    assert state.overview().letters == {"out": LetterBooks(written=2, at_hand=1, purged=1)}
    state.outbox.register("out", "stdout")
    assert state.dead_letters.replay(state.dead_letters.find(), NOW) == 1
    assert state.overview().letters == {"out": LetterBooks(written=2, replayed=1, purged=1)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "DELETE FROM dead_letters WHERE id = 2",
            "dead letters of out: written 3, but at hand 2 + replayed 0 + purged 0 = 2",
        ),
        ("DELETE FROM letter_books", "dead letters of out: written 0, but at hand 3 + replayed 0 + purged 0 = 3"),
        (
            "UPDATE letter_books SET purged = 1",
            "dead letters of out: written 3, but at hand 3 + replayed 0 + purged 1 = 4",
        ),
    ],
)
@pytest.mark.backends("sqlite")
def test_a_letter_that_disappears_otherwise_shows_in_the_books(state: State, change: str, expected: str) -> None:
    refuse(state, 1, 2, 3)
    with state._database.transaction() as connection:
        connection.execute(change)
    assert state.overview().imbalances() == [expected]


def test_an_older_state_is_upgraded_to_books_that_balance(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with closing(with_functions(sqlite3.connect(directory / "fetch.db", isolation_level=None))) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, until=2)
        for name, dead in (("none", 0), ("purged", 5), ("again", 0)):  # `again` was forgotten, then added again
            connection.execute(
                "INSERT INTO sinks (name, type, segment, position, assigned, dead, ledger_id) VALUES (?, 'file', 0, 0, ?, ?, 0)",
                (name, dead, dead),
            )
        for name in ("purged", "purged", "again", "gone"):
            connection.execute(
                "INSERT INTO dead_letters (sink, contract, time_us, collected_at, identity, ordinal, line, reason, died_at)"
                " VALUES (?, '1', 0, 0, x'00', 0, x'7b7d', 'bad', 0.0)",
                (name,),
            )
    with closing(open_state(directory)) as state:
        assert state.overview().imbalances() == []
        assert state.outbox.size().letter_bytes == 4 * len(b"{}")
        assert state.overview().letters == {
            "again": LetterBooks(written=1, at_hand=1),
            "gone": LetterBooks(written=1, at_hand=1),
            "purged": LetterBooks(written=5, at_hand=2, purged=3),
        }


# In pieces


def statements_of(state: State) -> list[str]:
    """The first words of the statements that SQLite runs from now on."""
    said: list[str] = []
    before = ""

    def note(sql: str) -> None:
        nonlocal before
        if sql != before:  # Python reports a statement again for each of its triggers
            said.append(sql.split(maxsplit=1)[0])
        before = sql

    state._database._connection.set_trace_callback(note)
    return said


def largest_transaction(said: list[str], word: str) -> int:
    return max(part.count(word) for part in " ".join(said).split("COMMIT"))


def test_letters_of_several_contracts_are_replayed_and_counted_together(state: State) -> None:
    state.contracts.enrol(["2"], "default", START, START)
    refuse(state, 1, 2, 3)
    commit(state, events(4), contract="2")
    batch = next_batch(state, "out")
    assert batch is not None
    settle(state, "out", 1, dead=[DeadLetter(batch.events[0], 400, "no")], now=NOW)
    by = Action(Person(1, "anna"), "replay")
    assert state.dead_letters.replay(state.dead_letters.find(), NOW, by=by) == 4
    assert by.entry is not None
    assert by.entry.affected == 4
    assert sorted(waiting(state, "out")) == [1, 2, 3, 4]
    assert state.overview().imbalances() == []


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.backends("sqlite")
def test_replay_and_purge_change_a_piece_of_the_letters_in_each_transaction(state: State) -> None:
    refuse(state, *range(20))
    said = statements_of(state)
    chosen = state.dead_letters.numbers(ids=range(1, 11))
    assert state.dead_letters.replay(state.dead_letters.each(chosen), NOW) == 10
    assert state.dead_letters.purge(state.dead_letters.each(state.dead_letters.numbers())) == 10
    assert largest_transaction(said, "DELETE") == PIECE
    assert sorted(waiting(state, "out")) == list(range(10))
    assert state.overview().imbalances() == []


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.backends("sqlite")
def test_letters_are_read_a_piece_at_a_time_however_many_or_large_they_are(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(state, *range(20))
    numbers = state.dead_letters.numbers()
    said = statements_of(state)
    letters = state.dead_letters.each(numbers)
    next(letters)
    assert said.count("SELECT") == PIECE
    assert len(list(letters)) == 19
    patch_pieces(monkeypatch, "PIECE_BYTES", 1)
    said.clear()
    next(state.dead_letters.each(numbers))
    assert said.count("SELECT") == 1
    assert [letter.id for letter in state.dead_letters.find(ids=[7, 3, 99])] == [3, 7]
    assert [letter.id for letter in state.dead_letters.find("out", limit=2)] == [1, 2]


@pytest.mark.backends("sqlite")
def test_a_piece_of_large_letters_is_as_small_as_their_bytes_ask_for(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_pieces(monkeypatch, "PIECE_BYTES", 10)
    refuse(state, *range(6))
    said = statements_of(state)
    assert state.dead_letters.purge(state.dead_letters.find()) == 6
    assert largest_transaction(said, "DELETE") == 2  # each letter has 7 bytes


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.backends("sqlite")
def test_a_replay_that_fails_halfway_is_finished_by_the_same_command(state: State) -> None:
    refuse(state, *range(8))
    connection = state._database._connection
    connection.execute(
        "CREATE TEMP TRIGGER fault BEFORE DELETE ON dead_letters WHEN old.id = 5 BEGIN SELECT RAISE(ABORT, 'fault'); END"
    )
    with pytest.raises(StateError, match="fault"):
        state.dead_letters.replay(state.dead_letters.find(), NOW)
    assert sorted(waiting(state, "out")) == [0, 1, 2]
    assert state.overview().imbalances() == []
    connection.execute("DROP TRIGGER fault")
    assert state.dead_letters.replay(state.dead_letters.find(), NOW) == 5
    assert sorted(waiting(state, "out")) == list(range(8))
    assert state.overview().imbalances() == []


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.backends("sqlite")
def test_letters_that_somebody_else_deals_with_meanwhile_are_left_to_them(state: State, directory: Path) -> None:
    refuse(state, *range(8))
    letters = state.dead_letters.each(state.dead_letters.numbers())
    first = next(letters)
    with closing(Stores(directory).attach("fetch")) as beside:
        assert beside.dead_letters.purge(beside.dead_letters.find(ids=[1, 2, 7])) == 3
    assert state.dead_letters.replay([first, *letters], NOW) == 5
    assert state.overview().letters == {"out": LetterBooks(written=8, replayed=5, purged=3)}


def test_letters_count_against_the_limit_of_the_outbox_until_they_are_gone(state: State) -> None:
    refuse(state, 1, 2, 3)
    lines = sum(len(letter.line) for letter in state.dead_letters.find())
    size = state.outbox.size()
    assert (size.bytes, size.letter_bytes, size.used_bytes) == (0, lines, lines)
    assert state.overview().outbox == size
    state.dead_letters.purge(state.dead_letters.find(ids=[1]))
    state.dead_letters.replay(state.dead_letters.find(), NOW)
    size = state.outbox.size()
    assert (size.letter_bytes, size.used_bytes) == (0, size.bytes)


@pytest.mark.backends("sqlite")
def test_what_letters_weigh_is_counted_anew_when_a_state_is_opened_for_work(state: State, directory: Path) -> None:
    refuse(state, 1)
    right = state.outbox.size()
    with closing(sqlite3.connect(directory / "fetch.db")) as raw, raw:
        raw.execute("UPDATE outbox_size SET letter_bytes = 1 << 40")
    state.outbox.recount()
    assert state.outbox.size() == right


def test_an_event_that_is_replayed_keeps_what_tells_it_from_its_duplicates(state: State) -> None:
    found = [msgspec.structs.replace(event, ordinal=number) for number, event in enumerate(events(1, 2, 3))]
    commit(state, found)
    batch = next_batch(state, "out", 3, 10**9)
    assert batch is not None
    settle(state, "out", 3, dead=[DeadLetter(item, 400, "bad") for item in batch.events], now=NOW)
    state.dead_letters.replay(state.dead_letters.find(), NOW)
    again = next_batch(state, "out", 3, 10**9)
    assert again is not None
    assert [(item.identity, item.ordinal) for item in again.events] == [(item.identity, item.ordinal) for item in found]
