"""What becomes of events that the other side refuses for their age."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from poller.core.delivery import Accepted, Outcome, RetryAfter
from poller.core.events import OutboxEvent
from poller.core.mapping import format_time_us
from poller.sinks.base import Context

_SET_CLOCK = "check that the API can be reached and that the clock is right: set it with NTP"


class AgeLimit:
    """How old an event may be. Older ones are refused here, and cost no request; `what` tells a person of the limit.

    `trusted_now` is the time that our clock and the API's agree on, in unix seconds; None while that is not known, or the clocks
    are too far apart: then what looks too old by `clock` waits, since a clock that is wrong must cost no event.
    """

    def __init__(self, seconds: float, what: str, context: Context, clock: Callable[[], float]) -> None:
        self._trusted_now = context.trusted_now or clock
        self._seconds = seconds
        self._what = what
        self._too_old = context.too_old
        self._clock = clock

    def as_sent(self, events: Sequence[OutboxEvent]) -> Sequence[OutboxEvent]:
        """The events with the times that they are sent with: as `stamp-now` makes them."""
        if self._too_old != "stamp-now":
            return events
        oldest_us = self._oldest_us()
        return [_stamped(event) if event.time_us < oldest_us else event for event in events]

    def _oldest_us(self) -> int:
        """The time before which an event is too old; without a trusted time, before which it looks so."""
        now, trusted = self._clock(), self._trusted_now()
        return round(((now if trusted is None else min(now, trusted)) - self._seconds) * 1_000_000)

    def send(self, events: Sequence[OutboxEvent], send: Callable[[Sequence[OutboxEvent]], Outcome]) -> Outcome:
        """Send those that are young enough, or as `stamp-now` makes them so; what became of all of them."""
        oldest_us = self._oldest_us()
        events = self.as_sent(events)
        old = {
            index: f"older than {self._what}: {format_time_us(event.time_us)}"
            for index, event in enumerate(events)
            if event.time_us < oldest_us
        }
        if not old:
            return send(events)
        young = [index for index in range(len(events)) if index not in old]
        outcome = send([events[index] for index in young]) if young else Accepted()
        if not isinstance(outcome, Accepted):
            return outcome
        refused = {young[index]: reason for index, reason in outcome.refused.items()}
        retry = [young[index] for index in outcome.retry]
        # Without the status: it is not that of the events that were not sent.
        if self._trusted_now() is None:
            why = f"events look older than {self._what}, but the API's clock does not confirm this machine's ({_SET_CLOCK})"
            return Accepted(refused, tuple(sorted([*retry, *old])), None, outcome.later or RetryAfter(why))
        return Accepted(old | refused, tuple(retry), None, outcome.later)


def _stamped(event: OutboxEvent) -> OutboxEvent:
    """The event with the time at which it was collected, which a repeat does not change; its own stays in the line."""
    return msgspec.structs.replace(event, time_us=event.collected_at * 1_000_000)
