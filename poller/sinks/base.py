"""What a sink is: the frozen table that describes it, `send` and `probe`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from poller.config import Config, SecretSource
from poller.config.sink_base import Sink as Table
from poller.core.delivery import Outcome
from poller.core.events import OutboxEvent

TooOld = Literal["dead-letter", "skip", "stamp-now"]


class Context(NamedTuple):
    """What a sink may use besides its own table.

    `stop` ends its waits. `too_old` says what becomes of events that the other side refuses for their age; `trusted_now` by
    which time, None for our clock's.
    """

    config: Config
    stop: threading.Event
    too_old: TooOld = "dead-letter"
    trusted_now: Callable[[], float | None] | None = None


class Sink(ABC):
    """A destination.

    `batch_events` and `batch_bytes` of its table bound what `send` is given at once, unless one event is larger. An event over
    `max_event_bytes` is handled as `oversize` says before it is sent.
    """

    max_age_seconds: float | None = None
    """Events older than this are refused by the other side; None where age does not matter."""

    def __init__(self, settings: Table) -> None:
        self.settings = settings

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def key_remedy(self) -> str:
        """What a person does where the other side refuses the credentials."""
        values = msgspec.structs.astuple(self.settings)
        return next((value.remedy for value in values if isinstance(value, SecretSource)), "correct the credentials")

    def parts(self, events: Sequence[OutboxEvent]) -> Iterable[Sequence[OutboxEvent]]:
        """A batch in runs, in order, each of which is settled before the next one is sent. Usually all of it at once."""
        return (events,)

    @abstractmethod
    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Send a batch, in order. Never raises for what the other side does.

        Raises: OutputError where the output is ours; StoppedError when asked to stop while waiting.
        """

    @abstractmethod
    def probe(self) -> Outcome:
        """Do what comes closest to sending, without an event. Accepted: `send` can be expected to work."""


class OwnOutput(Sink):
    """A sink that must know after a kill how far its own output is settled."""

    note_offset: Callable[[int | None], None]
    """Commits an `output_offset` at once, for what must be known before anything is written. Given by who delivers."""

    def __init__(self, settings: Table) -> None:
        super().__init__(settings)
        self.output_offset: int | None = None
        """How far its output goes, a number that only the sink reads. It is committed with each batch."""
        self.note_offset = lambda offset: None

    def resume(self, offset: int | None) -> None:
        """Go on behind what is settled: `offset` as of the last settled batch, None before the first.

        Raises: ConfigError when its output is no longer what was written.
        """
        self.output_offset = offset
