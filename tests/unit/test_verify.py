"""Verifying an archive: the content of the report, and each possible fault of the stored objects."""

from __future__ import annotations

import gzip
import random
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from poller.archive import Listed, PlaceError
from poller.archive.directory import DirectoryPlace
from poller.archive.signing import is_signed_by
from poller.core.evidence.compose import DueHour
from poller.core.evidence.digest import (
    PROBES,
    batch_of,
    decode,
    digest_key,
    encode,
    fingerprint,
    object_key,
    sha256,
    signature_key,
)
from poller.core.windows import Window
from poller.pipeline.restore import DamagedArchiveError, digests_of
from poller.pipeline.verify import MAX_DIGEST_BYTES, Known, Verifier, inflated, seconds_of
from tests.archives import CONTRACTS, HOUR, START, MemoryPlace, Writer, archive_of, entry, lines_of, signer, verify


def test_a_part_of_the_time_is_verified_alone_and_the_chain_whole() -> None:
    place, known = archive_of()
    report = verify(place, known, signer(), span=Window(START + HOUR, START + 2 * HOUR))
    assert (report.entries, report.objects, report.complete, report.digests) == (10, 2, 2, 5)


def test_a_moved_object_is_told_from_where() -> None:
    place, _ = archive_of(1)
    key = next(key for key in place.objects if key.startswith("data/"))
    place.objects["data/elsewhere"] = place.objects.pop(key)
    found = {finding.where: finding.message for finding in verify(place).findings}
    assert found["data/elsewhere"] == f"is {key}, moved"
    assert "is missing" in found[key]


def test_an_object_that_is_not_what_its_writer_counted_is_named() -> None:
    place, _ = archive_of(1)
    writer = Writer(place, signer())
    digest = decode(place.objects[digest_key(1)])
    first, *others = digest.objects
    changed = msgspec.structs.replace(digest, objects=(msgspec.structs.replace(first, content_bytes=999), *others))
    place.objects[digest_key(1)] = encode(changed)
    place.objects[signature_key(1)] = writer.key.sign(encode(changed)) if writer.key else b""
    (finding,) = verify(place, key=signer()).findings
    assert (finding.where, finding.message) == (first.key, "holds less text than the 999 bytes of digest 1")
    assert len(lines_of(place, first.key)) == 4


def test_nothing_is_proven_where_nothing_is() -> None:
    (finding,) = verify(MemoryPlace()).findings
    assert finding == (digest_key(1), "is missing: no digest is here, so nothing is proven")


def test_objects_of_a_batch_that_is_being_written_are_named_as_such() -> None:
    place, _ = archive_of(1)
    other, _ = archive_of(2)
    place.objects |= {key: content for key, content in other.objects.items() if batch_of(key) == 2}
    assert {finding.message for finding in verify(place).findings} == {
        "is named by no digest: digest 2 is being written, was never finished, or was cut off"
    }


@pytest.mark.parametrize("has_objects", [True, False], ids=["entries", "statements alone"])
def test_a_digest_that_is_written_while_the_archive_is_listed_is_read_too(has_objects: bool) -> None:
    place, _ = archive_of(1)
    writer = Writer(place, signer())
    writer.head = writer.head._replace(number=1, sha256=sha256(place.objects[digest_key(1)]), entries=8)
    before = set(place.objects)
    writer.write([entry(9000, 2)] if has_objects else [], [DueHour(CONTRACTS[0], START, 4, 4)])
    written_late = digest_key(2)

    class Growing(MemoryPlace):
        def listing(self, prefix: str) -> Iterator[Listed]:
            return (listed for listed in super().listing(prefix) if listed.key != written_late)

    assert set(place.objects) - before >= {written_late, signature_key(2)}
    report = verify(Growing(place.objects), key=signer())
    assert (report.findings, report.digests) == ([], 2)


def objects_of(place: MemoryPlace, number: int = 1) -> list[str]:
    return [row.key for row in decode(place.objects[digest_key(number)]).objects]


def with_content(content: bytes, **counts: int) -> tuple[MemoryPlace, str]:
    """An archive of one object with any content that matches its digest."""
    place = MemoryPlace()
    Writer(place, None).write([entry(1, 0)])
    digest = decode(place.objects[digest_key(1)])
    (row,) = digest.objects
    row = msgspec.structs.replace(row, sha256=sha256(content), bytes=len(content), **counts)
    place.objects[row.key] = content
    place.objects[digest_key(1)] = encode(msgspec.structs.replace(digest, objects=(row,)))
    return place, row.key


