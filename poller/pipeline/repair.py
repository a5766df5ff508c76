"""The repair of an audit: missing entries are read once more, by the process that holds the state, otherwise here.

Nothing here prints; the result is returned.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from poller.core.errors import PollerError, StateError, StateHeldError, StoppedError
from poller.core.windows import Window
from poller.pipeline.audit import Audited, Difference
from poller.pipeline.collect import Collector
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.store.journal import Action
from poller.store.protocols import State

_MAX_REPAIRS = 5  # more entries may become visible during a repair
_LOOK_AGAIN_SECONDS = 0.5


class Comparison(NamedTuple):
    """The results of comparing by contract, and the contracts that could not be compared."""

    results: dict[str, Audited]
    failures: list[PollerError]

    @property
    def differences(self) -> list[Difference]:
        return [row for result in self.results.values() for row in result.differences]

    @property
    def missing(self) -> int:
        """How many entries of the API were not collected."""
        return sum(difference.missing for difference in self.differences)


def compare(auditor: LedgerAuditor, contracts: Sequence[str], span: Window) -> Comparison:
    """Audit the contracts one after the other; one that fails does not stop the others.  Raises: StateError."""
    results: dict[str, Audited] = {}
    failures: list[PollerError] = []
    for contract in contracts:
        try:
            results[contract] = auditor.audit(contract, span, by_reading=True)
        except StateError:
            raise
        except PollerError as error:
            error.contract = error.contract or contract
            failures.append(error)
    return Comparison(results, failures)


class Repaired(NamedTuple):
    """The result of a repair. `comparison` is the last one, with the failures of all rounds."""

    comparison: Comparison
    forgotten: int  # missing entries of hours whose identities were pruned: `backfill` exports those
    collected: int  # entries read here, which wait for the next delivery
    is_late: bool  # another process holds the state and has not read them yet


class Repair:
    """Repairs of one state: `run` compares, requests missing entries, and compares again, until nothing changes any more."""

    def __init__(
        self,
        state: State,
        auditor: LedgerAuditor,
        reader: Callable[[], Collector],
        stop: threading.Event,
        *,
        patience_seconds: float,
        on_waiting: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`auditor` compares; `reader` makes the collector that reads missing entries, if no other process holds the state.

        Otherwise that process reads them at its next poll. The repair waits for it for `patience_seconds`, and calls `on_waiting`
        when the wait begins.
        """
        self._state = state
        self._auditor = auditor
        self._reader = reader
        self._stop = stop
        self._patience_seconds = patience_seconds
        self._on_waiting = on_waiting
        self._clock = clock

    def run(self, contracts: Sequence[str], span: Window, first: Comparison, *, by: Action) -> Repaired:
        """Repair the differences of `first`, and compare again until nothing is missing, or a repair changes nothing.

        Commits: the spans to read again, the entries, and who requested it.
        Raises: StateError, StoppedError.
        """
        forgotten = sum(difference.missing for difference in first.differences if difference.forgotten)
        repaired = Repaired(Comparison(first.results, []), forgotten, 0, is_late=False)
        for _ in range(_MAX_REPAIRS):
            before = repaired.comparison.missing
            collected, failures, is_late = self._read_missing(repaired.comparison.differences, by)
            after = compare(self._auditor, contracts, span)
            failures = [*repaired.comparison.failures, *failures, *after.failures]
            repaired = Repaired(
                Comparison(after.results, failures),
                forgotten,
                repaired.collected + collected,
                repaired.is_late or is_late,
            )
            if failures or not 0 < after.missing < before:
                break
        return repaired

    def _read_missing(self, differences: Sequence[Difference], by: Action) -> tuple[int, list[PollerError], bool]:
        """How many entries were read here, the failures, and whether the process that holds the state is late."""
        if not self._auditor.repair(differences, by=by):
            return 0, [], False
        contracts = sorted({difference.contract for difference in differences})
        deadline: float | None = None
        collected, failures = 0, list[PollerError]()
        while True:
            with ExitStack() as hold:
                if self._hold(hold):
                    collector = self._reader()
                    polls = [collector.collect(contract) for contract in contracts]
                    collected += sum(poll.repaired for poll in polls)
                    failures += [poll.failure for poll in polls if poll.failure]
                    contracts = [poll.contract for poll in polls if poll.is_elsewhere]  # its replica reads it
                    if not contracts:
                        return collected, failures, False
            if deadline is None:
                deadline = self._clock() + self._patience_seconds
                self._on_waiting()
            if not self._is_wanted(contracts):
                return collected, failures, False
            if self._clock() >= deadline:
                return collected, failures, True
            if self._stop.wait(_LOOK_AGAIN_SECONDS):
                raise StoppedError("asked to stop")

    def _hold(self, hold: ExitStack) -> bool:
        try:
            hold.enter_context(self._state.held())
        except StateHeldError:
            return False
        return True

    def _is_wanted(self, contracts: Collection[str]) -> bool:
        """Whether a span still waits to be read once more."""
        return any(span.purpose == "repair" for name in contracts for span in self._state.contracts.ranges(name))
