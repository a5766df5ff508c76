"""An answer of 403: is it for our credentials, or for what is in one event?

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

_MOST_SUSPECTS = 256


class _Suspect(NamedTuple):
    """An event that was answered with 403: how often again after others were accepted, and how many were by then."""

    times: int
    accepted: int


class Forbidden:
    """What one sink answers with 403. A suspect is an event alone, or the first one of several."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._accepted = 0
        self._suspects: dict[Key, _Suspect] = {}

    def note(self, events: Sequence[OutboxEvent], decision: Decision) -> None:
        """These events were answered with something other than 403."""
        for event in events if self._suspects else ():
            self._suspects.pop(key_of(event), None)
        if isinstance(decision, Settle) and len(decision.dead) + len(decision.retry) < len(events):
            self._accepted += 1

    def is_proven(self, event: OutboxEvent, count: int) -> bool:
        """Note that `count` events, this one first, were answered with 403.

        Returns: whether it is known that this is not for the credentials.
        """
        known = self._suspects.pop(key_of(event), _Suspect(0, self._accepted))
        times = known.times + (self._accepted > known.accepted)
        self._suspects[key_of(event)] = _Suspect(times, self._accepted)
        if len(self._suspects) > _MOST_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        return times >= (FORBIDDEN_TIMES if count == 1 else 1)

    def is_another_accepted(self, pieces: MutableSequence[Piece], count: int) -> bool:
        """Send one event alone: any of these pieces, but not the first if only that one (`count`) was answered with 403.

        Returns: whether its request was accepted. What became of the event is then noted in its piece.
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
        if isinstance(outcome, Refused):
            return False
        self._accepted += 1
        return True
