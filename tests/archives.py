"""Archives for tests: a place in memory, a chain of plain values, and mutations that each change one thing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from poller.archive import Listed, Place, TakenError
from poller.archive.signing import Signer, is_signed_by
from poller.core.events import OutboxEvent
from poller.core.evidence.batches import Head, pack
from poller.core.evidence.compose import ContractRow, DueHour, Facts, compose
from poller.core.evidence.digest import (
    DATA,
    decode,
    digest_key,
    encode,
    object_key,
    sha256,
    signature_key,
)
from poller.core.identity import uuid_identity
from poller.core.windows import Window
from poller.pipeline.verify import Known, Report, Verifier
from poller.sinks.archive import compress
from tests.documents import blocks
from tests.support import TOP

START = 1_767_225_600  # 2026-01-01, a whole hour
HOUR = 3600
CONTRACTS = ("31960001", "31960002")
ARCHIVE = "a" * 32


def blocks_of_evidence(language: str) -> list[str]:
    """The blocks of docs/evidence.md in a language, which tests run on an archive."""
    return [block.text for block in blocks(TOP / "docs/evidence.md") if block.language == language]


class MemoryPlace:
    """A place in memory."""

    url = "memory"

    def __init__(self, objects: Mapping[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})

    def put(self, key: str, content: bytes, *, retain_until: float | None = None) -> None:
        if self.objects.setdefault(key, content) != content:
            raise TakenError(key)

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        content = self.objects.get(key)
        return content if content is None or max_bytes is None else content[: max(max_bytes, -1) + 1]

    def listing(self, prefix: str) -> Iterator[Listed]:
        return (Listed(key, len(self.objects[key])) for key in sorted(self.objects) if key.startswith(prefix))

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def probe(self) -> list[str]:
        return []


def signer(seed: int = 1) -> Signer:
    return Signer(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def entry(number: int, hour: int, contract: str = CONTRACTS[0]) -> OutboxEvent:
    uuid = b"%08d-0000-4000-8000-000000000000" % number
    line = b'{"@uuid":"%s","event":{"type":"Provision"}}' % uuid
    time_us = (START + hour * HOUR + number % 3599) * 1_000_000
    return OutboxEvent(contract, time_us, START, uuid_identity(uuid), 0, line)


class Writer:
    """Writes the chain of an archive to a place, batch by batch."""

    def __init__(self, place: Place, key: Signer | None, archive: str = ARCHIVE) -> None:
        self.place = place
        self.key = key
        self.head = Head(archive, 0, "", None, 0, 0, None)

    def write(
        self,
        events: Sequence[OutboxEvent],
        due: Iterable[DueHour] = (),
        gaps: Mapping[str, Sequence[tuple[Window, str]]] | None = None,
        next_key: Signer | None = None,
    ) -> None:
        number = self.head.number + 1
        packed = pack(events, number, compress)
        contracts = [ContractRow(name, 9, 9, 0, 0, START, START + 9 * HOUR) for name in CONTRACTS]
        facts = Facts(self.head, list(due), gaps or {}, contracts, 9, 9, 0, 0)
        digest = compose(
            facts,
            [one.entry for one in packed],
            written_at=START,
            program="test",
            entry_format="raw",
            key=self.key.key if self.key else None,
            next_key=next_key.key if next_key else None,
        )
        content = encode(digest)
        for one in packed:
            self.place.put(one.entry.key, one.content)
        if self.key is not None:
            self.place.put(signature_key(number), self.key.sign(content))
        self.place.put(digest_key(number), content)
        self.head = self.head._replace(number=number, sha256=sha256(content), entries=digest.entries)
        self.key = next_key or self.key


def archive_of(batches: int = 5, *, archive: str = ARCHIVE, key: Signer | None = None) -> tuple[MemoryPlace, Known]:
    """An archive of two contracts and some hours, and its head. The statement of each hour is in the batch after it."""
    place = MemoryPlace()
    writer = Writer(place, key or signer(), archive)
    seed = int(archive[0], 16)
    held: dict[str, int] = {}
    for batch in range(batches):
        due = [DueHour(name, START + (batch - 1) * HOUR, count, count) for name, count in held.items()]
        events = [
            entry(1000 * seed + 100 * batch + number, batch, name) for name in CONTRACTS for number in range(4 + batch)
        ]
        held = dict.fromkeys(CONTRACTS, 4 + batch)
        writer.write(events, due)
    return place, Known(writer.head.number, writer.head.sha256)


def verify(place: MemoryPlace, known: Known | None = None, key: Signer | None = None, **options: object) -> Report:
    trusted = key.key if key else None
    return Verifier(place, is_signed_by, key=trusted, known=known, workers=1, **options).run()  # type: ignore[arg-type]


class Mutation(NamedTuple):
    """One change to an archive: its name, and keys. The report must name at least one of the keys."""

    name: str
    where: frozenset[str]


Mutate = Callable[[random.Random, MemoryPlace], Iterable[str]]


def _objects(place: MemoryPlace) -> list[str]:
    return [key for key in sorted(place.objects) if key.startswith(DATA)]


def _digests(place: MemoryPlace) -> list[str]:
    return [key for key in sorted(place.objects) if key.endswith(".json")]


def _rewritten(change: Callable[[random.Random, list[bytes]], None]) -> Mutate:
    """A mutation that changes the lines of an object and compresses them again."""

    def mutate(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
        key = chance.choice(_objects(place))
        lines = lines_of(place, key)
        change(chance, lines)
        place.objects[key] = compress(line + b"\n" for line in lines)
        return [key]

    return mutate


def lines_of(place: MemoryPlace, key: str) -> list[bytes]:
    import gzip

    return gzip.decompress(place.objects[key]).splitlines()


def _change_entry(chance: random.Random, lines: list[bytes]) -> None:
    at = chance.randrange(len(lines))
    lines[at] = lines[at].replace(b"Provision", b"Provisiom")


def _remove_entry(chance: random.Random, lines: list[bytes]) -> None:
    lines.pop(chance.randrange(len(lines)))


def _insert_entry(chance: random.Random, lines: list[bytes]) -> None:
    lines.insert(chance.randrange(len(lines) + 1), b'{"n":%d}' % chance.randrange(1 << 30))


def _swap_entries(chance: random.Random, lines: list[bytes]) -> None:
    at = chance.randrange(len(lines) - 1)
    lines[at], lines[at + 1] = lines[at + 1], lines[at]


def _move_entry(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    one, other = chance.sample(_objects(place), 2)
    lines, others = lines_of(place, one), lines_of(place, other)
    others.append(lines.pop(chance.randrange(len(lines))))
    for key, content in ((one, lines), (other, others)):
        place.objects[key] = compress(line + b"\n" for line in content)
    return [one, other]


def _remove_object(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    key = chance.choice(_objects(place))
    del place.objects[key]
    return [key]


def _other_hour(chance: random.Random, key: str, number: int) -> str:
    hour = f"2026-01-0{chance.randrange(2, 9)}T{chance.randrange(24):02}:00:00Z"
    return object_key(CONTRACTS[0], hour, number, sha256(key.encode()))


def _rename_object(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    key = chance.choice(_objects(place))
    other = _other_hour(chance, key, chance.randrange(1, 9))
    place.objects[other] = place.objects.pop(key)
    return [key, other]


def _double_object(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    key = chance.choice(_objects(place))
    other = chance.choice([f"{key}.copy", _other_hour(chance, key, chance.randrange(1, 9))])
    place.objects[other] = place.objects[key]
    return [other]


def _cut_object(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    key = chance.choice(_objects(place))
    place.objects[key] = place.objects[key][: chance.randrange(len(place.objects[key]))]
    return [key]


def _compress_anew(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    import gzip

    key = chance.choice(_objects(place))
    place.objects[key] = gzip.compress(gzip.decompress(place.objects[key]), chance.randrange(1, 10), mtime=4711)
    return [key]


def _flip_bit(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    key = chance.choice(sorted(place.objects))
    content = bytearray(place.objects[key])
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    place.objects[key] = bytes(content)
    # A wrong digest may be reported at its signature, or at the next digest.
    return [key, key.replace(".sig", ".json"), *_behind(key)]


def _behind(key: str) -> list[str]:
    return [digest_key(int(key[8:17]) + 1)] if key.startswith("digests/") else []


def _remove_digest(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    key = chance.choice(_digests(place))
    del place.objects[key]
    return [key, key.replace(".json", ".sig")]


def _remove_signature(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    key = chance.choice(_digests(place)).replace(".json", ".sig")
    del place.objects[key]
    return [key]


def _edit_digest(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    key = chance.choice(_digests(place))
    digest = decode(place.objects[key])
    changed = chance.choice(
        [
            msgspec.structs.replace(digest, written_at="2026-02-02T00:00:00Z"),
            msgspec.structs.replace(digest, entries=digest.entries + 1),
            msgspec.structs.replace(digest, number=digest.number + 1),
            msgspec.structs.replace(digest, objects=digest.objects[1:]),
            msgspec.structs.replace(digest, key=None),
            msgspec.structs.replace(digest, archive="f" * 32),
        ]
    )
    place.objects[key] = encode(changed)
    return [key, *_behind(key)]


def _sign_anew(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    """Edit a digest and sign it with another key. The digest may also name that key."""
    key = chance.choice(_digests(place))
    other = signer(2)
    digest = msgspec.structs.replace(decode(place.objects[key]), written_at="2026-02-02T00:00:00Z")
    if chance.randrange(2):
        digest = msgspec.structs.replace(digest, key=other.key)
    place.objects[key] = encode(digest)
    place.objects[key.replace(".json", ".sig")] = other.sign(place.objects[key])
    return [key, *_behind(key)]


def _sign_all_anew(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    """Replace the whole archive by another one, of two to five batches, that is signed with another key."""
    made, _ = archive_of(chance.randrange(2, 6), key=signer(2))
    place.objects = made.objects
    return [digest_key(number) for number in range(1, 6)]


def _cut_chain(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    """Remove the last digests, with or without their objects."""
    keys = _digests(place)
    first = chance.randrange(1, len(keys))
    for number in range(first + 1, len(keys) + 1):
        if chance.randrange(2):
            for entry_ in decode(place.objects[digest_key(number)]).objects:
                del place.objects[entry_.key]
        del place.objects[digest_key(number)]
        del place.objects[signature_key(number)]
    return [digest_key(len(keys))]


def _mix(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    """Replace a digest and its objects by those of another archive that is signed with the same key."""
    other, _ = archive_of(archive="b" * 32)
    number = chance.randrange(1, 6)
    for key in (digest_key(number), signature_key(number)):
        place.objects[key] = other.objects[key]
    for entry_ in decode(other.objects[digest_key(number)]).objects:
        place.objects[entry_.key] = other.objects[entry_.key]
    return [digest_key(number), *_behind(digest_key(number))]


def _old_copy(chance: random.Random, place: MemoryPlace) -> Iterable[str]:
    """Put back an older copy of the archive, or put an older digest under the name of a newer one."""
    if chance.randrange(2):
        made, _ = archive_of(chance.randrange(1, 5))
        place.objects = made.objects
        return [digest_key(5)]
    older, newer = sorted(chance.sample(range(1, 6), 2))
    place.objects[digest_key(newer)] = place.objects[digest_key(older)]
    place.objects[signature_key(newer)] = place.objects[signature_key(older)]
    return [digest_key(newer)]


MUTATIONS: dict[str, Mutate] = {
    "an entry changed": _rewritten(_change_entry),
    "an entry removed": _rewritten(_remove_entry),
    "an entry inserted": _rewritten(_insert_entry),
    "two entries swapped": _rewritten(_swap_entries),
    "an entry moved to another hour": _move_entry,
    "an object removed": _remove_object,
    "an object renamed": _rename_object,
    "an object doubled": _double_object,
    "an object cut": _cut_object,
    "an object compressed anew": _compress_anew,
    "a bit flipped": _flip_bit,
    "a digest removed": _remove_digest,
    "a signature removed": _remove_signature,
    "a digest edited": _edit_digest,
    "a digest signed with another key": _sign_anew,
    "all digests signed with another key": _sign_all_anew,
    "the chain cut at its end": _cut_chain,
    "two archives mixed": _mix,
    "an old copy put back": _old_copy,
}
