"""What `audit` tells of a contract: how many of its hours were compared."""

from __future__ import annotations

import pytest

from poller.cli.audit import Compared
from poller.core.gaps import REFUSED, Unread
from poller.core.windows import Window
from poller.pipeline.audit import Audited

HOUR = 3600
DAY = Window(20_000 * 86_400, 20_001 * 86_400)


def part(start: float, end: float) -> Window:
    """Between two hours of the day."""
    return Window(DAY.start + int(start * HOUR), DAY.start + int(end * HOUR))


@pytest.mark.parametrize(
    ("gaps", "refused", "hours"),
    [
        ([], [], 24),
        ([part(-5, 6)], [], 18),  # it begins before the day
        ([part(1.5, 6.5)], [], 20),  # the rest of 1 and of 6 is compared
        ([part(1.5, 1.6), part(2, 3)], [], 23),
        ([], [part(0, 2)], 22),
        ([part(0, 2)], [part(1, 4)], 20),  # an hour in both counts once
        ([part(0, 2.5)], [part(2.5, 3)], 21),
        ([part(0, 24)], [], 0),
    ],
)
def test_an_hour_that_lies_in_a_gap_or_that_the_api_refuses_does_not_count_as_compared(
    gaps: list[Window], refused: list[Window], hours: int
) -> None:
    result = Audited([], [Unread(window, REFUSED, "too old", ()) for window in refused])
    assert Compared("1", DAY, result, gaps).hours == hours
