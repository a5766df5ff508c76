"""OCSF and ECS: each part of an event, and the fields that are left out if the entry has no value for them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from poller.core.events import OutboxEvent
from poller.core.mapping.ecs import ECS
from poller.core.mapping.ocsf import OCSF
from poller.core.mapping.redact import Redactor
from poller.simulator.entries import EntryMaker
from tests.formats import ecs_problems, lost, ocsf_problems

UUID = "6a1b7c7e-0000-4000-8000-00000000000a"
AT = "2026-05-01T07:42:20.530Z"
AT_MS = 1_777_621_340_530
WHOLE_MS = 1_777_621_340_000  # as the program sets it for an entry without a usable time
CONTRACT = "31960001"
ENTRY = {
    "@uuid": UUID,
    "meta": {"time": AT, "requestId": "r-1", "queueRefId": 4711, "transactionId": "t-1", "auditVersion": 0.1},
    "principal": {
        "sourceIP": "192.0.2.7",
        "sourceService": "DCD",
        "serviceHost": "dcd-1.example.net",
        "identity": {"username": "anna@example.org", "contractNumber": 31960009},
    },
    "event": {
        "type": "Provision",
        "status": "DONE",
        "message": "100 % done",
        "param": {"action": "POST", "uri": "/datacenters?depth=1", "initiator": "DCD", "sourceService": "PUBLIC_REST"},
        "resources": [{"type": "server", "id": "s-1", "action": ["vr.server.create", "vr.nic.create"]}],
    },
}


def event_of(entry: Any, *, time_ms: int = AT_MS, ordinal: int = 0) -> OutboxEvent:
    line = entry if isinstance(entry, bytes) else json.dumps(entry, separators=(",", ":")).encode()
    return OutboxEvent(CONTRACT, time_ms * 1000, AT_MS // 1000 + 5, b"i" * 16, ordinal, line)


def ocsf_of(entry: Any, **more: Any) -> dict[str, Any]:
    event = event_of(entry, **more)
    made = json.loads(OCSF.make(event))
    assert ocsf_problems(made) == []
    assert made["raw_data"].encode() == event.line
    return made


def ecs_of(entry: Any, **more: Any) -> dict[str, Any]:
    event = event_of(entry, **more)
    made = json.loads(ECS.make(event))
    assert ecs_problems(made) == []
    assert made["event"]["original"].encode() == event.line
    return made


def happened(
    kind: str | None = None, status: str | None = None, action: str | None = None, **param: Any
) -> dict[str, Any]:
    event = {
        "type": kind,
        "status": status,
        "param": param,
        "resources": [{"id": "x", "action": [action]}] if action else [],
    }
    return {"event": {key: value for key, value in event.items() if value}}


def test_an_entry_becomes_an_event_of_ocsf_as_documented():
    line = json.dumps(ENTRY, separators=(",", ":"))
    assert ocsf_of(ENTRY) == {
        "category_uid": 6,
        "class_uid": 6003,
        "type_uid": 600301,
        "activity_id": 1,
        "activity_name": "Create",
        "time": AT_MS,
        "time_dt": AT,
        "severity_id": 1,
        "severity": "Informational",
        "status_id": 1,
        "status": "Success",
        "message": "100 % done",
        "actor": {
            "user": {"name": "anna@example.org", "email_addr": "anna@example.org", "account": {"uid": "31960009"}}
        },
        "api": {"operation": "vr.server.create", "service": {"name": "PUBLIC_REST"}, "request": {"uid": "r-1"}},
        "http_request": {"http_method": "POST", "url": {"path": "/datacenters", "query_string": "depth=1"}},
        "src_endpoint": {"ip": "192.0.2.7"},
        "resources": [{"uid": "s-1", "type": "server", "data": {"action": ["vr.server.create", "vr.nic.create"]}}],
        "cloud": {
            "provider": "IONOS Cloud",
            "account": {"uid": CONTRACT, "type_id": 99, "type": "IONOS Contract"},
        },
        "metadata": {
            "version": "1.8.0",
            "product": {"name": "Activity Log", "vendor_name": "IONOS Cloud"},
            "profiles": ["cloud", "datetime"],
            "log_name": "ionos.activitylog",
            "log_version": "0.1",
            "uid": UUID,
            "correlation_uid": "r-1",
            "event_code": "Provision",
            "original_time": AT,
            "logged_time": (AT_MS // 1000 + 5) * 1000,
            "logged_time_dt": "2026-05-01T07:42:25.000Z",
            "tenant_uid": CONTRACT,
        },
        "observables": [
            {"name": "src_endpoint.ip", "type_id": 2, "type": "IP Address", "value": "192.0.2.7"},
            {"name": "actor.user.name", "type_id": 4, "type": "User Name", "value": "anna@example.org"},
            {"name": "resources.uid", "type_id": 10, "type": "Resource UID", "value": "s-1"},
        ],
        "raw_data": line,
        "unmapped": {
            "meta": {"queueRefId": 4711, "transactionId": "t-1"},
            "principal": {"sourceService": "DCD", "serviceHost": "dcd-1.example.net"},
            "event": {"status": "DONE", "param": {"initiator": "DCD"}},
        },
    }


def test_an_entry_becomes_an_event_of_ecs_as_documented():
    line = json.dumps(ENTRY, separators=(",", ":"))
    assert ecs_of(ENTRY) == {
        "@timestamp": AT,
        "ecs": {"version": "9.4.0"},
        "event": {
            "kind": "event",
            "module": "ionos",
            "dataset": "ionos.activitylog",
            "id": UUID,
            "category": ["api", "configuration"],
            "type": ["creation"],
            "action": "vr.server.create",
            "outcome": "success",
            "provider": "PUBLIC_REST",
            "reason": "100 % done",
            "created": "2026-05-01T07:42:25.000Z",
            "original": line,
        },
        "user": {"name": "anna@example.org", "email": "anna@example.org"},
        "source": {"address": "192.0.2.7", "ip": "192.0.2.7"},
        "cloud": {"provider": "ionos", "account": {"id": CONTRACT}},
        "http": {"request": {"method": "POST", "id": "r-1"}},
        "url": {"path": "/datacenters", "query": "depth=1"},
        "related": {"user": ["anna@example.org"], "ip": ["192.0.2.7"]},
        "ionos": {
            "activitylog": {
                "meta": {"queueRefId": "4711", "transactionId": "t-1", "auditVersion": "0.1"},
                "principal": {
                    "sourceService": "DCD",
                    "serviceHost": "dcd-1.example.net",
                    "identity": {"contractNumber": "31960009"},
                },
                "event": {
                    "type": "Provision",
                    "status": "DONE",
                    "param": {"initiator": "DCD"},
                    "resources": [{"type": "server", "id": "s-1", "action": ["vr.server.create", "vr.nic.create"]}],
                },
            }
        },
    }


@pytest.mark.parametrize(
    ("entry", "number", "name", "kind"),
    [
        (happened(action="ip.ipblock.reserve"), 1, "Create", "creation"),
        (happened(action="vr.server.list", sourceService="x"), 2, "Read", "access"),
        (happened(action="vr.firewall.activate"), 3, "Update", "change"),
        (happened(action="ip.ipblock.release"), 4, "Delete", "deletion"),
        (happened(action="k8s.nodepool.Explode"), 99, "Explode", "info"),
        (happened(action="..."), 99, "...", "info"),
        ({"event": {"param": {"sourceService": "DCD"}}}, 0, "Unknown", "info"),
        ({}, 0, "Unknown", "info"),
        ({"event": {"param": {"action": "PUT"}}}, 3, "Update", "change"),
        ({"event": {"param": {"action": "head"}}}, 2, "Read", "access"),
        ({"event": {"param": {"action": "OPTIONS"}}}, 99, "OPTIONS", "info"),
        ({"event": {"param": {"action": "http"}}}, 99, "http", "info"),
        ({"event": {"param": {"action": "POST", "uri": "/servers/1/start"}}}, 99, "start", "info"),
        *(
            ({"event": {"param": {"action": action, "uri": uri}}}, 99, name, "info")
            for action in ("POST", "post", "Post")
            for uri, name in (
                ("/servers/1/stop/", "stop"),
                ("/servers/1/stop//", "stop"),
                ("https://api.ionos.com/cloudapi/v6/servers/1/stop", "stop"),
                ("HTTPS://api.ionos.com/servers/1/start/?depth=1#top", "start"),
                ("/servers/1/reboot?", "reboot"),
                ("/servers/1/reboot#", "reboot"),
                ("/servers/1/reboot?x=y#z", "reboot"),
                ("servers/1/reboot", "reboot"),
                ("//[/stop", "stop"),
            )
        ),
        *(
            ({"event": {"param": {"action": "Post", "uri": uri}}}, 1, "Create", "creation")
            for uri in (
                "/",
                "",
                "?stop",
                "/servers?next=/stop",
                "/servers#/stop",
                "/stop/volumes",
                "https://stop",
                "/xstop",
            )
        ),
        ({"event": {"param": {"action": "PUT", "uri": "/servers/1/start"}}}, 3, "Update", "change"),
        ({"event": {"param": {"action": "POST", "uri": "/servers/1"}, "resources": [{}]}}, 1, "Create", "creation"),
        ({"event": {"resources": [{"action": [""]}, {"action": "sn.snapshot.read"}]}}, 2, "Read", "access"),
    ],
)
def test_what_was_done_is_the_last_word_of_the_first_action_else_the_method(entry, number, name, kind):
    made = ocsf_of(entry)
    assert (made["activity_id"], made["activity_name"]) == (number, name)
    assert ecs_of(entry)["event"]["type"] == [kind]


@pytest.mark.parametrize(
    ("kind", "status", "expected", "outcome", "severity"),
    [
        ("Provision", "DONE", (1, "Success"), "success", 1),
        ("Provision", "done", (1, "Success"), "success", 1),
        ("Provision", "FAILED", (2, "Failure"), "failure", 1),
        ("RequestFailed", None, (2, "Failure"), "failure", 3),
        ("Error", "DONE", (2, "Failure"), "failure", 3),
        ("RequestAccepted", None, (99, "RequestAccepted"), "unknown", 1),
        ("RequestAccepted", "QUEUED", (99, "QUEUED"), "unknown", 1),
        ("RequestAccepted", "DONE", (99, "DONE"), "unknown", 1),
        ("RequestStatusUpdate", "RUNNING", (99, "RUNNING"), "unknown", 1),
        ("RequestStatusUpdate", None, (0, "Unknown"), "unknown", 1),
        (None, None, (0, "Unknown"), "unknown", 1),
    ],
)
def test_accepted_is_no_success_and_no_status_is_none(kind, status, expected, outcome, severity):
    made = ocsf_of(happened(kind, status))
    assert (made["status_id"], made["status"]) == expected
    assert made["severity_id"] == severity
    assert ecs_of(happened(kind, status))["event"]["outcome"] == outcome


def test_a_token_is_an_authentication():
    entry = {**ENTRY, "event": {**ENTRY["event"], "type": "GenerateToken"}}
    made = ocsf_of(entry)
    assert (made["class_uid"], made["activity_id"], made["type_uid"]) == (3002, 3, 300203)
    assert made["user"] == made["actor"]["user"]
    assert made["service"] == {"name": "PUBLIC_REST"}
    assert made["unmapped"]["event"]["resources"] == ENTRY["event"]["resources"]
    assert ecs_of(entry)["event"]["category"] == ["api", "authentication"]


def test_a_token_of_nobody_is_one_of_the_contract():
    made = ocsf_of({"event": {"type": "GenerateToken"}})
    assert made["user"] == {"account": {"uid": CONTRACT}}
    assert made["service"] == {"name": "Unknown"}
    assert made["actor"] == {"app_name": "Unknown"}


@pytest.mark.parametrize(
    ("action", "category"),
    [
        ("sec.user.create", "iam"),
        ("Sec.User.Create", "iam"),
        ("vr.server.create", "configuration"),
        (None, "configuration"),
    ],
)
def test_what_concerns_users_and_groups_is_iam_in_ecs(action, category):
    assert ecs_of(happened("Provision", action=action))["event"]["category"] == ["api", category]


def test_an_entry_without_anything_is_an_event_that_says_nothing():
    made = ocsf_of({})
    assert made["actor"] == {"app_name": "Unknown"}
    assert made["src_endpoint"] == {"svc_name": "Unknown"}
    assert made["api"] == {"operation": "Unknown"}
    assert made["metadata"]["uid"] == (b"i" * 16).hex()
    assert made.keys().isdisjoint({"http_request", "resources", "observables", "unmapped", "message", "status_code"})
    assert ecs_of({}, time_ms=WHOLE_MS).keys() == {"@timestamp", "ecs", "event", "cloud", "tags"}


@pytest.mark.parametrize(
    ("event", "operation"),
    [
        ({"type": "T", "param": {"action": "GET", "uri": "/a?b=c"}}, "GET /a"),
        ({"type": "T", "param": {"action": "http"}}, "http"),
        ({"type": "T", "param": {"uri": "/a"}}, "/a"),
        ({"type": "T"}, "T"),
    ],
)
def test_the_operation_of_ocsf_is_what_says_most(event, operation):
    assert ocsf_of({"event": event})["api"]["operation"] == operation


def test_a_failure_says_why():
    error = {
        "httpStatus": 422,
        "messages": [{"errorCode": "100", "message": "a"}, {"errorCode": "100", "message": "b"}],
    }
    entry = {"event": {"type": "RequestFailed", "param": {"errorCode": 100, "error": error}}}
    made = ocsf_of(entry)
    assert (made["status_code"], made["status_detail"]) == ("100", "a; b")
    assert made["api"]["response"] == {"code": 422, "error": "100", "error_message": "a; b"}
    seen = ecs_of(entry)
    assert seen["error"] == {"code": "100", "message": "a; b"}
    assert seen["http"]["response"] == {"status_code": 422}
    error["messages"][1]["errorCode"] = "309"
    assert ocsf_of(entry)["unmapped"]["event"]["param"]["error"] == {"codes": ["100", "309"]}


@pytest.mark.parametrize(
    ("given", "ip", "left"),
    [
        ("192.0.2.7", "192.0.2.7", None),
        ("2001:DB8::1", "2001:db8::1", "2001:DB8::1"),
        (" 192.0.2.7 ", "192.0.2.7", " 192.0.2.7 "),
        ("***", None, "***"),
        ("fe80::1%eth0", None, "fe80::1%eth0"),
        ("192.0.2.7, 192.0.2.8", None, "192.0.2.7, 192.0.2.8"),
    ],
)
def test_an_address_is_an_ip_address_or_stays_as_it_is(given, ip, left):
    entry = {"principal": {"sourceIP": given, "sourceService": "DCD"}}
    made = ocsf_of(entry)
    assert made["src_endpoint"] == ({"ip": ip} if ip else {"svc_name": "DCD"})
    assert made.get("unmapped", {}).get("principal", {}).get("sourceIP") == left
    assert ecs_of(entry)["source"] == {"address": given, **({"ip": ip} if ip else {})}


@pytest.mark.parametrize(
    ("uri", "url"),
    [
        ("/a/b", {"path": "/a/b"}),
        ("/a?b=c?d", {"path": "/a", "query_string": "b=c?d"}),
        ("/a?", {"url_string": "/a?"}),
        ("/a#b", {"url_string": "/a#b"}),
        ("https://h/a?b", {"url_string": "https://h/a?b"}),
    ],
)
def test_a_uri_is_a_path_and_a_query_or_stays_as_it_is(uri, url):
    assert ocsf_of({"event": {"param": {"uri": uri}}})["http_request"]["url"] == url
    names = {"query_string": "query", "url_string": "original"}
    expected = {names.get(key, key): value for key, value in url.items()}
    assert ecs_of({"event": {"param": {"uri": uri}}})["url"] == expected


@pytest.mark.parametrize(
    ("time", "time_ms", "is_own"),
    [
        (AT, AT_MS, True),
        ("2026-05-01T09:42:20.53+02:00", AT_MS, True),
        (AT_MS / 1000, AT_MS, True),
        ("2026-05-01T07:42:20Z", WHOLE_MS, True),
        ("2026-05-01T07:42:21Z", WHOLE_MS, False),
        ("yesterday", WHOLE_MS, False),
        ("***x", WHOLE_MS, False),
        ("hmac:0", WHOLE_MS, False),
        (None, WHOLE_MS, False),
    ],
)
def test_a_time_that_is_not_the_entrys_own_is_said_to_be_none(time, time_ms, is_own):
    made = ocsf_of({"meta": {"time": time}}, time_ms=time_ms)
    assert made["time"] == time_ms
    assert ("labels" in made["metadata"]) == (not is_own)
    assert ("tags" in ecs_of({"meta": {"time": time}}, time_ms=time_ms)) == (not is_own)


@pytest.mark.parametrize("kind", ["mask", "hashed", "drop"])
@pytest.mark.parametrize("path", ["meta.time", "meta"])
def test_a_time_that_was_redacted_is_the_entrys_own_and_not_said_to_be_none(kind, path):
    line = Redactor(**{kind: [path]}, key=b"k")(json.dumps(ENTRY).encode())
    made, seen = ocsf_of(line), ecs_of(line)
    assert made["time_dt"] == seen["@timestamp"] == AT
    assert "labels" not in made["metadata"]
    assert "tags" not in seen


@pytest.mark.parametrize("kind", ["mask", "hashed"])
def test_a_time_of_a_whole_second_that_was_masked_or_hashed_is_not_said_to_be_none(kind):
    entry = {**ENTRY, "meta": {"time": "2026-05-01T07:42:20Z"}}
    line = Redactor(**{kind: ["meta.time"]}, key=b"k")(json.dumps(entry).encode())
    assert "labels" not in ocsf_of(line, time_ms=WHOLE_MS)["metadata"]
    assert "tags" not in ecs_of(line, time_ms=WHOLE_MS)


@pytest.mark.parametrize("kind", ["mask", "hashed", "drop"])
def test_an_id_that_was_redacted_tells_events_apart_all_the_same(kind):
    redact = Redactor(**{kind: ["@uuid"]}, key=b"k")
    ids = set()
    for number in range(30):
        line = redact(json.dumps({**ENTRY, "@uuid": f"{number:08x}-0000-4000-8000-000000000000"}).encode())
        event = msgspec.structs.replace(event_of(line), identity=number.to_bytes(16))
        made, seen = json.loads(OCSF.make(event)), json.loads(ECS.make(event))
        assert made == json.loads(OCSF.map(event))
        assert made["metadata"]["uid"] == seen["event"]["id"]
        if kind != "hashed":  # a hashed id is still used as the id
            assert made["metadata"]["uid"] == event.identity.hex()
        assert ("@uuid" in made.get("unmapped", {})) == (kind == "mask")
        assert lost(event.line, OCSF.make(event)) == lost(event.line, ECS.make(event)) == []
        ids.add(made["metadata"]["uid"])
    assert len(ids) == 30


def test_two_entries_that_share_an_id_are_not_one():
    made = ocsf_of({"@uuid": UUID}, ordinal=1)
    assert made["metadata"]["uid"] == (b"i" * 16).hex()
    assert made["unmapped"]["@uuid"] == UUID


def test_what_is_new_or_of_another_type_is_kept_as_it_came():
    line = (
        b'{"@uuid":7,"new":{"a":[1.10,123456789012345678901234567890,null]},"meta":{"time":1777621340.530,"auditVersion":1.10,'
        b'"queueRefId":123456789012345678901234567890},"principal":{"identity":{"username":["x"],"contractNumber":"31960001"},'
        b'"serviceHost":true},"event":{"param":{"error":{"httpStatus":"422","messages":[{"message":"m","at":1}]}},"status":{},'
        b'"resources":[{"id":8,"action":"vr.server.stop"},{"type":"t"},"text"]}}'
    )
    made = ocsf_of(line)
    assert made["metadata"]["uid"] == "7"
    assert made["api"]["response"] == {"code": 422, "error_message": "m"}
    assert made["resources"] == [{"uid": "8", "data": {"action": ["vr.server.stop"]}}]
    assert b'"new":{"a":[1.10,123456789012345678901234567890,null]}' in OCSF.make(event_of(line))
    assert made["unmapped"]["meta"] == {"queueRefId": 123456789012345678901234567890}
    assert made["unmapped"]["principal"] == {"identity": {"username": ["x"]}, "serviceHost": True}
    assert made["unmapped"]["event"]["resources"][2] == "text"
    assert ecs_of(line)["ionos"]["activitylog"]["unmapped"]["event"]["status"] == {}


@pytest.mark.parametrize("more", [b"", b',"new":1', rb',"new":"\ud800"'], ids=["usual", "new", "surrogate"])
@pytest.mark.parametrize(
    "number", ["1.10", "0.1", "1e2", "-0", "0", "-0.0", "1e22", "1e400", "7", "12345678901234567890.5"]
)
def test_a_number_is_as_it_is_written_whatever_else_is_in_its_entry(number, more):
    line = (
        b'{"@uuid":#,"meta":{"auditVersion":#},"principal":{"identity":{"username":"x","contractNumber":#}},"event":{"param":'
        b'{"errorCode":#,"error":{"messages":[{"errorCode":1},{"errorCode":#}]}},"resources":[{"id":#}]}%s}'
    ).replace(b"#", number.encode())
    made = ocsf_of(line % more)
    assert made["metadata"]["log_version"] == made["metadata"]["uid"] == made["status_code"] == number
    assert made["actor"]["user"]["account"]["uid"] == made["resources"][0]["uid"] == number
    assert made["unmapped"]["event"]["param"]["error"]["codes"] == ["1", number]
    seen = ecs_of(line % more)
    assert seen["event"]["id"] == seen["error"]["code"] == number
    assert seen["ionos"]["activitylog"]["meta"]["auditVersion"] == number


@pytest.mark.parametrize("principal", [None, {}, [], "text", 7])
def test_a_principal_that_is_none_is_no_reason_to_fail(principal):
    made = ocsf_of({"principal": principal})
    assert made["actor"] == {"app_name": "Unknown"}
    assert made.get("unmapped") == ({"principal": principal} if principal not in (None, {}) else None)


def test_a_lone_surrogate_is_replaced_where_it_would_be_no_unicode_and_stays_in_the_entry():
    line = rb'{"event":{"type":"T\ud800","message":"\\ud800 \ud83d\ude00"},"new":"\udfff"}'
    made = ocsf_of(line)
    assert made["metadata"]["event_code"] == "T\ufffd"
    assert made["message"] == "\\ud800 \U0001f600"
    assert made["unmapped"] == {"new": "\ufffd"}


def test_a_long_entry_is_shortened_until_its_event_fits():
    entry = {**ENTRY, "padding": "x" * 100_000, "event": {**ENTRY["event"], "message": "ü" * 50_000}}
    event = event_of(entry)
    for standard in (OCSF, ECS):
        assert standard.make(event, max_bytes=10**6) == standard.make(event)
        made = standard.make(event, max_bytes=20_000)
        assert len(made) <= 20_000
        assert b"_truncated" in made
        assert b"vr.server.create" in made


def test_every_entry_of_the_simulator_is_valid_and_nothing_of_it_is_lost():
    for with_uuid in (True, False):
        maker = EntryMaker(3, int(CONTRACT), with_uuid=with_uuid)
        for index in range(1100):
            event = event_of(maker.render(index, AT_MS + index), time_ms=AT_MS + index)
            for standard, problems in ((OCSF, ocsf_problems), (ECS, ecs_problems)):
                made = standard.make(event)
                assert problems(json.loads(made)) == []
                assert lost(event.line, made) == []
