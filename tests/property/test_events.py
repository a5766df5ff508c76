"""For any JSON in an entry, its line has the same values and no white space between tokens."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from poller.core.answers import BadAnswerError, parse_page
from poller.core.listing import parse_contracts
from poller.core.mapping import truncated, with_time

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    # Lone surrogates are JSON when escaped.
    | st.text(st.characters(exclude_categories=()), max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
# `_source` at the top of an entry would make it a hit in the tolerant shapes. No entry of the API has it.
ENTRIES = st.dictionaries(
    st.text() | st.sampled_from(["@uuid", "meta", "event", "_id", "time"]), VALUES, max_size=6
).filter(lambda entry: "_source" not in entry)
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


def source(entry: Any, ensure_ascii: bool, indent: int | None) -> bytes:
    return json.dumps(entry, ensure_ascii=ensure_ascii or not has_raw_form(entry), indent=indent).encode()


def has_raw_form(value: Any) -> bool:
    """Whether the value can be written as JSON without escapes. A lone surrogate cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(
    entries=st.lists(ENTRIES, max_size=4),
    ensure_ascii=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    shape=st.integers(0, 2),
)
@example(entries=[{"\x7f": None}, {"": "\ud800"}], ensure_ascii=False, indent=None, shape=0)
def test_any_entry_comes_out_with_the_same_values_and_byte_compact(
    entries: list[dict[str, Any]], ensure_ascii: bool, indent: int | None, shape: int
) -> None:
    answer: Any = (
        {"hits": {"total": len(entries), "hits": [{"_source": entry} for entry in entries]}},
        {"items": entries},
        entries,
    )[shape]
    ensure_ascii = ensure_ascii or not has_raw_form(answer)  # a line keeps the escapes of its answer
    body = source(answer, ensure_ascii, indent)
    events = parse_page(body).events
    assert [json.loads(event.line) for event in events] == entries
    for event, entry in zip(events, entries, strict=True):
        assert not re.search(rb"\s", STRING.sub(b"", event.line))
        assert len(event.line) <= len(source(entry, False, None)) or body.isascii()
        (again,) = parse_page(source([entry], ensure_ascii, None)).events
        assert again == event


@given(body=st.binary() | st.text().map(str.encode))
def test_no_body_raises_anything_but_a_bad_answer(body: bytes) -> None:
    for parse in (parse_page, parse_contracts):
        with suppress(BadAnswerError):
            parse(body)


@given(
    answer=VALUES
    | st.fixed_dictionaries({"hits": VALUES, "items": VALUES})
    | st.fixed_dictionaries(
        {
            "hits": st.fixed_dictionaries(
                {
                    "hits": st.lists(st.fixed_dictionaries({"_source": VALUES, "_id": VALUES}), max_size=3),
                    "total": VALUES,
                }
            )
        }
    )
)
def test_no_json_raises_anything_but_a_bad_answer(answer: Any) -> None:
    for parse in (parse_page, parse_contracts):
        with suppress(BadAnswerError):
            parse(source(answer, True, None))


@given(entry=ENTRIES, time_us=st.integers(-(10**16), 10**17))
def test_a_time_key_adds_one_field_and_changes_no_other(entry: dict[str, Any], time_us: int) -> None:
    line = source(entry, True, None)
    compact = parse_page(b"[%s]" % line).events[0].line
    timed = with_time(compact, "time", time_us)
    fields = json.loads(timed)
    if "time" in entry:
        assert timed == compact
    else:
        assert fields.pop("time").endswith("Z")
        assert fields == entry


@given(entry=ENTRIES, max_bytes=st.integers(512, 4096), filling=st.integers(0, 10_000))
def test_a_shortened_line_fits_and_is_an_entry(entry: dict[str, Any], max_bytes: int, filling: int) -> None:
    entry = {**entry, "filling": "x" * filling}
    line = parse_page(source([entry], True, None)).events[0].line
    shorter = truncated(line, max_bytes)
    assert len(shorter) <= max_bytes
    if len(line) <= max_bytes:
        assert shorter == line
    else:
        assert json.loads(shorter)["_truncated"] == {"original_bytes": len(line)}