class Late(MemoryPlace):
    """A place that does not list objects yet if `late` has a part of their key."""

    late: tuple[str, ...] = ()

    def listing(self, prefix: str) -> Iterator[Listed]:
        return (listed for listed in super().listing(prefix) if not any(part in listed.key for part in self.late))


@pytest.mark.parametrize(
    "late",
    [
        ("digests/000000001",),
        ("digests/000000003.json",),
        ("digests/000000003.sig",),
        ("000000002", "000000003"),
        ("000000002", "000000004"),
        ("000000005",),
        ("000000004", "000000005"),
        ("0000",),
    ],
    ids=" ".join,
)
def test_what_a_storage_has_and_lists_late_is_not_missing(late: tuple[str, ...]) -> None:
    place, known = archive_of()
    place = Late(place.objects)
    place.late = late
    report = verify(place, known, signer())
    assert (report.findings, report.digests, report.entries) == ([], 5, verify(MemoryPlace(place.objects)).entries)
    assert [number for number, _, _ in digests_of(place)] == [1, 2, 3, 4, 5]
    # A missing object is reported all the same.
    del place.objects[digest_key(4)]
    ends_early = any(part in digest_key(5) for part in late)
    findings = {found.where: found.message for found in verify(place, known, signer()).findings}
    assert "is missing" in findings[digest_key(5 if ends_early else 4)]
    if not ends_early:
        with pytest.raises(DamagedArchiveError, match=r"000000004.json: is missing"):
            list(digests_of(place))


def test_the_report_tells_what_was_proven_and_what_of_each_hour() -> None:
    place = MemoryPlace()
    writer = Writer(place, signer())
    writer.write([entry(7, 1), entry(1, 0), entry(2, 0, CONTRACTS[1])])
    writer.write([entry(3, 2)], [DueHour(CONTRACTS[0], START, 1, 1), DueHour(CONTRACTS[0], START + HOUR, 3, 1)])
    report = verify(place, key=signer())
    assert (report.findings, report.digests, report.objects, report.entries, report.contracts) == ([], 2, 4, 4, 2)
    assert (report.first, report.last) == ("2026-01-01T00:00:01.000Z", "2026-01-01T02:00:03.000Z")
    assert (report.complete, report.damaged) == (1, 0)
    assert [(row.contract, row.start) for row in report.incomplete] == [(CONTRACTS[0], START + HOUR)]
    unstated = [(CONTRACTS[0], START + 2 * HOUR), (CONTRACTS[1], START)]
    assert [(row.contract, row.start) for row in report.unstated] == unstated
    assert (report.sha256, report.is_signed) == (writer.head.sha256, True)
    assert (report.keys, report.key) == ([fingerprint(signer().key)], fingerprint(signer().key))
    assert verify(place).key is None


def test_a_first_and_last_entry_are_found_in_whatever_order_they_were_written() -> None:
    place = MemoryPlace()
    writer = Writer(place, None)
    for hour in (3, 1, 2):
        writer.write([entry(5, hour)])
    report = verify(place)
    assert (report.first[:13], report.last[:13]) == ("2026-01-01T01", "2026-01-01T03")
    assert verify(MemoryPlace()).first == verify(MemoryPlace()).last == ""


@pytest.mark.parametrize(
    ("start", "end", "hours"), [(HOUR - 1, HOUR, [0]), (HOUR, HOUR + 1, [1]), (HOUR - 1, HOUR + 1, [0, 1])]
)
def test_of_a_part_those_hours_are_read_that_it_touches(start: int, end: int, hours: list[int]) -> None:
    place = MemoryPlace()
    Writer(place, None).write([entry(1, 0), entry(2, 1), entry(3, 2)])
    report = verify(place, span=Window(START + start, START + end))
    assert (report.entries, [row.start for row in report.unstated]) == (len(hours), [START + n * HOUR for n in hours])


def test_an_hour_with_a_damaged_object_is_not_called_complete() -> None:
    place, known = archive_of(2)
    before = verify(place, known)
    place.objects[objects_of(place)[0]] += b"x"
    report = verify(place, known)
    assert (before.complete, before.damaged) == (2, 0)
    assert (report.complete, report.damaged) == (1, 1)
    assert "was changed: it is longer than" in report.findings[0].message


