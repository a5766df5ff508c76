"""The dashboard of the poller itself, from Prometheus: is everything collected and delivered, and what needs a person."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard, QueryVariable, Row
from grafana_foundation_sdk.models.common import BigValueTextMode
from grafana_foundation_sdk.models.dashboard import VariableOption, VariableRefresh, VariableSort

from grafana.parts import Query, board, curves, number, source

ALL = 'instance=~"$instance"'
BY_CONTRACT = 'instance=~"$instance", contract=~"$contract"'
BY_SINK = 'instance=~"$instance", sink=~"$sink"'
DAY = 86_400
# Leaves out archives: their batches wait for an hour by design.
_NO_ARCHIVE = f"unless on (instance, sink) ionos_poller_archive_digests_total{{{BY_SINK}}}"


def metric(name: str, labels: str = ALL) -> str:
    return f"ionos_poller_{name}{{{labels}}}"


def rate(name: str, labels: str, by: str) -> str:
    """The rate of a counter that each process counts by itself."""
    return f"sum by ({by}) (rate({metric(name, labels)}[$__rate_interval]))"


def state_rate(name: str, labels: str, by: str) -> str:
    """The rate of a counter in the state: all replicas that share the state show the same count, so it is not added up."""
    return f"max by ({by}) (rate({metric(name, labels)}[$__rate_interval]))"


def state_gauge(name: str, labels: str, by: str) -> str:
    """A gauge of the state, also not added up."""
    return f"max by ({by}) ({metric(name, labels)})"


def dashboard() -> Dashboard:
    built = (
        board(
            "ionos-poller",
            "ionos-poller",
            "Is everything collected and delivered? Generated: see grafana/ in the source of ionos-poller.",
            "prometheus",
        )
        .with_variable(_choice("instance", "Instance", "ionos_poller_build_info"))
        .with_variable(_choice("contract", "Contract", "ionos_poller_collect_lag_seconds"))
        .with_variable(_choice("sink", "Sink", "ionos_poller_outbox_events"))
    )
    return _details(_delivering(_collecting(_overview(built))))


def _choice(label: str, title: str, of_metric: str) -> QueryVariable:
    return (
        QueryVariable(label)
        .label(title)
        .datasource(source("prometheus"))
        .query({"query": f"label_values({of_metric}, {label})", "refId": f"{label}Values"})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _overview(built: Dashboard) -> Dashboard:
    oldest_poll = f"time() - min({metric('last_poll_success_at_seconds', BY_CONTRACT)})"
    token_left = f"min({metric('token_expires_at_seconds')}) - time()"
    return (
        built.with_panel(
            number(
                "prometheus",
                "Oldest successful poll",
                Query(oldest_poll),
                unit="s",
                warning=180,
                critical=600,
                description="How long ago the contract that waits longest was last polled with success. Decades: never.",
            )
        )
        .with_panel(
            number(
                "prometheus",
                "Longest wait for a sink",
                Query(f"max({metric('deliver_lag_seconds', BY_SINK)} {_NO_ARCHIVE}) or vector(0)"),
                unit="s",
                warning=120,
                critical=900,
                description="How long the oldest undelivered event has been waiting, but for archives: they take an hour.",
            )
        )
        .with_panel(
            number(
                "prometheus",
                "Dead letters",
                Query(f"sum({state_gauge('dead_letters', BY_SINK, 'sink')})"),
                warning=1,
                critical=100,
            )
        )
        .with_panel(
            number(
                "prometheus",
                "Parked sinks",
                Query(f"sum({state_gauge('sink_parked', BY_SINK, 'sink')})"),
                critical=1,
                description="Sinks that refuse our credentials. Their events wait for a person.",
            )
        )
        .with_panel(
            number(
                "prometheus",
                "Contracts not taken",
                Query(f"sum({state_gauge('contracts_postponed', BY_SINK, 'sink')})"),
                warning=1,
                description="Contracts that a sink does not take while it takes others. Each waits on its own.",
            )
        )
        .with_panel(
            number(
                "prometheus",
                "Gaps",
                Query(f"sum({state_gauge('gaps', BY_CONTRACT, 'contract, reason')}) or vector(0)"),
                warning=1,
                description="Spans that cannot be read, and that nobody has accepted. All else is collected.",
            )
        )
        .with_panel(
            number(
                "prometheus",
                "Missing, says the audit",
                Query(f"sum({metric('audit_missing_events', BY_CONTRACT)})"),
                critical=1,
                description="Entries that the last self-audit found missing and that are not repaired yet.",
            )
        )
        .with_panel(
            number(
                "prometheus",
                "Accounts not read",
                Query(f"sum({state_gauge('account_unread', ALL, 'account')})"),
                critical=1,
                description="Accounts that have not said which contracts they have: nothing of them is polled.",
            )
        )
        .with_panel(
            number("prometheus", "Token expires in", Query(token_left), unit="s", warning=14 * DAY, critical=3 * DAY)
        )
    )


def _collecting(built: Dashboard) -> Dashboard:
    return (
        built.with_row(Row("Collecting"))
        .with_panel(
            curves(
                "prometheus",
                "New entries",
                Query(
                    state_rate("events_collected_total", BY_CONTRACT, "account, contract"), "{{account}} {{contract}}"
                ),
                unit="cps",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Age of the watermark",
                Query(state_gauge("collect_lag_seconds", BY_CONTRACT, "account, contract"), "{{account}} {{contract}}"),
                unit="s",
                description="Up to the watermark a contract is complete, but for what the API shows late.",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Gaps",
                Query(state_gauge("gap_seconds", BY_CONTRACT, "contract"), "{{contract}}"),
                unit="s",
                description="How long the spans of a contract are that cannot be read, and that nobody has accepted.",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Seen again, late, repaired, filtered",
                Query(
                    f"sum({state_rate('events_duplicate_total', BY_CONTRACT, 'contract')})", "seen again in the overlap"
                ),
                Query(f"sum({state_rate('events_late_total', BY_CONTRACT, 'contract')})", "shown late by the API"),
                Query(f"sum({state_rate('events_repaired_total', BY_CONTRACT, 'contract')})", "repaired by an audit"),
                Query(
                    f"sum({state_rate('events_sharing_id_total', BY_CONTRACT, 'contract')})",
                    "under an id that another has, too",
                ),
                Query(state_rate("events_filtered_total", ALL, "reason"), "filtered: {{reason}}"),
                unit="cps",
            )
        )
    )


def _delivering(built: Dashboard) -> Dashboard:
    return (
        built.with_row(Row("Delivering"))
        .with_panel(
            curves(
                "prometheus",
                "Delivered",
                Query(state_rate("events_delivered_total", BY_SINK, "sink"), "{{sink}}"),
                unit="cps",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Digests of archives",
                Query(state_gauge("archive_digests_total", BY_SINK, "sink"), "{{sink}}"),
                description="Each batch of an archive has one. Where the line does not rise for hours, it stands still.",
            )
        )
        .with_panel(
            curves("prometheus", "Waiting events", Query(state_gauge("outbox_events", BY_SINK, "sink"), "{{sink}}"))
        )
        .with_panel(
            curves(
                "prometheus",
                "Outbox",
                Query(metric("outbox_bytes"), "{{instance}}"),
                unit="bytes",
                description="At outbox.max_bytes, dead letters included, collecting pauses; nothing is dropped.",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Age of the oldest waiting event",
                Query(state_gauge("deliver_lag_seconds", BY_SINK, "sink"), "{{sink}}"),
                unit="s",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Failed sends",
                Query(rate("batches_failed_total", BY_SINK, "sink, reason"), "{{sink}}: {{reason}}"),
                unit="cps",
                description="Batches that were not taken and are tried again.",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Dead letters",
                Query(state_gauge("dead_letters", BY_SINK, "sink"), "{{sink}}"),
                Query(state_gauge("dead_letters_written_total", BY_SINK, "sink"), "{{sink}}: written"),
                Query(state_gauge("dead_letters_replayed_total", BY_SINK, "sink"), "{{sink}}: replayed"),
                Query(state_gauge("dead_letters_purged_total", BY_SINK, "sink"), "{{sink}}: purged"),
                description="Those at hand, and what became of all: written = at hand + replayed + purged.",
            )
        )
    )


def _details(built: Dashboard) -> Dashboard:
    buckets = rate("api_request_seconds_bucket", ALL, "le")
    return (
        built.with_row(Row("The Activity Log API, and ourselves"))
        .with_panel(
            curves(
                "prometheus",
                "Requests by status",
                Query(rate("api_requests_total", ALL, "code"), "{{code}}"),
                unit="reqps",
                is_stacked=True,
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "How long it takes to answer",
                Query(f"histogram_quantile(0.5, {buckets})", "half of the requests"),
                Query(f"histogram_quantile(0.95, {buckets})", "95 %"),
                unit="s",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Our clock minus the API's",
                Query(metric("clock_skew_seconds"), "{{account}}"),
                unit="s",
                is_signed=True,
                description="Above 0: this machine's clock is ahead.",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Workers that hang",
                Query(metric("workers_stuck"), "{{instance}}"),
                description="They have waited longer than their time-outs allow: /healthz names them.",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Dropped log lines",
                Query(rate("log_lines_dropped_total", ALL, "instance"), "{{instance}}"),
                unit="cps",
                description="Whatever reads stderr was too slow, or hung. The work goes on.",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "Contracts of each replica",
                Query(metric("replica_contracts"), "{{instance}}"),
                is_stacked=True,
                description="With a state in PostgreSQL. One that stops gives its share to the others.",
            )
        )
        .with_panel(
            curves(
                "prometheus",
                "State that can be reached, and lost leases",
                Query(metric("state_available"), "{{instance}}: 1 is yes"),
                Query(f"increase({metric('lease_lost_total')}[10m])", "{{instance}}: leases lost in 10 minutes"),
                description="While the state cannot be reached, collecting waits. Nothing is lost.",
            )
        )
        .with_panel(
            number(
                "prometheus",
                "Age of the state",
                Query(f"time() - {metric('state_created_at_seconds')}", "{{instance}}"),
                unit="s",
                width=8,
                description="Back to nothing: the state was lost, or the container has no volume for it.",
            )
        )
        .with_panel(
            number("prometheus", "Version", Query(metric("build_info"), "{{version}}"), width=8).text_mode(
                BigValueTextMode.NAME
            )
        )
    )
