"""An archive in a bucket: the requests to the storage, what its answers mean, and whether its lock works."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.exceptions as raised
import pytest

from poller.archive import Listed, PlaceError, TakenError
from poller.archive.s3 import S3Place
from poller.config import ArchiveSink, Config, Secret, SecretSource
from poller.core.errors import ConfigError
from poller.net.connections import SendTimeoutError, TooLargeError, TooSlowError
from poller.system import liveness
from poller.system.liveness import GRACE_SECONDS, Workers
from tests.amazon import Library, refused


class Storage:
    """A storage that keeps one object. `keeps` overrides the stored lock. With `is_lax`, a locked version can be deleted."""

    def __init__(self, refusal: Exception | None = None, *, is_lax: bool = False, **keeps: object) -> None:
        """`refusal`: the answer to a request to delete a version."""
        self.refusal = refusal or refused("AccessDenied", 403, "Access Denied because object protected by object lock.")
        self.keeps = keeps
        self.is_lax = is_lax
        self.found: dict[str, Any] = {}
        self.deleted: list[str | None] = []

    def head_object(self, **_: Any) -> dict[str, Any]:
        if not self.found:
            raise refused("404", 404)
        return self.found

    def put_object(self, *, Body: bytes, **given: Any) -> dict[str, Any]:  # noqa: N803 - a name of the library
        locks = {name: value for name, value in given.items() if name.startswith("ObjectLock")}
        self.found = {"ContentLength": len(Body), "VersionId": "v1", "Body": self, **locks, **self.keeps}
        return {}

    def get_object(self, **_: Any) -> dict[str, Any]:
        return {**self.found}

    def read(self) -> bytes:
        return b"probe\n"

    def delete_object(self, VersionId: str | None = None, **_: Any) -> dict[str, Any]:  # noqa: N803 - a name of the library
        if not self.is_lax:
            raise self.refusal
        self.deleted.append(VersionId)
        return {}

    def list_object_versions(self, **_: Any) -> dict[str, Any]:
        return {}


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str], list[str]]:
    def probe(storage: object, object_lock: str) -> list[str]:
        Library(monkeypatch, "poller.archive.s3", storage)
        settings = ArchiveSink(name="archive", url="s3://audit/prefix", object_lock=object_lock)  # type: ignore[arg-type]
        return S3Place(settings, Config()).probe()

    return probe


@pytest.mark.parametrize("mode", ["compliance", "governance"])
@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("AccessDenied", 403, "Access Denied because object protected by object lock."),
        ("AccessDenied", 403, "forbidden by Object Lock"),
        ("ObjectLocked", 400, "Object is WORM protected and cannot be overwritten"),
        ("InvalidRequest2", 400, "the retention period is not over"),
    ],
)
def test_a_lock_that_refuses_a_deletion_in_its_own_name_is_proven(
    probed: Callable[[object, str], list[str]], mode: str, code: str, status: int, words: str
) -> None:
    made = Storage(refused(code, status, words))
    assert probed(made, mode) == ["objects can be written", f"no version can be deleted ({mode})"]


@pytest.mark.parametrize(("code", "status"), [("AccessDenied", 403), ("403", 403), ("MethodNotAllowed", 405)])
def test_a_deletion_that_may_be_refused_for_want_of_a_right_proves_no_lock(
    probed: Callable[[object, str], list[str]], code: str, status: int
) -> None:
    _, told = probed(Storage(refused(code, status, "Access Denied")), "compliance")
    assert re.fullmatch(r"locked until 20\d\d-\S+Z in compliance mode, as the storage says; not proven .*", told)
    assert "this key may not delete" in told


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("SlowDown", 503),
        ("InternalError", 500),
        ("TooManyRequests", 429),
        ("RequestTimeout", 400),
        ("ExpiredToken", 400),
        ("InvalidAccessKeyId", 403),
        ("NoSuchBucket", 404),
    ],
)
def test_a_deletion_that_failed_for_another_reason_says_nothing_of_the_lock(
    probed: Callable[[object, str], list[str]], code: str, status: int
) -> None:
    with pytest.raises(PlaceError, match=code):
        probed(Storage(refused(code, status, "the lock")), "compliance")


def test_a_version_that_is_gone_after_its_deletion_was_refused_was_not_locked(
    probed: Callable[[object, str], list[str]],
) -> None:
    class Gone(Storage):
        def delete_object(self, **_: Any) -> dict[str, Any]:
            self.found = {}
            raise refused("AccessDenied", 403)

    with pytest.raises(PlaceError, match="404"):
        probed(Gone(), "compliance")


@pytest.mark.parametrize(
    ("keeps", "what"),
    [
        ({"VersionId": None}, "keeps no versions"),
        ({"VersionId": "null"}, "keeps no versions"),
        ({"ObjectLockMode": None}, "is not locked as asked for"),
        ({"ObjectLockMode": "GOVERNANCE"}, "is not locked as asked for"),
        ({"ObjectLockRetainUntilDate": datetime(2026, 1, 1, tzinfo=UTC)}, "is not locked as asked for"),
        ({"is_lax": True}, "a version of a locked object could be deleted"),
    ],
    ids=["no versions", "versions suspended", "no lock", "another lock", "a shorter lock", "a lock that does not hold"],
)
def test_a_lock_that_does_not_hold_is_told(
    probed: Callable[[object, str], list[str]], keeps: dict[str, Any], what: str
) -> None:
    with pytest.raises(PlaceError, match=what) as told:
        probed(Storage(**keeps), "compliance")
    assert told.value.is_refused


# What is written, read and listed


class Bucket:
    """A bucket that gives the answers of each operation in order, then repeats the last one. It keeps the requests."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {name: answer if isinstance(answer, list) else [answer] for name, answer in answers.items()}
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, operation: str) -> Any:
        def answer(**asked: Any) -> Any:
            self.asked.append((operation, asked))
            answers = self.answers.get(operation, [{}])
            found = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(found, Exception):
                raise found
            return {**found}

        return answer

    def of(self, operation: str) -> list[dict[str, Any]]:
        return [asked for name, asked in self.asked if name == operation]


