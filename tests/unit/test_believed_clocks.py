"""Which of two clocks is used, as pure tables."""

from __future__ import annotations

import pytest

from poller.core.clocks import EARLIEST_SECONDS, believed_skew, latest_now, measured_skew, trusted_now

NOW = EARLIEST_SECONDS + 300 * 86_400
HOUR, DAY = 3600.0, 86_400.0


@pytest.mark.parametrize(
    ("theirs", "seconds", "expected"),
    [
        (NOW, 0.0, 0.0),
        (NOW - 3, 5.0, 0.0),  # the answer took longer than that
        (NOW - 100, 5.0, 95.0),
        (NOW + 100, 5.0, -100.0),
        (NOW - 40, 40.0, 0.0),
    ],
)
def test_the_difference_is_the_smallest_that_explains_an_answer(theirs: float, seconds: float, expected: float) -> None:
    assert measured_skew(theirs, NOW, seconds) == expected


@pytest.mark.parametrize(
    ("skew", "ours", "trusted", "latest"),
    [
        (None, NOW, NOW, NOW),
        (1.0, NOW, NOW, NOW),
        (2 * HOUR, NOW, NOW - 2 * HOUR, NOW),
        (-2 * HOUR, NOW, NOW, NOW + 2 * HOUR),
        (3 * DAY, NOW, NOW - 3 * DAY, NOW),
        (60 * DAY, NOW, NOW, NOW),
        (-60 * DAY, NOW, NOW, NOW),
        (NOW, NOW, NOW, NOW),  # the API is in 1970
        (29 * DAY, EARLIEST_SECONDS + DAY, EARLIEST_SECONDS + DAY, EARLIEST_SECONDS + DAY),
        (100.0 - NOW, 100.0, NOW, NOW),  # we are in 1970
        (50.0, 100.0, 100.0, 100.0),  # both are
    ],
)
def test_a_clock_that_cannot_be_right_is_not_believed(
    skew: float | None, ours: float, trusted: float, latest: float
) -> None:
    assert trusted_now(skew, ours) == trusted
    assert latest_now(skew, ours) == latest


def test_what_is_believed_is_what_was_measured() -> None:
    assert believed_skew(2 * HOUR, NOW) == 2 * HOUR
