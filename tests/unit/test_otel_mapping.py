"""An entry as an OpenTelemetry log record: the source of each attribute, and what receivers can rely on."""

from __future__ import annotations

import json

import msgspec
import pytest

from poller.core.events import OutboxEvent
from poller.core.mapping.otel import ERROR, INFO, Record, record_of

ENTRY = {
    "@uuid": "6a1b7c7e-0000-4000-8000-000000000001",
    "meta": {"time": "2026-05-01T07:42:20.530Z", "requestId": "request-1"},
    "principal": {
        "sourceIP": "203.0.113.9",
        "sourceService": "DCD",
        "identity": {"username": "jane@example.com", "contractNumber": "31960001"},
    },
    "event": {
        "type": "RequestAccepted",
        "status": "DONE",
        "param": {"action": "POST", "uri": "/cloudapi/v6/ipblocks?depth=1"},
        "resources": [{"type": "ipblock", "id": "b1", "action": ["ip.ipblock.reserve"]}, {"type": "ip", "id": 7}],
    },
}


def record(entry: object = ENTRY, *, ordinal: int = 0) -> Record:
    line = entry if isinstance(entry, bytes) else msgspec.json.encode(entry)
    return record_of(OutboxEvent("31960001", 1_777_621_340_530_000, 1_777_621_400, b"\x0f" * 16, ordinal, line))


def test_an_entry_has_its_time_the_time_of_collection_and_the_line_to_the_byte() -> None:
    made = record()
    assert (made.time_ns, made.observed_ns) == (1_777_621_340_530_000_000, 1_777_621_400_000_000_000)
    assert made.body.encode() == msgspec.json.encode(ENTRY)
    assert (made.event_name, made.severity) == ("ionos.activitylog.RequestAccepted", INFO)


def test_the_attributes_are_those_of_the_semantic_conventions() -> None:
    assert record().attributes == {
        "log.record.uid": "0f" * 16,
        "cloud.account.id": "31960001",
        "user.name": "jane@example.com",
        "client.address": "203.0.113.9",
        "http.request.method": "POST",
        "url.path": "/cloudapi/v6/ipblocks",
        "ionos.event.type": "RequestAccepted",
        "ionos.event.status": "DONE",
        "ionos.event.action": ["ip.ipblock.reserve"],
        "ionos.resource.type": ["ipblock", "ip"],
        "ionos.resource.id": ["b1", "7"],
        "ionos.request.id": "request-1",
        "ionos.service": "DCD",
    }


@pytest.mark.parametrize(
    "entry", [{}, {"event": {}}, {"event": None, "meta": []}, b"[]", b"cut", b'{"event":{"type":""}}']
)
def test_what_an_entry_does_not_say_is_left_out(entry: object) -> None:
    made = record(entry)
    assert set(made.attributes) == {"log.record.uid", "cloud.account.id"}
    assert made.event_name == "ionos.activitylog"


@pytest.mark.parametrize(
    ("event", "severity"),
    [
        ({"type": "Error"}, ERROR),
        ({"type": "RequestFailed"}, ERROR),
        ({"type": "Provision", "status": "FAILED"}, ERROR),
        ({"type": "Provision", "status": "Failed"}, ERROR),
        ({"type": ["Error"], "status": {"FAILED": 1}}, INFO),
        ({"type": "RequestAccepted", "status": "QUEUED"}, INFO),
    ],
)
def test_a_failure_is_an_error_and_accepted_is_no_success(event: object, severity: int) -> None:
    assert record({"event": event}).severity == severity


def test_a_failed_request_names_its_error() -> None:
    assert record({"event": {"param": {"errorCode": "VDC-4-1"}}}).attributes["error.type"] == "VDC-4-1"


@pytest.mark.parametrize("action", ["http", "", "reserve"])
def test_only_a_method_is_given_as_the_method(action: str) -> None:
    assert "http.request.method" not in record({"event": {"param": {"action": action}}}).attributes


def test_a_method_in_small_letters_is_one_as_in_the_other_formats() -> None:
    assert record({"event": {"param": {"action": "delete"}}}).attributes["http.request.method"] == "DELETE"


def test_equal_entries_without_an_id_are_kept_apart() -> None:
    first, second = record(), record(ordinal=1)
    assert first.attributes["log.record.uid"] != second.attributes["log.record.uid"]
    assert second.time_ns == first.time_ns + 1


def test_a_text_that_no_encoding_takes_is_given_without_what_is_wrong_in_it() -> None:
    line = b'{"principal":{"identity":{"username":"a\\ud800b"}},"event":{"param":{"uri":"http://[x"}}}'
    made = record(line)
    assert made.attributes["user.name"] == "a?b"
    assert made.attributes["url.path"] == "http://[x"
    assert made.body.encode() == line


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/a/b?c=1", "/a/b"),
        ("/a#b?c", "/a"),
        ("//a/b?c=/d", "//a/b"),
        ("/a\tb\n/c", "/a\tb\n/c"),
        ("https://api.ionos.com/a/b?c", "/a/b"),
        ("a/b", "a/b"),
        ("*", "*"),
    ],
)
def test_the_path_of_a_url_is_as_it_is_written(uri: str, path: str) -> None:
    made = record(json.dumps({"event": {"param": {"uri": uri}}}).encode())
    assert made.attributes["url.path"] == path
