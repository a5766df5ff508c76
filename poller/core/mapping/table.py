"""A standard as one table: its fields, and what of an entry goes into each. Pure.

The rows are the mapping: what they say is what is done, and what docs/mappings.md shows. A field without a value is left out, and
so is an object without fields.

An event is a template with its values filled in. A template is made once for a kind of thing that happened and the facts that
there are, and the values of a user are encoded once: few kinds and few users make most of a log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from operator import is_, itemgetter
from typing import Any, NamedTuple

import msgspec

from poller.core.damage import without_lone_surrogates
from poller.core.events import OutboxEvent
from poller.core.mapping.facts import REMEMBERED, REMEMBERED_BYTES, Own, What, Who, read_facts
from poller.core.mapping.shapes import Json
from poller.core.mapping.shorten import SHORTEST_BYTES, truncated

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines
_HOLE = msgspec.Raw(b"%b")

Values = tuple[Any, ...]


class Row(NamedTuple):
    """One field of a standard, by its path. Its value is the fact of that name, or a constant; `source` says it to people."""

    field: str
    source: str
    fact: str = ""
    constant: object = None


class Derived(NamedTuple):
    """Facts of a standard's own, by name, and what makes them: of a `Who`, of a `What`, or of all `Facts`."""

    names: tuple[str, ...]
    make: Callable[[Any], Values]


class _Encoded(NamedTuple):
    """The values of a user, each as JSON, and which of them are none."""

    values: list[bytes]
    absent: bytes


class _Template(NamedTuple):
    """What all such events have in common, with a hole for each other value; and what picks those, in order."""

    text: bytes
    pick: Callable[[list[bytes]], tuple[bytes, ...]]


# An object: its keys, each with the number of a fact, a constant, or an object.
_Node = tuple[tuple[str, Any], ...]


class Standard:
    """Makes events of a standard, each as compact JSON. Safe to use from several threads.

    `choose` says which of the tables is for what happened. What an entry says and no row takes goes below the path `rest`.
    """

    def __init__(
        self,
        tables: Mapping[int, Sequence[Row]],
        choose: Callable[[What], int],
        *,
        who: Derived,
        what: Derived,
        own: Derived,
        rest: str,
    ) -> None:
        self.tables = tables
        self._choose = choose
        self._who, self._what, self._own = who.make, what.make, own.make
        self._rest = rest.split(".")
        self._whats = (*What._fields, *what.names)
        self._others = (*Who._fields, *who.names, *Own._fields, *own.names)
        places = {name: at for at, name in enumerate((*self._whats, *self._others))}
        self._nodes = {number: _node(rows, places) for number, rows in tables.items()}
        self._template: Callable[..., _Template] = lru_cache(REMEMBERED)(self._make_template)
        self._encoded = lru_cache(REMEMBERED)(self._encode_who)

    def make(self, event: OutboxEvent, *, max_bytes: int | None = None) -> bytes:
        """The event; of an entry that was shortened, with a marker, where it would be longer than `max_bytes`."""
        made = self._make(event)
        limit = len(event.line)
        while max_bytes is not None and len(made) > max_bytes and limit > SHORTEST_BYTES:
            limit = max(SHORTEST_BYTES, min(limit * max_bytes // len(made), limit - limit // 8))
            made = self._make(event.with_line(truncated(event.line, limit)))
        return made

    def _make(self, event: OutboxEvent) -> bytes:
        try:
            facts = read_facts(event, event.line)
        except msgspec.DecodeError:
            facts = read_facts(event.with_line(without_lone_surrogates(event.line)), event.line)
        is_short = len(event.line) <= REMEMBERED_BYTES
        who = self._encoded(facts.who) if is_short else self._encode_who(facts.who)
        own = facts.own + self._own(facts)
        template = self._template if is_short else self._make_template
        text, pick = template(facts.what, who.absent, bytes(map(is_, own, repeat(None))))
        made = text % pick(who.values + _encode_lines(own).split(b"\n"))
        return made if not facts.rest else self._with_rest(made, facts.rest)

    def _encode_who(self, who: Who) -> _Encoded:
        values = (*who, *self._who(who))
        return _Encoded(_encode_lines(values).split(b"\n")[:-1], bytes(map(is_, values, repeat(None))))

    def _make_template(self, what: What, *absent: bytes) -> _Template:
        known = [None if value is None else _constant(value) for value in (*what, *self._what(what))]
        others = [None if is_absent else _HOLE for is_absent in b"".join(absent)]
        holes: list[int] = []
        made = _filled(self._nodes[self._choose(what)], [*known, *others], holes)
        return _Template(_encode(made), itemgetter(*(at - len(known) for at in holes)))

    def _with_rest(self, made: bytes, rest: Json) -> bytes:
        event = there = msgspec.json.decode(made)
        for key in self._rest:
            there = there.setdefault(key, {})
        _merge(there, rest)
        return _encode(event)


def _constant(value: object) -> msgspec.Raw:
    return msgspec.Raw(_encode(value).replace(b"%", b"%%"))


def _node(rows: Sequence[Row], places: Mapping[str, int], depth: int = 0) -> _Node:
    """The object that the rows make, whose paths have `depth` names in common."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.field.split(".")[depth], []).append(row)
    node: list[tuple[str, Any]] = []
    for key, members in groups.items():
        first = members[0]
        if first.field.count(".") > depth:
            node.append((key, _node(members, places, depth + 1)))
        else:
            node.append((key, places[first.fact] if first.fact else _constant(first.constant)))
    return tuple(node)


def _filled(node: _Node, values: Sequence[msgspec.Raw | None], holes: list[int]) -> Json:
    """The object with its values. The places of the facts that are still to come are added to `holes`."""
    made: Json = {}
    for key, part in node:
        if isinstance(part, tuple):
            value = _filled(part, values, holes)
            if value:
                made[key] = value
        elif isinstance(part, int):
            if values[part] is not None:
                made[key] = values[part]
                if values[part] is _HOLE:
                    holes.append(part)
        else:
            made[key] = part
    return made


def _merge(made: Json, rest: Json) -> None:
    for key, value in rest.items():
        there = made.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            _merge(there, value)
        else:
            made[key] = value
