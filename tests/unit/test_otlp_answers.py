"""The sink for OTLP: what is sent, and how an answer is read, in JSON or protobuf, with any content type."""

from __future__ import annotations

import gzip
import json
import logging
import sys
import threading
from typing import Any

import msgspec
import pytest
import responses
from google.protobuf import json_format
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2

from poller import __version__
from poller.config import Config, OtlpSink, Secret, SecretSource
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.errors import ConfigError
from poller.core.events import OutboxEvent
from poller.net.transport import Response
from poller.sinks.base import Context
from poller.sinks.build import build_sink
from poller.sinks.otlp import PATIENCE_SECONDS, Partial, fields_of, message_of, partial_of
from poller.sinks.otlp import OtlpSink as Sink
from tests.hostile import RawServer, http

URL = "https://intake.example/otlp"
LOGS = f"{URL}/v1/logs"
each = pytest.mark.parametrize("encoding", ["protobuf", "json"])


def event_of(number: int, line: bytes = b"", contract: str = "31960001") -> OutboxEvent:
    line = line or b'{"event":{"type":"Provision","resources":[{"id":"r1"},{"id":"r2"}]},"n":1.10,"u":"\xc3\xbc"}'
    return OutboxEvent(contract, number * 1_000_000, 1_777_621_400, number.to_bytes(16), 0, line)


def make(url: str = URL, **settings: Any) -> Any:
    return build_sink(OtlpSink(**{"name": "otel", "url": url, **settings}), Config(), threading.Event())


def source(value: str) -> SecretSource:
    return SecretSource("inline", "", path="test", inline=Secret(value))


# What is sent


def text(value: str) -> dict[str, Any]:
    return {"stringValue": value}


def expected_record(number: int, line: bytes) -> dict[str, Any]:
    return {
        "timeUnixNano": f"{number}000000000",
        "observedTimeUnixNano": "1777621400000000000",
        "severityNumber": 9,
        "severityText": "INFO",
        "eventName": "ionos.activitylog.Provision",
        "body": text(line.decode()),
        "attributes": [
            {"key": "log.record.uid", "value": text(number.to_bytes(16).hex())},
            {"key": "cloud.account.id", "value": text("31960001")},
            {"key": "ionos.event.type", "value": text("Provision")},
            {"key": "ionos.resource.id", "value": {"arrayValue": {"values": [text("r1"), text("r2")]}}},
        ],
    }