def test_what_is_missing_or_cut_is_told_with_its_numbers() -> None:
    place, _ = archive_of(1)
    missing, cut = objects_of(place)
    size = len(place.objects[cut])
    del place.objects[missing]
    place.objects[cut] = place.objects[cut][:-1]
    assert {row.where: row.message for row in verify(place).findings} == {
        missing: "is missing: digest 1 names it, with 4 entries",
        cut: f"was cut or changed: {size - 1} of {size} bytes are there",
    }


@pytest.mark.parametrize("level", [0, 9], ids=["longer than what is read at once", "text longer than what is inflated"])
def test_an_object_is_counted_however_long_it_is(level: int) -> None:
    text = b"x" * 600_000 + b"\n"
    content = gzip.compress(text * 4, level)
    place, _ = with_content(content, entries=4, content_bytes=4 * len(text))
    assert [row.message for row in verify(place).findings if "holds" in row.message] == []
    place, key = with_content(content, entries=3, content_bytes=4 * len(text))
    assert (key, "holds 4 entries, though digest 1 has 3") in verify(place).findings


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024 - 1, 1024 * 1024, 1024 * 1024 + 1, 2 * 1024 * 1024])
def test_a_text_is_inflated_whole_at_whatever_length(size: int) -> None:
    text = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    assert b"".join(inflated(gzip.compress(text), size)) == text


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip at all",
        gzip.compress(b"a\n" * 99)[:-9],
        b"",
        zlib.compress(b"a\n"),
        gzip.compress(b"a\n") + gzip.compress(b"a\n"),
        gzip.compress(b"") * 100_000,
        gzip.compress(b"a\n") + b"x",
        gzip.compress(b"a\n" * 99) + bytes(10),
    ],
    ids=["text", "cut", "empty", "zlib", "two members", "many empty members", "a byte more", "zeros behind it"],
)
def test_what_was_written_and_is_not_one_gzip_member_is_told(content: bytes) -> None:
    place, key = with_content(content, entries=1, content_bytes=198)
    assert (key, "is not one gzip member, though it is what was written") in verify(place).findings


def test_no_more_is_inflated_than_a_digest_counts() -> None:
    compress = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1024 * 1024)
    content = b"".join([*(compress.compress(zeros) for _ in range(64)), compress.flush()])
    place, key = with_content(content, entries=1, content_bytes=5)
    assert (key, "holds more text than the 5 bytes of digest 1") in verify(place).findings
    assert sum(map(len, inflated(content, 5))) <= len(zeros)


def test_how_far_it_is_is_told_in_bytes_of_objects() -> None:
    place, known = archive_of(2)
    sizes = [len(place.objects[key]) for number in (1, 2) for key in objects_of(place, number)]
    told: list[tuple[int, int]] = []
    verify(place, known, on_progress=lambda done, of: told.append((done, of)))
    assert told == [(sum(sizes[:count]), sum(sizes)) for count in range(1, len(sizes) + 1)]


def test_what_no_digest_names_is_told_as_what_it_looks_like() -> None:
    place, _ = archive_of(2)
    written = [object_key("1", "2026-01-01T00:00:00Z", number, "0" * 64) for number in (2, 3, 4)]
    place.objects |= dict.fromkeys([*written, "notes.txt", f"{PROBES}1"], b"")
    of_three = "is named by no digest: digest 3 is being written, was never finished, or was cut off"
    looks = "is named by no digest, though it looks like a part of digest"
    assert {row.where: row.message for row in verify(place).findings} == {
        written[0]: f"{looks} 2",
        written[1]: of_three,
        written[2]: f"{looks} 4",
        "notes.txt": "is no part of the archive: no digest names it",
    }


def test_a_signature_without_a_digest_is_named() -> None:
    place, _ = archive_of(2)
    del place.objects[digest_key(2)]
    for key in [key for key in place.objects if batch_of(key) == 2]:
        del place.objects[key]
    (finding,) = verify(place).findings
    assert finding.where == signature_key(2)
    assert finding.message.startswith("belongs to no digest")


