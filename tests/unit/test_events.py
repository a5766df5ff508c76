"""Events from answers of the API: shapes, totals, identities, times, and lines that keep every byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from poller.core.answers import MAX_ENTRIES, BadAnswerError, Page, PartialAnswerError, parse_page
from poller.core.errors import BodyTooLargeError
from poller.core.events import Event, OutboxEvent, Run, StoredEvents, ndjson
from poller.core.identity import IDENTITY_BYTES
from poller.core.listing import MAX_CONTRACTS, parse_contracts
from poller.core.mapping import format_time_us


def hits(*entries: str, total: str | None = None) -> bytes:
    """An answer in the API's own shape. An entry that starts with `{"_` is used as a whole hit."""
    elements = [entry if entry.startswith('{"_') else f'{{"_source":{entry}}}' for entry in entries]
    count = f'"total":{total},' if total is not None else ""
    return f'{{"hits":{{{count}"hits":[{",".join(elements)}]}}}}'.encode()


def only(body: bytes) -> Event:
    (event,) = parse_page(body).events
    return event


def microseconds(*parts: int) -> int:
    return round(datetime(*parts, tzinfo=UTC).timestamp() * 1_000_000)


# Shapes


@pytest.mark.parametrize(
    "body",
    [
        b'{"hits":{"total":2,"hits":[{"_source":{"@uuid":"a"}},{"_source":{"@uuid":"b"}}]}}',
        b'{"took":5,"hits":{"max_score":null,"hits":[{"_index":"x","_source":{"@uuid":"a"}},{"_source":{"@uuid":"b"}}]}}',
        b'{"items":[{"@uuid":"a"},{"@uuid":"b"}]}',
        b'{"items":[{"_source":{"@uuid":"a"}},{"@uuid":"b"}]}',
        b'[{"@uuid":"a"},{"@uuid":"b"}]',
        b'[{"_source":{"@uuid":"a"}},{"_id":"1","_source":{"@uuid":"b"}}]',
        b'\xef\xbb\xbf \n[{"@uuid":"a"},\t{"@uuid":"b"}]\r\n',
    ],
)
def test_every_tolerated_shape_holds_the_same_entries_in_the_same_order(body: bytes) -> None:
    page = parse_page(body)
    assert [event.line for event in page.events] == [b'{"@uuid":"a"}', b'{"@uuid":"b"}']
    assert [event.identity for event in page.events] == [
        event.identity for event in parse_page(b'[{"@uuid":"a"},{"@uuid":"b"}]').events
    ]


@pytest.mark.parametrize("body", [b'{"hits":{"total":0,"hits":[]}}', b'{"hits":{"hits":[]}}', b'{"items":[]}', b"[]"])
def test_an_empty_page_is_a_page(body: bytes) -> None:
    assert parse_page(body).events == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"true",
        b"7",
        b'"text"',
        b"{}",
        b'{"hits":[]}',
        b'{"hits":{}}',
        b'{"hits":{"hits":null}}',
        b'{"hits":{"hits":{}}}',
        b'{"items":{}}',
        b'{"items":null,"total":1}',
        b'{"items":null,"total":{"value":1}}',
        b'{"hits":null}',
        b'{"hits":{"total":2,"hits":null}}',
        b"<!DOCTYPE html><html><body>Bad gateway</body></html>",
        b'{"hits":{"total":1,"hits":[{"_source":{"@uuid":"a"}}]}',
        b'{"hits":{"total":1,"hits":[{"_source":{"@uuid":"a',
        b'{"hits":{"hits":[]}} trailing',
        b'{"httpStatus":401,"messages":[{"errorCode":"315","message":"no"}]}',
        b"[" * 100_000,
        b"\x1f\x8b\x08\x00\x00",
        b'{"hits":{"hits":[{"_source":{}}],"total":"7"},"items":[]}',
    ],
    ids=lambda body: body[:40].decode("ascii", "replace"),
)
def test_anything_else_is_a_bad_answer_and_nothing_worse(body: bytes) -> None:
    if body.endswith(b'"items":[]}'):
        assert parse_page(body).events == ()  # `items` is the shape that fits
    else:
        with pytest.raises(BadAnswerError):
            parse_page(body)


