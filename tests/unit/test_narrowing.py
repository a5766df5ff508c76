"""Which parts of a window can be read: refusals by age or in a span, failures, invalid entries, shared ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from poller.core.answers import Page, Unreadable, parse_page
from poller.core.errors import (
    AuthError,
    BodyTooLargeError,
    PollerError,
    RejectedError,
    TransientError,
    UnusableAnswerError,
)
from poller.core.events import Event
from poller.core.gaps import (
    DENSE,
    FAILING,
    REFUSED,
    UNREADABLE,
    UNSTABLE,
    Unread,
    in_turn,
    merged,
    summary,
    wait_seconds,
    without,
)
from poller.core.narrowing import Conduct, Narrowing, _moved_edge, samples_of
from poller.core.reading import Reading, Split, WindowReader
from poller.core.sifting import span_of, told_apart
from poller.core.windows import Limits, Window, around, split

LIMITS = Limits(page_size=100, result_window=1000, window_bytes=10**9)
PRESENT = Window(100_000, 100_001)
NORMAL = Conduct((PRESENT,))
AGAIN = Conduct((PRESENT,), is_failing=True)
TRIAL = Conduct((PRESENT,), is_failing=True, is_trial=True)


class Api:
    """An API with an entry a second, newest first. `rule` may raise an error, or return another page than the usual one."""

    def __init__(self, rule: Callable[[Window, int, int, Page], Page | None], *, every: int = 1) -> None:
        self._rule = rule
        self._every = every
        self.asked: list[tuple[Window, int, int]] = []

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.asked.append((window, offset, limit))
        seconds = range(-(-window.start // self._every) * self._every, window.end, self._every)[::-1]
        events = tuple(
            Event(second * 1_000_000, b"%016d" % second, b"{}") for second in seconds[offset : offset + limit]
        )
        usual = Page(events, len(seconds), False, 2 * len(events), False)
        return self._rule(window, offset, limit, usual) or usual


def read(api: Api, window: Window, conduct: Conduct = NORMAL) -> tuple[set[int], list[Unread]]:
    """Read as the collector does.  Returns: the seconds of the entries that came, and the unread parts."""
    reader = WindowReader(api, "1", LIMITS, conduct)
    todo, seconds, unread = [window], set(), []
    while todo:
        result = reader.read(todo.pop(0))
        if isinstance(result, Split):
            todo[:0] = result.windows
        else:
            seconds |= {event.time_us // 1_000_000 for event in result.events}
            unread += result.unread
    return seconds, merged(unread)


def refusing(start: int, end: int, error: Callable[[], PollerError] = lambda: RejectedError("no", status=400)) -> Api:
    def rule(window: Window, offset: int, limit: int, usual: Page) -> None:
        if window.start < end and start < window.end:
            raise error()

    return Api(rule)


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (0, 50), (0, 99), (0, 100), (99, 100), (40, 41), (40, 60), (10, 100), (33, 35)],
)
@pytest.mark.parametrize("status", [400, 403, 404, 410, 422, 451])
def test_of_a_window_with_a_refused_span_all_else_is_read(start: int, end: int, status: int) -> None:
    api = refusing(
        start, end, lambda: AuthError("no", is_denied=True) if status == 403 else RejectedError("no", status=status)
    )
    seconds, unread = read(api, Window(0, 100))
    assert unread == [Unread(Window(start, end), REFUSED, "no")]
    assert seconds == set(range(100)) - set(range(start, end))


def test_a_refusal_for_age_takes_few_requests_however_long_the_window_is() -> None:
    api = Api(
        lambda window, *rest: _raise(RejectedError("too old", status=400)) if window.start < 700_000 else None,
        every=9999,
    )
    seconds, unread = read(api, Window(0, 2_592_000), Conduct((Window(9_000_000, 9_000_001),)))
    assert unread == [Unread(Window(0, 700_000), REFUSED, "too old")]
    assert min(seconds) >= 700_000
    assert len(api.asked) < 75


def test_an_age_that_grows_while_we_ask_is_caught_up_with() -> None:
    oldest = [700_000.0]

    def rule(window: Window, offset: int, limit: int, usual: Page) -> None:
        oldest[0] += 0.2  # 0.1 s for a request at ten a second, and 0.1 s for its answer
        if window.start < oldest[0]:
            raise RejectedError("too old", status=400)

    api = Api(rule, every=9999)
    _, (gap,) = read(api, Window(0, 2_592_000), Conduct((Window(9_000_000, 9_000_001),)))
    assert gap.window.start == 0
    assert oldest[0] <= gap.window.end + 20
    assert gap.window.end - 700_000 < 100
    assert len(api.asked) < 100


def test_a_refusal_of_a_moment_is_no_gap() -> None:
    refusals = iter([RejectedError("no", status=400)])

    def rule(window: Window, offset: int, limit: int, usual: Page) -> None:
        for error in refusals:
            raise error

    assert read(Api(rule), Window(0, 100)) == (set(range(100)), [])


def _raise(error: PollerError) -> None:
    raise error


def _raise_unless(is_served: bool) -> None:
    if not is_served:
        raise RejectedError("no", status=400)


@pytest.mark.parametrize("conduct", [Conduct(), NORMAL])
def test_what_the_api_refuses_of_the_present_as_well_is_no_matter_of_the_window(conduct: Conduct) -> None:
    api = refusing(0, 10**6)
    with pytest.raises(RejectedError):
        read(api, Window(0, 100), conduct)


@pytest.mark.parametrize(
    "error",
    [AuthError("401"), TransientError("429", status=429)],
    ids=str,
)
@pytest.mark.parametrize("conduct", [NORMAL, AGAIN, TRIAL])
def test_what_concerns_more_than_a_window_is_raised(error: PollerError, conduct: Conduct) -> None:
    with pytest.raises(type(error)):
        read(refusing(0, 50, lambda: error), Window(0, 100), conduct)


def test_a_probe_that_meets_what_concerns_more_raises_it() -> None:
    api = Api(
        lambda window, *rest: _raise(
            RejectedError("no", status=400) if window.seconds > 1 else TransientError("429", status=429)
        )
    )
    with pytest.raises(TransientError, match="429"):
        read(api, Window(0, 100))


@pytest.mark.parametrize("status", [407, 408, 500, 502, 503, 504, 511, 599, None])
def test_a_failure_is_the_windows_own_only_the_second_time(status: int | None) -> None:
    api = refusing(40, 60, lambda: TransientError("500", status=status))
    with pytest.raises(TransientError):
        read(api, Window(0, 100))
    seconds, unread = read(api, Window(0, 100), AGAIN)
    assert unread == [Unread(Window(40, 60), FAILING, "500")]
    assert len(seconds) == 80


def test_a_failure_is_not_the_windows_own_if_the_api_is_down_by_the_time_that_is_known() -> None:
    answers = iter([True, False])

    def rule(window: Window, offset: int, limit: int, usual: Page) -> None:
        if window != PRESENT or not next(answers):
            raise TransientError("503", status=503)

    with pytest.raises(TransientError):
        read(Api(rule), Window(0, 100), AGAIN)


def test_a_gap_costs_two_requests_while_it_stays_refused_and_one_where_it_is_a_second() -> None:
    api = refusing(0, 10**6)
    assert read(api, Window(0, 100), TRIAL)[1] == [Unread(Window(0, 100), REFUSED, "no")]
    assert len(api.asked) == 2
    api.asked.clear()
    assert read(api, Window(7, 8), TRIAL)[1] == [Unread(Window(7, 8), REFUSED, "no")]
    assert len(api.asked) == 1


def test_a_gap_of_which_the_end_can_be_read_by_now_shrinks() -> None:
    seconds, unread = read(refusing(0, 60), Window(0, 100), TRIAL)
    assert unread == [Unread(Window(0, 60), REFUSED, "no")]
    assert seconds == set(range(60, 100))


def sampled(window: Window, *seconds: int) -> Conduct:
    return TRIAL._replace(samples={window: seconds})


@pytest.mark.parametrize(
    ("start", "end"), [(0, 100), (0, 40), (41, 100), (20, 80), (41, 60), (0, 99), (1, 100), (40, 41)]
)
def test_a_window_of_which_a_sample_is_served_is_read_but_for_what_is_not(start: int, end: int) -> None:
    window = Window(0, 100)
    api = Api(lambda window, *rest: _raise_unless(start <= window.start and window.end <= end))
    seconds, unread = read(api, window, sampled(window, 99, 40))
    assert seconds == (set(range(start, end)) if end == 100 or start <= 40 < end else set())
    assert {second for part in unread for second in range(*part.window)} == set(range(100)) - seconds


def test_a_window_of_which_no_sample_is_served_costs_a_request_for_each() -> None:
    api = refusing(0, 10**6)
    assert read(api, Window(0, 100), sampled(Window(0, 100), 99, 40))[1] == [Unread(Window(0, 100), REFUSED, "no")]
    assert [window for window, *_ in api.asked] == [Window(99, 100), Window(40, 41)]


@pytest.mark.parametrize("length", [1, 2, 3, 10, 100, 1000])
@pytest.mark.parametrize("most", [1, 2])
def test_the_samples_of_many_tries_are_all_seconds(length: int, most: int) -> None:
    window = Window(50, 50 + length)
    tries = [samples_of(window, tries, most) for tries in range(2 * length + 2)]
    assert {second for seconds in tries for second in seconds} == set(range(50, 50 + length))
    assert all(1 <= len(seconds) <= most for seconds in tries)


def test_a_sample_is_the_last_second_and_one_that_is_elsewhere_each_time() -> None:
    window = Window(0, 1000)
    assert [samples_of(window, tries, 2) for tries in range(4)] == [[999, 0], [999, 500], [999, 250], [999, 750]]
    assert [samples_of(window, tries, 1) for tries in range(4)] == [[999], [0], [500], [250]]


def test_what_concerns_more_than_a_sampled_window_is_raised() -> None:
    api = Api(
        lambda window, *rest: _raise(TransientError("429", status=429)) if window.seconds > 1 else None,
    )
    with pytest.raises(TransientError, match="429"):
        read(api, Window(0, 100), sampled(Window(0, 100), 99))


@pytest.mark.parametrize("second", [0, 40, 99])
def test_the_pieces_around_a_second_tile_the_window(second: int) -> None:
    pieces = around(Window(0, 100), second)
    assert Window(second, second + 1) in pieces
    assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].end) == (0, 100)


# The second that counts as the present


def present_of(error: Callable[[], PollerError], *refused: int) -> tuple[Api, Conduct]:
    """An API that refuses windows with the seconds 10 to 19 or a second in `refused`; the latter may be the present."""

    def rule(window: Window, *rest: object) -> None:
        if (window.start < 20 and window.end > 10) or window.start in refused:
            raise error()

    return Api(rule), AGAIN._replace(present=(Window(902, 903), Window(901, 902), Window(900, 901)))


@pytest.mark.parametrize("refused", [(), (902,), (902, 901)])
@pytest.mark.parametrize("status", [400, 500, None])
def test_where_the_newest_is_not_served_an_older_second_is_the_present(
    refused: tuple[int, ...], status: int | None
) -> None:
    def error() -> PollerError:
        if status is None:
            return UnusableAnswerError("broken", b"{{")
        return RejectedError("no", status=status) if status < 500 else TransientError("no", status=status)

    api, conduct = present_of(error, *refused)
    seconds, unread = read(api, Window(0, 100), conduct)
    assert [part.window for part in unread] == [Window(10, 20)]
    assert seconds == set(range(100)) - set(range(10, 20))
    assert all(sum(window.start == second for window, *_ in api.asked) == 1 for second in refused)


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (RejectedError("no", status=400), 3),
        (TransientError("503", status=503), 3),
        (TransientError("timed out"), 1),
        (RejectedError("no such contract", status=404), 1),
        (AuthError("denied", is_denied=True), 1),
    ],
    ids=str,
)
def test_of_what_concerns_all_no_older_second_is_asked_for(error: PollerError, asked: int) -> None:
    api, conduct = present_of(lambda: error, 900, 901, 902)
    with pytest.raises(type(error)):
        read(api, Window(0, 100), conduct)
    assert sum(window.start >= 900 for window, *_ in api.asked) == asked


def test_a_second_that_is_too_dense_still_costs_one_request_and_what_it_serves_comes() -> None:
    api = Api(lambda window, offset, limit, usual: Page(usual.events, 5000, True, 2, False))
    seconds, unread = read(api, Window(7, 8), TRIAL)
    assert (seconds, [part.kind for part in unread], len(api.asked)) == ({7}, [DENSE], 1)


def test_a_second_whose_count_still_does_not_agree_costs_one_request() -> None:
    api = Api(lambda window, offset, limit, usual: Page(usual.events, 2, False, 2, False))
    _, unread = read(api, Window(7, 8), TRIAL)
    assert [part.kind for part in unread] == [UNSTABLE]
    assert len(api.asked) <= 2


def test_when_too_much_is_refused_the_rest_is_left_for_the_next_poll() -> None:
    api = Api(
        lambda window, *rest: (
            _raise(RejectedError("no", status=400))
            if any(second % 50 == 25 for second in range(window.start, window.end))
            else None
        )
    )
    _, unread = read(api, Window(0, 10_000))
    assert not all(part.is_narrow for part in unread)
    assert len(api.asked) < 1000
    again: set[int] = set()
    for part in unread:
        if not part.is_narrow:
            again |= read(api, Window(part.window.start, min(part.window.end, part.window.start + 1000)))[0]
    assert again


def test_a_count_that_agrees_nowhere_is_not_looked_for_second_by_second() -> None:
    api = Api(lambda window, offset, limit, usual: Page(usual.events, (usual.total or 0) + 1, False, 2, False))
    seconds, unread = read(api, Window(0, 100))
    assert seconds == set(range(100))
    assert [(part.window, part.kind) for part in unread] == [(Window(0, 100), UNSTABLE)]
    assert len(api.asked) < 300
    api.asked.clear()
    read(api, Window(0, 100), Conduct((PRESENT,), is_exact=False))
    assert len(api.asked) <= 4


def test_a_count_that_does_not_agree_in_one_second_is_found() -> None:
    def rule(window: Window, offset: int, limit: int, usual: Page) -> Page:
        return Page(usual.events, (usual.total or 0) + (window.start <= 42 < window.end), False, 2, False)

    seconds, unread = read(Api(rule), Window(0, 100))
    assert [(part.window, part.kind) for part in unread] == [(Window(42, 43), UNSTABLE)]
    assert seconds == set(range(100))


def unusable_at(second: int, *, has_time: bool) -> Api:
    def rule(window: Window, offset: int, limit: int, usual: Page) -> Page:
        events = [event for event in usual.events if event.time_us != second * 1_000_000]
        if len(events) == len(usual.events):
            return usual
        place = sum(event.time_us > second * 1_000_000 for event in events)
        element = Unreadable(place, b"null", "no entry", second if has_time else None)
        return Page(tuple(events), usual.total, False, 2, False, (element,))

    return Api(rule)


@pytest.mark.parametrize(("has_time", "requests"), [(True, 1), (False, 8)])
@pytest.mark.parametrize("second", [0, 1, 42, 98, 99])
def test_what_is_no_entry_is_a_gap_of_its_second_and_spoils_no_other(
    second: int, has_time: bool, requests: int
) -> None:
    api = unusable_at(second, has_time=has_time)
    seconds, unread = read(api, Window(0, 100))
    assert unread == [Unread(Window(second, second + 1), UNREADABLE, "no entry", (b"null",))]
    assert seconds == set(range(100)) - {second}
    assert len(api.asked) <= requests


@pytest.mark.parametrize("events", [[], [50], [10, 90, 20], [500, 400], [10, 10]], ids=str)
def test_where_nothing_says_in_which_second_it_lies_halves_do_as_far_as_the_api_goes_by_time(
    events: Sequence[int],
) -> None:
    body = tuple(Event(second * 1_000_000, b"%016d" % number, b"{}") for number, second in enumerate(events))
    api = Api(lambda *_: Page(body, len(body) + 1, False, 2, False, (Unreadable(0, b"", "no entry"),)))
    _, unread = read(api, Window(0, 100))
    assert [part.window for part in unread] == [Window(0, 100)]
    assert len(api.asked) < 200


def test_an_entry_without_a_time_among_them_says_nothing_of_where_it_lies() -> None:
    untimed = Event(0, b"a" * 16, b"{}", is_timed=False)
    api = Api(lambda *_: Page((untimed,), 2, False, 2, False, (Unreadable(0, b"", "no entry"),)))
    assert read(api, Window(0, 1))[1][0].window == Window(0, 1)


@pytest.mark.parametrize("error", ["too large", "unusable"])
def test_an_entry_that_cannot_be_had_is_passed_over(error: str) -> None:
    def rule(window: Window, offset: int, limit: int, usual: Page) -> None:
        if any(event.time_us == 42_000_000 for event in usual.events):
            raise BodyTooLargeError("larger") if error == "too large" else UnusableAnswerError("broken", b"{{")

    seconds, unread = read(Api(rule), Window(0, 100), AGAIN)
    assert seconds == set(range(100)) - {42}
    assert [(part.window, part.kind) for part in unread] == [(Window(42, 43), UNREADABLE)]
    assert unread[0].entries == (() if error == "too large" else (b"{{",))


@pytest.mark.parametrize("kind", [FAILING, DENSE, UNSTABLE])
def test_a_second_that_cannot_be_read_in_two_ways_is_one_gap_with_all_that_came(kind: str) -> None:
    def rule(window: Window, offset: int, limit: int, usual: Page) -> Page | None:
        if not window.start <= 42 < window.end:
            return None
        if kind == FAILING:
            raise UnusableAnswerError("a page", b"<html>")
        if window.seconds > 1 or (offset and kind == DENSE):
            raise RejectedError("no", status=400)
        events = () if offset else usual.events
        unreadable = () if offset else (Unreadable(1, b"null", "no entry", 42),)
        return Page(events, 5000 if kind == DENSE else 3 + len(api.asked), False, 2, False, unreadable)

    api = Api(rule)
    seconds, unread = read(api, Window(0, 100), AGAIN)
    assert [(part.window, part.kind) for part in unread] == [(Window(42, 43), kind)]
    assert unread[0].entries == ((b"<html>",) if kind == FAILING else (b"null",))
    assert seconds - {42} == set(range(100)) - {42}


def test_an_answer_that_cannot_be_used_is_waited_for_at_first() -> None:
    api = refusing(40, 60, lambda: UnusableAnswerError("broken", b"{{"))
    with pytest.raises(UnusableAnswerError):
        read(api, Window(0, 100))


def test_a_second_page_that_is_refused_to_an_account_splits_the_window() -> None:
    def rule(window: Window, offset: int, limit: int, usual: Page) -> None:
        if offset:
            raise AuthError("no", is_denied=True)

    assert WindowReader(Api(rule), "1", LIMITS, NORMAL).read(Window(0, 200)) == Split(split(Window(0, 200), 2))


def test_a_probe_for_more_than_an_answer_may_weigh_is_served() -> None:
    def rule(window: Window, offset: int, limit: int, usual: Page) -> None:
        if window.seconds > 1 and window.start < 50:
            raise RejectedError("no", status=400)
        if window == PRESENT:
            raise BodyTooLargeError("larger")

    assert read(Api(rule), Window(0, 100))[0] == set(range(100))


def test_what_came_last_of_a_window_lies_before_all_else() -> None:
    body = (Event(50_000_000, b"a" * 16, b"{}"), Event(40_000_000, b"b" * 16, b"{}"))
    element = Unreadable(2, b"null", "no entry")
    found = span_of(element, Window(0, 100), body)
    assert found == Window(0, 41)
    assert span_of(msgspec.structs.replace(element, second=300), Window(0, 100), body) == found
    assert span_of(element, Window(45, 100), body) == Window(45, 100)


# Several entries under one id


def shared(*contents: str) -> Reading:
    entry = '{{"_source":{{"@uuid":"a","m":"{}","meta":{{"time":"1970-01-01T00:00:07Z"}}}}}}'
    hits = ",".join(entry.format(content) for content in contents)
    page = parse_page(f'{{"hits":{{"total":{len(contents)},"hits":[{hits}]}}}}'.encode())
    result = WindowReader(Api(lambda *_: page), "1", LIMITS).read(Window(0, 100))
    assert isinstance(result, Reading)
    return result


def test_different_entries_under_one_id_are_each_an_entry_in_any_order_the_same() -> None:
    one, other = shared("x", "y", "z"), shared("z", "x", "y")
    assert len({event.identity for event in one.events}) == 3
    assert [event.identity for event in one.events] == [event.identity for event in other.events]
    with_another = {event.identity for event in shared("x", "a", "y", "b", "z").events}
    assert {event.identity for event in one.events} < with_another
    assert len({event.shared_id for event in one.events}) == 1


def test_one_entry_that_comes_twice_is_one_also_when_its_keys_are_in_another_order() -> None:
    page = parse_page(b'[{"@uuid":"a","x":1},{"x":1,"@uuid":"a"}]')
    result = WindowReader(Api(lambda *_: page), "1", LIMITS).read(Window(0, 100))
    assert isinstance(result, Reading)
    assert len(result.events) == 1
    assert not result.events[0].shared_id


@pytest.mark.parametrize("length", [1, 3])
def test_the_trial_of_a_gap_with_an_answer_that_cannot_be_used_costs_two_requests(length: int) -> None:
    api = refusing(0, 100, lambda: UnusableAnswerError("no JSON", b"{"))
    seconds, unread = read(api, Window(10, 10 + length), TRIAL)
    assert not seconds
    assert [part.window for part in unread] == [Window(10, 10 + length)]
    assert len(api.asked) <= 2


def test_an_api_of_which_no_answer_can_be_used_is_not_asked_for_ever_smaller_pages() -> None:
    api = refusing(0, 200_000, lambda: UnusableAnswerError("a login page", b"<html>"))
    with pytest.raises(UnusableAnswerError):
        read(api, Window(0, 100), AGAIN)
    assert len(api.asked) <= 3


# The rules of gaps


def test_what_is_left_of_a_window() -> None:
    window = Window(10, 20)
    assert without(window, []) == [window]
    assert without(window, [Window(0, 5), Window(25, 30)]) == [window]
    assert without(window, [Window(12, 13), Window(5, 11)]) == [Window(11, 12), Window(13, 20)]
    assert without(window, [Window(0, 30)]) == []


def test_of_many_pieces_the_older_ones_are_read_in_turn() -> None:
    pieces = [Window(second, second + 1) for second in range(0, 10, 2)]
    chosen = [in_turn(pieces, 8, turn, 2) for turn in range(4)]
    assert all(row[-1] == pieces[-1] and len(row) == 3 for row in chosen)
    assert {piece for row in chosen for piece in row} == set(pieces)
    assert in_turn(pieces, 8, 0, 0) == pieces[-1:]
    assert in_turn(pieces[:2], 100, 0, 5) == pieces[:2]
    assert in_turn([], 100, 0, 5) == []


def test_the_waits_grow_from_a_minute_to_an_hour() -> None:
    waits = [wait_seconds(tries, lambda: 0.5) for tries in range(12)]
    assert 60 <= waits[0] <= 66
    assert waits == sorted(waits)
    assert max(wait_seconds(30, lambda: 0.0), wait_seconds(30, lambda: 1.0)) <= 3600


@pytest.mark.parametrize(
    ("spans", "text"),
    [
        ([Window(0, 1)], "1 gap of 1 s on 1970-01-01"),
        ([Window(86_400, 90_000), Window(0, 7200)], "2 gaps of 3 h from 1970-01-01 to 1970-01-02"),
        ([Window(0, 10), Window(86_390, 86_400)], "2 gaps of 20 s on 1970-01-01"),
        ([Window(0, 100 * 86_400)], "1 gap of 100 d from 1970-01-01 to 1970-04-10"),
    ],
)
def test_gaps_in_a_few_words(spans: list[Window], text: str) -> None:
    assert summary(spans) == text


def test_what_may_be_spent_has_an_end() -> None:
    narrowing = Narrowing(is_exact=False)
    assert not narrowing.may_halve(Window(0, 9), 1)
    assert narrowing.may_spend(1)
    assert not narrowing.may_spend(1000)


@pytest.mark.parametrize(("refused", "edge"), [(1, 4), (2, 4), (5, 16), (30, 64), (1000, 99)])
def test_an_edge_that_moves_on_gets_room_in_steps_that_double(refused: int, edge: int) -> None:
    assert _moved_edge(Window(0, 100), lambda second: second >= refused) == edge


def test_only_those_under_one_id_that_differ_are_told_apart() -> None:
    found = parse_page(b'[{"@uuid":"a","x":1},{"@uuid":"b"},{"@uuid":"a","x":2}]').events
    first, alone, second = told_apart(list(found))
    assert alone == found[1]
    assert len({first.identity, second.identity, found[0].identity}) == 3
