"""Windows tile time without gap or overlap, for any numbers and for any limits of the API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import event, given
from hypothesis import strategies as st

from poller.core.answers import Page
from poller.core.errors import RejectedError, TransientError
from poller.core.events import Event
from poller.core.narrowing import Conduct
from poller.core.reading import Reading, Split, WindowReader
from poller.core.windows import MAX_SPAN_SECONDS, Limits, Window, next_window, parts_for, split, split_around, tile

SECONDS = st.integers(-(10**10), 10**10)


def assert_tiles(window: Window, pieces: Sequence[Window]) -> None:
    edges = [pieces[0].start, *(piece.end for piece in pieces)]
    assert [piece.start for piece in pieces] == edges[:-1]
    assert (edges[0], edges[-1]) == window
    assert all(piece.seconds > 0 for piece in pieces)


@given(start=SECONDS, seconds=st.integers(1, 10**5), span=st.integers(1, 10**5))
def test_tiles_tile(start: int, seconds: int, span: int) -> None:
    window = Window(start, start + seconds)
    span = max(span, seconds // 1000)
    pieces = list(tile(window, span))
    assert_tiles(window, pieces)
    assert max(piece.seconds for piece in pieces) <= span


@given(
    start=SECONDS,
    seconds=st.integers(2, 10**6),
    before=st.integers(0, 10**6),
    behind=st.integers(0, 10**6),
    parts=st.integers(2, 200),
)
def test_a_split_around_a_part_tiles_and_cuts_that_part_most(
    start: int, seconds: int, before: int, behind: int, parts: int
) -> None:
    dense = Window(start + before, start + before + seconds)
    window = Window(start, dense.end + behind)
    pieces = split_around(window, dense, parts)
    assert_tiles(window, pieces)
    assert all(0 < piece.seconds < window.seconds for piece in pieces)
    assert max(2, min(parts, seconds)) <= len(pieces) <= parts + 2


@given(start=SECONDS, seconds=st.integers(2, 10**9), count=st.integers(0, 10**5), capacity=st.integers(0, 10**5))
def test_splits_tile_into_nearly_equal_parts(start: int, seconds: int, count: int, capacity: int) -> None:
    window = Window(start, start + seconds)
    pieces = split(window, min(1000, parts_for(count, capacity)))
    assert_tiles(window, pieces)
    lengths = {piece.seconds for piece in pieces}
    assert len(pieces) >= 2
    assert max(lengths) - min(lengths) <= 1


class Poll(NamedTuple):
    """One poll: how much time passed before it, and which part of the due windows it read before it failed."""

    passed: int
    committed: int | None


@given(
    origin=st.integers(0, 10**9),
    polls=st.lists(st.builds(Poll, st.integers(-100, 10**7), st.none() | st.integers(0, 4)), max_size=8),
    overlap=st.integers(0, 10**6),
)
def test_all_time_from_the_origin_to_the_watermark_was_read_whatever_polls_failed_and_clocks_jumped(
    origin: int, polls: list[Poll], overlap: int
) -> None:
    now = watermark = origin
    read_to = origin  # the end of what was read without a gap
    for poll in polls:
        now = max(0, now + poll.passed)
        window = next_window(watermark, origin, now, overlap)
        if window is None:
            assert now <= max(origin, watermark - overlap)
            continue
        assert window.start >= origin
        assert window.end == now
        assert window.start <= read_to
        assert window.start == max(origin, watermark - overlap)
        pieces = list(tile(window))
        assert_tiles(window, pieces)
        assert all(piece.seconds <= MAX_SPAN_SECONDS for piece in pieces)
        for piece in pieces[: poll.committed]:
            assert piece.start <= read_to
            read_to = max(read_to, piece.end)
            watermark = max(watermark, piece.end)
        assert watermark == read_to


class Log(NamedTuple):
    """An Activity Log with fixed entries, and with every limit that the real one may have."""

    counts: tuple[int, ...]  # entries in each second, from 0
    serves: int  # maximum offset + limit
    page_cap: int | None = None
    total_cap: int | None = None
    has_relation: bool = False
    says_total: bool = True
    refuses_above: int | None = None  # it answers 400 on the first page of windows with more entries
    refusal_status: int = 400
    is_newest_first: bool = True

    def within(self, window: Window) -> list[Event]:
        """The entries of a window, newest or oldest first. Equal times have any fixed order."""
        found = [
            Event(second * 1_000_000 + number, b"%08d%08d" % (second, number), b"{}")
            for second in range(max(0, window.start), min(window.end, len(self.counts)))
            for number in range(self.counts[second])
        ]
        return found[::-1] if self.is_newest_first else found

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        assert window.seconds >= 1
        assert limit >= 1
        found = self.within(window)
        if self.refuses_above is not None and len(found) > self.refuses_above:
            raise RejectedError("window too large", status=400)
        if offset + limit > self.serves:
            if self.refusal_status == 500:
                raise TransientError("result window too large", status=500)
            raise RejectedError("result window too large", status=self.refusal_status)
        events = tuple(found[offset : offset + min(limit, self.page_cap or limit)])
        total = len(found) if self.total_cap is None else min(len(found), self.total_cap)
        is_capped = self.has_relation and total < len(found)
        weight = sum(len(event.line) for event in events)
        return Page(events, total if self.says_total else None, is_capped, weight, False)


def read_all(log: Log, window: Window, limits: Limits) -> list[tuple[Window, Reading]]:
    """Read as the collector does. If a window must be split, its parts are read instead."""
    reader = WindowReader(log, "1", limits, Conduct(present=(Window(-20, -19),)))
    todo = [window]
    readings = []
    while todo:
        piece = todo.pop(0)
        result = reader.read(piece)
        if isinstance(result, Split):
            assert_tiles(piece, result.windows)
            todo[:0] = result.windows
        else:
            readings.append((piece, result))
    assert_tiles(window, [piece for piece, _ in readings])
    return readings


# Mostly few entries, sometimes many, so that windows are split unevenly.
COUNTS = st.lists(st.integers(0, 3) | st.integers(0, 40), min_size=1, max_size=24).map(tuple)


@st.composite
def logs(draw: st.DrawFn, result_window: int) -> Log:
    return Log(
        counts=draw(COUNTS),
        serves=result_window + draw(st.integers(0, 5)),
        page_cap=draw(st.none() | st.integers(1, 10)),
        total_cap=draw(st.none() | st.just(result_window)),
        has_relation=draw(st.booleans()),
        says_total=draw(st.booleans()),
        refusal_status=draw(st.sampled_from([400, 413, 422, 500])),
        is_newest_first=draw(st.booleans()),
    )


@given(data=st.data(), result_window=st.integers(1, 30), page_size=st.integers(1, 30))
def test_the_union_of_all_readings_is_every_entry_that_the_api_serves(
    data: st.DataObject, result_window: int, page_size: int
) -> None:
    log = data.draw(logs(result_window))
    limits = Limits(page_size, result_window, 10**9)
    start = data.draw(st.integers(-5, 0))
    window = Window(start, data.draw(st.integers(len(log.counts), len(log.counts) + 20)))
    readings = read_all(log, window, limits)
    event(f"{len(readings)} readings")
    seen = Counter(entry.identity for _, reading in readings for entry in reading.events)
    assert set(seen.values()) <= {1}
    for piece, reading in readings:
        held = log.within(piece)
        if reading.is_complete:
            assert reading.events == sorted(held, key=lambda entry: (entry.time_us, entry.identity))
            assert reading.fetched == len(held)
        else:
            # Only a second that fills the result window may be incomplete. All of its entries that the API serves are read.
            assert piece.seconds == 1
            assert len(held) >= result_window
            assert {entry.identity for entry in reading.events} <= {entry.identity for entry in held}
            assert len(reading.events) == result_window
        assert reading.is_complete or len(held) >= result_window
        assert not (reading.is_complete and len(held) > result_window)


@given(data=st.data(), refuses_above=st.integers(0, 30), page_size=st.integers(1, 30))
def test_a_window_refused_for_its_size_is_split_until_it_is_served(
    data: st.DataObject, refuses_above: int, page_size: int
) -> None:
    log = data.draw(logs(1000))._replace(refuses_above=refuses_above)
    window = Window(0, len(log.counts))
    readings = read_all(log, window, Limits(page_size, 1000, 10**9))
    # A second that is refused as a whole is never served. All others are.
    refused = [second for second, count in enumerate(log.counts) if count > refuses_above]
    if len(refused) < 2:
        assert sum(len(reading.events) for _, reading in readings) == sum(
            count for count in log.counts if count <= refuses_above
        )
        assert [unread.window for _, reading in readings for unread in reading.unread] == [
            Window(second, second + 1) for second in refused
        ]
    for piece, reading in readings:
        assert reading.is_complete or any(piece.start <= second < piece.end for second in refused)


@given(data=st.data(), serves=st.integers(1, 20), more=st.integers(1, 20), page_size=st.integers(1, 20))
def test_an_api_that_serves_less_than_configured_loses_nothing_unsaid(
    data: st.DataObject, serves: int, more: int, page_size: int
) -> None:
    log = data.draw(logs(1000))._replace(serves=serves, total_cap=None)
    window = Window(0, len(log.counts))
    readings = read_all(log, window, Limits(min(page_size, serves), serves + more, 10**9))
    for piece, reading in readings:
        if reading.is_complete:
            assert reading.events == sorted(log.within(piece), key=lambda entry: (entry.time_us, entry.identity))
        else:
            assert piece.seconds == 1
            assert len(log.within(piece)) > serves - min(page_size, serves)


@given(data=st.data(), window_bytes=st.integers(1, 60))
def test_no_reading_weighs_much_more_than_it_may(data: st.DataObject, window_bytes: int) -> None:
    log = data.draw(logs(1000))._replace(says_total=True, total_cap=None, serves=10**6)
    readings = read_all(log, Window(0, len(log.counts)), Limits(30, 1000, window_bytes))
    assert sum(len(reading.events) for _, reading in readings) == sum(log.counts)
    for piece, reading in readings:
        assert piece.seconds == 1 or sum(len(entry.line) for entry in reading.events) <= window_bytes
