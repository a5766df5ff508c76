"""Sinks: where events go. Each is a short file, `send` and `probe`, and knows neither state nor API.

A sink turns a batch into a request and the answer into an outcome; `poller.delivery` decides what follows.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Literal, Protocol

from poller import config as settings_of
from poller.config import AnySink, Config
from poller.config.sinks import Oversize
from poller.delivery import Outcome
from poller.errors import ConfigError, Problem
from poller.events import OutboxEvent


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
    """How many bytes of its own output it has written; None for a sink that has none to count."""

    def resume(self, mark: int | None) -> None:
        """Go on behind what is settled: `mark` as of the last settled batch, None before the first.

        Raises: ConfigError when its output is no longer what was written.
        """
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

    def resume(self, mark: int | None) -> None:
        """Nothing to do: what was sent is with the other side."""


def build_sink(settings: AnySink, config: Config, stop: threading.Event, *, too_old: TooOld = "dead-letter") -> Sink:
    """The sink that a table describes; its module is imported only now. `stop` ends its waits.

    `too_old` says what becomes of events that the other side refuses for their age.
    Raises: ConfigError for what this version cannot do.
    """
    if isinstance(settings, settings_of.FileSink | settings_of.StdoutSink) and settings.format != "raw":
        raise _unknown(settings, "format", settings.format)
    match settings:
        case settings_of.LoggingServiceSink():
            from poller.sinks.logging_service import LoggingServiceSink

            return LoggingServiceSink(settings, config, stop)
        case settings_of.LokiSink():
            from poller.sinks.loki import LokiSink

            return LokiSink(settings, config, stop, too_old=too_old)
        case settings_of.FileSink():
            from poller.sinks.file import FileSink

            return FileSink(settings)
        case settings_of.StdoutSink():
            from poller.sinks.stdout import StdoutSink

            return StdoutSink(
                sys.stdout.buffer,
                name=settings.name,
                batch_events=settings.batch_events,
                batch_bytes=settings.batch_bytes,
            )
        case _:
            raise _unknown(settings, "type", settings.type)


def _unknown(settings: AnySink, key: str, value: str) -> ConfigError:
    return ConfigError([Problem(f"sinks.{settings.name}.{key}", f"this version does not know {value}")])
