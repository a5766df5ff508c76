"""Polls that bring nothing new: their cost, that values in memory are checked again, and that nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poller.core.errors import LeaseLostError, StateUnavailableError
from poller.core.events import Event
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window
from poller.store.postgres.database import Connection, Database
from poller.store.protocols import State
from poller.store.rows import Prepared, WindowRead
from tests.states import FIRST_MINUTE, NOW, START, claimed, commit, enrolled, events, settle, waiting

CONTRACTS = [str(number) for number in range(1, 101)]
postgres = pytest.mark.backends("postgres")


@pytest.fixture
def two(opened: Callable[[], Any]) -> Iterator[tuple[Any, Any]]:
    """Two replicas of one use, with the sink `out`; the first holds all contracts."""
    one, other = enrolled(opened()), opened()
    one.contracts.enrol(CONTRACTS, "default", START, START)
    one.contracts.share(CONTRACTS)
    yield one, other
    one.close()
    other.close()


def poll(state: State, contract: str, *new: int, window: Window = FIRST_MINUTE) -> None:
    """Collect a window as a poll does, and record the success."""
    found = events(*new)
    state.outbox.size(below=10**9)
    with claimed(state, contract) as claim:
        assert not claim.ranges()
        assert not claim.gaps()
        claim.commit(WindowRead(window, found, len(found), NOW, advance_to=window.end), Prepared)
        claim.record_poll(NOW, "")


def row(state: State, contract: str = "1") -> Any:
    found = state.contracts.get(contract)
    assert found is not None
    return found


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The executed statements, without BEGIN, limits and COMMIT."""
    found: list[str] = []
    real = Connection.execute

    def execute(self: Connection, query: str, *args: Any, **kwargs: Any) -> Any:
        found.append(query)
        return real(self, query, *args, **kwargs)

    monkeypatch.setattr(Connection, "execute", execute)
    return found


@postgres
def test_a_hundred_quiet_polls_cost_a_few_statements(two: tuple[Any, Any], statements: list[str]) -> None:
    one, _ = two
    for contract in CONTRACTS:
        poll(one, contract, 1, 2)
    one.contracts.share(CONTRACTS)
    statements.clear()
    later = Window(START, START + 120)
    for contract in CONTRACTS:
        poll(one, contract, 1, 2, window=later)
    one.contracts.flush()
    assert len(statements) <= 5, statements
    rows = one.contracts.all()
    assert {(found.watermark, found.fetched, found.new, found.seen) for found in rows} == {(later.end, 4, 2, 2)}
    assert {found.succeeded_at for found in rows} == {NOW}
    assert one.overview().imbalances() == []


def test_a_quiet_poll_shows_at_once_and_after_a_restart(opened: Callable[[], State]) -> None:
    state = enrolled(opened())
    poll(state, "1", 1)
    poll(state, "1", 1, window=Window(START, START + 120))
    poll(state, "1", window=Window(START + 60, START + 180))
    assert (row(state).watermark, row(state).succeeded_at, row(state).seen) == (START + 180, NOW, 1)
    poll(state, "1", window=Window(START + 60, START + 240))
    state.close()
    again = opened()
    assert row(again).watermark == START + 240
    assert again.overview().imbalances() == []
    again.close()


def test_after_a_quiet_poll_what_is_new_is_new_and_what_was_seen_is_not(state: State) -> None:
    poll(state, "1", 1)
    poll(state, "1", 1, window=Window(START, START + 120))
    done = commit(state, events(1, 2), window=Window(START, START + 180))
    assert done.unseen == events(2)
    assert waiting(state, "out") == [1, 2]
    assert state.overview().imbalances() == []


def test_a_failure_that_is_over_is_forgotten_by_a_quiet_poll(state: State) -> None:
    with claimed(state) as claim:
        claim.record_poll(NOW, "no answer")
    assert row(state).failure == "no answer"
    poll(state, "1")
    assert (row(state).failure, row(state).failed_at) == ("", NOW)


def test_a_span_to_be_read_again_is_seen_by_the_next_poll(state: State) -> None:
    poll(state, "1", 1)
    state.contracts.add_range("1", FIRST_MINUTE, "repair")
    with claimed(state) as claim:
        assert [span.window for span in claim.ranges()] == [FIRST_MINUTE]


