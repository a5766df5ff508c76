"""Durations, sizes and counts, written for people."""

from __future__ import annotations

import pytest

from poller.core.amounts import duration, plural, size


@pytest.mark.parametrize(
    ("count", "noun", "written"),
    [
        (0, "entry", "0 entries"),
        (1, "entry", "1 entry"),
        (2000, "entry", "2,000 entries"),
        (1, "day", "1 day"),
        (3, "day", "3 days"),
        (2, "dead letter", "2 dead letters"),
    ],
)
def test_a_count_is_written_with_the_right_noun(count: int, noun: str, written: str) -> None:
    assert plural(count, noun) == written


def test_a_plural_of_its_own_is_given() -> None:
    assert [plural(count, "entry is", "entries are") for count in (1, 2)] == ["1 entry is", "2 entries are"]


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (-1, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3600, "1 h"),
        (3900, "1 h 5 min"),
        (86_399, "23 h 59 min"),
        (2 * 86_400, "2 d"),
        (2 * 86_400 + 3 * 3600, "2 d 3 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(
    ("size_bytes", "written"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (12 * 1024, "12 KiB"), (3 * 2**29, "1.5 GiB"), (2**30, "1 GiB")],
)
def test_a_size_has_its_largest_unit(size_bytes: float, written: str) -> None:
    assert size(size_bytes) == written