def expected_request(*events: OutboxEvent) -> dict[str, Any]:
    resource = [("cloud.provider", "ionos"), ("service.name", "ionos-activitylog")]
    return {
        "resourceLogs": [
            {
                "resource": {"attributes": [{"key": key, "value": text(value)} for key, value in resource]},
                "scopeLogs": [
                    {
                        "scope": {"name": "ionos-poller", "version": __version__},
                        "logRecords": [expected_record(event.time_us // 1_000_000, event.line) for event in events],
                    }
                ],
            }
        ]
    }


def sent(encoding: str) -> Any:
    """The body of the last request as JSON. Protobuf is converted by its own library, with numbers in one form only."""
    body = responses.calls[-1].request.body
    if encoding == "json":
        return json.loads(body)
    message = logs_service_pb2.ExportLogsServiceRequest()
    message.ParseFromString(body)
    return json_format.MessageToDict(message, use_integers_for_enums=True)


@each
@responses.activate
def test_both_encodings_say_the_same(encoding: str) -> None:
    responses.post(LOGS, status=200, body=b"")
    events = [event_of(7), event_of(8)]
    sink = make(encoding=encoding, compression="none", bearer_token=source("t0ken"))
    assert sink.send(events) == Accepted(status=200)
    assert sent(encoding) == expected_request(*events)
    request = responses.calls[0].request
    assert request.headers["Content-Type"] == ("application/json" if encoding == "json" else "application/x-protobuf")
    assert request.headers["Authorization"] == "Bearer t0ken"


@each
@responses.activate
def test_with_a_stream_per_contract_each_request_holds_one_whose_resource_has_its_number(encoding: str) -> None:
    responses.post(LOGS, status=204)
    sink = make(encoding=encoding, compression="none", stream_per_contract=True)
    events = [event_of(number, contract=contract) for number, contract in enumerate(("1", "1", "2", "1"), 1)]
    parts = list(sink.parts(events))
    assert [[event.contract for event in part] for part in parts] == [["1", "1"], ["2"], ["1"]]
    assert [event for part in parts for event in part] == events
    for part in parts:
        assert sink.send(part) == Accepted(status=204)
        (of_resource,) = sent(encoding)["resourceLogs"]
        assert of_resource["resource"]["attributes"] == [
            {"key": "cloud.provider", "value": text("ionos")},
            {"key": "service.name", "value": text("ionos-activitylog")},
            {"key": "service.instance.id", "value": text(part[0].contract)},
        ]
        assert len(of_resource["scopeLogs"][0]["logRecords"]) == len(part)
    assert list(make().parts(events)) == [events]


@pytest.mark.parametrize("is_split", [False, True])
def test_what_is_too_far_behind_its_stream_is_told_what_to_set(is_split: bool) -> None:
    # The words of a real Loki 3.
    said = b"entry with timestamp ... ignored, reason: 'entry too far behind, entry timestamp is: 2026-11-30T18:28:07Z'"
    answer = Response(400, {"Content-Type": "application/octet-stream"}, b"\x12" + bytes([len(said)]) + said)
    outcome = send(answer, stream_per_contract=is_split)
    assert isinstance(outcome, Refused)
    assert outcome.reason.startswith("HTTP 400: entry with timestamp")
    assert outcome.reason.endswith(" (set stream_per_contract = true)") == (not is_split)


@each
@responses.activate
def test_a_probe_sends_no_record(encoding: str) -> None:
    responses.post(LOGS, status=200, body=b"")
    sink = make(encoding=encoding, compression="none")
    assert sink.probe() == Accepted(status=200)
    assert responses.calls[0].request.body == (b'{"resourceLogs":[]}' if encoding == "json" else b"")


@responses.activate
def test_protobuf_may_be_compressed() -> None:
    responses.post(LOGS, status=202)
    make().send([event_of(1)])
    plain = gzip.decompress(responses.calls[0].request.body)
    assert logs_service_pb2.ExportLogsServiceRequest.FromString(plain).resource_logs


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        *((status, "", Accepted) for status in (200, 201, 202, 204)),
        *((400, words, Accepted) for words in ("no log records", "empty request", "resourceLogs are required")),
        (422, "error at least one valid stream is required for ingestion", Accepted),
        *((status, words, Refused) for status in (400, 422) for words in ("", "bad request", "invalid tenant")),
        (400, "unsupported Content-Encoding: gzip", RetryAfter),
        *((401, "", CredentialsRefused), (404, "", RetryAfter), (503, "", RetryAfter), (413, "", TooLarge)),
    ],
)  # fmt: skip
@each
@responses.activate
def test_only_a_receiver_that_refuses_emptiness_takes_events(
    encoding: str, status: int, words: str, kind: type
) -> None:
    responses.post(LOGS, status=status, body=words)
    outcome = make(encoding=encoding).probe()
    assert type(outcome) is kind
    assert outcome.status == status if kind is Accepted else True


@each
@pytest.mark.parametrize("as_json", [True, False])
@responses.activate
def test_a_receiver_without_gzip_is_told_by_the_probe_and_costs_no_entry(encoding: str, as_json: bool) -> None:
    words = "unsupported Content-Encoding: gzip"

    def take(request: Any) -> tuple[int, dict[str, str], bytes]:
        said = msgspec.json.encode({"code": 3, "message": words}) if as_json else words.encode()
        return (400, {}, said) if request.headers.get("Content-Encoding") else (200, {}, b"{}")

    responses.add_callback(responses.POST, LOGS, take)
    expected = RetryAfter(f'HTTP 400: {words} (set compression = "none")')
    assert make(encoding=encoding).probe() == make(encoding=encoding).send([event_of(1)]) == expected
    plain = make(encoding=encoding, compression="none")
    assert plain.probe() == plain.send([event_of(1)]) == Accepted(status=200)


def test_a_probe_of_a_receiver_out_of_reach_says_so() -> None:
    assert isinstance(make("http://127.0.0.1:9", connect_timeout_seconds=0.2).probe(), RetryAfter)
    assert isinstance(make("http://127.0.0.1:9", connect_timeout_seconds=0.2).send([event_of(1)]), RetryAfter)


