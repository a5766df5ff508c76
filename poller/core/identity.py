"""Identities of entries: when two entries are the same."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

IDENTITY_BYTES = 16
_MAX_SCALAR_BYTES = 64 * 1024  # no id and no time is longer
_MAX_CANONICAL_BYTES = 1024 * 1024


def identity_of(uuid: str | None, raw_id: msgspec.Raw, line: bytes) -> tuple[bytes, bool]:
    """The identity of an entry, from `@uuid`, otherwise from its content and the hit's `_id`; and whether an id is part of it.

    An `_id` alone is not enough: a store may number the hits of each answer, and entries with the same number would be one.
    """
    if uuid:
        return uuid_identity(uuid.encode("utf-8", "surrogatepass")), True
    content = canonical(line)
    hit_id = decoded(raw_id)
    if is_scalar(hit_id) and hit_id != "":
        return digest(b"id:%d:" % len(content), content, str(hit_id).encode("utf-8", "surrogatepass")), True
    return digest(b"content:", content), False


def uuid_identity(uuid: bytes) -> bytes:
    """The identity of an entry with this `@uuid`."""
    return digest(b"uuid:", uuid)


def canonical(line: bytes) -> bytes:
    """The content with sorted keys, so that an entry stays the same if a store reorders its keys.

    A content larger than that of any known entry is returned as it came, because decoding it takes many times its memory.
    """
    if len(line) > _MAX_CANONICAL_BYTES:
        return line
    try:
        return msgspec.json.encode(msgspec.json.decode(line), order="sorted")
    except (msgspec.DecodeError, RecursionError):
        return line


def digest(*parts: bytes) -> bytes:
    """A hash of 16 bytes over the parts, one after the other."""
    hashed = blake2b(digest_size=IDENTITY_BYTES)
    for part in parts:
        hashed.update(part)
    return hashed.digest()


def decoded(raw: msgspec.Raw) -> Any:
    """An id or a time of an answer; None if it is not JSON, or too long for an id or time."""
    try:
        return msgspec.json.decode(raw) if 0 < memoryview(raw).nbytes <= _MAX_SCALAR_BYTES else None
    except msgspec.DecodeError:  # for example a number out of range, which is neither an id nor a time
        return None


def is_scalar(value: Any) -> bool:
    """Whether it is a text or a number, like ids and times."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)
