"""The example, the effective configuration, the schema and the reference agree with the model."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from poller.config import AnySink, load
from poller.config.describe import effective, example, schema, sections
from poller.config.kinds import fields_of

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


def test_the_example_has_every_key(path: Path) -> None:
    for section in sections():
        for row in section.rows:
            assert re.search(rf"^#( or: )?{row.key} = ", example(), re.MULTILINE), (section.title, row.key)


def test_what_is_in_effect_can_be_loaded_again(path: Path, tmp_path: Path) -> None:
    text = path.read_text().replace('headers = { X-Environment = "production" }', "")
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
