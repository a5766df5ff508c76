"""The events that `run` has collected or will collect for the sinks of a backfill, which must not get them twice. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from poller.config import Poll
from poller.core.events import Event
from poller.core.windows import Window
from poller.pipeline.status import STALE_INTERVALS
from poller.store.protocols import Collected, Stores

_MICROSECONDS = 1_000_000


class Elsewhere:
    """Empty if `run` has no state, or does not know all of the sinks."""

    def __init__(self, stores: Stores, sinks: Sequence[str], poll: Poll, clock: Callable[[], float]) -> None:
        """`sinks`: the sinks of the backfill; empty if all entries are sent in any case."""
        self._run = stores.collected("run", sinks) if sinks and "run" in stores.uses() else None
        self._poll = poll
        self._clock = clock

    def collected(self, contract: str, events: Sequence[Event]) -> Collection[bytes]:
        """The identities of the events that `run` has collected since it knew the sinks, or will collect."""
        if self._run is None or not self._run.knows_sinks:
            return ()
        unseen = {event.identity for event in self._run.unseen(contract, events)}
        left = {event.identity for event in events if event.identity not in unseen}
        return left.union(event.identity for event in self._expected(self._run, contract, events))

    def _expected(self, run: Collected, contract: str, events: Sequence[Event]) -> Sequence[Event]:
        """The events that `run` has not collected, but will: with its next poll or self-audit."""
        row, now, poll = run.contract(contract), self._clock(), self._poll
        if row is None or abs(now - (row.succeeded_at or 0)) > STALE_INTERVALS * poll.interval_seconds:
            return ()  # it is not polled now, or a clock was ahead
        start = row.watermark - poll.overlap_seconds
        if poll.audit_interval_seconds:
            start = min(start, row.audited_at - poll.audit_span_seconds)
        start = max(start, row.origin, int(now) - poll.ledger_retention_seconds)
        found = [event for event in events if event.time_us >= start * _MICROSECONDS]
        gaps = run.accepted_gaps(contract) if found else ()
        return run.unknown(contract, [event for event in found if not _is_in(event, gaps)])

    def forgotten(self, contracts: Iterable[str], window: Window) -> int:
        """How many entries of a window `run` collected so long ago that only their number is known."""
        return 0 if self._run is None else sum(self._run.forgotten(contract, window) for contract in contracts)

    def close(self) -> None:
        if self._run is not None:
            self._run.close()


def _is_in(event: Event, spans: Iterable[Window]) -> bool:
    return any(span.start <= event.time_us // _MICROSECONDS < span.end for span in spans)