def test_without_its_library_it_says_for_which_sink_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.logs.v1", None)
    with pytest.raises(ConfigError) as caught:
        make()
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == ("sinks.otel.type", "otlp needs opentelemetry-proto")
    assert "[otlp]" in problem.hint
    assert 'encoding = "json"' in problem.hint
    make(encoding="json")


# What an answer means


def send(answer: Response, count: int = 1, **settings: Any) -> Outcome:
    """The outcome of sending `count` events, with this answer."""
    with responses.RequestsMock() as mock:
        mock.post(LOGS, status=answer.status, body=answer.body, headers=dict(answer.headers))
        outcome: Outcome = make(**settings).send([event_of(number) for number in range(1, count + 1)])
    return outcome


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_is_transient_is_tried_again_when_the_receiver_says(status: int) -> None:
    answer = Response(status, {"Retry-After": "7", "Content-Type": "text/plain"}, b"busy")
    assert send(answer) == RetryAfter(f"HTTP {status}: busy", 7.0, is_size_suspect=True)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Refused), (413, TooLarge), (401, CredentialsRefused), (404, RetryAfter)]
)
def test_any_other_status_means_what_it_means_to_every_sink(status: int, kind: type) -> None:
    outcome = send(Response(status, {}, b"no"))
    assert type(outcome) is kind
    assert status != 404 or "check url" in outcome.reason  # type: ignore[union-attr]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Receiver:
    """A receiver with an answer for each record. It accepts an empty request."""

    def __init__(self, status: int) -> None:
        self.answers: dict[int, tuple[int, bytes]] = {}  # key: the second of the record's time
        self.status = status
        self.usual: tuple[int, bytes] = (200, b"")
        self.asked: list[list[int]] = []
        self.clock = Clock()
        settings = OtlpSink(name="otel", url=URL, encoding="json", compression="none")
        self.sink = Sink(settings, Context(Config(), threading.Event()), clock=self.clock)
        responses.add_callback(responses.POST, LOGS, self._answer)

    def _answer(self, request: Any) -> tuple[int, dict[str, str], bytes]:
        records = [
            int(record["timeUnixNano"]) // 1_000_000_000
            for resource in json.loads(request.body)["resourceLogs"]
            for record in resource["scopeLogs"][0]["logRecords"]
        ]
        self.asked.append(records)
        found = [self.answers.get(number, self.usual) for number in records]
        status, body = max(found, default=(200, b""))
        return status, {}, body

    def break_for(self, *numbers: int) -> None:
        self.answers |= dict.fromkeys(numbers, (self.status, b"panic"))

    def send(self, *numbers: int) -> Outcome:
        return self.sink.send([event_of(number) for number in numbers])


TRIED_AGAIN = [500, 501, 505]


@pytest.mark.parametrize("status", TRIED_AGAIN)
@responses.activate
def test_a_record_that_breaks_a_receiver_is_refused_if_one_that_it_took_is_taken_again(status: int) -> None:
    receiver = Receiver(status)
    receiver.break_for(3)
    assert receiver.send(1, 2) == Accepted(status=200)
    assert receiver.send(3, 4) == RetryAfter(f"HTTP {status}: panic", is_size_suspect=True)
    assert receiver.send(3) == Refused(f"HTTP {status}: panic", status)
    assert receiver.asked == [[1, 2], [3, 4], [3], [2]]
    assert receiver.send(4) == Accepted(status=200)
    assert receiver.send(3) == Refused(f"HTTP {status}: panic", status)
    assert receiver.asked[-1] == [4]


@pytest.mark.parametrize("status", TRIED_AGAIN)
@pytest.mark.parametrize(
    "ill",
    [
        (500, b"queue is full"),
        (503, b""),
        (401, b""),
        (400, b""),
        (302, b""),
        (200, b'{"partialSuccess":{"rejectedLogRecords":1}}'),
    ],
    ids=str,
)
@responses.activate
def test_a_receiver_that_is_ill_costs_no_record_though_it_takes_an_empty_request(
    ill: tuple[int, bytes], status: int
) -> None:
    receiver = Receiver(status)
    assert receiver.send(1) == Accepted(status=200)
    receiver.usual = ill
    receiver.break_for(2)
    for _ in range(5):
        receiver.clock.now += 2 * PATIENCE_SECONDS
        assert receiver.send(2) == RetryAfter(f"HTTP {status}: panic", is_size_suspect=True)
    receiver.answers.clear()
    receiver.usual = (200, b"")
    assert receiver.send(2) == Accepted(status=200)


