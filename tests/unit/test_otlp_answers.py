"""What an answer over OTLP says, in JSON or protobuf, whatever it calls itself: an unread refusal would be a lost entry."""

from __future__ import annotations

import msgspec
import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2

from poller.net.transport import Response
from poller.sinks.otlp import Partial, message_of, partial_of


def protobuf(refused: int, words: str) -> bytes:
    message = logs_service_pb2.ExportLogsServiceResponse()
    message.partial_success.rejected_log_records = refused
    message.partial_success.error_message = words
    return bytes(message.SerializeToString())


@pytest.mark.parametrize("refused", [0, 1, 3, 300, 2**40, 2**53, -1])
def test_both_encodings_say_how_many_were_refused_and_why(refused):
    for length in (0, 3, *range(100, 130), 5000):  # of about 120, the second byte of protobuf is a brace
        words = "ü" + "x" * length
        assert partial_of(protobuf(refused, words)) == Partial(refused, words)
        body = {"partialSuccess": {"rejectedLogRecords": str(refused), "errorMessage": words}}
        assert partial_of(b" \n" + msgspec.json.encode(body)) == Partial(refused, words)
    assert partial_of(b'{"partial_success":{"rejected_log_records":2.0,"error_message":"m"}}') == Partial(2, "m")


def test_fields_that_are_new_are_passed_over_and_the_last_of_one_field_counts():
    new = b"\x1a\x03new" + b"\x21" + b"8" * 8 + b"\x2d" + b"4" * 4 + b"\x20\xff\x01"
    assert partial_of(new + protobuf(1, "first") + new + protobuf(7, "last")) == Partial(7, "last")


def test_what_is_no_answer_refuses_nothing():
    message = protobuf(7, "words")
    assert partial_of(message[:-1]).refused == 0
    others = (b"", b"ok", b"{}", b"[1]", b"null", b"\xff" * 1000, b"\x0a\xff", b"\x0b", b"\x0a\x05ab", b"{" * 100_000)
    for body in (
        *others,
        b'{"partialSuccess":[]}',
        b'{"partialSuccess":{"rejectedLogRecords":"x"}}',
        b'{"partialSuccess":',
    ):
        assert partial_of(body) == Partial(0, ""), body


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"\x08\x03\x12\x0cno such logs", "application/x-protobuf", "no such logs"),
        (b'{"code":3,"message":"no such logs"}', "application/json", "no such logs"),
        (b'{"code":3,"message":"no such logs"}', "application/x-protobuf", "no such logs"),
        (b"\x08\x03", "application/x-protobuf", ""),
        (b'{"message":7}', "application/json", ""),
        (b"bad request", "text/plain", ""),
    ],
)
def test_the_words_of_an_error_are_found(body, content_type, words):
    assert message_of(Response(400, {"Content-Type": content_type}, body)) == words
