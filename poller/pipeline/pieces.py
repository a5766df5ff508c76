"""Runs of the outbox that a deliverer has in hand, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from poller.core.events import OutboxEvent, StoredEvents
from poller.core.mapping import SHORTEST_BYTES, truncated
from poller.sinks.base import Sink
from poller.store.rows import DeadLetter

Key = tuple[str, bytes, int, int]
"""The key of an event in the outbox: contract, identity, ordinal, and the time of collection or replay."""


def key_of(event: OutboxEvent) -> Key:
    return event.contract, event.identity, event.ordinal, event.collected_at


class Piece(NamedTuple):
    """A run of the outbox, in order and not settled: the indexes that are `dead` or `delivered`; all other events still wait."""

    events: Sequence[OutboxEvent]
    dead: Mapping[int, DeadLetter]
    delivered: frozenset[int] = frozenset()

    def open(self) -> Sequence[int]:
        """The indexes of the events that must still be sent."""
        if not self.dead and not self.delivered:
            return range(len(self.events))
        return [index for index in range(len(self.events)) if index not in self.dead and index not in self.delivered]

    def halves(self) -> tuple[Piece, Piece]:
        """Two runs. The first one has as many unsent events as the second, or one less."""
        still = self.open()
        cut = still[len(still) // 2]
        return self.part(0, cut), self.part(cut, len(self.events))

    def part(self, start: int, end: int) -> Piece:
        """The events from `start` to before `end`, with their known outcomes."""
        dead = {index - start: letter for index, letter in self.dead.items() if start <= index < end}
        delivered = frozenset(index - start for index in self.delivered if start <= index < end)
        return Piece(self.events[start:end], dead, delivered)

    def without(self, contracts: Collection[str]) -> Piece:
        """The events of all other contracts."""
        kept = [index for index, event in enumerate(self.events) if event.contract not in contracts]
        places = {index: place for place, index in enumerate(kept)}
        return Piece(
            [self.events[index] for index in kept],
            {places[index]: letter for index, letter in self.dead.items() if index in places},
            frozenset(places[index] for index in self.delivered if index in places),
        )

    def shrunk(self, index: int, reason: str, status: int | None, *, is_cut: bool) -> Piece:
        """The same piece after one event was too large for the receiver: it is cut to half its length if `is_cut`, else dead."""
        event = self.events[index]
        shorter = max(SHORTEST_BYTES, len(event.line) // 2)
        if not is_cut or shorter >= len(event.line):
            return self._replace(dead={**self.dead, index: DeadLetter(event, status, reason)})
        events = list(self.events)
        events[index] = event.with_line(truncated(event.line, shorter))
        return self._replace(events=events)

    def done(self) -> Iterator[tuple[OutboxEvent, DeadLetter | None]]:
        """The finished events, each with its dead letter if it was refused."""
        for index in sorted({*self.dead, *self.delivered}):
            yield self.events[index], self.dead.get(index)

    def knowing(self, done: Mapping[Key, DeadLetter | None]) -> Piece:
        """The same piece with the known outcomes of an earlier send: a dead letter, or None for a delivered event."""
        if not done:
            return self
        dead, delivered = dict(self.dead), set(self.delivered)
        for index, event in enumerate(self.events):
            if (key := key_of(event)) in done:
                letter = done[key]
                if letter is None:
                    delivered.add(index)
                else:
                    dead[index] = letter
        return Piece(self.events, dead, frozenset(delivered))


def pieces_of(sink: Sink, events: Sequence[OutboxEvent], redact: Callable[[bytes], bytes] | None) -> Iterator[Piece]:
    """The events, redacted and cut for this sink, in the parts that it sends. Dead letters hold them in the same form."""
    settings = sink.settings
    seen = events if redact is None else [event.with_line(redact(event.line)) for event in events]
    for part in sink.parts(seen):
        yield fitting(part, settings.max_event_bytes, is_cut=settings.oversize == "truncate")


def fitting(events: Sequence[OutboxEvent], most_bytes: int, *, is_cut: bool) -> Piece:
    """The events. A line of more than `most_bytes` is cut to that length, or is dead unless `is_cut`."""
    if isinstance(events, StoredEvents) and events.longest_bytes() <= most_bytes:
        return Piece(events, {})  # no need to look at each event
    fitted = list(events)
    dead = {}
    for index, event in enumerate(events):
        if len(event.line) <= most_bytes:
            continue
        if is_cut:
            fitted[index] = event.with_line(truncated(event.line, most_bytes))
        else:
            reason = f"larger than max_event_bytes: {len(event.line)} > {most_bytes}"
            dead[index] = DeadLetter(event, None, reason)
    return Piece(fitted, dead)