@responses.activate
def test_where_none_was_taken_yet_one_of_the_same_batch_tells_who_is_to_blame() -> None:
    receiver = Receiver(500)
    receiver.break_for(1, 2)
    for batch in ((1, 2, 3, 4), (1, 2)):
        assert isinstance(receiver.send(*batch), RetryAfter)
    assert receiver.send(1) == Refused("HTTP 500: panic", 500)
    assert receiver.send(2) == Refused("HTTP 500: panic", 500)
    assert receiver.asked[2:] == [[1], [4], [2], [4]]


@responses.activate
def test_where_no_record_was_taken_yet_one_waits_for_an_hour() -> None:
    receiver = Receiver(500)
    receiver.break_for(1, 2)
    assert isinstance(receiver.send(1, 2), RetryAfter)
    receiver.asked.clear()
    for now, number in ((0, 1), (1800, 2), (PATIENCE_SECONDS - 1, 1), (PATIENCE_SECONDS, 2)):
        receiver.clock.now = now
        assert isinstance(receiver.send(number), RetryAfter)
    assert receiver.asked == [[1], [2], [2], [1], [2], [2]]  # 2 is sent for comparison, and is not taken either
    receiver.clock.now = PATIENCE_SECONDS
    assert receiver.send(1) == Refused("HTTP 500: panic", 500)
    assert receiver.asked[-3:] == [[1], [2], []]


@pytest.mark.parametrize("status", [302, 404, 429, 502, 503, 504])
@responses.activate
def test_what_does_not_come_of_the_record_costs_none_however_well_the_receiver_is(status: int) -> None:
    responses.add_callback(responses.POST, LOGS, lambda request: (status if request.body else 200, {}, b""))
    assert isinstance(make(compression="none").send([event_of(1)]), RetryAfter)
    assert len(responses.calls) == 1


@pytest.mark.parametrize(
    ("count", "body", "expected"),
    [
        *((2, body, Accepted(status=200)) for body in (b"", b"ok", b"{}", b"[1]", b'{"partialSuccess":null}')),
        (2, b'{"partialSuccess":{"rejectedLogRecords":"0","errorMessage":"slow down"}}', Accepted(status=200)),
        (2, b'{"partialSuccess":{"rejectedLogRecords":"-1","errorMessage":"odd"}}', Accepted(status=200)),
        (2, b'{"partialSuccess":{"rejectedLogRecords":1}}', Refused('1 of 2: {"partialSuccess":{"rejectedLogRecords":1}}', 200)),
        (2, b'{"partialSuccess":{"rejectedLogRecords":2,"errorMessage":"bad"}}', Refused("2 of 2: bad", 200)),
        (1, b'{"partialSuccess":{"rejectedLogRecords":1,"errorMessage":"bad"}}', Refused("bad", 200)),
        (1, b"\x0a\x02\x08\x01", Refused("no reason given", 200)),
    ],
)  # fmt: skip
@each
def test_a_success_is_partial_only_if_it_says_so(encoding: str, count: int, body: bytes, expected: Outcome) -> None:
    assert send(Response(200, {}, body), count, encoding=encoding) == expected


def test_a_warning_in_a_success_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for words in ("slow down", ""):
        body = msgspec.json.encode({"partialSuccess": {"errorMessage": words}})
        assert send(Response(200, {}, body)) == Accepted(status=200)
    (record,) = caplog.records
    assert (record.message, record.sink, record.why) == ("batch.warned", "otel", "slow down")  # type: ignore[attr-defined]


def test_a_success_that_ends_early_is_sent_again() -> None:
    with RawServer(lambda asked: http(b"\x0a", length=99)) as server:
        outcome = make(server.url).send([event_of(1)])
    assert outcome == RetryAfter("the answer ended early, and may have named refused records", is_size_suspect=True)


def test_the_words_of_an_error_are_read_out_of_its_protobuf() -> None:
    body = b"\x08\x03\x12\x0cno such logs"
    headers = {"Content-Type": "application/x-protobuf"}
    assert send(Response(400, headers, body)) == Refused("HTTP 400: no such logs", 400)


