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

    `stop` ends its waits. `too_old` says what happens to events that the receiver refuses because of their age; `trusted_now`
    returns the time for this, None for our clock.
    """

    config: Config
    stop: threading.Event
    too_old: TooOld = "dead-letter"
    trusted_now: Callable[[], float | None] | None = None


class Sink(ABC):
    """A destination.

    `batch_events` and `batch_bytes` of its table limit what `send` gets at once, unless a single event is larger. An event over
    `max_event_bytes` is handled as `oversize` says before it is sent.
    """

    max_age_seconds: float | None = None
    """The receiver refuses events that are older than this; None if age does not matter."""

    def __init__(self, settings: Table) -> None:
        self.settings = settings

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def key_remedy(self) -> str:
        """What a person must do if the receiver refuses the credentials."""
        values = msgspec.structs.astuple(self.settings)
        return next((value.remedy for value in values if isinstance(value, SecretSource)), "correct the credentials")

    def parts(self, events: Sequence[OutboxEvent]) -> Iterable[Sequence[OutboxEvent]]:
        """The runs of a batch, in order. Each one is settled before the next is sent. Usually there is one."""
        return (events,)

    @abstractmethod
    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Send a batch, in order. Never raises because of what the receiver does.

        Raises: OutputError if the output is ours; StoppedError when asked to stop while waiting.
        """

    @abstractmethod
    def probe(self) -> Outcome:
        """Do a call that is as near to sending as possible, without an event. Accepted: `send` should work."""


class OwnOutput(Sink):
    """A sink that needs the settled length of its own output after a kill."""

    note_offset: Callable[[int | None], None]
    """Commits an `output_offset` at once, before anything is written. The deliverer sets it."""

    def __init__(self, settings: Table) -> None:
        super().__init__(settings)
        self.output_offset: int | None = None
        """The length of its output, a number that only the sink reads. It is committed with each batch."""
        self.note_offset = lambda offset: None

    def resume(self, offset: int | None) -> None:
        """Continue behind the settled output: `offset` after the last settled batch, None before the first.

        Raises: ConfigError if the output is not the one that was written.
        """
        self.output_offset = offset
