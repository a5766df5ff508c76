"""Digests: what one batch added to an archive, as canonical JSON, and the keys of digests and objects.

Canonical: UTF-8, keys sorted, no white space, whole numbers only. The hash of a digest is the SHA-256 of its bytes. Its signature
is of the same bytes, in a separate file, so `sha256sum` and `openssl` can check both without parsing JSON.
"""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Mapping

import msgspec

from poller.core.identity import IDENTITY_BYTES

FORMAT = "ionos-poller-archive/1"
DIGESTS = "digests/"
DATA = "data/"
PROBES = "probes/"
"""`check` tests here whether it may write; nothing there belongs to the archive."""

_NUMBER_DIGITS = 9
_NUMBER = rf"((?!0+\b)[0-9]{{{_NUMBER_DIGITS}}})"  # the first is 1
_DIGEST_KEY = re.compile(rf"{DIGESTS}{_NUMBER}\.(json|sig)")
_OBJECT_KEY = re.compile(
    rf"{DATA}contract=[^/]+/date=[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}/hour=[0-9]{{2}}/{_NUMBER}-[0-9a-f]{{16}}\.ndjson\.gz"
)
_SIGNATURE_KEY = re.compile(rf"{DIGESTS}{_NUMBER}(-[0-9a-f]{{16}})?\.sig")
_NAMES_ABANDONED = b'{"abandoned":'  # keys are sorted, so this is how such a digest begins
_IDENTITY = struct.Struct(f"<I{IDENTITY_BYTES}s")
# Source: RFC 8410: the DER of an Ed25519 public key is this and the 32 bytes of the key.
_DER_PREFIX = bytes.fromhex("302a300506032b6570032100")


class DigestError(ValueError):
    """The bytes are not a digest; the text says why."""


class Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One object: the entries of one contract and hour in one batch.

    `sha256` and `bytes` concern the object as it is stored, `content_bytes` and `entries` its text. `first` and `last` are the
    earliest and the latest time of its entries. `identities` holds the identities of the entries whose lines do not show them
    (`pack_identities`); it is empty if every entry has its own `@uuid`.
    """

    key: str
    contract: str
    hour: str
    sha256: str
    bytes: int
    content_bytes: int
    entries: int
    first: str
    last: str
    identities: str


class StatedGap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A span that could not be read, and why."""

    start: str
    end: str
    kind: str


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many entries of an hour of a contract the API counted, and how many the archive holds, including this digest.

    `api` is None if the hour contains a gap, because then the API cannot count all of it.
    """

    contract: str
    hour: str
    api: int | None
    archived: int
    gaps: tuple[StatedGap, ...] = ()


class StatedRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A span that still had to be read again, and the purpose."""

    start: str
    end: str
    purpose: str


class ContractBooks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the state had collected of a contract: complete from `complete_from` to before `complete_to`, except gaps and ranges.

    `gaps` are the gaps that nobody accepted, `ranges` the spans still to read. None if an earlier version wrote the digest.
    """

    fetched: int
    new: int
    seen: int
    filtered: int
    complete_from: str
    complete_to: str
    gaps: tuple[StatedGap, ...] | None = None
    ranges: tuple[StatedRange, ...] | None = None


class SinkBooks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many events were meant for the archive, and where they are now, including this digest."""

    assigned: int
    delivered: int
    dead: int
    waiting: int


