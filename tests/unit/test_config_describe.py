"""The example, the effective configuration, the schema and the reference agree with the model."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
import pytest

from poller.config import AnySink, load
from poller.config.describe import effective, example, schema, sections
from poller.config.kinds import fields_of
from tests.generate_docs import PATH, render

SINK_TYPES = {table.__struct_config__.tag: table for table in get_args(AnySink)}


def uncommented() -> str:
    return "\n".join(line[1:] if re.match(r"#[^ ]", line) else line for line in example().splitlines())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ionos-poller.toml"
    path.write_text(uncommented())
    return path


def test_the_example_loads_as_it_is_and_uncommented(tmp_path: Path, path: Path) -> None:
    as_it_is = tmp_path / "as-it-is.toml"
    as_it_is.write_text(example())
    assert load(as_it_is, {}).sinks == ()
    config = load(path, {}, check_files=False)
    assert [sink.type for sink in config.sinks] == list(SINK_TYPES)


class Setting(NamedTuple):
    """A key of the example, with its table and the text above it."""

    table: str
    prose: str
    key: str
    value: str


def settings() -> Iterator[Setting]:
    table, number, prose = "top level", 0, list[str]()
    for line in example().splitlines():
        assert not line or line.startswith("#")
        assert len(line) <= 100 or not line.startswith("# ") or line.startswith("# or: ")
        if begun := re.fullmatch(r"#(\[+[a-z]+\]+)", line):
            number += begun[1] == "[[sinks]]"
            table, prose = f"{begun[1]} {number}" if begun[1] == "[[sinks]]" else begun[1], []
        elif given := re.fullmatch(r"(?:#|# or: )([a-z_]+) = (.+)", line):
            yield Setting(table, " ".join(prose), given[1], given[2])
            prose = []
        elif line:
            prose.append(line.removeprefix("# "))
        else:
            prose = []


def test_above_each_key_of_the_example_is_what_the_reference_says_of_it_with_its_bounds() -> None:
    said = {
        (row.key, row.description + "".join(re.findall(r" \([^()]*\)$", row.type)))
        for section in sections()
        for row in section.rows
    }
    for one in settings():
        assert (
            one.prose == ""
            if one.key in ("name", "type") and "[[sinks]]" in one.table
            else (one.key, one.prose) in said
        )


def test_each_table_of_the_example_has_the_keys_of_the_reference_and_the_first_sink_all_of_its_kind() -> None:
    reference = {section.title: [row.key for row in section.rows] for section in sections()}
    found: dict[str, list[str]] = {}
    types: dict[str, str] = {}
    for one in settings():
        found.setdefault(one.table, []).append(one.key)
        if one.key == "type":
            types[one.table] = json.loads(one.value)
    assert list(types.values()) == list(SINK_TYPES)
    for table, keys in found.items():
        if table not in types:
            assert keys == reference[table]
            continue
        assert keys[:2] == ["name", "type"]
        own = reference[f'[[sinks]] of type "{types[table]}"']
        shared = {*reference["[[sinks]]"], *reference["[[sinks]] over HTTP"]} if table == "[[sinks]] 1" else set()
        formats = set() if "format" not in keys else {*reference["[[sinks]] with a format"]}
        assert {*keys[2:]} - {"url"} - formats == {*own, *shared} - {"url", "name"} - formats, table
        assert len(keys) == len({*keys})
    http = [table for table, type_ in types.items() if "Http" in str(SINK_TYPES[type_].__mro__)]
    assert all("url" in found[table] for table in http)


def test_the_reference_is_that_of_the_manual() -> None:
    assert PATH.read_text() == render(), "run `make docs`"


def test_what_is_in_effect_is_shown_a_key_on_a_line() -> None:
    environ = {
        "IONOS_API_TOKEN": "canary",
        "IONOS_POLLER_SINKS": '[{"type":"http","name":"a","url":"http://localhost","headers":{"X!a":"canary","b-c":"d"}}]',
        "IONOS_POLLER_POLL__CONTRACTS": "7, 8",
        "IONOS_POLLER_FILTER__EXCLUDE": json.dumps([{"username": 'ü "'}]),
    }
    config = load(None, environ)
    text = effective(config)
    assert text.startswith('state_dir = "state"\n\n[api]\nurl = "https://api.ionos.com"\n')
    for part in (
        '\n\n[[accounts]]\nname = "default"\n',
        '\ncontracts = ["7", "8"]\n',
        '\n\n[filter]\nexclude = [{ username = "ü \\"" }]\ninclude = []\n',
        '\n\n[[sinks]]\nname = "a"\ntype = "http"\n',
        '\nheaders = { "X!a" = "********", b-c = "********" }\n',
    ):
        assert part in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "canary" not in text
    as_json = effective(config, as_json=True)
    assert as_json.startswith('{\n  "state_dir": "state",\n')
    assert as_json.endswith("}\n")
    assert "ü" in as_json


def test_what_is_in_effect_can_be_loaded_again(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    for masked in ('headers = { X-Environment = "production" }', 'query = { source = "ionos" }'):
        assert masked in text
        text = text.replace(masked, "")
    path.write_text(text)
    config = load(path, {}, check_files=False)
    again = tmp_path / "again.toml"
    again.write_text(effective(config))
    assert msgspec.structs.replace(load(again, {}, check_files=False), source=path) == config
    assert json.loads(effective(config, as_json=True)) == tomllib.loads(effective(config))


def test_any_text_is_written_as_toml_reads_it(tmp_path: Path) -> None:
    value = 'quote " backslash \\ umlaut ä emoji \U0001f600'
    environ = {"IONOS_POLLER_FILTER__EXCLUDE": json.dumps([{"username": value}])}
    config = load(None, environ)
    assert tomllib.loads(effective(config))["filter"]["exclude"] == [{"username": value}]


def test_the_schema_knows_every_key_and_no_other(path: Path) -> None:
    found: Any = schema()
    json.dumps(found)

    def check(value: Any, shape: dict[str, Any], where: str) -> None:
        if "oneOf" in shape:
            (shape,) = (one for one in shape["oneOf"] if one["properties"]["type"]["const"] == value["type"])
        if isinstance(value, dict) and "properties" in shape:
            assert shape["additionalProperties"] is False, where
            assert set(value) <= set(shape["properties"]), where
            assert set(shape.get("required", [])) <= set(value), where
            for key, item in value.items():
                check(item, shape["properties"][key], f"{where}.{key}")
        elif isinstance(value, list):
            for item in value:
                check(item, shape["items"], where)
        elif "pattern" in shape and isinstance(value, str):
            assert re.search(shape["pattern"], value), where
        elif "enum" in shape:
            assert value in shape["enum"], where

    check(tomllib.loads(uncommented()), found, "")
    sinks = {one["properties"]["type"]["const"]: one for one in found["properties"]["sinks"]["items"]["oneOf"]}
    for name, table in SINK_TYPES.items():
        keys = {key for field in fields_of(table) for key in field.keys}
        assert set(sinks[name]["properties"]) == keys | {"type"}
    assert found["properties"]["poll"]["properties"]["interval"]["default"] == "1m"


def test_the_reference_says_something_about_every_key() -> None:
    rows = [row for section in sections() for row in section.rows]
    assert all(row.description and row.type for row in rows)
    assert {"interval", "token_file", "max_bytes", "listen", "labels"} <= {row.key for row in rows}
    assert next(row.default for row in rows if row.key == "overlap") == '"10m"'
