"""Writing an archive: the content of a batch is committed before it is written, and every retry writes the same objects."""

from __future__ import annotations

import gzip
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from copy import copy
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from poller.archive import PlaceError, TakenError
from poller.archive.signing import is_signed_by, new_key, read_public_key
from poller.config import ArchiveSink as Settings
from poller.config import Config, Evidence, Outbox
from poller.core.errors import LeaseLostError, StateUnavailableError
from poller.core.evidence.batches import Head
from poller.core.evidence.digest import StatedGap, decode, digest_key, fingerprint, sha256, signature_key
from poller.core.gaps import UNREADABLE, Unread
from poller.core.windows import Window, format_time
from poller.pipeline.archive import ArchiveDeliverer, HourCloser, closed_hours
from poller.pipeline.audit import Audited, Difference
from poller.pipeline.restore import Rebuilder
from poller.pipeline.verify import Report, Verifier
from poller.sinks.archive import ArchiveSink
from poller.sinks.base import Context
from poller.store.archives import WRITER
from poller.store.protocols import State
from poller.store.rows import DeadLetter
from poller.store.sqlite import State as FileState
from tests.archives import MemoryPlace
from tests.states import HOUR, START, commit, event

NAME = "archive"
NOW = START + 30 * HOUR
_numbers = count()


class Killed(BaseException):
    """The process is gone."""


class Unreliable(MemoryPlace):
    """Fails, or kills its writer, before or after an object is written."""

    def __init__(self, chance: random.Random | None = None, share: float = 0.0) -> None:
        super().__init__()
        self.chance = chance or random.Random(0)
        self.share = share
        self.failures: list[BaseException] = []
        self.written: Counter[str] = Counter()
        self.puts_left: int | None = None

    def kill_after(self, puts: int) -> None:
        """Kill the writer after `puts` objects; 0: before the first."""
        self.puts_left = puts

    def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
        if self.failures:
            raise self.failures.pop(0)
        kind = (
            self.chance.choice(("before", "after", "unavailable", "lost")) if self.chance.random() < self.share else ""
        )
        if kind == "before":
            raise Killed
        if kind == "unavailable":
            raise PlaceError("503 SlowDown")
        if self.puts_left == 0:
            self.puts_left = None
            raise Killed
        self.written[key] += key not in self.objects
        super().put(key, content)
        if self.puts_left is not None:
            self.puts_left -= 1
            if not self.puts_left:
                self.puts_left = None
                raise Killed
        if kind == "after":
            raise Killed
        if kind == "lost":
            raise PlaceError("no answer")


class Bench:
    """A state with an archive, and a clock that moves only when a test moves it."""

    def __init__(
        self, open_: Callable[[str], State], directory: Path, place: MemoryPlace | None = None, **settings: object
    ) -> None:
        """`open_` opens a state by the name of its use."""
        self.open = open_
        self.place = place or MemoryPlace()
        self.now = float(NOW)
        self.private, self.public = directory / "evidence.key", directory / "evidence.pub"
        for path, content in zip((self.private, self.public), new_key(), strict=True):
            path.write_bytes(content)
        self.private.chmod(0o600)
        self.evidence = Evidence(signing_key_file=self.private)
        self.settings = Settings(name=NAME, url="file:///proc/nowhere", **settings)  # type: ignore[arg-type]
        self.state = self.open("run")
        self.state.contracts.enrol(["1", "2"], "default", START, NOW)
        self.deliverer = self.begin()

    def begin(self) -> ArchiveDeliverer:
        config = Config(evidence=self.evidence)
        sink = ArchiveSink(self.settings, Context(config, threading.Event()), self.place)
        return ArchiveDeliverer(self.state, sink, clock=lambda: self.now)

    def restart(self) -> None:
        self.state.close()
        self.state = self.open("run")
        self.deliverer = self.begin()

    def finish(self) -> None:
        """Deliver everything that waits."""
        while self.deliverer.step(is_last=True).wait_seconds is not None:
            self.now += 61

    def verify(self) -> Report:
        return Verifier(self.place, is_signed_by, key=read_public_key(self.public), workers=1).run()

    def lines(self) -> list[bytes]:
        objects = [content for key, content in sorted(self.place.objects.items()) if key.startswith("data/")]
        return [line for content in objects for line in gzip.decompress(content).splitlines()]

    def digest(self, number: int) -> object:
        return decode(self.place.objects[digest_key(number)])


Make = Callable[..., Bench]


