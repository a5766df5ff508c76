"""The configuration shown: commented example, what is in effect, JSON Schema, rows of the reference.

All of it is generated from the model, so that none can lag behind. No secret is shown, nor a header's value.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from poller.config.kinds import Field, fields_of
from poller.config.model import Account, Api, Config, Evidence, Filter, Http, Outbox, Poll, State
from poller.config.secrets import MASK, SecretSource
from poller.config.sinks import SINK_TYPES, HttpSink, Redact, Sink
from poller.config.values import format_duration, format_size

_TABLES: dict[str, type[msgspec.Struct]] = {
    "api": Api, "poll": Poll, "filter": Filter, "redact": Redact, "outbox": Outbox, "state": State,
    "evidence": Evidence, "http": Http,
}  # fmt: skip

# What the example says where there is no default, or none that shows anything.
_EXAMPLES: dict[str, object] = {
    "state_dir": "/var/lib/ionos-poller",
    "username": "user@example.com",
    "name": "prod",
    "url": "https://api.ionos.com",
    "tag": "activityLog",
    "tenant_id": "audit",
    "region": "eu-central-1",
    "stream": "activity",
    "topic": "activity",
    "path": "/var/log/ionos-activity/{date}.ndjson",
    "endpoint_url": "https://firehose.eu-central-1.amazonaws.com",
    "ca_file": "/etc/ionos-poller/ca.pem",
    "cert_file": "/etc/ionos-poller/client.pem",
    "key_file": "/etc/ionos-poller/client.key",
    "kms_key_id": "alias/audit",
    "storage_class": "STANDARD",
    "signing_key_file": "/etc/ionos-poller/evidence.key",
    "previous_signing_key_file": "/etc/ionos-poller/evidence-2025.key",
    "contracts": ["31960001"],
    "exclude_contracts": ["31960002"],
    "exclude": [{"type": "RequestStatusUpdate"}, {"action": "GET"}],
    "include": [{"service": "DCD"}, {"resource_type": "server*"}],
    "drop": ["event.param.uri"],
    "mask": ["principal.sourceIP"],
    "redact": {"mask": ["principal.identity.username"]},
    "hash": ["principal.identity.username"],
    "hosts": ["poller.example.com"],
    "brokers": ["10.7.222.11:9093"],
    "headers": {"X-Environment": "production"},
}
# The same for one table or type of sink alone.
_EXAMPLES_OF = {
    "state": {"url": "postgresql://ionos_poller@db.example:5432/ionos_poller"},
    "logging-service": {"url": "https://12345678.logging.de-txl.ionos.com"},
    "loki": {"url": "http://localhost:3100"},
    "archive": {
        "url": "s3://audit-trail/activity",
        "endpoint_url": "https://s3.eu-central-3.ionoscloud.com",
        "region": "eu-central-3",
        "host": "collector-1",
    },
    "opensearch": {"url": "https://localhost:9200"},
    "elasticsearch": {"url": "https://localhost:9200"},
    "http": {"url": "https://intake.example.com/v2/events"},
    "otlp": {"url": "http://localhost:4318"},
    "file": {"host": "collector-1"},
    "stdout": {"host": "collector-1"},
}


_QUOTE = '"'


class Row(NamedTuple):
    """One key of the reference. `default` is TOML text, empty where there is none."""

    key: str
    type: str
    default: str
    description: str


class Section(NamedTuple):
    """One table of the reference."""

    title: str
    description: str
    rows: tuple[Row, ...]


def effective(config: Config, *, as_json: bool = False) -> str:
    """What is in effect, as TOML or JSON: secrets masked, or named by where they come from."""
    tree = _tree(config)
    return (
        json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
        if as_json
        else "\n".join(_toml_lines(tree)).lstrip("\n") + "\n"
    )


def sections() -> Iterator[Section]:
    """The tables of the reference, in the order of the example."""
    yield Section("top level", "Before any table.", tuple(_rows(_plain_fields(Config))))
    for name, table in _TABLES.items():
        yield Section(f"[{name}]", _doc(table), tuple(_rows(fields_of(table))))
        if name == "poll":
            yield Section("[[accounts]]", _doc(Account), tuple(_rows(fields_of(Account))))
            yield from _sink_sections()


def _sink_sections() -> Iterator[Section]:
    yield Section("[[sinks]]", _doc(Sink), tuple(_rows(fields_of(Sink))))
    yield Section("[[sinks]] over HTTP", _doc(HttpSink), tuple(_rows(_own_fields(HttpSink, Sink))))
    for name, table in SINK_TYPES.items():
        base = HttpSink if issubclass(table, HttpSink) else Sink
        yield Section(f'[[sinks]] of type "{name}"', _doc(table), tuple(_rows(_own_fields(table, base))))


def example() -> str:
    """A commented file with every key: prose behind `# `, settings behind a bare `#`, to be uncommented."""
    lines = [
        *_prose(
            "Configuration of ionos-poller. Every setting here is commented out: `#key = value` shows its"
            " default, or an example where it has none. The environment alone is enough, too:"
            " IONOS_API_TOKEN, and any key as IONOS_POLLER_POLL__INTERVAL=60s. A secret is given as ..._file"
            " or ..._env, or found by its name in $CREDENTIALS_DIRECTORY. Relative paths start at this file."
        ),
        "",
        *_example_fields(_plain_fields(Config)),
    ]
    for name, table in _TABLES.items():
        fields = _example_fields(fields_of(table), _EXAMPLES_OF.get(name, {}))
        lines += ["", *_prose(_doc(table)), f"#[{name}]", *fields]
        if name == "poll":
            lines += ["", *_prose(_doc(Account)), "#[[accounts]]", *_example_fields(fields_of(Account))]
            lines += [
                "",
                *_prose("Where events go; each on its own. The first shows every key of a sink over HTTP."),
            ]
            for type_name, sink in SINK_TYPES.items():
                lines += ["", *_example_sink(type_name, sink)]
    return "\n".join(lines) + "\n"


def _example_sink(type_name: str, sink: type[Sink]) -> Iterator[str]:
    yield from _prose(_doc(sink))
    yield "#[[sinks]]"
    yield f"#name = {_literal(_sink_name(type_name))}"
    yield f"#type = {_literal(type_name)}"
    # The first sink shows what all of its kind take; the others only what is theirs.
    base = Sink if not issubclass(sink, HttpSink) else HttpSink
    own = _own_fields(sink, base)
    if base is HttpSink:
        own = [field for field in fields_of(sink) if field.key == "url" and field not in own] + own
    shared = [field for field in fields_of(sink) if field not in own] if type_name == next(iter(SINK_TYPES)) else []
    chosen = [field for field in [*own, *shared] if field.key != "name"]
    yield from _example_fields(chosen, _EXAMPLES_OF.get(type_name, {}))


def _sink_name(type_name: str) -> str:
    return {"logging-service": "logging", "firehose": "aws", "file": "files"}.get(type_name, type_name)


def _example_fields(
    fields: list[Field] | tuple[Field, ...], examples: Mapping[str, str] | None = None
) -> Iterator[str]:
    for field in fields:
        if field.extra.get("is_internal"):
            continue
        mark = "# or: " if field.extra.get("is_alternative") else "#"
        yield from _prose(f"{field.description}{_bounds(field)}")
        if field.kind == "secret":
            name = field.key.replace("_", "-")
            yield f"{mark}{field.key}_file = {_literal(f'/etc/ionos-poller/{name}')}"
        elif examples and field.key in examples:
            yield f"{mark}{field.key} = {_literal(examples[field.key])}"
        else:
            has_none = field.is_required or not field.default or field.kind == "directory"
            shown = _EXAMPLES.get(field.key) if has_none else None
            default = field.default if field.default is not msgspec.NODEFAULT else ""
            value = _toml_value(field, default) if shown is None else shown
            yield f"{mark}{field.key} = {_literal(value)}"


def _prose(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ")


def _rows(fields: list[Field] | tuple[Field, ...]) -> Iterator[Row]:
    for field in fields:
        has_default = not field.is_required and field.default is not None
        default = _literal(_toml_value(field, field.default)) if has_default and field.kind != "secret" else ""
        if field.kind == "secret":
            also = f" Or `{field.key}_env`, or `{field.key}` in a file that is not readable by others."
            yield Row(f"{field.key}_file", "file", "", field.description + also)
        else:
            yield Row(field.key, f"{_type_name(field)}{_bounds(field)}", default, field.description)


def _type_name(field: Field) -> str:
    if field.kind == "number":
        return "whole number" if field.type is int else "number"
    names = {
        "contracts": "list of contract numbers",
        "field_paths": "list of field paths",
        "hosts": "list of host names",
        "brokers": "list of host:port",
        "tables": "list of tables",
        "listen": "address:port or unix:path",
        "state_url": "url",
        "identifier": "name",
        "template": "file",
        "tag": "name",
        "archive": "s3:// or file:// URL",
        "index": "text",
        "statuses": "list of numbers",
        "flag": "true or false",
        "headers": "table of text",
        "labels": "table of text",
    }
    return " or ".join(f'"{choice}"' for choice in field.choices) or names.get(field.kind, field.kind)


def _bounds(field: Field) -> str:
    if field.ge is None:
        return ""
    lowest = _literal(_toml_value(field, field.ge)).strip(_QUOTE)
    if field.le is None:
        return f" ({lowest} or more)"
    return f" ({lowest} to {_literal(_toml_value(field, field.le)).strip(_QUOTE)})"


def schema() -> dict[str, object]:
    """The JSON Schema of the TOML file, for editors and for checks in CI."""
    properties = {key: value for field in _plain_fields(Config) for key, value in _field_schema(field)}
    properties |= {name: _table_schema(table) for name, table in _TABLES.items()}
    properties["accounts"] = {"type": "array", "items": _table_schema(Account)}
    properties["sinks"] = {
        "type": "array",
        "items": {"oneOf": [_table_schema(sink, name) for name, sink in SINK_TYPES.items()]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ionos-poller",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _table_schema(table: type[msgspec.Struct], type_name: str = "") -> dict[str, Any]:
    fields = fields_of(table)
    properties: dict[str, Any] = {"type": {"const": type_name}} if type_name else {}
    properties |= {key: value for field in fields for key, value in _field_schema(field)}
    found: dict[str, Any] = {
        "type": "object",
        "description": _doc(table),
        "additionalProperties": False,
        "properties": properties,
    }
    # A required secret may lie in $CREDENTIALS_DIRECTORY, so that the file need not name it.
    required = [
        *(["type"] if type_name else []),
        *(f.key for f in fields if f.is_required and f.kind != "secret"),
    ]
    if required:
        found["required"] = required
    return found


def _field_schema(field: Field) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each TOML key of the field, with its schema."""
    text: dict[str, Any] = {"type": "string", "description": field.description}
    if field.kind == "secret":
        yield from ((key, text) for key in field.keys)
        return
    shape = {**_shape(field), "description": field.description}
    if not field.is_required and field.default is not None and field.kind != "tables":
        shape["default"] = _toml_value(field, field.default)
    yield field.key, shape


