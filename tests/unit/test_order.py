"""The order of the tests: the longest unit of work first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.order import arrange, take_long, unit_of


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("tests/unit/test_order.py::test_a[x]", "tests/unit/test_order.py"),
        ("tests/integration/test_hostile_api.py::test_a", "tests/integration/test_hostile_api.py"),  # a shared fixture
        ("tests/integration/test_run.py::test_a[x::y]", "tests/integration/test_run.py::test_a[x::y]"),
    ],
)
def test_unit_tests_and_those_that_share_a_fixture_stay_with_their_file(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_the_longest_units_come_first_and_their_tests_in_order() -> None:
    names = ["tests/unit/test_order.py::a", "tests/integration/test_run.py::b", "tests/integration/test_run.py::c"]
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in [*names, "tests/unit/test_order.py::d"]]
    arrange(items, {names[0]: 3.0, names[1]: 1.0, names[2]: 7.0})
    assert [item.nodeid[-1] for item in items] == ["c", "a", "d", "b"]


def test_a_quick_run_leaves_out_what_is_recorded_as_long_and_the_fault_harness() -> None:
    names = ["tests/unit/test_order.py::a", "tests/integration/test_run.py::b", "tests/faults/test_found.py::c"]
    items: list[Any] = [SimpleNamespace(nodeid=name) for name in names]
    assert [item.nodeid[-1] for item in take_long(items, {names[1]: 1.0})] == ["b", "c"]
    assert [item.nodeid[-1] for item in items] == ["a"]
