"""One poll of every contract, delivered to one sink: what `fetch` does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from poller.config import Config
from poller.core.errors import PollerError
from poller.core.events import Event
from poller.ionos.api import ActivityLog
from poller.pipeline.collect import Collector, PollResult
from poller.pipeline.deliver import Deliverer
from poller.pipeline.room import by_delivery
from poller.pipeline.transfer import Transfer
from poller.sinks.base import Sink
from poller.store.protocols import State
from poller.store.rows import Prepared


class Fetched(NamedTuple):
    """The result of a fetch. `failures`: why contracts or whole accounts were not polled, or failed."""

    polls: list[PollResult]
    failures: list[PollerError]
    delivered: int


def fetch(
    state: State,
    accounts: Mapping[str, ActivityLog],
    config: Config,
    sink: Sink,
    stop: threading.Event,
    *,
    only: Sequence[str] = (),
    prepare: Callable[[str, Sequence[Event]], Prepared] = lambda contract, events: Prepared(events),
    clock: Callable[[], float] = time.time,
) -> Fetched:
    """Collect new events and deliver them, together with events left over from an earlier run.

    Commits: windows, deliveries, and the removal of old identities.
    Raises: what `Transfer.run` does.
    """
    transfer = Transfer([Deliverer(state.outbox, sink)], stop)
    collector = Collector(
        state,
        accounts,
        config,
        stop=stop,
        prepare=prepare,
        on_window=transfer.after_window,
        room_may_come=by_delivery,
        clock=clock,
    )
    failures: list[PollerError] = []

    def discover() -> list[str]:
        found, failed = collector.discover(only=only)
        failures.extend(failed)
        if not only:  # what an earlier run has left of contracts that are not polled any more
            state.contracts.take_left_over(found)
        return found

    polls = transfer.run(collector, discover, config.api.concurrency)
    state.prune(config.poll.ledger_retention_seconds, config.poll.overlap_seconds, int(clock()))
    return Fetched(polls, failures + [poll.failure for poll in polls if poll.failure], transfer.delivered)
