"""What the page and `status --json` show for each of the last 24 hours of a contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poller.core.gaps import REFUSED, Unread
from poller.core.hours import HOUR_SECONDS, Compared, first_hour, states
from poller.core.windows import Window
from poller.pipeline.audit import Audited, Difference, compared_by
from poller.pipeline.status import hours_of
from poller.store.protocols import State
from tests.states import HOUR, NOW, START

LATER = NOW + 20 * 60  # 20 minutes into the hour
FIRST = first_hour(LATER)
LONG_AGO = FIRST - 100 * HOUR
YESTERDAY = Window(FIRST, NOW)


def hour(number: int) -> Window:
    return Window(FIRST + number * HOUR, FIRST + (number + 1) * HOUR)


def runs(found: list[str]) -> list[tuple[str, int]]:
    """Each run of equal states, with its length."""
    result: list[tuple[str, int]] = []
    for state in found:
        count = result.pop()[1] if result and result[-1][0] == state else 0
        result.append((state, count + 1))
    return result


def told(
    *, origin: int = LONG_AGO, watermark: int = LATER, compared: Compared | None = None, **spans: list[Window]
) -> list[tuple[str, int]]:
    return runs(states(LATER, origin=origin, watermark=watermark, compared=compared, **spans))


def test_the_last_of_24_hours_is_the_one_that_is_not_over() -> None:
    assert FIRST == NOW - 23 * HOUR
    assert told() == [("collected", 23), ("not yet", 1)]


def test_hours_behind_the_watermark_that_an_audit_compared_are_told_apart() -> None:
    assert told(compared=Compared(Window(FIRST, NOW - HOUR))) == [("compared", 22), ("collected", 1), ("not yet", 1)]


def test_an_hour_that_differed_is_not_called_compared() -> None:
    compared = Compared(YESTERDAY, (hour(3).start,))
    assert told(compared=compared) == [("compared", 3), ("collected", 1), ("compared", 19), ("not yet", 1)]


def test_hours_that_were_not_read_to_their_end_are_not_yet() -> None:
    assert told(watermark=hour(5).end - 1) == [("collected", 5), ("not yet", 19)]
    assert told(pending=[Window(hour(2).end - 1, hour(3).start + 1)]) == [
        ("collected", 2), ("not yet", 2), ("collected", 19), ("not yet", 1),
    ]  # fmt: skip


def test_a_gap_shows_before_all_else_also_in_an_hour_that_was_compared() -> None:
    gap = Window(hour(7).start + 10, hour(7).start + 11)
    compared = Compared(YESTERDAY)
    assert told(gaps=[gap], compared=compared, pending=[hour(7)]) == [
        ("compared", 7), ("gap", 1), ("compared", 15), ("not yet", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(("start", "before"), [(hour(4).start, 4), (hour(4).start + 1, 4), (hour(4).end, 5)])
def test_what_lies_before_collecting_began_is_neither_complete_nor_missing(start: int, before: int) -> None:
    compared = Compared(Window(start, NOW))
    assert told(origin=start, compared=compared) == [("before", before), ("compared", 23 - before), ("not yet", 1)]


def test_of_a_contract_that_was_never_read_nothing_is_known() -> None:
    assert told(origin=LATER, watermark=LATER) == [("before", 23), ("not yet", 1)]


def test_an_audit_has_compared_the_hours_that_were_over_less_the_overlap() -> None:
    differences = [Difference("1", Window(hour(3).start + 60, hour(3).end), 5, 4, 0)]
    refused = Unread(Window(hour(6).start, hour(7).end), REFUSED, "too old")
    span = Window(hour(1).start, LATER)
    assert compared_by(span, LONG_AGO, LATER, 600, Audited(differences, [refused])) == Compared(
        Window(hour(1).start, NOW), (hour(3).start, hour(6).start, hour(7).start)
    )
    assert compared_by(span, LONG_AGO, NOW + 599, 600, Audited([])) == Compared(Window(hour(1).start, NOW - HOUR))
    assert compared_by(Window(NOW, LATER), LONG_AGO, LATER, 600, Audited([])) is None


def test_the_state_keeps_what_the_last_audit_compared(opened: Callable[[], State]) -> None:
    state = opened()
    try:
        state.contracts.enrol(["1"], "default", START, START)
        (row,) = state.contracts.all()
        assert row.compared is None
        state.contracts.record_audit("1", NOW, Compared(YESTERDAY, (hour(2).start, hour(4).start)))
        overview = state.overview()
        (row,) = overview.contracts
        assert row.compared == Compared(YESTERDAY, (hour(2).start, hour(4).start))
        assert hours_of(row._replace(watermark=LATER), overview, LATER)[:6] == [
            "compared", "compared", "collected", "compared", "collected", "compared",
        ]  # fmt: skip
        state.contracts.record_audit("1", NOW)
        assert state.contracts.all()[0].compared is None
    finally:
        state.close()


def test_an_hour_has_the_length_that_the_ledger_gives_it() -> None:
    assert HOUR_SECONDS == HOUR
