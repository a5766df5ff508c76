"""The repair of an audit: what is missing is read once more, by the process that holds the state, or else here and now.

Nothing here prints; what a repair came to is returned.
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

_MAX_REPAIRS = 5  # more may become visible while one is done
_LOOK_AGAIN_SECONDS = 0.5


class Comparison(NamedTuple):
    """What comparing came to by contract, and which contracts could not be compared."""

    results: dict[str, Audited]
    failures: list[PollerError]

    @property
    def differences(self) -> list[Difference]:
        return [row for result in self.results.values() for row in result.differences]

    @property
    def missing(self) -> int:
        """How many entries the API holds that were not collected."""
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
    """What a repair came to. `comparison` is the last one; its failures are those of all rounds."""

    comparison: Comparison
    forgotten: int  # missing entries of hours whose identities were pruned: `backfill` exports those
    collected: int  # entries read here, which wait for the next delivery
    is_late: bool  # another process holds the state and has not read them yet


class Repair:
    """Repairs of one state: `run` compares, has what is missing read, and compares again, until nothing more comes of it."""

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
        """`auditor` compares; `reader` makes the collector that reads what is missing, where no other process holds the state.

        Where one does, it reads them at its next poll. It is waited for, `patience_seconds` long; `on_waiting` is called when
        that begins.
        """
        self._state = state
        self._auditor = auditor
        self._reader = reader
        self._stop = stop
        self._patience_seconds = patience_seconds
        self._on_waiting = on_waiting
        self._clock = clock

    def run(self, contracts: Sequence[str], span: Window, first: Comparison, *, by: Action) -> Repaired:
        """Repair what `first` found, and compare until nothing is missing, or a repair changes nothing.

        Commits: the spans to read again, what was read, and who asked for it.
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
        """How many entries were read here, what failed, and whether the process that holds the state is late."""
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
        """Whether something still waits to be read once more."""
        return any(span.purpose == "repair" for name in contracts for span in self._state.contracts.ranges(name))
