"""Problems of the state that end by themselves are distinguished from those that need a person."""

from __future__ import annotations

import errno
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from poller.core.errors import EXIT_INCOMPLETE, StateError, StateFullError, StateUnavailableError
from poller.store.sqlite import State, Stores, database
from poller.store.sqlite.translation import as_passing, translated_os, translated_reading
from tests.states import with_a_sink

pytestmark = pytest.mark.backends("sqlite")


@pytest.fixture
def locked(state: State, directory: Path) -> Iterator[sqlite3.Connection]:
    """The connection of another program that locks the state until it rolls back."""
    with closing(sqlite3.connect(directory / "fetch.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_a_state_that_another_program_has_locked_is_unavailable_and_works_again_later(
    state: State, locked: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.0)
    with pytest.raises(StateUnavailableError, match="another program has the state locked") as raised:
        state.remember("a", "1")
    assert raised.value.exit_code == EXIT_INCOMPLETE
    locked.execute("ROLLBACK")
    state.remember("a", "1")
    assert state.fact("a") == "1"


def test_while_one_thread_waits_for_a_locked_state_the_others_can_read_it(
    state: State, locked: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 60.0)
    waiter = threading.Thread(target=lambda: state.remember("a", "1"))
    waiter.start()
    for _ in range(3):
        assert state.overview().imbalances() == []
        assert waiter.is_alive()
    locked.execute("ROLLBACK")
    waiter.join(10)
    assert state.fact("a") == "1"


def test_a_state_that_is_locked_at_the_start_is_unavailable(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.store.sqlite.connection._OPENING_SECONDS", 0.05)
    with_a_sink(directory).close()
    with closing(sqlite3.connect(directory / "fetch.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StateUnavailableError):
            State.open(directory, "fetch")
        with pytest.raises(StateUnavailableError):
            Stores(directory).attach("fetch")
    State.open(directory, "fetch").close()
    assert not list(directory.glob("*unusable*"))


def error_of(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_FULL, StateFullError),
        (sqlite3.SQLITE_BUSY, StateUnavailableError),
        (sqlite3.SQLITE_BUSY_RECOVERY, StateUnavailableError),
        (sqlite3.SQLITE_PROTOCOL, StateUnavailableError),
        (sqlite3.SQLITE_IOERR_WRITE, StateUnavailableError),
        (sqlite3.SQLITE_IOERR_FSYNC, StateUnavailableError),
        (sqlite3.SQLITE_IOERR_READ, type(None)),
        (sqlite3.SQLITE_CANTOPEN, type(None)),
        (sqlite3.SQLITE_READONLY, type(None)),
        (sqlite3.SQLITE_CORRUPT, type(None)),
        (sqlite3.SQLITE_ERROR, type(None)),
    ],
)
def test_what_may_pass_is_told_from_what_needs_a_person(tmp_path: Path, code: int, expected: type) -> None:
    assert type(as_passing(tmp_path / "run.db", error_of(code))) is expected


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CANTOPEN])
def test_a_quota_that_is_used_up_counts_as_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    path = tmp_path / "run.db"
    assert type(as_passing(path, error_of(code))) is StateFullError
    with pytest.raises(StateFullError), translated_reading(path):
        raise error_of(code)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, StateFullError),
        (errno.EDQUOT, StateFullError),
        (errno.EMFILE, StateUnavailableError),
        (errno.EACCES, StateError),
        (errno.EROFS, StateError),
    ],
)
def test_what_the_system_says_of_a_file_is_told_apart_as_well(tmp_path: Path, number: int, expected: type) -> None:
    with pytest.raises(StateError) as raised, translated_os(tmp_path):
        raise OSError(number, "it says")
    assert type(raised.value) is expected