def test_neither_a_secret_nor_an_entry_comes_back_in_the_words() -> None:
    canary = "canary-of-a-token"
    words = (
        f"Bearer {canary} is not allowed to send what the receiver will not take, which is: {event_of(1).line.decode()}"
    )
    body = msgspec.json.encode({"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": words}})
    outcome = send(Response(200, {}, body), bearer_token=source(canary))
    assert isinstance(outcome, Refused)
    assert outcome.reason.startswith("Bearer ********")
    assert "canary" not in outcome.reason
    assert "Provision" not in outcome.reason


# The parts of protobuf that are read


def partial(body: bytes, **headers: str) -> Partial | None:
    return partial_of(Response(200, {name.replace("_", "-"): value for name, value in headers.items()}, body))


def protobuf(refused: int, words: str) -> bytes:
    message = logs_service_pb2.ExportLogsServiceResponse()
    message.partial_success.rejected_log_records = refused
    message.partial_success.error_message = words
    return bytes(message.SerializeToString())


@pytest.mark.parametrize("refused", [0, 1, 3, 300, 2**40, 2**53, -1])
def test_both_encodings_say_how_many_were_refused_and_why(refused):
    for length in (0, 3, *range(100, 130), 5000):  # at about 120, the second byte of protobuf is a brace
        words = "ü" + "x" * length
        assert partial(protobuf(refused, words)) == Partial(refused, words)
        body = {"partialSuccess": {"rejectedLogRecords": str(refused), "errorMessage": words}}
        assert partial(b" \n" + msgspec.json.encode(body)) == Partial(refused, words)
    assert partial(b'{"partial_success":{"rejected_log_records":2.0,"error_message":"m"}}') == Partial(2, "m")


def test_fields_that_are_new_are_passed_over_and_the_last_of_one_field_counts():
    new = b"\x1a\x03new" + b"\x21" + b"8" * 8 + b"\x2d" + b"4" * 4 + b"\x20\xff\x01"
    assert partial(new + protobuf(1, "first") + new + protobuf(7, "last")) == Partial(7, "last")
    # A field with the right number but another type is skipped.
    inner = b"\x08\x05\x12\x01w"
    others = b"\x0a\x01x\x09" + b"8" * 8 + b"\x10\x07"
    whole = inner + others
    assert partial(b"\x0a" + bytes([len(whole)]) + whole + b"\x08\x09") == Partial(5, "w")


def test_what_is_no_answer_refuses_nothing():
    others = (b"", b"ok", b"OK\n", b"{}", b"[1]", b"null", b"\xff" * 1000, b"\x0a\xff", b"\x0b", b"\x0a\x05ab", b"\nOK")
    for body in (
        *others,
        b'{"partialSuccess":[]}',
        b'{"partialSuccess":{}}',
        b'{"partialSuccess":{"errorMessage":7}}',
    ):
        assert partial(body) == Partial(0, ""), body
    assert partial(b"OK", Content_Type="application/x-protobuf") == Partial(0, "")


def test_what_comes_behind_a_count_does_not_hide_it():
    message = protobuf(7, "words")
    group = b"\x0b\x0a\x02\x08\x01"
    assert partial(message + group) == Partial(7, "words"), "a group, which nobody sends, ends it"
    assert partial(b"\x0a\x07\x08\x07" + group) == Partial(7, "")


@pytest.mark.parametrize(
    "words", ["user J\xc3", "a\tb", "\xed\xa0\x80", "\\ud800", "\\udfff\\u0000", "\xff\xfe", "\0\x1b["]
)
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b" \r\n"])
def test_odd_characters_in_the_words_do_not_hide_a_refused_record(words: str, before: bytes) -> None:
    said = words.encode("latin-1")
    body = before + b'{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"bad: ' + said + b'"}}'
    for headers in ({}, {"Content-Type": "application/json"}, {"Content-Encoding": "utf-8"}):
        outcome = send(Response(200, headers, body), 4)
        assert isinstance(outcome, Refused)
        assert outcome.reason.startswith("1 of 4: bad: ")
        outcome.reason.encode()
    inside = b"\x08\x01\x12" + bytes([len(said)]) + said
    refused = partial(b"\x0a" + bytes([len(inside)]) + inside)
    assert refused is not None
    assert refused.refused == 1


def test_an_answer_in_another_unicode_encoding_is_read():
    text = '{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"m"}}'
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"):
        assert partial(text.encode(encoding)) == Partial(1, "m"), encoding


