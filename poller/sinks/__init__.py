"""Sinks: where events go. Each is a short file, `send` and `probe`, and knows neither state nor API.

A sink turns a batch into a request and the answer into an outcome; `poller.core.delivery` decides what follows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from poller import config as settings_of
from poller.config import ActionSink, AnySink, Config, MoesifSink, Redact, SecretSource
from poller.config.sinks import Oversize
from poller.core.delivery import Outcome
from poller.core.events import OutboxEvent

if TYPE_CHECKING:
    from poller.core.mapping.moesif import ActionMaker


class Sink(Protocol):
    """A destination.

    `batch_events` and `batch_bytes` bound what `send` is given at once, unless one event is larger. An event
    over `max_event_bytes` is to be handled as `oversize` says before it is sent.
    """

    name: str
    type: str
    batch_events: int
    batch_bytes: int
    max_event_bytes: int
    oversize: Oversize
    batch_age_seconds: float
    retry_initial_seconds: float
    retry_max_seconds: float
    max_age_seconds: float | None
    """Events older than this are refused by the other side; None where age does not matter."""
    mark: int | None
    """How many bytes of its own output it has written; None for a sink that has none to count.

    Standard output uses a negative number for a pipe.
    """

    note_mark: Callable[[int | None], None]
    """Commits a `mark` at once: for a sink that must know after a kill where it began to write. Given by who delivers."""

    redact: Callable[[bytes], bytes] | None
    """What is to be done to a line before it is sent to this sink, or kept as its dead letter; None: nothing."""

    def resume(self, mark: int | None) -> None:
        """Go on behind what is settled: `mark` as of the last settled batch, None before the first.

        Raises: ConfigError when its output is no longer what was written.
        """
        ...

    def parts(self, events: Sequence[OutboxEvent]) -> Iterable[Sequence[OutboxEvent]]:
        """A batch in runs, in order, each of which is settled before the next one is sent."""
        ...

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Send a batch, in order. Never raises for what the other side does.

        Raises: OutputError where the output is ours; StoppedError when asked to stop while waiting.
        """
        ...

    def probe(self) -> Outcome:
        """Do what comes closest to sending, without an event. Accepted: `send` can be expected to work."""
        ...


TooOld = Literal["dead-letter", "skip", "stamp-now"]


class Configured:
    """What a sink takes over from its table as it is."""

    def __init__(self, settings: AnySink) -> None:
        self.name = settings.name
        self.type = settings.type
        self.batch_events = settings.batch_events
        self.batch_bytes = settings.batch_bytes
        self.max_event_bytes = settings.max_event_bytes
        self.oversize: Oversize = settings.oversize
        self.batch_age_seconds = settings.batch_age_seconds
        self.retry_initial_seconds = settings.retry_initial_seconds
        self.retry_max_seconds = settings.retry_max_seconds
        self.max_age_seconds: float | None = None
        self.mark: int | None = None
        self.note_mark: Callable[[int | None], None] = lambda mark: None
        self.redact: Callable[[bytes], bytes] | None = None

    def resume(self, mark: int | None) -> None:
        """Nothing to do: what was sent is with the other side."""

    def parts(self, events: Sequence[OutboxEvent]) -> Iterable[Sequence[OutboxEvent]]:
        """All of it at once."""
        return (events,)


def build_sink(
    settings: AnySink,
    config: Config,
    stop: threading.Event,
    *,
    too_old: TooOld = "dead-letter",
    trusted_now: Callable[[], float | None] | None = None,
) -> Sink:
    """The sink that a table describes; its module is imported only now. `stop` ends its waits.

    `too_old` says what becomes of events that the other side refuses for their age; `trusted_now` by which time, None for our
    clock's.
    Raises: ConfigError for a library that is not installed, and for a key that cannot be read.
    """
    sink = _build(settings, config, stop, too_old, trusted_now)
    sink.redact = build_redact(settings.redact, config.redact.hash_key)
    return sink


def _build(
    settings: AnySink,
    config: Config,
    stop: threading.Event,
    too_old: TooOld,
    trusted_now: Callable[[], float | None] | None,
) -> Sink:
    match settings:
        case settings_of.LoggingServiceSink():
            from poller.sinks.logging_service import LoggingServiceSink

            return LoggingServiceSink(settings, config, stop)
        case settings_of.LokiSink():
            from poller.sinks.loki import LokiSink

            return LokiSink(settings, config, stop, too_old=too_old, trusted_now=trusted_now)
        case settings_of.MoesifSink():
            from poller.sinks.moesif import MoesifSink

            return MoesifSink(settings, config, stop, too_old=too_old, trusted_now=trusted_now)
        case settings_of.FirehoseSink():
            from poller.sinks.firehose import FirehoseSink

            return FirehoseSink(settings, config, stop)
        case settings_of.FileSink():
            from poller.sinks.file import FileSink

            return FileSink(settings)
        case settings_of.StdoutSink():
            from poller.sinks.stdout import StdoutSink

            return StdoutSink(settings, build_render(settings), is_alone=len(config.sinks) < 2)


def build_redact(redact: Redact | None, shared_key: SecretSource | None) -> Callable[[bytes], bytes] | None:
    """What takes out of a line what the table says; None where it says nothing. `shared_key` is that of `[redact]`.

    Raises: ConfigError when the key cannot be read.
    """
    if redact is None or not (redact.drop or redact.mask or redact.hash):
        return None
    from poller.core.mapping.redact import Redactor

    source = redact.hash_key or shared_key
    key = source.read().reveal().encode() if redact.hash and source is not None else b""
    return Redactor(drop=redact.drop, mask=redact.mask, hashed=redact.hash, key=key)


def build_render(settings: ActionSink) -> Callable[[OutboxEvent], bytes] | None:
    """How an event becomes a line for this sink; None: as it is."""
    return None if not isinstance(settings, MoesifSink) and settings.format == "raw" else build_actions(settings).make


def build_actions(settings: ActionSink | None) -> ActionMaker:
    """What makes Moesif actions as the table says, or as usual without one."""
    from poller.core.mapping.moesif import ActionMaker

    if settings is None:
        return ActionMaker()
    return ActionMaker(
        action_name=settings.action_name,
        company_id=settings.company_id,
        user_id=settings.user_id,
        uri_base=settings.uri_base,
    )
