"""The sink for archives: what it writes for a batch, in which order, and what a refusal by the place means."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poller.archive import PlaceError
from poller.config import ArchiveSink as Settings
from poller.config import Config, Evidence, Outbox
from poller.core.delivery import Accepted, CredentialsRefused, RetryAfter
from poller.core.errors import ConfigError
from poller.core.events import OutboxEvent
from poller.core.evidence.batches import Head, PreparedBatch
from poller.core.evidence.compose import Facts, compose
from poller.core.evidence.digest import digest_key, encode, sha256, signature_key
from poller.sinks.archive import ArchiveSink, compress
from poller.sinks.base import Context
from poller.system import liveness
from poller.system.liveness import GRACE_SECONDS, Workers
from tests.archives import MemoryPlace

MIB = 1 << 20
EVENTS = [OutboxEvent("1", n, 0, n.to_bytes(16), 0, b'{"n":%d}' % n) for n in range(2)]
OBJECTS = [(f"data/{number}", b"object %d" % number) for number in range(20)]


class Recorder(MemoryPlace):
    """A place that records the writes, in order, and how long each object is locked."""

    def __init__(self) -> None:
        super().__init__({digest_key(6): b"digest 6"})
        self.wrote: list[tuple[str, bytes, float | None]] = []
        self.failure: PlaceError | None = None

    def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
        if self.failure is not None:
            raise self.failure
        self.wrote.append((key, content, retain_until))
        super().put(key, content)

    def probe(self) -> list[str]:
        if self.failure is not None:
            raise self.failure
        return ["fine"]


@pytest.fixture
def place() -> Recorder:
    return Recorder()


def make(place: Any, *, config: Config | None = None, now: float = 1000.0, **settings: Any) -> ArchiveSink:
    table = Settings(**{"name": "archive", "url": "file:///proc/nowhere", **settings})
    return ArchiveSink(table, Context(config or Config(), threading.Event()), place, clock=lambda: now)


HEAD = Head("a" * 32, 6, sha256(b"digest 6"), None, 0, 0, 0)
FACTS = Facts(HEAD, (), {}, (), 0, 0, 0, 0)
DIGEST = encode(compose(FACTS, (), written_at=1000, program="p", entry_format="raw", key=None, next_key=None))


def batch(signature: bytes | None = b"signature") -> PreparedBatch:
    return PreparedBatch(7, "", 20, 1000, DIGEST, signature, OBJECTS)


def test_an_object_is_one_gzip_member_of_all_its_parts_the_same_each_time() -> None:
    made = compress([b"one\n", memoryview(b"two\n"), b""])
    assert gzip.decompress(made) == b"one\ntwo\n"
    assert made[:10] == compress([b"other"])[:10]
    assert made[3:8] == bytes(5), "neither a name nor a time"
    assert compress([b"one\ntwo\n"] * 1000) == compress([b"one\ntwo\n"] * 1000)
    assert len(compress([b"one\ntwo\n"] * 1000)) < 4000


@pytest.mark.parametrize(("signature", "last"), [(b"signature", 2), (None, 1)])
def test_a_batch_is_its_objects_then_its_signature_then_its_digest(
    place: Recorder, signature: bytes | None, last: int
) -> None:
    assert make(place).write(batch(signature)) == Accepted()
    assert sorted(place.wrote[:-last]) == sorted((*one, None) for one in OBJECTS)
    rest = [(signature_key(7), b"signature", None), (digest_key(7), DIGEST, None)]
    assert place.wrote[-last:] == rest[-last:]
    assert make(place).write(batch(signature)) == Accepted(), "again, which changes nothing"


def test_what_is_sent_is_what_was_prepared_of_the_events(place: Recorder) -> None:
    sink = make(place)
    prepared: list[Any] = []
    sink.prepare = lambda events: prepared.append(events) or batch()  # type: ignore[func-returns-value]
    assert sink.send(EVENTS) == Accepted()
    assert prepared == [EVENTS]
    assert (digest_key(7), DIGEST, None) in place.wrote


@pytest.mark.parametrize(("mode", "until"), [("none", None), ("compliance", 1060), ("governance", 1060)])
def test_objects_are_locked_from_when_the_batch_was_committed(place: Recorder, mode: str, until: int | None) -> None:
    make(place, object_lock=mode, retain_seconds=60).write(batch())
    assert {found for _, _, found in place.wrote} == {until}


@pytest.mark.parametrize(("now", "until"), [(900.0, 1060), (1059.5, 1119.5), (1061.0, 1121), (9000.0, 9060)])
def test_a_batch_that_waited_for_its_place_is_locked_for_as_long_as_any_other(
    place: Recorder, now: float, until: float
) -> None:
    sink = make(place, now=now, object_lock="compliance", retain_seconds=60)
    assert sink.write(batch()) == Accepted()
    assert {found for _, _, found in place.wrote} == {until}


def test_where_another_batch_has_this_number_nothing_is_written(place: Recorder) -> None:
    place.objects[digest_key(7)] = b"another"
    outcome = make(place).write(batch())
    assert isinstance(outcome, CredentialsRefused)
    assert outcome.reason.startswith(f"memory/{digest_key(7)} is there already")
    assert place.wrote == []


@pytest.mark.parametrize("before", [None, b"another"], ids=["none", "another one"])
def test_where_the_digest_before_is_not_there_as_it_was_nothing_is_written(
    place: Recorder, before: bytes | None
) -> None:
    place.objects = {} if before is None else {digest_key(6): before}
    there = dict(place.objects)
    outcome = make(place).write(batch())
    assert isinstance(outcome, CredentialsRefused)
    assert outcome.reason.startswith(f"memory/{digest_key(6)}: the archive's newest digest is not here (mount the disk")
    assert place.objects == there


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_place_that_fails_is_tried_again_and_one_that_refuses_us_wants_a_person(
    place: Recorder, is_refused: bool
) -> None:
    place.failure = PlaceError("no", hint="do", is_refused=is_refused)
    expected = CredentialsRefused("no (do)") if is_refused else RetryAfter("no (do)")
    assert make(place).write(batch()) == expected
    assert make(place).probe() == expected
    place.failure = None
    assert make(place).probe() == Accepted()


def test_a_batch_is_full_before_the_outbox_is(place: Recorder) -> None:
    for max_bytes, expected in ((64 * MIB, 16 * MIB), (63 * MIB, 63 * MIB // 4), (1024 * MIB, 16 * MIB)):
        sink = make(place, config=Config(outbox=Outbox(max_bytes=max_bytes)))
        assert sink.batch_bytes == expected
    assert make(place, batch_bytes=MIB).batch_bytes == MIB


def test_lines_are_archived_in_the_format_of_the_table(place: Recorder) -> None:
    raw, ocsf = make(place), make(place, format="ocsf")
    assert (raw.entry_format, ocsf.entry_format, raw.name) == ("raw", "ocsf", "archive")
    assert raw.rendered(EVENTS) is EVENTS
    made = ocsf.rendered(EVENTS)
    assert [json.loads(event.line)["raw_data"].encode() for event in made] == [event.line for event in EVENTS]
    assert [event.identity for event in made] == [event.identity for event in EVENTS]


def test_it_writes_where_the_table_says(tmp_path: Path) -> None:
    (tmp_path / "audit/digests").mkdir(parents=True)
    (tmp_path / "audit" / digest_key(6)).write_bytes(b"digest 6")
    assert make(None, url=f"file://{tmp_path}/audit").write(batch()) == Accepted()
    assert (tmp_path / "audit" / digest_key(7)).read_bytes() == DIGEST


def test_each_object_is_a_sign_of_life(place: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: clock.now))
    workers, put = Workers(), place.put
    stuck: list[bool] = []

    def slowly(key: str, content: bytes, *, retain_until: float | None = None) -> None:
        clock.now += GRACE_SECONDS - 1
        stuck.append(bool(workers.stuck()))
        put(key, content)

    monkeypatch.setattr(place, "put", slowly)
    with workers.busy("sink archive"):
        assert make(place).write(batch()._replace(objects=OBJECTS[:1])) == Accepted()
    assert stuck == [False] * 3


def test_a_signing_key_wants_its_library_and_nothing_else_does(
    place: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = Evidence(signing_key_file=Path("/evidence.key"))
    assert make(place, config=Config(evidence=evidence)).evidence is evidence
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigError) as caught:
        make(place, config=Config(evidence=evidence))
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == ("evidence.signing_key_file", "needs cryptography")
    assert "[archive]" in problem.hint
    make(place)
