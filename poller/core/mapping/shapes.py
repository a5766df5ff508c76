"""An entry as structs: the usual shape is decoded at once, any other key by key. Pure.

A value that does not fit is no error: it is left over, with the nesting and the bytes of the entry.
Source: docs/facts.md, "IONOS Activity Log API": shape of an entry, and how its types vary.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec

Json = dict[str, Any]
S = TypeVar("S", bound=msgspec.Struct)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
"""Compare a method in capitals, because the API writes it in any case."""
FAILURES = frozenset({"Error", "RequestFailed"})
"""Types of entries that report a failure, even if their status does not."""

_NULL = b"null"
_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]*")
_DIGITS = re.compile(rb'"([1-9][0-9]{0,8})"')

Whole = Annotated[int, msgspec.Meta(ge=1)]
"""A number that is written as Python writes it. Any other number is kept as text, as it is written: `-0`, `1e2`."""

# The names are the API's.


class Resource(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A resource that was changed or read."""

    type: str | None = None
    id: str | Whole | None = None
    action: list[str] | None = None


class Identity(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Who did it."""

    username: str | None = None
    contractNumber: str | Whole | None = None  # noqa: N815


class Principal(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Who did it, and from where."""

    sourceIP: str | None = None  # noqa: N815
    sourceService: str | None = None  # noqa: N815
    serviceHost: str | None = None  # noqa: N815
    identity: Identity = msgspec.field(default_factory=Identity)


class Meta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """When it happened, and which request it belongs to."""

    time: str | None = None
    requestId: str | None = None  # noqa: N815
    queueRefId: Whole | str | None = None  # noqa: N815
    transactionId: str | None = None  # noqa: N815
    auditVersion: str | Whole | float | None = None  # noqa: N815


class Message(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One reason why it failed."""

    errorCode: str | Whole | None = None  # noqa: N815
    message: str | None = None


class Error(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Why it failed."""

    httpStatus: Annotated[int, msgspec.Meta(ge=1, le=999)] | None = None  # noqa: N815
    messages: list[Message] | None = None


class Param(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The parameters of the request."""

    action: str | None = None
    uri: str | None = None
    initiator: str | None = None
    sourceService: str | None = None  # noqa: N815
    errorCode: str | Whole | None = None  # noqa: N815
    error: Error = msgspec.field(default_factory=Error)


class Happened(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What happened: the `event` of an entry."""

    type: str | None = None
    status: str | None = None
    message: str | None = None
    param: Param = msgspec.field(default_factory=Param)
    resources: list[Resource] | None = None


class Entry(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A whole entry. `principal` is decoded separately by `decode_principal`, whose results can be cached."""

    uuid: str | Whole | None = msgspec.field(name="@uuid", default=None)
    meta: Meta = msgspec.field(default_factory=Meta)
    principal: msgspec.Raw = msgspec.Raw(b"{}")
    event: Happened = msgspec.field(default_factory=Happened)


decode_entry = msgspec.json.Decoder(Entry).decode
"""An entry of the usual shape.  Raises: msgspec.ValidationError for any other shape, msgspec.DecodeError if it is not JSON."""

decode_principal = msgspec.json.Decoder(Principal).decode
"""Its principal, with the same errors."""


class _WrittenMeta(msgspec.Struct, gc=False):
    auditVersion: msgspec.Raw  # noqa: N815


class _Written(msgspec.Struct, gc=False):
    meta: _WrittenMeta


_decode_written = msgspec.json.Decoder(_Written).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def written_version(line: bytes) -> str:
    """The number at `meta.auditVersion` as it is written, for example `1.10`. The line must have one."""
    return bytes(_decode_written(line).meta.auditVersion).decode()


def take_apart(line: bytes) -> tuple[Entry, Principal, Json]:
    """An entry of any shape: the values that fit the usual shape, its principal, and the values that are left over.

    Raises: msgspec.DecodeError if it is not a JSON object.
    """
    entry, rest = _split(Entry, _decode_object(line))
    principal, left = _fit(Principal, entry.principal)
    if left is not None:
        rest["principal"] = left
    return entry, principal or Principal(), rest


def _split(kind: type[S], fields: dict[str, msgspec.Raw]) -> tuple[S, Json]:
    known = _types(kind)
    values: Json = {}
    rest: Json = {}
    for key, raw in fields.items():
        if bytes(raw) == _NULL:
            continue
        if key not in known:
            rest[key] = raw
            continue
        name, wanted = known[key]
        value, left = _fit(wanted, raw)
        if value is not None:
            values[name] = value
        if left is not None:
            rest[key] = left
    return kind(**values), rest


@cache
def _types(kind: type[msgspec.Struct]) -> dict[str, tuple[str, Any]]:
    """The name and type of a struct's fields, by their keys in JSON."""
    return {field.encode_name: (field.name, field.type) for field in msgspec.structs.fields(kind)}


def _fit(wanted: Any, raw: msgspec.Raw) -> tuple[Any, Any]:
    """The value as `wanted` as far as it fits, otherwise None; and the part that is left over, None if nothing is."""
    try:
        return msgspec.json.decode(raw, type=wanted), None
    except msgspec.ValidationError:
        pass
    text, options = bytes(raw), get_args(wanted) or (wanted,)
    kind = next((option for option in options if isinstance(option, type) and issubclass(option, msgspec.Struct)), None)
    item = next((get_args(option)[0] for option in options if get_origin(option) is list), None)
    if kind is not None and text.startswith(b"{"):
        value, rest = _split(kind, _decode_object(raw))
        return value, rest or None
    if item is not None:
        return _fit_list(item, raw)
    if str not in options and (digits := _DIGITS.fullmatch(text)):
        value, left = _fit(wanted, msgspec.Raw(digits[1]))
        return value, None if left is None else raw
    if str in options and _NUMBER.fullmatch(text):
        return text.decode(), None
    return None, raw


def _fit_list(item: Any, raw: msgspec.Raw) -> tuple[Any, Any]:
    """The items that fit; a single value counts as a list of one. If any item is left over, the whole list is."""
    items = _decode_list(raw) if bytes(raw).startswith(b"[") else [raw]
    fitted = [_fit(item | None, one) for one in items]
    values = [value for value, _ in fitted if value is not None]
    return values or None, raw if any(left is not None for _, left in fitted) else None