def test_a_claim_knows_the_gaps_that_it_has_opened(state: State) -> None:
    poll(state, "1", 1)
    unread = Unread(Window(START + 70, START + 71), UNREADABLE, "why", ())
    read = WindowRead(Window(START + 60, START + 120), [], 0, NOW, advance_to=START + 120, unread=[unread])
    with claimed(state) as claim:
        claim.commit(read, Prepared)
        assert [gap.window for gap in claim.gaps()] == [unread.window]
    with claimed(state) as claim:
        assert [gap.window for gap in claim.gaps()] == [unread.window]


@postgres
def test_a_quiet_poll_of_a_contract_that_another_replica_took_writes_nothing(two: tuple[Any, Any]) -> None:
    one, other = two
    poll(one, "1", 1)
    poll(one, "1", 1, window=Window(START, START + 120))
    one._database.write(
        lambda connection: connection.execute(
            "UPDATE contracts SET holder = %s WHERE use_id = %s", (other._joined().token, one._use)
        )
    )
    one.contracts.flush()
    assert row(one).watermark == FIRST_MINUTE.end
    with claimed(one) as claim, pytest.raises(LeaseLostError):
        claim.commit(WindowRead(FIRST_MINUTE, events(2), 1, NOW, advance_to=START + 180), Prepared)


@postgres
def test_what_a_failover_took_back_is_not_covered_by_a_quiet_poll(two: tuple[Any, Any]) -> None:
    """The ledger lost an entry that this replica has in memory. It must be read and stored again."""
    one, _ = two
    commit(one, events(1))
    before = one.contracts.get("1")

    def fail_over(connection: Any) -> None:
        connection.execute("DELETE FROM segments WHERE use_id = %s", (one._use,))
        connection.execute("DELETE FROM ledger WHERE use_id = %s", (one._use,))
        connection.execute(
            "UPDATE contracts SET segment = 0, commits = 0, new = 0, fetched = 0, put_events = 0, outbox_events = 0,"
            " outbox_bytes = 0, watermark = origin WHERE use_id = %s",
            (one._use,),
        )

    one._database.write(fail_over)
    poll(one, "1", 1, window=Window(START, START + 120))
    assert row(one).watermark == START < before.watermark
    poll(one, "1", 1, window=Window(START, START + 120))
    assert (row(one).watermark, waiting(one, "out")) == (START + 120, [1])
    assert one.overview().imbalances() == []


@postgres
def test_what_another_replica_collected_meanwhile_is_asked_for_again(two: tuple[Any, Any]) -> None:
    one, other = two
    poll(one, "1", 1)
    one.contracts.share([])
    poll(other, "1", 1, 2, window=Window(START, START + 120))
    other.contracts.share([])
    poll(one, "1", 1, 2, window=Window(START, START + 180))
    assert (row(one).new, row(one).watermark) == (2, START + 180)
    assert waiting(one, "out") == [1, 2]


@pytest.fixture
def locked(two: tuple[Any, Any]) -> Iterator[None]:
    """The row of contract 1 is locked by an open transaction."""
    with two[0]._database.connect() as somebody:
        schema = two[0]._database.schema
        somebody.execute("BEGIN")
        somebody.execute(f"SELECT 1 FROM {schema}.contracts WHERE contract = '1' FOR UPDATE")  # noqa: S608 - the test's own name
        yield


@postgres
def test_a_contract_that_somebody_has_locked_holds_up_no_other(two: tuple[Any, Any], locked: None) -> None:
    # One statement wrote all quiet polls, and it waited for that row. The replica then polled nothing, and gave no contract to
    # another one.
    one, other = two
    for contract in ("1", "2", "3"):
        poll(one, contract, window=Window(START, START + 120))
    one.contracts.flush()
    told = {row.contract: (row.watermark, row.succeeded_at) for row in one.overview().contracts}
    assert (told["1"], told["2"], told["3"]) == ((START, None), *[(START + 120, NOW)] * 2)
    assert other.contracts.share(CONTRACTS) == []
    wanted = [*CONTRACTS[1:], "1"]
    assert len(one.contracts.share(wanted)) == 50
    assert len(other.contracts.share(wanted)) == 50
    assert one.contracts.share([]) == []
    assert row(one).holder, "it is given back when it is free"


