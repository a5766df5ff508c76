"""OpenTelemetry: logs over OTLP/HTTP, as protobuf or JSON.

A success may be partial: the answer then says how many records were refused, but not which. The batch is sent again in halves,
until a refused record is alone and becomes a dead letter with the receiver's words. So a record that was accepted beside a
refused one may be stored several times, with the same `log.record.uid`.

A 500 may be caused by a record or by a failing receiver: a Collector answers 500 if it cannot forward, but accepts an empty
request. The record is the cause only if the receiver accepts another one: the last accepted record, or one of the same batch.

Loki makes a stream of each resource, and answers a request of several streams for the last one only. With `stream_per_contract`,
each request holds one contract, and the resource has its number.
Source: docs/facts.md, "OpenTelemetry (OTLP/HTTP)".
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from poller import __version__
from poller.config import OtlpSink as Settings
from poller.config.installed import needed
from poller.core.delivery import Accepted, Outcome, Refused, RetryAfter
from poller.core.events import OutboxEvent
from poller.core.mapping.otel import RESOURCE, SEVERITIES, Record, record_of
from poller.net.transport import Response, unrequested_encoding
from poller.net.words import loose_json
from poller.sinks.base import Context, Sink
from poller.sinks.http import Endpoint, login_of, probed

log = logging.getLogger(__name__)

SUCCESSES = (200, 201, 202, 204)  # 201: Fluent Bit
_MAX_ANSWER_BYTES = 1024 * 1024  # a count and a message
_SCOPE = "ionos-poller"
# One of the attributes that Loki turns into labels by default. It names a part of a service.
_INSTANCE = "service.instance.id"
# These statuses mean that the server is unavailable for a while. Any other 5xx may be caused by a record.
_TRANSIENT = (502, 503, 504)
# How long a record with such an answer waits if no accepted record is known.
PATIENCE_SECONDS = 3600.0


class Partial(NamedTuple):
    """The refused records of a success: how many, and why."""

    refused: int
    words: str


class OtlpSink(Sink):
    """POST {url}/v1/logs."""

    def __init__(self, settings: Settings, context: Context, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises: ConfigError if opentelemetry-proto is not installed."""
        super().__init__(settings)
        self._clock = clock
        self._taken: OutboxEvent | None = None  # the last accepted event
        self._beside: OutboxEvent | None = None  # while none was accepted: the last event of the first refused batch
        self._failing_since: dict[bytes, float] = {}  # by identity: events that fail alone while none was accepted
        self._is_split = settings.stream_per_contract
        self._codec = _Protobuf(settings.name) if settings.encoding == "protobuf" else _Json()
        self._endpoint = Endpoint(
            settings,
            context,
            path=settings.OWN_PATH,
            successes=SUCCESSES,
            place="url",
            login=login_of(settings),
            content_type=self._codec.content_type,
            readable=self._readable,
            max_success_bytes=_MAX_ANSWER_BYTES,
        )

    def parts(self, events: Sequence[OutboxEvent]) -> Iterable[Sequence[OutboxEvent]]:
        """The whole batch, or one run for each contract."""
        if not self._is_split:
            return (events,)
        return [list(run) for _, run in groupby(events, key=attrgetter("contract"))]

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Send a batch. A refused record is found by halving."""
        outcome, status = self._send(events)
        if isinstance(outcome, Accepted):
            self._taken = events[-1]
            self._failing_since.clear()
        if not isinstance(outcome, RetryAfter) or status is None or status < 500 or status in _TRANSIENT:
            return outcome
        # The standard forbids a retry. This must not cost an entry if the receiver itself fails.
        if len(events) > 1:
            self._beside = self._beside or events[-1]
            return outcome
        return Refused(outcome.reason, status) if self._is_to_blame(events[0]) else outcome

    def _send(self, events: Sequence[OutboxEvent]) -> tuple[Outcome, int | None]:
        """The outcome of some records, and the status of the answer."""
        resource = {**RESOURCE, **({_INSTANCE: events[0].contract} if self._is_split else {})}
        body = self._codec.encode([record_of(event) for event in events], resource)
        outcome, answer = self._endpoint.exchange(body)
        if isinstance(outcome, Refused) and "too far behind" in outcome.reason and not self._is_split:
            outcome = outcome._replace(reason=f"{outcome.reason} (set stream_per_contract = true)")
        if isinstance(outcome, Accepted) and answer is not None:
            outcome = self._judge(answer, body, len(events))
        return outcome, answer and answer.status

    def _is_to_blame(self, event: OutboxEvent) -> bool:
        """Whether the receiver cannot handle this record, although it accepts others."""
        other = self._taken or self._beside
        if other and other.identity != event.identity and isinstance(self._send([other])[0], Accepted):
            return True
        if self._taken:
            return False
        since = self._failing_since.setdefault(event.identity, self._clock())
        return self._clock() - since >= PATIENCE_SECONDS and isinstance(self.probe(), Accepted)

    def _judge(self, answer: Response, sent: bytes, count: int) -> Outcome:
        """The outcome of a success with `count` records."""
        partial = partial_of(answer)
        if partial is None:
            reason = (
                "the answer cannot be read, and may have named refused records (check url and any proxy on the way)"
            )
            return RetryAfter(reason, is_size_suspect=True)
        if partial.refused > 0:
            words = self._endpoint.words(answer, sent) or "no reason given"
            return Refused(words if count == 1 else f"{partial.refused} of {count}: {words}", answer.status)
        if partial.words:
            log.warning("batch.warned", extra={"sink": self.name, "why": self._endpoint.words(answer, sent)})
        return Accepted(status=answer.status)

    def probe(self) -> Outcome:
        """Send a request without records. A refusal because it is empty shows that sending works."""
        return probed(self._endpoint.post(self._codec.encode([], RESOURCE)))

    def _readable(self, answer: Response) -> Response:
        """The answer with its message alone as its body."""
        partial = partial_of(answer) if answer.status in SUCCESSES else None
        words = partial.words if partial else message_of(answer)
        return answer._replace(body=words.encode("utf-8", "replace")) if words else answer


class _Json:
    """OTLP as JSON: names in camel case, 64-bit numbers as text."""

    content_type = "application/json"

    def encode(self, records: Sequence[Record], resource: Mapping[str, str]) -> bytes:
        return msgspec.json.encode(
            {
                "resourceLogs": [
                    {
                        "resource": {"attributes": _json_attributes(resource)},
                        "scopeLogs": [
                            {
                                "scope": {"name": _SCOPE, "version": __version__},
                                "logRecords": [_json_record(record) for record in records],
                            }
                        ],
                    }
                ]
                if records
                else []
            }
        )


def _json_attributes(attributes: Any) -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "value": {"stringValue": value}
            if isinstance(value, str)
            else {"arrayValue": {"values": [{"stringValue": text} for text in value]}},
        }
        for key, value in attributes.items()
    ]


def _json_record(record: Record) -> dict[str, Any]:
    return {
        "timeUnixNano": str(record.time_ns),
        "observedTimeUnixNano": str(record.observed_ns),
        "severityNumber": record.severity,
        "severityText": SEVERITIES[record.severity],
        "eventName": record.event_name,
        "body": {"stringValue": record.body},
        "attributes": _json_attributes(record.attributes),
    }


class _Protobuf:
    """OTLP as protobuf, with OpenTelemetry's own classes."""

    content_type = "application/x-protobuf"

    def __init__(self, name: str) -> None:
        """Raises: ConfigError if they are not installed."""
        instead = ', or set encoding = "json"'
        with needed("otlp", f"sinks.{name}.type", "otlp needs opentelemetry-proto", instead=instead):
            from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
            from opentelemetry.proto.common.v1 import common_pb2
        self._service: Any = logs_service_pb2
        self._common: Any = common_pb2

    def encode(self, records: Sequence[Record], resource: Mapping[str, str]) -> bytes:
        request = self._service.ExportLogsServiceRequest()
        if records:
            of_all = request.resource_logs.add()
            self._add(of_all.resource.attributes, resource)
            of_scope = of_all.scope_logs.add()
            of_scope.scope.name, of_scope.scope.version = _SCOPE, __version__
            for record in records:
                made = of_scope.log_records.add(
                    time_unix_nano=record.time_ns,
                    observed_time_unix_nano=record.observed_ns,
                    severity_number=record.severity,
                    severity_text=SEVERITIES[record.severity],
                    event_name=record.event_name,
                )
                made.body.string_value = record.body
                self._add(made.attributes, record.attributes)
        return bytes(request.SerializeToString())

    def _add(self, attributes: Any, values: Any) -> None:
        for key, value in values.items():
            made = attributes.add(key=key).value
            if isinstance(value, str):
                made.string_value = value
            else:
                made.array_value.values.extend(self._common.AnyValue(string_value=text) for text in value)


