"""When an outage is reported: at its start, after growing waits, and at its end."""

from __future__ import annotations

from poller.core.outages import Outage


def told(outage: Outage, start: int, end: int) -> list[int]:
    """The seconds in which a failure is reported if it happens every second."""
    return [second for second in range(start, end) if outage.has_to_be_told(second)]


def test_an_outage_is_told_at_once_and_then_after_growing_waits_of_an_hour_at_most() -> None:
    assert told(Outage(), 1000, 1000 + 20_000) == [
        1000,
        1060,
        1180,
        1420,
        1900,
        2860,
        4780,
        8380,
        11_980,
        15_580,
        19_180,
    ]


def test_its_end_is_told_once_with_how_long_it_took() -> None:
    outage = Outage()
    assert outage.ended(5) is None
    told(outage, 1000, 1090)
    assert outage.ended(1090) == 90
    assert outage.ended(1091) is None


def test_what_comes_and_goes_is_told_no_more_often_than_what_stays_away() -> None:
    outage = Outage()
    found = []
    for second in range(0, 200, 2):
        found += told(outage, second, second + 1)
        outage.ended(second + 1)
    assert found == [0, 60, 180]


def test_an_outage_long_after_another_one_is_told_at_once() -> None:
    outage = Outage()
    told(outage, 0, 500)
    outage.ended(500)
    assert told(outage, 560, 700) == [560, 620]