@pytest.mark.parametrize("body", [b"<html>login</html>", b" nope", b"\x1f\x8b\x08\x00\x00"], ids=repr)
@pytest.mark.parametrize("parse", [parse_page, parse_contracts])
def test_what_is_no_json_at_all_is_told_as_that(parse: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(BadAnswerError, match="JSON is malformed") as caught:
        parse(body)
    assert "null" not in str(caught.value), "there is none in it"


@pytest.mark.parametrize(
    "element",
    [
        '{"_source":{"x":01}}',
        '{"_source":{"x":NaN}}',
        '{"_source":{"x":-Infinity,"s":"]}"}}',
        '{"_source":{"x":"a\x01b"}}',
        '{"_source":{"s":"\\x"}}',
        '{"_source":{"a":' + "[" * 5000 + "]" * 5000 + "}}",
        '{"_source":null}',
        '{"_source":"text"}',
        '{"_source":[]}',
        '{"_id":"1"}',
        "{}",
        "null",
        "1",
        "[]",
    ],
    ids=lambda element: element[:30].encode("unicode_escape").decode(),
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_element_that_is_no_entry_spoils_no_other(element: str, place: int) -> None:
    elements = ['{"_source":{"@uuid":"a"}}', '{"_source":{"@uuid":"b"}}']
    elements.insert(place, element)
    body = '{"hits":{"total":3,"hits":[' + ", ".join(elements) + "]}}"
    found = parse_page(body.encode())
    assert [event.line for event in found.events] == [b'{"@uuid":"a"}', b'{"@uuid":"b"}']
    (unreadable,) = found.unreadable
    assert (unreadable.place, unreadable.content) == (place, element.encode())
    assert (found.count, found.total) == (3, 3)


@pytest.mark.parametrize(("head", "tail"), [("[", "]"), ('{"items":[', "]}")])
def test_in_a_bare_list_an_element_that_is_no_entry_spoils_no_other_either(head: str, tail: str) -> None:
    found = parse_page(f'{head}{{"@uuid":"a"}},{{"x":NaN}},null{tail}'.encode())
    assert [event.line for event in found.events] == [b'{"@uuid":"a"}']
    assert [(one.place, one.content) for one in found.unreadable] == [(1, b'{"x":NaN}'), (1, b"null")]


def test_an_answer_of_another_shape_is_a_bad_answer_also_with_a_lone_surrogate_in_it() -> None:
    with pytest.raises(BadAnswerError):
        parse_page(b'{"status":"\\ud800"}')


def test_of_an_entry_that_cannot_be_decoded_the_time_is_found_in_its_bytes() -> None:
    found = parse_page(hits('{"x":NaN,"meta":{"time" : "2026-03-03T14:02:02.530Z"}}', '{"x":NaN,"time":"soon"}'))
    assert [one.second for one in found.unreadable] == [1772546522, None]


def test_a_lone_surrogate_beside_an_entry_that_cannot_be_decoded_stays_as_it_came() -> None:
    found = parse_page(hits('{"s":"\\ud800"}', '{"s":"\\ud800","x":NaN}'))
    assert [event.line for event in found.events] == [b'{"s":"\\ud800"}']
    assert [one.content for one in found.unreadable] == [b'{"_source":{"s":"\\ud800","x":NaN}}']


@pytest.mark.parametrize(
    "scalar", ["NaN", "-Infinity", "01", "1.", "+1", "None", "undefined", "'x'", '"\\x"', '"a\x01b"', "0x1f", "1e"]
)
@pytest.mark.parametrize(
    "shape",
    [
        '{"hits":{"max_score":%s,"total":2,"hits":[%s]}}',
        '{"took": %s , "hits":{"total":2,"hits":[%s]}}',
        '{"a":{"b":[1,{"c":%s}],"hits":null},"hits":{"total":2,"hits":[%s]}}',
        '{"x":%s,"total":2,"items":[%s]}',
    ],
)
@pytest.mark.parametrize("is_behind", [False, True])
def test_what_is_no_valid_json_beside_the_entries_spoils_none_of_them(shape: str, scalar: str, is_behind: bool) -> None:
    listed = '{"_source":{"@uuid":"a"}},{"_source":{"@uuid":"b","x":NaN}}'
    body = shape % ("1" if is_behind else scalar, listed)
    body = f'{body[:-1]},"max":{{"score":{scalar},"n":[{scalar}]}}}}' if is_behind else body
    page = parse_page(body.encode())
    assert [event.line for event in page.events] == [b'{"@uuid":"a"}']
    assert [element.content for element in page.unreadable] == [b'{"_source":{"@uuid":"b","x":NaN}}']
    assert page.total == 2


def test_a_key_or_a_total_that_is_no_valid_json_is_none() -> None:
    page = parse_page(b'{"a\x01b" : 1,"hits":{"total":NaN,"hits":[{"_source":{"@uuid":"a"}}]}}')
    assert (page.count, page.total) == (1, None)
    assert parse_page(b'{"hits":{"max_score":NaN,"total":0,"hits":null}}').count == 0


def test_what_an_entry_holds_is_never_changed_wherever_it_stands_and_much_damage_is_not_looked_through() -> None:
    for body in (
        b'{"hits":[],"items":[{"@uuid":"a","x":NaN}]}',
        b'{"hits":{"hits":[]},"items":[{"@uuid":"a","x":NaN}],"y":NaN}',
        b'{"hits":{"total":0,"hits":null},"x":[' + b",".join([b"NaN"] * 110_000) + b"]}",
    ):
        with pytest.raises(BadAnswerError):
            parse_page(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"hits":{"total":0,"hits":null}}',
        b'{"hits":{"total":0}}',
        b'{"hits":{"total":{"value":0,"relation":"eq"},"hits":null}}',
        b'{"items":null}',
        b'{"items":null,"total":0}',
        b'{"items":null,"total":{"value":0}}',
        b'{"total":0}',
        b'{"hits":null,"total":0}',
        b"[]",
    ],
)
def test_nothing_is_empty_where_it_can_mean_nothing_else(body: bytes) -> None:
    assert (parse_page(body).count, parse_page(body).total in (0, None)) == (0, True)


