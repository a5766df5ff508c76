"""A stand-in for a receiver of OpenTelemetry logs: `POST /v1/logs`, decoded with OpenTelemetry's own classes.

Like a Collector, it may accept a request in part: refused records are counted in `partialSuccess`, but not named.
Source: the OTLP specification, "OTLP/HTTP".
"""

from __future__ import annotations

from typing import Any

from poller.simulator.answers import JSON, Answer, Request, inflated, json_answer
from poller.simulator.intakes import Intake, Item, Verdict
from poller.simulator.settings import SimulatorSettings

PROTOBUF = "application/x-protobuf"
WORDS = "the record cannot be taken"


class OtlpIntake(Intake):
    """Stores the body of each record, which is also its identity."""

    name = "otlp"

    def judge(self, request: Request, settings: SimulatorSettings) -> Verdict:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in (PROTOBUF, JSON):
            return Verdict(json_answer(415, {"message": "unsupported media type"}), [])
        body = inflated(request)
        records = None if body is None else _records(body, content_type)
        if records is None:
            return Verdict(_status(400, "not a request for logs", content_type), [])
        poison = settings.poison
        taken = [Item(body.encode()) for body in records if not (poison and poison in body)]
        refused = len(records) - len(taken)
        return Verdict(_success(refused, content_type), taken, refused)


def _records(body: bytes, content_type: str) -> list[str] | None:
    """The bodies of the records; None if it is not a request for logs."""
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2

    request: Any = logs_service_pb2.ExportLogsServiceRequest()
    try:
        if content_type == JSON:
            json_format.Parse(body, request)
        else:
            request.ParseFromString(body)
    except (DecodeError, json_format.ParseError):
        return None
    return [
        record.body.string_value
        for of_resource in request.resource_logs
        for of_scope in of_resource.scope_logs
        for record in of_scope.log_records
    ]


def _success(refused: int, content_type: str) -> Answer:
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2

    response: Any = logs_service_pb2.ExportLogsServiceResponse()
    if refused:
        response.partial_success.rejected_log_records = refused
        response.partial_success.error_message = WORDS
    return _answer(200, response, content_type)


def _status(status: int, message: str, content_type: str) -> Answer:
    """An error answer: a google.rpc.Status."""
    if content_type == JSON:
        return json_answer(status, {"code": 3, "message": message})
    text = message.encode()
    return Answer(status, b"\x08\x03\x12" + bytes([len(text)]) + text, PROTOBUF)


def _answer(status: int, message: Any, content_type: str) -> Answer:
    from google.protobuf import json_format

    if content_type == JSON:
        return Answer(status, json_format.MessageToJson(message, indent=None).encode())
    return Answer(status, message.SerializeToString(), PROTOBUF)
