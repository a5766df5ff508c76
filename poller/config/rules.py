"""What must hold between the fields of a table, and between tables. Pure; each rule is a line of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from poller.config.checks import LOKI_LABELS, MAX_LOKI_LABELS, is_clear_text, is_secret_header
from poller.config.model import Account, Api, Config, Poll, Rule, State
from poller.config.secrets import SecretSource
from poller.config.sinks import (
    AnyHttpSink,
    AnySink,
    ArchiveSink,
    FileSink,
    HttpSink,
    KafkaSink,
    LocalSink,
    LokiSink,
    OpenSearchSink,
    OtlpSink,
    Redact,
    Sink,
)
from poller.config.state_url import is_unverified
from poller.core.errors import Problem

API_PATH = "/activitylog/v1"
"""What is appended to the URL of the API."""


def check_table(table: msgspec.Struct) -> Iterator[Problem]:
    """The problems within one table; their paths are keys of that table."""
    match table:
        case Api() | Account():
            yield from _check_login(table)
            yield from _check_path(table.url, API_PATH)
        case Poll():
            yield from _check_poll(table)
        case Redact():
            yield from _check_redact(table)
        case State():
            yield from _check_state(table)
        case Rule():
            if all(getattr(table, key) is None for key in table.__struct_fields__):
                yield Problem("", "matches every entry", "name at least one of its keys, such as type")
        case Sink():
            yield from _check_sink(table)
            if isinstance(table, ArchiveSink):
                yield from _check_archive(table)


def _check_login(table: Api | Account) -> Iterator[Problem]:
    if table.token is not None and (table.username or table.password is not None):
        yield Problem("token", "is given besides a user name and password", "keep one of the two")
    if table.password is not None and not table.username:
        yield Problem("password", "has no username beside it")


def _check_path(url: str, own: str) -> Iterator[Problem]:
    """A path that the program appends, at the end of the URL already."""
    if own and url.endswith(own):
        yield Problem("url", f"ends in {own}, which the program appends", "leave that out")


def _check_poll(poll: Poll) -> Iterator[Problem]:
    for contract in poll.contracts:
        if contract in poll.exclude_contracts:
            yield Problem("exclude_contracts", f"{contract} is also in contracts", "keep one of the two")
    for key, span in (("overlap", poll.overlap_seconds), ("audit_span", poll.audit_span_seconds)):
        if poll.ledger_retention_seconds < span:
            yield Problem("ledger_retention", f"is shorter than {key}", "entries read again would count as new")


def _check_state(state: State) -> Iterator[Problem]:
    if not state.url:
        if state.password is not None and state.password.origin != "credential":
            yield Problem("password", "has no url beside it")
        return
    if not state.allow_unverified and is_unverified(state.url):
        hint = "remove sslmode from the URL, or set allow_unverified = true if the network is yours"
        yield Problem("url", "names a host on the network without verifying its certificate", hint)


def _check_redact(redact: Redact) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for key in ("drop", "mask", "hash"):
        for path in getattr(redact, key):
            if path in first:
                yield Problem(key, f"{path} is also in {first[path]}", "keep one of the two")
            first[path] = key


def _check_sink(sink: Sink) -> Iterator[Problem]:
    if sink.retry_initial_seconds > sink.retry_max_seconds:
        yield Problem("retry_initial", "is longer than retry_max")
    if isinstance(sink, HttpSink):
        yield from _check_http(sink)
    if isinstance(sink, KafkaSink):
        if sink.key_file is not None and sink.cert_file is None:
            yield Problem("key_file", "has no cert_file beside it")
        if not sink.brokers:
            yield Problem("brokers", "must name at least one", 'such as ["10.7.222.11:9093"]')
    if isinstance(sink, LokiSink | OtlpSink | OpenSearchSink | AnyHttpSink | KafkaSink):
        yield from _check_sink_login(sink)
    if isinstance(sink, LokiSink):
        own = MAX_LOKI_LABELS - len(LOKI_LABELS)
        if len(sink.labels) > own:
            hint = f"at most {own}: the program adds {' and '.join(LOKI_LABELS)}, and Loki takes {MAX_LOKI_LABELS}"
            yield Problem("labels", f"are {len(sink.labels)}, too many", hint)


def _check_http(sink: HttpSink) -> Iterator[Problem]:
    yield from _check_path(sink.url, sink.own_path)
    if sink.key_file is not None and sink.cert_file is None:
        yield Problem("key_file", "has no cert_file beside it")
    if _has_secret(sink) and not sink.allow_plain_http and is_clear_text(sink.url):
        yield Problem("url", *_clear_text("the sink's secret"))


def _check_archive(sink: ArchiveSink) -> Iterator[Problem]:
    if (sink.access_key is None) != (sink.secret_key is None):
        yield Problem("access_key", "and secret_key go together", "give both, or neither")
    if sink.url.startswith("file:") and sink.object_lock != "none":
        yield Problem("object_lock", "needs a bucket: a directory locks nothing", "use an s3:// url, or take it out")
    if sink.endpoint_url and not sink.allow_plain_http and is_clear_text(sink.endpoint_url):
        yield Problem("endpoint_url", *_clear_text("entries and signatures"))


def _check_sink_login(sink: LokiSink | OtlpSink | OpenSearchSink | AnyHttpSink | KafkaSink) -> Iterator[Problem]:
    key = "api_key" if isinstance(sink, OpenSearchSink) else "bearer_token"
    if getattr(sink, key, None) is not None and (sink.username or sink.password is not None):
        yield Problem(key, "is given besides a user name and password", "keep one of the two")
    if bool(sink.username) != (sink.password is not None):
        yield Problem("username", "and password go together", "give both, or neither")


def _has_secret(sink: HttpSink) -> bool:
    values = (getattr(sink, name) for name in sink.__struct_fields__)
    return any(isinstance(value, SecretSource) for value in values) or any(map(is_secret_header, sink.headers))


def _clear_text(what: str) -> tuple[str, str]:
    return f"would send {what} in clear text", "use https://, or set allow_plain_http = true if the network is yours"


def _check_for_machines(path: str, sink: AnySink) -> Iterator[Problem]:
    """The problems of a sink where several machines share a state: who writes what is on one machine's disk?"""
    if not isinstance(sink, LocalSink):
        return
    if sink.is_local and not sink.host and not sink.shared:
        what = "all machines have the same directory" if isinstance(sink, ArchiveSink) else "each writes a part"
        hint = f'name the machine that writes all of it, such as host = "collector-1"; or shared = true: {what}'
        yield Problem(
            f"{path}.host", "missing: the state is in PostgreSQL, and each machine has a disk of its own", hint
        )
    if sink.host and sink.shared:
        yield Problem(f"{path}.shared", "contradicts host", "keep one of the two")


