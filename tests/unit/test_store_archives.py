"""The tables of an archive: a batch is committed as a whole and once, together with its head, the sink's place and the hours."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from poller.core.errors import StateError
from poller.core.evidence.batches import Head, Packed, PreparedBatch, pack
from poller.core.evidence.compose import Facts, compose
from poller.core.evidence.digest import StatedGap, StatedRange, decode, encode, sha256
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window, format_time
from poller.store.parts import Place
from poller.store.protocols import State
from tests.states import HOUR, NOW, START, commit, event

SINK = "proof"
pytestmark = pytest.mark.backends("sqlite")


@contextmanager
def whole_place(state: State) -> Iterator[Place]:
    place = state.outbox.take(SINK, is_whole=True)
    assert place is not None
    yield place
    place.release()


def packed(place: Place, count: int, number: int) -> list[Packed]:
    """The objects for the next events."""
    found = place.batch(count, 10**9) if count else None
    return pack(found.events, number, lambda texts: zlib.compress(b"".join(texts))) if found else []


def prepare(
    state: State, count: int, *, number: int = 1, keys_of: int = 0, writer: str = "", seen: list[Facts] | None = None
) -> PreparedBatch | None:
    """Commit a batch of the next events, with the keys of another one if `keys_of` is given."""
    with whole_place(state) as place:
        objects = packed(place, count, keys_of or number)

        def seal(facts: Facts) -> tuple[bytes, bytes | None]:
            if seen is not None:
                seen.append(facts)
            entries = [one.entry for one in objects]
            settings: dict[str, Any] = {"program": "p", "entry_format": "raw", "key": None, "next_key": "next"}
            return encode(compose(facts, entries, written_at=NOW, **settings)), b"signature"

        return state.archives.prepare(SINK, place, count, objects, seal, NOW, writer=writer)


def waiting(state: State) -> list[int]:
    with whole_place(state) as place:
        found = place.batch(10**9, 10**9)
        return [json.loads(one.line)["n"] for one in found.events] if found else []


@pytest.fixture
def archive(state: State) -> State:
    """Three events of one hour and one of the next wait for an archive that began with the state."""
    state.archives.begin(SINK, NOW)
    state.outbox.register(SINK, "archive")
    commit(state, [event(1), event(2), event(3), event(4, START + HOUR)], window=Window(START, START + 2 * HOUR))
    return state


def test_an_archive_says_from_when_on_it_holds_all(state: State) -> None:
    assert state.overview().archives.get("other") is None
    first = state.archives.begin("early", NOW)
    assert first == Head(first.archive, 0, first.sha256, None, 0, 0, None)
    commit(state, [event(1)])
    later = state.archives.begin("late", NOW + 5)
    assert (later.since, later.archive == first.archive) == (NOW + 5, False)
    assert state.archives.begin("early", NOW + 9) == first == state.overview().archives.get("early")
    assert state.overview().archives == {"early": first, "late": later}


def test_a_batch_is_committed_once_and_as_it_will_be_written(archive: State) -> None:
    assert archive.archives.prepared(SINK) is None
    seen: list[Facts] = []
    batch = prepare(archive, 3, seen=seen)
    assert batch is not None
    assert batch[:4] == (1, "", 3, NOW)
    assert batch.signature == b"signature"
    assert len(batch.objects) == 1
    found = archive.archives.prepared(SINK)
    assert found is not None
    assert (found[:6], list(found.objects)) == (batch[:6], list(batch.objects))
    assert prepare(archive, 3) is None, "one is being written"
    (facts,) = seen
    assert (facts.assigned, facts.delivered, facts.dead, facts.waiting) == (4, 3, 0, 1)
    assert [(row.contract, row.fetched, row.new, row.origin) for row in facts.contracts] == [("1", 4, 4, START)]
    assert (facts.due, facts.gaps) == ([], {})


def test_a_batch_is_on_the_disk_when_it_is_committed_and_so_is_what_was_committed_before(archive: Any) -> None:
    # After a power cut another batch had its number: what was written of it was no part of the archive, for ever.
    said: list[str] = []
    with archive._database.reading() as connection:
        connection.set_trace_callback(said.append)
    steps = ("PRAGMA synchronous = FULL", "BEGIN IMMEDIATE", "COMMIT", "PRAGMA synchronous = NORMAL")
    for commit_one in (lambda: prepare(archive, 2), lambda: archive.remember_for_good("name", "value")):
        said.clear()
        commit_one()
        assert [step for step in said if step in steps] == list(steps)
    assert archive.fact("name") == "value"


def test_a_batch_with_the_number_of_another_is_not_committed(archive: State) -> None:
    assert prepare(archive, 3, keys_of=2) is None
    assert archive.archives.prepared(SINK) is None


def test_what_is_written_moves_the_head_and_the_sink_and_is_known_by_its_hours(archive: State) -> None:
    batch = prepare(archive, 4)
    assert batch is not None
    assert not archive.archives.complete(SINK, 2, NOW + 9)
    assert archive.archives.complete(SINK, 1, NOW + 9)
    assert not archive.archives.complete(SINK, 1, NOW + 9)
    head = archive.overview().archives.get(SINK)
    assert head is not None
    assert head[1:] == (1, sha256(batch.digest), "next", 4, 0, NOW + 9)
    assert (waiting(archive), archive.archives.prepared(SINK)) == ([], None)
    assert [row.delivered for row in archive.outbox.sinks() if row.name == SINK] == [4]
    assert archive.overview().imbalances() == []
    assert not archive.archives.has_to_state(SINK)
    archive.archives.close_hours(SINK, "1", {START: 3, START + HOUR: 2, START + 2 * HOUR: None})
    assert archive.archives.has_to_state(SINK)
    seen: list[Facts] = []
    stated = prepare(archive, 0, number=2, seen=seen)
    assert stated is not None
    assert [hour[1:] for hour in seen[0].due] == [(START, 3, 3), (START + HOUR, 2, 1), (START + 2 * HOUR, None, 0)]
    assert [row.contract for row in seen[0].contracts] == ["1"]
    assert len(decode(stated.digest).statements) == 3
    assert archive.archives.complete(SINK, 2, NOW + 10)
    assert not archive.archives.has_to_state(SINK), "it is stated as it is"


def test_a_new_chain_forgets_the_batch_and_the_hours_of_the_one_before_and_no_event(archive: State) -> None:
    assert archive.archives.place(SINK) is None
    archive.archives.remember_place(SINK, "old")
    before = archive.overview().archives.get(SINK)
    assert before is not None
    assert prepare(archive, 3) is not None
    assert archive.archives.complete(SINK, 1, NOW)
    archive.archives.close_hours(SINK, "1", {START: 3})
    assert prepare(archive, 1, number=2) is not None
    for _ in range(2):  # the second time by another process
        archive.archives.begin_anew(SINK, before.archive, "new", NOW + 7)
    head = archive.overview().archives.get(SINK)
    assert head is not None
    assert head[1:] == (0, "", None, 0, NOW + 7, None)
    assert head.archive != before.archive
    assert (archive.archives.prepared(SINK), archive.archives.has_to_state(SINK)) == (None, False)
    assert (archive.archives.place(SINK), waiting(archive)) == ("new", [4])
    assert not archive.archives.complete(SINK, 2, NOW), "a process that still writes it moves nothing on"


def test_the_books_name_the_open_gaps_and_the_spans_still_to_be_read_of_each_contract(archive: State) -> None:
    archive.contracts.enrol(["2"], "default", START, START)
    spans = [Window(START + second, START + second + 1) for second in (5, 7)]
    for contract in ("1", "2"):
        commit(archive, [], contract=contract, unread=[Unread(one, UNREADABLE, "no") for one in spans])
        archive.contracts.add_range(contract, Window(START + 10, START + 20), "repair")
    archive.gaps.accept(archive.gaps.find("1")[1].id)
    batch = prepare(archive, 4)
    assert batch is not None
    books = decode(batch.digest).books.contracts
    assert list(books) == ["1"]
    times = [format_time(START + second) for second in (5, 6, 10, 20)]
    assert books["1"].gaps == (StatedGap(times[0], times[1], UNREADABLE),)
    assert books["1"].ranges == (StatedRange(times[2], times[3], "repair"),)


def test_the_gaps_of_the_contracts_that_are_stated_are_told(archive: State) -> None:
    archive.contracts.enrol(["2"], "default", START, START)
    for contract in ("1", "2"):
        gap = Unread(Window(START + 5, START + 6), UNREADABLE, "no")
        commit(archive, [], contract=contract, unread=[gap])
    batch = prepare(archive, 4)
    assert batch is not None
    archive.archives.complete(SINK, 1, NOW)
    archive.archives.close_hours(SINK, "1", {START: None})
    seen: list[Facts] = []
    prepare(archive, 0, number=2, seen=seen)
    assert seen[0].gaps == {"1": [(Window(START + 5, START + 6), UNREADABLE)]}


def test_events_of_another_state_count_apart_and_move_no_sink_here(archive: State) -> None:
    assert archive.archives.archived(SINK, "backfill-1") == 0
    for number in (1, 2):
        seen: list[Facts] = []
        assert prepare(archive, 2, number=number, writer="backfill-1", seen=seen) is not None
        assert (seen[0].delivered, seen[0].waiting) == (0, 4), "what waits here waits on"
        assert archive.archives.complete(SINK, number, NOW)
    assert archive.archives.archived(SINK, "backfill-1") == 4
    assert archive.archives.archived(SINK, "backfill-2") == 0
    assert waiting(archive) == [1, 2, 3, 4]


def test_a_sink_that_was_forgotten_meanwhile_is_not_moved(archive: State) -> None:
    assert prepare(archive, 3) is not None
    archive.outbox.forget(SINK)
    archive.outbox.register(SINK, "archive")
    commit(archive, [event(9)])
    assert archive.archives.complete(SINK, 1, NOW)
    assert waiting(archive) == [9]


def test_the_head_of_an_archive_that_another_state_wrote_is_taken_over_with_its_hours(state: State) -> None:
    head = Head("a" * 32, 7, "b" * 64, "key", 12, START, float(NOW))
    state.archives.adopt(SINK, head, {("1", START): 5, ("1", START + 30 * HOUR): 6})
    assert state.overview().archives.get(SINK) == head
    state.outbox.register(SINK, "archive")
    state.archives.close_hours(SINK, "1", {START: 5, START + 30 * HOUR: 7})
    seen: list[Facts] = []
    assert prepare(state, 0, number=8, seen=seen) is not None
    assert [hour[1:] for hour in seen[0].due] == [(START, 5, 5), (START + 30 * HOUR, 7, 6)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE archive_objects SET content = x'00'", "a batch of an archive is not what its digest names"),
        ("UPDATE archive_days SET counts = x'00'", "the counts of a day are damaged"),
    ],
)
def test_a_flipped_bit_in_what_is_to_be_written_is_found(archive: State, change: str, words: str) -> None:
    archive.archives.close_hours(SINK, "1", {START: 3})
    prepare(archive, 4)
    with archive._database.transaction() as connection:  # type: ignore[attr-defined]
        connection.execute(change)
    look = archive.archives.prepared if "objects" in change else lambda sink: archive.archives.complete(sink, 1, NOW)
    with pytest.raises(StateError, match=words):
        look(SINK)
