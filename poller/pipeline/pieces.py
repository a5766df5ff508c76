"""Runs of the outbox that a deliverer has in hand. Pure values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from poller.core.events import OutboxEvent, StoredEvents
from poller.core.mapping import SHORTEST_BYTES, truncated
from poller.sinks.base import Sink
from poller.store.rows import DeadLetter

Key = tuple[str, bytes, int, int]
"""What tells an event from all others in the outbox: contract, identity, ordinal, and for a replayed one when that was."""


def key_of(event: OutboxEvent) -> Key:
    return event.contract, event.identity, event.ordinal, event.collected_at


class Piece(NamedTuple):
    """A run of the outbox in order, not settled yet: what is `dead` or `delivered` of it, by index; the rest still waits."""

    events: Sequence[OutboxEvent]
    dead: Mapping[int, DeadLetter]
    delivered: frozenset[int] = frozenset()

    def open(self) -> Sequence[int]:
        """The indexes of the events that are still to be sent."""
        if not self.dead and not self.delivered:
            return range(len(self.events))
        return [index for index in range(len(self.events)) if index not in self.dead and index not in self.delivered]

    def halves(self) -> tuple[Piece, Piece]:
        """Two runs, with as many events to be sent in the first as in the second, or one less."""
        still = self.open()
        cut = still[len(still) // 2]
        return self.part(0, cut), self.part(cut, len(self.events))

    def part(self, start: int, end: int) -> Piece:
        """The events from `start` to before `end`, with what is known of each."""
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
        """The same with one event, which alone is too large for the other side, half as long, or dead unless `is_cut`."""
        event = self.events[index]
        shorter = max(SHORTEST_BYTES, len(event.line) // 2)
        if not is_cut or shorter >= len(event.line):
            return self._replace(dead={**self.dead, index: DeadLetter(event, status, reason)})
        events = list(self.events)
        events[index] = event.with_line(truncated(event.line, shorter))
        return self._replace(events=events)

    def done(self) -> Iterator[tuple[OutboxEvent, DeadLetter | None]]:
        """The events that are done with, each with its dead letter if it was refused for good."""
        for index in sorted({*self.dead, *self.delivered}):
            yield self.events[index], self.dead.get(index)

    def knowing(self, done: Mapping[Key, DeadLetter | None]) -> Piece:
        """The same events, with what is known of some from an earlier send: a dead letter, or (None) that it was delivered."""
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
    """The events as this sink may see them, in the parts in which it takes them. As such they become dead letters, too."""
    settings = sink.settings
    seen = events if redact is None else [event.with_line(redact(event.line)) for event in events]
    for part in sink.parts(seen):
        yield fitting(part, settings.max_event_bytes, is_cut=settings.oversize == "truncate")


def fitting(events: Sequence[OutboxEvent], most_bytes: int, *, is_cut: bool) -> Piece:
    """The events, those with a line of more than `most_bytes` shortened to that, or dead unless `is_cut`."""
    if isinstance(events, StoredEvents) and events.longest_bytes() <= most_bytes:
        return Piece(events, {})  # without a look at each
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
