"""A discrete simulation of the schedule: how late polls are for numbers of contracts, replicas, requests a second and failures.

It models the limits of a poll: a free worker, a request that the rate limit allows, the processor of its replica (one core,
because the interpreter has one lock), and the latency of the API. It polls nothing. `docs/scale.md` shows its results, and a row
of `make bench` compares its prediction with a measured run.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from typing import NamedTuple

# Measured: `make bench`, rows "quiet contracts" and "idle, 1,000 contracts".
FETCH_POLL_SECONDS = 0.0013
DAEMON_POLL_SECONDS = 0.0024
# Measured: `make bench`, rows "PostgreSQL, idle" and "PostgreSQL, WAL". Transactions of a replica on the database, a second:
_LOOKS_PER_SECOND = 1.6  # for its share, its lease, its readiness, and the size of the outbox
_SINK_LOOKS_PER_SECOND = 0.2
_GATHERED_PER_SECOND = 0.8  # all quiet polls, written together
_AUDIT_TRANSACTIONS = 7.0  # for each contract and hour
QUIET_WAL_BYTES = 370
_WAL_PER_BYTE = 1.2
_CONNECTIONS = 8  # maximum of a replica


class Plan(NamedTuple):
    """`lost_at`: when the first replica dies, if it does; its contracts are taken over `lease_seconds` later."""

    contracts: int
    replicas: int = 1
    concurrency: int = 16
    requests_per_second: float = 10_000.0
    latency_seconds: float = 0.15
    poll_seconds: float = DAEMON_POLL_SECONDS
    interval_seconds: float = 60.0
    failing_share: float = 0.0
    retry_seconds: float = 0.5
    lost_at: float | None = None
    lease_seconds: float = 15.0
    intervals: int = 3


class Outcome(NamedTuple):
    """`busiest_core` is the share of a core that the busiest replica needs; the waits are between two polls of one contract."""

    requests_per_second: float
    busiest_core: float
    median_wait_seconds: float
    longest_wait_seconds: float
    in_flight: int


class _Replica:
    """The workers and the one core of a replica."""

    def __init__(self, concurrency: int) -> None:
        self.workers = [0.0] * concurrency
        self.core_free_at = self.core_seconds = 0.0


class _RateLimit:
    """As `net.transport.RateLimit`, shared by all replicas: at most `per_second` requests in any second."""

    def __init__(self, per_second: float) -> None:
        self._past: deque[float] = deque(maxlen=max(1, int(per_second)))

    def slot(self, at: float) -> float:
        if len(self._past) == self._past.maxlen:
            at = max(at, self._past[0] + 1.0)
        self._past.append(at)
        return at


def simulate(plan: Plan, seed: int = 1) -> Outcome:
    """Poll every contract for some intervals. In the first one all begin at once, so it does not count for the waits."""
    dice = random.Random(seed)
    replicas = [_Replica(plan.concurrency) for _ in range(plan.replicas)]
    limit = _RateLimit(plan.requests_per_second)
    end = plan.interval_seconds * plan.intervals
    due = [(dice.random() * plan.interval_seconds, contract) for contract in range(plan.contracts)]
    heapq.heapify(due)
    polled_at: dict[int, float] = {}
    waits: list[float] = []
    flights: list[tuple[float, int]] = []
    requests = 0
    while due and due[0][0] < end:
        at, contract = heapq.heappop(due)
        number = contract % plan.replicas
        if plan.lost_at is not None and number == 0 and at >= plan.lost_at:
            taken_over_at = plan.lost_at + plan.lease_seconds
            if at < taken_over_at:
                heapq.heappush(due, (taken_over_at, contract))
                continue
            number = 1 + contract // plan.replicas % (plan.replicas - 1)
        replica = replicas[number]
        start = limit.slot(max(at, heapq.heappop(replica.workers)))
        if start >= end:
            break
        begun = replica.core_free_at = max(start, replica.core_free_at) + plan.poll_seconds
        finished = begun + _latency(plan, dice)
        tries = 1
        while dice.random() < plan.failing_share:
            # A retry uses the rate and the core later. Here it uses them at once, because times must come in order.
            limit.slot(start)
            replica.core_free_at += plan.poll_seconds
            finished += plan.retry_seconds + _latency(plan, dice)
            tries += 1
        requests += tries
        replica.core_seconds += tries * plan.poll_seconds
        heapq.heappush(replica.workers, finished)
        flights += [(start, 1), (finished, -1)]
        if contract in polled_at and at >= plan.interval_seconds:
            waits.append(finished - polled_at[contract])
        polled_at[contract] = finished
        heapq.heappush(due, (max(at + plan.interval_seconds, finished), contract))
    waits.sort()
    return Outcome(
        requests / end,
        max(replica.core_seconds for replica in replicas) / end,
        waits[len(waits) // 2] if waits else math.inf,
        waits[-1] if waits else math.inf,
        _most_at_once(flights),
    )


class Load(NamedTuple):
    """The numbers of contracts and replicas, and the entries per contract and hour. Each entry comes in a window of its own."""

    contracts: int
    replicas: int = 1
    sinks: int = 1
    interval_seconds: float = 60.0
    entries_per_hour: float = 0.0
    entry_bytes: int = 800
    audits_per_hour: float = 0.0


class DatabaseLoad(NamedTuple):
    """The resulting load of the database. `ledger_rows` are the rows of a day, before they are packed."""

    connections: int
    transactions_per_second: float
    wal_bytes_per_second: float
    ledger_rows: int


def database_load(load: Load) -> DatabaseLoad:
    """The load on the database: the queries of each replica, a commit for each window with new entries, and its delivery."""
    news = load.contracts * load.entries_per_hour / 3600
    # A batch waits for a second: a replica sends at most one batch a second to each sink, with events of all its contracts.
    batches = load.sinks * min(news, load.replicas)
    fixed = load.replicas * (_LOOKS_PER_SECOND + load.sinks * _SINK_LOOKS_PER_SECOND + _GATHERED_PER_SECOND)
    audits = load.contracts * load.audits_per_hour * _AUDIT_TRANSACTIONS / 3600
    return DatabaseLoad(
        load.replicas * _CONNECTIONS,
        fixed + news + 2 * batches + audits,
        load.contracts / load.interval_seconds * QUIET_WAL_BYTES + news * load.entry_bytes * _WAL_PER_BYTE,
        round(news * 86_400),
    )


def seconds_for_one_round(contracts: int, concurrency: int, latency_seconds: float, poll_seconds: float) -> float:
    """How long a `fetch` takes for one poll of each contract. All are due at once, and the latency is fixed."""
    replica = _Replica(concurrency)
    for _ in range(contracts):
        work_at = max(heapq.heappop(replica.workers), replica.core_free_at)
        replica.core_free_at = work_at + poll_seconds
        heapq.heappush(replica.workers, work_at + poll_seconds + latency_seconds)
    return max(replica.workers)


def _latency(plan: Plan, dice: random.Random) -> float:
    """A random latency: at least half of the plan's latency, and on average equal to it."""
    return plan.latency_seconds * (0.5 + dice.expovariate(2.0))


