"""Whether sinks that keep files or objects of their own keep them apart from each other. Pure.

An archive proves that nothing is in its place but what it wrote: no other sink may write below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from poller.config.sink_base import Sink
from poller.config.sinks import ArchiveSink, FileSink
from poller.core.errors import Problem


class _Place(NamedTuple):
    key: str  # in the table
    parts: tuple[str, ...]
    is_archive: bool


def problems_between_places(sinks: Mapping[str, Sink]) -> Iterator[Problem]:
    """What is wrong with where these sinks write, by the paths of their tables."""
    places = [(path, place) for path, sink in sinks.items() if (place := _place_of(sink)) is not None]
    for (first, one), (second, other) in combinations(places, 2):
        if one.parts == other.parts:
            yield Problem(f"{second}.{other.key}", f"is the same as that of {first}")
        elif _holds(one, other):
            yield _lies_inside(second, other, first)
        elif _holds(other, one):
            yield _lies_inside(first, one, second)


def _place_of(sink: Sink) -> _Place | None:
    if isinstance(sink, FileSink):
        return _Place("path", Path(sink.path).parts, is_archive=False)
    if not isinstance(sink, ArchiveSink):
        return None
    if sink.directory is not None:
        return _Place("url", sink.directory.parts, is_archive=True)
    storage = sink.endpoint_url or "AWS"  # buckets of two storages may have one name
    return _Place("url", (storage, *sink.url.split("/")), is_archive=True)


def _holds(outer: _Place, inner: _Place) -> bool:
    return outer.is_archive and inner.parts[: len(outer.parts)] == outer.parts


def _lies_inside(path: str, place: _Place, archive: str) -> Problem:
    hint = "give each a place of its own: `archive verify` would name what the other one writes as no part of it"
    return Problem(f"{path}.{place.key}", f"lies inside the archive of {archive}", hint)
