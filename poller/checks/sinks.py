"""Checks of the sinks: each check does what is closest to sending an event."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from importlib import import_module
from urllib.parse import urlsplit

from poller.archive import LostChainError, PlaceError
from poller.archive.places import is_empty_for, open_place
from poller.archive.signing import read_signer
from poller.checks import Finding, fail, from_error, ok, warn
from poller.config import (
    AnyHttpSink,
    AnySink,
    ArchiveSink,
    Config,
    HttpSink,
    KafkaSink,
    LoggingServiceSink,
    MoesifSink,
    OtlpSink,
)
from poller.config.installed import how_to_add
from poller.config.sink_base import LocalSink
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused
from poller.core.errors import EXIT_AUTH, EXIT_CONFIG, EXIT_INCOMPLETE, ConfigError
from poller.core.evidence.batches import Head
from poller.sinks.build import build_sink
from poller.sinks.redaction import build_redact

# Type -> the module that it imports, and the extra that installs it.
EXTRAS = {"firehose": ("boto3", "firehose"), "kafka": ("confluent_kafka", "kafka")}
# Source: the vendor's SDK ionoscloud-logging 2.0.0, PipelineNoAddrLogsInner.
PIPELINE_TAG = r"[A-Za-z0-9]{3,20}"

_LOGIN_HINTS = {
    "logging-service": "check that api_key is the key of this pipeline; `ionos-poller setup --rotate-key` creates a new one",
    "loki": "check username and password, or bearer_token, and tenant_id",
    "otlp": "check username and password, or bearer_token, and headers",
    "opensearch": "check username and password, or api_key, and what its role may do",
    "elasticsearch": "check username and password, or api_key, and what its role may do",
    "http": "check username and password, or bearer_token, and headers",
    "kafka": "check username and password, or cert_file and key_file",
    "moesif": "check that application_id is the Collector Application Id of your Moesif app",
    "firehose": "check AWS's credentials (environment, profile or role) and firehose:PutRecordBatch",
}


def check_sink(settings: AnySink, config: Config, stop: threading.Event, head: Head | None = None) -> Iterator[Finding]:
    """Build the sink and let it probe. Only HTTP, AWS and Kafka sinks and archives in buckets use the network.

    `head`: the newest digest of an archive, if the state has one.
    """
    name = f"sink {settings.name}"
    if isinstance(settings, LocalSink) and not settings.is_here(os.uname().nodename):
        yield ok(name, f"the machine {settings.host} writes it: run `ionos-poller check` there")
        return
    missing = check_extra(settings.type)
    if missing is not None:
        yield missing._replace(name=name)
        return
    if isinstance(settings, LoggingServiceSink):
        yield from check_tag(settings, name)
    if isinstance(settings, ArchiveSink):
        yield from check_archive(settings, config, name, head)
        return
    try:
        build_redact(settings.redact, config.redact.hash_key)
        outcome = build_sink(settings, config, stop).probe()
    except ConfigError as error:
        yield from from_error(name, error)
    else:
        yield judge(settings, outcome, name)


def check_archive(settings: ArchiveSink, config: Config, name: str, head: Head | None = None) -> Iterator[Finding]:
    """Check that objects are written, read and locked as configured, that digests are signed, and that the archive is there."""
    key = config.evidence.signing_key_file
    try:
        place = open_place(settings, config)
        found = place.probe()
        if key is not None:
            read_signer(key, "evidence.signing_key_file")
        missing = head if head is not None and head.number and is_empty_for(place, head) else None
    except ConfigError as error:
        yield from from_error(name, error)
        return
    except PlaceError as error:
        hint = error.hint or "check url and what is there; what is collected waits until it works"
        is_refused = error.is_refused and not isinstance(error, LostChainError)
        yield fail(name, error.message, hint, EXIT_AUTH if is_refused else EXIT_INCOMPLETE)
        return
    yield ok(name, f"{settings.url}: {', '.join(found)}")
    if missing is not None:
        hint = "mount the disk, or put back what was there; if url was changed on purpose, a new archive begins here"
        yield warn(name, f"{settings.url}: nothing is here of the archive, which is at digest {missing.number}", hint)
    if key is None:
        hint = "make a key with `ionos-poller archive keygen`, and name it in signing_key_file of [evidence]"
        yield warn(name, "its digests are not signed: anyone who can write there could write all of it again", hint)


def check_extra(type_name: str) -> Finding | None:
    """A failure if the library that a type of sink needs is not installed; None if it is, or if none is needed."""
    module, extra = EXTRAS.get(type_name, ("", ""))
    try:
        if module:
            import_module(module)
    except ImportError:
        message = f"type {type_name} needs {module}, which is not installed"
        return fail("extras", message, how_to_add(extra), EXIT_CONFIG)
    return None


def check_tag(settings: LoggingServiceSink, name: str) -> Iterator[Finding]:
    """Warn if no pipeline of IONOS can have a log source of this tag."""
    host = urlsplit(settings.url).hostname or ""
    if host.endswith(".ionos.com") and not re.fullmatch(PIPELINE_TAG, settings.tag):
        hint = "give the tag of the pipeline's log source, such as activityLog"
        yield warn(name, f"no pipeline has the tag {settings.tag!r}: they are 3 to 20 letters and digits", hint)


def judge(settings: AnySink, outcome: Outcome, name: str) -> Finding:
    """The finding for a probe's outcome."""
    prefix = f"{settings.url}: " if isinstance(settings, HttpSink) else ""
    if isinstance(settings, KafkaSink):
        prefix = f"topic {settings.topic} at {settings.brokers[0]}: "
    match outcome:
        case Accepted():
            return ok(name, f"{prefix}takes events")
        case Refused() if isinstance(settings, LoggingServiceSink | MoesifSink | OtlpSink | AnyHttpSink):
            hint = "the address and the login work; this may be no mistake: watch the first batch with `ionos-poller status`"
            return warn(name, f"{prefix}refuses what it was tried with, which has no events: {outcome.reason}", hint)
        case CredentialsRefused(status=None) if isinstance(settings, HttpSink):  # not sent: the secret cannot be read
            reason, hint = _split(outcome.reason)
            return fail(name, reason, hint or "correct where it comes from", EXIT_CONFIG)
        case CredentialsRefused():
            reason, hint = _split(outcome.reason)
            hint = hint or _LOGIN_HINTS.get(settings.type, "check its credentials")
            return fail(name, f"{prefix}the credentials are refused: {reason}", hint, EXIT_AUTH)
        case _:
            reason, hint = _split(outcome.reason)
            place = (
                "url" if isinstance(settings, HttpSink) else "brokers" if isinstance(settings, KafkaSink) else "path"
            )
            hint = hint or f"check {place} and what is there; what is collected waits until it works"
            return fail(name, f"{prefix}{reason}", hint)


def _split(reason: str) -> tuple[str, str]:
    """A reason, and the remedy in parentheses at its end."""
    found = re.fullmatch(r"(.+?) \(([^()]*(?:\([^()]*\)[^()]*)*)\)", reason)
    return (found[1], found[2]) if found else (reason, "")
