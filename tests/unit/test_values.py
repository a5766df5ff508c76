"""Durations, sizes and times: what is read, what is refused, and how values are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from poller.config.values import format_duration, format_size, parse_duration, parse_size, parse_time

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("5m", 300),
        ("1h30m", 5400),
        ("7d", 604_800),
        ("500ms", 0.5),
        ("0s", 0),
        ("1d1h1m1s1ms", 90_061.001),
        ("36500d", 3_153_600_000),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "10", "s", "-5s", "+5s", "1.5h", "5 m", "5M", "5m\n", "5m\0", "1m1h", "1s1s", "1ms1s", "1w",
        "36501d",
        "9" * 15 + "d", "9" * 5000 + "s", "\u0665s", "1\u00b2s", "1_0s", "inf", "nan", "1e3s", "0x10s",
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|units from large to small|longer than") as caught:
        parse_duration(text)
    assert str(caught.value).startswith(repr(text)[:40])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (60, "1m"),
        (5400, "1h30m"),
        (0.5, "500ms"),
        (86_400, "1d"),
        (129_600, "1d12h"),
        (0.0001, "0s"),
    ],
)
def test_a_duration_is_written_as_it_is_read(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1000", 1000),
        ("0", 0),
        ("5B", 5),
        ("512KiB", 524_288),
        ("1GiB", 1 << 30),
        ("10MB", 10_000_000),
        ("10 MB", 10_000_000),
        ("1kb", 1000),
        ("2tib", 2 << 40),
    ],
)
def test_a_size_is_read(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "B", "-1", "1.5GiB", "10M", "10Ki", "1PB", "KiB", "1 000",
     "1  KB", "\u0665", "9" * 5000, "9" * 19 + "TiB", "1KB\n", "1\u212aB"],
)  # fmt: skip
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size|larger than") as caught:
        parse_size(text)
    assert str(caught.value).startswith(repr(text)[:40])


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1KiB"),
        (12_000_000, "12MB"),
        (1 << 30, "1GiB"),
        (1000 * 1024, "1000KiB"),
    ],
)
def test_a_size_is_written_as_it_is_read(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-01", datetime(2026, 5, 1, tzinfo=UTC)),
        ("2026-05-01T07:42:20Z", datetime(2026, 5, 1, 7, 42, 20, tzinfo=UTC)),
        ("2026-05-01t07:42:20z", datetime(2026, 5, 1, 7, 42, 20, tzinfo=UTC)),
        ("2026-05-01 07:42:20Z", datetime(2026, 5, 1, 7, 42, 20, tzinfo=UTC)),
        ("2026-05-01T07:42:20.530Z", datetime(2026, 5, 1, 7, 42, 20, 530_000, tzinfo=UTC)),
        ("2026-05-01T07:42:20.123456789Z", datetime(2026, 5, 1, 7, 42, 20, 123_456, tzinfo=UTC)),
        ("2026-05-01T07:42:20+02:00", datetime(2026, 5, 1, 5, 42, 20, tzinfo=UTC)),
        ("2026-05-01T23:59:20+23:59", datetime(2026, 5, 1, 0, 0, 20, tzinfo=UTC)),
        ("2026-05-01T23:42:20-05:30", datetime(2026, 5, 2, 5, 12, 20, tzinfo=UTC)),
        (" 2026-05-01 ", datetime(2026, 5, 1, tzinfo=UTC)),
        ("90m", NOW - timedelta(minutes=90)),
        ("36h", NOW - timedelta(hours=36)),
        ("7d", NOW - timedelta(days=7)),
        ("0s", NOW),
        ("now", NOW),
    ],
)
def test_a_time_is_read_as_utc(text: str, expected: datetime) -> None:
    time = parse_time(text, NOW)
    assert time == expected
    assert time.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "", "yesterday", "2026-02-30", "2026-13-01", "0000-01-01", "2026-05-01T07:42:20", "2026-05-01T07:42Z",
        "2026-05-01T24:00:00Z", "2026-05-01T07:42:60Z", "2026-05-01T07:42:20+25:00",
        "2026-05-01T07:42:20+24:00", "2026-05-01T07:42:20+00:60",
        "2026-05-01T07:42:20+01:99",
        "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2026-05-01\0", "2026-05-01\n", "-90m",
        "\u0662\u0660\u0662\u0666-05-01", "2026-5-1", "1777620140", "9" * 5000,
        "2026-05-01T07:42:20." + "9" * 5000 + "Z",
    ],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a") as caught:
        parse_time(text, NOW)
    assert str(caught.value).startswith(repr(text)[:40])


def test_an_age_beyond_the_calendar_is_refused() -> None:
    with pytest.raises(ValueError, match="before the calendar"):
        parse_time("100d", datetime(1, 1, 2, tzinfo=UTC))


def test_a_message_shows_no_more_of_a_value_than_helps() -> None:
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration("x\x1b[2J" * 1000)
    assert len(str(caught.value)) < 120
    assert "\x1b" not in str(caught.value)
