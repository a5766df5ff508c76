"""Two replicas on one state in PostgreSQL: who holds what. A replica that lost something can do nothing with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from poller.config import Config, Filter, Poll, Rule, load
from poller.core.errors import LeaseLostError, StateHeldError, StateUnavailableError
from poller.core.events import Event
from poller.core.windows import Window
from poller.store.postgres.database import Connection, Database
from poller.store.rows import Batch, DeadLetter, Prepared, WindowRead
from tests.states import NOW, START, claim_all, claimed, commit, enrolled, events, waiting
from tests.support import wait_until

pytestmark = pytest.mark.backends("postgres")

CONTRACTS = [str(number) for number in range(1, 8)]


@pytest.fixture
def two(opened: Callable[[], Any]) -> Iterator[tuple[Any, Any]]:
    """Two replicas of one use, with seven contracts and the sink `out`."""
    one, other = enrolled(opened()), opened()
    one.contracts.enrol(CONTRACTS, "default", START, START)
    yield one, other
    one.close()
    other.close()


def expire(state: Any) -> None:
    """Let the lease of a replica end, as if it was paused for too long."""
    query = "UPDATE replicas SET expires_at = clock_timestamp() - interval '1 second' WHERE token = %s"
    state._database.write(lambda connection: connection.execute(query, (state._joined().token,)))


def let_time_pass(replica: Any) -> None:
    """Make free contracts count as free for longer than a lease."""
    replica._free_since = dict.fromkeys(replica._free_since, -1e9)


def read(*numbers: int) -> WindowRead:
    new = events(*numbers)
    return WindowRead(Window(START, START + 60), new, len(new), NOW, advance_to=START + 60)


def keep(fresh: list[Event]) -> Prepared:
    return Prepared(fresh)


def batch_of(place: Any) -> Batch:
    found = place.batch(10**9, 10**9)
    assert found is not None
    return found


def test_nobody_holds_a_state_that_is_not_there_yet(postgres_stores: Any) -> None:
    assert postgres_stores.holder("never-opened") is None


def test_when_a_state_was_created_is_told_by_the_clock_of_the_database(
    postgres_stores: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1e9)  # the clock of this machine is years behind
    state = postgres_stores.open("run")
    assert state.overview().created_at == pytest.approx(state.shared_now(), abs=60)


def test_contracts_are_shared_out_and_one_that_leaves_gives_its_share_back(two: tuple[Any, Any]) -> None:
    one, other = two
    assert one.contracts.share(CONTRACTS) == CONTRACTS
    assert other.contracts.share(CONTRACTS) == []
    assert len(one.contracts.share(CONTRACTS)) == 4
    assert len(other.contracts.share(CONTRACTS)) == 3
    assert {row.holder != "" for row in one.contracts.all()} == {True}
    assert [replica.contracts for replica in one.overview().replicas] == [4, 3]
    other.close()
    assert one.contracts.share(CONTRACTS) == CONTRACTS


def test_a_reload_is_known_to_the_others_with_the_next_sign_of_life(two: tuple[Any, Any]) -> None:
    one, other = two
    for state in two:
        state.contracts.share(CONTRACTS)
    assert one.overview().replica_troubles() == []
    changed = Config(filter=Filter(exclude=(Rule(action="GET"),)))
    one.adopt_config(changed)
    one._joined().renew()
    assert "different configurations" in other.overview().replica_troubles()[0]
    other.adopt_config(changed)
    other._joined().renew()
    assert one.overview().replica_troubles() == []
    # A replica that lost its lease, or released everything, starts again with the same configuration.
    expire(one)
    one._joined().renew()
    other.close()
    other.contracts.share(CONTRACTS)
    assert (len(one.overview().replicas), one.overview().replica_troubles()) == (2, [])


def test_what_a_reload_leaves_out_is_taken_by_replicas_that_want_it(two: tuple[Any, Any]) -> None:
    one, other = two
    one.contracts.share(CONTRACTS)
    other.contracts.share(CONTRACTS)
    few = Config(poll=Poll(contracts=tuple(CONTRACTS[:1])))
    one.adopt_config(few)
    one._joined().renew()
    assert len(one.contracts.share(CONTRACTS[:1])) == 1
    for _ in range(2):
        taken = other.contracts.share(CONTRACTS)
        let_time_pass(other._joined())
    assert {*taken, CONTRACTS[0]} == set(CONTRACTS), "else nobody polls what one of them does not want"


def test_what_was_collected_of_a_contract_that_is_not_polled_any_more_is_delivered(two: tuple[Any, Any]) -> None:
    # Nobody held a contract that the configuration left out, so its waiting events stayed in the outbox for ever.
    one, other = two
    for state in two:
        state.contracts.share(CONTRACTS)
    commit(one, events(1))
    wanted = CONTRACTS[1:]
    place = one.outbox.take("out")
    for _ in range(3):
        assert one.contracts.share(wanted) == CONTRACTS[1:4]
        other.contracts.share(wanted)
        assert place.batch(10, 10**6) is None, "who polls it may take it for two leases"
    let_time_pass(one._joined())
    assert one.contracts.share(wanted) == CONTRACTS[1:4]
    assert len(batch_of(place).events) == 1
    assert other.contracts.share(wanted) == CONTRACTS[4:]
    place.settle(1, now=NOW)
    one.contracts.share(wanted)
    assert one.contracts.get("1").holder == "", "nothing waits of it any more"


def test_a_contract_that_is_held_only_to_be_delivered_goes_to_who_polls_it(two: tuple[Any, Any]) -> None:
    one, other = two
    one.contracts.share(CONTRACTS)
    commit(one, events(1))
    wanted = CONTRACTS[1:]
    for _ in range(2):
        one.contracts.share(wanted)
        let_time_pass(one._joined())
    assert one.contracts.get("1").holder
    assert "1" not in other.contracts.share(CONTRACTS)
    one._joined()._spared_until["1"] -= 60  # a minute later
    one.contracts.share(wanted)
    assert "1" in other.contracts.share(CONTRACTS)


def test_a_sink_that_one_replica_could_not_send_to_waits_no_more_when_another_one_has_sent_all_of_it(
    two: tuple[Any, Any],
) -> None:
    # A sink that was parked with the key of a former replica was shown as parked for ever, although everything was delivered.
    one, other = two
    for state in (one, other, one, other):
        state.contracts.share(CONTRACTS)
    theirs = other.contracts.share(CONTRACTS)
    mine = one.contracts.share(CONTRACTS)
    places = [state.outbox.take("out") for state in two]
    commit(one, events(1), contract=mine[0])
    commit(other, events(2), contract=theirs[0])
    batch_of(places[0])
    places[0].postpone(3, NOW + 1, NOW + 60, "HTTP 401", parked_at=NOW + 1)

    def deliver(number: int) -> bool:
        """Deliver the events of the other replica. Returns: whether the sink still counts as parked."""
        batch_of(places[1])
        places[1].settle(1, now=NOW)
        (row,) = other.outbox.sinks()
        assert (row.attempts > 0) == (row.parked_at is not None) == bool(row.failure)
        commit(other, events(number), contract=theirs[0], now=NOW + 9)
        return row.parked_at is not None

    assert deliver(3), "what the first one has waits still"
    places[0].release()
    one.close()
    assert deliver(4), "and now nobody has it"
    other.contracts.share(CONTRACTS)
    batch_of(places[1])
    places[1].settle(2, now=NOW)
    assert other.outbox.sinks()[0].parked_at is None
    assert other.overview().imbalances() == []


def test_a_try_that_is_asked_for_on_a_machine_whose_clock_is_ahead_is_due_where_it_is_made(
    two: tuple[Any, Any],
) -> None:
    one, other = two
    one.contracts.share(CONTRACTS)
    commit(one, events(1))
    place = one.outbox.take("out")
    place.postpone(1, NOW, NOW + 600, "HTTP 503", parked_at=None)
    place.postpone_contract("1", 1, NOW, NOW + 600, "HTTP 503")
    assert other.outbox.retry("out", NOW + 7200)
    assert one.outbox.retry_at("out") <= NOW
    assert [row.retry_at <= NOW for row in place.postponed()] == [True]


def test_who_wants_no_share_leaves_all_to_those_who_do(two: tuple[Any, Any]) -> None:
    # Half of the contracts had no holder while a repair read its few contracts, or a replica had no list of contracts yet.
    one, other = two
    other.outbox.take("out")  # it has joined
    assert one.contracts.share(CONTRACTS) == CONTRACTS
    with other.held():
        assert one.contracts.share(CONTRACTS) == CONTRACTS
    other.contracts.share([])
    assert one.contracts.share(CONTRACTS) == CONTRACTS
    other.contracts.share(CONTRACTS)
    assert len(one.contracts.share(CONTRACTS)) == 4
    assert len(other.contracts.share(CONTRACTS)) == 3
    other.contracts.share([])
    assert one.contracts.share(CONTRACTS) == CONTRACTS


@pytest.mark.parametrize("wanted", [["1"], ["1", "2", "8"], ["8", "9"]])
def test_what_only_one_configuration_wants_is_held_whatever_the_fair_share_is(
    two: tuple[Any, Any], wanted: list[str]
) -> None:
    one, other = two
    other.contracts.enrol(["8", "9"], "default", START, START)
    theirs = other.contracts.share(wanted)
    assert theirs == wanted
    mine = [contract for contract in CONTRACTS if contract not in wanted]
    replica = one._joined()
    assert len(one.contracts.share(CONTRACTS)) == 4
    let_time_pass(replica)
    assert len(one.contracts.share(CONTRACTS)) == 4, "with one configuration each gets its share"
    query = "UPDATE replicas SET config = 'another' WHERE token = %s"
    one._database.write(lambda connection: connection.execute(query, (other._joined().token,)))
    assert len(one.contracts.share(CONTRACTS)) == 4, "the other one may still take them"
    let_time_pass(replica)
    for _ in range(3):
        assert one.contracts.share(CONTRACTS) == mine
    replica._spared_until = {}  # as after ten minutes
    assert len(one.contracts.share(CONTRACTS)) == 4, "somebody may want them by now"
    let_time_pass(replica)
    assert len(one.contracts.share(CONTRACTS)) > 4
    one._database.write(lambda connection: connection.execute("UPDATE replicas SET config = 'the same'"))
    replica.identity = replica.identity._replace(config="the same")
    assert len(one.contracts.share(CONTRACTS)) == 4, "all have one configuration by now"
    assert {*other.contracts.share(CONTRACTS), *one.contracts.share(CONTRACTS)} == {*CONTRACTS}


def test_who_reads_without_a_share_has_what_nobody_has_until_it_is_done(two: tuple[Any, Any]) -> None:
    one, other = two
    claims = claim_all(other, ["1", "2"])
    assert one.contracts.share(CONTRACTS) == CONTRACTS[2:]
    for claim in claims:
        claim.commit(read(1), keep)
        claim.release()
    other.close()
    assert one.contracts.share(CONTRACTS) == CONTRACTS


def test_a_database_that_takes_no_writes_says_so_also_where_nothing_is_to_be_shared_out(two: tuple[Any, Any]) -> None:
    # Otherwise the sharing job succeeded on a standby, and the daemon treated the state as available again.
    one, _ = two
    one.contracts.share(CONTRACTS)
    replica = one._joined()
    with pytest.raises(StateUnavailableError, match="takes no writes"):
        one._database.read(lambda connection: replica._share(connection, replica.token, [], {*CONTRACTS}))


def test_a_contract_in_somebodys_hand_is_given_back_later(two: tuple[Any, Any]) -> None:
    one, other = two
    one.contracts.share(CONTRACTS)
    claims = claim_all(one, CONTRACTS)
    other.contracts.share(CONTRACTS)
    assert one.contracts.share(CONTRACTS) == CONTRACTS
    for claim in claims:
        claim.release()
    assert len(one.contracts.share(CONTRACTS)) == 4


def test_what_is_too_much_is_given_back_though_there_is_always_something_to_do(two: tuple[Any, Any]) -> None:
    # At every check, a poll or a batch held the contracts: a new replica never got its share.
    one, other = two
    one.contracts.share(CONTRACTS)
    for number, contract in enumerate(CONTRACTS):
        commit(one, events(number, number + 100), contract=contract)
    place = one.outbox.take("out")
    batch_of(place)
    claims = claim_all(one, CONTRACTS)
    other.contracts.share(CONTRACTS)
    assert one.contracts.share(CONTRACTS) == CONTRACTS
    for claim in claims:
        claim.release()
    begun = {claim.row.contract for claim in claim_all(one, CONTRACTS)}
    found = batch_of(place)
    assert begun == {event.contract for event in found.events}
    assert len(begun) == 4
    assert set(one.contracts.share(CONTRACTS)) == begun
    assert {*other.contracts.share(CONTRACTS)} == {*CONTRACTS} - begun
    place.ensure_held()


def test_what_is_given_back_while_a_batch_is_read_is_not_in_that_batch(
    two: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The contract belonged to the other replica when the batch was sent, so sinks without keys showed its events twice.
    one, other = two
    one.contracts.share(CONTRACTS)
    for number, contract in enumerate(CONTRACTS):
        commit(one, events(number), contract=contract)
    other.contracts.share(CONTRACTS)
    place = one.outbox.take("out")
    read, share = place._read, one._joined()._share
    is_read = threading.Event()

    def reading(*args: Any) -> Any:
        found = read(*args)
        is_read.set()
        return found

    def sharing(*args: Any) -> Any:
        delivering.start()
        assert is_read.wait(10)
        return share(*args)

    found: list[Batch] = []
    delivering = threading.Thread(target=lambda: found.append(batch_of(place)))
    monkeypatch.setattr(place, "_read", reading)
    monkeypatch.setattr(one._joined(), "_share", sharing)
    kept = one.contracts.share(CONTRACTS)
    delivering.join(10)
    assert len(kept) == 4
    assert sorted({event.contract for event in found[0].events}) == sorted(kept)
    place.ensure_held()


def test_what_an_expired_replica_held_is_taken_and_its_commit_is_refused(two: tuple[Any, Any]) -> None:
    one, other = two
    claim = one.contracts.claim("1")
    assert other.contracts.claim("1") is None
    expire(one)
    taken = other.contracts.claim("1")
    with pytest.raises(LeaseLostError):
        claim.commit(read(1), keep)
    with pytest.raises(LeaseLostError):
        claim.record_poll(NOW, "")
    assert taken.commit(read(1, 2), keep).new_count == 2
    assert one.contracts.get("1").new == 2
    assert one.overview().imbalances() == []


def test_two_that_commit_the_same_entries_store_them_once(two: tuple[Any, Any]) -> None:
    one, other = two
    claim = one.contracts.claim("1")
    claim.commit(read(1, 2), keep)
    expire(one)
    taken = other.contracts.claim("1")
    assert taken.commit(read(1, 2, 3), keep).new_count == 1
    taken.release()
    assert waiting(other, "out") == [1, 2, 3]


def test_a_replica_that_comes_back_begins_anew_under_another_token(two: tuple[Any, Any]) -> None:
    one, _ = two
    one.contracts.share(CONTRACTS)
    before = one._joined().token
    claim = one.contracts.claim("1")
    expire(one)
    one._joined().renew()
    assert one._joined().token != before
    assert one.lost_leases == 1
    with pytest.raises(LeaseLostError):
        claim.commit(read(1), keep)
    assert one.contracts.share(CONTRACTS) == CONTRACTS


def test_a_batch_of_a_replica_that_lost_its_lease_is_neither_sent_nor_settled(two: tuple[Any, Any]) -> None:
    one, other = two
    commit(one, events(1, 2))
    place = one.outbox.take("out")
    batch_of(place)
    place.ensure_held()
    expire(one)
    claim = other.contracts.claim("1")
    claim.release()
    with pytest.raises(LeaseLostError):
        place.settle(2, now=NOW)
    assert waiting(other, "out") == [1, 2]
    one._joined().renew()
    with pytest.raises(LeaseLostError):
        place.ensure_held()
    assert place.batch(10, 10**6) is None


def test_of_a_batch_what_is_still_held_is_settled_and_the_rest_is_sent_by_the_other(two: tuple[Any, Any]) -> None:
    one, other = two
    commit(one, events(1))
    commit(one, events(2), contract="2")
    place = one.outbox.take("out")
    assert len(batch_of(place).events) == 2
    one._database.write(
        lambda c: c.execute("UPDATE contracts SET holder = NULL WHERE use_id = %s AND contract = '2'", (one._use,))
    )
    claim = other.contracts.claim("2")
    claim.release()
    with pytest.raises(LeaseLostError):
        place.settle(2, now=NOW)
    assert place.batch(10, 10**6) is None
    assert waiting(other, "out") == [2]


class AnswerLost:
    """The connection breaks after COMMIT was executed and before its answer arrives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_armed = True
        execute = psycopg.Connection.execute

        def lost(connection: Any, query: Any, *args: Any, **options: Any) -> Any:
            answer = execute(connection, query, *args, **options)
            if self.is_armed and query == "COMMIT":
                self.is_armed = False
                connection.close()
                raise psycopg.OperationalError("the connection is lost")
            return answer

        monkeypatch.setattr(psycopg.Connection, "execute", lost)


