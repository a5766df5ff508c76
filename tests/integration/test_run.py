"""`run` without faults: everything arrives at both sinks, once, and soon."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from tests.daemon import CONTRACTS, FIRST, LOGGING, LOKI, SECOND, MakeDaemon
from tests.support import wait_until

INTERVAL_SECONDS = 1


def test_everything_arrives_at_both_sinks_and_nothing_twice(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=12_000)
    daemon.start()
    daemon.await_delivery(timeout=120)
    wait_until(lambda: not daemon.troubles(), what="ready")
    wait_until(lambda: daemon.metric("events_delivered_total", sink=LOGGING) == 24_000, what="the last is settled")
    # Further polls, which read the overlap again, add nothing.
    seen = {number: daemon.metric("events_duplicate_total", contract=str(number)) for number in CONTRACTS}
    for number in CONTRACTS:
        wait_until(
            lambda number=number: daemon.metric("events_duplicate_total", contract=str(number)) > seen[number],
            what="another poll",
        )
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()
    assert [daemon.sink(name)["delivered"] for name in (LOGGING, LOKI)] == [24_000, 24_000]
    assert daemon.state()["outbox"] == {"events": 0, "bytes": 0, "letter_bytes": 0}


def test_a_new_entry_arrives_within_a_few_polls(daemon_of: MakeDaemon) -> None:
    """Counts polls, not seconds, because a busy machine delays polls, too. The interval is 1 s."""
    daemon = daemon_of(contracts=2)
    daemon.configure(poll={"interval": f'"{INTERVAL_SECONDS}s"'}, each={"batch_age": '"1s"'})
    daemon.start()
    wait_until(lambda: not daemon.troubles(), what="ready")
    # Twice, because it is random at which fraction of a second the polls begin.
    for _ in range(2):
        before = daemon.polls()
        for contract in CONTRACTS:
            daemon.simulator.add_entries(contract, count=3)
        seconds = daemon.await_delivery()
        polls = (daemon.polls() - before) / len(CONTRACTS)
        print(f"new entries arrived after {seconds:.2f} s, {polls:g} polls of each contract")
        # One poll in the same second, which is not over; one that collects them; one during the second of `batch_age`; and one
        # to spare, because the contracts are not polled at the same time.
        assert polls <= 4
        time.sleep(0.13)
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()
    assert all(row["late"] == 0 for row in daemon.state()["contracts"])


def test_an_entry_that_becomes_visible_late_arrives_once(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=100)
    daemon.start()
    daemon.await_delivery()
    ago = datetime.now(UTC) - timedelta(seconds=60)
    daemon.simulator.add_entries(FIRST, count=1, at=ago, visible_in_seconds=2.5)
    daemon.simulator.add_entries(SECOND, count=2, at=ago + timedelta(seconds=58), visible_in_seconds=2.5)
    daemon.await_delivery()
    wait_until(lambda: daemon.metric("events_late_total", contract=str(FIRST)) == 1)
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()
    assert {row["contract"]: row["late"] for row in daemon.state()["contracts"]} == {str(FIRST): 1, str(SECOND): 2}


def test_a_restart_goes_on_where_it_was(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=500)
    for _ in range(2):
        for contract in CONTRACTS:
            daemon.simulator.add_entries(contract, count=50)
        daemon.start()
        daemon.await_delivery()
        daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()
