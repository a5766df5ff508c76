"""The Prometheus metrics, as docs/metrics.md lists them. Most are read from the state at the moment of the scrape.

So they survive restarts, always agree with `status`, and cost nothing between scrapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from poller import __version__
from poller.core.errors import StateUnavailableError
from poller.store.letters import NO_LETTERS
from poller.store.overview import Overview, SinkOverview
from poller.store.rows import Contract
from poller.system.telemetry import dropped_lines

_PREFIX = "ionos_poller_"
_AVAILABLE = "0 while the state cannot be read or takes no writes. Nothing is lost meanwhile: collecting waits."


class Metrics(Collector):
    """The registry of one process. `read` gives the state; it is called once a scrape."""

    def __init__(
        self,
        read: Callable[[], Overview],
        clock: Callable[[], float] = time.time,
        lost_leases: Callable[[], int] = lambda: 0,
        unavailable: Callable[[], Collection[str]] = lambda: (),
    ) -> None:
        """`lost_leases`: how often another replica took over a contract or sink of this process.

        `unavailable`: why some work cannot be done now because of the state.
        """
        self.registry = registry = CollectorRegistry()
        self._read = read
        self._clock = clock
        self._lost_leases = lost_leases
        self._unavailable = unavailable
        self._is_polled: Callable[[Contract], bool] = lambda row: True
        self._is_configured: Callable[[SinkOverview], bool] = lambda row: True

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(_PREFIX + name, text, labels, registry=registry)

        self.batches_failed = Counter(
            f"{_PREFIX}batches_failed", "Sends that failed and are tried again.", ["sink", "reason"], registry=registry
        )
        self.api_requests = Counter(
            f"{_PREFIX}api_requests", "Requests to the Activity Log API.", ["code"], registry=registry
        )
        self.api_request_seconds = Histogram(
            f"{_PREFIX}api_request_seconds", "How long the Activity Log API took to answer.", registry=registry
        )
        self.token_expires_at = gauge("token_expires_at_seconds", "When the API token expires.", "account")
        self.account_unread = gauge(
            "account_unread",
            "1 while the account has not said which contracts it has: nothing of it is polled.",
            "account",
        )
        self.clock_skew = gauge("clock_skew_seconds", "Our clock minus the API's.", "account")
        self.audit_missing = gauge(
            "audit_missing_events",
            "Entries the last audit found missing. They are collected at once; the next audit tells whether that worked.",
            "contract",
        )
        self.workers_stuck = gauge(
            "workers_stuck",
            "Polls, sinks and jobs that have waited longer than their time-outs allow. /healthz names them.",
        )
        self.replica_contracts = gauge("replica_contracts", "Contracts that this process polls and delivers.")
        gauge("build_info", "The version that runs.", "version").labels(__version__).set(1)
        registry.register(self)

    def keep(self, accounts: Collection[str], wants: Callable[[str], bool], sinks: Collection[str]) -> None:
        """Show the gauges of these accounts, wanted contracts and sinks only.

        Otherwise a contract or sink that is not used any more would keep its last value, and its alert would never end.
        """
        self._is_polled = lambda row: row.account in accounts and wants(row.contract)
        self._is_configured = lambda row: row.sink.name in sinks
        for gauge in (self.token_expires_at, self.clock_skew, self.account_unread):
            drop(gauge, lambda account: account not in accounts)
        polled = {row.contract for row in self._read().contracts if self._is_polled(row)}
        drop(self.audit_missing, lambda contract: contract not in polled)

    def observe_request(self, code: str, seconds: float) -> None:
        """One request to the API: its status, or `error` when no answer came."""
        self.api_requests.labels(code).inc()
        self.api_request_seconds.observe(seconds)

    def render(self) -> bytes:
        """The text of `/metrics`.  Raises: StateError."""
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Metric]:
        """Always empty, so that registering does not read the state."""
        return ()

    def collect(self) -> Iterable[Metric]:
        text = "How often this process lost its contracts to another replica."
        yield _counter("lease_lost", text, [], {(): self._lost_leases()})
        try:
            state = self._read()
        except StateUnavailableError:  # the rest comes back with it
            yield _gauge("state_available", _AVAILABLE, [], {(): 0})
            return
        yield _gauge("state_available", _AVAILABLE, [], {(): 0 if self._unavailable() else 1})
        yield from self._of_state(state)

    def _of_state(self, state: Overview) -> Iterable[Metric]:
        now = self._clock()
        by_contract = {row.contract: row for row in state.contracts}
        polled = [row for row in state.contracts if self._is_polled(row)]
        configured = [row for row in state.sinks if self._is_configured(row)]
        yield _counter(
            "events_collected",
            "New entries stored for delivery.",
            ["account", "contract"],
            {(row.account, row.contract): row.new for row in state.contracts},
        )
        for name, text, field in (
            ("duplicate", "Entries seen again in an overlap and dropped on purpose.", "seen"),
            ("late", "New entries older than the watermark.", "late"),
            ("repaired", "Entries an audit found missing, collected since.", "repaired"),
        ):
            values: dict[tuple[str, ...], float] = {
                (contract,): getattr(row, field) for contract, row in by_contract.items()
            }
            yield _counter(f"events_{name}", text, ["contract"], values)
        yield _counter(
            "events_filtered",
            "Entries left out by the configured filter.",
            ["reason"],
            {(reason,): count for reason, count in (state.filtered or {"none": 0}).items()},
        )
        yield _gauge(
            "collect_lag_seconds",
            "Age of the watermark: up to then the contract is complete.",
            ["account", "contract"],
            {(row.account, row.contract): max(0.0, now - row.watermark) for row in polled},
        )
        yield _gauge(
            "last_poll_success_at_seconds",
            "When the last poll of the contract succeeded; 0: none has yet.",
            ["contract"],
            # Without a value, the alert on a contract that cannot be read would not fire from the first day on.
            {(row.contract,): row.succeeded_at or 0 for row in polled},
        )
        yield _counter(
            "events_delivered",
            "Events the sink accepted.",
            ["sink"],
            {(row.sink.name,): row.sink.delivered for row in state.sinks},
        )
        yield _gauge(
            "dead_letters",
            "Events the sink refused for good, kept with the reason.",
            ["sink"],
            {(row.sink.name,): row.dead_letters for row in state.sinks},
        )
        for name, help_text in (
            ("written", "Dead letters ever written. They are at hand, replayed or purged."),
            ("replayed", "Dead letters that a person put back into the outbox."),
            ("purged", "Dead letters that a person deleted."),
        ):
            counts: dict[tuple[str, ...], float] = {
                (row.sink.name,): getattr(state.letters.get(row.sink.name, NO_LETTERS), name) for row in state.sinks
            }
            yield _counter(f"dead_letters_{name}", help_text, ["sink"], counts)
        yield _gauge(
            "outbox_events",
            "Events waiting for the sink.",
            ["sink"],
            {(row.sink.name,): row.waiting for row in state.sinks},
        )
        yield _gauge("outbox_bytes", "Bytes waiting in the outbox.", [], {(): state.outbox.bytes})
        yield _gauge(
            "deliver_lag_seconds",
            "How long the oldest undelivered event has been waiting.",
            ["sink"],
            {
                (row.sink.name,): max(0.0, now - row.waiting_since) if row.waiting_since is not None else 0.0
                for row in state.sinks
            },
        )
        if state.created_at is not None:
            text = "When the state was created: a new value means that it was lost, or its volume forgotten."
            yield _gauge("state_created_at_seconds", text, [], {(): state.created_at})
        yield _counter("log_lines_dropped", "Lines of the log that nobody read in time.", [], {(): dropped_lines()})
        yield from _gaps(state, {row.contract for row in polled})
        yield _counter(
            "events_sharing_id",
            "Entries that the API gave the same id as a different one; each was kept.",
            ["contract"],
            {(name,): row.sharing for name, row in by_contract.items()},
        )
        yield _gauge(
            "sink_parked",
            "1 while the sink refuses our credentials and waits for a person.",
            ["sink"],
            {(row.sink.name,): int(row.sink.parked_at is not None) for row in configured},
        )
        yield _gauge(
            "contracts_postponed",
            "Contracts that wait on their own, as the sink did not take them.",
            ["sink"],
            {(row.sink.name,): len(row.postponed) for row in configured},
        )
        yield _counter(
            "archive_digests",
            "Digests of the archive: each batch has one.",
            ["sink"],
            {(sink,): head.number for sink, head in state.archives.items()},
        )


def _gaps(state: Overview, contracts: Collection[str]) -> Iterator[Metric]:
    numbers: dict[tuple[str, ...], int] = {}
    seconds: dict[tuple[str, ...], int] = {(contract,): 0 for contract in contracts}
    for gap in state.gaps:
        if gap.is_open and gap.contract in contracts:
            numbers[gap.contract, gap.kind] = numbers.get((gap.contract, gap.kind), 0) + 1
            seconds[(gap.contract,)] += gap.window.seconds
    yield _gauge("gaps", "Spans that cannot be read, and that nobody has accepted.", ["contract", "reason"], numbers)
    yield _gauge("gap_seconds", "How long these spans are together.", ["contract"], seconds)


def _counter(name: str, text: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    return _filled(CounterMetricFamily(_PREFIX + name, text, labels=labels), values)


def _gauge(name: str, text: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    return _filled(GaugeMetricFamily(_PREFIX + name, text, labels=labels), values)


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[tuple[str, ...], float]
) -> CounterMetricFamily | GaugeMetricFamily:
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def drop(gauge: Gauge, is_gone: Callable[[str], bool]) -> None:
    """Remove the values whose only label names something that is gone."""
    for sample in next(iter(gauge.collect())).samples:
        (label,) = sample.labels.values()
        if is_gone(label):
            gauge.remove(label)
