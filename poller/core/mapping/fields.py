"""Reading a few fields of an entry.

A path has the form `event.param.action`, with `[]` after a list: `event.resources[].type`. The API's types vary: an entry of the
usual shape is decoded at once, any other one field by field. A missing field is no error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

Value = str | list[str] | None
"""A text, or None if it is missing; for a path with a list, its texts. Numbers are given as texts, as they are written."""


class _UnlikeWrittenError(Exception):
    """A number was read that may be written differently from how Python writes it."""


class Step(NamedTuple):
    """One name on a path, and whether a list is expected there."""

    name: str
    is_list: bool


Path = tuple[Step, ...]


def parse_path(text: str) -> Path:
    """The steps of a path."""
    return tuple(Step(part.removesuffix("[]"), part.endswith("[]")) for part in text.split("."))


class Fields:
    """Reads the fields at `paths`. Safe to use from several threads."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = [parse_path(path) for path in paths]
        self._heads = _heads(self._paths)
        # For each path with a list: the function that extracts its texts from the list. None for a path without a list.
        self._takers = [
            (number, _taker(path[_head_end(path) :]) if _has_list(path) else None)
            for number, path in enumerate(self._paths)
        ]
        shape = _shape(self._paths)
        self._decode = msgspec.json.Decoder(shape).decode if shape is not None else None

    def read(self, line: bytes) -> Sequence[Value]:
        """The value at each path, in the order of the paths."""
        if self._decode is None:
            return self._look(line)
        try:
            values = self._heads(self._decode(line))
            for value in values:
                if type(value) is not str and value is not None:
                    return self._converted(values)
        except (msgspec.DecodeError, RecursionError, _UnlikeWrittenError):
            return self._look(line)
        return values

    def _converted(self, values: Sequence[Any]) -> list[Value]:
        """The values as texts, and for a path with a list, the texts in it."""
        texts = list(values)
        for number, take in self._takers:
            value = texts[number]
            if take is not None:
                texts[number] = take(value)
            elif type(value) is not str and value is not None:
                texts[number] = _text(value)
        return texts

    def _look(self, line: bytes) -> Sequence[Value]:
        """As `read`, for an entry of any shape."""
        entry = None
        with suppress(ValueError, RecursionError):
            # Numbers stay as they are written: 1.10, 1e2, or with more digits than Python converts.
            entry = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
        values: list[Value] = []
        for path in self._paths:
            texts = [_text(value) for value in _walk(entry, path)]
            values.append([text for text in texts if text is not None] if _has_list(path) else texts[0])
        return values


def _has_list(path: Path) -> bool:
    return any(step.is_list for step in path)


def _text(value: Any) -> str | None:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() if value:
            return str(value)
        case int() | float():  # -0 is read as 0
            raise _UnlikeWrittenError
        case _:
            return None


def _walk(value: Any, path: Path) -> Iterator[Any]:
    if not path:
        yield value
        return
    step, *rest = path
    inner = value.get(step.name) if isinstance(value, dict) else None
    # A single value instead of a list counts as a list of one.
    for item in inner if step.is_list and isinstance(inner, list) else [inner]:
        yield from _walk(item, tuple(rest))


# The usual shape: structs that hold only the fields of the paths


def _attribute(step: Step) -> str:
    """An attribute name for any key: keys like `@uuid` are not valid names in Python."""
    return f"f{step.name.encode().hex()}"


def _head_end(path: Path) -> int:
    """The position after the first list of a path, or the end of the path."""
    return next((number for number, step in enumerate(path, 1) if step.is_list), len(path))


def _heads(paths: Sequence[Path]) -> Callable[[Any], Sequence[Any]]:
    """A function that gets the values of all paths from a decoded shape; for a path with a list, its first list."""
    names = [".".join(map(_attribute, path[: _head_end(path)])) for path in paths]
    get: Callable[[Any], Any] = attrgetter(*names) if names else lambda entry: ()
    return get if len(names) != 1 else lambda entry: (get(entry),)


def _taker(rest: Path) -> Callable[[list[Any]], list[str]]:
    """A function that gets the texts from the first list of a path. `rest` is the path after that list."""
    if not rest:
        return lambda texts: texts
    get = attrgetter(".".join(map(_attribute, rest[: _head_end(rest)])))
    further = rest[_head_end(rest) :]
    if further:
        take = _taker(further)
        return lambda items: [text for item in items for text in take(get(item))]
    if _has_list(rest):
        return lambda items: [text for item in items for text in get(item)]
    return lambda items: [text for item in items if (text := _text(get(item))) is not None]


def _shape(paths: Sequence[Path]) -> type[msgspec.Struct] | None:
    """A struct with the fields of the paths; None if one path ends inside another, or if they disagree about a list."""
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path[0].name, []).append(path)
    fields: list[tuple[str, Any, Any]] = []
    for name, members in by_name.items():
        step = members[0][0]
        rests = [path[1:] for path in members]
        if any(path[0] != step for path in members) or (not all(rests) and any(rests)):
            return None
        inner: Any = _shape(rests) if any(rests) else str if step.is_list else Any
        if inner is None:
            return None
        field: Any
        if step.is_list:
            field = msgspec.field(name=name, default_factory=list)
        else:
            field = msgspec.field(name=name, default=None if inner is Any else inner())
        fields.append((_attribute(step), list[inner] if step.is_list else inner, field))
    return msgspec.defstruct("Shape", fields, frozen=True, gc=False)
