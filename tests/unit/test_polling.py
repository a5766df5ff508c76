"""Polling without a scheduler: the polled contracts, the time of the next search for contracts, and reports about clocks."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from poller.config import Config, Http
from poller.core.errors import AuthError, PollerError, TransientError
from poller.core.turns import MOST_OPEN
from poller.ionos.api import WARN_SKEW_SECONDS
from poller.pipeline.collect import PollResult
from poller.service.components import Components
from poller.service.metrics import Metrics
from poller.service.polling import Polling
from poller.store.rows import Contract, Prepared
from tests import views


class Collector:
    """A collector that returns the results that a test sets, and records its calls."""

    def __init__(self) -> None:
        self.found: list[str] = ["1", "2"]
        self.failures: list[PollerError] = []
        self.error: PollerError | None = None
        self.results: dict[str, PollResult] = {}
        self.polled: list[tuple[str, float]] = []
        self.parts: list[float] = []

    def discover(self) -> tuple[list[str], list[PollerError]]:
        if self.error is not None:
            raise self.error
        return list(self.found), self.failures

    def poll(self, contract: str, turn_seconds: float) -> PollResult:
        self.polled.append((contract, turn_seconds))
        return self.results.get(contract, PollResult(contract))

    def take_part(self, part: float) -> None:
        self.parts.append(part)


class Jobs:
    """Records the jobs instead of running them."""

    def __init__(self) -> None:
        self.housekeeping: dict[str, tuple[Callable[[], None], float, float]] = {}
        self.polls: dict[str, tuple[Callable[[], None], float]] = {}
        self.again: list[tuple[str, float]] = []

    def add_housekeeping(self, job: Callable[[], None], seconds: float, name: str, first_seconds: float = 0.0) -> None:
        self.housekeeping[name] = (job, seconds, first_seconds)

    def add_poll(self, job: Callable[[], None], seconds: float, contract: str) -> None:
        assert contract not in self.polls
        self.polls[contract] = (job, seconds)

    def remove_poll(self, contract: str) -> None:
        del self.polls[contract]

    def run_again(self, job: str, seconds: float) -> None:
        self.again.append((job, seconds))


class State:
    """A state that gives this replica the contracts in `held`; all by default."""

    def __init__(self) -> None:
        self.held: set[str] | None = None
        self.rows: list[Contract] = []
        self.contracts = self

    def all(self) -> list[Contract]:
        return self.rows

    def share(self, wanted: Sequence[str]) -> list[str]:
        return [contract for contract in wanted if self.held is None or contract in self.held]


class Api:
    def __init__(self) -> None:
        self.clock_skew_seconds: float | None = None


class Bench:
    def __init__(self) -> None:
        self.state, self.collector, self.jobs = State(), Collector(), Jobs()
        self.apis = {"prod": Api(), "test": Api()}
        self.metrics = Metrics(lambda: views.state([], []))
        self.woken = 0
        config = Config(http=Http(listen=""))
        self.config = msgspec.structs.replace(
            config, poll=msgspec.structs.replace(config.poll, interval_seconds=30, discovery_interval_seconds=900)
        )
        parts: Any = (self.state, self.collector, self.jobs)
        state, collector, jobs = parts
        accounts: Any = self.apis
        components = Components(
            self.config, threading.Event(), accounts, [], dict, lambda contract, events: Prepared(events)
        )
        self.polling = Polling(state, components, collector, jobs, self.metrics, self._wake)
        self.polling.start()

    def _wake(self) -> None:
        self.woken += 1

    def run(self, job: str) -> None:
        self.jobs.housekeeping[job][0]()

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"ionos_poller_{name}", labels)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.message for record in caplog.records if record.name.startswith("poller.service")]
    caplog.clear()
    return found


def test_it_looks_for_contracts_at_once_and_for_its_share_every_two_seconds(bench: Bench) -> None:
    looks = {name: seconds for name, (_, *seconds) in bench.jobs.housekeeping.items()}
    assert looks == {"discovery": [900, 0.0], "share": [2.0, 2.0]}
    assert bench.polling.discovery_failures is None


def test_what_is_found_is_polled_at_the_interval(bench: Bench) -> None:
    bench.run("discovery")
    assert {contract: seconds for contract, (_, seconds) in bench.jobs.polls.items()} == {"1": 30, "2": 30}
    assert (bench.polling.contracts, bench.polling.discovery_failures, bench.jobs.again) == ({"1", "2"}, [], [])
    assert (bench.woken, bench.sample("replica_contracts"), bench.collector.parts) == (1, 2, [1.0])
    assert bench.sample("audit_missing_events", contract="2") == 0
    bench.jobs.polls["2"][0]()
    assert bench.collector.polled == [("2", math.inf)]


def test_what_is_found_and_gone_is_told_and_polled_no_more(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.run("discovery")
    assert told(caplog) == ["contract.discovered"] * 2
    bench.run("discovery")
    assert (told(caplog), bench.woken) == ([], 1)
    bench.collector.found = ["2", "3"]
    bench.run("discovery")
    assert told(caplog) == ["contract.gone", "contract.discovered"]
    assert (sorted(bench.jobs.polls), bench.woken) == (["2", "3"], 2)


def test_a_look_that_failed_is_repeated_with_the_polls(bench: Bench) -> None:
    failure = TransientError("no answer")
    bench.collector.failures = [failure]
    bench.run("discovery")
    assert bench.polling.discovery_failures == [failure]
    assert bench.jobs.again == [("discovery", 30)]


def test_an_account_that_has_not_said_which_contracts_it_has_is_shown_until_it_has(bench: Bench) -> None:
    def unread() -> dict[str, float | None]:
        bench.run("discovery")
        return {name: bench.sample("account_unread", account=name) for name in ("prod", "test")}

    refused = AuthError("the API refused the credentials (401)")
    refused.account = "test"
    bench.collector.found = ["1"]
    bench.collector.failures = [refused, PollerError("no account sees this contract", contract="9")]
    bench.state.rows = [views.contract("1", account="prod"), views.contract("2", account="test")]
    assert unread() == {"prod": 0, "test": 1}
    bench.collector.found = ["1", "2"]  # known already: each of its polls fails, and is reported
    assert unread() == {"prod": 0, "test": 0}
    bench.collector.found, bench.collector.failures = ["1"], []
    assert unread() == {"prod": 0, "test": 0}


def test_a_share_is_polled_and_what_changes_of_it_is_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.collector.found = ["1", "2", "3", "4"]
    bench.run("discovery")
    told(caplog)
    for held, woken, part in (({"1"}, 2, 0.25), ({"1"}, 2, 0.25), ({"2", "3"}, 3, 0.5), (set(), 4, 0.25)):
        bench.state.held = held
        bench.run("share")
        assert (bench.polling.contracts, set(bench.jobs.polls), bench.woken) == (held, held, woken)
        assert (bench.collector.parts[-1], bench.sample("replica_contracts")) == (part, len(held))
    changes = [
        [vars(record)[name] for name in ("contracts", "of", "taken", "given_back")]
        for record in caplog.records
        if record.message == "share.changed"
    ]
    assert changes == [[1, 4, 0, 3], [2, 4, 2, 1], [0, 4, 0, 2]]
    told(caplog)
    bench.state.held = None
    bench.run("share")
    assert told(caplog) == ["share.changed"], "it has all of them again"
    bench.collector.found = ["1"]
    bench.run("discovery")
    assert "share.changed" not in told(caplog), "there is nobody to share with"


@pytest.mark.parametrize("held", [{"1"}, set()])
def test_what_an_audit_found_missing_of_a_contract_is_shown_by_who_polls_it(bench: Bench, held: set[str]) -> None:
    bench.run("discovery")
    for contract in ("1", "2"):
        bench.metrics.audit_missing.labels(contract).set(3)
    bench.state.held = held
    bench.run("share")
    shown = [bench.sample("audit_missing_events", contract=contract) for contract in ("1", "2")]
    assert shown == [3 if "1" in held else None, None], "nobody here would find that it is there now"
    bench.state.held = None
    bench.run("share")
    assert bench.sample("audit_missing_events", contract="2") == 0


def test_where_nothing_is_found_it_keeps_the_whole_pace(bench: Bench) -> None:
    bench.collector.found = []
    bench.run("discovery")
    assert (bench.collector.parts, bench.woken) == ([1.0], 0)


def test_a_poll_that_did_not_end_goes_on_soon_and_one_of_another_replica_does_not(bench: Bench) -> None:
    bench.collector.results = {"1": PollResult("1", is_unfinished=True), "2": PollResult("2", is_elsewhere=True)}
    bench.apis["prod"].clock_skew_seconds = 3.0
    bench.polling.poll("2")
    assert (bench.jobs.again, bench.sample("clock_skew_seconds", account="prod")) == ([], None)
    bench.polling.poll("1")
    bench.polling.poll("3")
    assert (bench.jobs.again, bench.sample("clock_skew_seconds", account="prod")) == ([("poll-1", 0.5)], 3.0)


@pytest.mark.parametrize(("more", "turn"), [(0, math.inf), (1, 30)])
def test_only_where_there_are_more_contracts_than_threads_a_poll_has_a_turn(
    bench: Bench, more: int, turn: float
) -> None:
    bench.collector.found = [str(number) for number in range(bench.config.api.concurrency * MOST_OPEN + more)]
    bench.run("discovery")
    bench.polling.poll("1")
    assert bench.collector.polled == [("1", turn)]


def test_clocks_that_part_ways_are_told_once_and_once_when_they_agree(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    limit = WARN_SKEW_SECONDS
    for skew, expected in (
        (limit, []),
        (-limit - 1, ["clock.skewed"]),
        (limit + 1, []),
        (limit, ["clock.agreed"]),
        (0.0, []),
        (limit + 1, ["clock.skewed"]),
    ):
        bench.apis["test"].clock_skew_seconds = skew
        bench.polling.poll("1")
        assert told(caplog) == expected, skew
        assert bench.sample("clock_skew_seconds", account="test") == skew
    bench.apis["prod"].clock_skew_seconds = -limit - 1
    bench.polling.poll("1")
    assert told(caplog) == ["clock.skewed"], "each account for itself"
