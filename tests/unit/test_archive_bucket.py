"""What `check` says of a bucket: whether its lock holds is tried, and what the storage says of it is read back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from poller.archive import PlaceError
from poller.archive.s3 import S3Place
from poller.config import ArchiveSink, Config


def refused(code: str, status: int = 403) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "call")


class Storage:
    """A storage that keeps one object, and its lock as far as `keeps` says. With `is_lax` a locked version can be deleted."""

    def __init__(self, *, is_lax: bool = False, **keeps: object) -> None:
        self.keeps = keeps
        self.is_lax = is_lax
        self.found: dict[str, Any] = {}
        self.deleted: list[str | None] = []
        self.given: dict[str, Any] = {}

    def head_object(self, **_: Any) -> dict[str, Any]:
        if not self.found:
            raise refused("404", 404)
        return self.found

    def put_object(self, *, Body: bytes, **given: Any) -> dict[str, Any]:  # noqa: N803 - a name of the library
        self.given = given
        locks = {name: value for name, value in given.items() if name.startswith("ObjectLock")}
        self.found = {"ContentLength": len(Body), "VersionId": "v1", "Body": self, **locks, **self.keeps}
        return {}

    def get_object(self, **_: Any) -> dict[str, Any]:
        return {**self.found}

    def read(self) -> bytes:
        return b"probe\n"

    def delete_object(self, VersionId: str | None = None, **_: Any) -> dict[str, Any]:  # noqa: N803 - a name of the library
        if not self.is_lax:
            raise refused("AccessDenied")
        self.deleted.append(VersionId)
        return {}

    def list_object_versions(self, **_: Any) -> dict[str, Any]:
        return {}


def probed(storage: object, object_lock: str) -> list[str]:
    settings = ArchiveSink(name="archive", url="s3://audit/prefix", object_lock=object_lock)  # type: ignore[arg-type]
    place = S3Place(settings, Config())
    place._client = storage
    return place.probe()


@pytest.mark.parametrize("mode", ["compliance", "governance"])
def test_a_lock_that_holds_is_proven(mode: str) -> None:
    assert probed(Storage(), mode) == ["objects can be written", f"no version can be deleted ({mode})"]


@pytest.mark.parametrize(
    ("storage", "what"),
    [
        (Storage(VersionId=None), "keeps no versions"),
        (Storage(VersionId="null"), "keeps no versions"),
        (Storage(ObjectLockMode=None), "is not locked as asked for"),
        (Storage(ObjectLockMode="GOVERNANCE"), "is not locked as asked for"),
        (Storage(ObjectLockRetainUntilDate=datetime(2026, 1, 1, tzinfo=UTC)), "is not locked as asked for"),
        (Storage(is_lax=True), "a version of a locked object could be deleted"),
    ],
    ids=["no versions", "versions suspended", "no lock", "another lock", "a shorter lock", "a lock that does not hold"],
)
def test_a_lock_that_does_not_hold_is_told(storage: Storage, what: str) -> None:
    with pytest.raises(PlaceError, match=what) as told:
        probed(storage, "compliance")
    assert told.value.is_refused


def test_encryption_with_a_key_of_ones_own_and_a_storage_class_are_passed_on() -> None:
    keys = {"encryption": "aws:kms", "kms_key_id": "key-1", "storage_class": "STANDARD_IA"}
    place = S3Place(ArchiveSink(name="archive", url="s3://audit", **keys), Config())  # type: ignore[arg-type]
    place._client = storage = Storage()
    place.put("data/x", b"text")
    assert storage.given.items() >= {
        "ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key-1", "StorageClass": "STANDARD_IA", "IfNoneMatch": "*",
    }.items()  # fmt: skip


def test_a_connection_that_breaks_is_told_in_words() -> None:
    class Broken(Storage):
        def head_object(self, **_: Any) -> dict[str, Any]:
            raise ConnectionClosedError(endpoint_url="http://127.0.0.1:9/audit")

    with pytest.raises(PlaceError, match="the connection was closed before the answer came") as told:
        probed(Broken(), "none")
    assert not told.value.is_refused