TOTAL_SHAPES = [
    b'{"hits":{"total":%s,"hits":[%s]}}',
    b'{"hits":{"total":%s,"hits":[%s,7]}}',
    b'{"total":%s,"items":[%s]}',
    b'{"total":%s,"items":[%s,7]}',
    b'{"total":%s,"items":[%s,{"x":NaN}]}',
    b'{"hits":null,"total":%s,"items":[%s]}',
]


@pytest.mark.parametrize("shape", TOTAL_SHAPES)
@pytest.mark.parametrize("entries", [b"", b'{"_source":{"@uuid":"a"}}'])
@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (b"5", (5, False)),
        (b"0", (0, False)),
        (b"null", (None, False)),
        (b'{"value":5}', (5, False)),
        (b'{"value":5,"relation":"eq"}', (5, False)),
        (b'{"relation":"gte","value":5}', (5, True)),
    ],
)
def test_a_total_is_read_in_every_shape_that_has_one(
    shape: bytes, entries: bytes, total: bytes, expected: tuple[int | None, bool]
) -> None:
    page = parse_page((shape % (total, entries)).replace(b"[,", b"["))
    assert (page.total, page.is_capped) == expected


@pytest.mark.parametrize("shape", TOTAL_SHAPES)
@pytest.mark.parametrize("total", [b'"5"', b"-5", b"5.5", b"true", b"[5]", b"{}", b'{"value":"5"}', b'{"value":-5}'])
def test_a_total_of_another_kind_is_a_bad_answer_in_every_shape(shape: bytes, total: bytes) -> None:
    with pytest.raises(BadAnswerError):
        parse_page(shape % (total, b'{"_source":{"@uuid":"a"}}'))


def test_identity_and_line_are_of_the_same_entry_where_an_answer_has_two_shapes_at_once() -> None:
    event = only(b'{"hits":{"total":"1","hits":[{"_source":{"@uuid":"a"}}]},"items":[{"@uuid":"b"}]}')
    assert event == only(b'[{"@uuid":"b"}]')


def test_an_answer_cut_at_any_byte_is_a_bad_answer() -> None:
    body = hits('{"@uuid":"a\\u00e4","meta":{"time":"2026-05-01T07:42:20.530Z"},"n":[1.10,true]}', total="1")
    for length in range(len(body)):
        with pytest.raises(BadAnswerError):
            parse_page(body[:length])


@pytest.mark.parametrize("depth", [10, 100, 400])
def test_entries_nested_deeper_than_anybody_nests_are_kept(depth: int) -> None:
    entry = '{"a":' + "[" * depth + "]" * depth + "}"
    assert only(hits(entry)).line == entry.encode()


@pytest.mark.parametrize("frames", [0, 7])
def test_an_entry_nested_too_deeply_to_read_is_set_apart_and_the_others_are_read(frames: int) -> None:
    def parsed(body: bytes, frames: int) -> Page:
        return parsed(body, frames - 1) if frames else parse_page(body)

    unreadable = 0
    for depth in (*range(900, 1000), 5000):
        deep = '{"a":' + "[" * depth + "]" * depth + "}"
        page = parsed(hits('{"@uuid":"1"}', deep, '{"@uuid":"2"}'), frames)
        assert len(page.events) + len(page.unreadable) == 3, depth
        if page.unreadable:
            unreadable += 1
            assert deep.encode() in page.unreadable[0].content
    assert unreadable > 1


# Totals


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (None, (None, False)),
        ("null", (None, False)),
        ("0", (0, False)),
        ("12000", (12000, False)),
        ('{"value":12000}', (12000, False)),
        ('{"value":12000,"relation":"eq"}', (12000, False)),
        ('{"value":10000,"relation":"gte"}', (10000, True)),
    ],
)
def test_a_total_is_a_number_or_an_object_that_may_say_at_least(
    total: str | None, expected: tuple[int | None, bool]
) -> None:
    page = parse_page(hits(total=total))
    assert (page.total, page.is_capped) == expected


@pytest.mark.parametrize(
    "total",
    [
        "-1",
        '{"value":-1,"relation":"gte"}',
        "true",
        "false",
        '"7"',
        "7.5",
        "[]",
        "{}",
        '{"value":"7"}',
        '{"value":true}',
        "9" * 5000,
    ],
    ids=lambda total: total[:20],
)
def test_a_total_that_is_no_count_is_a_bad_answer(total: str) -> None:
    with pytest.raises(BadAnswerError):
        parse_page(hits(total=total))


