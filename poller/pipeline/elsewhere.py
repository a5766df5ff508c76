"""What `run` has collected for the sinks of a backfill, so that they do not get it twice. Changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from poller.core.events import Event
from poller.core.windows import Window
from poller.store.protocols import Stores


class Elsewhere:
    """Empty if `run` has no state, or does not know all of the sinks."""

    def __init__(self, stores: Stores, sinks: Sequence[str]) -> None:
        """`sinks`: the sinks of the backfill; empty if all entries are sent in any case."""
        self._run = stores.collected("run", sinks) if sinks and "run" in stores.uses() else None

    def collected(self, contract: str, events: Sequence[Event]) -> Collection[bytes]:
        """The identities of the events that `run` has collected since it knew the sinks."""
        if self._run is None:
            return ()
        unseen = {event.identity for event in self._run.unseen(contract, events)}
        return {event.identity for event in events if event.identity not in unseen}

    def forgotten(self, contracts: Iterable[str], window: Window) -> int:
        """How many entries of a window `run` collected so long ago that only their number is known."""
        return 0 if self._run is None else sum(self._run.forgotten(contract, window) for contract in contracts)

    def close(self) -> None:
        if self._run is not None:
            self._run.close()
