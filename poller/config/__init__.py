"""The configuration, and the names that other packages use most.

`find_config` and `load` make a frozen `Config`; nothing else reads the environment or the configuration file.
`poller.config.describe` documents it, and is imported only when needed.
"""

from poller.config.environment import process_environment
from poller.config.load import find_config, load
from poller.config.model import Account, Api, Config, Evidence, Filter, Http, Outbox, Poll, Rule, State
from poller.config.secrets import MASK, Credentials, Secret, SecretSource
from poller.config.sink_base import HttpSink, Redact, Sink
from poller.config.sinks import (
    ActionSink,
    AnyHttpSink,
    AnySink,
    ArchiveSink,
    FileSink,
    FirehoseSink,
    KafkaSink,
    LoggingServiceSink,
    LokiSink,
    MoesifSink,
    OpenSearchSink,
    OtlpSink,
    StdoutSink,
)
from poller.config.values import format_duration, format_size, parse_duration, parse_size, parse_time

__all__ = [
    "MASK",
    "Account",
    "ActionSink",
    "AnyHttpSink",
    "AnySink",
    "Api",
    "ArchiveSink",
    "Config",
    "Credentials",
    "Evidence",
    "FileSink",
    "Filter",
    "FirehoseSink",
    "Http",
    "HttpSink",
    "KafkaSink",
    "LoggingServiceSink",
    "LokiSink",
    "MoesifSink",
    "OpenSearchSink",
    "OtlpSink",
    "Outbox",
    "Poll",
    "Redact",
    "Rule",
    "Secret",
    "SecretSource",
    "Sink",
    "State",
    "StdoutSink",
    "find_config",
    "format_duration",
    "format_size",
    "load",
    "parse_duration",
    "parse_size",
    "parse_time",
    "process_environment",
]
