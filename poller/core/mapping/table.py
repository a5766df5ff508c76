"""A standard as one table: its fields, and the value of an entry that goes into each. Pure.

The rows define the mapping, and docs/mappings.md shows them. A field without a value is left out, and so is an object without
fields.

The objects of a table are made from the inside out. Objects that depend only on the user, or only on the kind of event, are
encoded once and cached: a few users and kinds make most of a log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from poller.core.damage import without_lone_surrogates
from poller.core.events import OutboxEvent
from poller.core.mapping.facts import REMEMBERED, REMEMBERED_BYTES, Own, What, Who, read_facts
from poller.core.mapping.shapes import Json
from poller.core.mapping.shorten import SHORTEST_BYTES, truncated
from poller.core.mapping.stencil import Stencils

_encode = msgspec.json.Encoder().encode

Values = tuple[Any, ...]


class Row(NamedTuple):
    """One field of a standard, by its path. Its value is the fact named `fact`, or a constant; `source` describes it."""

    field: str
    source: str
    fact: str = ""
    constant: object = None


class Derived(NamedTuple):
    """The names of a standard's own facts, and the function that makes them from a `Who`, a `What`, or all `Facts`."""

    names: tuple[str, ...]
    make: Callable[[Any], Values]


class Standard:
    """Makes events of a standard, each as compact JSON. Safe to use from several threads.

    `choose` selects the table for a kind of event. Values of an entry that no row uses go below the path `rest`.
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
        self._derive = own.make
        self._rest = rest.split(".")
        compiled = {number: _Table(rows, who, what, own) for number, rows in tables.items()}
        self._table_for = lru_cache(REMEMBERED)(lambda what: compiled[choose(what)])
        self.pieces = Stencils(self.map).pieces
        """The event in pieces: joining the pieces of many events at once saves a copy of each."""

    def make(self, event: OutboxEvent, *, max_bytes: int | None = None) -> bytes:
        """The event. If it would be longer than `max_bytes`, the entry is shortened first and gets a marker."""
        made = b"".join(self.pieces(event))
        limit = len(event.line)
        while max_bytes is not None and len(made) > max_bytes and limit > SHORTEST_BYTES:
            limit = max(SHORTEST_BYTES, min(limit * max_bytes // len(made), limit - limit // 8))
            made = self.map(event.with_line(truncated(event.line, limit)))
        return made

    __call__ = make

    def map(self, event: OutboxEvent) -> bytes:
        """The event that the rows define."""
        try:
            facts = read_facts(event, event.line)
        except msgspec.DecodeError:
            facts = read_facts(event.with_line(without_lone_surrogates(event.line)), event.line)
        who, what, own, rest = facts
        if len(event.line) <= REMEMBERED_BYTES:
            table = self._table_for(what)
            of_who, of_what = table.of_who(who), table.of_what(what)
        else:
            table = self._table_for.__wrapped__(what)
            of_who, of_what = table.of_who.__wrapped__(who), table.of_what.__wrapped__(what)
        made = _encode(table.event([*table.constants, *of_who, *of_what, *own, *self._derive(facts)]))
        return made if not rest else self._with_rest(made, rest)

    def _with_rest(self, made: bytes, rest: Json) -> bytes:
        event = there = msgspec.json.decode(made)
        for key in self._rest:
            there = there.setdefault(key, {})
        _merge(there, rest)
        return _encode(event)


# What a value depends on: nothing, the user, the kind of event, the whole entry.
_NOTHING, _WHO, _WHAT, _ENTRY = range(4)
_Tree = dict[str, "Row | _Tree"]


class _Object(NamedTuple):
    """How one object is made: the function that picks its fields from the values, its struct, and the fields of an empty one."""

    pick: Callable[[Sequence[Any]], Values]
    kind: Callable[..., msgspec.Struct]
    empty: Values


class _Table:
    """Compiled rows. The values of an event have a fixed order: `constants`, `of_who`, `of_what`, then those of the entry.

    In each of these groups the facts come first, then the objects that depend only on this group, inner objects first.
    """

    def __init__(self, rows: Sequence[Row], who: Derived, what: Derived, own: Derived) -> None:
        names = (
            [_name(row) for row in rows if not row.fact],
            [*Who._fields, *who.names],
            [*What._fields, *what.names],
            [*Own._fields, *own.names],
        )
        scopes = {name: scope for scope, known in enumerate(names) for name in known}
        found: list[tuple[int, str, _Tree]] = []
        _find_objects(_tree(rows), "", scopes, found)
        for scope, path, _ in found:
            names[scope].append(path)
        places = {name: at for at, name in enumerate(name for known in names for name in known)}
        self._objects: list[list[_Object]] = [[], [], [], []]
        for scope, path, tree in found:
            self._objects[scope].append(_compiled(path, tree, places))
        constants: list[Any] = [msgspec.Raw(_encode(row.constant)) for row in rows if not row.fact]
        self.constants = constants + self._encoded(_NOTHING, constants)
        blank = [None] * len(names[_WHO])

        @lru_cache(REMEMBERED)
        def of_who(facts: Who) -> Values:
            values = [*facts, *who.make(facts)]
            return (*values, *self._encoded(_WHO, [*self.constants, *values]))

        @lru_cache(REMEMBERED)
        def of_what(facts: What) -> Values:
            values = [*facts, *what.make(facts)]
            return (*values, *self._encoded(_WHAT, [*self.constants, *blank, *values]))

        self.of_who, self.of_what = of_who, of_what

    def event(self, values: list[Any]) -> Any:
        """The outermost object, made from `values`."""
        return self._made(_ENTRY, values)[-1]

    def _encoded(self, scope: int, values: Sequence[Any]) -> list[msgspec.Raw | None]:
        """The objects of a scope as JSON, which other objects include unchanged."""
        made = self._made(scope, [*values])[len(values) :]
        return [None if value is None else msgspec.Raw(_encode(value)) for value in made]

    def _made(self, scope: int, values: list[Any]) -> list[Any]:
        """The values, followed by the objects of a scope."""
        for pick, kind, empty in self._objects[scope]:
            fields = pick(values)
            values.append(None if fields == empty else kind(*fields))
        return values


def _name(row: Row) -> str:
    """The name of a row's value: its fact, or "=" and the field for a constant. No fact has such a name."""
    return row.fact or f"={row.field}"