MISSING = refused("404", 404)
KEY = "data/x"
TEXT = b"text"
PUT = {
    "Bucket": "audit",
    "Key": "prefix/data/x",
    "Body": TEXT,
    "ContentMD5": base64.b64encode(hashlib.md5(TEXT).digest()).decode(),  # noqa: S324 - what S3 asks for
    "Metadata": {"sha256": hashlib.sha256(TEXT).hexdigest()},
}
THERE = {"ContentLength": 4, "Metadata": PUT["Metadata"]}
UNKNOWN = {"ContentLength": 4}
OTHER = {"ContentLength": 5, "Metadata": PUT["Metadata"]}


class Body(io.BytesIO):
    """The body of an answer: `read()` returns all of it, `read(count)` the next bytes. With `breaks_off` it ends too early."""

    breaks_off = False

    def read(self, count: int | None = None) -> bytes:
        if count is None:
            return self.getvalue()
        found = super().read(count)
        if not found and self.breaks_off:
            raise raised.IncompleteReadError(actual_bytes=1, expected_bytes=2)
        return found


def content(found: bytes) -> dict[str, Any]:
    return {"Body": Body(found)}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[S3Place, Bucket, Library]]:
    def make(*, config: Config | None = None, url: str = "s3://audit/prefix", keys: Any = None, **answers: Any) -> Any:
        bucket = Bucket(**answers)
        library = Library(monkeypatch, "poller.archive.s3", bucket)
        table = ArchiveSink(name="archive", url=url, **(keys or {}))
        return S3Place(table, config or Config()), bucket, library

    return make


Made = Callable[..., tuple[S3Place, Bucket, Library]]