# What is answered: JSON or protobuf, whatever was sent, and whatever the answer calls itself


def partial_of(answer: Response) -> Partial | None:
    """The refused records of a success; None if it may name some but cannot be read.

    An answer that is not OTLP, such as `OK`, is a plain success.
    """
    found = _decoded(answer.body)
    if found is not None:
        return _partial_in(found)
    if answer.body and unrequested_encoding(answer.headers):
        return None
    fields, is_whole = fields_of(answer.body)
    of_records, is_whole_inside = fields_of(fields.get((1, _LENGTH), b""))
    partial = Partial(*_pair_in(of_records))
    is_like_protobuf = answer.body.startswith(_PARTIAL_BEGINS)  # and a line of text, too
    is_whole = is_whole and is_whole_inside
    # JSON behind a newline may look like a whole message by chance, but never like one with these fields only.
    if partial.refused > 0 or (is_like_protobuf and is_whole and of_records.keys() <= _OF_PARTIAL):
        return partial
    is_cut = is_like_protobuf and not is_whole and _is_protobuf(answer)
    return None if is_cut or _LIKE_JSON.search(answer.body.replace(b"\0", b"")) else Partial(0, "")


def _partial_in(found: dict[str, Any]) -> Partial | None:
    of_records = _either(found, "partialSuccess", "partial_success") or {}
    if not isinstance(of_records, dict):
        return None
    try:
        refused = int(float(_either(of_records, "rejectedLogRecords", "rejected_log_records") or 0))
    except (TypeError, ValueError, OverflowError):
        return None
    words = _either(of_records, "errorMessage", "error_message")
    return Partial(refused, words if isinstance(words, str) else "")


