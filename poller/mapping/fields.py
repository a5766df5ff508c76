"""Reading a few fields of an entry, and nothing else of it.

A path reads `event.param.action`, with `[]` behind a list: `event.resources[].type`. Types wobble: what stands for an entry of
the usual shape is decoded in one go, any other is looked at field by field, and what is not there is no error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

Value = str | list[str] | None
"""A text, the texts of a list, or None where there is neither. Numbers are given as text, too."""


class Step(NamedTuple):
    """One name on a path, and whether a list is expected there."""

    name: str
    is_list: bool


def parse_path(path: str) -> tuple[Step, ...]:
    """The steps of a path."""
    return tuple(Step(part.removesuffix("[]"), part.endswith("[]")) for part in path.split("."))


class Fields:
    """Reads the fields at `paths`. Safe to use from several threads."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [parse_path(path) for path in paths]
        self._is_list = [any(step.is_list for step in path) for path in self._paths]
        self._decode: Callable[[bytes], Any] | None = None
        try:
            tree = _tree(self._paths)
        except ValueError:  # one path ends where another goes on: no shape that we can decode at once
            return
        shape, names = _shape(tree)
        self._decode = msgspec.json.Decoder(shape).decode
        # Up to the first list; from there on by `_under`.
        heads = [_head(path) for path in self._paths]
        self._get = attrgetter(*[".".join(_attributes(names, head)) for head in heads]) if heads else None
        self._rests = [path[len(head) :] for path, head in zip(self._paths, heads, strict=True)]
        self._names = names

    def read(self, line: bytes) -> Sequence[Value]:
        """What stands at each path, in their order."""
        if self._decode is None or self._get is None:
            return self._look(line)
        try:
            found = self._get(self._decode(line))
        except (msgspec.DecodeError, RecursionError):
            return self._look(line)
        if len(self._paths) == 1:
            found = (found,)
        return [
            value if type(value) is str or value is None else self._text(index, value)
            for index, value in enumerate(found)
        ]

    def _text(self, index: int, value: Any) -> Value:
        if not self._is_list[index]:
            return _scalar(value)
        path = self._paths[index]
        names = _below(self._names, path[: len(path) - len(self._rests[index])])
        return [text for text in map(_scalar, _under(value, self._rests[index], names)) if text is not None]

    def _look(self, line: bytes) -> Sequence[Value]:
        """The same, for an entry of any shape."""
        try:
            # Numbers as they are written: they may have more digits than Python converts.
            entry = json.loads(line, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            return [[] if is_list else None for is_list in self._is_list]
        values: list[Value] = []
        for path, is_list in zip(self._paths, self._is_list, strict=True):
            texts = [text for text in map(_scalar, _walk(entry, path)) if text is not None]
            values.append(texts if is_list else texts[0] if texts else None)
        return values
