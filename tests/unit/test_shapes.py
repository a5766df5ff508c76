"""Entries in the shapes that public sources describe: all are delivered in every format, and filters and redaction find them.

Source: docs/facts.md, "IONOS Activity Log API".
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from poller.core.answers import parse_page
from poller.core.events import Event, OutboxEvent
from poller.core.listing import parse_contracts
from poller.core.mapping import truncated, with_time
from poller.core.mapping.filter import Filter
from poller.core.mapping.moesif import ActionMaker
from poller.core.mapping.redact import Redactor

PERSON = {
    "sourceIP": "203.0.113.7",
    "sourceService": "PUBLIC_REST_V6",
    "serviceHost": "api.example.net",
    "identity": {"username": "admin@example.com", "contractNumber": 9_223_372_036_854_775_807},
}
USER = {"type": "user", "id": "1466", "action": ["sec.user.create"]}


def entry(number: int, *, principal: Any = PERSON, param: Any = None, resources: Any = (USER,), **fields: Any) -> Any:
    """An entry of the second `number`, with unusual parts."""
    post = {"action": "POST", "uri": "/cloudapi/v6/um/users", "initiator": "PUBLIC_REST_V6"}
    event = {"type": "RequestAccepted", "param": post if param is None else param, "resources": list(resources)}
    meta = {"auditVersion": 0.1, "time": f"2026-03-03T14:02:0{number}.530Z", "queueRefId": 4200 + number}
    odd = {
        "@uuid": f"00000000-0000-4000-8000-00000000000{number}",
        "meta": meta,
        "principal": principal,
        "event": event,
    }
    return {key: value for key, value in {**odd, **fields}.items() if value is not None}


BACKUP = {"type": "backupUnit", "id": "7", "action": ["vr.firewall.activate", "sn.snapshot.create"]}
ENTRIES = [
    entry(1),
    entry(2, principal={}),
    entry(3, meta={"auditVersion": "0.1", "time": "2026-03-03T14:02:03Z"}),
    entry(4, event={"type": "DCDUserEvent", "param": {}, "resources": []}),
    entry(5, param={"action": "http", "initiator": "DCD"}, resources=[{**USER, "action": []}, BACKUP]),
    entry(6, principal={**PERSON, "sourceService": "Reseller_V1", "identity": {}}, **{"@uuid": "no-uuid:4206"}),
    entry(7, principal=None, **{"@uuid": "c1b9b1b0-7b1b-11e6-9a41-000d3a002f99"}),
    entry(8, resources=[{"type": "ipblock", "id": 7, "action": "ip.ipblock.reserve"}]),
]
ALL = range(len(ENTRIES))


@pytest.fixture(scope="module")
def events() -> tuple[Event, ...]:
    body = json.dumps({"hits": {"total": len(ENTRIES), "hits": [{"_source": one} for one in ENTRIES]}})
    return parse_page(body.encode()).events


def stored(event: Event) -> OutboxEvent:
    return OutboxEvent("31000000", event.time_us, 1, event.identity, event.ordinal, event.line)


def test_each_is_an_entry_of_its_own_with_its_time(events: tuple[Event, ...]) -> None:
    assert [json.loads(event.line) for event in events] == ENTRIES
    assert len({event.identity for event in events}) == len(ENTRIES)
    assert all(event.is_timed and event.has_id for event in events)
    assert [event.time_us // 1_000_000 - events[0].time_us // 1_000_000 for event in events] == list(ALL)
    assert events[2].time_us % 1_000_000 == 0


def test_each_has_a_top_level_time_and_can_be_shortened(events: tuple[Event, ...]) -> None:
    for event in events:
        timed = json.loads(with_time(event.line, "time", event.time_us))
        assert timed["time"][:19] == timed["meta"]["time"][:19]
        shorter = truncated(event.line, 512)
        assert len(shorter) <= 512
        assert json.loads(shorter)["meta"]["time"] == timed["meta"]["time"]


def test_each_makes_a_valid_action_with_what_is_known(events: tuple[Event, ...]) -> None:
    actions = [json.loads(ActionMaker().make(stored(event))) for event in events]
    assert [action["metadata"] for action in actions] == ENTRIES
    assert {action["action_name"] for action in actions} == {"RequestAccepted", "DCDUserEvent"}
    assert all(action["request"]["uri"].startswith("https://api.ionos.com/") for action in actions)
    assert [action["request"]["ip_address"] == "0.0.0.0" for action in actions] == [n in (1, 6) for n in ALL]
    assert [action.get("user_id") for action in actions] == [
        None if number in (1, 5, 6) else "admin@example.com" for number in ALL
    ]
    ids = [action["transaction_id"] for action in actions]
    assert len({*ids}) == len(ids)
    assert all(len(id_) == 36 for id_ in ids), "also of an id that is no UUID"
    named = ActionMaker(action_name="{event.resources[].action[]}", user_id="meta.queueRefId")
    action = json.loads(named.make(stored(events[4])))
    assert (action["action_name"], action["user_id"]) == ("vr.firewall.activate,sn.snapshot.create", "4205")


@pytest.mark.parametrize(
    ("rule", "matched"),
    [
        ({"action": "POST"}, [0, 1, 2, 5, 6, 7]),
        ({"action": "http"}, [4]),
        ({"action": "sec.user.create"}, [0, 1, 2, 5, 6]),
        ({"action": "*.snapshot.*"}, [4]),
        ({"action": "ip.ipblock.reserve"}, [7]),
        ({"action": "sec.*", "type": "RequestAccepted", "username": "*"}, [0, 2]),
        ({"type": "DCD*"}, [3]),
        ({"resource_type": "backupUnit"}, [4]),
        ({"service": "Reseller_V1"}, [5]),
        ({"username": "admin@*"}, [0, 2, 3, 4, 7]),
        ({"source_ip": "203.0.113.*"}, [0, 2, 3, 4, 5, 7]),
    ],
)
def test_a_rule_finds_what_is_there_and_nothing_else(
    events: tuple[Event, ...], rule: dict[str, str], matched: list[int]
) -> None:
    rules = Filter([rule], [])
    assert [number for number, event in enumerate(events) if rules.reason("1", event.line)] == matched


@pytest.mark.parametrize(
    "path",
    [
        *("principal", "principal.sourceIP", "principal.identity.username", "principal.identity.contractNumber"),
        *("meta.queueRefId", "meta.auditVersion", "event.param.uri", "event.resources", "event.resources[].id"),
        *("event.resources[].action", "event.resources[].action[]"),
    ],
)
@pytest.mark.parametrize("kind", ["drop", "mask", "hashed"])
def test_a_redaction_takes_out_what_its_path_names_and_leaves_the_rest(
    events: tuple[Event, ...], path: str, kind: str
) -> None:
    redact = Redactor(**{kind: [path]}, key=b"a key")
    names = path.replace("[]", "").split(".")
    for before, event in zip(ENTRIES, events, strict=True):
        after = json.loads(redact(event.line))
        assert_redacted(before, after, names, kind)


def assert_redacted(before: Any, after: Any, names: list[str], kind: str) -> None:
    if isinstance(before, list):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_redacted(one, other, names, kind)
        return
    name, *rest = names
    assert {key: value for key, value in before.items() if key != name} == {
        key: value for key, value in after.items() if key != name
    }
    if name not in before:
        assert name not in after
    elif rest:
        assert_redacted(before[name], after[name], rest, kind)
    elif kind == "drop":
        assert after.get(name, []) == []
    else:
        texts = after[name] if isinstance(after[name], list) else [after[name]]
        assert before[name] == [] or all(text == "***" or text.startswith("hmac:") for text in texts)


def test_a_contract_number_has_64_bits() -> None:
    assert parse_contracts(b'[{"id": 9223372036854775807}]').numbers == ["9223372036854775807"]


def test_zeros_before_a_contract_number_make_no_other_contract() -> None:
    assert parse_contracts(b'[{"id": "031960001"}, {"id": 31960001}, {"id": "0"}]').numbers == ["31960001", "0"]
