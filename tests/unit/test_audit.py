"""The auditor against a table of hours: what it finds, and how few requests it needs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.answers import Page, Unreadable
from poller.core.errors import (
    AuthError,
    BodyTooLargeError,
    PollerError,
    RejectedError,
    TransientError,
    UnusableAnswerError,
)
from poller.core.events import Event
from poller.core.gaps import merged
from poller.core.windows import MAX_SPAN_SECONDS, Limits, Window
from poller.pipeline.audit import (
    Auditor,
    Difference,
    NoTotalsError,
    is_due,
    parts_of,
    remembered,
    self_audit_span,
    whole_hours,
)
from poller.store.rows import HOUR_SECONDS, Contract, Count
from tests.support import TOP

CONTRACT = "31960001"
START = 1_780_000_000 // HOUR_SECONDS * HOUR_SECONDS
RESULT_WINDOW = 10_000
H = HOUR_SECONDS
NOON = START
LIMITS = Limits(1000, RESULT_WINDOW, 10**9)


class Totals:
    """An API that gives only totals. `hours`: entries by hour from START, spread evenly or (`is_burst`) all at one second."""

    def __init__(
        self,
        hours: Mapping[int, int],
        *,
        cap: int = 0,
        says_capped: bool = False,
        has_totals: bool = True,
        is_burst: bool = False,
        always_at_least: bool = False,
    ) -> None:
        self.seconds: Sequence[int] = sorted(
            START + hour * HOUR_SECONDS + (0 if is_burst else i * HOUR_SECONDS // count)
            for hour, count in hours.items()
            for i in range(count)
        )
        self.cap = cap
        self.says_capped = says_capped
        self.has_totals = has_totals
        self.always_at_least = always_at_least
        self.requests = 0

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        assert (contract, offset, limit) == (CONTRACT, 0, 1), "a small request"
        assert window.seconds > 0
        self.requests += 1
        total = bisect_left(self.seconds, window.end) - bisect_left(self.seconds, window.start)
        is_over = bool(self.cap) and total > self.cap
        shown = min(total, self.cap) if self.cap else total
        is_capped = self.always_at_least or (is_over and self.says_capped)
        return Page((), shown if self.has_totals else None, is_capped, 0, False)


class _Evenly(Sequence[int]):
    """The sorted times of `an_hour` entries in each of `hours` hours, without storing them."""

    def __init__(self, an_hour: int, hours: int) -> None:
        self.an_hour = an_hour
        self.hours = hours

    def __len__(self) -> int:
        return self.an_hour * self.hours

    def __getitem__(self, index: Any) -> Any:
        return START + index // self.an_hour * HOUR_SECONDS


def span(hours: int) -> Window:
    return Window(START, START + hours * HOUR_SECONDS)


def counts(hours: Mapping[int, int]) -> dict[int, Count]:
    return {START + hour * HOUR_SECONDS: Count(count, 0) for hour, count in hours.items() if count}


def compare(
    totals: Totals, window: Window, ours: Mapping[int, int], result_window: int = RESULT_WINDOW
) -> dict[int, int]:
    """The hours that differ, counted from START, and the number of entries missing in each."""
    found = Auditor(totals, CONTRACT, Limits(1000, result_window, 10**9)).compare(window, counts(ours)).differences
    assert found == sorted(found, key=lambda difference: difference.window)
    return {(difference.window.start - START) // HOUR_SECONDS: difference.missing for difference in found}


def test_a_span_that_is_equal_costs_one_request() -> None:
    hours = {hour: 7 + hour % 5 for hour in range(720)}
    totals = Totals(hours)
    assert compare(totals, span(720), hours) == {}
    assert totals.requests == 1


@pytest.mark.parametrize(("window_limit", "ours"), [(RESULT_WINDOW, 5), (RESULT_WINDOW, 4), (10, 5), (10, 3)])
def test_what_was_compared_is_counted_on_both_sides(window_limit: int, ours: int) -> None:
    """This also holds if halves are asked for, or if the API caps its counts."""
    theirs = dict.fromkeys(range(24), 5)
    limits = Limits(1000, window_limit, 10**9)
    result = Auditor(Totals(theirs), CONTRACT, limits).compare(span(24), counts(theirs | {7: ours}))
    assert (result.at_api, result.collected) == (24 * 5, 23 * 5 + ours)


def test_an_empty_span_costs_one_request() -> None:
    totals = Totals({})
    assert compare(totals, span(24), {}) == {}
    assert totals.requests == 1


def test_one_missing_entry_in_a_month_is_found_in_a_dozen_requests() -> None:
    hours = dict.fromkeys(range(720), 10)
    totals = Totals(hours)
    assert compare(totals, span(720), hours | {100: 9}) == {100: 1}
    assert totals.requests <= 12


def test_where_every_hour_differs_each_costs_one_request() -> None:
    totals = Totals(dict.fromkeys(range(48), 10))
    assert compare(totals, span(48), dict.fromkeys(range(48), 8)) == dict.fromkeys(range(48), 2)
    assert totals.requests == 48


PRESENT = (Window(START + 9999 * H, START + 9999 * H + 1),)
TOO_OLD = RejectedError("dateStart is too old", status=400)
OWN = [
    TOO_OLD,
    RejectedError("dateStart is too old", status=404),
    AuthError("dateStart is too old", is_denied=True),
    TransientError("dateStart is too old", status=500),
    TransientError("dateStart is too old"),
    UnusableAnswerError("dateStart is too old", b""),
    BodyTooLargeError("dateStart is too old"),
]
"""How an API may answer for a span that it does not serve."""


class Refusing(Totals):
    """An API that refuses each query that touches one of these hours, counted from START."""

    def __init__(self, hours: Mapping[int, int], refused: Collection[int], error: PollerError = TOO_OLD) -> None:
        super().__init__(hours)
        self.refused = [START + hour * HOUR_SECONDS for hour in refused]
        self.error = error
        self.retried = 0

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        page = super().page(contract, window, offset, limit, is_retried=is_retried)
        if any(start < window.end and window.start < start + HOUR_SECONDS for start in self.refused):
            self.retried += is_retried
            raise self.error
        return page


def _kind(error: PollerError) -> str:
    return f"{type(error).__name__} {getattr(error, 'status', '')}"


@pytest.mark.parametrize("error", OWN, ids=_kind)
@pytest.mark.parametrize(
    ("refused", "named", "most_requests"),
    [
        (range(100), [(0, 100)], 45),
        ([300], [(300, 301)], 40),
        ([359], [(359, 360)], 40),
        ([360], [(360, 361)], 40),
        ([719], [(719, 720)], 40),
        ([300, 301, 500], [(300, 302), (500, 501)], 60),
        (range(720), [(0, 720)], 5),
    ],
    ids=[
        "all that is old",
        "one hour",
        "the last of a half",
        "the first of a half",
        "the last of all",
        "some hours",
        "all",
    ],
)
def test_what_the_api_refuses_is_named_and_the_rest_is_compared(
    refused: Collection[int], named: list[tuple[int, int]], most_requests: int, error: PollerError
) -> None:
    hours = dict.fromkeys(range(720), 10)
    totals = Refusing(hours, refused, error)
    result = Auditor(totals, CONTRACT, LIMITS, PRESENT).compare(span(720), counts(hours | {400: 9}))
    spans = [part.window for part in merged(result.refused)]
    assert spans == [Window(START + first * H, START + last * H) for first, last in named]
    assert all(part.reason == "dateStart is too old" for part in result.refused)
    assert [row.missing for row in result.differences] == ([] if 400 in refused else [1])
    assert totals.requests <= most_requests + 12
    if isinstance(error, TransientError):
        assert totals.retried == 1, "each further try of what fails would take its retries"


@pytest.mark.parametrize("error", OWN, ids=_kind)
def test_where_the_present_is_refused_as_well_it_is_not_the_span(error: PollerError) -> None:
    totals = Refusing({0: 1}, [*range(720), 9999], error)
    for present in (PRESENT, ()):
        with pytest.raises(type(error), match="too old"):
            Auditor(totals, CONTRACT, LIMITS, present).compare(span(720), {})


@pytest.mark.parametrize("error", [AuthError("no (401)"), TransientError("slow down", status=429)])
@pytest.mark.parametrize("most", [0, 1, 2])
def test_what_concerns_the_account_ends_the_audit_whenever_it_comes(error: PollerError, most: int) -> None:
    class Changing(Refusing):
        def page(self, *args: Any, **options: Any) -> Page:
            if self.requests >= most:
                self.error = error
            return super().page(*args, **options)

    with pytest.raises(type(error), match=str(error).partition(" (")[0]):
        Auditor(Changing({}, range(10_000)), CONTRACT, LIMITS, PRESENT).compare(span(720), {})


@pytest.mark.parametrize("error", OWN, ids=_kind)
def test_a_part_that_is_refused_though_the_whole_of_it_was_served_is_set_apart(error: PollerError) -> None:
    class OnlyLong(Refusing):
        """Answers for spans of more than 400 hours, and for shorter ones that do not touch the hour."""

        def page(self, contract: str, window: Window, *args: Any, **options: Any) -> Page:
            self.refused = [] if window.seconds > 400 * H else [START + hour * H]
            return super().page(contract, window, *args, **options)

    hours = dict.fromkeys(range(720), 10)
    for hour in (100, 500):
        totals = OnlyLong(hours, (), error)
        result = Auditor(totals, CONTRACT, LIMITS, PRESENT).compare(span(720), counts(hours | {400: 9}))
        assert [part.window for part in result.refused] == [Window(START + hour * H, START + (hour + 1) * H)]
        assert [row.missing for row in result.differences] == [1]
    totals = OnlyLong(hours, (), AuthError("no (401)"))
    with pytest.raises(AuthError):
        Auditor(totals, CONTRACT, LIMITS, PRESENT).compare(span(720), counts(hours | {400: 9}))


@given(hours=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_each_hour_that_differs_is_found_and_no_span_costs_more_than_a_request_an_hour(
    hours: list[tuple[int, int]],
) -> None:
    theirs = {hour: pair[0] for hour, pair in enumerate(hours)}
    ours = {hour: pair[1] for hour, pair in enumerate(hours)}
    totals = Totals(theirs)
    # Opposite differences may cancel out, and a span with equal sums is not looked into.
    is_one_sided = all(ours[hour] <= theirs[hour] for hour in theirs)
    found = compare(totals, span(len(hours)), ours)
    expected = {hour: max(0, theirs[hour] - ours[hour]) for hour in theirs if theirs[hour] != ours[hour]}
    assert found.items() <= expected.items()
    if is_one_sided:
        assert found == expected
    assert totals.requests <= len(hours)


@given(
    hours=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=40),
    says_capped=st.booleans(),
)
def test_capped_totals_hide_nothing_and_cost_a_request_an_hour_and_one(
    hours: list[tuple[int, int]], says_capped: bool
) -> None:
    theirs = {hour: count for hour, (count, _) in enumerate(hours)}
    ours = {hour: max(0, count - missing) for hour, (count, missing) in enumerate(hours)}
    window = 25
    totals = Totals(theirs, cap=window, says_capped=says_capped)
    found = compare(totals, span(len(hours)), ours, window)
    assert found == {hour: theirs[hour] - ours[hour] for hour in theirs if theirs[hour] != ours[hour]}
    # Each capped answer about a span that we expected below the cap costs one request more, and so does its other half.
    surprises = 1 + max(0, sum(theirs.values()) // window - sum(ours.values()) // window)
    assert totals.requests <= len(hours) + 1 + 2 * surprises


def test_a_busy_day_that_is_equal_costs_few_requests_where_totals_are_capped() -> None:
    hours = dict.fromkeys(range(24), 1000)
    totals = Totals(hours, cap=10_000)
    assert compare(totals, span(24), hours) == {}
    assert totals.requests == 5, "the day, whose total is capped, and its quarters"


@pytest.mark.parametrize(
    ("an_hour", "requests", "capped", "capped_day"),
    [(50, 1, 1, 1), (200, 1, 5, 1), (400, 1, 9, 1), (2000, 1, 65, 9), (9000, 1, 169, 25)],
)
def test_a_week_that_is_equal_costs_as_many_requests_as_the_table_in_docs_sizing_says(
    an_hour: int, requests: int, capped: int, capped_day: int
) -> None:
    for hours, cap, expected in ((168, 0, requests), (168, 10_000, capped), (24, 10_000, capped_day)):
        totals = Totals({}, cap=cap)
        totals.seconds = _Evenly(an_hour, hours)
        assert compare(totals, span(hours), dict.fromkeys(range(hours), an_hour)) == {}
        assert totals.requests == expected
    row = f"| {24 * an_hour:,} | {requests} | {capped} |"
    assert row in (TOP / "docs" / "sizing.md").read_text()


def test_totals_beyond_what_can_be_paged_are_taken_at_their_word_where_they_are_exact() -> None:
    hours = dict.fromkeys(range(24), 1001)
    totals = Totals(hours)
    assert compare(totals, span(24), hours) == {}
    assert totals.requests == 1


@pytest.mark.parametrize("cap", [10_000, 12_000, 50_000])
def test_a_cap_elsewhere_than_expected_invents_no_difference(cap: int) -> None:
    hours = dict.fromkeys(range(24), 3001)
    totals = Totals(hours, cap=cap)
    assert compare(totals, span(24), hours) == {}
    assert compare(totals, span(24), hours | {3: 3000}) == {3: 1}


def test_an_hour_that_holds_more_than_the_api_counts_is_bisected() -> None:
    totals = Totals({1: 30_000}, cap=10_000)
    assert compare(totals, span(3), {1: 29_998}) == {1: 2}
    assert compare(totals, span(3), {1: 30_000}) == {}


def test_a_second_that_holds_more_than_the_api_counts_is_told_as_at_least_that() -> None:
    totals = Totals({0: 12_345}, cap=10_000, is_burst=True)
    assert compare(totals, span(1), {0: 9_000}) == {0: 1_000}


def test_more_collected_than_the_api_shows_differs_but_misses_nothing() -> None:
    found = Auditor(Totals({0: 3}), CONTRACT, LIMITS).compare(span(2), counts({0: 3, 1: 2})).differences
    assert found == [Difference(CONTRACT, Window(START + 3600, START + 7200), 0, 2, 0)]
    assert found[0].missing == 0


def test_what_was_pruned_counts_as_collected_and_is_named() -> None:
    ledger = {START: Count(5, 5), START + HOUR_SECONDS: Count(5, 0)}
    assert Auditor(Totals({0: 5, 1: 5}), CONTRACT, LIMITS).compare(span(2), ledger).differences == []
    found = Auditor(Totals({0: 6, 1: 5}), CONTRACT, LIMITS).compare(span(2), ledger).differences
    assert [(difference.missing, difference.forgotten) for difference in found] == [(1, 5)]


def test_no_request_for_totals_asks_for_more_than_a_month_nor_cuts_an_hour() -> None:
    asked: list[Window] = []

    class Asked(Totals):
        def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
            asked.append(window)
            return super().page(contract, window, offset, limit)

    year = Window(START + 60, START + 365 * 24 * HOUR_SECONDS)
    hours = {0: 60, 719: 5, 720: 7, 8759: 1}  # one entry of the first hour is before the span
    totals = Asked(hours)
    assert compare(totals, year, hours | {0: 59}) == {}
    assert [window.seconds <= MAX_SPAN_SECONDS for window in asked] == [True] * 13
    assert compare(totals, year, hours | {0: 59, 719: 4}) == {719: 1}


class Entries:
    """An API that answers with entries: the identity and the second of each."""

    def __init__(self, entries: Mapping[bytes, int], page_size: int = 3, total: bool = False) -> None:
        self.entries = entries
        self.page_size = page_size
        self.has_total = total

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        inside = [
            Event(second * 1_000_000, identity, b"{}", True, True)
            for identity, second in sorted(self.entries.items())
            if window.start <= second < window.end
        ]
        shown = tuple(inside[offset : offset + min(limit, self.page_size)])
        return Page(shown, len(inside) if self.has_total else None, False, 2 * len(shown), False)


@pytest.mark.parametrize("has_total", [True, False])
def test_reading_finds_each_entry_that_is_not_known_by_its_hour(has_total: bool) -> None:
    entries = {b"a": START + 1, b"b": START + H, b"c": START + 2 * H - 1, b"d": START + 2 * H, b"e": START + 3 * H}
    auditor = Auditor(Entries(entries, total=has_total), CONTRACT, Limits(3, 4, 10**9))
    window = Window(START + 1, START + 3 * H - 10)

    def read(known: bytes, ledger: Mapping[int, Count]) -> list[Difference]:
        return auditor.read(window, ledger, lambda events: [e for e in events if e.identity not in known]).differences

    assert read(b"abcd", {}) == []
    assert read(b"b", {}) == [
        Difference(CONTRACT, Window(START + 1, START + H), 1, 0, 0),
        Difference(CONTRACT, Window(START + H, START + 2 * H), 2, 1, 0),
        Difference(CONTRACT, Window(START + 2 * H, START + 3 * H - 10), 1, 0, 0),
    ]
    # If the ledger forgot identities of an hour, only the counts are compared.
    assert read(b"ad", {START + H: Count(2, 2)}) == []
    assert read(b"abd", {START + H: Count(1, 1)}) == [Difference(CONTRACT, Window(START + H, START + 2 * H), 2, 1, 1)]


class Damaged(Entries):
    """An API with two elements at second `at` that are no entries. It refuses windows that begin before `served_from`."""

    def __init__(self, entries: Mapping[bytes, int], at: int, served_from: int, error: PollerError) -> None:
        super().__init__(entries, page_size=1000, total=True)
        self.at = at
        self.served_from = served_from
        self.error = error

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        if window.start < self.served_from:
            raise self.error
        page = super().page(contract, window, offset, limit)
        if not window.start <= self.at < window.end:
            return page
        broken = tuple(Unreadable(len(page.events), content, "no entry", self.at) for content in (b"7", b"8"))
        return msgspec.structs.replace(page, total=(page.total or 0) + 2, unreadable=broken)


# Without BodyTooLargeError, after which reading sets apart single entries instead of a span.
@pytest.mark.parametrize("error", [error for error in OWN if not isinstance(error, BodyTooLargeError)], ids=_kind)
def test_reading_counts_what_cannot_be_read_as_missing_and_sets_apart_what_is_refused(error: PollerError) -> None:
    entries = {b"a": START + 1, b"b": START + H, b"c": START + 2 * H, b"d": START + 2 * H + 9}
    api = Damaged(entries, START + 2 * H + 5, START + 30, error)
    result = Auditor(api, CONTRACT, Limits(1000, 10_000, 10**9), PRESENT).read(span(3), {}, lambda events: [])
    assert result.differences == [Difference(CONTRACT, Window(START + 2 * H, START + 3 * H), 4, 2, 0)]
    assert [part.window for part in result.refused] == [Window(START, START + 30)]
    assert (result.at_api, result.collected) == (5, 3)
    with pytest.raises(type(error)):
        Auditor(api, CONTRACT, Limits(1000, 10_000, 10**9)).read(span(3), {}, lambda events: [])


def test_whole_hours_are_those_that_a_span_touches() -> None:
    assert whole_hours(Window(NOON + 1, NOON + H + 1)) == Window(NOON, NOON + 2 * H)
    assert whole_hours(Window(NOON, NOON + H)) == Window(NOON, NOON + H)
    assert whole_hours(Window(NOON + H - 1, NOON + H)) == Window(NOON, NOON + H)


def test_an_api_without_totals_says_so() -> None:
    with pytest.raises(NoTotalsError, match="gives no totals"):
        compare(Totals({0: 1}, has_totals=False), span(1), {})


@given(hours=st.lists(st.integers(0, 20), min_size=1, max_size=60), missing=st.integers(0, 3))
def test_totals_that_are_all_said_to_be_at_least_so_many_are_none_and_that_is_found_in_few_requests(
    hours: list[int], missing: int
) -> None:
    theirs = dict(enumerate(hours))
    totals = Totals(theirs, always_at_least=True)
    with pytest.raises(NoTotalsError, match="gives no exact totals"):
        compare(totals, span(len(hours)), {hour: max(0, count - missing) for hour, count in theirs.items()}, 25)
    assert totals.requests <= len(hours) + 1


@pytest.mark.parametrize("cap", [1000, 3000])
def test_a_cap_below_what_can_be_paged_that_is_told_is_one(cap: int) -> None:
    hours = dict.fromkeys(range(24), 700)
    totals = Totals(hours, cap=cap, says_capped=True)
    assert compare(totals, span(24), hours | {3: 699}) == {3: 1}
    assert totals.requests <= 2 * 24


@pytest.mark.parametrize("total", ["none", "at least"])
def test_entries_that_the_api_does_not_count_are_counted_by_reading_them(total: str) -> None:
    class Uncounted(Entries):
        requests = 0

        def page(self, *args: Any, **options: Any) -> Page:
            self.requests += 1
            page = super().page(*args, **options)
            return msgspec.structs.replace(page, total=page.total if total == "at least" else None, is_capped=True)

    entries = {b"%d" % number: START + 86_400 * number for number in range(10)}
    api = Uncounted(entries, page_size=1000, total=True)
    assert Auditor(api, CONTRACT, LIMITS).count(Window(START, START + 5 * 86_400)) == 5
    assert api.requests <= 4


def test_a_span_that_begins_within_an_hour_is_compared_from_there() -> None:
    totals = Totals({0: 60, 1: 10})
    window = Window(START + 1800, START + 2 * HOUR_SECONDS)
    # The ledger has nothing from before collecting began, so the first hour is compared only from then on.
    assert compare(totals, window, {0: 30, 1: 10}) == {}
    assert compare(totals, window, {0: 29, 1: 10}) == {0: 1}


@pytest.mark.parametrize("cap", [0, 100])
@pytest.mark.parametrize("window", [span(5), Window(START + 7, START + 2 * HOUR_SECONDS + 1), Window(START, START + 1)])
def test_entries_are_counted_however_many_the_api_counts_at_once(cap: int, window: Window) -> None:
    totals = Totals({0: 1000, 2: 777, 4: 1}, cap=cap)
    expected = sum(window.start <= second < window.end for second in totals.seconds)
    assert Auditor(totals, CONTRACT, Limits(1000, 100, 10**9)).count(window) == expected


@pytest.mark.parametrize(
    ("asked", "origin", "now", "overlap", "expected"),
    [
        (Window(NOON, NOON + 3 * H), 0, NOON + 9 * H, 600, Window(NOON, NOON + 3 * H)),
        # The hour in which the span begins is compared whole. The hour in which it ends is left out.
        (Window(NOON + 60, NOON + 3 * H - 1), 0, NOON + 9 * H, 600, Window(NOON, NOON + 2 * H)),
        # An hour is closed only when the overlap after it is over, too.
        (Window(NOON, NOON + 3 * H), 0, NOON + 3 * H + 599, 600, Window(NOON, NOON + 2 * H)),
        (Window(NOON, NOON + 3 * H), 0, NOON + 3 * H + 600, 600, Window(NOON, NOON + 3 * H)),
        # The hour in which collecting began is compared from that time on.
        (Window(NOON, NOON + 3 * H), NOON + 60, NOON + 9 * H, 600, Window(NOON + 60, NOON + 3 * H)),
        (Window(NOON + 120, NOON + 3 * H), NOON + 60, NOON + 9 * H, 600, Window(NOON + 60, NOON + 3 * H)),
        # The hours before were never read, so they are no difference.
        (Window(NOON, NOON + 3 * H), NOON + H + 60, NOON + 9 * H, 600, Window(NOON + H + 60, NOON + 3 * H)),
        # No hour is closed.
        (Window(NOON, NOON + H - 1), 0, NOON + 9 * H, 600, None),
        (Window(NOON, NOON + H), 0, NOON + H, 600, None),
        (Window(NOON + 5 * H, NOON + 6 * H), 0, NOON + H, 0, None),
    ],
)
def test_only_whole_hours_that_are_over_are_compared(
    asked: Window, origin: int, now: int, overlap: int, expected: Window | None
) -> None:
    assert parts_of(asked, origin, now, overlap).closed == expected


# The span of a regular audit


def contract(*, origin: int = START, watermark: int, audited_at: int) -> Contract:
    return Contract(CONTRACT, "default", origin, watermark, 0, 0, 0, 0, 0, 0, None, None, "", audited_at)


@given(
    happened_at=st.integers(START, START + 3 * HOUR_SECONDS),
    delay_seconds=st.just(24 * HOUR_SECONDS) | st.integers(0, 24 * HOUR_SECONDS),
    pauses=st.lists(st.integers(1, 100 * HOUR_SECONDS), min_size=1, max_size=40),
    overlap_seconds=st.integers(0, 2 * HOUR_SECONDS),
    lag_seconds=st.integers(0, 2 * HOUR_SECONDS),
)
def test_an_entry_that_is_at_most_a_span_late_is_in_an_audit_after_it_became_visible(
    happened_at: int, delay_seconds: int, pauses: list[int], overlap_seconds: int, lag_seconds: int
) -> None:
    origin = START - HOUR_SECONDS
    closed_at = (happened_at // HOUR_SECONDS + 1) * HOUR_SECONDS + max(overlap_seconds, lag_seconds)
    due_at = max(happened_at + delay_seconds, closed_at)
    audits = [audited_at for audited_at in accumulate(pauses, initial=START) if audited_at < due_at]
    now = max(due_at, audits[-1] + pauses[-1])
    row = contract(origin=origin, watermark=now - lag_seconds, audited_at=audits[-1])
    window = self_audit_span(row, now, 24 * HOUR_SECONDS)
    assert window is not None
    closed = parts_of(window, origin, now, overlap_seconds).closed
    assert closed is not None
    assert closed.start <= happened_at < closed.end


def test_a_regular_audit_stays_between_where_collecting_began_and_the_watermark() -> None:
    now = START + 100 * HOUR_SECONDS

    def looked_at(**row: int) -> Window | None:
        return self_audit_span(contract(**row), now, HOUR_SECONDS)

    an_hour_ago = now - HOUR_SECONDS
    assert looked_at(watermark=now, audited_at=an_hour_ago) == Window(now - 2 * HOUR_SECONDS, now)
    assert looked_at(origin=now - 60, watermark=now - 1, audited_at=an_hour_ago) == Window(now - 60, now - 1)
    assert looked_at(watermark=now - 50 * HOUR_SECONDS, audited_at=an_hour_ago) is None


@pytest.mark.parametrize(("ago", "expected"), [(0, False), (59, False), (60, True), (10**6, True), (-1, True)])
def test_an_audit_is_due_an_interval_after_the_last_or_when_the_clock_was_set_back(ago: int, expected: bool) -> None:
    assert is_due(START - ago, START, 60) is expected


def test_an_audit_after_a_pause_reaches_back_to_the_one_before_however_long_ago_that_was() -> None:
    now = START + 100 * HOUR_SECONDS

    def hours_back(audited_at: int) -> int:
        window = self_audit_span(contract(watermark=now, audited_at=audited_at), now, HOUR_SECONDS)
        assert window is not None
        return (now - window.start) // HOUR_SECONDS

    assert hours_back(now - 30 * HOUR_SECONDS) == 31
    assert hours_back(now - 80 * HOUR_SECONDS) == 81
    assert hours_back(now + HOUR_SECONDS) == 1, "the clock was set back"


def test_an_audit_reaches_back_to_where_the_one_before_ended_that_came_far_behind() -> None:
    now = START + 100 * HOUR_SECONDS
    row = contract(watermark=now, audited_at=now - HOUR_SECONDS)._replace(compared_end=now - 60 * HOUR_SECONDS)
    assert self_audit_span(row, now, HOUR_SECONDS) == Window(now - 61 * HOUR_SECONDS, now)
    assert self_audit_span(row._replace(watermark=now - 61 * HOUR_SECONDS), now, HOUR_SECONDS) is None


def test_an_audit_begins_after_what_the_ledger_has_forgotten() -> None:
    span = Window(START + 600, START + 5 * HOUR_SECONDS)
    third = START + 2 * HOUR_SECONDS
    assert remembered(span, {}) == remembered(span, {START: Count(9, 0), third: Count(9, 0)}) == span
    assert remembered(span, {START: Count(9, 9), third: Count(9, 1), third + HOUR_SECONDS: Count(9, 0)}) == Window(
        third + HOUR_SECONDS, span.end
    )
    assert remembered(span, {START + 4 * HOUR_SECONDS: Count(1, 1)}) is None


# Counting the served entries


@pytest.mark.parametrize("error", OWN, ids=_kind)
def test_what_is_not_served_is_left_out_of_a_count(error: PollerError) -> None:
    totals = Refusing(dict.fromkeys(range(48), 3), range(10), error)
    auditor = Auditor(totals, CONTRACT, LIMITS, PRESENT)
    assert auditor.count_served([span(24), Window(START + 24 * H, START + 48 * H)]) == 3 * 38
    assert auditor.count_served([span(5), Window(START + 24 * H, START + 48 * H)]) == 3 * 24


def test_where_nothing_at_all_is_served_the_reason_is_told() -> None:
    denied = AuthError("no", is_denied=True)
    with pytest.raises(AuthError):
        Auditor(Refusing({}, range(48), denied), CONTRACT, LIMITS).count_served([span(24)])
    with pytest.raises(TransientError, match="slow down"):
        Auditor(Refusing({}, [3], TransientError("slow down", status=429)), CONTRACT, LIMITS).count_served([span(24)])