def _tree(rows: Sequence[Row]) -> _Tree:
    root: _Tree = {}
    for row in rows:
        *outer, last = row.field.split(".")
        node: Any = root
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = row
    return root


def _find_objects(tree: _Tree, path: str, scopes: Mapping[str, int], found: list[tuple[int, str, _Tree]]) -> int:
    """Add all objects of a tree, the inner ones first, each with its scope and path. Returns the scope of the tree."""
    inner = {
        scopes[_name(node)] if isinstance(node, Row) else _find_objects(node, f"{path}.{key}", scopes, found)
        for key, node in tree.items()
    } - {_NOTHING}
    scope = _ENTRY if not path or len(inner) > 1 else max(inner, default=_NOTHING)
    found.append((scope, path, tree))
    return scope


def _compiled(path: str, tree: _Tree, places: Mapping[str, int]) -> _Object:
    """`places` maps each fact, constant and object to the index of its value."""
    keys = list(tree)
    at = [places[_name(node) if isinstance(node, Row) else f"{path}.{key}"] for key, node in tree.items()]
    fields = [(f"f{number}", Any, msgspec.field(name=key, default=None)) for number, key in enumerate(keys)]
    kind = msgspec.defstruct("Object", fields, omit_defaults=True, gc=False)
    pick: Any = itemgetter(*at) if len(at) > 1 else lambda values: (values[at[0]],)
    return _Object(pick, kind, (None,) * len(keys))


def _merge(made: Json, rest: Json) -> None:
    for key, value in rest.items():
        there = made.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            _merge(there, value)
        else:
            made[key] = value