@postgres
def test_a_replica_that_began_anew_remembers_nothing(two: tuple[Any, Any], statements: list[str]) -> None:
    one, _ = two
    poll(one, "1", 1)
    one.contracts.flush()
    one._joined()._register()
    one._database.write(lambda connection: connection.execute("UPDATE contracts SET holder = NULL"))
    statements.clear()
    poll(one, "1", 1, window=Window(START, START + 120))
    assert any("FROM ledger" in query for query in statements)
    assert (row(one).watermark, row(one).new) == (START + 120, 1)


@postgres
def test_an_earlier_watermark_of_a_failover_is_not_moved_on_from_memory(two: tuple[Any, Any]) -> None:
    one, _ = two
    poll(one, "1", window=Window(START, START + 3600))
    one.contracts.flush()
    query = "UPDATE contracts SET watermark = %s WHERE contract = '1'"
    one._database.write(lambda connection: connection.execute(query, (START + 60,)))
    poll(one, "1", window=Window(START + 3500, START + 7200))
    assert row(one).watermark == START + 60


@postgres
def test_a_span_that_another_process_wants_read_is_found_with_the_next_look_at_the_share(two: tuple[Any, Any]) -> None:
    one, other = two
    poll(one, "1")
    other.contracts.add_range("1", FIRST_MINUTE, "repair")
    one.contracts.share(CONTRACTS)
    with claimed(one) as claim:
        assert [span.purpose for span in claim.ranges()] == ["repair"]


@postgres
def test_quiet_polls_that_could_not_be_written_are_read_again(
    two: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = two
    poll(one, "1", 1)
    one.contracts.flush()

    def away(*_: Any) -> Any:
        raise StateUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", away)
        poll(one, "1", 1, window=Window(START, START + 120))
        with pytest.raises(StateUnavailableError):
            one.contracts.flush()
    assert row(one).watermark == FIRST_MINUTE.end
    poll(one, "1", 1, window=Window(START, START + 120))
    assert row(one).watermark == START + 120


@postgres
def test_a_contract_with_many_entries_in_its_overlap_is_asked_for_in_the_ledger(two: tuple[Any, Any]) -> None:
    one, _ = two
    many = range(40)
    poll(one, "1", *many)
    poll(one, "1", *many, window=Window(START, START + 120))
    found: list[Event] = one.contracts.unseen("1", events(*many))
    assert (found, row(one).watermark, row(one).new) == ([], START + 120, 40)


@postgres
def test_the_size_of_the_outbox_is_asked_for_again_where_it_may_be_full(
    two: tuple[Any, Any], statements: list[str]
) -> None:
    one, _ = two
    assert one.outbox.size(below=100).used_bytes == 0
    statements.clear()
    assert one.outbox.size(below=100).used_bytes == 0
    assert statements == []
    commit(one, events(*range(50)))
    size = one.outbox.size()
    assert one.outbox.size(below=100) == size
    assert size.bytes > 100


@postgres
def test_pruning_costs_a_contract_without_anything_old_no_statement(
    two: tuple[Any, Any], statements: list[str]
) -> None:
    one, _ = two
    poll(one, "1", 1, 2)
    statements.clear()
    one.prune(35 * 86_400, 600, NOW)
    assert len(statements) < 15, statements
    assert row(one).new == 2


@postgres
def test_what_an_interrupted_forget_left_in_the_outbox_is_deleted_by_the_next_pruning(
    two: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = two
    one.outbox.register("slow", "http")
    commit(one, events(1, 2))
    settle(one, "out", 2, now=NOW)
    with monkeypatch.context() as patch:
        patch.setattr(one.outbox, "sweep", lambda: None)
        one.outbox.forget("slow")
    assert one.outbox.size().events == 2
    one.prune(35 * 86_400, 600, NOW)
    assert one.outbox.size().events == 0
    assert one.overview().imbalances() == []
