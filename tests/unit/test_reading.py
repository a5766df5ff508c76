"""Reading one window from a scripted API: shifting pages, wrong totals, answers that are too large."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import pytest

from poller.core.answers import Page
from poller.core.errors import AuthError, BodyTooLargeError, PollerError, RejectedError, StoppedError, TransientError
from poller.core.events import Event
from poller.core.gaps import DENSE, UNSTABLE, Unread
from poller.core.narrowing import Conduct
from poller.core.reading import Reading, Split, WindowReader
from poller.core.sifting import each_once
from poller.core.windows import Limits, Window, parts_for, split

WINDOW = Window(1000, 1010)
SECOND = Window(1000, 1001)
PRESENT = Window(2000, 2001)
LIMITS = Limits(page_size=3, result_window=1000, window_bytes=10**9)


class Query(NamedTuple):
    """A request, and the number of requests before it."""

    window: Window
    offset: int
    limit: int
    number: int


class Script:
    """An API whose answers are a function of the query. It records the queries."""

    def __init__(self, answer: Callable[[Query], Page]) -> None:
        self._answer = answer
        self.queries: list[Query] = []

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        assert contract == "1"
        query = Query(window, offset, limit, len(self.queries))
        self.queries.append(query)
        return self._answer(query)


def entry(name: str, *, second: int = 1000, has_id: bool = True, weight: int = 2, is_timed: bool = True) -> Event:
    time_us = second * 1_000_000 + 900_000 if is_timed else 0
    return Event(time_us, name.encode(), b"x" * weight, has_id, is_timed)


def named(names: str, *, has_id: bool = True) -> list[Event]:
    """`"abc"` gives three entries, a second apart, newest first."""
    return [entry(name, second=1009 - ord(name) % 10, has_id=has_id) for name in names]


def page(events: Sequence[Event], total: int | None, *, is_capped: bool = False) -> Page:
    return Page(tuple(events), total, is_capped, sum(len(event.line) for event in events), False)


def served(events: Sequence[Event], query: Query, total: int | None = None) -> Page:
    return page(events[query.offset : query.offset + query.limit], len(events) if total is None else total)


def read(script: Script, window: Window = WINDOW, limits: Limits = LIMITS) -> Reading:
    result = WindowReader(script, "1", limits).read(window)
    assert isinstance(result, Reading)
    return result


def identities(reading: Reading) -> str:
    return "".join(sorted(event.identity.decode() for event in reading.events))


@pytest.mark.parametrize("has_id", [True, False], ids=["with ids", "without ids"])
def test_a_quiet_window_takes_one_request_a_page_and_no_more(has_id: bool) -> None:
    script = Script(lambda query: served(named("abcdefg", has_id=has_id), query))
    reading = read(script)
    assert [(query.offset, query.limit) for query in script.queries] == [(0, 3), (3, 3), (6, 3)]
    assert identities(reading) == "abcdefg"
    assert [event.time_us for event in reading.events] == sorted(event.time_us for event in reading.events)
    assert (reading.fetched, reading.is_complete) == (7, True)


def test_an_empty_window_takes_one_request() -> None:
    script = Script(lambda query: page((), 0))
    assert read(script) == Reading([], 0)
    assert len(script.queries) == 1


def test_an_api_that_caps_the_limit_is_read_to_the_end_by_what_comes() -> None:
    script = Script(lambda query: served(named("abcdefg"), query._replace(limit=2)))
    assert identities(read(script)) == "abcdefg"
    assert [query.offset for query in script.queries] == [0, 2, 4, 6]


def test_an_api_that_gives_more_than_asked_for_is_read_to_the_end_as_well() -> None:
    script = Script(lambda query: served(named("abcdefg"), query._replace(limit=5)))
    assert identities(read(script)) == "abcdefg"


def test_without_a_total_pages_are_read_until_one_is_empty() -> None:
    events = named("abcdef")
    script = Script(lambda query: page(events[query.offset : query.offset + query.limit], None))
    assert identities(read(script)) == "abcdef"
    assert [query.offset for query in script.queries] == [0, 3, 6]


@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
@pytest.mark.parametrize("has_id", [True, False], ids=["with ids", "without ids"])
def test_an_api_that_heeds_no_offset_and_gives_no_total_is_asked_once_more_and_believed(
    names: str, has_id: bool
) -> None:
    script = Script(lambda query: page(named(names, has_id=has_id), None))
    reading = read(script)
    assert (identities(reading), reading.is_complete) == (names, True)
    assert len(script.queries) == 2


def test_an_api_that_heeds_no_offset_and_counts_more_than_it_shows_is_not_believed() -> None:
    script = Script(lambda query: page(named("ab"), 9))
    assert WindowReader(script, "1", LIMITS).read(WINDOW) == Split(split(WINDOW, 2))
    assert len(script.queries) < 20


def test_without_a_total_equal_entries_that_fill_a_page_are_followed_by_more() -> None:
    events = named("aaaaaaa", has_id=False)
    reading = read(Script(lambda query: page(events[query.offset : query.offset + query.limit], None)))
    assert len(reading.events) == 7


# Pages that shift while they are read

NEWEST_FIRST = [
    # visible at the first, second, ... request; the last repeats
    pytest.param(["abcdef", "Nabcdef"], "Nabcdef", id="one entry more after the first page"),
    pytest.param(["abcdef", "NMLKabcdef"], "KLMNabcdef", id="more than a page more"),
    pytest.param(["abcdef", "abcdNef"], "Nabcdef", id="late, in what is still to come"),
    pytest.param(["abcdef", "aNbcdef"], "Nabcdef", id="late, in what has come"),
    pytest.param(["abc", "abcN"], "abc", id="after a window of one page was read"),
    pytest.param(["abcdef", "abcdefN", "abcdefNM"], "MNabcdef", id="growing at its end: oldest first"),
    pytest.param(["abcdef", "Nabcdef", "MNabcdef", "LMNabcdef", "KLMNabcdef"], "KLMNabcdef", id="at every page"),
]


@pytest.mark.parametrize("has_id", [True, False], ids=["with ids", "without ids"])
@pytest.mark.parametrize(("shown", "expected"), NEWEST_FIRST)
def test_a_page_that_shifts_may_repeat_but_neither_skips_nor_doubles(
    shown: list[str], expected: str, has_id: bool
) -> None:
    script = Script(lambda query: served(named(shown[min(query.number, len(shown) - 1)], has_id=has_id), query))
    reading = read(script)
    assert identities(reading) == "".join(sorted(expected))
    assert reading.is_complete
    assert reading.fetched >= len(reading.events)


def test_two_truly_equal_entries_stay_two_whether_or_not_a_page_lies_between_them() -> None:
    for names in ("aabcd", "abbcd", "abccd", "aaaaa"):
        reading = read(Script(lambda query, names=names: served(named(names, has_id=False), query)))
        assert len(reading.events) == 5
        assert len({event.identity for event in reading.events}) == 5
        assert max(event.ordinal for event in reading.events) == max(map(names.count, names)) - 1


def test_equal_entries_have_the_same_identities_in_every_read() -> None:
    orders = ("aabcd", "dcbaa", "abcda")
    found = [
        {
            event.identity
            for event in read(Script(lambda query, names=names: served(named(names, has_id=False), query))).events
        }
        for names in orders
    ]
    assert found[0] == found[1] == found[2]


def test_an_entry_with_an_id_that_comes_twice_on_one_page_is_one() -> None:
    reading = read(Script(lambda query: served(named("aab"), query)))
    assert identities(reading) == "ab"
    assert (reading.fetched, reading.is_complete) == (3, True)


def test_a_second_that_never_holds_still_is_not_claimed_to_be_complete() -> None:
    def growing(query: Query) -> Page:
        names = [entry(f"{number:04d}", has_id=False) for number in range(query.number * 2 + 8)]
        return served(names[::-1], query)

    script = Script(growing)
    reading = read(script, SECOND, limits=Limits(3, 10**6, 10**9))
    (unread,) = reading.unread
    assert (unread.window, unread.kind) == (SECOND, UNSTABLE)
    assert "different ones in 5 readings" in unread.reason
    assert len([query for query in script.queries if query.offset == 0]) == 5


def test_of_entries_without_ids_that_come_in_another_order_with_each_page_none_is_invented() -> None:
    dice = random.Random(1)
    script = Script(lambda query: served(named("".join(dice.sample("abcdefgh", 8)), has_id=False), query))
    reading = read(script, SECOND)
    assert (identities(reading), {event.ordinal for event in reading.events}) == ("abcdefgh", {0})
    assert [unread.kind for unread in reading.unread] == [UNSTABLE]


def test_equal_entries_on_one_page_stay_apart_where_the_count_is_wrong() -> None:
    reading = read(Script(lambda query: page(named("aab", has_id=False)[query.offset :], 4)), SECOND)
    assert sorted(event.ordinal for event in reading.events) == [0, 0, 1]
    assert [unread.kind for unread in reading.unread] == [UNSTABLE]


def test_a_window_that_grows_with_every_page_is_read_up_to_where_its_last_read_began() -> None:
    # Each request adds one entry, the newest. The newest come first.
    names = [f"{number:03}" for number in range(100)]
    script = Script(lambda query: served([entry(name) for name in names[7 + query.number :: -1]], query))
    reading = read(script)
    starts = [query.number for query in script.queries if query.offset == 0]
    assert len(starts) == 5
    assert identities(reading) == "".join(names[: 7 + starts[-1] + 1])
    assert reading.is_complete


def test_pages_that_repeat_what_came_in_place_of_what_did_not_are_not_believed() -> None:
    # Two replicas of the API sort equal times differently, and answer in turn: every sweep has `c` twice and `d` never, and
    # the right count.
    replicas = (named("abcdef"), named("abdcef"))
    script = Script(lambda query: served(replicas[query.number % 2], query))
    result = WindowReader(script, "1", LIMITS).read(WINDOW)
    assert isinstance(result, Split) or identities(result) == "abcdef"


@pytest.mark.parametrize("seconds", [10, 11])
def test_an_entry_that_comes_twice_each_time_may_hide_another_so_the_window_is_halved(seconds: int) -> None:
    replicas = (named("abcdef"), named("abdcef"))
    script = Script(lambda query: served(replicas[query.number % 2], query))
    window = Window(1000, 1000 + seconds)
    assert WindowReader(script, "1", LIMITS).read(window) == Split(split(window, 2))


def test_of_a_second_in_which_an_entry_comes_twice_each_time_nobody_says_that_it_is_complete() -> None:
    replicas = (named("abcdef"), named("abdcef"))
    reading = read(Script(lambda query: served(replicas[query.number % 2], query)), SECOND)
    assert (identities(reading), reading.is_complete) == ("abcef", False)


def test_an_api_that_ignores_the_offset_is_not_believed() -> None:
    script = Script(lambda query: page(named("abc"), 6))
    result = WindowReader(script, "1", LIMITS).read(WINDOW)
    assert isinstance(result, Split) or not result.is_complete


# Totals that differ from the number of entries


def test_a_page_that_is_empty_before_the_total_is_reached_ends_nothing() -> None:
    events = named("abcdef")
    script = Script(
        lambda query: page((), 6) if query.number == 1 else page(events[query.offset : query.offset + query.limit], 6)
    )
    assert identities(read(script)) == "abcdef"


@pytest.mark.parametrize("held", ["", "a", "abc", "abcd"])
def test_of_a_second_whose_total_is_never_reached_all_that_is_served_comes_and_it_is_called_unread(held: str) -> None:
    script = Script(lambda query: page(named(held)[query.offset : query.offset + query.limit], 6))
    reading = read(script, SECOND)
    assert identities(reading) == held
    reason = f"the API counts 6, and showed {len(held)} different ones in 5 readings"
    assert reading.unread == (Unread(SECOND, UNSTABLE, reason),)
    assert len(script.queries) < 30


def test_a_total_that_is_too_small_on_one_page_is_corrected_by_the_next_read() -> None:
    script = Script(lambda query: served(named("abcdef"), query, 2 if query.number == 0 else 6))
    assert identities(read(script)) == "abcdef"
    assert len(script.queries) == 2  # the last total fits, and each entry has an id: no need to read again


def test_a_total_below_what_has_come_is_not_the_end() -> None:
    script = Script(lambda query: served(named("abcdef"), query, 2))
    assert identities(read(script)) == "abcdef"


@pytest.mark.parametrize("has_relation", [True, False])
def test_a_capped_total_is_read_past_where_the_api_serves_more(has_relation: bool) -> None:
    # Elasticsearch stops counting at 10,000, with or without saying so, even if `result_window` is larger.
    events = [entry(f"{number:05d}") for number in range(12_000)]
    script = Script(
        lambda query: page(events[query.offset : query.offset + query.limit], 10_000, is_capped=has_relation)
    )
    reading = read(script, SECOND, Limits(page_size=1000, result_window=20_000, window_bytes=10**9))
    assert len(reading.events) == 12_000
    assert reading.is_complete


@pytest.mark.parametrize(("names", "requests"), [("a", 2), ("abc", 2), ("abcdefg", 16)])
def test_a_total_of_at_least_what_has_come_costs_one_request_more_and_no_halves(names: str, requests: int) -> None:
    def answer(query: Query) -> Page:
        inside = [event for event in named(names) if query.window.start <= event.time_us // 10**6 < query.window.end]
        return page(inside[query.offset : query.offset + query.limit], len(inside), is_capped=True)

    script = Script(answer)
    readings = list(WindowReader(script, "1", LIMITS).read_all(WINDOW))
    assert sum(len(reading.events) for reading in readings) == len(names)
    assert all(reading.is_complete for reading in readings)
    assert len(script.queries) <= requests


# Windows that are too large


@pytest.mark.parametrize(
    ("total", "is_capped", "parts"),
    [(1000, False, 2), (1000, True, 2), (500, True, 2), (4000, False, 5), (10**9, False, 10), (999, True, 2)],
)
def test_a_window_beyond_what_an_offset_reaches_is_split_by_its_first_page(
    total: int, is_capped: bool, parts: int
) -> None:
    script = Script(lambda query: page(named("abc"), total, is_capped=is_capped))
    result = WindowReader(script, "1", LIMITS).read(WINDOW)
    assert isinstance(result, Split)
    assert len(result.windows) == parts
    assert len(script.queries) == 1


@pytest.mark.parametrize(
    ("seconds", "pieces"),
    [
        # A quarter of all entries, newest first, in 399 seconds: four times that span is split. The time before is one window.
        (range(9998, 9598, -2), [Window(0, 8403), *split(Window(8403, 10000), 2)]),
        (range(9598, 9198, -2), [Window(0, 8003), *split(Window(8003, 10000), 2)]),  # the rest after it is short
        (range(4998, 4598, -2), [Window(0, 3403), *split(Window(3403, 4999), 2), Window(4999, 10000)]),
        (range(2000, 2400, 2), [Window(0, 2000), *split(Window(2000, 3596), 2), Window(3596, 10000)]),  # oldest first
        (range(0, 400, 2), [*split(Window(0, 1596), 2), Window(1596, 10000)]),
        (range(9000, 9200), [Window(0, 8750), *split(Window(8750, 10000), 2)]),  # denser: an eighth at least
        ([0] * 200, [*split(Window(0, 1250), 2), Window(1250, 10000)]),
        ([9999] * 200, [Window(0, 8750), *split(Window(8750, 10000), 2)]),
        # Split evenly: entries in no order, of the whole window; of nearly all of it; too few; with a time outside it.
        ([*range(0, 10000, 100), *range(50, 10000, 100)], split(Window(0, 10000), 2)),
        (range(9990, 7990, -10), split(Window(0, 10000), 2)),
        (range(9998, 9600, -2), split(Window(0, 10000), 2)),
        ([10000] * 200, split(Window(0, 10000), 2)),
        # The first and the last entry show at which end of the window the page is.
        ([4500, 4400, *[4600] * 197, 4300], [Window(0, 3351), *split(Window(3351, 4601), 2), Window(4601, 10000)]),
        ([4500, 4400, *[4400] * 197, 4600], [Window(0, 4400), *split(Window(4400, 5650), 2), Window(5650, 10000)]),
        ([4500, 4300, *[4300] * 197, 4400], [Window(0, 3251), *split(Window(3251, 4501), 2), Window(4501, 10000)]),
    ],
)
def test_a_window_is_cut_where_its_first_page_says_that_most_of_it_is(
    seconds: Sequence[int], pieces: list[Window]
) -> None:
    shown = [entry(f"{number}", second=second) for number, second in enumerate(seconds)]
    script = Script(lambda query: page(shown, 800))
    result = WindowReader(script, "1", Limits(200, 799, 10**9)).read(Window(0, 10000))
    assert result == Split(pieces)


@pytest.mark.parametrize(
    ("window", "seconds", "total", "result_window", "pieces"),
    [
        # The dense span is up to three quarters of the window, and the rest is longer than a fifth of that span.
        (Window(0, 10000), [0, 1874], 800, 200, [*split(Window(0, 7500), 5), Window(7500, 10000)]),
        (Window(0, 10000), [0, 1875], 800, 200, split(Window(0, 10000), 5)),
        # The dense span has at least two seconds.
        (Window(0, 15), [5], 250, 249, [Window(0, 5), Window(5, 6), Window(6, 7), Window(7, 15)]),
        (Window(0, 3), [1], 250, 249, split(Window(0, 3), 2)),
    ],
)
def test_how_much_of_a_window_is_cut(
    window: Window, seconds: Sequence[int], total: int, result_window: int, pieces: list[Window]
) -> None:
    shown = [entry(f"{number}", second=seconds[number % len(seconds)]) for number in range(200)]
    script = Script(lambda query: page(shown, total))
    assert WindowReader(script, "1", Limits(200, result_window, 10**9)).read(window) == Split(pieces)


@pytest.mark.parametrize("total", [10_000, 10**19])
def test_a_count_far_above_what_is_served_does_not_cost_a_request_a_second(total: int) -> None:
    hour = Window(0, 3600)
    entries = [entry(f"{second}", second=second) for second in range(30, 3600, 60)]

    def answer(query: Query) -> Page:
        within = [event for event in entries if query.window.start <= event.time_us // 10**6 < query.window.end]
        return served(within, query, total)

    script = Script(answer)
    readings = list(WindowReader(script, "1", LIMITS._replace(page_size=1000)).read_all(hour))
    assert sum(len(reading.events) for reading in readings) == 60
    assert not any(reading.is_complete for reading in readings)
    assert len(script.queries) < 100


def test_a_count_of_which_the_next_page_fails_is_not_believed_either() -> None:
    def answer(query: Query) -> Page:
        if query.offset:
            raise TransientError("no answer")
        return served(named("ab"), query, 10**19)

    reader = WindowReader(Script(answer), "1", LIMITS, Conduct((PRESENT,), is_failing=True))
    assert reader.read(WINDOW) == Split(split(WINDOW, 2))


@pytest.mark.parametrize("total", [2, 10**19])
def test_a_first_page_that_is_all_and_too_heavy_is_split_by_its_weight_whatever_it_counts(total: int) -> None:
    heavy = [entry("a", second=1001, weight=40), entry("b", second=1008, weight=40)]
    script = Script(lambda query: served(heavy, query, total))
    result = WindowReader(script, "1", LIMITS._replace(window_bytes=60)).read(WINDOW)
    assert isinstance(result, Split)
    assert len(result.windows) == 2


def test_an_api_that_gives_less_than_asked_for_is_believed_where_more_follows() -> None:
    script = Script(lambda query: served(named("abcdefg"), query._replace(limit=2), 5000))
    result = WindowReader(script, "1", LIMITS).read(WINDOW)
    assert isinstance(result, Split)
    assert len(result.windows) > 2
    assert [query.offset for query in script.queries] == [0, 2]


def test_a_count_that_is_known_to_be_wrong_costs_one_request_more_than_a_right_one() -> None:
    script = Script(lambda query: served(named("abc"), query, 4))
    reading = WindowReader(script, "1", LIMITS, Conduct(is_exact=False)).read(WINDOW)
    assert isinstance(reading, Reading)
    assert (identities(reading), [unread.window for unread in reading.unread]) == ("abc", [WINDOW])
    assert reading.unread[0].reason == "the API counts 4, and showed 3 different ones in 1 reading"
    assert len(script.queries) == 2


def test_a_window_that_an_offset_just_reaches_is_read_as_it_is() -> None:
    events = [entry(f"{number:03d}") for number in range(999)]
    reading = read(Script(lambda query: served(events, query)))
    assert len(reading.events) == 999


@pytest.mark.parametrize(
    ("error", "offset", "is_split"),
    [
        (RejectedError("no", status=400), 0, False),
        (RejectedError("no", status=400), 3, True),
        (RejectedError("no", status=404), 3, True),
        (RejectedError("no", status=404), 0, False),
        (RejectedError("no", status=302), 0, False),
        (TransientError("no", status=500), 3, True),
        (TransientError("no", status=500), 0, False),
        (TransientError("no", status=503), 3, False),
        (TransientError("no"), 3, False),
        (AuthError("no"), 3, False),
        (StoppedError("asked to stop"), 3, False),
    ],
    ids=str,
)
def test_only_a_refusal_that_may_be_about_size_splits(error: PollerError, offset: int, is_split: bool) -> None:
    def answer(query: Query) -> Page:
        if query.offset == offset:
            raise error
        return served(named("abcdef"), query)

    reader = WindowReader(Script(answer), "1", LIMITS)
    if is_split:
        assert reader.read(WINDOW) == Split(split(WINDOW, 2))
    else:
        with pytest.raises(type(error)) as raised:
            reader.read(WINDOW)
        assert raised.value is error


@pytest.mark.parametrize(
    "error", [RejectedError("no", status=400), TransientError("no", status=500)], ids=["400", "500"]
)
def test_of_a_second_that_is_too_dense_all_that_is_served_comes_and_it_is_called_incomplete(error: PollerError) -> None:
    def answer(query: Query) -> Page:
        if query.offset + query.limit > 6:
            raise error
        return served(named("abcdefgh"), query)

    reading = read(Script(answer), SECOND)
    assert identities(reading) == "abcdef"
    assert not reading.is_complete


def test_of_a_second_beyond_the_result_window_as_much_comes_as_fits() -> None:
    script = Script(lambda query: served(named("abcdefgh"), query))
    reading = read(script, SECOND, Limits(3, 7, 10**9))
    assert identities(reading) == "abcdefg"
    assert not reading.is_complete
    assert max(query.offset + query.limit for query in script.queries) == 7


def test_of_a_second_that_is_heavier_than_memory_may_be_as_much_comes_as_fits() -> None:
    def heavy(query: Query) -> Page:
        return msgspec.structs.replace(served(named("abcdefghi"), query), weight_bytes=17 * 1024 * 1024)

    reading = read(Script(heavy), SECOND, LIMITS._replace(window_bytes=16 * 1024 * 1024))
    (unread,) = reading.unread
    assert (unread.kind, unread.window, identities(reading)) == (DENSE, SECOND, "abcde")
    assert "more than 34 MiB of entries in one second" in unread.reason
    # With more memory, the same second is read whole.
    assert identities(read(Script(heavy), SECOND, LIMITS._replace(window_bytes=1024 * 1024 * 1024))) == "abcdefghi"


def test_no_more_is_asked_for_than_an_offset_reaches() -> None:
    script = Script(lambda query: page(named("abcdefgh")[query.offset : query.offset + query.limit], None))
    assert WindowReader(script, "1", Limits(3, 4, 10**9)).read(WINDOW) == Split(split(WINDOW, 2))
    assert [query.limit for query in script.queries] == [3, 1]


@pytest.mark.parametrize(("days", "limits"), [(20, [1000, 1000]), (21, [20, 1000])])
def test_of_weeks_a_few_entries_are_asked_for_at_first_to_see_how_many_there_are(days: int, limits: list[int]) -> None:
    events = [entry(f"{number:04}") for number in range(1010)]
    script = Script(lambda query: served(events, query))
    read(script, Window(0, days * 86_400), Limits(1000, 10_000, 10**9))
    assert [query.limit for query in script.queries][:2] == limits


def test_a_second_that_is_refused_whole_fails_with_the_refusal() -> None:
    def refuse(query: Query) -> Page:
        raise RejectedError("no", status=400)

    with pytest.raises(RejectedError):
        WindowReader(Script(refuse), "1", LIMITS).read(SECOND)


# Weight


def test_pages_shrink_until_an_answer_fits_and_grow_again_slowly() -> None:
    def answer(query: Query) -> Page:
        if query.limit > 10:
            raise BodyTooLargeError("the answer is larger than 10 bytes")
        return served([entry(f"{number:03d}") for number in range(200)], query)

    script = Script(answer)
    reading = read(script, limits=Limits(1000, 10_000, 10**9))
    assert len(reading.events) == 200
    assert [query.limit for query in script.queries[:4]] == [1000, 125, 15, 1]


def test_a_reader_remembers_the_page_size_from_window_to_window() -> None:
    def answer(query: Query) -> Page:
        if query.limit > 300:
            raise BodyTooLargeError("the answer is larger than 10 bytes")
        return served(named("abc"), query)

    script = Script(answer)
    reader = WindowReader(script, "1", Limits(1000, 10_000, 10**9))
    reader.read(WINDOW)
    reader.read(WINDOW)
    assert [query.limit for query in script.queries] == [1000, 125, 250]


def test_entries_that_are_all_too_large_fail_with_what_to_do() -> None:
    def refuse(query: Query) -> Page:
        raise BodyTooLargeError("the answer is larger than 10 bytes")

    with pytest.raises(TransientError, match="too large to read") as raised:
        WindowReader(Script(refuse), "1", LIMITS).read(WINDOW)
    assert str(raised.value).startswith("contract 1: an entry is too large to read")
    assert "raise api.max_page_bytes" in str(raised.value)


def test_a_window_that_would_weigh_too_much_is_split_by_weight() -> None:
    script = Script(lambda query: page([entry(name, weight=100) for name in "abc"], 100))
    result = WindowReader(script, "1", Limits(3, 1000, 2000)).read(WINDOW)
    assert isinstance(result, Split)
    assert len(result.windows) == parts_for(100 * 100, 2000)


def test_heavy_entries_are_asked_for_a_few_at_a_time() -> None:
    events = [entry(name, weight=100) for name in "abcdefghi"]
    script = Script(lambda query: served(events, query))
    assert len(read(script, SECOND, Limits(3, 1000, 250)).events) == 9
    assert [query.limit for query in script.queries] == [3, 2, 2, 2]


def test_an_entry_heavier_than_a_window_may_be_is_asked_for_alone() -> None:
    events = [entry(name, weight=100) for name in "abcde"]
    script = Script(lambda query: served(events, query))
    assert len(read(script, SECOND, Limits(3, 1000, 50)).events) == 5
    assert [query.limit for query in script.queries] == [3, 1, 1]


LONG = Window(1000, 2000)


@pytest.mark.parametrize(
    ("weights", "total", "window_bytes", "parts"),
    [
        ([100, 100, 100], 3, 300, 1),  # exactly the maximum
        ([100, 100, 100], 3, 299, 2),
        ([100, 100, 100], 100, 250, 56),  # too heavy already: the entries to come count, too, at two a page
        ([100, 100, 100], None, 250, 2),  # no total to estimate with
        ([10, 10, 10, 100, 100, 100, 100], 7, 250, 2),  # later ones are heavier
        ([10, 10, 10, 90, 90, 90], 6, 300, 1),  # all together are not too heavy
    ],
)
def test_into_how_many_parts_a_window_is_split_by_weight(
    weights: list[int], total: int | None, window_bytes: int, parts: int
) -> None:
    events = [entry(f"{number}", weight=weight) for number, weight in enumerate(weights)]
    script = Script(lambda query: page(events[query.offset : query.offset + query.limit], total))
    result = WindowReader(script, "1", Limits(3, 1000, window_bytes)).read(LONG)
    assert (result.windows if isinstance(result, Split) else [LONG]) == (split(LONG, parts) if parts > 1 else [LONG])


@pytest.mark.parametrize("says_total", [True, False])
def test_a_window_that_turns_out_heavy_only_later_is_split_all_the_same(says_total: bool) -> None:
    # The first page is light, or there is no total to estimate with: only the entries so far count.
    events = [entry(f"{number:03d}", weight=2 if number < 3 and says_total else 1000) for number in range(300)]
    held = []

    def answer(query: Query) -> Page:
        found = events[query.offset : query.offset + query.limit]
        held.append(sum(len(event.line) for event in events[: query.offset]))
        return page(found, len(events) if says_total else None)

    result = WindowReader(Script(answer), "1", Limits(3, 1000, 20_000)).read(WINDOW)
    assert isinstance(result, Split)
    assert max(held) <= 2 * 20_000


# Entries without a time


def test_an_entry_without_a_time_gets_the_last_second_of_its_window() -> None:
    reading = read(Script(lambda query: page([entry("a", is_timed=False), entry("b", second=1003)], 2)))
    assert [(event.identity, event.time_us, event.is_timed) for event in reading.events] == [
        (b"b", 1003 * 1_000_000 + 900_000, True),
        (b"a", 1009 * 1_000_000, False),
    ]


@pytest.mark.parametrize("days", [-11_000, -32, -30, 30, 32, 11_000])
def test_an_entry_with_a_time_far_outside_of_its_window_is_taken_as_of_that_window(days: int) -> None:
    window = Window(1_900_000_000, 1_900_003_600)
    second = (window.end if days > 0 else window.start) + 86_400 * days
    (event,) = each_once(window, [entry("a", second=second)])
    is_near = abs(days) <= 31
    assert (event.time_us // 1_000_000, event.is_timed) == (second if is_near else window.end - 1, is_near)
    assert event.identity == entry("a").identity
