"""Making the sink that a table of the configuration describes. A new sink is one entry in `FACTORIES`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from poller.config import AnySink, Config
from poller.sinks.base import Context, Sink, TooOld

Factory = Callable[[Any, Context], Sink]

# Type of table -> the module, imported only when needed, and the function that makes a sink of a table and a context.
FACTORIES: dict[str, tuple[str, str]] = {
    "logging-service": ("poller.sinks.logging_service", "LoggingServiceSink"),
    "loki": ("poller.sinks.loki", "LokiSink"),
    "moesif": ("poller.sinks.moesif", "MoesifSink"),
    "firehose": ("poller.sinks.firehose", "FirehoseSink"),
    "otlp": ("poller.sinks.otlp", "OtlpSink"),
    "kafka": ("poller.sinks.kafka", "KafkaSink"),
    "archive": ("poller.sinks.archive", "ArchiveSink"),
    "opensearch": ("poller.sinks.opensearch", "OpenSearchSink"),
    "elasticsearch": ("poller.sinks.opensearch", "OpenSearchSink"),
    "http": ("poller.sinks.post", "build"),
    "file": ("poller.sinks.file", "FileSink"),
    "stdout": ("poller.sinks.stdout", "build"),
}


def build_sink(
    settings: AnySink,
    config: Config,
    stop: threading.Event,
    *,
    too_old: TooOld = "dead-letter",
    trusted_now: Callable[[], float | None] | None = None,
) -> Sink:
    """The sink that a table describes. Its module is imported only now. The other parameters make its `Context`.

    Raises: ConfigError if a library is not installed.
    """
    module, name = FACTORIES[settings.type]
    factory: Factory = getattr(import_module(module), name)
    return factory(settings, Context(config, stop, too_old, trusted_now))
