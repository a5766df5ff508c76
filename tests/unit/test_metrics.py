"""What `/metrics` shows, and what it no longer shows."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from poller import __version__
from poller.core.evidence.batches import Head
from poller.service.metrics import Metrics
from poller.store.letters import LetterBooks
from poller.store.rows import Contract, Postponed, Size
from tests import views

NOW = 1_777_593_600


def row(contract: str, account: str) -> Contract:
    return Contract(contract, account, 0, NOW - 60, 0, 5, 0, 0, 0, 0, NOW, None, "", NOW)


ROWS = [row("1", "prod"), row("2", "prod"), row("3", "test")]


def shown(metrics: Metrics, names: Iterable[str]) -> dict[str, set[str]]:
    """Name of a metric -> the values of its last label."""
    return {
        family.name.removeprefix("ionos_poller_"): {list(sample.labels.values())[-1] for sample in family.samples}
        for family in text_string_to_metric_families(metrics.render().decode())
        if family.name.removeprefix("ionos_poller_") in names
    }


def test_gauges_of_accounts_and_contracts_that_left_go_with_them() -> None:
    metrics = Metrics(lambda: views.state(ROWS, []), lambda: NOW)
    for account in ("prod", "test"):
        metrics.token_expires_at.labels(account).set(1)
        metrics.clock_skew.labels(account).set(1)
        metrics.account_unread.labels(account).set(1)
    for contract in ("1", "2", "3"):
        metrics.audit_missing.labels(contract).set(1)
    by_account, by_contract = (
        {"token_expires_at_seconds", "clock_skew_seconds", "account_unread"},
        {"audit_missing_events", "collect_lag_seconds", "last_poll_success_at_seconds"},
    )
    metrics.keep({"prod", "test"}, lambda contract: True, [])
    assert shown(metrics, by_account) == {name: {"prod", "test"} for name in by_account}
    assert shown(metrics, by_contract) == {name: {"1", "2", "3"} for name in by_contract}
    metrics.keep({"prod"}, lambda contract: contract != "2", [])
    assert shown(metrics, by_account) == {name: {"prod"} for name in by_account}
    assert shown(metrics, by_contract) == {name: {"1"} for name in by_contract}
    # Counters stay.
    assert shown(metrics, ["events_collected"]) == {"events_collected": {"1", "2", "3"}}


def test_what_keeps_a_sink_from_taking_events_goes_with_it_but_not_what_waits_for_it() -> None:
    parked = views.sink("loki", waiting=3, parked_at=NOW)
    parked = parked._replace(postponed=[Postponed("9", 1, NOW, NOW, "", NOW)])
    metrics = Metrics(lambda: views.state([], [parked, views.sink("out")]), lambda: NOW)
    names = {"sink_parked", "contracts_postponed", "outbox_events", "deliver_lag_seconds"}
    both = {name: {"loki", "out"} for name in names}
    assert shown(metrics, names) == both
    metrics.keep([], lambda contract: True, ["out"])
    assert shown(metrics, names) == both | {"sink_parked": {"out"}, "contracts_postponed": {"out"}}


def values(metrics: Metrics) -> dict[str, float]:
    """Every sample of the state, by its name and its labels."""
    return {
        " ".join([sample.name.removeprefix("ionos_poller_"), *map("=".join, sample.labels.items())]): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_the_books_are_shown_under_their_names() -> None:
    contracts = [
        views.contract("1", watermark=NOW - 90, new=5, seen=4, late=3, repaired=2, sharing=1, succeeded_at=NOW - 7),
        views.contract("2", account="test", watermark=NOW + 5, succeeded_at=None),
    ]
    sinks = [
        views.sink("loki", waiting=3, dead_letters=2, since=NOW - 30, parked_at=NOW)._replace(
            postponed=[Postponed("9", 1, NOW, NOW, "", NOW)]
        ),
        views.sink("out", since=NOW + 30),
    ]
    gaps = [
        views.gap(1, seconds=2, contract="1", kind="dense"),
        views.gap(2, seconds=3, contract="1", kind="dense"),
        views.gap(3, seconds=4, contract="1", kind="refused"),
        views.gap(4, contract="1", is_accepted=True),
        views.gap(5, contract="2"),
    ]
    overview = views.state(
        contracts,
        sinks,
        outbox=Size(3, 400, 50),
        filtered={"reads": 6},
        letters={"loki": LetterBooks(4, 2, 1, 1)},
        gaps=gaps,
        created_at=NOW - 99,
        archives={"out": Head("a", 8, "", None, 0, 0, None)},
    )
    metrics = Metrics(lambda: overview, lambda: NOW)
    metrics.keep({"default"}, lambda contract: True, {"loki", "out"})
    shown = values(metrics)
    expected = {
        "lease_lost_total": 0,
        "state_available": 1,
        "events_collected_total account=default contract=1": 5,
        "events_collected_total account=test contract=2": 2010,
        "events_duplicate_total contract=1": 4,
        "events_late_total contract=1": 3,
        "events_repaired_total contract=1": 2,
        "events_sharing_id_total contract=1": 1,
        "events_filtered_total reason=reads": 6,
        "collect_lag_seconds account=default contract=1": 90,
        "last_poll_success_at_seconds contract=1": NOW - 7,
        "events_delivered_total sink=loki": 2005,
        "dead_letters sink=loki": 2,
        "dead_letters sink=out": 0,
        "dead_letters_written_total sink=loki": 4,
        "dead_letters_replayed_total sink=loki": 1,
        "dead_letters_purged_total sink=loki": 1,
        "dead_letters_written_total sink=out": 0,
        "outbox_events sink=loki": 3,
        "outbox_bytes": 400,
        "deliver_lag_seconds sink=loki": 30,
        "deliver_lag_seconds sink=out": 0,
        "state_created_at_seconds": NOW - 99,
        "log_lines_dropped_total": 0,
        "gaps contract=1 reason=dense": 2,
        "gaps contract=1 reason=refused": 1,
        "gap_seconds contract=1": 9,
        "sink_parked sink=loki": 1,
        "sink_parked sink=out": 0,
        "contracts_postponed sink=loki": 1,
        "contracts_postponed sink=out": 0,
        "archive_digests_total sink=out": 8,
    }
    assert {name: shown.get(name) for name in expected} == expected
    assert not {
        "collect_lag_seconds account=test contract=2",
        "gap_seconds contract=2",
        "gaps contract=2 reason=dense",
    } & set(shown), "it is not polled"


def test_a_lag_is_never_negative_and_what_is_not_known_is_not_shown() -> None:
    overview = views.state([views.contract("2", watermark=NOW + 5, succeeded_at=None)], [])
    shown = values(Metrics(lambda: overview, lambda: NOW))
    assert shown["collect_lag_seconds account=default contract=2"] == 0
    assert not [name for name in shown if name.startswith("state_created")]
    assert shown["events_filtered_total reason=none"] == 0


def test_a_contract_that_was_never_read_shows_so_and_fires_the_alert_on_stale_polls() -> None:
    overview = views.state([views.contract("2", succeeded_at=None)], [])
    assert values(Metrics(lambda: overview, lambda: NOW))["last_poll_success_at_seconds contract=2"] == 0


def test_what_the_process_does_is_counted() -> None:
    metrics = Metrics(lambda: views.state([], []), lambda: NOW)
    metrics.observe_request("200", 0.25)
    metrics.observe_request("200", 0.5)
    metrics.observe_request("error", 2.0)
    metrics.batches_failed.labels("loki", "refused").inc()
    metrics.workers_stuck.set(2)
    metrics.replica_contracts.set(3)
    shown = values(metrics)
    assert (shown["api_requests_total code=200"], shown["api_requests_total code=error"]) == (2, 1)
    assert (shown["api_request_seconds_count"], shown["api_request_seconds_sum"]) == (3, 2.75)
    assert shown["batches_failed_total reason=refused sink=loki"] == 1
    assert (shown["workers_stuck"], shown["replica_contracts"]) == (2, 3)
    assert shown[f"build_info version={__version__}"] == 1


def test_each_metric_has_a_sentence() -> None:
    overview = views.state([views.contract()], [views.sink()], created_at=NOW)
    metrics = Metrics(lambda: overview, lambda: NOW)
    families = list(text_string_to_metric_families(metrics.render().decode()))
    assert len(families) > 30
    for family in families:
        words = family.documentation.rstrip(".")
        assert f"{words}." == family.documentation, family.name
        assert (words[0] != words[0].lower()) or words[0].isdigit(), family.name
        assert words != words.upper(), family.name
