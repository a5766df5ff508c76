"""The simulation of the schedule, for cases with known results; and docs/scale.md shows its results."""

from __future__ import annotations

import pytest

from tests.scale import Load, Plan, database_load, database_table, seconds_for_one_round, simulate, table
from tests.support import TOP

SMALL = Plan(600, concurrency=16, latency_seconds=0.1, interval_seconds=20, poll_seconds=0.001)


def test_with_room_enough_each_contract_is_polled_once_an_interval() -> None:
    found = simulate(SMALL)
    assert found.requests_per_second == pytest.approx(30, rel=0.02)
    assert found.median_wait_seconds == pytest.approx(20, abs=0.2)
    assert found.longest_wait_seconds < 22
    assert found.busiest_core == pytest.approx(0.03, rel=0.02)


@pytest.mark.parametrize(
    "bound",
    [{"requests_per_second": 15}, {"concurrency": 1, "latency_seconds": 1 / 15}, {"poll_seconds": 1 / 15}],
    ids=["the rate limit", "the workers", "the core"],
)
def test_what_allows_half_of_the_polls_doubles_the_wait(bound: dict[str, float]) -> None:
    found = simulate(SMALL._replace(intervals=6, **bound))  # type: ignore[arg-type]
    assert found.requests_per_second == pytest.approx(15, rel=0.1)
    assert found.median_wait_seconds == pytest.approx(40, rel=0.2)


def test_the_contracts_of_a_replica_that_dies_wait_for_its_lease_at_most() -> None:
    plan = SMALL._replace(replicas=3, lost_at=30.0, lease_seconds=8.0)
    calm, found = simulate(plan._replace(lost_at=None)), simulate(plan)
    assert found.longest_wait_seconds == pytest.approx(calm.longest_wait_seconds + 8, abs=1)
    assert found.median_wait_seconds == pytest.approx(20, abs=0.2)


def test_failures_cost_requests_and_little_time() -> None:
    found = simulate(SMALL._replace(failing_share=0.1))
    assert found.requests_per_second == pytest.approx(30 / 0.9, rel=0.04)
    assert found.longest_wait_seconds < 24


def test_a_round_takes_what_latency_and_workers_allow_or_what_the_core_does() -> None:
    assert seconds_for_one_round(1600, 16, 0.05, 0.0) == pytest.approx(5.0)
    assert seconds_for_one_round(1000, 16, 0.001, 0.002) == pytest.approx(2.0, abs=0.01)


def test_the_page_shows_what_the_simulation_says() -> None:
    page = (TOP / "docs/scale.md").read_text(encoding="utf-8")
    assert table() in page
    assert database_table() in page


def test_what_the_database_does_for_quiet_contracts_depends_on_the_replicas_and_not_on_the_contracts() -> None:
    small, large, more = database_load(Load(100)), database_load(Load(10_000)), database_load(Load(10_000, 2))
    assert small.transactions_per_second == large.transactions_per_second
    assert more.transactions_per_second == pytest.approx(2 * large.transactions_per_second)
    assert large.wal_bytes_per_second == pytest.approx(100 * small.wal_bytes_per_second)
    assert (large.ledger_rows, more.connections) == (0, 2 * large.connections)


def test_what_comes_costs_a_commit_each_and_a_batch_of_a_second() -> None:
    quiet, busy = database_load(Load(3600)), database_load(Load(3600, entries_per_hour=10))
    assert busy.transactions_per_second - quiet.transactions_per_second == pytest.approx(10 + 2)
    assert busy.ledger_rows == 864_000
