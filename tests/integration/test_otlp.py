"""OpenTelemetry, from a batch to a receiver that decodes it with OpenTelemetry's own classes and takes it in part."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2

from poller.checks.sinks import check_sink
from poller.config import Config, OtlpSink, Secret, SecretSource
from poller.core.delivery import Accepted, CredentialsRefused, Refused, RetryAfter, TooLarge
from poller.core.errors import ConfigError
from poller.core.events import Event, OutboxEvent
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.simulator import Simulator, SimulatorSettings
from poller.sinks.base import Sink
from poller.sinks.build import build_sink
from poller.store.sqlite import State
from tests.hostile import Answer, Asked, RawServer, http
from tests.states import commit

ENCODINGS = ("protobuf", "json")
each = pytest.mark.parametrize("encoding", ENCODINGS)
CONTRACT = "31960001"
TOP = Path(__file__).resolve().parents[2]


def event_of(number: int, line: bytes = b"") -> OutboxEvent:
    line = line or b'{"event":{"type":"Provision","resources":[{"id":"r1"}]},"n":1.10,"u":"%d\xc3\xbc"}' % number
    return OutboxEvent(CONTRACT, number * 1_000_000, 1_777_621_400, number.to_bytes(16), 0, line)


def make(url: str, **settings: Any) -> Sink:
    table = OtlpSink(**{"name": "otel", "url": url, "batch_age_seconds": 0.0, **settings})
    return build_sink(table, Config(), threading.Event())


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorSettings(events=0, keep_lines=True)) as simulator:
        yield simulator


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    servers: list[RawServer] = []

    def start(answer: Callable[[Asked], Answer]) -> RawServer:
        servers.append(RawServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@each
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_every_line_arrives_to_the_byte(simulator: Simulator, encoding: str, compression: str) -> None:
    sink = make(f"{simulator.url}/sink/otlp", encoding=encoding, compression=compression)
    events = [event_of(number) for number in range(1, 4)]
    assert sink.send(events) == Accepted(status=200)
    assert simulator.intakes["otlp"].lines == [event.line for event in events]


@each
def test_both_encodings_say_the_same(serve: Callable[..., RawServer], encoding: str) -> None:
    from google.protobuf import json_format

    asked: list[Asked] = []

    def take(request: Asked) -> Answer:
        asked.append(request)
        return http(b"{}", "Content-Type: application/json")

    make(serve(take).url, encoding=encoding, headers={"X-Scope-OrgID": "tenant"}).send([event_of(7)])
    (request,) = asked
    assert request.path == "/v1/logs"
    message = logs_service_pb2.ExportLogsServiceRequest()
    body = gzip.decompress(request.body)
    if encoding == "json":
        json_format.Parse(body, message)
    else:
        message.ParseFromString(body)
    (of_resource,) = message.resource_logs
    assert {item.key: item.value.string_value for item in of_resource.resource.attributes} == {
        "cloud.provider": "ionos",
        "service.name": "ionos-activitylog",
    }
    (record,) = of_resource.scope_logs[0].log_records
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (7_000_000_000, 1_777_621_400_000_000_000)
    assert (record.event_name, record.severity_number, record.severity_text) == (
        "ionos.activitylog.Provision",
        9,
        "INFO",
    )
    attributes = {item.key: item.value for item in record.attributes}
    assert attributes["log.record.uid"].string_value == (7).to_bytes(16).hex()
    assert [value.string_value for value in attributes["ionos.resource.id"].array_value.values] == ["r1"]


@each
def test_each_refused_record_of_many_is_a_dead_letter_with_the_receivers_words(
    simulator: Simulator, tmp_path: Path, encoding: str
) -> None:
    simulator.change_settings(poison="poison")
    refused = {17, 18, 90, 199}
    state = State.open(tmp_path, "run")
    state.contracts.enrol([CONTRACT], "default", 0, 0)
    lines = [b'{"n":%d,"k":"%s"}' % (n, b"poison" if n in refused else b"good") for n in range(200)]
    events = [Event(n + 1, n.to_bytes(16), line, True, True) for n, line in enumerate(lines)]
    deliverer = Deliverer(state.outbox, make(f"{simulator.url}/sink/otlp", encoding=encoding))
    commit(state, events, contract=CONTRACT, window=Window(0, 9), now=9)
    while deliverer.step(is_last=True).wait_seconds is not None:
        pass
    letters = state.dead_letters.find()
    assert {msgspec.json.decode(letter.line)["n"] for letter in letters} == refused
    assert {letter.reason for letter in letters} == {"the record cannot be taken"}
    assert set(simulator.intakes["otlp"].lines) == {line for n, line in enumerate(lines) if n not in refused}
    state.close()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_is_transient_is_tried_again_when_the_receiver_says(serve: Callable[..., RawServer], status: int) -> None:
    url = serve(lambda asked: http(b"", "Retry-After: 7", status=f"{status} Busy")).url
    outcome = make(url).send([event_of(1)])
    assert isinstance(outcome, RetryAfter)
    assert outcome.seconds == 7.0


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Refused), (413, TooLarge), (401, CredentialsRefused), (404, RetryAfter)]
)
def test_any_other_status_means_what_it_means_to_every_sink(
    serve: Callable[..., RawServer], status: int, kind: type
) -> None:
    assert type(make(serve(lambda asked: http(b"", status=f"{status} No")).url).send([event_of(1)])) is kind


def test_the_words_of_an_error_are_read_out_of_its_protobuf(serve: Callable[..., RawServer]) -> None:
    body = b"\x08\x03\x12\x0cno such logs"
    url = serve(lambda asked: http(body, "Content-Type: application/x-protobuf", status="400 Bad Request")).url
    assert make(url).send([event_of(1)]) == Refused("HTTP 400: no such logs", 400)


def test_a_record_that_breaks_a_receiver_which_is_well_is_refused(serve: Callable[..., RawServer]) -> None:
    broken = http(b"panic", status="500 Internal Server Error")
    sick = [False]

    def take(asked: Asked) -> Answer:
        return broken if sick[0] or b"bad" in gzip.decompress(asked.body) else http(b"")

    sink = make(serve(take).url)
    bad = event_of(1, b'{"bad":1}')
    assert isinstance(sink.send([bad, event_of(2)]), RetryAfter)
    assert sink.send([bad]) == Refused("HTTP 500: panic", 500)
    sick[0] = True
    assert isinstance(sink.send([bad]), RetryAfter), "an outage must cost no event"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", Accepted),
        (b"ok", Accepted),
        (b"{}", Accepted),
        (b"[1]", Accepted),
        (b'{"partialSuccess":null}', Accepted),
        (b'{"partialSuccess":{"rejectedLogRecords":"0","errorMessage":"slow down"}}', Accepted),
        (b'{"partialSuccess":{"rejectedLogRecords":"x"}}', Accepted),
        (b'{"partialSuccess":{"rejectedLogRecords":"1"}}', Refused),
        (b'{"partialSuccess":{"rejectedLogRecords":2,"errorMessage":"bad"}}', Refused),
    ],
)
@each
def test_a_success_is_partial_only_if_it_says_so(
    serve: Callable[..., RawServer], encoding: str, body: bytes, kind: type
) -> None:
    outcome = make(serve(lambda asked: http(body)).url, encoding=encoding).send([event_of(1), event_of(2)])
    assert type(outcome) is kind


def test_a_success_that_ends_early_is_sent_again(serve: Callable[..., RawServer]) -> None:
    outcome = make(serve(lambda asked: http(b"\x0a", length=99)).url).send([event_of(1)])
    assert isinstance(outcome, RetryAfter)
    assert outcome.is_size_suspect


def test_neither_a_secret_nor_an_entry_comes_back_in_the_words(serve: Callable[..., RawServer]) -> None:
    token = "canary-of-a-token"
    line = b'{"principal":{"identity":{"username":"canary of a user name that is long"}}}'
    words = f"Bearer {token}: {line.decode()}"
    body = msgspec.json.encode({"partialSuccess": {"rejectedLogRecords": "1", "errorMessage": words}})
    sink = make(
        serve(lambda asked: http(body)).url,
        bearer_token=SecretSource("inline", "", path="test", inline=Secret(token)),
    )
    outcome = sink.send([event_of(1, line)])
    assert "canary" not in str(outcome)


def test_a_probe_sends_no_record(simulator: Simulator) -> None:
    assert make(f"{simulator.url}/sink/otlp").probe() == Accepted(status=200)
    assert simulator.intakes["otlp"].stored == 0


def test_check_says_that_it_takes_events_or_what_to_do(simulator: Simulator) -> None:
    def told(path: str) -> Any:
        table = OtlpSink(name="otel", url=f"{simulator.url}{path}")
        (finding,) = check_sink(table, Config(), threading.Event())
        return finding

    assert "takes events" in told("/sink/otlp").message
    assert "check url" in told("/nowhere").hint


def test_without_its_library_protobuf_says_what_to_install_and_json_works(
    monkeypatch: pytest.MonkeyPatch, simulator: Simulator
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "opentelemetry.proto.collector.logs.v1", None)
        with pytest.raises(ConfigError) as caught:
            make("http://127.0.0.1:1")
        assert "pip install 'ionos-poller[otlp]'" in str(caught.value)
        sink = make(f"{simulator.url}/sink/otlp", encoding="json")
    assert sink.send([event_of(1)]) == Accepted(status=200)