def test_a_page_weighs_what_its_lines_weigh() -> None:
    page = parse_page(hits('{"@uuid":"a"}', '{ "@uuid" : "b" }'))
    assert page.weight_bytes == 2 * len('{"@uuid":"a"}')


# Identity


def test_the_same_entry_has_the_same_identity_in_every_read_whatever_else_is_on_the_page() -> None:
    entry = '{"@uuid":"a","meta":{"time":"2026-05-01T07:42:20.530Z"}}'
    pages = [
        hits(entry),
        hits('{"_id":"elastic","_source":' + entry + "}"),
        hits(entry, '{"@uuid":7,"meta":"text"}'),
        hits(entry, '{"lone":"\\ud800"}'),
        hits(entry.replace(",", " , \n")),
        b'{"items":[' + entry.encode() + b"]}",
    ]
    assert {(event.identity, event.time_us) for event in (parse_page(body).events[0] for body in pages)} == {
        (only(hits(entry)).identity, microseconds(2026, 5, 1, 7, 42, 20, 530_000))
    }


@pytest.mark.parametrize(
    ("first", "second", "has_id"),
    [
        ('{"@uuid":"a","n":1}', '{"n":2,"@uuid":"a"}', True),
        ('{"@uuid":7}', '{"@uuid":"7"}', True),
        ('{"_id":"a","_source":{"n":1,"m":2}}', '{"_id":"a","_source":{"m":2,"n":1}}', True),
        ('{"_id":7,"_source":{}}', '{"_id":"7","_source":{}}', True),
        ('{"_id":"x","_source":{"@uuid":"a"}}', '{"_id":"y","_source":{"@uuid":"a"}}', True),
        ('{"_id":"a","_source":{"@uuid":""}}', '{"_id":"a","_source":{"@uuid": ""}}', True),
        ('{"_id":"a","_source":{"@uuid":[1]}}', '{"_id":"a","_source":{"@uuid":[ 1 ]}}', True),
        ('{"_id":"a","_source":{"@uuid":true}}', '{"_id":"a","_source":{"@uuid": true}}', True),
        ('{"a":1,"b":{"c":2,"d":3}}', '{"b":{"d":3,"c":2},"a":1}', False),
        ('{"a":"\\u00e4"}', '{"a":"ä"}', False),
        ('{"_id":"","_source":{"a":1}}', '{"_id":null,"_source":{"a":1}}', False),
        ('{"_id":{"x":1},"_source":{"a":1}}', '{"a":1}', False),
    ],
)
def test_these_two_are_one_entry(first: str, second: str, has_id: bool) -> None:
    one, other = parse_page(hits(first, second)).events
    assert (one.identity, one.has_id) == (other.identity, has_id)
    assert other.has_id == has_id
    assert len(one.identity) == IDENTITY_BYTES


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"@uuid":"a","n":1}', '{"@uuid":"b","n":1}'),
        ('{"@uuid":"a"}', '{"_id":"a","_source":{}}'),
        ('{"_id":"a","_source":{"n":1}}', '{"_id":"b","_source":{"n":1}}'),
        ('{"_id":"a","_source":{"n":1}}', '{"_id":"a","_source":{"n":2}}'),
        ('{"_id":"1","_source":{"n":1}}', '{"n":1}'),
        ('{"@uuid":"a"}', '{"@uuid":"A"}'),
        ('{"@uuid":123456789012345678901234}', '{"@uuid":123456789012345678901235}'),
        ('{"@uuid":"a\\ud800"}', '{"@uuid":"a\\ud801"}'),
        ('{"a":1}', '{"a":2}'),
        ('{"a":[1,2]}', '{"a":[2,1]}'),
        ('{"a":1}', '{"a":"1"}'),
        ('{"a":1}', '{"a":true}'),
        ('{"a":123456789012345678901234}', '{"a":123456789012345678901235}'),
        ('{"a":"\\ud800"}', '{"a":"\\ud801"}'),
        ("{}", '{"a":null}'),
    ],
)
def test_these_two_are_two_entries(first: str, second: str) -> None:
    one, other = parse_page(hits(first, second)).events
    assert one.identity != other.identity


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"_source":{"@uuid":"\\ud800"}}', '{"_source":{"@uuid":"\\ud801"}}'),
        ('{"_source":{"@uuid":"a\\uDFFFb","meta":{"time":7}}}', '{"_source":{"@uuid":"ab","meta":{"time":7}}}'),
        ('{"_id":"\\ud800","_source":{"x":1}}', '{"_id":"\\ud800","_source":{"x":2}}'),
        ('{"_source":{"@uuid":["\\ud800"]}}', '{"_source":{"@uuid":["\\ud801"]}}'),
    ],
)
def test_an_entry_with_a_lone_surrogate_in_its_id_is_the_same_whatever_else_is_on_the_page(
    one: str, other: str
) -> None:
    pages = [
        f'{{"hits":{{"total":1,"hits":[{one}]}}}}',
        f'{{"hits":{{"total":2,"hits":[{one},{other}]}}}}',
        f'{{"hits":{{"total":2,"hits":[{one},{{"_source":{{"@uuid":"\\udc00"}}}}]}}}}',
        f'{{"hits":{{"total":2,"hits":[{one},{{"_source":{{"x":NaN}}}}]}}}}',
    ]
    found = [parse_page(page.encode()).events for page in pages]
    assert len({(events[0].identity, events[0].line) for events in found}) == 1
    assert found[1][1].identity != found[1][0].identity