def test_when_the_answer_to_a_commit_is_lost_reading_again_stores_nothing_twice(
    two: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = two
    claim = one.contracts.claim("1")
    AnswerLost(monkeypatch)
    with pytest.raises(StateUnavailableError):
        claim.commit(read(1, 2), keep)
    assert claim.commit(read(1, 2), keep).new_count == 0
    claim.release()
    assert waiting(one, "out") == [1, 2]


def test_when_the_answer_to_a_settling_is_lost_the_same_call_finds_that_it_is_done(
    two: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = two
    commit(one, events(1, 2, 3))
    place = one.outbox.take("out")
    batch = batch_of(place)
    AnswerLost(monkeypatch)
    dead = [DeadLetter(batch.events[0], 400, "no")]
    with pytest.raises(StateUnavailableError):
        place.settle(2, dead=dead, now=NOW)
    place.settle(2, dead=dead, now=NOW)
    place.settle(1, now=NOW)
    place.release()
    (sink,) = one.overview().sinks
    assert (sink.sink.delivered, sink.sink.dead, sink.waiting, sink.dead_letters) == (2, 1, 0, 1)
    assert one.overview().imbalances() == []


def fail_over(state: Any) -> None:
    """Lose all commits, as after a failover to a standby that lacked them."""

    def lose(connection: Any) -> None:
        for table in ("segments", "ledger", "places", "dead_letters", "letter_books"):
            connection.execute(f"DELETE FROM {table} WHERE use_id = %s", (state._use,))  # noqa: S608 - names of ours
        connection.execute(
            "UPDATE contracts SET segment = 0, commits = 0, new = 0, fetched = 0, put_events = 0, outbox_events = 0,"
            " outbox_bytes = 0 WHERE use_id = %s",
            (state._use,),
        )

    state._database.write(lose)


def test_a_number_that_comes_again_with_other_content_is_not_settled_for_the_old_one(two: tuple[Any, Any]) -> None:
    one, _ = two
    commit(one, events(1))
    place = one.outbox.take("out")
    batch_of(place)
    fail_over(one)
    with pytest.raises(LeaseLostError):  # what it has in memory about the contract is outdated
        commit(one, events(1, 2))
    commit(one, events(1, 2))
    with pytest.raises(LeaseLostError):
        place.settle(1, now=NOW)
    place.release()
    assert waiting(one, "out") == [1, 2]


def test_a_span_of_which_a_failover_lost_a_part_is_not_at_its_end(two: tuple[Any, Any]) -> None:
    one, _ = two
    one.contracts.add_range("1", Window(START - 120, START), "since")
    (span,) = one.contracts.ranges("1")
    claim = one.contracts.claim("1")
    claim.commit(WindowRead(Window(START - 120, START - 60), events(1), 1, NOW, of_range=span.id), keep)
    fail_over(one)
    with pytest.raises(LeaseLostError):
        claim.end_range(span.id)
    claim.release()
    assert [span.id] == [left.id for left in one.contracts.ranges("1")]


@pytest.mark.parametrize("deed", ["replay", "purge"])
def test_a_letter_that_has_the_number_of_one_that_a_failover_lost_is_left_alone(
    two: tuple[Any, Any], deed: str
) -> None:
    one, _ = two
    commit(one, events(1))
    place = one.outbox.take("out")
    place.settle(1, dead=[DeadLetter(batch_of(place).events[0], 400, "no")], now=NOW)
    letters = one.dead_letters.find()
    fail_over(one)
    one.contracts.share([])
    commit(one, events(2))
    place.settle(1, dead=[DeadLetter(batch_of(place).events[0], 400, "no")], now=NOW)
    place.release()
    (other,) = one.dead_letters.find()
    lost = letters[0]._replace(id=other.id)
    done = one.dead_letters.replay([lost], NOW) if deed == "replay" else one.dead_letters.purge([lost])
    assert (done, one.dead_letters.find()) == (0, [other])


def test_a_state_is_given_to_another_use_with_all_that_is_in_it(
    opened: Callable[[], Any], postgres_stores: Any
) -> None:
    state = enrolled(opened())
    commit(state, events(1, 2))
    books = state.overview()._replace(replicas=[])
    state.close()
    postgres_stores.rename(state.use, f"{state.use}-new")
    assert state.use not in postgres_stores.uses()
    found = postgres_stores.snapshot(f"{state.use}-new")
    assert found._replace(contracts=[row._replace(holder="") for row in found.contracts]) == books._replace(
        contracts=[row._replace(holder="") for row in books.contracts]
    )


def test_a_state_that_a_replica_works_on_is_not_discarded(two: tuple[Any, Any], postgres_stores: Any) -> None:
    one, other = two
    one.contracts.share(CONTRACTS)
    with pytest.raises(StateHeldError):
        postgres_stores.discard(one.use)
    one.close()
    other.close()
    postgres_stores.discard(one.use)
    assert one.use not in postgres_stores.uses()


def test_old_rows_of_the_ledger_are_packed_and_still_known(two: tuple[Any, Any]) -> None:
    one, _ = two
    for number in range(20):
        commit(one, events(number), advance=False)
    one.contracts.share(CONTRACTS)
    one.contracts._prune_contract("1", START - 9000, START + 90_000)
    rows = one._database.read(
        lambda c: c.execute("SELECT count(*) FROM ledger WHERE use_id = %s", (one._use,)).fetchone()[0]
    )
    assert rows == 1
    assert one.contracts.unseen("1", events(*range(21))) == events(20)


# The locks of a replica that is paused


def test_a_lock_on_a_sink_keeps_no_contract_from_being_collected(two: tuple[Any, Any], postgres_server: Any) -> None:
    one, _ = two
    one.contracts.share(CONTRACTS)
    with claimed(one, "2") as claim:
        claim.commit(read(1, 2), keep)
    place = one.outbox.take("out")
    place.postpone(1, NOW, NOW + 5, "no connection", parked_at=None)
    batch_of(place)
    with psycopg.connect(postgres_server.url()) as other, ThreadPoolExecutor() as threads:
        query = "UPDATE ionos_poller.sinks SET type = type WHERE use_id = %s AND name = 'out'"
        other.execute(query, (one.contracts._use,))
        settling = threads.submit(place.settle, 2, now=NOW)
        wait_until(lambda: one.outbox.sinks()[0].delivered == 2, what="it is settled")
        with claimed(one, "2") as claim:
            claim.commit(read(3), keep)
        assert not settling.done()
        other.rollback()
        settling.result()
    (sink,) = one.outbox.sinks()
    assert (sink.delivered, sink.attempts, sink.retry_at, sink.failure) == (2, 0, None, "")


def test_what_a_replica_has_locked_is_free_before_its_lease_ends(postgres_server: Any) -> None:
    variables = {"IONOS_POLLER_STATE__URL": postgres_server.url(), "IONOS_POLLER_STATE__LEASE": "3s"}
    database = Database(load(None, variables).state)
    with psycopg.connect(postgres_server.url(), autocommit=True) as other:

        def stand_still(connection: Connection) -> None:
            pid = connection.raw.info.backend_pid
            query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
            wait_until(lambda: other.execute(query, (pid,)).fetchone() == (0,), 3, what="the server ends it")
            connection.execute("SELECT 1")

        with pytest.raises(StateUnavailableError, match="stood still for too long"):
            database.write(stand_still)
    database.close()
