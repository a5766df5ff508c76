"""A stencil makes the same event from an entry as the mapping. No stencil is used for an entry that does not allow it."""

from __future__ import annotations

import re
from hashlib import blake2b

import msgspec
import pytest

from poller.core.events import OutboxEvent, ndjson
from poller.core.mapping import stencil
from poller.core.mapping.ecs import ECS
from poller.core.mapping.ocsf import OCSF
from poller.core.mapping.shorten import format_time_us
from poller.core.mapping.stencil import Stencils

AT_US = 1_777_621_340_530_000


def line_of(number: int, *, action: str = "add", more: str = "") -> OutboxEvent:
    time_us = AT_US + number * 1000
    text = (
        f'{{"@uuid":"6a1b7c7e-0000-4000-8000-{number:012x}","meta":{{"time":"{format_time_us(time_us)}",'
        f'"requestId":"6a1b7c7e-0000-4000-9000-{number:012x}","queueRefId":{100_000 + number},"auditVersion":0.1}},'
        f'"event":{{"type":"Provision","status":"100 %","param":{{"action":"POST",'
        f'"uri":"/x/6a1b7c7e-0000-4000-9000-{number:012x}"}},'
        f'"resources":[{{"id":"{number:08x}-0000-4000-8000-0000000000ff","action":["vr.x.{action}"]}}]}}{more}}}'
    )
    return event_of(text.encode(), time_us, number)


def event_of(line: bytes, time_us: int = AT_US, number: int = 0, ordinal: int = 0) -> OutboxEvent:
    return OutboxEvent("1", time_us, AT_US // 1_000_000 + number, number.to_bytes(16), ordinal, line)


def joined(stencils: Stencils, event: OutboxEvent) -> bytes:
    return b"".join(stencils.pieces(event))


class Counted:
    """A mapping that counts its calls."""

    def __init__(self, mapping: stencil.Map) -> None:
        self._mapping = mapping
        self.count = 0

    def __call__(self, event: OutboxEvent) -> bytes:
        self.count += 1
        return self._mapping(event)


@pytest.mark.parametrize("standard", [OCSF, ECS])
def test_entries_that_differ_in_ids_and_times_are_mapped_once(standard):
    mapping = Counted(standard.map)
    stencils = Stencils(mapping)
    for number in range(10):
        joined(stencils, line_of(number))
    learned = mapping.count
    for number in range(10, 200):
        assert joined(stencils, line_of(number)) == standard.map(line_of(number))
    assert mapping.count == learned


@pytest.mark.parametrize("standard", [OCSF, ECS])
@pytest.mark.parametrize("uuid", ["", '"@uuid":null,', '"@uuid":"",'], ids=["none", "null", "empty"])
def test_entries_without_an_id_have_an_identity_each(standard, uuid):
    mapping = Counted(standard.map)
    stencils = Stencils(mapping)
    for number in range(50):
        event = line_of(number)
        event = event.with_line(re.sub(rb'"@uuid":"[^"]+",', uuid.encode(), event.line))
        made = joined(stencils, event)
        assert made == standard.map(event)
        assert event.identity.hex().encode() in made
    assert mapping.count < 10


def test_a_kind_that_comes_once_costs_no_learning():
    mapping = Counted(OCSF.map)
    stencils = Stencils(mapping)
    for number in range(500):
        joined(stencils, line_of(number, action="y" * (number + 1)))
    assert mapping.count == 500


def test_what_cannot_be_learned_is_tried_ever_more_rarely():
    mapping = Counted(lambda event: blake2b(event.line).hexdigest().encode())
    stencils = Stencils(mapping)
    for number in range(1000):
        joined(stencils, line_of(number))
    assert mapping.count < 1000 + 3 * 10


@pytest.mark.parametrize(
    "event",
    [
        line_of(300, action="bad"),
        msgspec.structs.replace(line_of(300), time_us=AT_US),
        msgspec.structs.replace(line_of(300), ordinal=1),
        msgspec.structs.replace(line_of(300), contract="2"),
        line_of(300, more=',"new":1'),
    ],
    ids=["a word of the same letters", "another time", "an id of several entries", "another contract", "more in it"],
)
def test_a_stencil_is_for_what_is_the_same_but_for_ids_and_time(event):
    stencils = Stencils(OCSF.map)
    for number in range(10):
        joined(stencils, line_of(number))
    for _ in range(10):
        assert joined(stencils, event) == OCSF.map(event)
    assert OCSF.map(event) != OCSF.map(line_of(300))


def test_a_number_of_the_same_length_that_is_written_otherwise_is_no_id():
    stencils = Stencils(OCSF.map)
    for number in range(10):
        joined(stencils, line_of(number))
    event = event_of(line_of(5).line.replace(b"100005", b"1e1234"), AT_US + 5000, 5)
    assert joined(stencils, event) == OCSF.map(event)


def test_nothing_is_learned_of_a_mapping_that_looks_at_ids():
    mapping = Counted(lambda event: blake2b(event.line).hexdigest().encode())
    stencils = Stencils(mapping)
    for number in range(50):
        assert joined(stencils, line_of(number)) == mapping(line_of(number))
    assert mapping.count > 100


def test_a_mapping_that_is_wrong_for_this_entry_alone_has_no_stencil():
    special = line_of(3).line
    stencils = Stencils(lambda event: b"special" if event.line == special else b"usual")
    for _ in range(3):
        assert [joined(stencils, line_of(number)) for number in (3, 3, 3, 3)] == [b"special"] * 4
    assert stencils._known == {}


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b'{"meta":{"time":"2026-05-01T07:42:20Z"}}',
        b'{"meta":{"time":"2026-05-01T07:42:20.530Z"},"time":"2026-05-01T07:42:20.530Z"}',
        b'{"meta":{"time":"2026-05-01T07:42:20.530Z","queueRefId":123456},"a":{"queueRefId":123456}}',
        b'{"meta":{"time":"2026-05-01T07:42:20.531Z"}}',
        b'{"meta":{"time":"2026-05-01T07:42:20.530Z","queueRefId":123456},"what a made-up entry has":"2408139"}',
        b'{"meta":{"time":"2026-05-01T07:42:20.530Z"},"what a made-up entry has":"34401906789"}',
        b'{"meta":{"time":"2026-05-01T07:42:20.530Z"},"padding":"' + b"x" * 5000 + b'"}',
    ],
)
def test_an_entry_whose_time_or_number_is_not_in_one_place_has_no_stencil(line):
    stencils = Stencils(OCSF.map)
    for _ in range(20):
        assert joined(stencils, event_of(line)) == OCSF.map(event_of(line))
    assert stencils._known == {}