def test_an_identity_is_the_same_in_every_version() -> None:
    # Ledgers hold identities. If they changed, every entry of the overlap would be new.
    identified = only(b'[{"@uuid":"6a1b7c7e-0000-4000-8000-000000000000","n":1}]')
    assert identified.identity.hex() == "c9141de7ef28583b84dd3c124eb13210"
    assert only(b'[{"_id":"h1","_source":{"n":1.10}}]').identity.hex() == "6e682cff521d832f4ebaabcd6e186ccb"
    bare = only(b'[{"n":1.10}]')
    assert bare.identity.hex() == "b92f95ada6e58d182fd50dfa9960ad9d"
    assert bare.duplicate(1).identity.hex() == "574ad84a01b436039917cf7e94ce1733"


def test_an_id_that_is_a_number_of_any_length_breaks_nothing() -> None:
    digits = "9" * 5000
    assert only(f'[{{"@uuid":{digits}}}]'.encode()).line == f'{{"@uuid":{digits}}}'.encode()


def test_duplicates_are_entries_of_their_own_and_each_ordinal_is_always_the_same_one() -> None:
    event = only(hits('{"a":1}'))
    duplicates = [event.duplicate(ordinal) for ordinal in range(1, 20)]
    assert len({event.identity, *(duplicate.identity for duplicate in duplicates)}) == 20
    assert [duplicate.ordinal for duplicate in duplicates] == list(range(1, 20))
    assert duplicates[4] == event.duplicate(5)
    assert {duplicate.line for duplicate in duplicates} == {event.line}


# Time


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ('"2026-05-01T07:42:20.530Z"', microseconds(2026, 5, 1, 7, 42, 20, 530_000)),
        ('"2026-05-01T07:42:20Z"', microseconds(2026, 5, 1, 7, 42, 20)),
        ('"2026-05-01T07:42:20.530123Z"', microseconds(2026, 5, 1, 7, 42, 20, 530_123)),
        ('"2026-05-01T07:42:20.530123456Z"', microseconds(2026, 5, 1, 7, 42, 20, 530_123)),
        ('"2026-05-01T09:42:20.530+02:00"', microseconds(2026, 5, 1, 7, 42, 20, 530_000)),
        ('"2026-05-01T09:42:20.530+0200"', microseconds(2026, 5, 1, 7, 42, 20, 530_000)),
        ('"2026-05-01T07:42:20.530"', microseconds(2026, 5, 1, 7, 42, 20, 530_000)),
        ('"2026-05-01 07:42:20"', microseconds(2026, 5, 1, 7, 42, 20)),
        ('"2026-05-01"', microseconds(2026, 5, 1)),
        ('"1970-01-01T00:00:00.5Z"', 500_000),
    ],
)
@pytest.mark.parametrize("uuid", ['"a"', "7"], ids=["usual types", "types that wobble"])
def test_a_time_is_read_in_every_iso_form_and_without_an_offset_is_utc(time: str, expected: int, uuid: str) -> None:
    event = only(hits(f'{{"@uuid":{uuid},"meta":{{"time":{time},"auditVersion":"5"}}}}'))
    assert (event.time_us, event.is_timed) == (expected, True)


@pytest.mark.parametrize("uuid", ['"a"', "7"], ids=["usual types", "types that wobble"])
@pytest.mark.parametrize("other", ["1e400", "9" * 5000, '"\\ud800"', "[[]]"], ids=lambda other: other[:9])
def test_nothing_strange_beside_a_time_keeps_it_from_being_read(uuid: str, other: str) -> None:
    event = only(hits(f'{{"@uuid":{uuid},"meta":{{"time":"2026-05-01T07:42:20Z","auditVersion":{other}}}}}'))
    assert (event.time_us, event.is_timed) == (microseconds(2026, 5, 1, 7, 42, 20), True)


@pytest.mark.parametrize(
    "fields",
    [
        "",
        '"meta":null',
        '"meta":"2026-05-01T07:42:20Z"',
        '"meta":[]',
        '"meta":{}',
        '"meta":{"time":null}',
        '"meta":{"time":""}',
        '"meta":{"time":"yesterday"}',
        '"meta":{"time":"2026-13-01T00:00:00Z"}',
        '"meta":{"time":"2026-05-01T07:42:60Z"}',
        '"meta":{"time":true}',
        '"meta":{"time":["2026-05-01T07:42:20Z"]}',
        '"meta":{"time":"\\ud800"}',
        '"time":"2026-05-01T07:42:20Z"',
    ],
)
def test_an_entry_without_a_usable_time_is_kept_and_says_so(fields: str) -> None:
    event = only(hits(f"{{{fields}}}"))
    assert (event.time_us, event.is_timed, event.line) == (0, False, f"{{{fields}}}".encode())
    assert event.at(5).time_us == 5
    assert event.at(5).identity == event.identity


