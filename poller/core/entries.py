"""One entry of an answer: reads its id and time, and makes an event of it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

import msgspec

from poller.core.events import Event
from poller.core.identity import decoded, identity_of, is_scalar
from poller.core.times import micros, parse_time, time_us_of

_ABSENT = msgspec.Raw()


class _LooseHead(msgspec.Struct, gc=False):
    """The id and time of an entry, with values of any type."""

    uuid: msgspec.Raw = msgspec.field(name="@uuid", default=_ABSENT)
    meta: msgspec.Raw = _ABSENT


class _LooseMeta(msgspec.Struct, gc=False):
    time: msgspec.Raw = _ABSENT


class _Meta(msgspec.Struct, gc=False):
    time: datetime | None = None


class Head(msgspec.Struct, gc=False):
    """The id and time of an entry, with values of the usual types."""

    uuid: str | None = msgspec.field(name="@uuid", default=None)
    meta: _Meta | None = None


class _Hit(msgspec.Struct, gc=False):
    source: Head = msgspec.field(name="_source")


class _Hits(msgspec.Struct, gc=False):
    hits: list[_Hit]


class _Answer(msgspec.Struct, gc=False):
    hits: _Hits


_decode_heads = msgspec.json.Decoder(_Answer).decode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_loose_head = msgspec.json.Decoder(_LooseHead).decode
_decode_loose_meta = msgspec.json.Decoder(_LooseMeta).decode

_TIME_IN_BYTES = re.compile(rb'"time"\s*:\s*"([0-9T:.Zz+ -]{10,40})"')


def heads_of(compact: bytes, lines: Sequence[bytes]) -> list[Head]:
    """The id and time of every entry. They are decoded together if all have the usual types, otherwise one by one."""
    try:
        return [hit.source for hit in _decode_heads(compact).hits.hits]
    except msgspec.ValidationError:
        return [head_of(line) for line in lines]


def head_of(line: bytes) -> Head:
    """The id and time of one entry, with values of any type."""
    try:
        return _decode_head(line)
    except msgspec.ValidationError:
        fields = _decode_loose_head(line)
    uuid = decoded(fields.uuid)
    try:
        time = decoded(_decode_loose_meta(fields.meta or b"{}").time)
    except msgspec.ValidationError:  # `meta` is not an object
        time = None
    return Head(str(uuid) if is_scalar(uuid) else None, _Meta(parse_time(time)))


def event_of(head: Head, line: bytes, hit_id: msgspec.Raw) -> Event:
    """The event of an entry. `hit_id` is the `_id` of the hit around the entry, or empty."""
    identity, has_id = identity_of(head.uuid, hit_id, line)
    time = head.meta.time if head.meta is not None else None
    time_us = None if time is None else micros(time)
    if time_us is None:
        return Event(0, identity, line, has_id, is_timed=False)
    return Event(time_us, identity, line, has_id)


def second_in(content: bytes) -> int | None:
    """The first `time` in the bytes of an entry that cannot be decoded, in unix seconds; None if there is no usable one."""
    match = _TIME_IN_BYTES.search(content)
    time_us = time_us_of(match[1].decode()) if match else None
    return None if time_us is None else time_us // 1_000_000
