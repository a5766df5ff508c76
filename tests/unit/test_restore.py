"""Taking entries out of an archive: each object is checked first, and a new state knows the archived entries."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poller.core.answers import parse_page
from poller.core.errors import PollerError, StateHeldError
from poller.core.events import OutboxEvent
from poller.core.evidence.compose import DueHour
from poller.core.evidence.digest import DIGESTS, StatedGap, StatedRange, decode, digest_key, encode, sha256
from poller.core.gaps import REFUSED, UNREADABLE
from poller.core.mapping.moesif import ActionMaker
from poller.core.mapping.otel import record_of
from poller.core.mapping.redact import Redactor
from poller.core.windows import Window, format_time
from poller.pipeline import restore
from poller.pipeline.restore import (
    DamagedArchiveError,
    Rebuilder,
    chosen_objects,
    claimed,
    digests_of,
    events_in,
    lines_in,
)
from poller.store.sqlite import State
from tests.archives import CONTRACTS, HOUR, START, MemoryPlace, Writer, archive_of, entry, signer, verify

NOW = START + 100 * HOUR
TIMED = b'{"@uuid":"%08d-0000-4000-8000-000000000000","meta":{"time":"2026-01-01T00:%02d:00Z"}}'


def timed(number: int, contract: str = CONTRACTS[0], line: bytes | None = None) -> Any:
    """An entry with a time: this minute of the first hour."""
    made = entry(number, 0, contract).with_line(line or TIMED % (number, number))
    return msgspec.structs.replace(made, time_us=(START + number * 60) * 1_000_000)


def written(*batches: list[Any], key: Any = None) -> MemoryPlace:
    place = MemoryPlace()
    writer = Writer(place, key)
    for batch in batches:
        writer.write(batch)
    return place


def changed(place: MemoryPlace, number: int = 1, /, **changes: Any) -> MemoryPlace:
    """The place, with changed values in a digest."""
    digest = decode(place.objects[digest_key(number)])
    place.objects[digest_key(number)] = encode(msgspec.structs.replace(digest, **changes))
    return place


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[State]:
    with closing(State.open(tmp_path / "state", "run")) as state:
        yield state


# Reading


def test_digests_come_in_order_with_their_hashes() -> None:
    place, known = archive_of(3)
    found = list(digests_of(place))
    assert [(number, digest.number) for number, _, digest in found] == [(1, 1), (2, 2), (3, 3)]
    assert [each for _, each, _ in found] == [sha256(place.objects[digest_key(number)]) for number in (1, 2, 3)]
    assert found[-1][1] == known.sha256


@pytest.mark.parametrize(
    ("damage", "where", "why"),
    [
        (lambda place: place.objects.clear(), 1, "is missing"),
        (lambda place: place.objects.pop(digest_key(1)), 1, "is missing"),
        (lambda place: place.objects.pop(digest_key(2)), 2, "is missing"),
        (lambda place: place.objects.update({digest_key(3): b"{}"}), 3, "is no digest"),
        (lambda place: changed(place, 2, number=4), 2, "does not follow the one before"),
        (lambda place: changed(place, 2, program="other"), 3, "does not follow the one before"),
    ],
)
def test_a_chain_that_is_broken_is_told_with_the_first_that_is_wrong(damage: Any, where: int, why: str) -> None:
    place, _ = archive_of(3)
    damage(place)
    with pytest.raises(DamagedArchiveError, match=why) as told:
        list(digests_of(place))
    assert digest_key(where) in str(told.value)
    assert "archive verify" in told.value.hint


def test_what_lies_beside_the_digests_is_none() -> None:
    place, _ = archive_of(1, key=signer())
    place.objects[f"{DIGESTS}notes.txt"] = b""
    assert [number for number, _, _ in digests_of(place)] == [1]


@pytest.mark.parametrize(
    ("span", "contracts", "hours"),
    [
        (None, (), [0, 1, 2]),
        (Window(START + HOUR - 1, START + HOUR), (), [0]),
        (Window(START + HOUR, START + HOUR + 1), (), [1]),
        (Window(START + HOUR - 1, START + HOUR + 1), (), [0, 1]),
        (None, ("9",), []),
        (Window(START + 2 * HOUR, START + 9 * HOUR), (CONTRACTS[0],), [2]),
    ],
)
def test_objects_are_chosen_by_the_hours_that_a_span_touches_and_by_contract(
    span: Window | None, contracts: tuple[str, ...], hours: list[int]
) -> None:
    digest = decode(written([entry(hour, hour) for hour in range(3)]).objects[digest_key(1)])
    found = [row.hour for row in chosen_objects(digest, span, contracts)]
    assert found == [f"2026-01-01T0{hour}:00:00Z" for hour in hours]


def test_entries_come_out_as_they_went_in_with_their_times_and_identities() -> None:
    # The second and third are equal, so that their identities are stored with them.
    equals = [msgspec.structs.replace(timed(2), ordinal=n, identity=bytes([n]) * 16) for n in (1, 2)]
    untimed = entry(9, 0)
    place = written([timed(1), *equals, untimed])
    (row,) = decode(place.objects[digest_key(1)]).objects
    assert lines_in(place, row) == [event.line for event in [timed(1), *equals, untimed]]
    found = events_in(place, row)
    assert [event.line for event in found] == lines_in(place, row)
    assert [event.identity for event in found][1:3] == [same.identity for same in equals]
    # An entry without a time gets the start of its hour.
    assert [event.time_us // 1_000_000 - START for event in found] == [60, 120, 120, 0]


@pytest.mark.parametrize("time", ["2025-01-01T00:00:00Z", "2026-01-01T01:00:00Z", "yesterday", "9999-01-01T00:00:00Z"])
def test_an_entry_with_a_time_that_could_not_be_used_is_of_the_hour_that_it_was_archived_in(
    fresh: State, time: str
) -> None:
    window = Window(START, START + HOUR)
    page = parse_page(b'[{"@uuid":"a","meta":{"time":"%s"}}]' % time.encode())
    (event,) = (event.at((window.end - 1) * 1_000_000) for event in page.events)  # as it is collected
    place = written([OutboxEvent(CONTRACTS[0], event.time_us, NOW, event.identity, 0, event.line)])
    (row,) = decode(place.objects[digest_key(1)]).objects
    (found,) = events_in(place, row)
    assert (found.identity, found.is_timed, found.time_us // 1_000_000) == (event.identity, False, START)
    Rebuilder(place, "archive", "default", NOW).into(fresh)
    assert fresh.contracts.unseen(CONTRACTS[0], [event]) == []


@pytest.mark.parametrize("redact", [lambda line: line, Redactor(mask=["v"]), Redactor(drop=["v"])])
@pytest.mark.parametrize(
    ("lines", "ordinals"),
    [
        ([b'{"v":0,"n":1}'] * 3, [0, 1, 2]),
        ([b'{"v":0,"n":1}', b'{"v":0,"n":2}', b'{"v":0,"n":1}'], [0, 0, 1]),
        ([b'{"@uuid":"00000001-0000-4000-8000-000000000000","n":%d,"v":0}' % n for n in (1, 2)], [1, 1]),
        ([b'{"@uuid":"00000001-0000-4000-8000-000000000000","s":"\\ud80%d"}' % n for n in (1, 2)], [1, 1]),
        ([b'{"@uuid":"***","n":%d}' % n for n in (1, 2)], [0, 0]),
        ([b'{"@uuid":"hmac:00112233445566778899aabbccddeeff","n":%d}' % n for n in (1, 2)], [0, 0]),
    ],
)
def test_entries_that_are_alike_are_told_apart_again(
    redact: Callable[[bytes], bytes], lines: list[bytes], ordinals: list[int]
) -> None:
    # Loki merges equal lines with the same time; Moesif merges actions with the same `transaction_id`.
    identities = [bytes([number]) * 16 for number in range(len(lines))]
    place = written(
        [
            msgspec.structs.replace(timed(1, line=redact(line)), identity=identity)
            for line, identity in zip(lines, identities, strict=True)
        ]
    )
    (row,) = decode(place.objects[digest_key(1)]).objects
    found = events_in(place, row)
    assert [(event.identity, event.ordinal) for event in found] == [*zip(identities, ordinals, strict=True)]
    sent = [OutboxEvent("1", START, NOW, event.identity, event.ordinal, event.line) for event in found]
    assert len({json.loads(ActionMaker().make(event))["transaction_id"] for event in sent}) == len(lines)
    assert len({(record.body, record.time_ns) for record in map(record_of, sent)}) == len(lines)


def test_an_object_is_parsed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "_AT_ONCE", 2)
    without_id = [timed(n, line=b'{"n":%d}' % n) for n in range(1, 6)]
    place = written(without_id)
    (row,) = decode(place.objects[digest_key(1)]).objects
    assert [event.identity for event in events_in(place, row)] == [event.identity for event in without_id]
    assert [event.line for event in events_in(place, row)] == [event.line for event in without_id]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: None, "is missing"),
        (lambda content: content + b"x", "was changed"),
    ],
)
def test_an_object_that_is_not_what_was_written_is_told(damage: Any, why: str) -> None:
    place = written([timed(1)])
    (row,) = decode(place.objects[digest_key(1)]).objects
    place.objects[row.key] = damage(place.objects[row.key])
    with pytest.raises(DamagedArchiveError, match=why) as told:
        events_in(place, row)
    assert row.key in str(told.value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no gzip", "is not one gzip member"),
        (gzip.compress(b'{"n":1}\n') * 2, "is not one gzip member"),
        (gzip.compress(b'{"n":1}\n' * 100_000), "holds more than its digest counts"),
        (gzip.compress(b'{"n":1}\n7\n'), "holds something that is not an entry"),
    ],
    ids=["text", "two members", "more than is counted", "a number"],
)
def test_an_object_that_was_written_wrong_is_told(content: bytes, why: str) -> None:
    place = written([timed(1)])
    (row,) = decode(place.objects[digest_key(1)]).objects
    place.objects[row.key] = content
    with pytest.raises(PollerError, match=why) as told:
        events_in(place, msgspec.structs.replace(row, sha256=sha256(content), bytes=len(content)))
    assert row.key in str(told.value)


# A new state


def test_a_new_state_knows_what_was_archived_and_sends_it_to_nobody(fresh: State) -> None:
    place = written([timed(1), timed(2)], [timed(3), timed(4, CONTRACTS[1])], key=signer())
    fresh.outbox.register("out", "stdout")
    made = Rebuilder(place, "archive", "second", NOW).into(fresh)
    digest = decode(place.objects[digest_key(2)])
    assert (made.contracts, made.entries, made.number) == (2, 4, 2)
    head = fresh.overview().archives.get("archive")
    assert head is not None
    assert (head.archive, head.number, head.entries) == (digest.archive, 2, 4)
    assert (head.sha256, head.key, head.written_at) == (sha256(place.objects[digest_key(2)]), signer().key, NOW)
    for row in fresh.contracts.all():
        assert (row.account, row.origin, row.watermark) == ("second", START, START + 9 * HOUR)
    for number in (1, 2):
        for row in decode(place.objects[digest_key(number)]).objects:
            assert fresh.contracts.unseen(row.contract, events_in(place, row)) == []
    assert fresh.overview().imbalances() == []
    assert [row.waiting for row in fresh.overview().sinks] == [0]


@pytest.mark.parametrize(
    "redact",
    [
        Redactor(mask=["@uuid"]),
        Redactor(hashed=["@uuid"], key=b"k"),
        Redactor(drop=["@uuid"]),
        Redactor(drop=["event"]),
        lambda line: line,
    ],
)
def test_a_new_state_knows_entries_that_were_redacted_as_the_api_gives_them(
    fresh: State, redact: Callable[[bytes], bytes]
) -> None:
    given = parse_page(
        b"[%s]" % b",".join([*(TIMED % (n, n) for n in (1, 2)), b'{"meta":{"time":"2026-01-01T00:03:00Z"}}'])
    )
    sent = [
        OutboxEvent(CONTRACTS[0], event.time_us, NOW, event.identity, 0, redact(event.line)) for event in given.events
    ]
    Rebuilder(written(sent[:1], sent[1:]), "archive", "default", NOW).into(fresh)
    assert fresh.contracts.unseen(CONTRACTS[0], given.events) == []
    assert fresh.contracts.counts(CONTRACTS[0], START, START + HOUR)[START].collected == len(sent)


def test_the_new_state_goes_on_with_the_key_that_was_announced(fresh: State) -> None:
    place = MemoryPlace()
    Writer(place, signer(1)).write([timed(1)], next_key=signer(2))
    Rebuilder(place, "archive", "default", NOW).into(fresh)
    head = fresh.overview().archives.get("archive")
    assert head is not None
    assert head.key == signer(2).key


def test_what_is_held_of_each_hour_is_known(fresh: State) -> None:
    Rebuilder(written([timed(1), timed(2)], [timed(3)]), "archive", "default", NOW).into(fresh)
    fresh.archives.close_hours("archive", CONTRACTS[0], {START: 3})
    assert fresh.archives.has_to_state("archive"), "the hour is complete, and can be stated"


def test_only_where_nothing_waited_for_the_archive_is_all_up_to_there_in_it(fresh: State) -> None:
    place = written([timed(1)], [timed(2)])
    books = decode(place.objects[digest_key(2)]).books
    later = {CONTRACTS[0]: msgspec.structs.replace(books.contracts[CONTRACTS[0]], complete_to="2026-01-02T00:00:00Z")}
    changed(place, 2, books=msgspec.structs.replace(books, contracts=later, is_all=False))
    Rebuilder(place, "archive", "default", NOW).into(fresh)
    assert {row.contract: row.watermark for row in fresh.contracts.all()} == dict.fromkeys(CONTRACTS, START + 9 * HOUR)


def stating(place: MemoryPlace, number: int, *, is_all: bool = True, **books: Any) -> MemoryPlace:
    """The place, with changed books of the first contract in a digest."""
    digest = decode(place.objects[digest_key(number)])
    known = digest.books.contracts
    contracts = {CONTRACTS[0]: msgspec.structs.replace(known[CONTRACTS[0]], **books)}
    changed(place, number, books=msgspec.structs.replace(digest.books, contracts=contracts, is_all=is_all))
    if digest_key(number + 1) in place.objects:
        changed(place, number + 1, previous=sha256(place.objects[digest_key(number)]))
    return place


def at(hour: float) -> str:
    return format_time(START + int(hour * HOUR))


def span(start: float, end: float) -> Window:
    return Window(START + int(start * HOUR), START + int(end * HOUR))


def gap(start: float, end: float, kind: str = REFUSED) -> StatedGap:
    return StatedGap(at(start), at(end), kind)


def again(start: float, end: float, purpose: str = "repair") -> StatedRange:
    return StatedRange(at(start), at(end), purpose)


def test_gaps_that_were_open_and_spans_still_to_be_read_are_so_in_the_new_state(fresh: State) -> None:
    place = written([timed(1)])
    stating(place, 1, gaps=(gap(2, 2.5), gap(8, 12, UNREADABLE), gap(10, 11)), ranges=(again(0, 3, "since"),))
    made = Rebuilder(place, "archive", "default", NOW).into(fresh)
    found = fresh.gaps.find(CONTRACTS[0])
    # The time after the watermark is read anyway.
    assert [(one.window, one.kind) for one in found] == [(span(2, 2.5), REFUSED), (span(8, 9), UNREADABLE)]
    assert all(one.is_open and one.is_due(NOW) and one.first_seen == NOW for one in found)
    assert [(one.window, one.purpose) for one in fresh.contracts.ranges(CONTRACTS[0])] == [(span(0, 3), "since")]
    assert (made.gaps, made.ranges) == (2, 1)
    assert {row.contract: row.watermark for row in fresh.contracts.all()} == {CONTRACTS[0]: START + 9 * HOUR}


def test_a_gap_that_was_closed_by_the_last_digest_of_which_all_was_in_the_archive_is_none(fresh: State) -> None:
    place = written([timed(1)], [timed(2)])
    stating(place, 1, gaps=(gap(2, 3),), ranges=(again(1, 2),))
    stating(place, 2, gaps=(), ranges=())
    made = Rebuilder(place, "archive", "default", NOW).into(fresh)
    assert (made.gaps, made.ranges) == (0, 0)


def test_a_gap_that_was_closed_while_its_entries_may_have_waited_is_read_again(fresh: State) -> None:
    place = written([timed(1)], [timed(2)])
    stating(place, 1, complete_from=at(1), gaps=(gap(2, 3),), ranges=(again(3, 4),))
    stating(place, 2, is_all=False, complete_to=at(20), gaps=(gap(5, 6),), ranges=())
    Rebuilder(place, "archive", "default", NOW).into(fresh)
    assert [one.window for one in fresh.gaps.find()] == [span(2, 3), span(5, 6)]
    # The second digest is complete from an earlier time: events of the span between may have waited, too.
    assert [one.window for one in fresh.contracts.ranges(CONTRACTS[0])] == [span(0, 1), span(3, 4)]
    assert {row.watermark for row in fresh.contracts.all()} == {START + 9 * HOUR}


def test_of_digests_that_name_no_gaps_all_is_read_again_that_no_statement_proves(fresh: State) -> None:
    """Digests of earlier versions. Hour 0 is proven, hour 1 lacks entries, and for hour 2 the newest statement counts."""
    place = MemoryPlace()
    writer = Writer(place, None)
    due = [DueHour(CONTRACTS[0], START + hour * HOUR, api, 0) for hour, api in ((1, 4), (2, 0), (3, None))]
    writer.write([timed(1)], [DueHour(CONTRACTS[0], START, 1, 1), *due])
    writer.write([], [DueHour(CONTRACTS[0], START + 2 * HOUR, 1, 0), DueHour(CONTRACTS[0], START + 4 * HOUR, 0, 0)])
    for number in (1, 2):
        stating(place, number, gaps=None, ranges=None)
    made = Rebuilder(place, "archive", "default", NOW).into(fresh)
    assert [one.window for one in fresh.contracts.ranges(CONTRACTS[0])] == [span(1, 4), span(5, 9)]
    assert (made.gaps, made.ranges) == (0, 2)


def test_a_digest_without_gaps_and_ranges_keeps_its_bytes() -> None:
    place = stating(written([timed(1)]), 1, gaps=None, ranges=None)
    content = place.objects[digest_key(1)]
    assert b'"gaps"' not in content
    assert b'"ranges"' not in content
    assert encode(decode(content)) == content
    assert verify(place).findings == []


def test_where_something_always_waited_it_goes_on_from_the_beginning(fresh: State) -> None:
    place = written([timed(1)])
    books = decode(place.objects[digest_key(1)]).books
    changed(place, books=msgspec.structs.replace(books, is_all=False))
    Rebuilder(place, "archive", "default", NOW).into(fresh)
    assert {row.watermark for row in fresh.contracts.all()} == {START}


def test_a_contract_of_a_backfill_alone_goes_on_from_the_last_hour_that_is_archived(fresh: State) -> None:
    hours = [msgspec.structs.replace(entry(n, n), contract="7") for n in (1, 3)]
    Rebuilder(written([hours[1]], [hours[0]]), "archive", "default", NOW).into(fresh)
    row = fresh.contracts.get("7")
    assert row is not None
    assert (row.origin, row.watermark) == (START + 3 * HOUR, START + 3 * HOUR)


@pytest.mark.backends("postgres")
def test_a_contract_that_a_process_holds_which_was_killed_just_now_is_told(opened: Callable[[], State]) -> None:
    # A second restore within the lease ended with an internal error.
    with closing(opened()) as killed, closing(opened()) as again:
        killed.contracts.enrol(["1"], "default", START, NOW)
        assert killed.contracts.claim("1") is not None
        with (
            pytest.raises(StateHeldError, match=r"contract 1: another process has it \(wait until"),
            claimed(again, "1"),
        ):
            pass


def test_entries_in_another_format_than_raw_cannot_be_recognised(fresh: State) -> None:
    place = changed(written([timed(1)]), entry_format="ocsf")
    with pytest.raises(DamagedArchiveError, match="in the format ocsf"):
        Rebuilder(place, "archive", "default", NOW).into(fresh)
    assert fresh.contracts.all() == []