@pytest.mark.parametrize(
    "time",
    [
        "0001-01-01T00:00:00+14:00",
        "1969-12-31T23:59:59.5Z",
        "2262-04-11T23:47:17Z",
        "9999-12-31T23:59:59-14:00",
        "9999-12-31T23:59:59.9999999Z",
    ],
)
def test_no_time_is_taken_that_cannot_be_written_for_every_sink(time: str) -> None:
    event = only(hits(f'{{"meta":{{"time":"{time}"}}}}'))
    assert not event.is_timed
    assert format_time_us(event.time_us)


# Lines

FAITHFUL = [
    '{"n":1.10}',
    '{"n":1.0e+2,"m":-0,"o":-0.0,"p":1E400}',
    '{"n":123456789012345678901234567890,"m":-98765432109876543210}',
    '{"n":' + "9" * 5000 + "}",
    '{"s":"\\u00e4\\/\\b\\f\\n\\r\\t\\"\\\\"}',
    '{"s":"ä € 😀 \u2028 \x7f"}',
    '{"s":"\\ud83d\\ude00"}',
    '{"s":"\\ud800"}',
    '{"s":"\\udc00\\ud800 \\\\ud800 \\\\\\ud800"}',
    '{"\\uD800":{"@uuid":"\\udfff"}}',
    '{"s":"<lone-surrogate-d800> \\ud800"}',
    '{"s":"\\u0000"}',
    '{"a":1,"a":2,"@uuid":"x","@uuid":"y"}',
    '{"z":1,"a":{"y":[],"b":{}},"":null}',
    '{"s":"two  spaces, a : colon, { } [ ] and a \\t tab"}',
]


@pytest.mark.parametrize("entry", FAITHFUL, ids=lambda entry: entry[:30])
@pytest.mark.parametrize("shape", ['{{"hits":{{"hits":[{{"_source":{}}}]}}}}', '{{"items":[{}]}}', "[{}]"])
def test_a_line_is_the_entry_as_the_api_gave_it(entry: str, shape: str) -> None:
    assert only(shape.format(entry).encode()).line == entry.encode()


@pytest.mark.parametrize("entry", FAITHFUL, ids=lambda entry: entry[:30])
def test_one_strange_entry_changes_nothing_about_its_neighbours(entry: str) -> None:
    plain = '{"@uuid":"b","meta":{"time":"2026-05-01T07:42:20.530Z"},"n":1.10}'
    before, strange, after = parse_page(hits(plain, entry, plain)).events
    assert before == after == only(hits(plain))
    assert strange == only(hits(entry))


def test_white_space_between_tokens_goes_and_inside_strings_stays() -> None:
    entry = '{\r\n\t"a b" : [ 1.10 ,\n {"c" : " d  e\\n" } ] , "f" : null }'
    assert only(hits(entry)).line == b'{"a b":[1.10,{"c":" d  e\\n"}],"f":null}'


def test_no_line_holds_a_newline_however_the_answer_is_laid_out() -> None:
    document = {"hits": {"total": 1, "hits": [{"_source": {"@uuid": "a", "x": ["line\nbreak", {"y": "\r"}]}}]}}
    for indent in (None, 0, 2, "\t"):
        event = only(json.dumps(document, indent=indent).encode())
        assert event == only(json.dumps(document).encode())
        assert b"\n" not in event.line


def test_bytes_that_are_not_utf8_are_replaced_and_the_page_says_so() -> None:
    page: Page = parse_page(b'{"hits":{"hits":[{"_source":{"@uuid":"a","s":"\xff\xe4"}}]}}')
    assert page.is_mended
    assert page.events[0].line == '{"@uuid":"a","s":"\ufffd\ufffd"}'.encode()
    assert not parse_page(hits('{"s":"ä"}')).is_mended


def test_a_body_that_mending_makes_too_large_is_refused_and_one_that_fits_is_mended_across_its_pieces() -> None:
    text = b"\xe2\x82" + "€".encode() * 500_000 + b"\xff"  # no piece of 1 MiB ends where a character ends
    body = b'[{"@uuid":"a","s":"%s"}]' % text
    mended = body.decode("utf-8", "replace").encode()
    assert parse_page(body, len(mended)).events[0].line == mended[1:-1]
    with pytest.raises(BodyTooLargeError, match="once what is not UTF-8 is replaced"):
        parse_page(body, len(mended) - 1)


