"""Changes to a line before it is sent: a time field in front, and shortening with a marker."""

from __future__ import annotations

import json

import pytest

from poller.core.events import OutboxEvent
from poller.core.mapping import escaped, format_time_us, truncated, with_time
from poller.core.mapping.ecs import ECS
from poller.core.mapping.moesif import ActionMaker
from poller.core.mapping.ocsf import OCSF

AT_US = 1_777_621_340_530_999


@pytest.mark.parametrize(
    ("time_us", "expected"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (AT_US, "2026-05-01T07:42:20.530Z"),
        (1_777_621_340_000_001, "2026-05-01T07:42:20.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (-62_135_596_800_000_000, "0001-01-01T00:00:00.000Z"),
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_a_time_has_milliseconds_and_is_never_rounded_up(time_us: int, expected: str) -> None:
    assert format_time_us(time_us) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{}", b'{"time":"2026-05-01T07:42:20.530Z"}'),
        (b'{"n":1.10}', b'{"time":"2026-05-01T07:42:20.530Z","n":1.10}'),
        (b'{"s":"\\ud800"}', b'{"time":"2026-05-01T07:42:20.530Z","s":"\\ud800"}'),
        (b'{"meta":{"time":"x"}}', b'{"time":"2026-05-01T07:42:20.530Z","meta":{"time":"x"}}'),
        (b'{"n":1,"time":null}', b'{"n":1,"time":null}'),
        (b'{"n":1,"t\\u0069me":7}', b'{"n":1,"t\\u0069me":7}'),
        (b'{"s":"\\ud800","time":7}', b'{"s":"\\ud800","time":7}'),
    ],
)
def test_a_time_key_goes_first_unless_the_entry_has_it(line: bytes, expected: bytes) -> None:
    assert with_time(line, "time", AT_US) == expected


@pytest.mark.parametrize(
    "rest", [b"[" * 100_000 + b"]" * 100_000, b"9" * 5000, b"\xff"], ids=["deep", "long", "no text"]
)
def test_an_entry_that_python_cannot_read_gets_its_time_all_the_same(rest: bytes) -> None:
    line = b'{"s":"\\ud800","x":' + rest + b"}"
    assert with_time(line, "time", AT_US) == b'{"time":"2026-05-01T07:42:20.530Z",' + line[1:]


def test_a_time_key_of_any_name_is_json() -> None:
    assert json.loads(with_time(b'{"n":1}', 'a"b\\ä', AT_US))['a"b\\ä'] == "2026-05-01T07:42:20.530Z"


def test_a_line_that_fits_to_the_byte_is_left_alone() -> None:
    line = b'{"n":1.10,"s":"' + b"x" * 1000 + b'"}'
    assert truncated(line, len(line)) == line
    assert truncated(line, len(line) - 1) != line


def test_a_shortened_entry_keeps_what_identifies_it() -> None:
    entry = {
        "@uuid": "6a1b7c7e-0000-4000-8000-000000000000",
        "meta": {"time": "2026-05-01T07:42:20.530Z", "requestId": "r"},
        "event": {
            "type": "Provision",
            "message": "m" * 10_000,
            "resources": [{"id": str(n)} for n in range(5000)],
        },
        "other": {str(n): "x" * 50 for n in range(1000)},
    }
    line = json.dumps(entry, separators=(",", ":")).encode()
    for max_bytes in (512, 4096, 65_536):
        shorter = json.loads(truncated(line, max_bytes))
        assert shorter["@uuid"] == entry["@uuid"]
        assert shorter["meta"]["time"] == "2026-05-01T07:42:20.530Z"
        assert shorter["event"]["type"] == "Provision"
        assert shorter["_truncated"] == {"original_bytes": len(line)}


def test_what_identifies_an_entry_is_kept_where_there_is_half_a_character_in_another_text() -> None:
    fields = ",".join(f'"{number}":"{"x" * 50}"' for number in range(100))
    line = f'{{"@uuid":"6a1b7c7e","event":{{"type":"Provision","message":"\\ud800"}},{fields}}}'.encode()
    shorter = json.loads(truncated(line, 512))
    assert (shorter["@uuid"], shorter["event"]) == ("6a1b7c7e", {"type": "Provision"})


@pytest.mark.parametrize(
    "value",
    [
        "[" * 700 + "]" * 700,
        '{"a":' * 700 + "1" + "}" * 700,
        "9" * 5000,
        "1e400",
        '"\\ud800"',
        '"' + "😀" * 100 + '"',
        "{" + ",".join(f'"{n}":{n}' for n in range(500)) + "}",
    ],
    ids=lambda value: value[:12],
)
@pytest.mark.parametrize("key", ["@uuid", "meta", "event", "other"])
def test_no_entry_is_too_strange_to_be_shortened(key: str, value: str) -> None:
    # An entry that cannot be shortened would block everything behind it forever.
    shorter = truncated(f'{{"{key}":{value},"filling":"{"x" * 9000}"}}'.encode(), 512)
    assert len(shorter) <= 512
    assert "_truncated" in json.loads(shorter, parse_constant=pytest.fail)


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1.10", "-0", "1e2", "0.1000000000000000055", "9" * 200])
@pytest.mark.parametrize("shape", ["%s", "[%s,[%s]]", '{"n":%s}'])
def test_numbers_of_a_shortened_entry_stay_as_they_are_written(number: str, shape: str) -> None:
    value = shape.replace("%s", number)
    line = f'{{"meta":{{"time":"2026-05-01T07:42:20.530Z"}},"n":{value},"filling":"{"x" * 9000}"}}'.encode()
    shorter = truncated(line, 1000)
    assert f',"n":{value},'.encode() in shorter
    assert len(shorter) <= 1000
    for make in (OCSF, ECS, ActionMaker().make):
        event = OutboxEvent("31000000", AT_US, AT_US // 1_000_000, b"i" * 16, 0, line)
        for made in (make(event.with_line(shorter)), make(event, max_bytes=8192)):
            assert "_truncated" in json.dumps(json.loads(made, parse_constant=pytest.fail))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"ä":"😀 \\n"}', '{"ä":"😀 \\n"}'),
        ('{\n "a": "b\u202ec\x9b\x7f"\n}', '{\n "a": "b\\u202ec\\u009b\\u007f"\n}'),
        ("\ud83d\ude00\r\t", "\\ud83d\\ude00\\r\\t"),
        ("\U000e0041", "\\udb40\\udc41"),
    ],
)
def test_a_terminal_is_shown_escapes_for_what_is_not_printed_as_itself(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped(shown) == shown