@pytest.fixture
def make(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes benches, on each backend."""
    made: list[Bench] = []

    def make_one(place: MemoryPlace | None = None, **settings: object) -> Bench:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        if backend == "sqlite":
            open_: Callable[[str], State] = lambda use: FileState.open(directory / "state", use)  # noqa: E731 - one of two
        else:
            stores, name = request.getfixturevalue("postgres_stores"), f"archive-{next(_numbers)}"
            open_ = lambda use: stores.open(f"{name}-{use}")  # noqa: E731 - one of two
        made.append(Bench(open_, directory, place, **settings))
        return made[-1]

    yield make_one
    for bench in made:
        bench.state.close()


@pytest.fixture
def bench(make: Make) -> Bench:
    return make()


def test_a_batch_waits_until_it_is_full_or_an_hour_old(bench: Bench) -> None:
    commit(bench.state, [event(1)], now=NOW)
    assert bench.deliverer.step().wait_seconds == 5.0
    bench.now = NOW + 3598
    assert bench.deliverer.step().wait_seconds == 2.0
    bench.now = NOW + 3600
    assert bench.deliverer.step() == (1, 0.0)
    assert bench.deliverer.step().wait_seconds is None
    report = bench.verify()
    assert (report.findings, report.entries, report.is_signed) == ([], 1, True)
    (row,) = bench.state.outbox.sinks()
    assert (row.assigned, row.delivered) == (1, 1)


def test_a_batch_by_a_clock_that_was_set_back_does_not_wait(bench: Bench) -> None:
    commit(bench.state, [event(1)], now=NOW)
    bench.now = NOW - 1
    assert bench.deliverer.step() == (1, 0.0)


def test_how_long_it_is_put_off_is_known_after_a_restart_and_a_success_ends_it(make: Make) -> None:
    place = Unreliable()
    bench = make(place, retry_initial_seconds=2.0)
    commit(bench.state, [event(1)], now=NOW)
    place.failures = [PlaceError("503 SlowDown")] * 2
    for attempts in (1, 2):
        wait = bench.deliverer.step(is_last=True).wait_seconds
        assert wait is not None
        (row,) = bench.state.outbox.sinks()
        assert (row.attempts, row.failure, row.parked_at) == (attempts, "503 SlowDown", None)
        bench.restart()
        # A wait may be very short, and a stored time has a limited precision.
        assert bench.deliverer.step(is_last=True).wait_seconds == pytest.approx(wait, abs=1e-5)
        bench.now += wait
    assert bench.deliverer.step(is_last=True) == (1, 0.0)
    (row,) = bench.state.outbox.sinks()
    assert (row.attempts, row.failure, row.succeeded_at) == (0, "", bench.now)


def test_a_send_that_failed_is_told_by_its_kind(bench: Bench) -> None:
    place, told = Unreliable(), list[str]()
    bench.deliverer.abandon()
    sink = ArchiveSink(bench.settings, Context(Config(evidence=bench.evidence), threading.Event()), place)
    deliverer = ArchiveDeliverer(bench.state, sink, clock=lambda: bench.now, on_failed=told.append)
    commit(bench.state, [event(1)], now=NOW)
    place.failures = [PlaceError("503"), PlaceError("403", is_refused=True)]
    for _ in range(3):
        bench.now += 3601
        deliverer.step(is_last=True)
    assert told == ["unavailable", "credentials_refused"]


def test_lines_are_as_this_archive_may_see_them(bench: Bench) -> None:
    bench.deliverer.abandon()
    sink = ArchiveSink(bench.settings, Context(Config(evidence=bench.evidence), threading.Event()), bench.place)
    bench.deliverer = ArchiveDeliverer(bench.state, sink, clock=lambda: bench.now, redact=lambda line: b"{}")
    commit(bench.state, [event(1), event(2)], now=NOW)
    bench.finish()
    assert bench.lines() == [b"{}", b"{}"]


def test_a_full_batch_does_not_wait(make: Make) -> None:
    bench = make(batch_events=2)
    commit(bench.state, [event(number) for number in range(1, 4)], now=NOW)
    assert bench.deliverer.step() == (2, 0.0)
    assert bench.deliverer.step().wait_seconds == 5.0


def test_a_batch_is_full_before_a_small_outbox_is(bench: Bench) -> None:
    config = Config(evidence=bench.evidence, outbox=Outbox(max_bytes=4000))
    sink = ArchiveSink(bench.settings, Context(config, threading.Event()), bench.place)
    bench.deliverer.abandon()
    deliverer = ArchiveDeliverer(bench.state, sink, clock=lambda: bench.now)
    commit(bench.state, [event(1, line=b'{"x":"%s"}' % (b"x" * 900))], now=NOW)
    assert deliverer.step().wait_seconds == 5.0
    commit(bench.state, [event(2, line=b'{"x":"%s"}' % (b"x" * 900))], now=NOW)
    assert deliverer.step() == (1, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_every_entry_is_in_one_object_however_often_its_writer_is_killed(make: Make, seed: int) -> None:
    chance = random.Random(seed)
    place = Unreliable(chance, share=0.3)
    bench = make(place, batch_events=40)
    kills = 0
    for first in range(0, 400, 20):
        numbers = range(first, first + 20)
        commit(bench.state, [event(number, START + number * 60) for number in numbers], contract=chance.choice("12"))
        while True:
            try:
                bench.finish()
                break
            except Killed:
                kills += 1
                bench.restart()
    assert kills > 0
    assert sorted(json.loads(line)["n"] for line in bench.lines()) == list(range(400))
    assert set(place.written.values()) <= {0, 1}
    report = bench.verify()
    assert (report.findings, report.entries) == ([], 400)
    assert bench.state.overview().imbalances() == []


def test_a_batch_that_was_committed_is_written_as_it_was_whatever_changed_since(make: Make) -> None:
    place = Unreliable()
    bench = make(place)
    commit(bench.state, [event(1), event(2)], now=NOW)
    place.failures = [Killed()]
    with pytest.raises(Killed):
        bench.finish()
    prepared = bench.state.archives.prepared(NAME)
    assert prepared is not None
    bench.settings = Settings(name=NAME, url="file:///proc/nowhere", batch_events=1, max_event_bytes=1024)
    bench.restart()
    commit(bench.state, [event(3)], now=NOW)
    bench.finish()
    assert place.objects[digest_key(1)] == prepared.digest
    assert bench.verify().entries == 3


def test_a_place_that_refuses_us_parks_the_sink_and_is_tried_again(make: Make) -> None:
    place = Unreliable()
    bench = make(place)
    commit(bench.state, [event(1)], now=NOW)
    place.failures = [PlaceError("AccessDenied", hint="check the key", is_refused=True)]
    assert bench.deliverer.step(is_last=True).wait_seconds == 60.0
    assert bench.deliverer.refusal == "AccessDenied (check the key)"
    bench.now += 61
    assert bench.deliverer.step(is_last=True) == (1, 0.0)
    assert bench.deliverer.refusal == ""


def test_another_archive_in_the_same_place_is_never_written_over(bench: Bench, make: Make) -> None:
    commit(bench.state, [event(1)], now=NOW)
    bench.finish()
    other = make(bench.place)
    commit(other.state, [event(9)], now=NOW)
    before = dict(bench.place.objects)
    other.deliverer.step(is_last=True)
    assert "is there already, with other content" in other.deliverer.refusal
    assert before.items() <= bench.place.objects.items()


def test_an_entry_that_is_too_large_becomes_a_dead_letter_and_holds_up_nothing(make: Make) -> None:
    bench = make(max_event_bytes=1024)
    large = event(2, line=b'{"x":"%s"}' % (b"x" * 2000))
    commit(bench.state, [event(1), large, event(3)], now=NOW)
    bench.finish()
    assert len(bench.lines()) == 2
    (row,) = bench.state.outbox.sinks()
    assert (row.delivered, row.dead) == (2, 1)


# Places


def move(bench: Bench, url: str, objects: Mapping[str, bytes] | None = None) -> MemoryPlace:
    """A person gives the archive another place, which holds `objects`.  Returns: the previous place."""
    before, bench.place = bench.place, MemoryPlace(objects)
    bench.settings = Settings(name=NAME, url=url)
    bench.restart()
    return before


def written_twice(bench: Bench) -> None:
    for number in (1, 2):
        commit(bench.state, [event(number)], now=NOW)
        bench.finish()


def test_a_place_that_lacks_the_chain_gets_nothing_and_the_sink_waits_until_it_is_back(bench: Bench) -> None:
    written_twice(bench)
    commit(bench.state, [event(3)], now=NOW)
    whole, bench.place.objects = bench.place.objects, {}
    assert bench.deliverer.step(is_last=True).wait_seconds == 60.0
    assert bench.place.objects == {}
    assert f"{digest_key(2)}: the archive's newest digest is not here" in bench.deliverer.refusal
    assert "mount the disk" in bench.deliverer.refusal
    bench.restart()
    bench.now += 61
    assert bench.deliverer.step(is_last=True).wait_seconds == 60.0, "with a batch that is committed already, too"
    bench.place.objects = whole
    bench.now += 61
    bench.finish()
    report = bench.verify()
    assert (report.findings, report.entries, report.digests) == ([], 3, 3)


@pytest.mark.parametrize("is_prepared", [False, True], ids=["nothing being written", "in mid-batch"])
def test_an_empty_place_that_a_person_gave_begins_a_new_archive(bench: Bench, is_prepared: bool) -> None:
    written_twice(bench)
    audit(bench, {})
    commit(bench.state, [event(3)], now=NOW)
    if is_prepared:  # as after a failover of the database that lost its last commits
        bench.place.objects[digest_key(3)] = b"another"
        bench.deliverer.step(is_last=True)
        assert "is there already, with other content" in bench.deliverer.refusal
        bench.now += 61
    before = bench.state.overview().archives.get(NAME)
    kept = dict(bench.place.objects)
    old = move(bench, "file:///srv/other")
    since = int(bench.now)
    bench.finish()
    report = bench.verify()
    assert (report.findings, report.entries, report.digests) == ([], 1, 1)
    assert old.objects == kept
    after = bench.state.overview().archives.get(NAME)
    assert before is not None
    assert after is not None
    assert (after.archive != before.archive, after.number, after.since) == (True, 1, since)
    commit(bench.state, [event(4)], now=NOW)
    bench.finish()
    assert bench.verify().digests == 2
    assert bench.state.overview().imbalances() == []


def test_an_archive_that_was_moved_with_all_it_holds_goes_on(bench: Bench) -> None:
    written_twice(bench)
    old = move(bench, "file:///srv/other", bench.place.objects)
    commit(bench.state, [event(3)], now=NOW)
    bench.finish()
    assert (bench.verify().findings, bench.verify().digests) == ([], 3)
    move(bench, "file:///srv/third")  # the state remembers the last place
    assert len(old.objects) == 6


@pytest.mark.parametrize("held", [{digest_key(1): b"another"}, {"data/x": b""}], ids=["a digest", "an object"])
def test_a_place_that_holds_something_else_gets_no_new_archive(bench: Bench, held: dict[str, bytes]) -> None:
    written_twice(bench)
    head = bench.state.overview().archives.get(NAME)
    move(bench, "file:///srv/other", held)
    commit(bench.state, [event(3)], now=NOW)
    bench.deliverer.step(is_last=True)
    assert "the archive's newest digest is not here" in bench.deliverer.refusal
    assert (bench.place.objects, bench.state.overview().archives.get(NAME)) == (held, head)


def test_where_nobody_knows_that_the_place_was_changed_no_new_archive_begins(bench: Bench) -> None:
    """A state of an earlier version did not store the place of its archive."""
    head = Head("a" * 32, 3, "b" * 64, None, 9, 0, 0.0)
    bench.state.archives.adopt("earlier", head, {})
    bench.settings = Settings(name="earlier", url="file:///srv/audit")
    deliverer = bench.begin()
    assert deliverer.step(is_last=True).wait_seconds == 60.0
    assert "the archive's newest digest is not here" in deliverer.refusal
    deliverer.abandon()


def test_the_endpoint_of_a_bucket_is_a_part_of_its_place(bench: Bench) -> None:
    table = Settings(name=NAME, url="s3://audit/a", endpoint_url="https://one.example")
    sink = ArchiveSink(table, Context(Config(), threading.Event()), bench.place)
    assert sink.where == "s3://audit/a https://one.example"


def test_a_new_archive_begins_in_a_directory_that_is_not_there_yet(bench: Bench, tmp_path: Path) -> None:
    written_twice(bench)
    bench.deliverer.abandon()
    table = Settings(name=NAME, url=f"file://{tmp_path}/new/audit")
    sink = ArchiveSink(table, Context(Config(evidence=bench.evidence), threading.Event()))
    commit(bench.state, [event(3)], now=NOW)
    bench.deliverer = ArchiveDeliverer(bench.state, sink, clock=lambda: bench.now)
    bench.finish()
    assert (tmp_path / "new/audit" / digest_key(1)).is_file()


# Keys


def test_a_new_key_follows_when_the_old_one_signs_the_change(bench: Bench, tmp_path: Path) -> None:
    commit(bench.state, [event(1)], now=NOW)
    bench.finish()
    second = tmp_path / "second.key"
    second.write_bytes(new_key()[0])
    second.chmod(0o600)
    bench.evidence = Evidence(signing_key_file=second)
    bench.restart()
    commit(bench.state, [event(2)], now=NOW)
    bench.deliverer.step(is_last=True)
    assert "is not the key of the archive" in bench.deliverer.refusal
    assert f"which is {fingerprint(read_public_key(bench.public))[:16]}..." in bench.deliverer.refusal
    assert "previous_signing_key_file" in bench.deliverer.refusal
    bench.evidence = Evidence(signing_key_file=second, previous_signing_key_file=bench.private)
    bench.restart()
    bench.finish()
    commit(bench.state, [event(3)], now=NOW)
    bench.evidence = Evidence(signing_key_file=second)
    bench.restart()
    bench.finish()
    report = bench.verify()
    assert (report.findings, len(report.keys), report.digests) == ([], 2, 3)


def test_a_signed_archive_does_not_go_on_without_its_key(bench: Bench) -> None:
    commit(bench.state, [event(1)], now=NOW)
    bench.finish()
    bench.evidence = Evidence()
    bench.restart()
    commit(bench.state, [event(2)], now=NOW)
    bench.deliverer.step(is_last=True)
    given = fingerprint(read_public_key(bench.public))[:16]
    assert bench.deliverer.refusal == (
        f"evidence.signing_key_file: is missing, and the archive is signed (give the key {given}... again)"
    )


def test_an_archive_without_a_key_is_not_signed(make: Make) -> None:
    bench = make()
    bench.evidence = Evidence()
    bench.restart()
    commit(bench.state, [event(1)], now=NOW)
    bench.finish()
    report = Verifier(bench.place, is_signed_by, workers=1).run()
    assert (report.findings, report.is_signed, report.entries) == ([], False, 1)


# Statements


def audit(bench: Bench, at_api: Mapping[int, int], hours: int = 3) -> None:
    """Audit the first `hours` hours as the schedule does. `at_api`: the API's count of each hour that differs from ours."""
    closer = HourCloser(bench.state, [NAME])
    span = Window(START, START + hours * HOUR)
    before = closer.counts("1", span)
    differences = [
        Difference("1", Window(START + hour * HOUR, START + (hour + 1) * HOUR), count, 0, 0)
        for hour, count in at_api.items()
    ]
    closer.close("1", before, span, Audited(differences))


def test_what_an_audit_counted_is_stated_with_the_next_digest_once(bench: Bench) -> None:
    commit(bench.state, [event(1), event(2)], now=NOW)
    bench.finish()
    audit(bench, {})
    assert bench.deliverer.step(is_last=True) == (0, 0.0)
    report = bench.verify()
    assert (report.findings, report.complete, report.digests) == ([], 3, 2)
    audit(bench, {})
    assert bench.deliverer.step(is_last=True).wait_seconds is None


def test_a_statement_alone_is_written_once_in_the_age_of_a_batch(bench: Bench) -> None:
    commit(bench.state, [event(1)], now=NOW)
    bench.finish()
    audit(bench, {})
    assert bench.deliverer.step().wait_seconds is None
    bench.now += 3600
    assert bench.deliverer.step() == (0, 0.0)


def test_an_hour_that_lacks_entries_is_stated_as_such_and_anew_when_they_came(bench: Bench) -> None:
    commit(bench.state, [event(1)], now=NOW)
    bench.finish()
    audit(bench, {0: 2})
    bench.finish()
    (held,) = bench.verify().incomplete
    assert held.hour.statement is not None
    assert (held.hour.statement.api, held.hour.statement.archived) == (2, 1)
    commit(bench.state, [event(2)], now=NOW)
    bench.finish()
    audit(bench, {})
    bench.finish()
    report = bench.verify()
    assert (report.findings, report.incomplete, report.complete) == ([], [], 3)


def test_a_gap_in_an_hour_is_named(bench: Bench) -> None:
    unread = [Unread(Window(START + 60, START + 61), UNREADABLE, "no entry")]
    commit(bench.state, [event(1)], now=NOW, unread=unread)
    audit(bench, {})
    bench.finish()
    (held,) = bench.verify().incomplete
    statement = held.hour.statement
    assert statement is not None
    assert (statement.api, [gap.kind for gap in statement.gaps]) == (None, [UNREADABLE])


def test_a_gap_is_open_again_in_a_state_that_is_rebuilt_from_the_archive(bench: Bench) -> None:
    gap = Window(START + 60, START + 120)
    commit(bench.state, [event(1)], now=NOW, unread=[Unread(gap, UNREADABLE, "no entry")])
    bench.state.contracts.skip_to("1", START + HOUR, 0)
    bench.finish()
    with closing(bench.open("rebuilt")) as fresh:
        Rebuilder(bench.place, NAME, "default", NOW).into(fresh)
        assert [(one.contract, one.window, one.kind, one.is_open) for one in fresh.gaps.find()] == [
            ("1", gap, UNREADABLE, True)
        ]


def test_hours_that_changed_while_they_were_audited_wait_for_the_next_audit() -> None:
    span = Window(START - 1800, START + 3 * HOUR + 1800)
    before, after = {START: 1, START + HOUR: 2}, {START: 1, START + HOUR: 3}
    refused = Unread(Window(START + 2 * HOUR, START + 2 * HOUR + 1), UNREADABLE, "")
    counted = closed_hours(span, before, after, Audited([], [refused]), [], since=0)
    assert counted == {START: 1}
    assert closed_hours(span, before, before, Audited([]), [], since=START + 1) == {
        START + HOUR: 2,
        START + 2 * HOUR: 0,
    }


def hours(*numbers: int) -> list[int]:
    return [START + number * HOUR for number in numbers]


@pytest.mark.parametrize(
    ("start", "end", "since", "closed"),
    [
        (0, 2 * HOUR, 0, hours(0, 1)),
        (0, 2 * HOUR - 1, 0, hours(0)),
        (1, 2 * HOUR, 0, hours(1)),
        (0, 2 * HOUR, START, hours(0, 1)),
        (0, 2 * HOUR, START + HOUR, hours(1)),
        (0, HOUR - 1, 0, []),
    ],
)
def test_only_whole_hours_are_closed(start: int, end: int, since: int, closed: list[int]) -> None:
    counted = closed_hours(Window(START + start, START + end), {}, {}, Audited([]), [], since=since)
    assert counted == dict.fromkeys(closed, 0)


@pytest.mark.parametrize(
    ("start", "end", "touched"),
    [
        (HOUR, 2 * HOUR, hours(1)),
        (HOUR - 1, HOUR, hours(0)),
        (HOUR - 1, HOUR + 1, hours(0, 1)),
        (2 * HOUR, 9 * HOUR, hours(2)),
        (-HOUR, 0, []),
        (3 * HOUR, 4 * HOUR, []),
    ],
)
def test_of_an_hour_with_a_gap_nothing_is_counted_and_one_that_was_refused_is_not_closed(
    start: int, end: int, touched: list[int]
) -> None:
    span, part = Window(START, START + 3 * HOUR), Window(START + start, START + end)
    known = dict.fromkeys(hours(0, 1, 2), 4)
    differs = Difference("1", Window(START + HOUR + 60, START + 2 * HOUR), 7, 4, 0)
    counts = {START: 4, START + HOUR: 7, START + 2 * HOUR: 4}
    with_gap = closed_hours(span, known, known, Audited([differs]), [part], since=0)
    assert with_gap == {hour: None if hour in touched else counts[hour] for hour in counts}
    refused = Audited([differs], [Unread(part, UNREADABLE, "")])
    left = closed_hours(span, known, known, refused, [], since=0)
    assert left == {hour: counts[hour] for hour in counts if hour not in touched}


# Several states on one chain


def test_a_backfill_writes_to_the_chain_of_run_and_no_entry_is_twice_in_it(bench: Bench) -> None:
    past = bench.open("backfill-1")
    past.contracts.enrol(["1"], "default", START, NOW)
    sink = ArchiveSink(bench.settings, Context(Config(evidence=bench.evidence), threading.Event()), bench.place)
    writer = ArchiveDeliverer(past, sink, chain=bench.state.archives, writer="w1", clock=lambda: bench.now)
    commit(past, [event(1), event(2)], now=NOW)
    commit(bench.state, [event(3)], now=NOW)
    bench.finish()
    assert writer.step(is_last=True) == (2, 0.0)
    commit(past, [event(4)], now=NOW)
    bench.place.objects, whole = {}, bench.place.objects

    class Away(MemoryPlace):
        def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
            raise Killed

    writer.abandon()
    sink = ArchiveSink(bench.settings, Context(Config(evidence=bench.evidence), threading.Event()), Away(whole))
    writer = ArchiveDeliverer(past, sink, chain=bench.state.archives, writer="w1", clock=lambda: bench.now)
    with pytest.raises(Killed):
        writer.step(is_last=True)
    bench.place.objects = whole
    # `run` finds the batch and writes it. The backfill then finds that it is written.
    commit(bench.state, [event(5)], now=NOW)
    bench.finish()
    while writer.step(is_last=True).wait_seconds is not None:
        pass
    assert past.outbox.sinks()[0].delivered == 3
    report = bench.verify()
    assert (report.findings, report.entries, report.digests) == ([], 5, 4)
    assert past.overview().imbalances() == []
    past.close()


def test_what_a_backfill_has_collected_is_on_the_disk_before_the_chain_counts_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = []
    with closing(bench.open("backfill-1")) as past:
        past.contracts.enrol(["1"], "default", START, NOW)
        sink = ArchiveSink(bench.settings, Context(Config(evidence=bench.evidence), threading.Event()), bench.place)
        chain = bench.state.archives
        writer = ArchiveDeliverer(past, sink, chain=chain, writer="w1", clock=lambda: bench.now)
        commit(past, [event(1)], now=NOW)
        for part, name in ((past, "remember_for_good"), (chain, "prepare")):
            real = getattr(part, name)
            monkeypatch.setattr(
                part, name, lambda *args, real=real, **more: (came.append(args[:1]), real(*args, **more))[1]
            )
        assert writer.step(is_last=True) == (1, 0.0)
        writer.abandon()
        assert came == [(WRITER,), (NAME,)]
        assert past.fact(WRITER) == "w1"


def test_a_gap_of_a_backfill_is_named_in_the_digest_that_it_writes_to_the_chain_of_run(bench: Bench) -> None:
    with closing(bench.open("backfill-1")) as past:
        past.contracts.enrol(["1"], "default", START, NOW)
        sink = ArchiveSink(bench.settings, Context(Config(evidence=bench.evidence), threading.Event()), bench.place)
        chain = bench.state.archives
        writer = ArchiveDeliverer(past, sink, chain=chain, writer="w1", clock=lambda: bench.now)
        gap = Window(START + 60, START + 61)
        commit(past, [event(1)], now=NOW, unread=[Unread(gap, UNREADABLE, "no entry")])
        closer = HourCloser(past, [NAME], chain)
        span = Window(START, START + HOUR)
        closer.close("1", closer.counts("1", span), span, Audited([]))
        while writer.step(is_last=True).wait_seconds is not None:
            pass
        (held,) = bench.verify().incomplete
        statement = held.hour.statement
        assert statement is not None
        assert statement.gaps == (StatedGap(format_time(gap.start), format_time(gap.end), UNREADABLE),)


def test_a_sink_that_was_forgotten_while_its_batch_was_written_moves_nothing_on(make: Make) -> None:
    place = Unreliable()
    bench = make(place)
    commit(bench.state, [event(1)], now=NOW)
    place.failures = [Killed()]
    with pytest.raises(Killed):
        bench.finish()
    bench.state.outbox.forget(NAME)
    bench.restart()
    commit(bench.state, [event(2)], now=NOW)
    bench.finish()
    report = bench.verify()
    assert (report.findings, report.entries) == ([], 2)
    assert bench.state.overview().imbalances() == []


# Several replicas on one chain


@pytest.fixture
def two(make: Make) -> Iterator[tuple[Bench, Bench]]:
    """Two replicas of one use, which write to one place. Both benches have the same place."""
    one = make(Unreliable(), batch_events=3)
    other = copy(one)
    other.state = one.open("run")
    other.deliverer = other.begin()
    yield one, other
    other.state.close()


def expire(bench: Bench) -> None:
    """Let the lease of a replica end in the database. The replica does not notice, as after a hang."""
    state: Any = bench.state
    query = "UPDATE replicas SET expires_at = clock_timestamp() - interval '1 second' WHERE token = %s"
    state._database.write(lambda connection: connection.execute(query, (state._joined().token,)))


def keys_and_hashes(bench: Bench) -> dict[str, str]:
    return {key: sha256(content) for key, content in bench.place.objects.items()}


@pytest.mark.backends("postgres")
def test_one_replica_writes_an_archive_and_the_other_waits(two: tuple[Bench, Bench]) -> None:
    one, other = two
    commit(one.state, [event(number) for number in range(3)], now=NOW)
    assert one.deliverer.step() == (3, 0.0)
    (row,) = other.state.overview().sinks
    assert row.holder == f"{os.uname().nodename}:{os.getpid()}"
    commit(one.state, [event(number) for number in range(3, 6)], now=NOW)
    assert other.deliverer.step() == (0, 5.0)
    assert one.deliverer.step() == (3, 0.0)
    one.state.close()
    commit(other.state, [event(6)], now=NOW, contract="2")
    other.finish()
    report = other.verify()
    assert (report.findings, report.entries, report.digests) == ([], 7, 3)
    assert other.state.overview().imbalances() == []


@pytest.mark.backends("postgres")
@pytest.mark.parametrize("written", range(4), ids=["nothing", "an object", "the signature", "the digest"])
def test_a_takeover_in_mid_batch_writes_the_same_bytes_under_the_same_keys(
    two: tuple[Bench, Bench], written: int
) -> None:
    one, other = two
    commit(one.state, [event(number, START + number * 60) for number in range(3)], now=NOW)
    place = one.place
    assert isinstance(place, Unreliable)
    place.kill_after(written)
    with pytest.raises(Killed):
        one.deliverer.step()
    prepared = other.state.archives.prepared(NAME)
    assert prepared is not None
    expire(one)
    commit(other.state, [event(9)], now=NOW, contract="2")
    assert other.deliverer.step() == (3, 0.0)
    wanted = {**dict(prepared.objects), digest_key(1): prepared.digest, signature_key(1): prepared.signature}
    assert place.objects == wanted
    assert set(place.written.values()) == {1}
    other.finish()
    report = other.verify()
    assert (report.findings, report.entries) == ([], 4)
    assert other.state.overview().imbalances() == []


@pytest.mark.backends("postgres")
def test_a_writer_that_lost_its_lease_commits_no_batch_and_goes_on_later(two: tuple[Bench, Bench]) -> None:
    one, other = two
    commit(one.state, [event(number) for number in range(3)], now=NOW)
    assert one.deliverer._held().hold()
    batch = one.deliverer._held().batch(3, 10**6)
    assert batch is not None
    expire(one)
    assert other.deliverer.step() == (3, 0.0)
    with pytest.raises(LeaseLostError, match="another replica delivers it now"):
        one.deliverer._prepare(batch.events)
    commit(other.state, [event(number) for number in range(3, 6)], now=NOW, contract="2")
    with pytest.raises(LeaseLostError):
        one.deliverer.step()
    assert one.deliverer.step() == (0, 5.0)
    other.state.close()
    one_state: Any = one.state
    one_state._joined().renew()
    assert one.deliverer.step() == (3, 0.0)
    report = one.verify()
    assert (report.findings, report.entries, report.digests) == ([], 6, 2)


@pytest.mark.backends("postgres")
def test_of_two_that_both_think_they_are_the_writer_one_commits_and_nothing_forks(two: tuple[Bench, Bench]) -> None:
    """The committed data decides: in this test, nothing checks who holds the sink."""
    one, other = two
    commit(one.state, [event(number) for number in range(3)], now=NOW)
    batches = []
    for bench in two:
        hold(bench)
        batches.append(bench.deliverer._held().batch(3, 10**6))
    hold(one)
    assert batches[0] is not None
    first = one.deliverer._prepare(batches[0].events)
    hold(other)
    assert batches[1] is not None
    # It finds the batch that the first replica committed, and makes no batch of its own with the same entries.
    assert other.deliverer._prepare(batches[1].events).digest == first.digest
    assert other.state.archives.complete(NAME, 1, NOW)
    assert not one.state.archives.complete(NAME, 1, NOW)
    with pytest.raises(LeaseLostError, match="does not wait any more"):
        other.deliverer._prepare(batches[1].events)
    assert other.state.overview().imbalances() == []
    assert other.state.outbox.sinks()[0].delivered == 3


@pytest.mark.backends("postgres")
def test_a_dead_letter_of_one_that_is_no_longer_the_writer_is_refused(two: tuple[Bench, Bench]) -> None:
    one, other = two
    commit(one.state, [event(number) for number in range(3)], now=NOW)
    hold(one)
    place = one.deliverer._held()
    batch = place.batch(3, 10**6)
    assert batch is not None
    hold(other)
    other.place.failures = [Killed()]
    with pytest.raises(Killed):
        other.deliverer.step()
    with pytest.raises(LeaseLostError):
        place.settle(1, dead=[DeadLetter(batch.events[0], None, "too large")], now=NOW)
    other.finish()
    (row,) = other.state.outbox.sinks()
    assert (row.delivered, row.dead) == (3, 0)


@pytest.mark.backends("postgres")
def test_many_writers_at_once_make_one_chain(make: Make) -> None:
    """Four replicas in threads, and each one makes itself the writer: each entry is still in one object only."""
    first = make(batch_events=7)
    benches = [first]
    for _ in range(3):
        other = copy(first)
        other.state = first.open("run")
        other.deliverer = other.begin()
        benches.append(other)
    for number in range(60):
        commit(first.state, [event(number, START + number * 60)], contract="12"[number % 2])

    def work(bench: Bench) -> None:
        for _ in range(200):
            with suppress(StateUnavailableError):  # another one was first, or they collided too often
                hold(bench)
                if bench.deliverer.step(is_last=True).wait_seconds is None:
                    return

    threads = [threading.Thread(target=work, args=(bench,)) for bench in benches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hold(first)
    first.finish()
    assert sorted(json.loads(line)["n"] for line in first.lines()) == list(range(60))
    report = first.verify()
    assert (report.findings, report.entries) == ([], 60)
    assert first.state.overview().imbalances() == []
    for bench in benches[1:]:
        bench.state.close()


def hold(bench: Bench) -> None:
    """Make a replica the writer, although the previous writer still runs."""
    state: Any = bench.state
    query = "UPDATE sinks SET holder = %s WHERE use_id = %s AND name = %s"
    token = state._joined().token
    state._database.write(lambda connection: connection.execute(query, (token, state._use, NAME)))


@pytest.mark.backends("postgres")
def test_a_batch_is_large_though_each_segment_has_one_entry(make: Make) -> None:
    bench = make()
    for number in range(200):
        commit(bench.state, [event(number)])
    bench.finish()
    assert bench.verify().digests == 1


def test_taken_error_names_what_is_there() -> None:
    place = MemoryPlace({"a": b"1"})
    with pytest.raises(TakenError, match="a is there already"):
        place.put("a", b"2")
