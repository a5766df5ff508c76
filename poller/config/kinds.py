"""What a configuration field is, as data: its description, its bounds, and how its TOML value is read.

The kind in a field's `msgspec.Meta.extra` picks its reader in `convert.py` and its shape in the JSON Schema.
A new field of a known kind needs nothing but its line in the model.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

import msgspec

Kind = Literal[
    "text", "number", "choice", "duration", "size", "url", "file", "directory", "template", "secret", "name",
    "flag", "listen", "hosts", "brokers", "headers", "labels", "contracts", "field_paths", "table", "tables", "tag",
    "archive", "index", "statuses", "state_url", "identifier",
]  # fmt: skip


def describe(
    kind: Kind, description: str, *, ge: float | None = None, le: float | None = None, **extra: Any
) -> msgspec.Meta:
    """The metadata of one field. `ge` and `le` are in the field's unit (seconds, bytes), both inclusive."""
    return msgspec.Meta(description=description, extra={"kind": kind, "ge": ge, "le": le, **extra})


class Field(NamedTuple):
    """One field of a table: `name` in Python, `key` in TOML. `type` is bare, without its metadata."""

    name: str
    key: str
    type: Any
    kind: Kind
    description: str
    ge: float | None
    le: float | None
    extra: dict[str, Any]
    default: Any
    is_required: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """All TOML keys that give this field a value."""
        return (self.key, f"{self.key}_file", f"{self.key}_env") if self.kind == "secret" else (self.key,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a choice."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()


@cache
def fields_of(table: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The fields of a table, in the order of the model."""
    found = []
    for info in msgspec.structs.fields(table):
        meta = info.type.__metadata__[0]
        extra = dict(meta.extra)
        field = Field(
            name=info.name,
            key=info.encode_name,
            type=info.type.__origin__,
            kind=extra.pop("kind"),
            description=meta.description,
            ge=extra.pop("ge"),
            le=extra.pop("le"),
            extra=extra,
            default=info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory(),
            is_required=info.required,
        )
        found.append(field)
    return tuple(found)
