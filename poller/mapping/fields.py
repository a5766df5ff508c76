"""Reading a few fields of an entry, and nothing else of it.

A path reads `event.param.action`, with `[]` behind a list: `event.resources[].type`. Types wobble: what stands for an entry of
the usual shape is decoded in one go, any other is looked at field by field, and what is not there is no error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

Value = str | list[str] | None
"""A text, or None where there is none; for a path with a list, its texts. Numbers are given as text, too."""


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
        self._get = _getter(self._paths)
        shape = _shape(self._paths)
        self._decode = msgspec.json.Decoder(shape).decode if shape is not None else None

    def read(self, line: bytes) -> Sequence[Value]:
        """What stands at each path, in their order."""
        if self._decode is None:
            return self._look(line)
        try:
            entry = self._decode(line)
        except (msgspec.DecodeError, RecursionError):
            return self._look(line)
        values = self._get(entry)
        for value in values:
            if type(value) is not str and value is not None:
                return [_texts(path, value) for path, value in zip(self._paths, values, strict=True)]
        return values

    def _look(self, line: bytes) -> Sequence[Value]:
        """The same, for an entry of any shape."""
        entry = None
        with suppress(ValueError, RecursionError):
            # Numbers as they are written: they may have more digits than Python converts.
            entry = json.loads(line, parse_int=str, parse_float=str)
        values: list[Value] = []
        for path in self._paths:
            found = list(_walk(entry, path))
            values.append(_texts(path, found if _has_list(path) else found[0]))
        return values


def _has_list(path: Path) -> bool:
    return any(step.is_list for step in path)


def _texts(path: Path, value: Any) -> Value:
    if _has_list(path):
        return [text for text in map(_text, value) if text is not None]
    return _text(value)


def _text(value: Any) -> str | None:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case _:
            return None


def _walk(value: Any, path: Path) -> Iterator[Any]:
    if not path:
        yield value
        return
    step, *rest = path
    inner = value.get(step.name) if isinstance(value, dict) else None
    # One where a list is expected counts as a list of one.
    for item in inner if step.is_list and isinstance(inner, list) else [inner]:
        yield from _walk(item, tuple(rest))


# The usual shape: structs with the wanted fields alone, made for the paths


def _attribute(step: Step) -> str:
    """A name that Python takes for any key: `@uuid` is none."""
    return f"f{step.name.encode().hex()}"


def _getter(paths: Sequence[Path]) -> Callable[[Any], Sequence[Any]]:
    """What takes the values of the paths out of their shape; for a path with a list, a list of them."""
    if len(paths) > 1 and not any(map(_has_list, paths)):
        return attrgetter(*(".".join(map(_attribute, path)) for path in paths))  # several times as fast
    steps = [[(_attribute(step), step.is_list) for step in path] for path in paths]
    return lambda entry: [_take(entry, path) for path in steps]


def _take(entry: Any, path: Sequence[tuple[str, bool]]) -> Any:
    for number, (attribute, is_list) in enumerate(path, 1):
        entry = getattr(entry, attribute)
        if is_list:
            rest = path[number:]
            found = [_take(item, rest) for item in entry]
            return list(chain.from_iterable(found)) if any(deeper for _, deeper in rest) else found
    return entry


def _shape(paths: Sequence[Path]) -> type[msgspec.Struct] | None:
    """A struct that holds what the paths name; None where one ends in the midst of another, or they differ in a list."""
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path[0].name, []).append(path)
    fields: list[tuple[str, Any, Any]] = []
    for name, members in by_name.items():
        step = members[0][0]
        rests = [path[1:] for path in members]
        if any(path[0] != step for path in members) or (not all(rests) and any(rests)):
            return None
        inner = _shape(rests) if any(rests) else Any
        if inner is None:
            return None
        field: Any
        if step.is_list:
            field = msgspec.field(name=name, default_factory=list)
        else:
            field = msgspec.field(name=name, default=None if inner is Any else inner())
        fields.append((_attribute(step), list[inner] if step.is_list else inner, field))  # type: ignore[valid-type]
    return msgspec.defstruct("Shape", fields, frozen=True, gc=False)