_SHAPES: dict[str, dict[str, Any]] = {
    "flag": {"type": "boolean"},
    "duration": {"type": "string", "pattern": "^([0-9]+(d|h|m|s|ms))+$"},
    "size": {"type": ["string", "integer"], "pattern": "^[0-9]+ ?([KMGTkmgt][Ii]?)?[Bb]?$", "minimum": 0},
    "contracts": {"type": "array", "items": {"type": ["string", "integer"]}},
    "field_paths": {"type": "array", "items": {"type": "string"}},
    "hosts": {"type": "array", "items": {"type": "string"}},
    "statuses": {"type": "array", "items": {"type": "integer", "minimum": 200, "maximum": 299}},
    "brokers": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    "headers": {"type": "object", "additionalProperties": {"type": "string"}},
    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
}


def _shape(field: Field) -> dict[str, Any]:
    if shape := _SHAPES.get(field.kind):
        return shape
    match field.kind:
        case "number":
            bounds = {"minimum": field.ge, "maximum": field.le}
            found = {"type": "integer" if field.type is int else "number"}
            return found | {name: bound for name, bound in bounds.items() if bound is not None}
        case "choice":
            return {"enum": list(field.choices)}
        case "table":
            return _table_schema(field.extra["table"])
        case "tables":
            return {"type": "array", "items": _table_schema(field.extra["table"])}
        case _:
            # A glob pattern may be written as the number it is to match.
            return {"type": ["string", "integer"] if field.extra.get("is_glob") else "string"}