def test_a_head_that_a_person_knows_is_compared() -> None:
    place, known = archive_of(2)
    assert verify(place, known).findings == []
    (replaced,) = verify(place, known._replace(sha256="0" * 64)).findings
    assert replaced == (digest_key(2), "is not the digest that is known: it was replaced")
    (cut,) = verify(place, Known(3, "0" * 64)).findings
    assert cut == (digest_key(3), "is missing: the archive was cut at its end, it ends with digest 2")
    assert verify(place, Known(1, decode(place.objects[digest_key(2)]).previous)).findings == []


def test_an_object_that_was_written_twice_or_deleted_is_named() -> None:
    class Versioned(MemoryPlace):
        def listing(self, prefix: str) -> Iterator[Listed]:
            for listed in super().listing(prefix):
                versions = 1 if listed.key.startswith("data/") else 2
                yield listed._replace(versions=versions, is_deleted=listed.key == signature_key(1))

    place, _ = archive_of(1)
    assert verify(Versioned(place.objects)).findings == [
        (digest_key(1), "has 2 versions: it was written 2 times"),
        (signature_key(1), "was deleted; older versions that are kept: 2"),
    ]


def test_a_draft_that_a_kill_left_is_no_finding() -> None:
    class Drafts(MemoryPlace):
        def listing(self, prefix: str) -> Iterator[Listed]:
            yield Listed("data/.x.part", 7, is_draft=True)
            yield from super().listing(prefix)

    assert verify(Drafts(archive_of(2)[0].objects)).findings == []


class Failing(MemoryPlace):
    """A place where some objects cannot be read. It records how many bytes of each were requested."""

    def __init__(self, objects: Mapping[str, bytes], failing: Callable[[str], bool], **kind: bool) -> None:
        super().__init__(objects)
        self.failing = failing
        self.kind = kind
        self.asked: dict[str, int | None] = {}

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        self.asked[key] = max_bytes
        if key in self.objects and self.failing(key):
            raise PlaceError(f"memory/{key}: why", hint="what to do", **self.kind)  # type: ignore[arg-type]
        return super().get(key, max_bytes)


@pytest.mark.parametrize("kind", [{}, {"is_refused": True}], ids=["away", "refused"])
@pytest.mark.parametrize("where", ["data/", "digests/000000002.json", "digests/000000002.sig", ""])
def test_where_the_place_cannot_be_read_it_is_not_finished_and_nothing_is_called_missing(
    kind: dict[str, bool], where: str
) -> None:
    report = verify(Failing(archive_of(3)[0].objects, lambda key: key.startswith(where), **kind), key=signer())
    assert report.findings == []
    assert "why (what to do)" in report.stopped_by
    assert not report.is_proven


def test_where_it_ends_early_nobody_waits_for_what_is_still_being_read() -> None:
    goes_on, waited = threading.Event(), []

    class Slow(Failing):
        def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
            if batch_of(key) == 1:
                waited.append(goes_on.wait(5))
            return super().get(key, max_bytes)

    try:
        report = verify(Slow(archive_of(2)[0].objects, lambda key: key == digest_key(2)))
        assert (report.stopped_by, waited) == (f"memory/{digest_key(2)}: why (what to do)", [])
    finally:
        goes_on.set()


def test_a_place_that_cannot_be_listed_is_not_finished_either() -> None:
    class Away(MemoryPlace):
        def listing(self, prefix: str) -> Iterator[Listed]:
            raise PlaceError("gone")

    report = verify(Away(archive_of(3)[0].objects))
    assert (report.findings, report.stopped_by, report.digests) == ([], "gone", 0)


@pytest.mark.parametrize("is_refused", [True, False])
def test_an_object_that_cannot_be_read_is_a_finding_by_its_name_and_the_rest_goes_on(is_refused: bool) -> None:
    objects = archive_of(3)[0].objects
    keys = [next(key for key in objects if batch_of(key) == 2), digest_key(1), signature_key(3)]
    flipped = next(key for key in objects if batch_of(key) == 3)
    objects[flipped] = objects[flipped][::-1]
    place = Failing(objects, lambda key: key in keys, is_of_object=True, is_refused=is_refused)
    found = {row.where: row.message for row in verify(place, key=signer()).findings if batch_of(row.where) != 1}
    assert {key: found.pop(key) for key in keys} == dict.fromkeys(keys, "cannot be read: why (what to do)")
    assert "SHA-256" in found.pop(flipped)
    # The content of the unreadable digest is unknown, so the counts of the next digest may not match.
    assert set(found) <= {digest_key(2)}