def check_config(config: Config, sinks: Mapping[str, AnySink]) -> Iterator[Problem]:
    """The problems between tables. `sinks` has those of the configuration by their paths."""
    places: dict[str, str] = {}
    for path, sink in sinks.items():
        key = "path" if isinstance(sink, FileSink) else "url" if isinstance(sink, ArchiveSink) else ""
        if key and (first := places.setdefault(f"{key} {getattr(sink, key)}", path)) != path:
            yield Problem(f"{path}.{key}", f"is the same as that of {first}")
        if config.state.url:
            yield from _check_for_machines(path, sink)
    redacts = {"redact": config.redact} | {f"{path}.redact": sink.redact for path, sink in sinks.items()}
    for path, redact in redacts.items():
        if redact and redact.hash and redact.hash_key is None and config.redact.hash_key is None:
            yield Problem(f"{path}.hash", "needs a key", "give hash_key_file, or a systemd credential redact.hash-key")
    api = config.api
    if not api.allow_plain_http:
        urls = {"api.url": api.url} | {f"accounts.{account.name}.url": account.url for account in config.accounts}
        for path, url in urls.items():
            if is_clear_text(url):
                yield Problem(path, *_clear_text("the token"))
    if len(config.accounts) > 1 and (api.token or api.username or api.password):
        yield Problem(
            "api", "holds credentials, but there are several accounts", "move them to the account they are of"
        )
