"""For any entry, the event made of it is valid by the rules of the standard, and contains all of the entry."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from poller.core.events import OutboxEvent
from poller.core.mapping import SHORTEST_MADE_BYTES
from poller.core.mapping.ecs import ECS
from poller.core.mapping.ocsf import OCSF
from poller.core.mapping.shorten import format_time_us
from poller.core.mapping.stencil import Stencils
from tests.formats import ecs_problems, lost, ocsf_problems
from tests.mutants import mutants

COUNT = 10_000


def test_ten_thousand_entries_changed_at_random_are_valid_ocsf_and_hold_the_entry_to_the_byte():
    classes = set()
    for event in mutants(COUNT, seed=1):
        made = OCSF.make(event)
        read = json.loads(made)
        assert ocsf_problems(read) == [], event.line
        assert read["raw_data"].encode() == event.line
        assert lost(event.line, made) == [], event.line
        classes.add(read["class_uid"])
    assert classes == {6003, 3002}


def test_ten_thousand_entries_changed_at_random_are_valid_ecs_and_hold_the_entry_to_the_byte():
    for event in mutants(COUNT, seed=2):
        made = ECS.make(event)
        read = json.loads(made)
        assert ecs_problems(read) == [], event.line
        assert read["event"]["original"].encode() == event.line
        assert lost(event.line, made) == [], event.line


@pytest.mark.parametrize("standard", [OCSF, ECS])
def test_an_event_fits_wherever_the_shortest_of_its_standard_does(standard):
    for number, event in enumerate(mutants(1000, seed=3)):
        limit = SHORTEST_MADE_BYTES + number
        made = standard.make(event, max_bytes=limit)
        assert len(made) <= limit
        assert len(standard.make(event)) > limit or made == standard.make(event)


@pytest.mark.parametrize("standard", [OCSF, ECS])
def test_what_is_made_by_way_of_what_was_learned_is_what_the_rows_say(standard):
    stencils = Stencils(standard.map)
    for event in mutants(300, seed=4):
        for number in range(9):
            other = with_other_ids(event, number)
            assert b"".join(stencils.pieces(other)) == standard.map(other), other.line
    assert len(stencils._known) > 30


def with_other_ids(event: OutboxEvent, number: int) -> OutboxEvent:
    """The same entry with other ids, a second later each time."""
    time_us = event.time_us + number * 1_000_000
    line = re.sub(rb"(?<=-)[0-9a-f]{12}(?=\")", b"%012x" % (number * 0x5DEECE66D), event.line)
    line = line.replace(format_time_us(event.time_us).encode(), format_time_us(time_us).encode())
    return msgspec.structs.replace(event, line=line, time_us=time_us, collected_at=event.collected_at + number)
