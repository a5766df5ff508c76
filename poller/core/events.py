"""Events: entries of the audit trail with what we know about them, as they are stored and sent. `answers.py` makes them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import msgspec

from poller.core.identity import canonical, digest

_PIECE = 256  # events that are rendered at once


class Event(msgspec.Struct, frozen=True, gc=False):
    """One entry of the audit trail, with what we know about it.

    `identity` is the same for every read of the same entry and differs for different ones, within a contract.
    `has_id` says whether it depends on an id from the API; otherwise it is a hash of the content, and `ordinal` is the number
    of equal entries before this one. `time_us` is in microseconds since 1970, the entry's own if `is_timed`.
    `line` is compact JSON in UTF-8, without a newline. `shared_id` is the identity that the API's id alone would give. It is set
    only if the API gave one id to several different entries; `ordinal` is then 1.
    """

    time_us: int
    identity: bytes
    line: bytes
    has_id: bool = True
    is_timed: bool = True
    ordinal: int = 0
    shared_id: bytes = b""

    def duplicate(self, ordinal: int) -> Event:
        """A separate entry with the same content: `ordinal` equal entries come before it."""
        identity = digest(b"twin%d:" % ordinal + self.identity)
        return msgspec.structs.replace(self, identity=identity, ordinal=ordinal)

    def apart(self) -> Event:
        """This event with an identity from its content, as the API gave other entries the same id."""
        shared = self.shared_id or self.identity
        identity = digest(b"shared:", shared, canonical(self.line))
        return msgspec.structs.replace(self, identity=identity, ordinal=1, shared_id=shared)

    def at(self, time_us: int) -> Event:
        """This event, which has no usable time of its own, with the given one."""
        return msgspec.structs.replace(self, time_us=time_us, is_timed=False)


class OutboxEvent(msgspec.Struct, frozen=True, gc=False):
    """An event on its way to a sink. `collected_at` is in unix seconds; `line` has no newline."""

    contract: str
    time_us: int
    collected_at: int
    identity: bytes
    ordinal: int
    line: bytes

    def with_line(self, line: bytes) -> OutboxEvent:
        """The same event with another line."""
        return msgspec.structs.replace(self, line=line)


Record = tuple[int, int, int, bytes]
"""Fields of an event: time in microseconds, length of the line in bytes without the newline, ordinal, identity."""


class Run(NamedTuple):
    """Events of one contract: a record for each, and their lines, each ended by a newline, one after the other."""

    contract: str
    records: Iterable[Record]
    lines: bytes


class StoredEvents(Sequence[OutboxEvent]):
    """Events whose lines are already joined. Their objects are made only when one is first used.

    Most sinks need only the lines, so they save that time.
    """

    def __init__(
        self,
        count: int,
        runs: Callable[[], Iterable[Run]],
        open_: Callable[[], list[OutboxEvent]],
        longest_bytes: Callable[[], int],
    ) -> None:
        """`open_` makes the `count` objects from `runs`; `longest_bytes` returns the longest line's length with newline."""
        self._count = count
        self._open = open_
        self.longest_bytes = longest_bytes
        self._events: list[OutboxEvent] | None = None
        self.runs = runs

    @property
    def lines(self) -> bytes:
        """All lines, each ended by a newline."""
        return b"".join([run.lines for run in self.runs()])

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> OutboxEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[OutboxEvent]: ...
    def __getitem__(self, index: int | slice) -> OutboxEvent | list[OutboxEvent]:
        return self._opened()[index]

    def __iter__(self) -> Iterator[OutboxEvent]:
        return iter(self._opened())

    def _opened(self) -> list[OutboxEvent]:
        if self._events is None:
            self._events = self._open()
        return self._events


def runs(events: Sequence[OutboxEvent]) -> Iterable[Run]:
    """The events in order, in runs of one contract each."""
    if isinstance(events, StoredEvents):
        yield from events.runs()
        return
    for contract, group in itertools.groupby(events, key=lambda event: event.contract):
        run = list(group)
        records = [(event.time_us, len(event.line), event.ordinal, event.identity) for event in run]
        yield Run(contract, records, b"\n".join([*(event.line for event in run), b""]))


def ndjson(events: Sequence[OutboxEvent], render: Callable[[OutboxEvent], bytes] | None = None) -> bytes:
    """The events' lines, each ended by a newline: made by `render` if given, otherwise as they are."""
    if render is None:
        return (
            events.lines if isinstance(events, StoredEvents) else b"\n".join([*(event.line for event in events), b""])
        )
    lines = io.BytesIO()
    lines.writelines(ndjson_pieces(events, render))
    return lines.getvalue()


def ndjson_pieces(
    events: Sequence[OutboxEvent], render: Callable[[OutboxEvent], bytes] | None = None
) -> Iterator[bytes]:
    """The same in pieces of whole lines, small enough to stay in the processor's cache while they are made and used.

    If `render` has a method `pieces`, it returns the parts of an event's line, and all parts are joined in a single copy.
    """
    if render is None:
        yield ndjson(events)
        return
    pieces_of: Callable[[OutboxEvent], Sequence[bytes]] | None = getattr(render, "pieces", None)
    for at in range(0, len(events), _PIECE):
        some = events[at : at + _PIECE]
        if pieces_of is None:
            yield b"\n".join([*map(render, some), b""])
            continue
        pieces: list[bytes] = []
        for event in some:
            pieces += pieces_of(event)
            pieces.append(b"\n")
        yield b"".join(pieces)
