"""A state in which a value was changed: this is found when the state is opened or read, before the value is used."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from poller.core.errors import StateError
from poller.core.evidence.batches import pack
from poller.core.evidence.compose import Facts, compose
from poller.core.evidence.digest import encode
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window
from poller.store.journal import Action, Person
from poller.store.protocols import State
from poller.store.rows import DeadLetter
from poller.store.sqlite import soundness
from poller.store.sqlite.inspection import schema_of
from poller.store.sqlite.overview import overview_of
from tests.archives import entry
from tests.states import FIRST_MINUTE, HOUR, START, commit, event, events, next_batch, open_state, settle, taken


def columns_of(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as raw:
        tables = raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return [
            (table, column)
            for (table,) in tables.fetchall()
            for (column,) in raw.execute("SELECT name FROM pragma_table_info(?)", (table,))
        ]


def with_an_archive(state: State) -> None:
    """Add a row to each table of an archive."""
    head = state.archives.begin("archive", START)
    packed = pack([entry(1, 0)], head.number + 1, b"".join)

    def seal(facts: Facts) -> tuple[bytes, bytes]:
        objects = [one.entry for one in packed]
        return encode(
            compose(facts, objects, written_at=START, program="", entry_format="raw", key=None, next_key=None)
        ), b"signature"

    with taken(state, "out") as place:
        state.archives.prepare("archive", place, 1, packed, seal, START, writer="other")
        state.archives.complete("archive", 1, START)
        packed = pack([entry(2, 0)], 2, b"".join)
        state.archives.prepare("archive", place, 1, packed, seal, START)


def test_a_value_of_another_type_is_found_in_any_column_before_anything_is_made_of_it(directory: Path) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    state.contracts.add_range("1", FIRST_MINUTE, "since")
    state.outbox.register("out", "stdout")
    commit(state, events(1, 2, 3), kept=events(1, 2))
    unread = Unread(FIRST_MINUTE, UNREADABLE, "no entry", (b"1",))
    commit(state, [event(9, START - 5 * HOUR)], now=START - 4 * HOUR, unread=[unread])
    state.prune(HOUR, 0, START)
    batch = next_batch(state, "out", 1, 1000)
    assert batch is not None
    letter = DeadLetter(batch.events[0], 400, "test")
    settle(state, "out", 1, dead=[letter], now=START)
    commit(state, events(11, 12), window=Window(START + 60, START + 120))
    with taken(state, "out") as place:
        place.batch(10, 10**6)
        place.postpone_contract("1", 3, START, START + 60, "refused")
    state.remember("name", "value")
    state.request_reread(["default"], START, by=Action(Person(0, "root"), "fetch --since"))
    with_an_archive(state)
    with taken(state, "out") as place:
        place.postpone_contract("1", 1, START, START + 60, "HTTP 429")
    state.close()
    path = directory / "fetch.db"
    content = path.read_bytes()
    columns = columns_of(path)
    assert len(columns) > 60
    for table, column in columns:
        path.write_bytes(content)
        with closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.create_function("crc32", 1, lambda text: 4711, deterministic=True)
            kind = raw.execute(f"SELECT typeof({column}) FROM {table}").fetchone()[0]  # noqa: S608 - the same
            odd = "'text'" if kind == "blob" else "x'41'"
            with suppress(sqlite3.IntegrityError):  # a row's number: SQLite itself checks it
                raw.execute(f"UPDATE {table} SET {column} = {odd}")  # noqa: S608 - names of our own schema
            if raw.total_changes == 0:
                continue
        with pytest.raises(StateError, match="damaged"):
            schema_of(path)
        with pytest.raises(StateError, match="damaged"):
            overview_of(path)
        with pytest.raises(StateError, match="set aside"):
            open_state(directory)
        (aside,) = directory.glob("*.unusable-*")
        aside.unlink()


@pytest.mark.parametrize(("at", "byte"), [(47, b"\x05"), (18, b"\x03")])
def test_a_file_in_a_format_that_sqlite_does_not_know_is_set_aside(directory: Path, at: int, byte: bytes) -> None:
    open_state(directory).close()
    path = directory / "fetch.db"
    content = path.read_bytes()
    path.write_bytes(content[:at] + byte + content[at + 1 :])
    with pytest.raises(StateError, match="set aside"):
        open_state(directory)


@pytest.mark.parametrize("version", [0, -1])
def test_a_file_of_ours_without_a_schema_number_is_damaged_and_not_made_anew(directory: Path, version: int) -> None:
    open_state(directory).close()
    with closing(sqlite3.connect(directory / "fetch.db", isolation_level=None)) as raw:
        raw.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StateError, match="damaged"):
        schema_of(directory / "fetch.db")
    with pytest.raises(StateError, match="set aside") as raised:
        open_state(directory)
    assert "--since" in raised.value.hint


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"watermark INTEGER NOT NULL", b"watermark \xffNTEGER NOT NULL"),
        (b"watermark INTEGER NOT NULL", b"waterbark INTEGER NOT NULL"),
        (b"CREATE INDEX ledger_hours", b"CREATE INDEX ledger_yours"),
    ],
)
def test_a_table_that_is_not_as_it_was_made_is_damaged(directory: Path, before: bytes, after: bytes) -> None:
    open_state(directory).close()
    path = directory / "fetch.db"
    content = path.read_bytes()
    path.write_bytes(content.replace(before, after, 1))
    with pytest.raises(StateError, match="damaged"):
        schema_of(path)
    with pytest.raises(StateError, match="set aside"):
        open_state(directory)


@pytest.mark.parametrize("is_large", [True, False])
def test_a_large_file_is_not_looked_through_at_each_start(
    directory: Path, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    open_state(directory).close()
    path = directory / "fetch.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("INSERT INTO facts VALUES ('odd', 7.5)")
        raw.execute("UPDATE facts SET value = CAST('x' AS BLOB) WHERE name = 'odd'")
    monkeypatch.setattr(soundness, "QUICK_CHECK_BYTES", path.stat().st_size - is_large)
    if is_large:
        open_state(directory).close()
    else:
        with pytest.raises(StateError, match="set aside"):
            open_state(directory)


def test_a_count_of_the_outbox_gone_wrong_does_not_pause_collecting_for_ever(directory: Path) -> None:
    state = open_state(directory)
    state.contracts.enrol(["1"], "default", START, START)
    state.outbox.register("out", "stdout")
    commit(state, events(1, 2))
    before = state.outbox.size()
    state.close()
    with closing(sqlite3.connect(directory / "fetch.db", isolation_level=None)) as raw:
        raw.execute("UPDATE outbox_size SET bytes = bytes + (1 << 40), events = 0")
    state = open_state(directory)
    assert state.outbox.size() == before
    state.close()
