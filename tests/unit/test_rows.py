"""An entry as one row: who did what to which resource, and how it went."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poller.core.events import Event
from poller.core.mapping.rows import Row, row_of

AT_US = 1_777_621_340_530_999
RESOURCES = [{"type": "server", "id": "5f3c", "action": ["vr.server.create"]}, {"type": "datacenter", "id": "9"}]
EVENT = {"type": "Provision", "status": "DONE", "param": {"action": "POST"}, "resources": RESOURCES}
WHO = {"identity": {"username": "anna@example.org", "contractNumber": "31960001"}}


def row(event: Any, principal: Any = WHO) -> Row:
    line = json.dumps({"principal": principal, "event": event}).encode()
    return row_of("31960001", Event(AT_US, b"i" * 16, line))


def test_an_entry_becomes_a_row() -> None:
    found = row(EVENT)
    assert found == Row(
        "2026-05-01T07:42:20.530Z",
        "anna@example.org",
        "31960001",
        "Provision",
        "vr.server.create",
        "server",
        "5f3c",
        "DONE",
    )
    assert found.resource == "server 5f3c"
    assert not found.has_failed


@pytest.mark.parametrize(
    ("event", "what"),
    [
        ({"type": "GenerateToken", "param": {"action": "GET"}}, "GET GenerateToken"),
        ({"type": "Provision", "param": {"action": "http"}}, "Provision"),
        ({"type": "Provision", "param": {}, "resources": [{"action": []}, {"action": ["a.b", "c.d"]}]}, "a.b"),
        (
            {"type": "Provision", "resources": [{"type": "server", "action": "sn.snapshot.create"}]},
            "sn.snapshot.create",
        ),
        ({"param": {"action": "DELETE"}}, "DELETE"),
        ({"param": {"action": "Post"}}, "POST"),
        ({"param": {"action": "delete"}}, "DELETE"),
        ({}, ""),
    ],
)
def test_what_was_done_is_the_dotted_action_or_what_else_says_it(event: Any, what: str) -> None:
    assert row(event).what == what


@pytest.mark.parametrize(
    ("event", "result"),
    [
        ({"type": "RequestFailed", "status": "FAILED", "param": {"error": {"httpStatus": 422}}}, "FAILED 422"),
        ({"type": "Error", "param": {"errorCode": "100"}}, "FAILED 100"),
        ({"type": "Error"}, "FAILED"),
        ({"type": "Provision", "param": {"errorCode": "309"}}, "FAILED 309"),
        ({"type": "RequestStatusUpdate", "status": "RUNNING"}, "RUNNING"),
        ({"type": "Provision", "status": "Failed", "param": {"errorCode": "309"}}, "Failed 309"),
        ({"type": "DCDUserEvent"}, ""),
    ],
)
def test_how_it_went_is_the_status_and_the_code_of_an_error(event: Any, result: str) -> None:
    assert row(event).result == result
    assert row(event).has_failed == result.startswith(("FAILED", "Failed"))


@pytest.mark.parametrize("entry", [b"[]", b'{"event": null}', b"17", b'{"event": {"resources": 3}}'])
def test_an_entry_of_any_shape_has_a_row(entry: bytes) -> None:
    found = row_of("31960001", Event(AT_US, b"i" * 16, entry))
    assert found[1:] == ("", "31960001", "", "", "", "", "")
    assert found.resource == ""