# Contracts


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[]", []),
        (b'{"items":[]}', []),
        (b'{"items":null}', []),
        (b'{"items" : null, "total": 0}', []),
        (b'{"items":[{"id":1}],"x":NaN,"y":01}', ["1"]),
        (b'[{"id":12345678,"type":"contracts","href":"..."}]', ["12345678"]),
        (b'{"items":[{"id":"2"},{"id":1},{"id":2}]}', ["2", "1"]),
        (b'\xef\xbb\xbf[{"id":1}]', ["1"]),
    ],
)
def test_contracts_are_numbers_as_text_each_once_in_order(body: bytes, expected: list[str]) -> None:
    assert parse_contracts(body).numbers == expected


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"null",
        b"7",
        b"{}",
        b'{"items":{}}',
        b'{"items":7}',
        b"[1]",
        b"[{}]",
        b'[{"id":null}]',
        b'[{"id":true}]',
        b'[{"id":""}]',
        b'[{"id":"../1"}]',
        b'[{"id":-1}]',
        b'[{"id":"%s"}]' % (b"1" * 21),
        b'[{"id":1.5}]',
        '[{"id":"²"}]'.encode(),
        b'[{"id":1}',
        b'[{"id":"\xff"}]',
        b"[" * 100_000,
    ],
    ids=lambda body: body[:20].decode("ascii", "replace"),
)
def test_anything_but_numeric_contracts_is_a_bad_answer(body: bytes) -> None:
    with pytest.raises(BadAnswerError):
        parse_contracts(body)


@pytest.mark.parametrize(
    "odd", ["null", '"x"', "[]", "7", "{}", '{"id":null}', '{"id":"../x"}', '{"id":-5}', '{"id":1.5}']
)
def test_what_names_no_contract_keeps_nobody_from_reading_the_others(odd: str) -> None:
    page = parse_contracts(f'[{odd},{{"id":1}},{odd}]'.encode())
    assert page.numbers == ["1"]
    assert page.unreadable_count == 2


def test_a_list_that_hardly_names_a_contract_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswerError, match="no numeric `id`"):
        parse_contracts(b'[{"id":1}' + b",null" * 2_000 + b"]")


# On the way to a sink


def outbox(*lines: bytes) -> list[OutboxEvent]:
    return [OutboxEvent("31960001", number, 1, b"i", 0, line) for number, line in enumerate(lines)]


def test_stored_events_are_made_once_and_only_when_somebody_asks() -> None:
    opened = []

    def open_() -> list[OutboxEvent]:
        opened.append(1)
        return outbox(b"{}", b"[1]")

    stored = StoredEvents(2, lambda: [Run("1", [], b"{}\n[1]\n")], open_, lambda: 3)
    assert (len(stored), stored.longest_bytes(), ndjson(stored)) == (2, 3, b"{}\n[1]\n")
    assert opened == []
    assert list(stored) == outbox(b"{}", b"[1]")
    assert (stored[1].line, stored[:1]) == (b"[1]", outbox(b"{}"))
    assert opened == [1]


def test_events_are_lines_each_with_its_newline() -> None:
    assert ndjson(outbox(b"{}", b"[1]")) == b"{}\n[1]\n"
    assert ndjson(outbox()) == b""


def test_an_event_with_another_line_is_the_same_otherwise() -> None:
    (event,) = outbox(b"{}")
    assert event.with_line(b"[]") == outbox(b"[]")[0]


AT = datetime(2026, 5, 1, 7, 42, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    "time",
    [
        1777621340,
        1777621340.0,
        "1777621340",
        "1777621340.000",
        1777621340000,
        "1777621340000",
        1777621340000000,
        "1777621340000000000",
        "Fri, 01 May 2026 07:42:20 GMT",
        "Fri, 01 May 2026 09:42:20 +0200",
        "Fri May  1 07:42:20 2026",
        "2026-05-01T07:42:20Z",
        "2026-05-01 07:42:20",
        "2026-05-01 07:42:20 UTC",
        "2026-05-01T09:42:20+0200",
        "2026-05-01T09:42:20+02",
        "2026/05/01 07:42:20",
        " 2026-05-01T07:42:20Z ",
        "20260501T074220Z",
    ],
)
def test_a_time_in_another_form_is_understood(time: object) -> None:
    (event,) = parse_page(json.dumps({"items": [{"@uuid": "a", "meta": {"time": time}}]}).encode()).events
    assert event.is_timed
    assert event.time_us == round(AT.timestamp() * 1_000_000)


@pytest.mark.parametrize(
    "time",
    [True, 5, -1777621340, 1e300, "", "soon", "5", "May Day", [1777621340], {"s": 1777621340}, "9" * 19, 1e18 * 9],
)
def test_what_is_no_time_is_taken_for_none(time: object) -> None:
    (event,) = parse_page(json.dumps({"items": [{"@uuid": "a", "meta": {"time": time}}]}).encode()).events
    assert not event.is_timed or event.time_us > 0


