"""Pruning: rows of the ledger are deleted in small pieces, their counts stay, and the disk space is freed in steps."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from poller.core.errors import StateError
from poller.core.windows import Window
from poller.store.sqlite import State, database, ledger, outbox
from poller.store.sqlite.overview import Collected
from poller.store.sqlite.schema import APPLICATION_ID, migrate, with_functions
from tests.states import HOUR, START, commit, event, events, open_state, settle, with_a_sink

DAYS = 3
HOURS = DAYS * 24


def collect(state: State, hours: int = HOURS) -> None:
    """Two entries in every hour."""
    for hour in range(hours):
        second = START + hour * HOUR
        found = [event(2 * hour, second), event(2 * hour + 1, second + 9)]
        commit(state, found, window=Window(second, second + HOUR), now=second)


def rows_of(state: State, table: str) -> int:
    with state._database.reading() as connection:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - one of two names


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "PIECE_ROWS", 10)
    monkeypatch.setattr(outbox, "PIECE_SEGMENTS", 10)
    monkeypatch.setattr(database, "_VACUUM_PAGES", 10)
    monkeypatch.setattr(database, "_GIVE_WAY_SECONDS", 0.0)


def largest_transaction(said: list[str], word: str) -> int:
    return max(part.count(word) for part in "\n".join(said).split("COMMIT"))


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.backends("sqlite")
def test_pruned_rows_go_away_piece_by_piece_and_their_numbers_stay(state: State) -> None:
    collect(state)
    end = START + HOURS * HOUR
    before = state.contracts.counts("1", START, end)
    said: list[str] = []
    state._database._connection.set_trace_callback(said.append)
    state.prune(HOUR, 600, end)
    assert largest_transaction(said, "DELETE FROM ledger") == 10
    assert (rows_of(state, "ledger"), rows_of(state, "forgotten")) == (1, DAYS)
    after = state.contracts.counts("1", START, end)
    assert {hour: count.collected for hour, count in after.items()} == {
        hour: count.collected for hour, count in before.items()
    }
    assert sum(count.forgotten for count in after.values()) == 2 * (HOURS - 1)
    # A part of a day, and a day that gets more entries later.
    assert list(state.contracts.counts("1", START + 2 * HOUR, START + 4 * HOUR)) == [START + 2 * HOUR, START + 3 * HOUR]
    commit(state, [event(9999, START)], window=Window(end - 60, end), now=START)
    state.prune(HOUR, 600, end)
    assert state.contracts.counts("1", START, START + HOUR) == {START: ledger.Count(3, 3)}


@pytest.mark.backends("sqlite")
def test_a_piece_is_as_small_as_the_bytes_of_its_identities_ask_for(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "PIECE_BYTES", 50)  # two entries are 32 bytes
    collect(state, 10)
    said: list[str] = []
    state._database._connection.set_trace_callback(said.append)
    state.prune(0, 0, START + 10 * HOUR)
    assert largest_transaction(said, "DELETE FROM ledger") == 2
    assert rows_of(state, "ledger") == 0


def test_what_a_span_that_is_still_to_be_read_may_meet_again_is_not_forgotten(state: State) -> None:
    collect(state, 5)
    now = START + 200 * HOUR
    state.contracts.add_range("1", Window(START + 2 * HOUR, START + 3 * HOUR), "repair")
    state.contracts.add_range("1", Window(START + HOUR, START + 2 * HOUR), "repair")
    commit(state, [], window=Window(now - 60, now))
    state.prune(100 * HOUR, 600, now)
    collected = [event(2 * hour, START + hour * HOUR) for hour in range(5)]
    assert state.contracts.unseen("1", collected) == collected[:1]


@pytest.mark.backends("sqlite")
def test_where_nothing_is_old_enough_nothing_is_written(state: State) -> None:
    collect(state, 5)
    said: list[str] = []
    state._database._connection.set_trace_callback(said.append)
    state.prune(100 * HOUR, 600, START + 5 * HOUR)
    assert not [sql for sql in said if sql.startswith("BEGIN IMMEDIATE")]


def test_rows_that_an_older_version_pruned_go_away_too(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    with closing(with_functions(sqlite3.connect(directory / "fetch.db", isolation_level=None))) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA journal_mode = WAL")
        migrate(connection, until=2)
        connection.execute(
            "INSERT INTO contracts (contract, account, origin, watermark) VALUES ('1', 'default', ?, ?)",
            (START, START + 9 * HOUR),
        )
        connection.executemany(
            "INSERT INTO ledger (contract, hour, is_timed, first_us, last_us, updated_at, identities, forgotten)"
            " VALUES ('1', ?, 1, 0, 0, ?, x'', ?)",
            [(START // HOUR + hour, START, hour + 1) for hour in range(5)],
        )
    with closing(open_state(directory)) as state:
        before = state.contracts.counts("1", START, START + 5 * HOUR)
        state.prune(HOUR, 600, START + 9 * HOUR)
        assert rows_of(state, "ledger") == 0
        assert state.contracts.counts("1", START, START + 5 * HOUR) == before
        assert [count.forgotten for count in before.values()] == [1, 2, 3, 4, 5]


def test_what_is_collected_after_a_sink_came_counts_as_that_though_all_before_was_pruned(directory: Path) -> None:
    with closing(with_a_sink(directory)) as state:
        collect(state, 5)
        state.outbox.register("newer", "file")
        state.prune(0, 0, START + 5 * HOUR)
        assert rows_of(state, "ledger") == 0
        for number in (101, 102):
            commit(state, events(number))
        assert rows_of(state, "ledger") == 1, "of one hour: the second is added to the first"
        with closing(Collected(directory / "fetch.db", ["newer"])) as other:
            assert other.unseen("1", events(0, 101, 102, 103)) == events(0, 103)


@pytest.mark.backends("sqlite")
def test_a_flipped_bit_in_the_numbers_of_a_day_is_told_from_a_number(state: State) -> None:
    collect(state, 5)
    state.prune(0, 0, START + 5 * HOUR)
    with state._database.transaction() as connection:
        (blob,) = connection.execute("SELECT counts FROM forgotten").fetchone()
        connection.execute("UPDATE forgotten SET counts = ?", (blob[:-1] + bytes([blob[-1] ^ 1]),))
    with pytest.raises(StateError, match="damaged"):
        state.contracts.counts("1", START, START + HOUR)


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.backends("sqlite")
def test_what_waited_for_a_forgotten_sink_is_deleted_in_pieces_and_an_interrupt_is_made_up_for(state: State) -> None:
    state.outbox.register("gone", "file")
    for number in range(35):
        commit(state, events(number))
    settle(state, "out", 35, now=START)
    said: list[str] = []
    connection = state._database._connection
    connection.set_trace_callback(said.append)
    connection.execute("CREATE TEMP TABLE struck (x)")
    connection.execute(
        "CREATE TEMP TRIGGER fault BEFORE DELETE ON segments WHEN old.id = 15 BEGIN SELECT RAISE(ABORT, 'fault'); END"
    )
    with pytest.raises(StateError, match="fault"):
        state.outbox.forget("gone")
    assert state.outbox.size().events == 25
    assert [sink.name for sink in state.outbox.sinks()] == ["out"]
    connection.execute("DROP TRIGGER fault")
    state.outbox.register("new", "file")
    assert state.outbox.size()[:2] == (0, 0)
    assert state.overview().imbalances() == []
    assert (
        len(
            [
                sql
                for sql in said
                if sql.startswith("DELETE FROM segments WHERE id IN (SELECT id FROM segments WHERE id")
            ]
        )
        >= 4
    )


@pytest.mark.usefixtures("in_small_pieces")
def test_space_is_given_back_in_steps(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_VACUUM_BYTES", 1024 * 1024)
    with closing(with_a_sink(directory)) as state:
        commit(state, [event(number, line=b"x" * 10_000) for number in range(300)])
        settle(state, "out", 300, now=START)
        said: list[str] = []
        state._database._connection.set_trace_callback(said.append)
        state.prune(HOUR, 600, START)
    steps = [sql for sql in said if "incremental_vacuum(10)" in sql]
    assert len(steps) > 30
    assert largest_transaction(said, "incremental_vacuum") == 1
    assert (directory / "fetch.db").stat().st_size < 300_000


def test_all_space_is_given_back_at_once_in_the_end(directory: Path) -> None:
    with closing(with_a_sink(directory)) as state:
        commit(state, [event(number, line=b"x" * 10_000) for number in range(300)])
        settle(state, "out", 300, now=START)
        commit(state, [event(1000 + number) for number in range(5)])
        state.shrink()
        said: list[str] = []
        state._database._connection.set_trace_callback(said.append)
        state.shrink()
        assert not [sql for sql in said if "auto_vacuum" in sql], "nothing is free: nothing is to be written"
        assert mode_of(directory / "fetch.db") == INCREMENTAL
        assert state.outbox.size().events == 5
    assert (directory / "fetch.db").stat().st_size < 300_000


def test_a_state_of_which_the_shrinking_was_killed_does_not_shrink_with_each_commit(directory: Path) -> None:
    with_a_sink(directory).close()
    with closing(sqlite3.connect(directory / "fetch.db")) as connection:
        connection.execute("PRAGMA auto_vacuum = FULL")
    assert mode_of(directory / "fetch.db") != INCREMENTAL
    with_a_sink(directory).close()
    assert mode_of(directory / "fetch.db") == INCREMENTAL


INCREMENTAL = 2


def mode_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA auto_vacuum").fetchone()[0])


def test_what_was_added_lately_to_an_old_hour_is_not_forgotten(state: State) -> None:
    collect(state, 10)
    end = START + 10 * HOUR
    late, old = event(999, START + 30), event(2, START + HOUR)
    commit(state, [late], now=end, advance=False)  # of the first hour, but shown late
    state.prune(2 * HOUR, 600, end + 60)
    assert state.contracts.unseen("1", [late, old]) == [old]


def test_what_is_collected_in_an_hour_after_a_sink_came_counts_apart_from_what_came_before(directory: Path) -> None:
    with closing(with_a_sink(directory)) as state:
        commit(state, [event(1)])
        state.outbox.register("new", "file")
        commit(state, [event(2)])
    with closing(Collected(directory / "fetch.db", ["out", "new"])) as collected:
        assert collected.unseen("1", [event(1), event(2)]) == [event(1)]
    with closing(Collected(directory / "fetch.db", ["out"])) as collected:
        assert collected.unseen("1", [event(1), event(2)]) == []