def message_of(answer: Response) -> str:
    """The words of an error, a google.rpc.Status: a number and a text, as in a partial success."""
    found = _decoded(answer.body)
    if found is None:
        return _pair_in(fields_of(answer.body)[0])[1] if _is_protobuf(answer) else ""
    words = found.get("message")
    return words if isinstance(words, str) else ""


def _is_protobuf(answer: Response) -> bool:
    # Loki labels its errors `application/octet-stream`. No text begins with the characters of their first fields.
    return "protobuf" in answer.headers.get("Content-Type", "") or answer.body.startswith(_STATUS_BEGINS)


def _decoded(body: bytes) -> dict[str, Any] | None:
    """An answer that is a JSON object; None for any other."""
    try:
        value = loose_json(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _either(fields: dict[str, Any], name: str, other: str) -> Any:
    return fields.get(name, fields.get(other))


Fields = dict[tuple[int, int], bytes]
"""The content of a protobuf message: number and kind of a field -> its last value; numbers have eight bytes."""


def _pair_in(fields: Fields) -> tuple[int, str]:
    """A number in field 1 and a text in field 2."""
    number, text = fields.get((1, _VARINT), b""), fields.get((2, _LENGTH), b"")
    return int.from_bytes(number, "big", signed=True), text.decode("utf-8", "replace")


def fields_of(message: bytes) -> tuple[Fields, bool]:
    """The fields of a protobuf message, and whether they are complete: not if it was cut, or is not protobuf.

    Source: https://protobuf.dev/programming-guides/encoding. Reading ends at the first bytes that are not protobuf.
    """
    found: Fields = {}
    at = 0
    try:
        while at < len(message):
            key, at = _varint(message, at)
            kind = key & 7
            if kind == _VARINT:
                value, at = _varint(message, at)
                content = (value & _ALL_BITS).to_bytes(8, "big")
            elif kind in _FIXED_BYTES:
                content, at = b"", at + _FIXED_BYTES[kind]
            elif kind == _LENGTH:
                size, start = _varint(message, at)
                at = start + size
                content = message[start:at]
            else:
                return found, False
            if at <= len(message):
                found[key >> 3, kind] = content
    except IndexError:
        return found, False
    return found, at == len(message)


_VARINT, _LENGTH, _FIXED_BYTES = 0, 2, {1: 8, 5: 4}
_ALL_BITS = (1 << 64) - 1
_OF_PARTIAL = {(1, _VARINT), (2, _LENGTH)}  # how many were refused, and why
# The text that may name refused records, in any Unicode encoding, with or without its mark.
_LIKE_JSON = re.compile(rb"\A[\s\xef\xbb\xbf\xfe\xff]*\{|rejected_?log_?records", re.IGNORECASE)
_STATUS_BEGINS = (b"\x08", b"\x12")  # its code, or its message
_PARTIAL_BEGINS = b"\x0a"  # the field 1 that holds the partial success


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number and the position after it.  Raises: IndexError if the message ends inside it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