def test_who_may_read_nothing_at_all_has_found_nothing() -> None:
    objects = archive_of(2)[0].objects
    report = verify(Failing(objects, lambda key: True, is_of_object=True, is_refused=True))
    assert (report.findings, report.stopped_by) == ([], "memory/digests/000000001.json: why (what to do)")
    report = verify(Failing(objects, lambda key: True, is_of_object=True))
    assert (digest_key(1), "cannot be read: why (what to do)") in report.findings


def test_no_more_is_read_than_the_digests_say() -> None:
    place, _ = archive_of(2)
    sizes = {row.key: row.bytes for number in (1, 2) for row in decode(place.objects[digest_key(number)]).objects}
    missing, grown = objects_of(place)
    for key in (grown, signature_key(1)):
        place.objects[key] += bytes(1000)
    del place.objects[missing]
    place.objects |= {"data/moved": bytes(sizes[missing]), "data/large": bytes(sizes[missing] + 1)}
    place.objects[digest_key(3)] = bytes(MAX_DIGEST_BYTES + 1)
    reading = Failing(place.objects, lambda key: False)
    found = {row.where: row.message for row in verify(reading).findings}
    assert found[grown] == f"was changed: it is longer than the {sizes[grown]:,} bytes of digest 1"
    assert found[digest_key(1)] == "was changed: its signature does not fit"
    assert "is longer than any digest" in found[digest_key(3)]
    assert all(reading.asked[key] == size for key, size in sizes.items())
    assert reading.asked[signature_key(1)] == 64
    assert reading.asked["data/moved"] == sizes[missing]
    assert "data/large" not in reading.asked
    assert None not in reading.asked.values()


@pytest.mark.parametrize("size", [-1, -2, 0, 1 << 62])
def test_a_size_that_no_object_has_does_no_harm(size: int, tmp_path: Path) -> None:
    made, _ = archive_of(1)
    for key, content in made.objects.items():
        DirectoryPlace(tmp_path).put(key, content)
    digest = decode(made.objects[digest_key(1)])
    row = msgspec.structs.replace(digest.objects[0], bytes=size)
    (tmp_path / digest_key(1)).write_bytes(encode(msgspec.structs.replace(digest, objects=(row, digest.objects[1]))))
    report = Verifier(DirectoryPlace(tmp_path), is_signed_by).run()
    assert row.key in {finding.where for finding in report.findings}


@pytest.mark.parametrize("key", ["", "/", "data/../../etc/passwd", "digests/000000001.json", "data/x", "data/\0"])
def test_a_digest_can_name_no_object_that_lies_elsewhere(key: str) -> None:
    place, _ = archive_of(1)
    digest = decode(place.objects[digest_key(1)])
    row = msgspec.structs.replace(digest.objects[0], key=key)
    place.objects[digest_key(1)] = encode(msgspec.structs.replace(digest, objects=(row,)))
    reading = Failing(place.objects, lambda key: False)
    assert (key, "is no name of an object, though digest 1 names it") in verify(reading).findings
    assert key not in reading.asked or key == digest_key(1)


def test_of_many_findings_the_first_are_kept_and_the_others_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.pipeline.verify._MOST_FINDINGS", 3)
    place, _ = archive_of(1)
    place.objects |= dict.fromkeys([f"data/{number}" for number in range(9)], b"")
    report = verify(place)
    assert ([row.where for row in report.findings], report.more) == (["data/0", "data/1", "data/2"], 6)


def test_a_directory_that_cannot_be_listed_is_a_finding() -> None:
    place, _ = archive_of(1)
    place.objects["data/contract=9/"] = b""
    assert verify(place).findings == [("data/contract=9/", "is a directory that cannot be read")]
    place.objects["data/contract=9/"] = b"x"  # in a bucket this name is an object like any other
    assert verify(place).findings == [("data/contract=9/", "is no part of the archive: no digest names it")]


def test_an_hour_is_read_as_it_is_written_and_what_is_none_is_the_first_of_all() -> None:
    assert seconds_of("2026-01-01T01:00:00Z") == START + HOUR
    assert seconds_of("2026-13-01T01:00:00Z") == 0
