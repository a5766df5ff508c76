"""A failover to a standby that lacks the last commits: everything goes back except what this process has in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from poller.core.errors import LeaseLostError
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window
from poller.store.journal import FORGET_SINK, Action, Person
from poller.store.postgres import registrations
from poller.store.postgres.registrations import Registrations
from poller.store.postgres.schema import TABLES
from poller.store.rows import Prepared, WindowRead
from tests.states import FIRST_MINUTE, NOW, START, claimed, commit, enrolled, events, settle, taken, waiting
from tests.support import wait_until

pytestmark = pytest.mark.backends("postgres")

SECOND_MINUTE, THIRD_MINUTE = Window(START + 60, START + 120), Window(START + 120, START + 180)


@pytest.fixture
def one(opened: Callable[[], Any]) -> Iterator[Any]:
    """A state with contract 1 and the sink `out`."""
    state = enrolled(opened())
    state.contracts.share(["1"])
    yield state
    state.close()


class Standby:
    """A copy of a use as it is now. `promote` puts it back in place of all later commits."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._run(
            lambda table: [f"DROP TABLE IF EXISTS kept_{table}", f"CREATE TABLE kept_{table} AS {self._of(table)}"]
        )

    def promote(self) -> None:
        self._run(
            lambda table: [
                f"DELETE FROM {table} WHERE use_id = {self._state._use}",  # noqa: S608 - names of ours
                f"INSERT INTO {table} OVERRIDING SYSTEM VALUE SELECT * FROM kept_{table}",  # noqa: S608 - the same
            ]
        )
        # A sequence goes back, too: it gives the same number again.
        again = "SELECT setval(pg_get_serial_sequence('ranges', 'id'), coalesce(max(id), 1), max(id) IS NOT NULL) FROM ranges"
        self._state._database.write(lambda connection: connection.execute(again))

    def _of(self, table: str) -> str:
        return f"SELECT * FROM {table} WHERE use_id = {self._state._use}"  # noqa: S608 - names of ours

    def _run(self, statements: Callable[[str], list[str]]) -> None:
        self._state._database.write(
            lambda connection: [connection.execute(query) for table in TABLES for query in statements(table)]
        )


def read(window: Window, *numbers: int, unread: tuple[Unread, ...] = (), of_range: int | None = None) -> WindowRead:
    to = None if of_range else window.end
    new = events(*numbers)
    return WindowRead(window, new, len(new), NOW, advance_to=to, unread=unread, next_try_at=NOW + 60, of_range=of_range)


# What a claim has in memory


@pytest.mark.parametrize("is_gap", [True, False], ids=["gap", "quiet"])
def test_a_window_whose_commit_was_lost_is_read_again_though_it_had_no_entry(one: Any, is_gap: bool) -> None:
    unread = (Unread(SECOND_MINUTE, UNREADABLE, "500"),) if is_gap else ()
    claim = one.contracts.claim("1")
    claim.commit(read(FIRST_MINUTE, 1), Prepared)
    standby = Standby(one)
    claim.commit(read(SECOND_MINUTE, unread=unread), Prepared)
    one.contracts.flush()
    standby.promote()
    with pytest.raises(LeaseLostError):
        claim.commit(read(THIRD_MINUTE, 3), Prepared)
    claim.release()
    with claimed(one) as again:
        assert again.row.watermark == FIRST_MINUTE.end
        again.commit(read(SECOND_MINUTE, unread=unread), Prepared)
        again.commit(read(THIRD_MINUTE, 3), Prepared)
        assert len(again.gaps()) == is_gap
    assert one.contracts.get("1").watermark == THIRD_MINUTE.end
    assert one.overview().imbalances() == []


@pytest.mark.parametrize("does_end", [True, False])
def test_a_span_that_has_the_number_of_a_lost_one_is_not_ended_for_it(one: Any, does_end: bool) -> None:
    standby = Standby(one)
    one.contracts.add_range("1", Window(START + 5000, START + 6000), "since")
    claim = one.contracts.claim("1")
    (span,) = claim.ranges()
    standby.promote()
    one.contracts.share(["1"])
    one.contracts.add_range("1", Window(START + 100, START + 200), "repair")
    (other,) = one.contracts.ranges("1")
    assert other.id == span.id
    with pytest.raises(LeaseLostError):
        claim.end_range(span.id) if does_end else claim.commit(read(span.window, of_range=span.id), Prepared)
    claim.release()
    assert one.contracts.ranges("1") == [other]