def test_an_entry_with_a_time_and_no_id_has_a_stencil_and_so_has_a_mapping_to_nothing():
    for mapping in (lambda event: event.line, lambda event: b"%", lambda event: str(event.time_us // 1000).encode()):
        stencils = Stencils(mapping)
        for number in range(20):
            event = event_of(b'{"time":"%s"}' % format_time_us(AT_US + number * 1000).encode(), AT_US + number * 1000)
            assert joined(stencils, event) == mapping(event)
        assert len(stencils._known) == 1


def test_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(stencil, "MAX_STENCILS", 3)
    monkeypatch.setattr(stencil, "MAX_SEEN", 5)
    stencils = Stencils(OCSF.map)
    for number in range(100):
        event = line_of(number, action="x" * (number % 10 + 1))
        for _ in range(4):
            assert joined(stencils, event) == OCSF.map(event)
        assert len(stencils._known) <= 3
        assert len(stencils._seen) <= 5


def test_lines_of_many_events_are_the_same_whether_they_are_made_whole_or_in_pieces():
    events = [line_of(number, action="xyz"[number % 3]) for number in range(700)]
    for standard in (OCSF, ECS):
        assert ndjson(events, standard) == b"".join(standard.make(event) + b"\n" for event in events)


def test_a_stencil_gives_nothing_of_an_entry_of_another_contract_or_length():
    stencils = Stencils(OCSF.map)
    for number in range(4):
        joined(stencils, line_of(number))
    (known,) = stencils._known.values()
    assert b"".join(stencil._filled(known, line_of(5))) == OCSF.map(line_of(5))
    assert stencil._filled(known, msgspec.structs.replace(line_of(5), contract="2")) == ()
    assert stencil._filled(known, line_of(5, more=',"new":1')) == ()


def test_an_id_within_a_longer_word_is_none():
    def event(number: int) -> OutboxEvent:
        return line_of(number, more=',"new":"0c0ffee00-0000-4a5b-8c6d-000000000000"')

    stencils = Stencils(OCSF.map)
    for number in range(20):
        assert joined(stencils, event(number)) == OCSF.map(event(number))
    assert len(stencils._known) == 1