def _most_at_once(flights: list[tuple[float, int]]) -> int:
    most = now = 0
    for _, change in sorted(flights):
        now += change
        most = max(most, now)
    return most


SCENARIOS = {
    "1,000 contracts, one replica": Plan(1000, requests_per_second=20),
    "10,000 contracts, one replica": Plan(10_000, concurrency=64, requests_per_second=200),
    "10,000 contracts, one replica, the default of 10 requests a second": Plan(
        10_000, concurrency=64, requests_per_second=10
    ),
    "50,000 contracts, three replicas": Plan(50_000, 3, concurrency=128, requests_per_second=1000),
    "50,000 contracts, four replicas": Plan(50_000, 4, concurrency=128, requests_per_second=1000),
    "50,000 contracts, four replicas, one dies": Plan(
        50_000, 4, concurrency=128, requests_per_second=1000, lost_at=90.0
    ),
    "50,000 contracts, four replicas, 5 % of the requests fail": Plan(
        50_000, 4, concurrency=128, requests_per_second=1000, failing_share=0.05
    ),
}


def table() -> str:
    """The results for each scenario, as in docs/scale.md."""
    rows = [
        "| what | requests/s | busiest core | between two polls | at most | in flight |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, plan in SCENARIOS.items():
        found = simulate(plan)
        rows.append(
            f"| {name} | {found.requests_per_second:,.0f} | {found.busiest_core:.0%} | {_seconds(found.median_wait_seconds)}"
            f" | {_seconds(found.longest_wait_seconds)} | {found.in_flight} |"
        )
    return "\n".join(rows)


LOADS = {
    "1,000 contracts, one replica, nothing new": Load(1000, audits_per_hour=1),
    "1,000 contracts, two replicas, ten entries an hour each": Load(1000, 2, entries_per_hour=10, audits_per_hour=1),
    "10,000 contracts, two replicas, ten entries an hour each": Load(10_000, 2, entries_per_hour=10, audits_per_hour=1),
    "50,000 contracts, four replicas, ten entries an hour each": Load(
        50_000, 4, entries_per_hour=10, audits_per_hour=1
    ),
}


def database_table() -> str:
    """The load of the database, as in docs/scale.md."""
    rows = [
        "| what | connections | transactions/s | WAL | rows of the ledger, a day |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, load in LOADS.items():
        found = database_load(load)
        rows.append(
            f"| {name} | {found.connections} | {found.transactions_per_second:,.0f}"
            f" | {found.wal_bytes_per_second / 1000:,.0f} KB/s | {found.ledger_rows:,} |"
        )
    return "\n".join(rows)


def _seconds(value: float) -> str:
    return "too long" if value == math.inf else f"{value:.0f} s"


if __name__ == "__main__":
    print(table(), database_table(), sep="\n\n")
