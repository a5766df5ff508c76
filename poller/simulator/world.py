"""The data of the simulator: contracts with their logs, faults, intakes, counts of requests. It does not use the server.

Everything here may be called from any thread: by tests in the same process, and by the server.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from poller.core.errors import ConfigError
from poller.simulator.answers import Answer, Request
from poller.simulator.entries import EntryMaker
from poller.simulator.faults import SINK_NAMES, FaultPlan
from poller.simulator.intakes import Books, HttpIntake, Intake, LoggingIntake, MoesifIntake, Verdict, balance
from poller.simulator.log import ContractLog
from poller.simulator.loki import LokiIntake
from poller.simulator.opensearch import OpenSearchIntake
from poller.simulator.otlp import OtlpIntake
from poller.simulator.pipelines import PipelineService
from poller.simulator.settings import FIRST_CONTRACT, SimulatorSettings, change

Entry = Mapping[str, Any] | bytes


class _EntryMeta(msgspec.Struct):
    time: datetime | None = None


class _EntryTime(msgspec.Struct):
    meta: _EntryMeta = msgspec.field(default_factory=_EntryMeta)


class Traffic:
    """Counts of requests by kind and outcome, and the maximum within any one second."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.max_per_second = 0
        self._recent: deque[float] = deque()
        self._lock = threading.Lock()

    def arrive(self) -> None:
        """Count a request, now."""
        now = time.monotonic()
        with self._lock:
            self._recent.append(now)
            while self._recent[0] <= now - 1:
                self._recent.popleft()
            self.max_per_second = max(self.max_per_second, len(self._recent))

    def answer(self, kind: str, outcome: str) -> None:
        """Count the outcome of a request: its status, or the fault that replaced the status."""
        with self._lock:
            counts = self.counts.setdefault(kind, {})
            counts[outcome] = counts.get(outcome, 0) + 1


