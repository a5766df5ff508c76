"""Collecting from an API that limits, hangs, hides entries or sends wrong data: the real command against the simulator."""

from __future__ import annotations

import json
import time
from datetime import datetime

import msgspec
import pytest

from poller.store.sqlite.overview import overview_of
from tests.daemon import LOGGING, MakeDaemon
from tests.integration.fetching import FIRST, SECOND, Starter, same
from tests.support import wait_until

YEARS = 56 * 365 * 86_400


def test_every_contract_gets_its_turn_behind_a_limit_that_nobody_announces(bench: Starter) -> None:
    place = bench(contracts=9, events=30, faults=("rate:count=4:3s",))
    run = place.fetch("--since", "1h")
    assert run.code == 0, run.stderr
    same(run.lines, place.oracle())
    outcomes = place.simulator.traffic.counts["entries"]
    assert outcomes.get("rate", 0) + outcomes.get("429", 0) <= 8, outcomes


def test_pages_that_were_read_before_a_429_are_not_asked_for_again(bench: Starter) -> None:
    place = bench(contracts=1, events=60)
    place.simulator.set_faults(["path=entries:429:after=3:x2"])
    run = place.fetch("--since", "1h", env={"IONOS_POLLER_API__PAGE_SIZE": "10"})
    assert run.code == 0, run.stderr
    same(run.lines, place.oracle())
    assert place.simulator.traffic.counts["entries"]["200"] <= 8


def test_contracts_that_hang_do_not_hold_up_the_others(daemon_of: MakeDaemon) -> None:
    hanging = [FIRST + number for number in range(4)]
    daemon = daemon_of(contracts=12, faults=tuple(f"contract={number}:hang:30s" for number in hanging))
    daemon.configure(sinks={LOGGING: {}}, poll={"interval": '"2s"', "audit_interval": '"0s"'})
    daemon.start()
    others = [str(number) for number in daemon.simulator.contracts if number not in hanging]
    oldest = 0.0
    deadline = time.monotonic() + 12
    while time.monotonic() < deadline:
        time.sleep(0.5)  # how often to look
        rows = {row.contract: row.succeeded_at for row in overview_of(daemon.state_dir / "run.db").contracts}
        if deadline - time.monotonic() < 8:
            oldest = max(oldest, *(time.time() - (rows[contract] or 0) for contract in others))
    assert oldest <= 2 * 2 + 1.5, oldest  # tolerance for whole seconds and for the look itself
    daemon.stop()


@pytest.mark.parametrize("skew", [-YEARS, 200 * 365 * 86_400])
def test_a_clock_of_the_api_that_is_not_set_changes_nothing_at_first_contact(bench: Starter, skew: float) -> None:
    place = bench(contracts=1, events=900, span_seconds=900 * 86_400)
    # Only the `Date` of answers is shifted: the entries keep their real times.
    place.simulator.settings = msgspec.structs.replace(place.simulator.settings, date_skew_seconds=skew)
    run = place.fetch()
    assert run.code == 0, run.stderr
    assert place.requests() <= 2
    first = time.time() - 400
    assert all(datetime.fromisoformat(json.loads(line)["meta"]["time"]).timestamp() > first for line in run.lines)


def test_a_list_in_pages_is_read_to_its_end(bench: Starter) -> None:
    place = bench(contracts=5, events=3, faults=("pages:count=2",))
    run = place.fetch("--since", "1h")
    assert run.code == 0, run.stderr
    same(run.lines, place.oracle())


@pytest.mark.parametrize("fault", ["unlisted", f"contract={SECOND}:unlisted", "path=contracts:404"])
def test_a_named_contract_is_collected_though_the_list_does_not_show_it(bench: Starter, fault: str) -> None:
    place = bench(faults=(fault,))
    named = {"IONOS_POLLER_POLL__CONTRACTS": f"{SECOND}"}
    run = place.fetch("--since", "1h", env=named)
    assert run.code == 0, run.stderr
    same(run.lines, place.oracle(SECOND))
    assert place.run("check", env=named).code == 0


def test_a_contract_that_appears_between_two_runs_loses_nothing(bench: Starter) -> None:
    place = bench(unlisted=(SECOND,), events=0)
    assert place.fetch().code == 0
    place.simulator.add_entries(SECOND, count=5)
    place.simulator.change_settings(unlisted=())
    happened = time.time()
    wait_until(lambda: time.time() > happened + 1.5, 5, what="the second is over")
    same(place.fetch(env={"IONOS_POLLER_POLL__INITIAL_LOOKBACK": "1s"}).lines, place.oracle(SECOND))


def test_a_401_of_one_moment_ends_nothing(bench: Starter) -> None:
    place = bench(faults=("401:x1",))
    run = place.fetch("--since", "1h")
    assert run.code == 0, run.stderr
    same(run.lines, place.oracle())


def test_a_page_size_that_the_api_refuses_is_lowered_and_check_says_so(bench: Starter) -> None:
    place = bench(faults=("limit:count=100",))
    run = place.fetch("--since", "1h")
    assert run.code == 0, run.stderr
    same(run.lines, place.oracle())
    checked = place.run("check")
    told = b"\n".join(checked.lines).decode()
    assert "limit must not exceed 100" in told
    assert "set api.page_size to 100" in told


def test_the_words_of_the_api_reach_status_and_the_last_line(bench: Starter) -> None:
    place = bench(forbidden=(SECOND,))
    run = place.fetch("--since", "1h")
    assert any("The user lacks the privilege ACCESS_ACTIVITY_LOG for this contract" in line for line in run.told)
    status = json.loads(b"\n".join(place.run("status", "--json").lines))
    (row,) = [row for row in status["uses"]["fetch"]["contracts"] if row["contract"] == str(SECOND)]
    assert "The user lacks the privilege" in row["failure"]
