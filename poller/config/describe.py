"""Output about the configuration: commented example, effective configuration, JSON Schema, rows of the reference.

All of it is generated from the model, whose kinds describe themselves. Secrets and values of headers are not shown.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from poller.config.kinds import Field, fields_of
from poller.config.model import Config
from poller.config.sink_base import FormatSink, HttpSink, Sink
from poller.config.tables import Nested, NestedList, Table, doc, table_schema, write_table


class Row(NamedTuple):
    """One key of the reference. `default` is TOML text, empty if there is none."""

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
    """The effective configuration, as TOML or JSON. Secrets are masked, or only their source is shown."""
    tree = write_table(config)
    if as_json:
        return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    return "\n".join(_toml_lines(tree)).lstrip("\n") + "\n"


# The reference


def sections() -> Iterator[Section]:
    """The tables of the reference, in the order of the model."""
    yield Section("top level", "Before any table.", _rows(_plain_fields(Config)))
    for field in fields_of(Config):
        match field.kind:
            case NestedList() as kind if len(kind.structs()) > 1:
                yield Section(f"[[{field.key}]]", doc(Sink), _rows(fields_of(Sink)))
                yield Section(f"[[{field.key}]] over HTTP", doc(HttpSink), _rows(_own_fields(HttpSink, Sink)))
                with_format = [table for table in kind.structs() if "format" in table.__struct_fields__]
                types = ", ".join(table.type_name() for table in with_format)
                about = f"{doc(FormatSink)} Types: {types}."
                yield Section(f"[[{field.key}]] with a format", about, _rows(_own_fields(FormatSink, Sink)))
                for table in kind.structs():
                    shown = fields_of(FormatSink) if table in with_format else ()
                    rows = _rows([own for own in _own_fields(table, _base(table, kind.structs())) if own not in shown])
                    yield Section(f'[[{field.key}]] of type "{table.type_name()}"', doc(table), rows)
            case NestedList() as kind:
                yield _section(f"[[{field.key}]]", kind.structs()[0])
            case Nested() as kind:
                yield _section(f"[{field.key}]", kind.type)


def _section(title: str, table: type[Table]) -> Section:
    return Section(title, doc(table), _rows(fields_of(table)))


def _rows(fields: Iterable[Field]) -> tuple[Row, ...]:
    return tuple(
        Row(
            field.keys[0],
            field.kind.name(),
            "" if field.is_required or field.default is None else _literal(field.kind.write(field.default)),
            field.kind.description,
        )
        for field in fields
    )


def _base(sink: type[Table], types: Iterable[type[Table]]) -> type[Table]:
    """The table that the reference shows before this one. Its fields are not repeated."""
    return next(base for base in sink.__mro__[1:] if base in (HttpSink, Sink, *types))


# The example


def example() -> str:
    """A commented file with every key. Explanations begin with `# `, settings with a bare `#`, which a user removes."""
    lines = [
        *_prose(
            "Configuration of ionos-poller. Every setting here is commented out: `#key = value` shows its"
            " default, or an example where it has none. The environment alone is enough, too:"
            " IONOS_API_TOKEN, and any key as IONOS_POLLER_POLL__INTERVAL=60s. A secret is given as ..._file"
            " or ..._env, or found by its name in $CREDENTIALS_DIRECTORY. Relative paths start at this file."
        ),
        "",
        *_example_fields(Config, _plain_fields(Config)),
    ]
    for field in fields_of(Config):
        match field.kind:
            case NestedList() as kind if len(kind.structs()) > 1:
                lines += ["", *_prose(f"{kind.description} The first shows every key of a sink over HTTP.")]
                for number, sink in enumerate(kind.structs()):
                    lines += ["", *_prose(doc(sink)), f"#[[{field.key}]]"]
                    lines += _example_sink(sink, kind.structs(), is_first=number == 0)
            case NestedList() as kind:
                lines += _example_table(f"#[[{field.key}]]", kind.structs()[0])
            case Nested() as kind:
                lines += _example_table(f"#[{field.key}]", kind.type)
    return "\n".join(lines) + "\n"


def _example_table(heading: str, table: type[Table]) -> list[str]:
    return ["", *_prose(doc(table)), heading, *_example_fields(table, fields_of(table))]


def _example_sink(sink: type[Table], types: Iterable[type[Table]], *, is_first: bool) -> Iterator[str]:
    """The first sink also shows the keys that it shares with others; the other sinks show only their own."""
    yield f"#name = {_literal(sink.EXAMPLES.get('name', sink.type_name()))}"
    yield f"#type = {_literal(sink.type_name())}"
    own = _own_fields(sink, _base(sink, types))
    if issubclass(sink, HttpSink):
        own = [field for field in fields_of(sink) if field.key == "url" and field not in own] + own
    shared = [field for field in fields_of(sink) if is_first and field not in own]
    yield from _example_fields(sink, [field for field in [*own, *shared] if field.key != "name"])


def _example_fields(table: type[Table], fields: Iterable[Field]) -> Iterator[str]:
    for field in fields:
        kind = field.kind
        value = table.EXAMPLES.get(field.key)
        if value is None and not field.is_required and field.default:
            value = kind.write(field.default)
        elif value is None:
            value = kind.sample(field.key) or kind.write(field.default)
        yield from _prose(f"{kind.description}{kind.bounds()}")
        yield f"{'# or: ' if kind.is_alternative else '#'}{field.keys[0]} = {_literal(value)}"


def _prose(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="# ", subsequent_indent="# ")


# The schema


def schema() -> dict[str, object]:
    """The JSON Schema of the TOML file, for editors and for checks in CI."""
    found = table_schema(Config)
    del found["description"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ionos-poller"} | found


def _plain_fields(table: type[Table]) -> list[Field]:
    """The fields that are keys of the table itself."""
    return [field for field in fields_of(table) if not isinstance(field.kind, Nested | NestedList)]


def _own_fields(table: type[Table], base: type[Table]) -> list[Field]:
    """The fields that `base` does not have, or defines differently; required ones first."""
    own = [field for field in fields_of(table) if field not in fields_of(base)]
    return sorted(own, key=lambda field: not field.is_required)


def _literal(value: object) -> str:
    """A TOML value on one line."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_bare(key)} = {_literal(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_literal(item) for item in value)}]"
    # JSON strings are TOML strings, except for one control character (DEL) that JSON does not escape.
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
