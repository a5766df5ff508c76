"""The store on a database whose settings are not the usual ones, with texts as they come from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from poller.core.errors import EXIT_STATE, StateError
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window
from poller.store.journal import Action, Person
from poller.store.rows import DeadLetter
from tests.postgres import Server
from tests.states import NOW, START, claimed, commit, events, taken
from tests.unit.test_store_database_errors import stores

_databases = count()
OUTSIDE = "\0 \ud800 \udfff\ud83d € \U0001f600 \ud83d\ude00 "
KEPT = "\ufffd \ufffd \ufffd\ufffd € \U0001f600 \U0001f600 "


@pytest.fixture
def database(postgres_server: Server) -> Iterator[Callable[..., str]]:
    """Makes a database with these settings, and returns its URL."""
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
