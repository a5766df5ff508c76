"""An entry as a Moesif action: each part of it, and that every entry gives one."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.events import OutboxEvent
from poller.core.mapping import SHORTEST_ACTION_BYTES, with_time
from poller.core.mapping.moesif import ActionMaker
from tests.actions import Action

UUID = "6a1b7c7e-0000-4000-8000-00000000000a"
AT_US = 1_777_621_340_530_999
ENTRY = {
    "@uuid": UUID,
    "meta": {"time": "2026-05-01T07:42:20.530Z"},
    "principal": {"sourceIP": "192.0.2.7", "identity": {"username": "anna@example.org", "contractNumber": 31960001}},
    "event": {
        "type": "Provision",
        "param": {"action": "POST", "uri": "/cloudapi/v6/datacenters?depth=1"},
        "resources": [{"type": "server"}, {"type": "volume"}],
    },
}


def event_of(entry, *, contract="31960001", identity=b"i" * 16, ordinal=0):
    line = entry if isinstance(entry, bytes) else json.dumps(entry, separators=(",", ":")).encode()
    return OutboxEvent(contract, AT_US, AT_US // 1_000_000, identity, ordinal, line)


def action_of(entry, *, contract="31960001", **settings) -> Action:
    action = msgspec.json.decode(
        ActionMaker(**settings).make(event_of(entry, contract=contract)), type=Action, strict=True
    )
    assert action.action_name
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", action.transaction_id)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", action.request.time)
    assert re.fullmatch(r"https?://[^/\s]+/[!-~]*", action.request.uri)
    assert action.request.ip_address
    return action


def test_an_entry_becomes_an_action_as_documented():
    assert json.loads(ActionMaker().make(event_of(ENTRY))) == {
        "action_name": "Provision",
        "transaction_id": UUID,
        "company_id": "31960001",
        "user_id": "anna@example.org",
        "request": {
            "time": "2026-05-01T07:42:20.530Z",
            "uri": "https://api.ionos.com/cloudapi/v6/datacenters?depth=1",
            "ip_address": "192.0.2.7",
        },
        "metadata": ENTRY,
    }


def test_the_entry_is_in_it_to_the_byte():
    line = b'{"a":1.10,"b":123456789012345678901234567890,"s":"\\ud800\xc3\xa9\\u00e9"}'
    assert ActionMaker().make(event_of(line)).endswith(b',"metadata":' + line + b"}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"action_name": "event.param.action"}, {"action_name": "POST"}),
        ({"action_name": "{event.type} {event.param.action}"}, {"action_name": "Provision POST"}),
        (
            {"action_name": "{event.type}: {event.nothing} {event.resources[].type}"},
            {"action_name": "Provision: server,volume"},
        ),
        ({"action_name": "event.nothing"}, {"action_name": "unknown"}),
        ({"action_name": "{event.nothing} of {event.none}"}, {"action_name": "unknown"}),
        ({"action_name": "event.param"}, {"action_name": "unknown"}),
        ({"company_id": "ionos-{contract}"}, {"company_id": "ionos-31960001"}),
        ({"company_id": "principal.identity.contractNumber"}, {"company_id": "31960001"}),
        ({"company_id": "event.nothing"}, {"company_id": None}),
        ({"user_id": "{contract}/{principal.identity.username}"}, {"user_id": "31960001/anna@example.org"}),
        ({"user_id": "event.nothing"}, {"user_id": None}),
    ],
)
def test_each_part_can_be_set_as_a_path_or_a_template(settings, expected):
    action = action_of(ENTRY, **settings)
    assert {key: getattr(action, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("/a/b", "https://h/base/a/b"),
        ("a", "https://h/base/a"),
        ("", "https://h/base/"),
        (None, "https://h/base/"),
        (7, "https://h/base/7"),
        ({}, "https://h/base/"),
        ("http://other:80/x", "http://other:80/x"),
        ("https://", "https://h/base/https://"),
        ("//x", "https://h/base/x"),
        ('/a b\u00fc\n"<>', "https://h/base/a%20b%C3%BC%0A%22%3C%3E"),
        ("/a%20b?c=d&e=[1]#f", "https://h/base/a%20b?c=d&e=[1]#f"),
        ("***", "https://h/base/***"),
    ],
)
def test_the_uri_is_absolute_whatever_the_entry_says(uri, expected):
    assert action_of({"event": {"param": {"uri": uri}}}, uri_base="https://h/base/").request.uri == expected


def test_a_lone_surrogate_is_no_reason_to_fail():
    line = ActionMaker().make(event_of({"event": {"type": "T\ud800", "param": {"uri": "/x\ud800"}}}))
    action = json.loads(line)
    assert (action["action_name"], action["request"]["uri"]) == ("T\ud800", "https://api.ionos.com/x")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        (" 2001:DB8::1 ", "2001:db8::1"),
        ("***", "0.0.0.0"),
        ("hmac:0123", "0.0.0.0"),
        ("", "0.0.0.0"),
        (None, "0.0.0.0"),
        (["192.0.2.7"], "0.0.0.0"),
    ],
)
def test_the_address_is_one_or_none_at_all_but_never_ours(address, expected):
    assert action_of({"principal": {"sourceIP": address}}).request.ip_address == expected


def test_an_entry_without_anything_makes_an_action():
    action = action_of({})
    assert (action.action_name, action.company_id, action.user_id) == ("unknown", "31960001", None)


@pytest.mark.parametrize("own_id", [None, "", "no uuid", 7, UUID + "0", "***", "hmac:" + "0" * 32])
def test_without_a_uuid_of_its_own_the_id_is_made_of_what_identifies_the_entry(own_id):
    def id_of(contract="1", identity=b"i" * 16):
        event = event_of({"@uuid": own_id}, contract=contract, identity=identity)
        return json.loads(ActionMaker().make(event))["transaction_id"]

    assert id_of() == id_of()
    assert len({id_of(), id_of(contract="2"), id_of(identity=b"j" * 16)}) == 3
    # The id never changes: otherwise events that an older version sent would be repeated.
    assert id_of() == FIXED_ID


FIXED_ID = "3d9d2c5c-efff-5c73-8b1f-b9964163f3d4"


def test_a_twin_is_an_action_of_its_own():
    ids = {
        json.loads(ActionMaker().make(event_of(ENTRY, ordinal=n, identity=bytes([n] * 16))))["transaction_id"]
        for n in range(3)
    }
    assert len(ids) == 3
    assert UUID in ids


@pytest.mark.parametrize("max_bytes", [600, 1000, 5000])
def test_what_is_too_long_is_shortened_in_its_metadata_alone(max_bytes):
    entry = {**ENTRY, "event": {**ENTRY["event"], "message": "m" * 9000}}
    line = ActionMaker().make(event_of(entry), max_bytes=max_bytes)
    assert len(line) <= max_bytes
    action = msgspec.json.decode(line, type=Action)
    assert msgspec.json.decode(action.metadata)["_truncated"]
    assert (action.user_id, action.transaction_id) == ("anna@example.org", UUID)
    assert action.request.uri.endswith("?depth=1")


@pytest.mark.parametrize("text", ["u", "\u0001", "\ud800", "\U0001f600", "%", "\u00e9"])
def test_an_action_fits_in_the_shortest_line_however_long_its_own_texts_are(text):
    text *= 9000
    entry = {
        "@uuid": text,
        "meta": {"time": text},
        "event": {"type": text, "param": {"uri": text}},
        "principal": {"identity": {"username": text}, "sourceIP": ":".join(["ffff"] * 8) + "%" + "z" * 9000},
    }
    room = SHORTEST_ACTION_BYTES - len(with_time(b"{}", "k" * 60, AT_US) + b"\n")
    made = ActionMaker().make(event_of(entry), max_bytes=room)
    assert len(made) <= room
    assert "_truncated" in json.loads(made)["metadata"]


def test_a_short_action_keeps_the_beginning_of_its_texts_and_no_half_of_an_escape():
    entry = {
        "event": {"type": "t", "param": {"uri": "/v/" + "\u00e9" * 900}},
        "principal": {"sourceIP": "fe80::1%eth0"},
    }
    request = json.loads(ActionMaker().make(event_of(entry), max_bytes=600))["request"]
    assert request["uri"] == "https://api.ionos.com/v/" + "%C3%A9" * 10 + "..."
    assert request["ip_address"] == "fe80::1"


ANY = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)  # JSON has neither
    | st.text()
    | st.just([{}])
    | st.just({"a": "b"})
)


@given(ANY, ANY, ANY, ANY, ANY)
def test_whatever_the_fields_hold_the_action_is_valid(uuid, user, address, uri, kind):
    action_of(
        {
            "@uuid": uuid,
            "principal": {"identity": {"username": user}, "sourceIP": address},
            "event": {"param": {"uri": uri}, "type": kind},
        }
    )


@pytest.mark.parametrize(
    ("base", "uri", "expected"),
    [
        ("https://h/X/", "/Xy", "https://h/X/Xy"),
        ("https://h", "/caf\u00e9", "https://h/caf%C3%A9"),
    ],
)
def test_of_an_address_only_slashes_are_trimmed_and_only_ascii_is_left_as_it_is(base, uri, expected):
    assert action_of({"event": {"param": {"uri": uri}}}, uri_base=base).request.uri == expected


def test_an_action_that_fits_to_the_byte_is_left_alone():
    event = event_of({**ENTRY, "event": {**ENTRY["event"], "message": "m" * 2000}})
    whole = ActionMaker().make(event)
    assert ActionMaker().make(event, max_bytes=len(whole)) == whole
    shortened = ActionMaker().make(event, max_bytes=len(whole) - 1)
    assert len(shortened) < len(whole)
    assert "_truncated" in json.loads(shortened)["metadata"]


def test_an_action_with_a_lone_surrogate_is_as_compact_as_any():
    line = ActionMaker().make(event_of({"@uuid": UUID, "event": {"type": "T\ud800"}}))
    assert line == json.dumps(json.loads(line), separators=(",", ":")).encode()
