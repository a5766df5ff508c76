"""The evidence of an archive: digests and their form, the chain, the hours of a day, keys."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from poller.archive.signing import is_signed_by, new_key, read_public_key, read_signer
from poller.core.errors import ConfigError
from poller.core.evidence.batches import pack
from poller.core.evidence.chain import Chain
from poller.core.evidence.compose import DueHour
from poller.core.evidence.digest import (
    DigestError,
    batch_of,
    decode,
    decode_key,
    digest_key,
    encode,
    encode_key,
    fingerprint,
    number_of,
    object_key,
    signature_key,
    unpack_identities,
)
from poller.core.evidence.hours import Day, Due
from poller.core.windows import Window
from tests.archives import CONTRACTS, HOUR, START, MemoryPlace, Writer, archive_of, entry, signer, verify

HASH = "0" * 64

# Objects


def test_a_batch_becomes_one_object_for_each_contract_and_hour_in_the_order_in_which_it_came() -> None:
    events = [entry(2, 1), entry(1, 1), entry(3, 0), entry(4, 0, CONTRACTS[1])]
    packed = pack(events, 7, b"".join)
    assert [(one.entry.contract, one.entry.hour, one.entry.entries) for one in packed] == [
        (CONTRACTS[0], "2026-01-01T00:00:00Z", 1),
        (CONTRACTS[0], "2026-01-01T01:00:00Z", 2),
        (CONTRACTS[1], "2026-01-01T00:00:00Z", 1),
    ]
    second = packed[1]
    assert second.content == events[0].line + b"\n" + events[1].line + b"\n"
    assert (second.entry.first, second.entry.last) == ("2026-01-01T01:00:01.000Z", "2026-01-01T01:00:02.000Z")
    assert second.entry.key.startswith("data/contract=31960001/date=2026-01-01/hour=01/000000007-")
    assert batch_of(second.entry.key) == 7


def test_keys_tell_what_lies_there() -> None:
    assert (number_of(digest_key(12)), number_of(signature_key(12))) == ((12, "json"), (12, "sig"))
    assert number_of(object_key("1", "2026-01-01T00:00:00Z", 1, HASH)) is None
    assert batch_of(digest_key(12)) is None
    # The first number is 1.
    assert number_of(digest_key(0)) is number_of(signature_key(0)) is None
    assert batch_of(object_key("1", "2026-01-01T00:00:00Z", 0, HASH)) is None


# Digests


def test_a_digest_is_read_back_as_it_was_written() -> None:
    place, _ = archive_of(2)
    content = place.objects[digest_key(2)]
    digest = decode(content)
    assert encode(digest) == content
    assert (digest.number, digest.entries, len(digest.objects), len(digest.statements)) == (2, 18, 2, 2)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda content: content + b"\n", "no canonical JSON"),
        (lambda content: content[:-1], "no digest"),
        (lambda content: b"\xff" + content, "no digest"),
        (lambda content: content.replace(b"archive/1", b"archive/9"), "format is unknown"),
        (lambda content: b"[" * 100_000, "no digest"),
    ],
)
def test_what_is_no_digest_is_told_why(change: object, why: str) -> None:
    place, _ = archive_of(1)
    with pytest.raises(DigestError, match=why):
        decode(change(place.objects[digest_key(1)]))  # type: ignore[operator]


@pytest.mark.parametrize("text", ["", "AAAA", "no base64!", base64.b64encode(bytes(44)).decode()])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(DigestError, match="no Ed25519"):
        decode_key(text)


def test_a_key_is_read_back() -> None:
    assert decode_key(encode_key(bytes(range(32)))) == bytes(range(32))
    assert len(fingerprint(encode_key(bytes(32)))) == 64


def test_what_tells_equal_entries_apart_is_kept_beside_them() -> None:
    with_id, without = entry(1, 0), entry(2, 0).with_line(b'{"n":1}')
    second = msgspec.structs.replace(with_id, ordinal=1, identity=bytes(16))
    (packed,) = pack([with_id, without, second], 1, b"".join)
    assert unpack_identities(packed.entry.identities) == {1: without.identity, 2: bytes(16)}
    assert unpack_identities("") == {}
    for damaged in ("AAAA", "no base64!"):
        with pytest.raises(DigestError, match="identities are damaged"):
            unpack_identities(damaged)


@pytest.mark.parametrize(
    "line",
    [
        b'{"@uuid":"***"}',
        b'{"@uuid":"hmac:00112233445566778899aabbccddeeff"}',
        b'{"@uuid":""}',
        b'{"@uuid":null}',
        b'{"@uuid":7}',
        b'{"meta":{"@uuid":"00000002-0000-4000-8000-000000000000"}}',
        b'{"@uuid":"00000001-0000-4000-8000-0000000000...',
    ],
)
def test_what_identifies_an_entry_is_kept_where_its_line_does_not_say_it_any_more(line: bytes) -> None:
    entries = [entry(1, 0), entry(2, 0), entry(1, 0).with_line(line)]
    (packed,) = pack(entries, 1, b"".join)
    assert unpack_identities(packed.entry.identities) == {2: entry(1, 0).identity}


# The chain


def chain_of(place: MemoryPlace, count: int, trusted: str | None = None) -> tuple[Chain, list[str]]:
    chain = Chain(is_signed_by, trusted)
    found = []
    for number in range(1, count + 1):
        content = place.objects[digest_key(number)]
        found += chain.add(number, content, place.objects.get(signature_key(number)))[1]
    return chain, [f"{finding.where}: {finding.message}" for finding in [*found, *chain.finish()]]


def test_the_newest_statement_of_an_hour_counts() -> None:
    place = MemoryPlace()
    writer = Writer(place, signer())
    hour = "2026-01-01T00:00:00Z"
    gap = (Window(START + 60, START + 120), "refused")
    other = (Window(START + 2 * HOUR, START + 3 * HOUR), "dense")
    writer.write([entry(1, 0)], [DueHour(CONTRACTS[0], START, None, 1)], {CONTRACTS[0]: [gap, other]})
    chain, found = chain_of(place, 1)
    statement = chain.hours[CONTRACTS[0], hour].statement
    assert found == []
    assert statement is not None
    assert [(gap.start, gap.kind) for gap in statement.gaps] == [("2026-01-01T00:01:00Z", "refused")]
    assert not chain.hours[CONTRACTS[0], hour].is_complete
    writer.write([entry(2, 0)], [DueHour(CONTRACTS[0], START, 2, 2)])
    chain, found = chain_of(place, 2)
    assert found == []
    assert chain.hours[CONTRACTS[0], hour].is_complete


def test_a_key_may_be_followed_by_the_one_that_it_announces_and_by_no_other() -> None:
    place = MemoryPlace()
    writer = Writer(place, signer(1))
    writer.write([entry(1, 0)])
    writer.write([entry(2, 0)], next_key=signer(2))
    writer.write([entry(3, 0)])
    chain, found = chain_of(place, 3, signer(2).key)
    assert found == []
    assert chain.keys == [signer(1).key, signer(2).key]
    writer.key = signer(3)
    writer.write([entry(4, 0)])
    assert chain_of(place, 4)[1] == [
        "digests/000000004.json: is signed with another key, which the one before did not announce"
    ]


def test_a_key_that_signed_nothing_is_named() -> None:
    place, _ = archive_of(1)
    assert chain_of(place, 1, signer(9).key)[1] == [
        "digests/000000001.json: the given public key signed no digest of this archive"
    ]


def test_an_archive_without_signatures_says_so() -> None:
    place = MemoryPlace()
    writer = Writer(place, None)
    writer.write([entry(1, 0)])
    report = verify(place)
    assert (report.findings, report.is_signed) == ([], False)
    (finding,) = verify(place, key=signer()).findings
    assert finding == (digest_key(1), "the given public key signed no digest of this archive")


def test_digests_before_the_first_signature_are_proven_by_it_and_later_ones_need_their_own() -> None:
    place = MemoryPlace()
    writer = Writer(place, None)
    for hour in range(4):
        writer.key = signer() if hour >= 2 else None
        writer.write([entry(hour + 1, hour)])
    for key in (None, signer()):
        report = verify(place, key=key)
        assert (report.findings, report.signed_from, report.keys) == ([], 3, [fingerprint(signer().key)])
    # The signed digest has the hash of the digest before it.
    digest = decode(place.objects[digest_key(1)])
    before = place.objects[digest_key(1)]
    place.objects[digest_key(1)] = encode(msgspec.structs.replace(digest, program="another"))
    assert [row.where for row in verify(place, key=signer()).findings] == [digest_key(2)]
    place.objects[digest_key(1)] = before
    writer.key = None
    writer.write([entry(9, 4)])
    for key in (None, signer()):
        assert verify(place, key=key).findings == [(digest_key(5), "has no signature, though the archive is signed")]
    assert [row.message for row in verify(place, key=signer(2)).findings][1:] == [
        "the given public key signed no digest of this archive"
    ]


@pytest.mark.parametrize("field", ["key", "next_key"])
@pytest.mark.parametrize("text", ["", "abc", "AAAA", "\u00fc", "=" * 60, base64.b64encode(bytes(44)).decode()])
def test_a_digest_with_a_key_that_is_none_is_a_finding(field: str, text: str) -> None:
    place, _ = archive_of(3)
    digest = decode(place.objects[digest_key(2)])
    place.objects[digest_key(2)] = encode(msgspec.structs.replace(digest, **{field: text}))
    found = verify(place, key=signer()).findings
    assert (digest_key(2), "was changed: its key is no Ed25519 public key") in found


def test_digests_that_are_missing_side_by_side_are_one_finding() -> None:
    place, _ = archive_of(3)
    del place.objects[digest_key(2)]
    place.objects[digest_key(999_999_999)] = b""
    found = [row for row in verify(place).findings if row.message.startswith("is missing")]
    assert found == [
        (digest_key(2), "is missing"),
        (digest_key(4), f"is missing, and so are all up to {digest_key(999_999_998)}: 999,999,995 digests"),
    ]


def test_a_statement_that_does_not_fit_what_is_there_is_named() -> None:
    place = MemoryPlace()
    writer = Writer(place, signer())
    writer.write([entry(1, 0)], [DueHour(CONTRACTS[0], START, 5, 5)])
    assert "states 5 entries of contract 31960001" in chain_of(place, 1)[1][0]


def test_a_digest_behind_a_missing_one_is_judged_for_itself() -> None:
    place, known = archive_of(3)
    del place.objects[digest_key(2)]
    messages = {finding.where: finding.message for finding in verify(place, known, signer()).findings}
    assert messages[digest_key(2)] == "is missing"
    assert digest_key(3) not in messages or "states" in messages[digest_key(3)]


@pytest.mark.parametrize("other", [1, 2, 5, 6, 9])
def test_a_copy_of_a_digest_is_named_where_it_lies_and_counted_once(other: int) -> None:
    place, known = archive_of(5)
    before = verify(place, known, signer())
    place.objects[digest_key(other)] = place.objects[digest_key(3)]
    report = verify(place, known, signer())
    findings = {finding.where: finding.message for finding in reversed(report.findings)}
    assert "was moved: it is digest 3" in findings[digest_key(other)]
    assert "signature" not in findings.get(digest_key(3), "")
    assert signature_key(3) not in findings
    if other > 5:  # everything else is unchanged
        assert findings[signature_key(other)] == "is missing"
        assert (report.entries, report.objects, report.complete) == (before.entries, before.objects, before.complete)
        assert not {digest_key(number) for number in range(1, 6)} & findings.keys()
    else:
        held = {number: 2 * (3 + number) for number in range(1, 6) if number != other}
        assert (report.entries, report.objects) == (sum(held.values()), 2 * len(held))


def test_the_first_digest_follows_nothing() -> None:
    place, _ = archive_of(2)
    digest = msgspec.structs.replace(decode(place.objects[digest_key(1)]), previous=HASH)
    chain = Chain(is_signed_by)
    _, found = chain.add(1, encode(digest), None)
    assert "is not the first of its archive" in {finding.message for finding in found}


# The hours of a day


def test_an_hour_is_stated_once_the_api_counted_what_is_there() -> None:
    day = Day()
    day.add({3: 5})
    assert not day.is_open
    day.close({3: 5, 4: 0})
    assert day.is_open
    assert list(day.due(is_all=False, added={})) == [Due(3, 5, 5), Due(4, 0, 0)]
    for hour, api, held in day.due(is_all=False, added={}):
        day.state(hour, api, held)
    again = Day(day.encoded())
    assert (again.is_open, again.held(3), list(again.due(is_all=True, added={}))) == (False, 5, [])


def test_what_an_hour_lacks_is_stated_only_when_nothing_waits() -> None:
    day = Day()
    day.add({3: 5})
    day.close({3: 7})
    assert list(day.due(is_all=False, added={})) == []
    assert list(day.due(is_all=True, added={3: 5})) == []
    assert list(day.due(is_all=True, added={})) == [Due(3, 7, 5)]
    day.state(3, 7, 5)
    assert not day.is_open


def test_a_late_entry_waits_for_the_next_audit() -> None:
    day = Day()
    day.add({3: 5})
    day.close({3: 5})
    day.state(3, 5, 5)
    day.add({3: 1})
    assert not day.is_open
    day.close({3: 6})
    assert list(day.due(is_all=False, added={})) == [Due(3, 6, 6)]


@pytest.mark.parametrize("is_stated", [True, False])
@pytest.mark.parametrize("left", [0, 4])
def test_an_hour_that_was_whole_stays_so_when_the_api_does_not_keep_it_any_longer(left: int, is_stated: bool) -> None:
    day = Day()
    day.add({3: 5, 4: 5})
    day.close({3: 5, 4: 6})
    for hour, api, held in list(day.due(is_all=True, added={})) if is_stated else ():
        day.state(hour, api, held)
    day.close({3: left, 4: left})
    assert list(day.due(is_all=True, added={})) == [*([] if is_stated else [Due(3, 5, 5)]), Due(4, left, 5)]
    day.close({3: 6})
    assert Due(3, 6, 5) in day.due(is_all=True, added={})


def test_an_hour_with_a_gap_is_stated_without_a_count() -> None:
    day = Day()
    day.close({3: None})
    day.add({3: 1})
    assert list(day.due(is_all=False, added={3: 1})) == []
    assert list(day.due(is_all=True, added={3: 1})) == [Due(3, None, 1)]
    day.state(3, None, 1)
    assert not day.is_open


def test_a_damaged_day_is_told() -> None:
    with pytest.raises(ValueError, match="damaged"):
        Day(b"x")


# Keys


def test_a_key_signs_and_is_known_by_its_public_half(tmp_path: Path) -> None:
    private, public = tmp_path / "evidence.key", tmp_path / "evidence.pub"
    for path, content in zip((private, public), new_key(), strict=True):
        path.write_bytes(content)
    private.chmod(0o600)
    made = read_signer(private, "evidence.signing_key_file")
    assert read_public_key(public) == read_public_key(private) == made.key
    assert is_signed_by(made.key, b"text", made.sign(b"text"))
    assert not is_signed_by(made.key, b"other", made.sign(b"text"))
    assert not is_signed_by("no key", b"text", made.sign(b"text"))
    assert repr(made) == "<Signer>"


def test_a_file_that_is_no_key_is_told_by_its_name_without_its_content(tmp_path: Path) -> None:
    path = tmp_path / "evidence.key"
    path.write_text("a secret")
    path.chmod(0o600)

    def refusals() -> Iterator[tuple[str, str]]:
        """The path and the whole text of the error from reading the private, then the public key."""
        for read in (lambda: read_signer(path, "evidence.signing_key_file"), lambda: read_public_key(path)):
            with pytest.raises(ConfigError) as told:
                read()
            (problem,) = told.value.problems
            yield problem.path, str(told.value)

    private, public = refusals()
    assert (private[0], public[0]) == ("evidence.signing_key_file", str(path))
    assert f"{path} holds no Ed25519 private key" in private[1]
    assert "holds no Ed25519 public key" in public[1]
    assert "a secret" not in f"{private} {public}"
    locked = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    of_another_kind = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (locked, of_another_kind):
        path.write_bytes(content)
        assert all("holds no Ed25519" in words for _, words in refusals())
    key = new_key()[0]
    path.write_bytes(b"\n" * (64 * 1024 + 40 - len(key)) + key)
    assert "holds no Ed25519" in next(refusals())[1], "no key is that long"
    path.unlink()
    private, public = refusals()
    assert (private[0], public[0]) == ("evidence.signing_key_file", str(path))
    assert f"{path} cannot be read: No such file" in private[1]
    assert public[1] == f"{path}: cannot be read: No such file or directory (check --public-key)"


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evidence.key"
    path.write_bytes(new_key()[0])
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="other users can read") as told:
        read_signer(path, "evidence.signing_key_file")
    (problem,) = told.value.problems
    assert problem.path == "evidence.signing_key_file"


def test_without_the_library_for_keys_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    for use in (new_key, lambda: is_signed_by("key", b"text", b"signature")):
        with pytest.raises(ConfigError, match="signing needs cryptography, which is not installed"):
            use()