@pytest.mark.parametrize(
    "shape",
    [
        b"[%s]",
        b'{"items":[%s]}',
        b'{"items":[%s],"total":7}',
        b'{"hits":{"hits":[%s]}}',
        b'{"hits":{"total":{"value":7},"hits":[%s]}}',
        b'{"hits":[],"items":[%s]}',
    ],
)
def test_of_more_entries_than_any_page_has_the_first_are_read_and_it_says_that_there_are_more(shape: bytes) -> None:
    element = b'{"_source":{"@uuid":"%d"}}'
    page = parse_page(shape % b",".join(element % number for number in range(60_000)))
    assert [event.line for event in page.events[:2]] == [b'{"@uuid":"0"}', b'{"@uuid":"1"}']
    assert (page.count, page.total, page.is_capped) == (MAX_ENTRIES, MAX_ENTRIES + 1, True)


@pytest.mark.parametrize("shape", [b"[%s]", b'{"items":[%s]}', b'{"hits":{"total":2,"hits":[%s]}}'])
def test_many_values_in_few_entries_are_not_many_entries(shape: bytes) -> None:
    entry = b'{"_source":{"@uuid":"%d","a":[' + b",".join([b"{}"] * 40_000) + b"]}}"
    page = parse_page(shape % b",".join(entry % number for number in range(2)))
    assert (page.count, page.total, page.is_capped) == (2, 2 if b"total" in shape else None, False)


def test_an_answer_that_is_only_a_number_of_many_things_is_no_page() -> None:
    with pytest.raises(BadAnswerError):
        parse_page(b'{"hits":[' + b",".join([b"0"] * 60_000) + b'],"items":7}')


def test_an_id_and_a_time_that_are_not_small_are_none() -> None:
    many = b"[" + b",".join([b"{}"] * 30_000) + b"]"
    entry = b'{"_id":%s,"_source":{"@uuid":%s,"meta":{"time":%s}}}' % (many, many, many)
    (event,) = parse_page(b'{"items":[%s]}' % entry).events
    assert (event.has_id, event.is_timed) == (False, False)


def test_an_entry_beyond_any_known_size_is_told_by_its_bytes() -> None:
    one, other = b'{"a":"' + b"x" * 1_100_000 + b'","b":1}', b'{"b":1,"a":"' + b"x" * 1_100_000 + b'"}'
    identities = [parse_page(b"[%s]" % entry).events[0].identity for entry in (one, one, other)]
    assert identities[0] == identities[1] != identities[2]


def test_more_damage_than_an_answer_can_have_is_not_mended() -> None:
    with pytest.raises(BadAnswerError, match="more damage"):
        parse_page(b'[{"a":"' + b"\\ud800" * 60_000 + b'"}]')
    with pytest.raises(BadAnswerError):
        parse_page(b"[" + b",".join([b'{"a":NaN}'] * 110_000) + b"]")


def test_a_contract_that_is_no_valid_json_keeps_nobody_from_reading_the_others() -> None:
    page = parse_contracts(b'{"items":[{"id":1,"x":NaN},{"id":2}],"total":2}')
    assert (page.numbers, page.unreadable_count, page.total) == (["2"], 1, 2)


def test_of_more_contracts_than_are_polled_no_more_are_read() -> None:
    body = b"[" + b",".join(b'{"id":"%d"}' % number for number in range(60_000)) + b"]"
    assert len(parse_contracts(body).numbers) == MAX_CONTRACTS + 1


def test_a_list_of_contracts_with_far_more_beside_them_is_none() -> None:
    with pytest.raises(BadAnswerError, match="far more"):
        parse_contracts(b'{"items":[],"x":[' + b",".join([b"{}"] * 30_000) + b"]}")


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b'"timed_out":true', "timed out"),
        (b'"timed_out":false,"_shards":{"total":5,"failed":2}', "2 of its 5 shards"),
        (b'"_shards":{"failed":1}', "1 of its many shards"),
        (b'"_shards":{"total":5,"successful":4,"skipped":0,"failed":0}', "4 of its 5 shards"),
    ],
)
def test_an_answer_of_a_part_of_the_log_is_no_page(says: bytes, words: str) -> None:
    with pytest.raises(PartialAnswerError, match=words):
        parse_page(b'{"took":5,%s,"hits":{"total":1,"hits":[{"_source":{"@uuid":"a"}}]}}' % says)


@pytest.mark.parametrize(
    "says",
    [
        b'"timed_out":false,"_shards":{"total":5,"failed":0}',
        b'"_shards":{"total":5,"successful":5,"skipped":3,"failed":0}',
        b'"_shards":{"total":"5","successful":4}',
        *(b'"timed_out":"true"', b'"_shards":[]', b'"_shards":{}'),
    ],
)
def test_an_answer_that_says_how_it_was_found_is_a_page(says: bytes) -> None:
    assert parse_page(b'{%s,"hits":{"total":1,"hits":[{"_source":{"timed_out":true}}]}}' % says).count == 1


def test_an_answer_of_brackets_alone_is_no_page() -> None:
    with pytest.raises(BadAnswerError):
        parse_page(b'{"items":[' + b"[" * 600_000)