class Books(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The books of the state in the transaction that committed the digest.

    `contracts` are the contracts that the digest concerns. `is_all` means that no collected event waited for the archive, so the
    archive holds everything up to `complete_to`.
    """

    contracts: dict[str, ContractBooks]
    sink: SinkBooks
    is_all: bool


class Abandoned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object or a signature of a batch that got no digest, as it was found. It is not part of the archive."""

    key: str
    bytes: int
    sha256: str


class Digest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The digest of one batch. `previous` is the SHA-256 of digest `number - 1`; empty in the first.

    `key` is the public key of its signature, `next_key` the key of later digests, both as DER in base64. `entries` counts all
    entries of the archive, including this digest. `abandoned` is left out if it is empty.
    """

    format: str
    archive: str
    number: int
    previous: str
    written_at: str
    program: str
    entry_format: str
    key: str | None
    next_key: str | None
    entries: int
    objects: tuple[Object, ...]
    statements: tuple[Statement, ...]
    books: Books
    abandoned: tuple[Abandoned, ...] = ()


_decode = msgspec.json.Decoder(Digest).decode
_encode = msgspec.json.Encoder(order="sorted").encode


def encode(digest: Digest) -> bytes:
    """The canonical bytes of a digest."""
    return _encode(digest)


def decode(content: bytes) -> Digest:
    """The digest of canonical bytes.  Raises: DigestError."""
    try:
        digest = _decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DigestError(f"it is no digest: {error}") from error
    if digest.format != FORMAT:
        raise DigestError("its format is unknown: use a newer ionos-poller")
    if _encode(digest) != content:
        raise DigestError("it is no canonical JSON")
    return digest


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_key(number: int) -> str:
    """The key of digest `number`."""
    return f"{DIGESTS}{number:0{_NUMBER_DIGITS}}.json"


def signature_key(number: int, content: bytes = b"") -> str:
    """The key of the signature (64 bytes) of digest `number`, whose bytes are `content`.

    An abandoned file may be a signature of this number. So a digest that names abandoned files has a signature with another key.
    """
    own = f"-{sha256(content)[:16]}" if content.startswith(_NAMES_ABANDONED) else ""
    return f"{DIGESTS}{number:0{_NUMBER_DIGITS}}{own}.sig"


def number_of(key: str) -> tuple[int, str] | None:
    """The number of the digest with this key or signature key, and `json` or `sig`; None for any other key."""
    match = _DIGEST_KEY.fullmatch(key)
    return (int(match[1]), match[2]) if match else None


def object_key(contract: str, hour: str, number: int, object_sha256: str) -> str:
    """The key of an object of digest `number`. `hour` has the form `2026-11-28T09:00:00Z`."""
    date, time = hour[:10], hour[11:13]
    return (
        f"{DATA}contract={contract}/date={date}/hour={time}/{number:0{_NUMBER_DIGITS}}-{object_sha256[:16]}.ndjson.gz"
    )


def batch_of(key: str) -> int | None:
    """The number of the digest that an object was written for; None if the key is not that of an object."""
    match = _OBJECT_KEY.fullmatch(key)
    return int(match[1]) if match else None


def written_for(key: str) -> int | None:
    """The number of the digest that an object, signature or digest key belongs to; None for any other key."""
    match = _OBJECT_KEY.fullmatch(key) or _SIGNATURE_KEY.fullmatch(key) or _DIGEST_KEY.fullmatch(key)
    return int(match[1]) if match else None


def encode_key(raw: bytes) -> str:
    """The 32 bytes of an Ed25519 public key in the form of digests: DER in base64."""
    return base64.b64encode(_DER_PREFIX + raw).decode()


def pack_identities(identities: Mapping[int, bytes]) -> str:
    """The identities of entries, by their index in the object, in the form of digests: base64 of records of 20 bytes."""
    return base64.b64encode(b"".join(_IDENTITY.pack(*item) for item in sorted(identities.items()))).decode()


def unpack_identities(text: str) -> dict[int, bytes]:
    """The reverse of `pack_identities`.  Raises: DigestError."""
    try:
        return dict(_IDENTITY.iter_unpack(base64.b64decode(text, validate=True)))
    except (ValueError, struct.error) as error:
        raise DigestError("its identities are damaged") from error


def decode_key(text: str) -> bytes:
    """The reverse of `encode_key`.  Raises: DigestError."""
    try:
        der = base64.b64decode(text, validate=True)
    except ValueError:
        der = b""
    if len(der) != len(_DER_PREFIX) + 32 or not der.startswith(_DER_PREFIX):
        raise DigestError("its key is no Ed25519 public key")
    return der[len(_DER_PREFIX) :]


def fingerprint(key: str) -> str:
    """The SHA-256 of the DER, by which people compare keys."""
    return sha256(base64.b64decode(key))
