"""What `/metrics` shows, and what it shows no more."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from poller.service.metrics import Metrics
from poller.store.rows import Contract
from tests import views

NOW = 1_777_593_600


def row(contract: str, account: str) -> Contract:
    return Contract(contract, account, 0, NOW - 60, 0, 5, 0, 0, 0, 0, NOW, None, "", NOW)


ROWS = [row("1", "prod"), row("2", "prod"), row("3", "test")]


def shown(metrics: Metrics, names: Iterable[str]) -> dict[str, set[str]]:
    """Metric to the last of the labels that it has values for."""
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
    for contract in ("1", "2", "3"):
        metrics.audit_missing.labels(contract).set(1)
    by_account, by_contract = (
        {"token_expires_at_seconds", "clock_skew_seconds"},
        {"audit_missing_events", "collect_lag_seconds", "last_poll_success_at_seconds"},
    )
    metrics.keep({"prod", "test"}, lambda contract: True)
    assert shown(metrics, by_account) == {name: {"prod", "test"} for name in by_account}
    assert shown(metrics, by_contract) == {name: {"1", "2", "3"} for name in by_contract}
    metrics.keep({"prod"}, lambda contract: contract != "2")
    assert shown(metrics, by_account) == {name: {"prod"} for name in by_account}
    assert shown(metrics, by_contract) == {name: {"1"} for name in by_contract}
    # What was counted stays counted.
    assert shown(metrics, ["events_collected"]) == {"events_collected": {"1", "2", "3"}}
