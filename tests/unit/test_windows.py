"""Windows: the next one, tiles, splits, and how a time is written."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from poller.core.windows import (
    MAX_SPAN_SECONDS,
    Window,
    format_time,
    next_window,
    parts_for,
    parts_of_whole_pages,
    split,
    split_around,
    tile,
)


@pytest.mark.parametrize(
    ("watermark", "origin", "now", "overlap", "expected"),
    [
        (1000, 1000, 1060, 600, Window(1000, 1060)),  # the first poll: nothing before the origin
        (2000, 1000, 2060, 600, Window(1400, 2060)),
        (1300, 1000, 1360, 600, Window(1000, 1360)),
        (2000, 1000, 2000, 600, Window(1400, 2000)),  # no second has passed: the overlap is still read
        (2000, 1000, 2000, 0, None),
        (1000, 1000, 1000, 600, None),
        (2000, 1000, 1500, 600, Window(1400, 1500)),  # the clock was set back
        (2000, 1000, 1400, 600, None),
        (2000, 1000, 100, 600, None),
    ],
)
def test_the_next_window_reaches_from_the_overlap_to_now(
    watermark: int, origin: int, now: int, overlap: int, expected: Window | None
) -> None:
    assert next_window(watermark, origin, now, overlap) == expected


@pytest.mark.parametrize(
    ("window", "span", "expected"),
    [
        (Window(0, 10), 10, [Window(0, 10)]),
        (Window(0, 10), 4, [Window(0, 4), Window(4, 8), Window(8, 10)]),
        (Window(5, 6), 4, [Window(5, 6)]),
        (Window(5, 5), 4, []),
    ],
)
def test_tiles_are_in_order_and_the_last_may_be_shorter(window: Window, span: int, expected: list[Window]) -> None:
    assert list(tile(window, span)) == expected


def test_no_tile_is_longer_than_the_api_allows() -> None:
    assert MAX_SPAN_SECONDS <= 90 * 86_400
    assert max(piece.seconds for piece in tile(Window(0, 400 * 86_400))) == MAX_SPAN_SECONDS


@pytest.mark.parametrize(
    ("window", "parts", "expected"),
    [
        (Window(0, 2), 2, [Window(0, 1), Window(1, 2)]),
        (Window(0, 2), 99, [Window(0, 1), Window(1, 2)]),
        (Window(0, 10), 0, [Window(0, 5), Window(5, 10)]),
        (Window(10, 20), 3, [Window(10, 13), Window(13, 16), Window(16, 20)]),
    ],
)
def test_a_split_has_as_many_parts_as_asked_for_and_as_seconds_allow(
    window: Window, parts: int, expected: list[Window]
) -> None:
    assert split(window, parts) == expected


@pytest.mark.parametrize(
    ("dense", "expected"),
    [
        (Window(111, 161), [Window(100, 111), *split(Window(111, 161), 5), Window(161, 200)]),
        (Window(110, 160), [*split(Window(100, 160), 5), Window(160, 200)]),
        (Window(139, 189), [Window(100, 139), *split(Window(139, 189), 5), Window(189, 200)]),
        (Window(140, 190), [Window(100, 140), *split(Window(140, 200), 5)]),
        (Window(100, 200), split(Window(100, 200), 5)),
    ],
)
def test_what_is_around_a_part_is_a_piece_where_it_is_longer_than_the_others(
    dense: Window, expected: list[Window]
) -> None:
    assert split_around(Window(100, 200), dense, 5) == expected


def test_a_second_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="one second"):
        split(Window(7, 8), 2)


@pytest.mark.parametrize(
    ("count", "capacity", "expected"),
    [(0, 100, 2), (100, 100, 2), (240, 100, 3), (12_000, 10_000, 2), (1_000_000, 10_000, 125), (5, 0, 7)],
)
def test_enough_parts_that_each_fits_with_room(count: int, capacity: int, expected: int) -> None:
    assert parts_for(count, capacity) == expected


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_window_is_written_in_utc_wherever_we_are(in_tokyo: None) -> None:
    assert format_time(1_777_621_340) == "2026-05-01T07:42:20Z"


def test_a_window_is_written_as_the_api_wants_its_ends() -> None:
    assert format_time(1_777_621_340) == "2026-05-01T07:42:20Z"
    assert str(Window(1_777_621_340, 1_777_621_400)) == "2026-05-01T07:42:20Z/2026-05-01T07:43:20Z"


@pytest.mark.parametrize(
    ("count", "parts", "page_size", "expected"),
    [
        (10_000, 10, 1000, 11),  # with a thousand each, half of them would need a second page for a few entries
        (10_000, 12, 1000, 12),
        (10_000, 40, 1000, 40),  # never fewer than asked for
        (9_000, 10, 1000, 10),  # nine tenths of a page
        (9_500, 10, 1000, 11),
        (140_000, 100, 1000, 156),  # 1,400 would take two pages; 900 take one
        (180_000, 100, 1000, 100),  # two pages, filled to nine tenths
        (190_000, 100, 1000, 106),
        (10_000, 3, 1, 3),  # one page among thousands makes no difference
    ],
)
def test_a_window_is_split_so_that_few_pages_are_almost_empty(
    count: int, parts: int, page_size: int, expected: int
) -> None:
    assert parts_of_whole_pages(count, parts, page_size) == expected
