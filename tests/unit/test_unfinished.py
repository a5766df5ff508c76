"""Closing a batch whose digest is lost: it is named and kept, the chain goes on after it, and the archive verifies as before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from poller.archive import PlaceError
from poller.archive.signing import new_key
from poller.config import ArchiveSink as Settings
from poller.config import Config, Evidence
from poller.core.errors import ConfigError
from poller.core.evidence.batches import Head
from poller.core.evidence.digest import batch_of, decode, digest_key, encode, sha256, signature_key
from poller.pipeline.restore import DamagedArchiveError
from poller.pipeline.unfinished import Closed, close_unfinished
from poller.sinks.archive import ArchiveSink
from poller.sinks.base import Context
from tests.archives import MemoryPlace, Writer, entry, signer, verify

NOW = 1_767_300_000


class Lasting(MemoryPlace):
    """A place that deletes nothing: its key lacks the right, or the objects are locked."""

    def delete(self, key: str) -> None:
        raise PlaceError("AccessDenied", is_refused=True)


def written(batches: int) -> tuple[Lasting, Writer]:
    place = Lasting()
    writer = Writer(place, signer())
    for number in range(batches):
        writer.write([entry(10 * number, number), entry(10 * number + 1, number)])
    writer.head = writer.head._replace(key=signer().key)
    return place, writer


def killed(*, without: tuple[str, ...]) -> tuple[Lasting, Writer]:
    """An archive of two digests, and the objects of a third batch whose writer was killed."""
    place, writer = written(2)
    whole, _ = written(3)
    kinds = {"digest": digest_key(3), "signature": signature_key(3)}
    kinds["objects"] = next(key for key in whole.objects if batch_of(key) == 3)
    gone = {kinds[name] for name in without}
    place.objects = {key: content for key, content in whole.objects.items() if key not in gone}
    return place, writer


@pytest.fixture
def sink_of(tmp_path: Path) -> Any:
    """A function that makes a sink that signs with the archive's key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = tmp_path / "evidence.key"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    key.write_bytes(private.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    key.chmod(0o600)

    def make(place: MemoryPlace, evidence: Evidence | None = None) -> ArchiveSink:
        config = Config(evidence=evidence or Evidence(signing_key_file=key))
        return ArchiveSink(Settings(name="archive", url="file:///srv/audit"), Context(config, threading.Event()), place)

    return make


def close(place: MemoryPlace, sink: ArchiveSink, head: Head) -> Closed:
    return close_unfinished(place, sink, head, NOW)


CASES = [
    ("digest",),
    ("digest", "signature"),
    ("digest", "objects"),
]


@pytest.mark.parametrize("without", CASES, ids=["killed before the digest", "in mid-batch", "the signature alone"])
def test_what_is_left_of_a_batch_is_named_and_kept_and_the_archive_verifies(sink_of: Any, without: Any) -> None:
    place, writer = killed(without=without)
    before = dict(place.objects)
    head, left = close(place, sink_of(place), writer.head)
    assert before.items() <= place.objects.items(), "nothing is deleted or written over"
    assert {one.key for one in left} == {key for key in before if batch_of(key) == 3 or key == signature_key(3)}
    assert all((len(before[one.key]), sha256(before[one.key])) == (one.bytes, one.sha256) for one in left)
    assert (head.number, head.sha256, head.entries) == (3, sha256(place.objects[digest_key(3)]), 4)
    assert head.key == signer().key
    writer.head = head
    writer.write([entry(99, 5)])
    report = verify(place, key=signer())
    assert (report.findings, report.digests, report.entries, report.is_signed) == ([], 4, 5, True)


def test_a_kill_while_a_batch_is_closed_is_closed_like_any_other(sink_of: Any) -> None:
    place, writer = killed(without=("digest",))
    close(place, sink_of(place), writer.head)
    first = place.objects.pop(digest_key(3))
    assert signature_key(3, first) in place.objects
    _, left = close_unfinished(place, sink_of(place), writer.head, NOW + 1)
    assert signature_key(3, first) in {one.key for one in left}
    assert verify(place, key=signer()).findings == []
    assert close(place, sink_of(place), writer.head._replace(number=3)).abandoned == [], (
        "there is nothing left to close"
    )


def test_an_archive_without_anything_behind_its_end_is_left_as_it_is(sink_of: Any) -> None:
    place, writer = written(2)
    before = dict(place.objects)
    assert close(place, sink_of(place), writer.head) == (writer.head, [])
    assert place.objects == before


def test_more_than_one_digest_that_lacks_was_no_crash(sink_of: Any) -> None:
    place, writer = written(1)
    whole, _ = written(3)
    place.objects = {key: whole.objects[key] for key in whole.objects if key not in (digest_key(2), digest_key(3))}
    before = dict(place.objects)
    with pytest.raises(DamagedArchiveError, match="ends with digest 1, so digests were removed"):
        close(place, sink_of(place), writer.head)
    assert place.objects == before


def test_without_the_key_of_the_archive_nothing_is_written(sink_of: Any, tmp_path: Path) -> None:
    place, writer = killed(without=("digest",))
    before = dict(place.objects)
    other = tmp_path / "other.key"
    other.write_bytes(new_key()[0])
    other.chmod(0o600)
    for evidence in (Evidence(), Evidence(signing_key_file=other)):
        with pytest.raises(ConfigError):
            close(place, sink_of(place, evidence), writer.head)
    assert place.objects == before


def test_a_place_that_takes_nothing_is_told(sink_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place, writer = killed(without=("digest",))

    def refuse(*args: object, **options: object) -> None:
        raise PlaceError("AccessDenied", is_refused=True)

    monkeypatch.setattr(place, "put", refuse)
    with pytest.raises(PlaceError, match="AccessDenied"):
        close(place, sink_of(place), writer.head)


def test_verify_finds_what_was_abandoned_and_changed_since_and_takes_it_that_it_is_gone(sink_of: Any) -> None:
    place, writer = killed(without=("digest",))
    _, left = close(place, sink_of(place), writer.head)
    key = next(one.key for one in left if batch_of(one.key))
    kept = place.objects[key]
    for changed in (kept + b"x", bytes(len(kept))):
        place.objects[key] = changed
        assert verify(place, key=signer()).findings == [(key, "was changed since digest 3 named it as abandoned")]
    del place.objects[key]
    assert verify(place, key=signer()).findings == []


def test_a_second_signature_that_no_digest_has_is_a_finding(sink_of: Any) -> None:
    place, writer = killed(without=("digest",))
    close(place, sink_of(place), writer.head)
    extra = f"{signature_key(2)[:-4]}-{'0' * 16}.sig"
    place.objects[extra] = b"x" * 64
    assert verify(place, key=signer()).findings == [
        (extra, "is named by no digest, though it looks like a part of digest 2")
    ]
    del place.objects[extra]
    own = signature_key(3, place.objects[digest_key(3)])
    assert own != signature_key(3)
    signature = place.objects.pop(own)
    assert verify(place, key=signer()).findings == [(own, "is missing")]
    place.objects[own] = bytes(64)
    assert [finding.where for finding in verify(place, key=signer()).findings] == [digest_key(3)]
    place.objects[own] = signature


def test_a_digest_that_abandons_nothing_is_as_it_always_was() -> None:
    place, _ = written(1)
    content = place.objects[digest_key(1)]
    assert b"abandoned" not in content
    assert encode(decode(content)) == content
    assert signature_key(1, content) == signature_key(1) == "digests/000000001.sig"
