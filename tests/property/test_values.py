"""Durations, sizes and times for any value and any text."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from poller.config.values import format_duration, format_size, parse_duration, parse_size, parse_time

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
MAX_MS = 36_500 * 86_400_000

near_misses = st.text(alphabet="0123456789.:+-TZ dhmsKMGTiB\0\u0665", max_size=40)
any_text = st.one_of(st.text(), near_misses, st.text(alphabet="0123456789", min_size=4000, max_size=6000))


@given(st.integers(0, MAX_MS))
def test_a_duration_survives_writing_and_reading(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.one_of(st.integers(0, 1 << 60), st.integers(0, 1 << 20).map(lambda count: count << 30)))
def test_a_size_survives_writing_and_reading(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@given(
    st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)),  # noqa: DTZ001 - the zone follows
    st.integers(-23 * 60, 23 * 60),
)
def test_a_time_survives_writing_with_any_offset(local: datetime, offset_minutes: int) -> None:
    sign, hours, minutes = "-" if offset_minutes < 0 else "+", *divmod(abs(offset_minutes), 60)
    time = parse_time(f"{local.isoformat()}{sign}{hours:02}:{minutes:02}", NOW)
    assert time == local.replace(tzinfo=UTC) - timedelta(minutes=offset_minutes)


@given(st.integers(0, MAX_MS // 100))
def test_an_age_counts_back_from_now(milliseconds: int) -> None:
    text = format_duration(milliseconds / 1000)
    assert parse_time(text, NOW) == NOW - timedelta(milliseconds=milliseconds)


@given(any_text)
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert 0 <= parse_duration(text) <= MAX_MS / 1000
    with suppress(ValueError):
        assert 0 <= parse_size(text) <= 1 << 60
    with suppress(ValueError):
        assert parse_time(text, NOW).utcoffset() == timedelta(0)