# The registration of a sink


def lost(state: Any, *, numbers: tuple[int, ...] = (1, 2)) -> Standby:
    """A promoted standby without the sink `new`, which was registered and got these entries after the copy."""
    standby = Standby(state)
    state.outbox.register("new", "http")
    commit(state, events(*numbers))
    settle(state, "new", len(numbers), now=NOW)
    standby.promote()
    state.contracts.share(["1"])
    return standby


def collect_again(state: Any) -> None:
    """Poll twice. The first poll seems to bring nothing new; only its write finds that the entries are missing."""
    commit(state, events(1, 2))
    state.contracts.flush()
    commit(state, events(1, 2))


def test_nothing_is_deleted_before_a_sink_that_was_lost_is_known_again(
    one: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    lost(one)
    collect_again(one)
    settle(one, "out", 2, now=NOW)
    assert [record.message for record in caplog.records] == ["sink.registered_again"]
    assert waiting(one, "new") == [1, 2]
    commit(one, events(3))
    settle(one, "out", 1, now=NOW)
    settle(one, "new", 3, now=NOW)
    assert one.overview().imbalances() == []
    assert one.outbox.size().events == 0


def test_it_is_known_again_while_nothing_is_written(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = one.outbox.take("out")
    monkeypatch.setattr(registrations, "_LOOK_SECONDS", 0.0)
    lost(one)
    assert place.batch(10, 1000) is None
    assert [sink.name for sink in one.outbox.sinks()] == ["new", "out"]
    place.release()
    assert one.overview().imbalances() == []


def test_its_own_place_is_not_taken_for_settled(one: Any) -> None:
    standby = Standby(one)
    one.outbox.register("new", "http")
    commit(one, events(1, 2))
    place = one.outbox.take("new")
    place.batch(10, 1000)
    standby.promote()
    one.contracts.share(["1"])
    with pytest.raises(LeaseLostError):
        place.settle(2, now=NOW)
    place.release()
    collect_again(one)
    assert waiting(one, "new") == [1, 2]


def test_taking_it_makes_it_known_again(one: Any) -> None:
    lost(one)
    assert waiting(one, "new") == []
    assert [sink.name for sink in one.outbox.sinks()] == ["new", "out"]


@pytest.mark.parametrize("by_another", [True, False])
def test_one_that_a_person_has_forgotten_stays_forgotten(
    one: Any, opened: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, by_another: bool
) -> None:
    monkeypatch.setattr(registrations, "_LOOK_SECONDS", 0.0)
    one.outbox.register("new", "http")
    other = opened()
    (other if by_another else one).outbox.forget("new", by=Action(Person(0, "ada"), FORGET_SINK, "new"))
    other.close()
    commit(one, events(1))
    settle(one, "out", 1, now=NOW)
    with taken(one, "out") as place:
        assert place.batch(10, 1000) is None
    assert [sink.name for sink in one.outbox.sinks()] == ["out"]
    # If it is registered again, it is kept like any other sink.
    lost(one, numbers=(2,))
    one.outbox.take("new").release()
    assert [sink.name for sink in one.outbox.sinks()] == ["new", "out"]


def test_a_sink_that_becomes_known_beside_collecting_and_delivering_gets_all_that_comes_after_it(
    one: Any, opened: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = opened()
    commit(one, events(1, 2))
    settle(one, "out", 2, now=NOW)
    real, is_reached, may_go_on = Registrations._forgettings, threading.Event(), threading.Event()

    def slow(self: Any, connection: Any, names: Any) -> Any:
        is_reached.set()
        may_go_on.wait(30)
        return real(self, connection, names)

    def work() -> None:
        commit(one, events(3, 4, 5))
        settle(one, "out", 3, now=NOW)

    def is_waited_for() -> bool:
        query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        return bool(one._database.read(lambda connection: connection.execute(query).fetchone())[0])

    monkeypatch.setattr(Registrations, "_forgettings", slow)
    with ThreadPoolExecutor(2) as pool:
        registered = pool.submit(other.outbox.register, "new", "http")
        assert is_reached.wait(30)
        worked = pool.submit(work)
        wait_until(lambda: worked.done() or is_waited_for(), what="the others are done, or wait")
        may_go_on.set()
        registered.result()
        worked.result()
    monkeypatch.undo()
    other.close()
    overview = one.overview()
    assert overview.imbalances() == []
    assert waiting(one, "new") == [3, 4, 5]
