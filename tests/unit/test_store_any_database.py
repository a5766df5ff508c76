"""The store on a database with unusual settings, and with any texts from outside."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from poller.checks.state import check_state
from poller.config.checks import BadValueError, check_identifier
from poller.core.errors import EXIT_STATE, StateError
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window
from poller.store.journal import Action, Person
from poller.store.postgres import schema
from poller.store.rows import DeadLetter
from tests.postgres import Server
from tests.states import NOW, START, claimed, commit, enrolled, events, next_batch, settle, taken
from tests.support import wait_until
from tests.unit.test_store_database_errors import stores

_databases = count()
OUTSIDE = "\0 \ud800 \udfff\ud83d € \U0001f600 \ud83d\ude00 "
KEPT = "\ufffd \ufffd \ufffd\ufffd € \U0001f600 \U0001f600 "


@pytest.fixture
def database(postgres_server: Server) -> Iterator[Callable[..., str]]:
    """A function that makes a database with these settings and returns its URL."""
    made = []

    def make(encoding: str = "UTF8", **settings: str) -> str:
        name = f"any_{next(_databases)}"
        postgres_server.sql(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
        )
        made.append(name)
        for setting, value in settings.items():
            postgres_server.sql(f"ALTER DATABASE {name} SET {setting} = {value}")
        return postgres_server.url(name)

    yield make
    for name in made:
        postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "WIN1252", "EUC_JP"])
def test_a_database_that_cannot_hold_every_text_is_refused_with_the_remedy(
    database: Callable[..., str], tmp_path: Path, encoding: str
) -> None:
    opened = stores(database(encoding), tmp_path)
    for work in (opened.prepare, lambda: opened.open("run"), opened.uses, opened.dump):
        with pytest.raises(StateError, match=f"is encoded in {encoding}, and must be in UTF8") as error:
            work()
        assert (error.value.exit_code, "createdb -E UTF8 -T template0" in error.value.hint) == (EXIT_STATE, True)
    (found,) = opened.diagnose(1)
    assert (found.level, found.message, found.exit_code) == ("fail", error.value.message, EXIT_STATE)


@pytest.mark.backends("postgres")
def test_no_text_from_outside_can_stop_the_store(state: Any) -> None:
    state.contracts.share(["1"])
    unread = Unread(Window(START + 7, START + 8), UNREADABLE, OUTSIDE)
    commit(state, events(1, 2), unread=[unread], kept=events(1, 2))
    with claimed(state) as claim:
        claim.record_poll(NOW, OUTSIDE)
    with taken(state, "out") as place:
        place.batch(10, 10**6)
        place.postpone_contract("1", 1, 1.0, 2.0, OUTSIDE)
        place.postpone(1, 1.0, 2.0, OUTSIDE, parked_at=None)
    (sink,) = state.outbox.sinks()
    assert sink.failure == KEPT
    with taken(state, "out") as place:
        batch = place.batch(1, 10**6, "1")
        assert batch is not None
        place.settle(1, dead=[DeadLetter(batch.events[0], 400, OUTSIDE)], now=NOW)
    state.remember("fact", OUTSIDE)
    state.journal.add(Action(Person(1, OUTSIDE), "test", OUTSIDE, reason=OUTSIDE))
    assert (state.overview().contracts[0].failure, state.fact("fact")) == (KEPT, KEPT)
    assert len(state.journal.unseen()) == 1
    assert [letter.reason for letter in state.dead_letters.find()] == [KEPT]
    assert [gap.reason for gap in state.gaps.find()] == [KEPT]
    assert state.contracts.share(["1", OUTSIDE]) == ["1"]


def test_what_is_read_is_what_was_written_whatever_the_settings(database: Callable[..., str], tmp_path: Path) -> None:
    url = database(
        extra_float_digits="-15", bytea_output="escape", datestyle="'German, DMY'", standard_conforming_strings="off",
        timezone="'Asia/Kathmandu'", default_transaction_isolation="serializable", client_encoding="LATIN1",
    )  # fmt: skip
    state = enrolled(stores(url, tmp_path).open("run"))
    state.contracts.share(["1"])
    commit(state, events(1, 2))
    settle(state, "out", 1, now=1764458721.1234567)
    with taken(state, "out") as place:
        place.postpone(1, 1764458721.1234567, 1764458799.7654321, "why € \\'", parked_at=None)
    (sink,) = state.outbox.sinks()
    assert (sink.succeeded_at, sink.retry_at, sink.failure) == (1764458721.1234567, 1764458799.7654321, "why € \\'")
    batch = next_batch(state, "out", 1)
    assert batch is not None
    assert batch.events[0].line == b'{"n":2}'
    state.close()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_replicas_that_start_at_once_on_an_empty_database_make_its_tables_once(
    database: Callable[..., str], postgres_server: Server, tmp_path: Path, level: str
) -> None:
    url = database(default_transaction_isolation=f"'{level}'")
    applied: list[object] = []

    def start() -> None:
        try:
            applied.append(stores(url, tmp_path, "fresh").prepare())
        except StateError as error:
            applied.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(url) as gate:
        gate.execute("SELECT pg_advisory_xact_lock(%s)", (schema._LOCK,))
        for thread in threads:
            thread.start()
        wait_until(lambda: postgres_server.sql(waiting) == "2", what="two that want to make the tables")
    for thread in threads:
        thread.join()
    assert sorted(map(str, applied)) == sorted(["[]", str([*range(1, schema.SCHEMA_VERSION + 1)])])


def test_no_transaction_has_the_isolation_that_the_database_prefers(
    database: Callable[..., str], tmp_path: Path
) -> None:
    opened = stores(database(default_transaction_isolation="serializable"), tmp_path)

    def level(connection: Any) -> object:
        return connection.execute("SHOW transaction_isolation").fetchone()[0]

    opened.prepare()
    assert opened._database.write(level) == "read committed"
    assert opened._database.write(level, is_of_one_moment=True) == "repeatable read"
    assert opened._database.read(level) == "repeatable read"
    with opened._database.connect() as raw, raw.transaction():
        assert level(raw) == "read committed"


def test_every_word_that_a_server_reserves_is_refused_as_a_name_of_a_schema(postgres_server: Server) -> None:
    words = postgres_server.sql("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')").split()
    assert {"user", "order", "default", "all", "left"} <= {*words}
    for word in words:
        with pytest.raises(BadValueError, match="is a word of PostgreSQL's own"):
            check_identifier(word)
    allowed = postgres_server.sql("SELECT word FROM pg_get_keywords() WHERE catcode IN ('U', 'C')").split()
    assert [check_identifier(word) for word in allowed if not word.startswith("pg_")]


# What `check` says


def found_by(opened: Any) -> list[tuple[str, str]]:
    return [(found.level, found.message) for found in check_state(opened, 1 << 30)]


def test_check_names_the_rights_that_a_role_lacks(
    database: Callable[..., str], postgres_server: Server, tmp_path: Path
) -> None:
    url = database()
    stores(url, tmp_path, "s").prepare()
    name = url.rpartition("/")[2]
    postgres_server.sql("CREATE ROLE weak LOGIN")
    rights = ["SELECT", "INSERT", "UPDATE", "DELETE"]
    postgres_server.sql("GRANT USAGE ON SCHEMA s TO weak; GRANT SELECT ON s.schema_version TO weak", name)
    for missing in rights:
        postgres_server.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA s TO weak", name)
        weak = stores(postgres_server.url(name, "weak"), tmp_path, "s")
        assert not [message for level, message in found_by(weak) if level == "fail"]
        postgres_server.sql(f"REVOKE {missing} ON s.ledger, s.uses FROM weak", name)
        assert ("fail", "the role lacks rights on ledger, uses") in found_by(weak)
    postgres_server.sql(f"REVOKE {', '.join(rights)} ON ALL TABLES IN SCHEMA s FROM weak", name)
    postgres_server.sql("DROP OWNED BY weak", name)
    postgres_server.sql("DROP ROLE weak")


def test_check_says_whether_it_can_see_the_transactions_of_others(
    database: Callable[..., str], postgres_server: Server, tmp_path: Path
) -> None:
    url = database()
    name = url.rpartition("/")[2]
    postgres_server.sql("CREATE ROLE nosy LOGIN")
    nosy = stores(postgres_server.url(name, "nosy"), tmp_path, "s")
    with psycopg.connect(url) as other:
        other.execute("SELECT 1")
        lines = found_by(nosy)
        assert ("warn", "open transactions of other roles cannot be seen (1 session)") in lines
        assert not any("oldest" in message for _, message in lines)
        postgres_server.sql("GRANT pg_read_all_stats TO nosy")
        lines = found_by(nosy)
        assert any("the oldest open transaction" in message for _, message in lines)
        assert not any("cannot be seen" in message for _, message in lines)
    postgres_server.sql("DROP ROLE nosy")


def test_check_says_of_a_state_in_a_database_what_it_says_of_one_in_files(
    database: Callable[..., str], tmp_path: Path
) -> None:
    from poller.store.sqlite import Stores as FileStores

    said = []
    for opened in (FileStores(tmp_path / "files"), stores(database(), tmp_path)):
        for use in ("fetch", "run"):
            state = enrolled(opened.open(use))
            state.contracts.share(["1"])
            commit(state, [], unread=[Unread(Window(START, START + 60), UNREADABLE, "500")])
            state.contracts.enrol(["2"], "default", 2**33, 2**33)
            state.close()
        said.append([message for level, message in found_by(opened) if level == "warn" and "off" not in message])
    files, in_database = said
    assert len(files) == 4
    assert in_database == files