UNREADABLE = RetryAfter(
    "the answer cannot be read, and may have named refused records (check url and any proxy on the way)",
    is_size_suspect=True,
)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        *((body, {}) for body in (b"{", b" {", b'{"a":' * 5000, b'{"partialSuccess":', b"{'partialSuccess':1}")),
        (b'{"partialSuccess":{"rejectedLogRecords":"1"},}', {"Content-Type": "application/json"}),
        *(
            (b'{"partialSuccess":{"rejectedLogRecords":"1"},}'.decode().encode(encoding), {})
            for encoding in ("utf-16", "utf-16-be", "utf-32", "utf-8-sig")
        ),
        (b'{\0"partialSuccess":{"rejectedLogRecords":"1"}}', {}),
        (b'[{"partialSuccess":{"rejectedLogRecords":"1"}}]', {}),
        (b')]}\',\n{"partial_success":{"rejected_log_records":1}}', {"Content-Type": "application/json"}),
        *((b'{"partialSuccess":{"rejectedLogRecords":%b}}' % count, {}) for count in (b'"x"', b"[1]", b"1e999", b"NaN")),
        *((b'{"partialSuccess":%b}' % found, {}) for found in (b"[1]", b'"no"', b"true")),
        *((b"\x1b\x3f\0\xf8", {"Content-Encoding": name}) for name in ("br", "zstd", "br, br", "x")),
        *((body, {"Content-Type": "application/x-protobuf"}) for body in (b"\x0a\x05ab", b"\x0a\x02\x08", b"\x0a\x02\x10")),
        *((protobuf_cut, {"Content-Type": "application/protobuf"}) for protobuf_cut in (b"\x0a\x04\x08\x01\x12", b"\x0a")),
    ],
)  # fmt: skip
def test_a_success_that_may_name_refused_records_and_cannot_be_read_is_none(
    body: bytes, headers: dict[str, str]
) -> None:
    assert partial_of(Response(200, headers, body)) is None
    with RawServer(lambda asked: http(body, *(f"{name}: {value}" for name, value in headers.items()))) as server:
        assert make(server.url).send([event_of(1)]) == UNREADABLE


@pytest.mark.parametrize("end", [b'a\xffg-d"},}', b'hb-\xffg"}', b'a\xffg-d"}}}', b'a\xffg-d"}}x'])
def test_damaged_json_behind_a_newline_is_not_taken_for_the_protobuf_that_it_may_happen_to_be(end: bytes) -> None:
    begin = b'"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"'
    body = b"\n{" + begin + b"x" * (ord("{") - len(begin) - len(end)) + end
    of_records, is_whole = fields_of(body[2:])
    assert is_whole
    assert (fields_of(body)[0].keys(), partial_of(Response(200, {}, body))) == ({(1, 2)}, None), of_records


def test_fields_that_nobody_knew_when_this_was_written_are_no_refusal() -> None:
    inside = b"\x08\x00\x18\x07"
    answer = b"\x0a" + bytes([len(inside)]) + inside
    assert partial_of(Response(200, {"Content-Type": "application/x-protobuf"}, answer)) == Partial(0, "")


@pytest.mark.parametrize("encoding", ["br", "zstd", "utf-8"])
def test_no_body_has_no_encoding_that_matters(encoding):
    assert partial(b"", Content_Encoding=encoding) == Partial(0, "")


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"\x08\x03\x12\x0cno such logs", "application/x-protobuf", "no such logs"),
        (b'{"code":3,"message":"no such logs"}', "application/json", "no such logs"),
        (b'{"code":3,"message":"no such logs"}', "application/x-protobuf", "no such logs"),
        (b"\x08\x03", "application/x-protobuf", ""),
        (b'{"message":7}', "application/json", ""),
        (b"bad request", "text/plain", ""),
        (b"\x08\x03\x12\x0cno such logs", "text/plain", "no such logs"),
        (b"\x08\x03\x12\x0cno such logs", None, "no such logs"),
        (b"\x12\x0cno such logs", "application/octet-stream", "no such logs"),  # a real Loki
        (b"\x12\x0cno such", "application/octet-stream", ""),
    ],
)
def test_the_words_of_an_error_are_found(body, content_type, words):
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert message_of(Response(400, headers, body)) == words
