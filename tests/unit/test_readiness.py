"""When the daemon is ready, and what it says when it is not: the sentence of docs/metrics.md on /readyz, case by case."""

from __future__ import annotations

import msgspec
import pytest

from poller.config import Account, Config
from poller.core.errors import AuthError, PollerError
from poller.service.readiness import not_ready_reasons
from poller.store.overview import SinkOverview
from poller.store.rows import Contract, Sink, Size
from tests import views

NOW = 1_777_593_600
CONFIG = views.config_of(["loki"])
REFUSED = AuthError("the API refused the credentials (401)")
REFUSED.account = "other"
UNKNOWN = PollerError("no account sees this contract", contract="9")


def contract(name: str = "1", *, ago: int | None = 10, failure: str = "", account: str = "default") -> Contract:
    succeeded_at = None if ago is None else NOW - ago
    return Contract(name, account, 0, NOW, 0, 0, 0, 0, 0, 0, succeeded_at, None, failure, NOW)


def sink(*, parked_at: float | None = None, failure: str = "HTTP 401") -> SinkOverview:
    return SinkOverview(Sink("loki", "loki", parked_at=parked_at, failure=failure), 0, None, 0)


def told(
    *contracts: Contract,
    sinks: tuple[SinkOverview, ...] = (),
    outbox_bytes: int = 0,
    letter_bytes: int = 0,
    config: Config = CONFIG,
    found: set[str] | None = None,
    polled: set[str] | None = None,
    failures: list[PollerError] | None = None,
    is_discovered: bool = True,
    expires_at: float = NOW + 9,
) -> list[str]:
    return not_ready_reasons(
        views.state(contracts, sinks, outbox=Size(0, outbox_bytes, letter_bytes)),
        config,
        NOW,
        found={row.contract for row in contracts} if found is None else found,
        contracts={row.contract for row in contracts} if polled is None else polled,
        discovery_failures=(failures or []) if is_discovered else None,
        token_expiries={"default": expires_at},
    )


@pytest.mark.parametrize("ago", [0, 180])
def test_it_is_ready_while_every_last_poll_succeeded_within_three_intervals(ago: int) -> None:
    assert told(contract("1", ago=ago), contract("2"), sinks=(sink(),)) == []


def test_dead_letters_that_fill_the_outbox_are_told_with_what_to_do() -> None:
    (words,) = told(contract(), outbox_bytes=1 << 20, letter_bytes=1 << 30)
    assert "replay or purge" in words
    assert "dead letters" not in told(contract(), outbox_bytes=1 << 30, letter_bytes=1 << 30)[0]


def test_a_failure_that_is_younger_than_three_intervals_is_no_trouble_yet() -> None:
    assert told(contract(failure="HTTP 500")) == []


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (contract(ago=181), "contract 1: last successful poll 3 min ago"),
        (contract(ago=181, failure="HTTP 500"), "contract 1: last successful poll 3 min ago: HTTP 500"),
        (contract(ago=None, failure="403"), "contract 1: last successful poll never: 403"),
    ],
)
def test_a_contract_whose_last_success_is_older_is_named_with_its_failure(row: Contract, words: str) -> None:
    assert told(row, contract("2")) == [words]


def test_a_contract_that_is_polled_no_more_is_no_trouble() -> None:
    assert told(contract("1", ago=9999), contract("2"), polled={"2"}) == []


def test_a_parked_sink_a_full_outbox_and_a_start_without_contracts_are_told() -> None:
    (parked,) = told(contract(), sinks=(sink(parked_at=NOW),))
    assert "loki" in parked
    assert "HTTP 401" in parked
    assert "outbox is full" in told(contract(), outbox_bytes=1 << 30)[0]
    assert told(is_discovered=False) == ["no contracts discovered yet"]


def test_a_sink_that_left_the_configuration_is_no_trouble_whatever_it_waited_for() -> None:
    without = views.config_of(["out"])
    for left in (sink(parked_at=NOW), sink(failure="internal error: KeyError in loki.py:88")):
        assert told(contract(), sinks=(left,))
        assert told(contract(), sinks=(left,), config=without) == []


def test_a_failed_look_for_contracts_matters_until_those_of_every_account_are_known() -> None:
    two = msgspec.structs.replace(CONFIG, accounts=(Account(name="default"), Account(name="other")))
    assert told(failures=[REFUSED], config=two) == [str(REFUSED)]
    assert told(contract(), failures=[REFUSED], config=two) == [str(REFUSED)]
    assert told(contract(), contract("2", account="other"), failures=[REFUSED], config=two) == []
    # An account has no contracts of its own if another account reads the same ones.
    assert told(contract(account="other"), failures=[REFUSED], config=two) == []


@pytest.mark.parametrize("polled", [set(), {"1"}, {"2"}])
def test_what_another_replica_polls_is_known_too(polled: set[str]) -> None:
    two = msgspec.structs.replace(CONFIG, accounts=(Account(name="default"), Account(name="other")))
    rows = (contract(), contract("2", account="other"))
    assert told(*rows, polled=polled, failures=[REFUSED], config=two) == []
    assert told(*rows, found={"1"}, polled=polled, failures=[REFUSED], config=two) == [str(REFUSED)]


def test_a_contract_that_is_asked_for_and_that_nobody_sees_is_a_trouble() -> None:
    assert told(contract(), failures=[UNKNOWN]) == [str(UNKNOWN)]


def test_an_expired_token_is_named_where_it_explains_something_and_is_no_trouble_while_it_works() -> None:
    assert told(contract(), expires_at=NOW - 60) == []
    assert told(contract(ago=181), expires_at=NOW - 60) == [
        "account default: the API token expired 1 min ago",
        "contract 1: last successful poll 3 min ago",
    ]


def test_a_sink_that_ended_in_an_internal_error_is_told_with_its_reason() -> None:
    crashed = sink(failure="internal error: KeyError in loki.py:88")
    assert told(contract(), sinks=(crashed,)) == ["sink loki: internal error: KeyError in loki.py:88"]
