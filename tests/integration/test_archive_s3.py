"""An archive in a bucket: against moto's S3 in a process, with versions and object lock, and with faults in between."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from poller.archive import PlaceError, TakenError
from poller.archive.s3 import S3Place
from poller.archive.signing import is_signed_by, new_key, read_public_key
from poller.config import MASK, ArchiveSink, Config, Evidence, Secret, SecretSource
from poller.core.evidence.batches import pack
from poller.core.evidence.digest import signature_key
from poller.pipeline.archive import ArchiveDeliverer
from poller.pipeline.unfinished import close_unfinished
from poller.pipeline.verify import Verifier
from poller.sinks.archive import ArchiveSink as Sink
from poller.sinks.archive import compress
from poller.sinks.base import Context
from poller.store.sqlite import State
from tests.archive_soak import soak
from tests.archives import Writer, entry
from tests.hostile import Asked, RawServer, headed
from tests.integration.fetching import Starter
from tests.moto import REGION, client, serving
from tests.states import START, commit, event
from tests.unit.test_archive_deliverer import Killed

BUCKETS = itertools.count(1)
ENTRIES = 2000
CONTRACTS = ("1", "2", "3", "4", "5")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("moto")) as url:
        yield url


def bucket(s3: str, *, is_locked: bool = True) -> str:
    """A new bucket; with `is_locked` one that can lock, which has versions."""
    name = f"audit-{next(BUCKETS)}"
    location = {"LocationConstraint": REGION}
    client("s3", s3).create_bucket(
        Bucket=name, CreateBucketConfiguration=location, ObjectLockEnabledForBucket=is_locked
    )
    return name


def secret(text: str) -> SecretSource:
    return SecretSource("inline", "", path="secret", inline=Secret(text))


def table(s3: str, name: str, **keys: object) -> ArchiveSink:
    access = {"access_key": secret("testing"), "secret_key": secret("testing")}
    settings = {"endpoint_url": s3, "region": REGION, **access, **keys}
    return ArchiveSink(name="archive", url=f"s3://{name}/prefix", **settings)  # type: ignore[arg-type]


def versions(s3: str, name: str) -> Counter[str]:
    pages = client("s3", s3).get_paginator("list_object_versions").paginate(Bucket=name)
    return Counter(version["Key"] for page in pages for version in page.get("Versions", ()))


class Unreliable(S3Place):
    """A storage with faults before or after an object is written: a kill, a lost answer, an overloaded storage."""

    chance = random.Random(4711)
    share = 0.15
    faults: ClassVar[Counter[str]] = Counter()

    def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
        kinds = ("killed before", "killed after", "lost", "SlowDown")
        kind = self.chance.choice(kinds) if self.chance.random() < self.share else ""
        self.faults[kind] += 1
        if kind == "killed before":
            raise Killed
        if kind == "SlowDown":
            raise PlaceError("503 SlowDown")
        super().put(key, content, retain_until=retain_until)
        if kind == "killed after":
            raise Killed
        if kind == "lost":
            raise PlaceError("no answer")


def test_every_entry_is_in_one_object_and_one_version_through_kills_and_lost_answers(s3: str, tmp_path: Path) -> None:
    name = bucket(s3)
    private, public = tmp_path / "evidence.key", tmp_path / "evidence.pub"
    for path, content in zip((private, public), new_key(), strict=True):
        path.write_bytes(content)
    private.chmod(0o600)
    settings = table(s3, name, object_lock="compliance", batch_events=300)
    config = Config(evidence=Evidence(signing_key_file=private))
    now = float(START)

    def begin() -> tuple[State, ArchiveDeliverer]:
        state = State.open(tmp_path / "state", "run")
        sink = Sink(settings, Context(config, threading.Event()), Unreliable(settings, config))
        return state, ArchiveDeliverer(state, sink, clock=lambda: now)

    state, deliverer = begin()
    state.contracts.enrol(CONTRACTS, "default", START, START)
    for first in range(0, ENTRIES, 200):
        numbers = range(first, first + 200)
        commit(state, [event(number, START + number * 3) for number in numbers], contract=CONTRACTS[first // 200 % 5])
        while True:
            try:
                while deliverer.step(is_last=True).wait_seconds is not None:
                    now += 61
                break
            except Killed:
                state.close()
                state, deliverer = begin()
    assert state.overview().imbalances() == []
    state.close()
    assert min(Unreliable.faults[kind] for kind in ("killed before", "killed after", "lost", "SlowDown")) > 0
    found = versions(s3, name)
    assert set(found.values()) == {1}
    place = S3Place(settings, config)
    lines = [
        line for listed in place.listing("data/") for line in gzip.decompress(place.get(listed.key) or b"").splitlines()
    ]
    assert sorted(json.loads(line)["n"] for line in lines) == list(range(ENTRIES))
    report = Verifier(place, is_signed_by, key=read_public_key(public)).run()
    assert (report.findings, report.entries) == ([], ENTRIES)
    # `verify` also finds objects that were deleted or overwritten in a bucket with versions.
    key = next(place.listing("data/")).key
    with pytest.raises(TakenError):
        place.put(key, b"other")
    client("s3", s3).delete_object(Bucket=name, Key=f"prefix/{key}")
    findings = Verifier(place, is_signed_by).run().findings
    assert {finding.where for finding in findings} == {key}
    assert any("was deleted" in finding.message for finding in findings)


@pytest.mark.parametrize(("replicas", "kills"), [(1, 3), (2, 3)], ids=["one daemon", "two replicas on PostgreSQL"])
def test_who_writes_is_killed_again_and_again_and_no_entry_is_twice_in_the_archive_or_missing(
    replicas: int, kills: int
) -> None:
    result = soak(kills, entries=1000, replicas=replicas)
    assert (result.archived, result.repeated, result.missing, result.more_versions) == (1000, 0, 0, 0)
    assert result.found_after_kills == []
    assert result.code == 0, result.verified


def test_an_object_is_locked_encrypted_and_stored_as_configured(s3: str) -> None:
    name = bucket(s3)
    settings = table(s3, name, object_lock="governance", encryption="AES256", storage_class="STANDARD_IA")
    S3Place(settings, Config()).put("data/x", b"text", retain_until=2_000_000_000)
    head = client("s3", s3).head_object(Bucket=name, Key="prefix/data/x")
    assert head["ObjectLockMode"] == "GOVERNANCE"
    assert head["ObjectLockRetainUntilDate"].timestamp() == 2_000_000_000
    assert (head["ServerSideEncryption"], head["StorageClass"]) == ("AES256", "STANDARD_IA")


def test_a_batch_without_a_digest_is_closed_in_a_locked_bucket_and_nothing_gets_a_second_version(s3: str) -> None:
    name = bucket(s3)
    settings = table(s3, name, object_lock="compliance", retain_seconds=86_400)
    place = S3Place(settings, Config())
    writer = Writer(place, None)
    writer.write([entry(1, 0)])
    (packed,) = pack([entry(2, 1)], 2, compress)
    place.put(packed.entry.key, packed.content)
    place.put(signature_key(2), bytes(64))
    sink = Sink(settings, Context(Config(), threading.Event()), place)
    writer.head = close_unfinished(place, sink, writer.head, START).head
    assert writer.head.number == 2
    writer.write([entry(2, 1)])
    report = Verifier(place, is_signed_by, workers=2).run()
    assert (report.findings, report.digests, report.entries) == ([], 3, 2)
    assert set(versions(s3, name).values()) == {1}


def test_check_proves_the_lock_by_trying_to_delete_a_version(bench: Starter, s3: str) -> None:
    place = bench(contracts=1, events=1)
    keys = f'endpoint_url = "{s3}"\nregion = "{REGION}"\naccess_key_env = "ACCESS"\nsecret_key_env = "SECRET"\n'
    env = {"ACCESS": "testing", "SECRET": "canary-secret"}

    def check(name: str, more: str = "") -> tuple[int, str]:
        head = '[[sinks]]\nname = "proof"\ntype = "archive"\n'
        text = f'{head}url = "s3://{name}/activity"\n{keys}{more}'
        (place.directory / "ionos-poller.toml").write_text(text)
        run = place.run("check", "--json", env=env)
        assert "canary-secret" not in run.stderr + repr(run.lines)
        findings = [row for row in json.loads(run.lines[0])["findings"] if row["name"] == "sink proof"]
        return run.code, " ".join(f"{row['level']}: {row['message']} ({row['hint']})" for row in findings)

    locked, plain = bucket(s3), bucket(s3, is_locked=False)
    told = check(locked, 'object_lock = "compliance"\n')[1]
    # moto refuses with `Access Denied`, and does not say that it is because of the lock.
    assert "in compliance mode, as the storage says; not proven by deleting" in told, told
    code, told = check(plain, 'object_lock = "compliance"\n')
    assert code != 0
    assert "object lock" in told or "no versions" in told, told
    code, told = check(plain)
    assert "objects can be written" in told
    assert "not signed" in told
    code, told = check("no-such-bucket")
    assert code != 0
    assert "create it" in told, told
    assert len(versions(s3, plain)) == 0


def test_verify_lists_and_reads_a_bucket_page_by_page(bench: Starter, s3: str) -> None:
    place = bench(contracts=2, events=300, span_seconds=3 * 3600)
    name = bucket(s3)
    (place.directory / "ionos-poller.toml").write_text(
        f'[[sinks]]\nname = "proof"\ntype = "archive"\nurl = "s3://{name}"\nendpoint_url = "{s3}"\nregion = "{REGION}"\n'
        'access_key_env = "ACCESS"\nsecret_key_env = "SECRET"\n'
    )
    env = {"ACCESS": "testing", "SECRET": "testing"}
    run = place.run("backfill", "--from", "4h", "--to", "0s", "--sink", "proof", env=env)
    assert run.code == 0, run.stderr
    for where in (f"s3://{name}", "proof"):
        run = place.run("archive", "verify", where, env=env)
        assert run.code == 0, run.stderr
        assert "600 entries of 2 contracts" in run.lines[0].decode()


@pytest.mark.parametrize(
    ("status", "code", "is_refused"),
    [
        (403, "InvalidAccessKeyId", True),
        (400, "ExpiredToken", True),
        (503, "SlowDown", False),
        (500, "InternalError", False),
        (404, "NoSuchBucket", True),
    ],
)
def test_what_a_storage_answers_waits_or_asks_for_a_person(status: int, code: str, is_refused: bool) -> None:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>words</Message></Error>".encode()
    answer = headed(body, f"Content-Length: {len(body)}", "Content-Type: application/xml", status=f"{status} words")
    with closing(RawServer(lambda asked: answer)) as server:
        place = S3Place(table(server.url, "bucket"), Config())
        with pytest.raises(PlaceError) as told:
            list(place.listing(""))
    assert told.value.is_refused == is_refused
    assert code in str(told.value)


def test_credentials_of_a_role_are_masked_after_they_were_renewed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    given, config = tmp_path / "given.json", tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = cat {given}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 300))
    words: list[str] = []

    def answer(asked: Asked) -> bytes:
        body = f"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>{' '.join(words)}</Message></Error>".encode()
        return headed(body, f"Content-Length: {len(body)}", "Content-Type: application/xml", status="500 Oops")

    with closing(RawServer(answer)) as server:
        place = S3Place(table(server.url, "b", access_key=None, secret_key=None), Config())
        for number in range(3):
            secrets = {name: f"canary-{name}-{number}" for name in ("AccessKeyId", "SecretAccessKey", "SessionToken")}
            given.write_text(json.dumps({"Version": 1, "Expiration": soon, **secrets}))
            words[:] = secrets.values()
            with pytest.raises(PlaceError) as caught:
                list(place.listing(""))
            assert "canary" not in str(caught.value)
            assert MASK in str(caught.value)


def test_a_storage_that_is_away_waits() -> None:
    place = S3Place(table("http://127.0.0.1:9", "bucket"), Config())
    with pytest.raises(PlaceError, match="no connection") as told:
        place.get("data/x")
    assert not told.value.is_refused
