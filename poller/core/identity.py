"""What makes two entries the same one."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

IDENTITY_BYTES = 16
_MAX_SCALAR_BYTES = 64 * 1024  # no id and no time is longer
_MAX_CANONICAL_BYTES = 1024 * 1024


def identity_of(uuid: str | None, raw_id: msgspec.Raw, line: bytes) -> tuple[bytes, bool]:
    """What makes an entry this entry: `@uuid`, else its content with the hit's `_id`. And whether there is an id in it.

    An `_id` alone is believed no more than that: if a store numbered the hits of each answer, all of those would be one entry.
    """
    if uuid:
        return uuid_identity(uuid.encode("utf-8", "surrogatepass")), True
    content = canonical(line)
    hit_id = decoded(raw_id)
    if is_scalar(hit_id) and hit_id != "":
        return digest(b"id:%d:" % len(content), content, str(hit_id).encode("utf-8", "surrogatepass")), True
    return digest(b"content:", content), False


def uuid_identity(uuid: bytes) -> bytes:
    """What an `@uuid` alone makes of an entry."""
    return digest(b"uuid:", uuid)


def canonical(line: bytes) -> bytes:
    """The content with its keys sorted, so that a store that reorders keys does not make a second entry of one.

    Of an entry larger than any that is known the content as it came, as objects take many times its memory.
    """
    if len(line) > _MAX_CANONICAL_BYTES:
        return line
    try:
        return msgspec.json.encode(msgspec.json.decode(line), order="sorted")
    except (msgspec.DecodeError, RecursionError):
        return line


def digest(*parts: bytes) -> bytes:
    """16 bytes that are the same for the same bytes."""
    hashed = blake2b(digest_size=IDENTITY_BYTES)
    for part in parts:
        hashed.update(part)
    return hashed.digest()


def decoded(raw: msgspec.Raw) -> Any:
    """An id or a time of an answer; None where it is no JSON, or too long for one."""
    try:
        return msgspec.json.decode(raw) if 0 < memoryview(raw).nbytes <= _MAX_SCALAR_BYTES else None
    except msgspec.DecodeError:  # a number out of range, say: then it is no id and no time
        return None


def is_scalar(value: Any) -> bool:
    """Whether it is a text or a number, as ids and times are."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)
