"""Which entries the rules of `[filter]` let pass, and what is reported about the others."""

from __future__ import annotations

import json

import pytest

from poller.core.mapping.fields import Fields
from poller.core.mapping.filter import Filter

ENTRY = {
    "@uuid": "u",
    "principal": {"sourceIP": "192.0.2.7", "sourceService": "DCD", "identity": {"username": "anna@example.org"}},
    "event": {
        "type": "RequestAccepted",
        "status": "QUEUED",
        "param": {"action": "POST", "uri": "/x", "sourceService": "PUBLIC_REST"},
        "resources": [
            {"type": "server", "id": "1", "action": ["vr.server.create"]},
            {"type": "volume", "action": ["st.volume.create", "st.volume.attach"]},
            {"id": "no type", "action": []},
        ],
    },
}


def line_of(**changes):
    """The entry with these values; a name is a dotted path, with `__` for a dot."""
    entry = json.loads(json.dumps(ENTRY))
    for path, value in changes.items():
        *above, last = path.split("__")
        node = entry
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    return json.dumps(entry).encode()


def is_matched(rule, line=None, contract="31960001"):
    return Filter([rule], []).reason(contract, line_of() if line is None else line) is not None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"contract": "31960001"}, True),
        ({"contract": "3196*"}, True),
        ({"contract": "31960002"}, False),
        ({"type": "RequestAccepted"}, True),
        ({"type": "Request*"}, True),
        ({"type": "request*"}, False),
        ({"type": "RequestAccepte"}, False),
        ({"type": "Request?ccepted"}, True),
        ({"type": "Request[AB]ccepted"}, True),
        ({"type": "Request[!A]ccepted"}, False),
        ({"service": "DCD"}, True),
        ({"service": "PUBLIC_REST"}, False),
        ({"username": "*@example.org"}, True),
        ({"action": "POST"}, True),
        ({"action": "vr.server.create"}, True),
        ({"action": "st.*.attach"}, True),
        ({"action": "vr.server"}, False),
        ({"action": "*.create", "resource_type": "server"}, True),
        ({"action": "GET"}, False),
        ({"resource_type": "server"}, True),
        ({"resource_type": "volume"}, True),
        ({"resource_type": "vol*"}, True),
        ({"resource_type": "lan"}, False),
        ({"source_ip": "192.0.2.*"}, True),
        ({"status": "QUEUED"}, True),
        ({"type": "Request*", "action": "POST"}, True),
        ({"type": "Request*", "action": "GET"}, False),
        ({"type": "Request*", "resource_type": "lan"}, False),
        ({"contract": "3*", "type": "X"}, False),
    ],
)
def test_all_patterns_of_a_rule_must_match_and_case_matters(rule, expected):
    assert is_matched(rule) is expected


@pytest.mark.parametrize("key", ["type", "service", "username", "action", "resource_type", "source_ip", "status"])
@pytest.mark.parametrize(
    "line", [b"{}", b'{"event":null,"principal":null}', b'{"event":[],"principal":"x"}', b'{"event":{"param":7}}']
)
def test_a_missing_field_never_matches(key, line):
    assert not is_matched({key: "*"}, line)


@pytest.mark.parametrize(
    ("pattern", "value"),
    [("200", 200), ("200", "200"), ("1.5", 1.5), ("true", True), ("12345678901234567890123", 12345678901234567890123)],
)
def test_a_value_that_is_no_text_is_matched_as_it_is_written(pattern, value):
    assert is_matched({"status": pattern}, line_of(event__status=value))
    assert is_matched({"status": pattern, "type": "*"}, line_of(event__status=value, principal="another shape"))


NUMBERS = [
    "1.10",
    "1.1",
    "1e2",
    "1E+2",
    "100",
    "100.0",
    "-0",
    "0",
    "-0.0",
    "0.0",
    "1e22",
    "-7",
    "12345678901234567890.5",
]
NUMBERS += ["123456789012345678901234567890", "1e400", "0.1e-999", "9" * 5000]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:30])
@pytest.mark.parametrize("more", ["7", '"\\ud800"', "1e999", '"x"'])
def test_a_number_is_matched_as_it_is_written_whatever_else_is_in_its_entry(number, more):
    line = b'{"event":{"status":%s,"type":%s,"resources":[{"type":%s}]},"more":%s}'
    line %= (*[number.encode()] * 3, more.encode())
    for key in ("status", "type", "resource_type"):
        assert [other for other in NUMBERS if is_matched({key: other}, line)] == [number]
    assert Fields(["event.status", "event.resources[].type"]).read(line) == [number, [number]]
    assert Fields(["event.resources[]", "event.status"]).read(line) == [[], number]
    listed = b'{"a":[{"b":[%s]},{"b":%s}],"c":%s}' % (*[number.encode()] * 2, more.encode())
    assert list(Fields(["a[].b[]"]).read(listed)) == [[number, number]]
    assert list(Fields(["a", "a.b", "c"]).read(b'{"c":%s}' % number.encode())) == [None, None, number]


