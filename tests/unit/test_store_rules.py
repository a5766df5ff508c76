"""The rules of a state as pure functions: books, rows, gaps, segments, the days of the ledger."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import pytest

from poller.core.evidence.batches import Head
from poller.core.gaps import DENSE, LONGEST_WAIT_SECONDS, UNREADABLE, Unread
from poller.core.windows import Window
from poller.store import identities, letters, segments
from poller.store.copying import differences
from poller.store.gaps import (
    ClearEntries,
    Delete,
    Gap,
    Insert,
    KeepEntries,
    MoveEntries,
    Settled,
    Update,
    settled,
)
from poller.store.journal import SIGNAL, Action, JournalEntry, Person
from poller.store.letters import LetterBooks, StoredLetter
from poller.store.overview import Overview, SinkOverview, TakenBack
from poller.store.rows import Contract, Postponed, Range, Replica, Sink, Size, WindowRead, late_and_repaired
from tests.states import START, event

DAY_US = 86_400 * 1_000_000
CONTRACT = Contract("1", "default", 0, 0, 10, 7, 2, 1, 0, 0, None, None, "", 0)
SINK = SinkOverview(Sink("loki", "loki", assigned=7, delivered=4, dead=1), 2, None, 1)
BALANCED = Overview(
    contracts=[CONTRACT],
    sinks=[SINK],
    outbox=Size(2, 9),
    filtered={"a": 1},
    pending=(),
    letters={"loki": LetterBooks(3, 1, 1, 1)},
    taken_back=None,
    gaps=(),
    created_at=None,
    last_action=None,
    finished=None,
    replicas=(),
    archives={},
)


# Books


def test_books_that_balance_say_nothing() -> None:
    assert BALANCED.imbalances() == []


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            {"contracts": [CONTRACT, CONTRACT._replace(contract="2", fetched=11, filtered=0)]},
            ["contract 2: fetched 11, but new 7 + seen before 2 + filtered 0 = 9"],
        ),
        (
            {"sinks": [SINK, SINK._replace(waiting=3)]},
            ["sink loki: assigned 7, but delivered 4 + dead 1 + waiting 3 = 8"],
        ),
        (
            {"letters": {"loki": LetterBooks(3, 1, 1, 1), "old": LetterBooks(9, 1, 2, 3)}},
            ["dead letters of old: written 9, but at hand 1 + replayed 2 + purged 3 = 6"],
        ),
        ({"filtered": {"a": 1, "b": 2}}, ["filtered: 1 by contract, but 3 by reason"]),
        ({"contracts": []}, ["filtered: 0 by contract, but 1 by reason"]),
    ],
)
def test_what_does_not_add_up_is_told_with_its_numbers(change: dict[str, Any], lines: list[str]) -> None:
    assert BALANCED._replace(**change).imbalances() == lines


GAP = Gap(7, "1", 100, 200, UNREADABLE, "no", 50, 3, 900, is_accepted=False, is_narrow=True)


@pytest.mark.parametrize(
    ("change", "is_done"),
    [
        ({}, True),
        ({"finished": None}, False),
        ({"sinks": [SINK._replace(sink=SINK.sink._replace(delivered=6, dead=0), waiting=1, dead_letters=0)]}, False),
        ({"sinks": [SINK._replace(sink=SINK.sink._replace(delivered=6), waiting=0, dead_letters=1)]}, False),
        ({"gaps": [GAP]}, False),
        ({"gaps": [GAP._replace(is_accepted=True)]}, True),
        ({"filtered": {}}, False),
    ],
)
def test_a_backfill_is_done_when_nothing_is_left_to_do_or_to_see(change: dict[str, Any], is_done: bool) -> None:
    delivered = SINK._replace(sink=SINK.sink._replace(delivered=6), waiting=0, dead_letters=0)
    over = BALANCED._replace(finished="2026-05-01", sinks=[delivered])
    assert over._replace(**change).is_done is is_done


def test_a_watermark_is_ahead_from_a_minute_on_and_five_are_told() -> None:
    rows = [CONTRACT._replace(contract=str(number), watermark=START + 60) for number in range(7)]
    overview = BALANCED._replace(contracts=rows)
    assert overview.clock_troubles(START) == []
    lines = overview.clock_troubles(START - 1)
    assert [line.partition(":")[0] for line in lines] == [f"contract {number}" for number in range(5)]
    assert "complete up to 2026-05-01T00:01:00Z, which lies ahead" in lines[0]


@pytest.mark.parametrize(("age", "is_told"), [(-1, False), (0, True), (7 * 86_400 - 1, True), (7 * 86_400, False)])
def test_what_a_wrong_clock_did_is_told_for_a_week(age: int, is_told: bool) -> None:
    lines = BALANCED._replace(taken_back=TakenBack(START, START - 3600)).clock_troubles(START + age)
    assert len(lines) == is_told
    if is_told:
        assert "on 2026-05-01T00:00:00Z what was complete was taken back to 2026-04-30T23:00:00Z" in lines[0]


def test_replicas_with_different_configurations_are_told_the_most_first() -> None:
    rows = [Replica(host, 7, "1", 0.0, 0.0, 1, config) for host, config in (("a", "x"), ("b", "y"), ("c", "y"))]
    (line,) = BALANCED._replace(replicas=rows).replica_troubles()
    assert line.startswith("replicas have different configurations: b:7, c:7 | a:7; ")
    assert BALANCED._replace(replicas=rows[1:]).replica_troubles() == BALANCED.replica_troubles() == []


def test_a_copy_differs_only_in_what_a_copy_does_not_keep() -> None:
    pending = [Range(1, "1", Window(0, 60), "repair")]
    waits = (Postponed("1", 1, 0, 0, "no", 0),)
    source = BALANCED._replace(pending=pending, gaps=[GAP])
    target = source._replace(
        contracts=[CONTRACT._replace(holder="a:1")],
        sinks=[SINK._replace(postponed=waits)],
        pending=[pending[0]._replace(id=9)],
        gaps=[GAP._replace(id=9)],
    )
    assert differences(source, target) == []
    assert differences(target, source) == []
    changes: dict[str, Any] = {
        "contracts": [CONTRACT._replace(watermark=1)],
        "sinks": [SINK._replace(waiting=1)],
        "filtered": {},
        "letters": {},
        "pending": [pending[0]._replace(purpose="")],
        "archives": {"a": Head("a", 1, "", None, 0, 0, None)},
        "finished": "2026",
        "taken_back": TakenBack(1, 1),
        "gaps": [],
    }
    for name, value in changes.items():
        assert differences(source, source._replace(**{name: value})) == [name]


# Rows


@pytest.mark.parametrize(
    ("seconds", "read", "expected"),
    [
        ((100, 99, 150), {"advance_to": 200}, (1, 0)),
        ((10, 19, 20, 30, 39, 40), {"advance_to": 200}, (3, 3)),
        ((99, 100), {"advance_to": None}, (0, 0)),
        ((99, 100), {"advance_to": None, "is_repair": True}, (0, 2)),
        ((150,), {"advance_to": 200, "is_repair": True}, (0, 1)),
        ((), {"advance_to": 200}, (0, 0)),
    ],
)
def test_late_is_what_lies_before_the_watermark_and_in_no_span_that_is_still_to_be_read(
    seconds: Sequence[int], read: dict[str, Any], expected: tuple[int, int]
) -> None:
    """There are two spans: one of a repair from 20 to 40, and one of a backfill from 30 to 40."""
    spans = [Range(1, "1", Window(20, 40), "repair"), Range(2, "1", Window(30, 40), "backfill")]
    unseen = [event(number, second) for number, second in enumerate(seconds)]
    untimed = event(99, 5, is_timed=False)
    window = WindowRead(Window(0, 200), (), 0, 0, **read)
    found = late_and_repaired([*unseen, untimed], 100, spans, window)
    assert found == (expected[0], expected[1] + (1 if window.is_repair else 0))


# Gaps


@pytest.mark.parametrize(
    ("next_try_at", "is_due"),
    [(1000, True), (1001, False), (1000 + LONGEST_WAIT_SECONDS, False), (1001 + LONGEST_WAIT_SECONDS, True)],
)
def test_a_gap_is_tried_when_its_time_has_come_or_was_set_by_a_clock_that_was_ahead(
    next_try_at: int, is_due: bool
) -> None:
    gap = GAP._replace(next_try_at=next_try_at)
    assert gap.is_due(1000) is is_due
    assert not gap._replace(is_accepted=True).is_due(1000)


def unread(start: int, end: int, kind: str = UNREADABLE, *entries: bytes, is_narrow: bool = True) -> Unread:
    return Unread(Window(start, end), kind, f"why {start}", entries, is_narrow)


def settle(gaps: Sequence[Gap], *parts: Unread, window: tuple[int, int] = (0, 1000)) -> Settled:
    return settled(gaps, "1", Window(*window), parts, now=5000, next_try_at=5060)


def new(number: int, start: int, end: int, kind: str = UNREADABLE, **fields: Any) -> Gap:
    gap = Gap(-number, "1", start, end, kind, f"why {start}", 5000, 0, 5060, is_accepted=False, is_narrow=True)
    return gap._replace(**fields)


def test_new_gaps_are_opened_with_their_entries_and_told() -> None:
    found = settle([], unread(10, 20, UNREADABLE, b"x"), unread(30, 40, DENSE, is_narrow=False))
    first, second = new(1, 10, 20), new(2, 30, 40, DENSE, is_narrow=False, next_try_at=5000)
    assert found == Settled([Insert(first), KeepEntries(-1, (b"x",)), Insert(second)], [first, second], [])


@pytest.mark.parametrize("window", [(0, 100), (200, 300)])
def test_a_gap_beside_the_window_is_left_alone(window: tuple[int, int]) -> None:
    assert settle([GAP], window=window) == Settled([], [], [])


def test_of_a_gap_what_lies_outside_of_the_window_stays() -> None:
    assert settle([GAP], window=(120, 150)).changes == [
        Update(GAP._replace(end=120)),
        Insert(GAP._replace(id=-1, start=150)),
    ]
    assert settle([GAP], window=(100, 150)).changes == [Update(GAP._replace(start=150))]
    assert settle([GAP], window=(199, 300)).changes == [Update(GAP._replace(end=199))]
    assert settle([GAP], window=(100, 200)) == Settled([Delete(7)], [], [GAP], read_from=100)


def test_a_try_that_fails_again_replaces_what_came_and_is_no_new_gap() -> None:
    found = settle([GAP], unread(150, 160, DENSE, b"x"), unread(170, 180, UNREADABLE, is_narrow=False))
    assert found.opened == found.closed == []
    assert found.changes == [
        Update(GAP._replace(start=150, end=160, kind=DENSE, reason="why 150")),
        ClearEntries(7),
        KeepEntries(7, (b"x",)),
        Insert(GAP._replace(id=-1, start=170, end=180, reason="why 170", is_narrow=False)),
    ]


def test_what_fails_again_in_the_middle_of_a_gap_leaves_one_gap() -> None:
    found = settle([GAP], unread(120, 150, UNREADABLE, b"x"), window=(120, 150))
    assert found == Settled([Update(GAP), ClearEntries(7), KeepEntries(7, (b"x",))], [], [])


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (unread(200, 210), {"end": 210, "reason": "why 200"}),
        (unread(90, 100), {"start": 90, "reason": "why 90"}),
        (unread(201, 210), None),
        (unread(90, 99), None),
        (unread(200, 210, DENSE), None),
        (unread(200, 210, is_narrow=False), None),
    ],
)
def test_what_follows_a_gap_at_once_and_is_like_it_makes_it_longer(part: Unread, change: dict[str, Any] | None) -> None:
    start, end = part.window
    found = settle([GAP], part, window=(start, end))
    assert found.changes[0] == Update(GAP._replace(**change)) if change else isinstance(found.changes[0], Insert)
    assert len(found.opened) == (change is None)
    accepted = settle([GAP._replace(is_accepted=True)], part, window=(start, end))
    assert len(accepted.opened) == 1, "an accepted one does not hide what follows it"


def test_a_gap_between_two_joins_them_with_their_entries() -> None:
    other = GAP._replace(id=8, start=210, end=300)
    found = settle([GAP, other], unread(200, 210, UNREADABLE, b"x"), window=(200, 210))
    assert found.changes == [
        MoveEntries(8, 7),
        Delete(8),
        Update(GAP._replace(end=300, reason="why 200")),
        KeepEntries(7, (b"x",)),
    ]
    assert found.opened == found.closed == []


def test_beyond_500_gaps_of_a_contract_the_nearest_open_one_of_its_kind_grows() -> None:
    gaps = [GAP._replace(id=number, start=number * 10, end=number * 10 + 1) for number in range(500)]
    found = settle(gaps, unread(2007, 2009, gaps[0].kind), window=(2007, 2009))
    assert found.changes == [Update(gaps[201]._replace(start=2007, reason="why 2007"))]
    (insert,) = settle(gaps, unread(2007, 2009, DENSE), window=(2007, 2009)).changes
    assert isinstance(insert, Insert), "the first of a kind is told"
    gaps[201] = gaps[201]._replace(is_accepted=True)
    found = settle(gaps, unread(2007, 2009, gaps[0].kind), window=(2007, 2009))
    assert found.changes == [Update(gaps[200]._replace(end=2009, reason="why 2007"))]
    assert len(settle(gaps[1:], unread(2007, 2009, DENSE), window=(2007, 2009)).opened) == 1


# Segments


def stored(*lengths: int) -> segments.Stored:
    """A segment whose lines have these lengths, with their newlines."""
    made = segments.encode([event(number, line=b"x" * (length - 1)) for number, length in enumerate(lengths)])
    return segments.Stored("1", START, made.directory, made.lines)


@pytest.mark.parametrize(
    ("max_events", "max_bytes", "at_least", "fitting"),
    [
        (9, 99, 0, 3),
        (2, 99, 0, 2),
        (9, 30, 0, 3),
        (9, 29, 0, 2),
        (9, 10, 0, 1),
        (9, 9, 0, 0),
        (9, 9, 1, 1),
        (0, 9, 0, 0),
    ],
)
def test_as_many_events_fit_as_their_count_and_bytes_allow(
    max_events: int, max_bytes: int, at_least: int, fitting: int
) -> None:
    assert stored(10, 10, 10).fitting(max_events, max_bytes, at_least=at_least) == fitting


def test_a_slice_of_a_segment_holds_its_own_lines() -> None:
    whole = stored(10, 20, 30)
    part = whole.slice(1, 2)
    assert (part.event_count, part.size_bytes, part.lengths()) == (1, 20, [20])
    assert segments.decode(part) == segments.decode(whole)[1:2]
    assert segments.decode(whole.slice(0, 3)) == segments.decode(whole)
    assert segments.stored_events([whole, part]).longest_bytes() == 30


def test_segments_are_cut_at_the_event_and_the_byte() -> None:
    small = [event(number, line=b"") for number in range(1001)]
    assert [len(part) for part in segments.cut(small)] == [1000, 1]
    half = segments.MAX_BYTES // 2
    for more, cut in ((0, [2, 1]), (1, [1, 2])):
        sizes = (half - 1, half - 1 + more, 0)
        assert [len(part) for part in segments.cut([event(0, line=b"x" * size) for size in sizes])] == cut
    assert list(segments.cut([])) == []


@pytest.mark.parametrize("change", [{"contract": "2"}, {"collected_at": 8}, {"directory": b"e"}, {"lines": b"m"}])
def test_a_checksum_covers_all_that_is_read_back(change: dict[str, Any]) -> None:
    parts: dict[str, Any] = {"contract": "1", "collected_at": 7, "directory": b"d", "lines": b"l"}
    assert segments.checksum(**parts) == zlib.crc32(b"1 7dl")
    assert segments.checksum(**parts | change) != segments.checksum(**parts)


# The ledger


@pytest.mark.parametrize(
    ("times_us", "expected"),
    [
        ([], []),
        ([5], [(5, 5)]),
        ([5, 5 + DAY_US], [(5, 5 + DAY_US)]),
        ([5, 6 + DAY_US], [(5, 5), (6 + DAY_US, 6 + DAY_US)]),
        ([0, DAY_US, 2 * DAY_US, 9 * DAY_US, 10 * DAY_US], [(0, 2 * DAY_US), (9 * DAY_US, 10 * DAY_US)]),
    ],
)
def test_times_are_covered_by_spans_without_a_gap_of_more_than_a_day(
    times_us: list[int], expected: list[tuple[int, int]]
) -> None:
    assert list(identities.spans(times_us)) == expected


def test_the_numbers_of_a_day_come_back_by_the_hour() -> None:
    counts = {48: 1, 71: (1 << 32) - 1, 47: 5, 72: 6}
    packed = identities.pack_day(2, counts)
    assert identities.unpack_day(2, packed) == {48: 1, 71: (1 << 32) - 1}
    for blob in (packed[:-1], b"", zlib.compress(struct.pack("<23I", *range(23)))):
        with pytest.raises(ValueError, match="fail their checksum"):
            identities.unpack_day(2, blob)


def test_identities_are_packed_one_behind_the_other() -> None:
    three = [event(number, START - number) for number in range(3)]
    first, last, blob = identities.packed(three)
    assert (first, last) == (three[2].time_us, three[0].time_us)
    assert list(identities.unpacked([blob, b"", blob[:16]])) == [
        *(one.identity for one in three),
        three[0].identity,
    ]


# Letters and the journal


def test_letters_are_handled_a_thousand_or_eight_megabytes_at_once() -> None:
    def of(size: int) -> StoredLetter:
        return StoredLetter(1, "s", "1", 0, 0, b"", 0, b"x" * size, None, "", 0.0)

    assert [len(piece) for piece in letters.pieces(of(0) for _ in range(2001))] == [1000, 1000, 1]
    large = letters.PIECE_BYTES
    assert [len(piece) for piece in letters.pieces([of(large), of(large - 1), of(1), of(1)])] == [1, 2, 1]
    assert [len(piece) for piece in letters.pieces([of(large - 1), of(1), of(1)])] == [2, 1]
    assert list(letters.pieces([])) == []


def test_what_is_done_by_hand_becomes_a_line_that_can_be_stored() -> None:
    action = Action(
        Person(7, "an\udc80", "r\udc80"), "a\udc80", "s\udc80", reason="w\udc80", export="e\udc80", clock=lambda: 9.9
    )
    assert action.new_entry() == JournalEntry(0, 9, 7, "an?", "r?", "a?", "s?", None, "w?", "e?")
    assert Action(SIGNAL, "reload", clock=lambda: 1).new_entry() == JournalEntry(
        0, 1, None, "signal", "", "reload", "", None, "", None
    )
    assert action.entry is None


def test_what_is_in_a_line_of_the_journal_is_logged_without_what_is_empty() -> None:
    entry = JournalEntry(1, 2, 0, "anna", "", "purge", "loki", 0, "", None)
    assert entry.fields == {
        "id": 1,
        "at": "1970-01-01T00:00:02Z",
        "uid": 0,
        "login": "anna",
        "action": "purge",
        "subject": "loki",
        "count": 0,
    }
    assert str(entry.person) == "anna"
    assert entry._replace(sudo_user="root").person == Person(0, "anna", "root")