def _doc(table: type[msgspec.Struct]) -> str:
    return " ".join((table.__doc__ or "").split())


def _plain_fields(table: type[msgspec.Struct]) -> list[Field]:
    """The fields that are keys of the table itself."""
    return [f for f in fields_of(table) if f.kind not in ("table", "tables") and not f.extra.get("is_internal")]


def _own_fields(table: type[msgspec.Struct], base: type[msgspec.Struct]) -> list[Field]:
    """The fields that `base` does not have, or has otherwise; required ones first."""
    own = [field for field in fields_of(table) if field not in fields_of(base)]
    return sorted(own, key=lambda field: not field.is_required)


def _tree(table: msgspec.Struct) -> dict[str, Any]:
    """The table as TOML and JSON know it."""
    tree: dict[str, Any] = {}
    for field in fields_of(type(table)):
        value = getattr(table, field.name)
        if value is None or field.extra.get("is_internal"):
            continue
        if isinstance(value, SecretSource):
            tree.update(_secret(field, value))
        else:
            tree[field.key] = dict.fromkeys(value, MASK) if field.kind == "headers" else _toml_value(field, value)
        if field.key == "name" and isinstance(table, Sink):
            tree["type"] = table.type
    return tree


def _secret(field: Field, source: SecretSource) -> dict[str, str]:
    match source.origin:
        case "file" | "credential":
            return {f"{field.key}_file": source.place}
        case "env":
            return {f"{field.key}_env": source.place}
        case "inline":
            return {field.key: MASK}
        case _:
            return {}


def _toml_value(field: Field, value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _tree(value)
    if isinstance(value, tuple):
        return [_tree(item) if isinstance(item, msgspec.Struct) else item for item in value]
    if field.kind == "duration":
        return format_duration(value)
    if field.kind == "size":
        return format_size(value)
    if isinstance(value, Path):
        return str(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _literal(value: object) -> str:
    """A TOML value on one line."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_bare(key)} = {_literal(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_literal(item) for item in value)}]"
    # JSON's strings are TOML's, but for the one control character that JSON leaves alone.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _bare(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _literal(key)


def _toml_lines(tree: Mapping[str, Any]) -> Iterator[str]:
    tables = {key: value for key, value in tree.items() if isinstance(value, dict) or key in ("accounts", "sinks")}
    for key, value in tree.items():
        if key not in tables:
            yield f"{key} = {_literal(value)}"
    for key, value in tables.items():
        for table in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{key}]]" if isinstance(value, list) else f"[{key}]"
            for name, item in table.items():
                yield f"{name} = {_literal(item)}"
