"""An answer of 403: it concerns our credentials, or the content of a single event.

A firewall in front of a receiver answers 403 when it blocks the content of an event. One such event must not stop the events
behind it, and an expired key must not turn a single event into a dead letter. So other events decide: if one is accepted after
the 403, the credentials are valid. The blocked event is found by halving. It is refused once it was answered with 403 again
after others were accepted, FORBIDDEN_TIMES in all.
"""

from __future__ import annotations

import random
from collections.abc import MutableSequence, Sequence
from typing import NamedTuple

from poller.core.delivery import FORBIDDEN_TIMES, Accepted, Decision, Refused, Settle
from poller.core.events import OutboxEvent
from poller.pipeline.pieces import Key, Piece, key_of
from poller.sinks.base import Sink
from poller.store.rows import DeadLetter

_MOST_SUSPECTS = 256  # the oldest is dropped, and then needs more attempts


class _Suspect(NamedTuple):
    """How often an event got 403 again after others were accepted, and how many sends were accepted by then."""

    times: int
    accepted: int


class Forbidden:
    """The answers of 403 of one sink. A suspect is the single event of a request, or the first one of several."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._accepted = 0
        self._suspects: dict[Key, _Suspect] = {}

    def note(self, events: Sequence[OutboxEvent], decision: Decision) -> None:
        """Note that these events got an answer other than 403."""
        for event in events if self._suspects else ():
            self._suspects.pop(key_of(event), None)
        if isinstance(decision, Settle) and len(decision.dead) + len(decision.retry) < len(events):
            self._accepted += 1

    def is_proven(self, event: OutboxEvent, count: int) -> bool:
        """Note that `count` events, this one first, were answered with 403.

        Returns: whether it is proven that the credentials are not the reason.
        """
        known = self._suspects.pop(key_of(event), _Suspect(0, self._accepted))
        times = known.times + (self._accepted > known.accepted)
        self._suspects[key_of(event)] = _Suspect(times, self._accepted)
        if len(self._suspects) > _MOST_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        return times >= (FORBIDDEN_TIMES if count == 1 else 1)

    def is_another_accepted(self, pieces: MutableSequence[Piece], count: int) -> bool:
        """Send one event alone: any of these pieces, but not the first if only that one (`count`) was answered with 403.

        Returns: whether its request was accepted. The outcome of the event is noted in its piece.
        """
        places = [(number, index) for number, piece in enumerate(pieces) for index in piece.open()]
        others = places if count > 1 else places[1:]
        if not others:
            return False
        number, index = random.choice(others)
        piece = pieces[number]
        event = piece.events[index]
        outcome = self._sink.send([event])
        match outcome:
            case Accepted({0: reason}, status=status) | Refused(reason, status):
                pieces[number] = piece._replace(dead={**piece.dead, index: DeadLetter(event, status, reason)})
            case Accepted(retry=()):
                pieces[number] = piece._replace(delivered=piece.delivered | {index})
            case _:
                return False
        is_accepted = isinstance(outcome, Accepted)
        self._accepted += is_accepted
        return is_accepted
