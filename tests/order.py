"""The order in which the workers take the tests: the longest first, so that all workers end at about the same time.

`make durations` records how long each test took in durations.json. A test that is not in it counts as an average test of its
kind. `python -m tests.order` writes the slowest of them into docs/testing.md.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support import TOP

TABLE = Path(__file__).with_name("durations.json")
PAGE = TOP / "docs" / "testing.md"
RECORDED_FROM_SECONDS = 1.0
SHOWN = 30
_USUAL_SECONDS = {"tests/faults": 5.0, "tests/integration": 2.0, "tests/property": 0.3, "tests/unit": 0.02}
_MARKS = re.compile(r"(<!-- slowest -->\n).*?(<!-- end -->)", re.DOTALL)


def recorded() -> dict[str, float]:
    """Seconds by test, without tests below one second."""
    return dict(json.loads(TABLE.read_text()))


@cache
def _is_shared(file: str) -> bool:
    return 'scope="module"' in (TOP / file).read_text()


def unit_of(name: str) -> str:
    """The unit of work that a test belongs to: its file for unit tests, which are short, and for tests that share a
    fixture; otherwise the test alone.
    """
    file = name.partition("::")[0]
    return file if file.startswith("tests/unit/") or _is_shared(file) else name


class Units(LoadScopeScheduling):
    """A scheduler that gives all tests of a unit to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def arrange(items: list[pytest.Item], seconds_of: dict[str, float]) -> None:
    """Sort in place: units of work by their duration, the longest first. Units of the same duration keep their order."""
    units: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        units[unit_of(item.nodeid)].append(item)

    def seconds(unit: list[pytest.Item]) -> float:
        return sum(seconds_of.get(item.nodeid, _usual_seconds(item.nodeid)) for item in unit)

    items[:] = [item for unit in sorted(units.values(), key=seconds, reverse=True) for item in unit]


def take_long(items: list[pytest.Item], seconds_of: dict[str, float]) -> list[pytest.Item]:
    """Remove, in place, the tests that are too slow for `make quick`.  Returns: the removed tests."""
    is_long = lambda item: item.nodeid in seconds_of or item.nodeid.startswith("tests/faults/")  # noqa: E731
    long = [item for item in items if is_long(item)]
    items[:] = [item for item in items if not is_long(item)]
    return long


def _usual_seconds(name: str) -> float:
    return _USUAL_SECONDS.get("/".join(name.split("/")[:2]), 1.0)


def record(took: dict[str, float]) -> None:
    """Record how long the tests of a run took. Tests that did not run keep their values."""
    known = {**recorded(), **{name: round(seconds, 1) for name, seconds in took.items()}}
    slow = {name: seconds for name, seconds in known.items() if seconds >= RECORDED_FROM_SECONDS}
    TABLE.write_text(json.dumps(dict(sorted(slow.items(), key=lambda row: (-row[1], row[0]))), indent=0) + "\n")


def page(text: str, slowest: Iterable[tuple[str, float]]) -> str:
    """The text of the page with a new table of the slowest tests."""
    rows = [f"| `{name.removeprefix('tests/')}` | {seconds:.1f} |" for name, seconds in slowest]
    table = "\n".join(["| test | seconds |", "| --- | ---: |", *rows])
    return _MARKS.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)


def main() -> None:
    slowest = sorted(recorded().items(), key=lambda row: -row[1])[:SHOWN]
    PAGE.write_text(page(PAGE.read_text(), slowest))


if __name__ == "__main__":
    main()
