"""Whether sinks that keep files or objects of their own keep them apart from each other. Pure.

An archive proves that nothing is in its place but what it wrote: no other sink may write below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from poller.config.checks import file_path
from poller.core.errors import Problem


class Place(NamedTuple):
    """Where a sink writes, part by part. `key` names it in the sink's table."""

    key: str
    parts: tuple[str, ...]
    is_archive: bool


def of_file(path: str) -> Place:
    """The place of a sink of type `file`."""
    return Place("path", Path(path).parts, is_archive=False)


def of_archive(url: str, endpoint_url: str | None) -> Place:
    """The place of an archive. Buckets of two storages may have one name."""
    if url.startswith("file:"):
        return Place("url", Path(file_path(url)).parts, is_archive=True)
    return Place("url", (endpoint_url or "AWS", *url.split("/")), is_archive=True)


def problems_between(places: Mapping[str, Place]) -> Iterator[Problem]:
    """What is wrong with where sinks write, by the paths of their tables."""
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