@pytest.mark.parametrize(
    ("keys", "retain_until", "expected"),
    [
        ({}, None, {}),
        (
            {"object_lock": "governance"},
            1_777_621_340.5,
            {
                "ObjectLockMode": "GOVERNANCE",
                "ObjectLockRetainUntilDate": datetime(2026, 5, 1, 7, 42, 20, 500_000, tzinfo=UTC),
            },
        ),
        ({"encryption": "AES256", "kms_key_id": "key-1"}, None, {"ServerSideEncryption": "AES256"}),
        ({"encryption": "aws:kms"}, None, {"ServerSideEncryption": "aws:kms"}),
        (
            {"encryption": "aws:kms", "kms_key_id": "key-1", "storage_class": "STANDARD_IA"},
            None,
            {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key-1", "StorageClass": "STANDARD_IA"},
        ),
    ],
)
def test_an_object_is_put_on_the_condition_that_it_is_not_there(
    made: Made, keys: dict[str, Any], retain_until: float | None, expected: dict[str, Any]
) -> None:
    place, bucket, _ = made(keys=keys, head_object=MISSING)
    place.put(KEY, TEXT, retain_until=retain_until)
    assert bucket.asked == [
        ("head_object", {"Bucket": "audit", "Key": "prefix/data/x"}),
        ("put_object", {**PUT, "IfNoneMatch": "*", **expected}),
    ]


def test_a_bucket_without_a_prefix_has_its_keys_as_they_are(made: Made) -> None:
    place, bucket, _ = made(url="s3://audit", head_object=MISSING)
    place.put(KEY, TEXT)
    assert bucket.of("put_object")[0]["Key"] == KEY
    place.delete(KEY)
    assert bucket.of("delete_object") == [{"Bucket": "audit", "Key": KEY}]


@pytest.mark.parametrize(
    ("head", "read", "is_ours"),
    [
        (THERE, None, True),
        (UNKNOWN, TEXT, True),
        (UNKNOWN, b"tex!", False),
        (OTHER, b"text!", False),
        ({"ContentLength": 4, "Metadata": {"sha256": "0"}}, b"tex!", False),
    ],
)
def test_what_is_there_stays_as_it_is(made: Made, head: dict[str, Any], read: bytes | None, is_ours: bool) -> None:
    place, bucket, _ = made(head_object=head, get_object=content(read or b""))
    if is_ours:
        place.put(KEY, TEXT)
    else:
        with pytest.raises(TakenError, match="s3://audit/prefix/data/x is there already"):
            place.put(KEY, TEXT)
    assert bucket.of("put_object") == []
    assert len(bucket.of("get_object")) == (read is not None)


@pytest.mark.parametrize("code", ["PreconditionFailed", "412"])
def test_another_writer_who_was_faster_is_found(made: Made, code: str) -> None:
    place, _, _ = made(head_object=[MISSING, THERE], put_object=refused(code, 412))
    place.put(KEY, TEXT)
    place, _, _ = made(head_object=[MISSING, OTHER], get_object=content(b"text!"), put_object=refused(code, 412))
    with pytest.raises(TakenError):
        place.put(KEY, TEXT)
    place, bucket, _ = made(head_object=MISSING, put_object=refused(code, 412))
    with pytest.raises(PlaceError, match=code):
        place.put(KEY, TEXT)
    assert len(bucket.of("put_object")) == 1


@pytest.mark.parametrize("code", ["NotImplemented", "501"])
def test_a_storage_that_knows_no_conditions_is_found_by_trying_once(made: Made, code: str) -> None:
    place, bucket, _ = made(head_object=MISSING, put_object=[refused(code, 501), {}])
    lock = datetime.fromtimestamp(9, UTC)
    place.put(KEY, TEXT, retain_until=9)
    place.put(KEY, TEXT)
    conditions = [
        (asked.get("IfNoneMatch"), asked.get("ObjectLockRetainUntilDate")) for asked in bucket.of("put_object")
    ]
    assert conditions == [("*", lock), (None, lock), (None, None)]
    bucket.answers["put_object"] = [refused(code, 501)]
    with pytest.raises(PlaceError):
        place.put(KEY, TEXT)
    assert len(bucket.of("put_object")) == 4


@pytest.mark.parametrize("code", ["404", "NoSuchKey", "NotFound"])
def test_an_object_is_read_or_is_not_there(made: Made, code: str) -> None:
    place, bucket, _ = made(get_object=[content(TEXT), refused(code, 404), refused("SlowDown", 503)])
    assert place.get(KEY) == TEXT
    assert bucket.asked == [("get_object", {"Bucket": "audit", "Key": "prefix/data/x"})]
    assert place.get(KEY) is None
    with pytest.raises(PlaceError, match="SlowDown"):
        place.get(KEY)


@pytest.mark.parametrize(("max_bytes", "read"), [(-2, b""), (0, b"t"), (2, b"tex"), (3, TEXT), (4, TEXT), (9, TEXT)])
def test_no_more_of_an_object_is_read_than_a_byte_past_the_bound(made: Made, max_bytes: int, read: bytes) -> None:
    answer = content(TEXT)
    place, _, _ = made(get_object=answer)
    assert place.get(KEY, max_bytes) == read
    assert answer["Body"].closed == (max_bytes < 4), "the rest of it is not fetched"


def test_an_answer_that_broke_off_is_not_taken_for_a_short_object(made: Made) -> None:
    answer = content(TEXT)
    answer["Body"].breaks_off = True
    place, _, _ = made(get_object=answer)
    with pytest.raises(PlaceError) as told:
        place.get(KEY, 9)
    assert told.value.may_pass


# Retries


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each wait of a place. The waits take no time."""
    waited: list[float] = []
    monkeypatch.setattr("poller.archive.s3.time", SimpleNamespace(sleep=waited.append, time=time.time))
    monkeypatch.setattr("poller.archive.s3.random", SimpleNamespace(random=lambda: 1.0))
    return waited


PASSING = [
    refused("SlowDown", 503), refused("InternalError", 500), refused("RequestTimeout", 400), refused("TooMany", 429),
    raised.ReadTimeoutError(endpoint_url="x"), raised.EndpointConnectionError(endpoint_url="x"),
]  # fmt: skip


def patient(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    Library(monkeypatch, "poller.archive.s3", bucket)
    return S3Place(ArchiveSink(name="archive", url="s3://audit/prefix"), Config(), is_patient=True)


def test_what_may_pass_is_tried_again_with_growing_waits(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    place = patient(Bucket(get_object=[*PASSING, content(TEXT)]), monkeypatch)
    assert place.get(KEY, 4) == TEXT
    assert waits == [1, 2, 4, 8, 16, 16]
    waits.clear()
    pages = {"Versions": [version("a", 1)], "IsTruncated": True, "NextKeyMarker": "k"}, {"Versions": [version("b", 1)]}
    place = patient(Bucket(list_object_versions=[pages[0], *PASSING[:2], pages[1]]), monkeypatch)
    assert [listed.key for listed in place.listing("")] == ["a", "b"]
    assert waits == [1, 2]


def test_what_does_not_pass_is_told_in_the_end(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = Bucket(get_object=refused("SlowDown", 503), list_object_versions=refused("SlowDown", 503))
    place = patient(bucket, monkeypatch)
    with pytest.raises(PlaceError, match="SlowDown") as told:
        place.get(KEY)
    assert not told.value.is_of_object
    assert len(waits) == 6
    with pytest.raises(PlaceError, match="SlowDown"):
        list(place.listing(""))
    assert bucket.of("list_objects_v2") == [], "it would show no deletions"


@pytest.mark.parametrize(
    ("error", "is_of_object"),
    [
        (refused("AccessDenied", 403), True),
        (refused("InvalidObjectState", 403), True),
        (refused("KMS.DisabledException", 400), True),
        (refused("KeyTooLongError", 400), True),
        (raised.ParamValidationError(report="x"), True),
        (raised.HTTPClientError(error=TooLargeError("too large")), True),
        (refused("ExpiredToken", 400), False),
        (refused("SignatureDoesNotMatch", 403), False),
        (refused("NoSuchBucket", 404), False),
        (refused("Odd", 401), False),
        (raised.NoCredentialsError(), False),
    ],
    ids=str,
)
def test_what_does_not_pass_is_asked_once_and_is_of_the_object_or_of_the_place(
    waits: list[float], monkeypatch: pytest.MonkeyPatch, error: Exception, is_of_object: bool
) -> None:
    error.__context__ = getattr(error, "kwargs", {}).get("error")
    with pytest.raises(PlaceError) as told:
        patient(Bucket(get_object=error), monkeypatch).get(KEY)
    assert (told.value.is_of_object, told.value.may_pass, waits) == (is_of_object, False, [])


def test_a_sink_waits_by_itself(made: Made, waits: list[float]) -> None:
    place, bucket, _ = made(get_object=refused("SlowDown", 503))
    with pytest.raises(PlaceError):
        place.get(KEY)
    assert (len(bucket.asked), waits) == (1, [])


def test_that_an_object_is_not_there_is_known_by_the_answer_alone(made: Made) -> None:
    place, bucket, _ = made(head_object=refused("SlowDown", 503))
    with pytest.raises(PlaceError, match="SlowDown"):
        place.put(KEY, TEXT)
    assert bucket.of("put_object") == []


def version(name: str, size: int, *, is_latest: bool = True) -> dict[str, Any]:
    return {"Key": f"prefix/{name}", "Size": size, "IsLatest": is_latest, "VersionId": f"v-{name}-{size}"}


def test_a_listing_tells_versions_and_deletions_over_all_pages(made: Made) -> None:
    place, bucket, _ = made(
        list_object_versions=[
            {
                "Versions": [version("d/b", 7), version("d/b", 9, is_latest=False), version("d/a", 1, is_latest=False)],
                "IsTruncated": True,
                "NextKeyMarker": "k1",
                "NextVersionIdMarker": "v1",
            },
            {"DeleteMarkers": [version("d/a", 0)], "IsTruncated": True, "NextKeyMarker": "k2"},
            {
                "Versions": [version("d/c", 3), version("d/d", 5, is_latest=False), version("d/d", 4)],
                "DeleteMarkers": [
                    version("d/c", 0, is_latest=False),
                    version("d/e", 0),
                    version("d/e", 0, is_latest=False),
                ],
                "IsTruncated": False,
            },
        ]
    )
    assert list(place.listing("d/")) == [
        Listed("d/a", 0, 1, is_deleted=True),
        Listed("d/b", 7, 2),
        Listed("d/c", 3, 1),
        Listed("d/d", 4, 2),
        Listed("d/e", 0, 0, is_deleted=True),
    ]
    asked = {"Bucket": "audit", "Prefix": "prefix/d/"}
    assert bucket.asked == [
        ("list_object_versions", asked),
        ("list_object_versions", {**asked, "KeyMarker": "k1", "VersionIdMarker": "v1"}),
        ("list_object_versions", {**asked, "KeyMarker": "k2"}),
    ]


def test_a_folder_that_a_console_made_is_no_object_and_one_with_content_is(made: Made) -> None:
    versions = [version("", 0), version("data/", 0), version("data/a", 0), version("digests/", 1)]
    deleted = [version("old/", 0)]
    place, _, _ = made(list_object_versions=[{"Versions": versions, "DeleteMarkers": deleted}])
    assert list(place.listing("")) == [Listed("data/a", 0), Listed("digests/", 1)]


def test_a_version_that_comes_after_its_deletion_changes_nothing_about_it(made: Made) -> None:
    place, _, _ = made(
        list_object_versions=[
            {"DeleteMarkers": [version("a", 0)], "IsTruncated": True, "NextKeyMarker": "k"},
            {"Versions": [version("a", 5, is_latest=False)]},
        ]
    )
    assert list(place.listing("")) == [Listed("a", 0, 1, is_deleted=True)]


def test_without_the_right_to_see_versions_objects_are_listed(made: Made) -> None:
    place, bucket, _ = made(
        list_object_versions=refused("AccessDenied", 403),
        list_objects_v2=[
            {"Contents": [version("b", 2)], "IsTruncated": True, "NextContinuationToken": "next"},
            {"Contents": [version("a", 1)]},
            {},
        ],
    )
    assert list(place.listing("")) == [Listed("a", 1), Listed("b", 2)]
    asked = {"Bucket": "audit", "Prefix": "prefix/"}
    assert bucket.of("list_objects_v2") == [asked, {**asked, "ContinuationToken": "next"}]
    assert list(place.listing("")) == []


PLAIN = {"Contents": [version("a", 1), version("b", 2)]}  # an answer about versions has no `Contents`


@pytest.mark.parametrize(
    "versions",
    [
        {},
        PLAIN,
        {**PLAIN, "IsTruncated": True, "NextMarker": "prefix/b"},
        refused("NotImplemented", 501),
        refused("MethodNotAllowed", 405),
    ],
    ids=["none", "objects", "a page of objects", "501", "405"],
)
def test_what_is_there_is_listed_by_a_storage_that_does_not_know_versions(made: Made, versions: Any) -> None:
    place, _, _ = made(list_object_versions=versions, list_objects_v2=PLAIN)
    assert list(place.listing("")) == [Listed("a", 1), Listed("b", 2)]
    place, _, _ = made(list_object_versions=versions, list_objects_v2={})
    assert list(place.listing("")) == []


@pytest.mark.parametrize("marker", [{}, {"NextContinuationToken": "the same"}, {"NextContinuationToken": ""}])
def test_a_list_that_is_cut_and_does_not_go_on_is_no_list(made: Made, marker: dict[str, str]) -> None:
    page = {**PLAIN, "IsTruncated": True, **marker}
    place, bucket, _ = made(list_object_versions=refused("AccessDenied", 403), list_objects_v2=page)
    with pytest.raises(PlaceError, match="does not say where it goes on"):
        list(place.listing(""))
    assert len(bucket.of("list_objects_v2")) <= 2
    place, _, _ = made(
        list_object_versions={"Versions": [version("a", 1)], "IsTruncated": True, "NextKeyMarker": "the same"},
        list_objects_v2=PLAIN,
    )
    assert list(place.listing("")) == [Listed("a", 1), Listed("b", 2)]


def test_a_bucket_that_is_not_there_is_told_and_not_listed_otherwise(made: Made) -> None:
    place, bucket, _ = made(list_object_versions=refused("NoSuchBucket", 404))
    with pytest.raises(PlaceError, match="NoSuchBucket"):
        list(place.listing(""))
    assert len(bucket.asked) == 1


# A probe


def test_a_probe_writes_reads_and_deletes_an_object_of_its_own(made: Made) -> None:
    place, bucket, _ = made(head_object=MISSING, get_object=content(b"probe\n"))
    assert place.probe() == ["objects can be written"]
    assert [operation for operation, _ in bucket.asked] == ["head_object", "put_object", "get_object", "delete_object"]
    keys = {asked["Key"] for _, asked in bucket.asked}
    assert len(keys) == 1
    assert re.fullmatch(rf"prefix/probes/\d{{19}}-{os.getpid()}", keys.pop())
    assert "ObjectLockMode" not in bucket.of("put_object")[0]


@pytest.mark.parametrize("found", [b"", b"<html>", None])
def test_what_cannot_be_read_back_is_told(made: Made, found: bytes | None) -> None:
    read = MISSING if found is None else content(found)
    place, _, _ = made(head_object=MISSING, get_object=read)
    with pytest.raises(PlaceError, match="s3://audit/prefix: what was written cannot be read") as told:
        place.probe()
    assert not told.value.is_refused


def test_a_key_that_may_not_delete_will_do_and_a_storage_that_does_not_answer_will_not(made: Made) -> None:
    answers = {"head_object": MISSING, "get_object": content(b"probe\n")}
    place, _, _ = made(**answers, delete_object=refused("AccessDenied", 403))
    assert place.probe() == ["objects can be written, and not deleted with this key"]
    place, _, _ = made(**answers, delete_object=refused("SlowDown", 503))
    with pytest.raises(PlaceError, match="SlowDown"):
        place.probe()


def test_a_probe_of_a_lock_asks_for_a_minute_and_sweeps_up_what_earlier_ones_left(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.archive.s3.time", SimpleNamespace(time=lambda: 1000.9, time_ns=lambda: 7))
    until = datetime.fromtimestamp(1060, UTC)
    kept = {"VersionId": "v1", "ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until}
    left = [version("probes/a", 6), version("probes/b", 6)]
    place, bucket, _ = made(
        keys={"object_lock": "compliance"},
        head_object=[MISSING, kept],
        get_object=content(b"probe\n"),
        delete_object=[refused("AccessDenied", 403, "locked"), refused("AccessDenied", 403), {}],
        list_object_versions={"Versions": left},
    )
    assert place.probe() == ["objects can be written", "no version can be deleted (compliance)"]
    assert bucket.of("put_object")[0]["ObjectLockRetainUntilDate"] == until
    key = f"prefix/probes/7-{os.getpid()}"
    assert bucket.of("head_object")[1] == {"Bucket": "audit", "Key": key}
    assert bucket.of("list_object_versions") == [{"Bucket": "audit", "Prefix": "prefix/probes/"}]
    assert bucket.of("delete_object") == [
        {"Bucket": "audit", "Key": key, "VersionId": "v1"},
        *({"Bucket": "audit", "Key": one["Key"], "VersionId": one["VersionId"]} for one in left),
    ]
    # It is no error if the objects of earlier probes cannot be listed, or if there are none.
    for listed in (refused("AccessDenied", 403), {}):
        bucket.answers |= {"head_object": [MISSING, kept], "list_object_versions": [listed]}
        bucket.answers["delete_object"] = [refused("AccessDenied", 403, "locked")]
        assert len(place.probe()) == 2


# What a failure means


@pytest.mark.parametrize(
    ("error", "words", "hint", "is_refused"),
    [
        (refused("SlowDown", 503, "wait"), "SlowDown: wait", "", False),
        (refused("SlowDown", 503, None), "SlowDown", "", False),
        (refused(None, 503, "wait"), "wait", "", False),
        (refused(None, 503, None), "HTTP 503", "", False),
        (refused(None, None, None), "HTTP 0", "", False),
        (refused("New", 401), "New: words", "", True),
        (refused("New", 403), "New: words", "needs s3:PutObject, s3:GetObject and s3:ListBucket", True),
        (refused("SignatureDoesNotMatch", 403), "SignatureDoesNotMatch: words", "check access_key and secret_key", True),
        (refused("RequestTimeTooSkewed", 403), "RequestTimeTooSkewed: words", "set the clock of this machine", True),
        (refused("403", 403), "403: words", "check access_key and secret_key", True),
        (refused("403", 403), "403: words", "needs s3:PutObject", True),
        (refused("InvalidObjectState", 403), "InvalidObjectState: words", "restore it", True),
        (refused("InvalidAccessKeyId", 400), "InvalidAccessKeyId: words", "", True),
        (refused("NoSuchBucket", 404), "NoSuchBucket: words", "create it", True),
        (refused("InvalidStorageClass", 403), "InvalidStorageClass: words", "check storage_class", True),
        (refused("canary-secret", 503, "canary-token canary-access"), "********: ******** ********", "", False),
        (raised.NoCredentialsError(), "no usable credentials: NoCredentialsError", "access_key_file", True),
        (
            raised.ConnectionClosedError(endpoint_url="http://secret"),
            "the connection was closed before the answer came",
            "",
            False,
        ),
        (raised.UnknownEndpointError(service_name="x", region_name="y"), "the call failed: UnknownEndpointError", "", False),
        (KeyError("secret"), "the call failed: KeyError", "check region and endpoint_url", False),
    ],
    ids=str,
)  # fmt: skip
def test_a_failure_is_told_with_the_place_and_what_to_do(
    made: Made, error: Exception, words: str, hint: str, is_refused: bool
) -> None:
    place, _, _ = made(delete_object=error)
    with pytest.raises(PlaceError) as told:
        place.delete(KEY)
    assert told.value.message == f"s3://audit/prefix: {words}"
    assert hint in told.value.hint
    assert bool(told.value.hint) == bool(hint)
    assert told.value.is_refused == is_refused


@pytest.mark.parametrize("kind", [TooLargeError, TooSlowError, SendTimeoutError])
def test_a_bound_that_was_met_is_told_in_its_own_words(made: Made, kind: type[Exception]) -> None:
    failure = raised.HTTPClientError(error=kind("what it is"))
    failure.__context__ = kind("what it is")
    place, _, _ = made(delete_object=failure)
    with pytest.raises(PlaceError, match="what it is") as told:
        place.delete(KEY)
    assert told.value.message == "s3://audit/prefix: what it is"
    assert not told.value.is_refused


def test_credentials_are_looked_for_anew_once_they_were_refused_and_not_before(made: Made) -> None:
    failures = [refused("SlowDown", 503), KeyError("x"), raised.ReadTimeoutError(endpoint_url="x"), {}]
    place, bucket, library = made(delete_object=[*failures])
    for _ in failures:
        with suppress(PlaceError):
            place.delete(KEY)
    assert len(library.clients) == 1
    bucket.answers["delete_object"] = [refused("ExpiredToken", 400), {}]
    with pytest.raises(PlaceError):
        place.delete(KEY)
    place.delete(KEY)
    assert len(library.clients) == 2


def test_a_call_may_take_as_long_as_its_time_outs_allow(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: clock.now))
    keys = {"connect_timeout_seconds": 1000.0, "send_timeout_seconds": 200.0, "read_timeout_seconds": 30.0}
    place, bucket, _ = made(keys=keys)
    workers, seen = Workers(), []

    def delete(**_: Any) -> None:
        for seconds in (
            1000 + 200 + 4 * 30 + GRACE_SECONDS,
            1,
        ):  # a slow answer may take four times read_timeout
            clock.now += seconds
            seen.append(bool(workers.stuck()))

    monkeypatch.setattr(bucket, "delete_object", delete, raising=False)
    with workers.busy("sink archive"):
        place.delete(KEY)
    assert seen == [False, True]


# The client


def source(value: str) -> SecretSource:
    return SecretSource("inline", "", path="test", is_text=True, inline=Secret(value))


def test_a_client_is_made_as_the_table_says(made: Made) -> None:
    keys = {
        "region": "eu-central-3", "endpoint_url": "https://s3.example", "ca_file": "/ca.pem",
        "access_key": source("access"), "secret_key": source("secret"),
        "connect_timeout_seconds": 1.0, "read_timeout_seconds": 2.0, "send_timeout_seconds": 3.0,
    }  # fmt: skip
    place, bucket, library = made(keys=keys)
    place.delete(KEY)
    place.delete(KEY)
    (session,), (client,) = library.sessions, library.clients
    assert session.pop("botocore_session") is not None
    assert session == {
        "region_name": "eu-central-3", "aws_access_key_id": "access", "aws_secret_access_key": "secret",
    }  # fmt: skip
    assert (client["service"], client["endpoint_url"], client["verify"]) == ("s3", "https://s3.example", "/ca.pem")
    assert library.config == {
        "connect_timeout": 1.0,
        "read_timeout": 2.0,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": 8,
        "proxies": {},
        "signature_version": "s3v4",
        "s3": {"addressing_style": "path"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    assert library.bounds == [(bucket, 3.0, 128 * 1024 * 1024)]


@pytest.mark.parametrize(
    ("keys", "region"),
    [
        ({}, None),
        ({"endpoint_url": "http://s3.example"}, "us-east-1"),
        ({"region": "eu-south-2"}, "eu-south-2"),
        ({"access_key": source("access")}, None),
        ({"secret_key": source("secret")}, None),
    ],
)
def test_what_the_table_leaves_out_is_aws_own(made: Made, keys: dict[str, Any], region: str | None) -> None:
    place, _, library = made(keys=keys)
    place.delete(KEY)
    (session,), (client,) = library.sessions, library.clients
    assert (session["region_name"], len(session)) == (region, 2)
    assert (client["endpoint_url"], client["verify"]) == (keys.get("endpoint_url"), True)
    assert library.config["s3"] == {"addressing_style": "path" if "endpoint_url" in keys else "auto"}


def test_certificates_are_those_of_the_table_before_those_of_the_environment(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Config(network=SimpleNamespace(ca_bundle="/ours.pem", proxies_for=lambda url: {}))  # type: ignore[arg-type]
    monkeypatch.setenv("AWS_CA_BUNDLE", "/theirs.pem")
    found = []
    for config, keys in ((ours, {"ca_file": "/table.pem"}), (ours, {}), (Config(), {})):
        place, _, library = made(config=config, keys=keys)
        place.delete(KEY)
        found.append(library.clients[0]["verify"])
    assert found == ["/table.pem", "/ours.pem", "/theirs.pem"]


@pytest.mark.parametrize(
    ("keys", "endpoint"),
    [
        ({"region": "eu-south-2"}, "https://s3.eu-south-2.amazonaws.com"),
        ({}, "https://s3.eu-west-9.amazonaws.com"),
        ({"endpoint_url": "https://s3.example"}, "https://s3.example"),
    ],
)
def test_the_proxy_is_that_for_the_endpoint(made: Made, keys: dict[str, Any], endpoint: str) -> None:
    network = SimpleNamespace(ca_bundle=None, proxies_for=lambda url: {"https": f"http://proxy for {url}"})
    place, _, library = made(config=Config(network=network), keys=keys)  # type: ignore[arg-type]
    place.delete(KEY)
    assert library.config["proxies"] == {"https": f"http://proxy for {endpoint}"}


def test_credentials_that_are_not_there_are_no_secrets_to_mask(made: Made) -> None:
    place, _, library = made(delete_object=refused("Odd", 500, "None canary-token"))
    library.credentials = ("canary-access", "canary-secret", None)
    with pytest.raises(PlaceError, match="Odd: None canary-token"):
        place.delete(KEY)
    place, _, library = made(delete_object=refused("Odd", 500, "canary-secret"))
    library.credentials = None
    with pytest.raises(PlaceError, match="Odd: canary-secret"):
        place.delete(KEY)


def test_a_key_that_cannot_be_read_is_an_error_of_the_configuration(made: Made, tmp_path: Path) -> None:
    gone = SecretSource("file", str(tmp_path / "gone"), path="sinks[0].access_key_file")
    place, _, _ = made(keys={"access_key": gone, "secret_key": gone})
    with pytest.raises(ConfigError, match="gone"):
        place.delete(KEY)


def test_without_its_library_it_says_for_which_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigError) as caught:
        S3Place(ArchiveSink(name="audit", url="s3://audit"), Config())
    (problem,) = caught.value.problems
    assert (problem.path, problem.message) == ("sinks.audit.url", "s3:// needs boto3")
    assert "[archive]" in problem.hint