@pytest.mark.parametrize("value", [None, {}, [], ["QUEUED"], {"QUEUED": 1}])
def test_a_value_that_is_neither_text_nor_number_is_missing(value):
    assert not is_matched({"status": "*"}, line_of(event__status=value))


@pytest.mark.parametrize(
    "resources",
    [
        [{"type": "lan"}, None],
        [7, {"type": "lan"}],
        {"type": "lan"},
        [{"type": 1}, {"type": "lan"}],
        [[], {"type": "lan"}],
    ],
)
def test_resources_of_any_shape_are_looked_at(resources):
    assert is_matched({"resource_type": "lan", "type": "Request*"}, line_of(event__resources=resources))
    assert not is_matched({"resource_type": "server"}, line_of(event__resources=resources))


@pytest.mark.parametrize("strange", ["1e400", "9" * 5000, '"\\ud800"', "[" * 500 + "]" * 500])
def test_no_entry_is_too_strange_for_a_rule(strange):
    line = b'{"event":{"type":"T","status":%s,"other":%s}}' % (strange.encode(), strange.encode())
    assert is_matched({"type": "T"}, line)
    assert not is_matched({"type": "X"}, line)


def test_exclude_goes_before_include_and_the_first_rule_is_the_reason():
    rules = Filter(
        [{"type": "RequestStatusUpdate"}, {"type": "Request*", "action": "GET"}, {"action": "GET"}],
        [{"service": "DCD"}, {"service": "PUBLIC_*"}],
    )
    assert rules.reasons == [
        "exclude[0] type=RequestStatusUpdate",
        "exclude[1] type=Request* action=GET",
        "exclude[2] action=GET",
        "include",
    ]

    def reason(**changes):
        return rules.reason("1", line_of(**changes))

    assert reason() is None
    assert reason(event__type="RequestStatusUpdate", event__param__action="GET") == rules.reasons[0]
    assert reason(event__param__action="GET") == rules.reasons[1]
    assert reason(event__type="Error", event__param__action="GET") == rules.reasons[2]
    assert reason(principal__sourceService="Provisioning") == "include"
    assert reason(principal__sourceService="PUBLIC_REST_V6") is None
    assert rules.reason("1", b"{}") == "include"


def test_whom_a_rule_names_is_not_in_its_reason():
    rules = Filter([{"username": "anna@example.org", "source_ip": "192.0.2.7", "type": "T"}], [])
    (reason,) = rules.reasons
    assert reason == "exclude[0] username=*** source_ip=*** type=T"


def test_a_nasty_pattern_takes_no_time():
    assert not is_matched({"username": "*a" * 30 + "b"}, line_of(principal__identity__username="a" * 5000))


# The reader of fields


@pytest.mark.parametrize(
    ("paths", "line", "expected"),
    [
        (["a"], b'{"a":"x"}', ["x"]),
        (["a", "a.b"], b'{"a":{"b":"x"}}', [None, "x"]),
        (["a", "a.b"], b'{"a":"y"}', ["y", None]),
        (["a[].b"], b'{"a":[{"b":"x"},{"b":2},{}]}', [["x", "2"]]),
        (["a[]"], b'{"a":["x",{},2]}', [["x", "2"]]),
        (["a[]", "b"], b'{"a":"x","b":"y"}', [["x"], "y"]),
        (["a[].b[].c"], b'{"a":[{"b":[{"c":"1"},{"c":"2"}]},{"b":[{"c":"3"}]}]}', [["1", "2", "3"]]),
        (["a[].b[]", "a[].c"], b'{"a":[{"b":["1"],"c":"2"},{"b":["3"]}]}', [["1", "3"], ["2"]]),
        (["a.b", "a[].b"], b'{"a":{"b":"x"}}', ["x", ["x"]]),
        (["@uuid", "a-b.\u00fc"], b'{"@uuid":"1","a-b":{"\\u00fc":"2"}}', ["1", "2"]),
        (["a"], b"[]", [None]),
        (["a"], b"not json", [None]),
    ],
)
def test_fields_are_read_by_path(paths, line, expected):
    assert list(Fields(paths).read(line)) == expected


# Fields of entries with an unusual shape

ODD = ["a", "a.b"]  # one path ends inside the other: no shape holds both


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("true", "true"),
        ("false", "false"),
        ("1.10", "1.10"),
        ("1e400", "1e400"),
        ("9" * 5000, "9" * 5000),
        ('"x"', "x"),
        ("null", None),
        ("{}", None),
    ],
    ids=lambda value: str(value)[:9],
)
def test_a_value_is_given_as_text_as_it_is_written(value, expected):
    assert Fields(ODD).read(b'{"a":%s}' % value.encode()) == [expected, None]


def test_true_and_false_are_texts_in_an_entry_of_the_usual_shape_too():
    assert list(Fields(["a", "b"]).read(b'{"a":true,"b":false}')) == ["true", "false"]


@pytest.mark.parametrize("line", [b"[" * 100_000, b"{", b"[]", b'{"a":\xff}'], ids=["deep", "cut", "list", "no text"])
def test_of_an_entry_that_cannot_be_read_nothing_is_known(line):
    assert list(Fields(ODD).read(line)) == [None, None]
