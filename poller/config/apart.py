"""Checks that sinks with their own files or objects do not write to the same place. Pure.

An archive proves that its place holds only what the archive wrote, so no other sink may write below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from poller.config.checks import file_path
from poller.core.errors import Problem


class Place(NamedTuple):
    """Where a sink writes, as the parts of a path. `key` is the key of the sink's table that gives the path."""

    key: str
    parts: tuple[str, ...]
    is_archive: bool


def of_file(path: str) -> Place:
    """The place of a sink of type `file`."""
    return Place("path", Path(path).parts, is_archive=False)


def of_archive(url: str, endpoint_url: str | None) -> Place:
    """The place of an archive. Two storages may have buckets of the same name."""
    if url.startswith("file:"):
        return Place("url", Path(file_path(url)).parts, is_archive=True)
    return Place("url", (endpoint_url or "AWS", *url.split("/")), is_archive=True)


def problems_between(places: Mapping[str, Place]) -> Iterator[Problem]:
    """The conflicts between places. Each place is given by the path of its sink's table."""
    for (first, one), (second, other) in combinations(places.items(), 2):
        if one.parts == other.parts:
            yield Problem(f"{second}.{other.key}", f"is the same as that of {first}")
        elif _holds(one, other):
            yield _lies_inside(second, other, first)
        elif _holds(other, one):
            yield _lies_inside(first, one, second)


def _holds(outer: Place, inner: Place) -> bool:
    return outer.is_archive and inner.parts[: len(outer.parts)] == outer.parts


def _lies_inside(path: str, place: Place, archive: str) -> Problem:
    hint = "give each a place of its own: `archive verify` would name what the other one writes as no part of it"
    return Problem(f"{path}.{place.key}", f"lies inside the archive of {archive}", hint)