class World:
    """The Activity Log and a set of intakes: their entries, the events that they stored, their faults."""

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        settings = settings or SimulatorSettings()
        self.settings: SimulatorSettings = settings
        self._plan = FaultPlan(settings.faults, settings.seed)
        self.traffic = Traffic()
        self.sink_traffic = {name: Traffic() for name in SINK_NAMES}
        self.loki = LokiIntake()
        self.intakes: dict[str, Intake] = {
            intake.name: intake
            for intake in (LoggingIntake(), self.loki, MoesifIntake(), OtlpIntake(), OpenSearchIntake(), HttpIntake())
        }
        self.pipelines = PipelineService(self.now, lambda key: self.change_settings(api_key=key))
        self._intake_locks = {name: threading.Lock() for name in self.intakes}
        numbers = settings.contracts
        if isinstance(numbers, int):
            numbers = tuple(range(FIRST_CONTRACT, FIRST_CONTRACT + numbers))
        self.contracts: tuple[int, ...] = tuple(numbers)
        self.logs = {number: self._make_log(number) for number in numbers}
        self._fill()

    def _make_log(self, contract: int) -> ContractLog:
        settings = self.settings
        maker = EntryMaker(settings.seed, contract, with_uuid=settings.ids == "uuid", pad_to_bytes=settings.entry_bytes)
        return ContractLog(maker, live_per_second=settings.live_per_second)

    def _fill(self) -> None:
        """Make the history: `events` entries over the span. Future ones are shown when their time comes."""
        settings = self.settings
        span_ms = int(settings.span_seconds * 1000)
        end_ms = _to_ms(settings.end) if settings.end else int(self.now()) * 1000
        is_over = end_ms <= time.time() * 1000 and not self._plan.late
        for number in self.contracts:
            shown_at = None if is_over else partial(self._shown_at_its_time, number)
            self.logs[number].generate(settings.events, end_ms - span_ms, span_ms, shown_at)

    def _shown_at_its_time(self, contract: int, time_ms: int) -> float:
        return max(time_ms / 1000 - self.settings.date_skew_seconds, self._shown_at(contract, time_ms))

    def now(self) -> float:
        """The API's clock, in seconds."""
        return time.time() + self.settings.date_skew_seconds

    def _shown_at(self, contract: int, time_ms: int) -> float:
        """When an entry is shown, according to the faults of kind `late`."""
        if not self._plan.late:
            return 0.0
        return time.time() + self._plan.late_seconds(str(contract), max(0.0, self.now() - time_ms / 1000))

    # Changes

    def change_settings(self, **changes: Any) -> None:
        """Change what may be changed while running.

        Raises: ConfigError for a key that is unknown or fixed at the start, and for a bad value.
        """
        self.settings = change(self.settings, changes)

    def set_faults(self, specs: Sequence[str]) -> None:
        """Replace all faults. Raises: ConfigError for a bad spec; the old faults then stay."""
        self._plan = FaultPlan(specs, self.settings.seed, self._plan.struck)
        if self._plan.late:
            within_seconds = max(fault.within_seconds for fault in self._plan.late)
            for number, log in self.logs.items():
                log.hide(int((self.now() - within_seconds) * 1000), partial(self._shown_at, number))

    @property
    def faults(self) -> FaultPlan:
        return self._plan

    def add_entries(
        self,
        contract: int,
        entries: Iterable[Entry] = (),
        *,
        count: int = 0,
        at: datetime | None = None,
        span_seconds: float = 0,
        visible_in_seconds: float = 0,
    ) -> int:
        """Add given entries (mappings, or JSON), and `count` generated ones. Returns how many were added.

        A given entry is served unchanged. Its time is its `meta.time`, otherwise `at`. The generated ones
        are spread over `span_seconds` from `at` on. By default, `at` is now. No entry is shown before
        `visible_in_seconds` have passed.
        Raises: ConfigError for an unknown contract and for an entry that is not JSON.
        """
        log = self.logs.get(contract)
        if log is None:
            raise ConfigError.of("contract", f"{contract} is unknown")
        at_ms = _to_ms(at) if at else int(self.now() * 1000)
        start = time.time() + visible_in_seconds

        def visible_at(time_ms: int) -> float:
            return max(start, self._shown_at(contract, time_ms))

        given = [_timed(entry, at_ms) for entry in entries]
        log.give(given, visible_at)
        if count:
            log.generate(count, at_ms, int(span_seconds * 1000), visible_at)
        return len(given) + count

    # Results

    def oracle(self, contract: int, *, visible_only: bool = False) -> Iterator[bytes]:
        """Every entry as compact JSON, oldest first; also those not shown yet, unless `visible_only`."""
        return self.logs[contract].all(visible_only=visible_only)

    def books(self, intake: str, contracts: Iterable[int] | None = None) -> Books:
        """The comparison of the logs (of `contracts`, default all) with an intake of plain lines."""
        chosen = self.contracts if contracts is None else tuple(contracts)
        with self._intake_locks[intake]:
            return balance((line for number in chosen for line in self.oracle(number)), self.intakes[intake])

    def state(self) -> dict[str, Any]:
        """The figures of `GET /_simulator/state`."""
        contracts = {}
        for number, log in self.logs.items():
            total, visible = log.counts()
            contracts[str(number)] = {"total": total, "visible": visible}
        intakes = {}
        for name, intake in self.intakes.items():
            with self._intake_locks[name]:
                traffic = self.sink_traffic[name]
                outcomes = traffic.counts.get(name, {})
                intakes[name] = {
                    "requests": sum(outcomes.values()),
                    "outcomes": outcomes,
                    "max_requests_per_second": traffic.max_per_second,
                    **intake.state(),
                }
        return {
            "contracts": contracts,
            "api": {"requests": self.traffic.counts, "max_requests_per_second": self.traffic.max_per_second},
            "intakes": intakes,
            "faults": list(self._plan.specs),
        }

    def receive(self, name: str, request: Request, *, share: float = 1.0) -> Answer:
        """Let an intake judge a request, and store the first `share` of the accepted items."""
        settings, intake = self.settings, self.intakes[name]
        with self._intake_locks[name]:
            verdict: Verdict = intake.judge(request, settings)
            intake.refused += verdict.refused
            intake.store(verdict.items[: int(len(verdict.items) * share)], keep_lines=settings.keep_lines)
        return verdict.answer


def _to_ms(at: datetime) -> int:
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _timed(entry: Entry, default_ms: int) -> tuple[int, bytes]:
    body = entry if isinstance(entry, bytes) else msgspec.json.encode(entry)
    try:
        msgspec.json.decode(body)
        at = msgspec.json.decode(body, type=_EntryTime).meta.time
    except msgspec.ValidationError:
        at = None  # JSON, but not in an entry's shape: some tests need that
    except msgspec.DecodeError as error:
        raise ConfigError.of("entries", f"not JSON: {error}") from error
    return (_to_ms(at) if at else default_ms), body
