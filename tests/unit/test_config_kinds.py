"""A kind of value is one class: reading, showing, schema and reference know it from its annotation alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ClassVar, get_args

import msgspec
import pytest

from poller.config import AnySink, Config, SecretSource, load
from poller.config.checks import BadValueError
from poller.config.kinds import Kind, fields_of
from poller.config.reading import Place, Reading
from poller.config.tables import Nested, Table, table_schema, write_table


class Colour(Kind, frozen=True):
    """A new kind, as a person would add one."""

    word: str = "colour"

    SHAPE: ClassVar = {"type": "string", "pattern": "^#[0-9a-f]{6}$"}

    def read(self, raw: object, at: Place) -> int:
        if not isinstance(raw, str) or not raw.startswith("#"):
            raise BadValueError("is not a colour", "such as #aabbcc")
        return int(raw[1:], 16)

    def write(self, value: int) -> str:
        return f"#{value:06x}"


class Paint(Table, frozen=True, kw_only=True):
    """Paint."""

    wall: Annotated[int, Colour("Colour of the wall.")]
    door: Annotated[int, Colour("Colour of the door.")] = 0xFF


def test_a_new_kind_needs_nothing_but_its_class() -> None:
    reading = Reading({}, {})
    paint = Nested(type=Paint).read({"wall": "#00ff00"}, Place(reading, "paint"))
    assert paint == Paint(wall=0x00FF00)
    assert write_table(Paint(wall=0x00FF00)) == {"wall": "#00ff00", "door": "#0000ff"}
    assert table_schema(Paint)["required"] == ["wall"]
    shape = table_schema(Paint)["properties"]["door"]
    assert shape == {**Colour.SHAPE, "description": "Colour of the door.", "default": "#0000ff"}
    assert [field.kind.name() for field in fields_of(Paint)] == ["colour", "colour"]
    assert Nested(type=Paint).read({"door": "red"}, Place(reading, "paint")) is None
    assert [str(problem) for problem in reading.problems] == [
        "paint.wall: missing (Colour of the wall.)",
        "paint.door: is not a colour (such as #aabbcc)",
    ]


def holds(value: object, wanted: tuple[object, ...]) -> bool:
    """Whether a value is, or holds at any depth, what the file said."""
    if isinstance(value, dict):
        return any(holds(item, wanted) for item in value.values())
    if isinstance(value, list | tuple):
        return any(holds(item, wanted) for item in value)
    if isinstance(value, msgspec.Struct) and not isinstance(value, Kind):
        return any(holds(getattr(value, name), wanted) for name in value.__struct_fields__)
    # A type stands for each of its values: a source that is being made cannot be compared yet.
    return any(type(value) is one or (type(value) is type(one) and value == one) for one in wanted)


def stops(file: Path, wanted: tuple[object, ...], environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """(module, function) of each call in the program that got the value or gave it back, in order, while the file is loaded.

    The way of a secret ends at `SecretSource.read`, which uses it. A load tries that once; what it calls is not on the way.
    """
    calls: list[list[Any]] = []
    open_calls: dict[FrameType, list[Any]] = {}

    def note(frame: FrameType, event: str, result: object) -> None:
        code = frame.f_code
        if "/poller/" not in code.co_filename or code.co_name.startswith("<"):
            return
        if event == "call" and not any(call[1] == "SecretSource.read" for call in open_calls.values()):
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            values = [frame.f_locals.get(name) for name in names]
            calls.append([Path(code.co_filename).stem, code.co_qualname, holds(values, wanted)])
            open_calls[frame] = calls[-1]
        elif event == "return" and frame in open_calls:
            call = open_calls.pop(frame)
            call[2] = call[2] or holds(result, wanted)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        load(file, environ)
    finally:
        sys.setprofile(before)
    return [(module, name) for module, name, is_stop in calls if is_stop]


def walk(
    directory: Path, text: str, wanted: tuple[object, ...], environ: Mapping[str, str] | None = None
) -> tuple[list[tuple[str, str]], int]:
    """The stops of a key, its use included, and how often the way returns to a module that it has left."""
    file = directory / "ionos-poller.toml"
    file.write_text(text)
    file.chmod(0o600)
    load(file, environ or {})  # what is cached is not on the way
    way = stops(file, wanted, environ or {})
    assert way[0] == ("load", "load")
    modules = [module for module, _ in groupby(module for module, _ in way)]
    is_secret = ("secrets", "SecretSource.read") in way
    return way if is_secret else [*way, ("", "use")], len(modules) - len(set(modules))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [('[poll]\ninterval = "47s"', ("47s", 47, 47.0)), ("[api]\npage_size = 743", (743,))],
    ids=["a duration", "a number"],
)
def test_the_way_of_a_key_from_the_file_to_the_configuration_is_short(
    text: str, wanted: tuple[object, ...], tmp_path: Path
) -> None:
    way, returns = walk(tmp_path, text, wanted)
    assert len(way) <= 9, way
    assert returns == 0, way


SINKS = {
    "logging-service": 'url = "https://x.example"\ntag = "t"\napi_key_env = "KEY"',
    "loki": 'url = "https://x.example"',
    "moesif": 'application_id_env = "KEY"',
    "firehose": 'stream = "s"',
    "otlp": 'url = "https://x.example"',
    "opensearch": 'url = "https://x.example"',
    "elasticsearch": 'url = "https://x.example"',
    "http": 'url = "https://x.example"',
    "kafka": 'brokers = ["x.example:9092"]\ntopic = "t"',
    "file": 'path = "x.ndjson"',
    "archive": 'url = "s3://bucket/x"',
    "stdout": "",
}
LONGER = {"loki": 11}  # it has a rule of its own besides those of every sink over HTTP


@pytest.mark.parametrize("sink", [struct.type_name() for struct in get_args(AnySink)])
def test_the_way_of_the_key_of_a_sink_is_short(sink: str, tmp_path: Path) -> None:
    text = f'[[sinks]]\ntype = "{sink}"\nname = "x"\nbatch_age = "47s"\n{SINKS[sink]}\n'
    way, returns = walk(tmp_path, text, ("47s", 47.0), {"KEY": "x"})
    assert len(way) <= LONGER.get(sink, 10), way
    assert returns <= 1, way


SECRETS = {
    "logging-service": (
        '[[sinks]]\ntype = "logging-service"\nname = "x"\nurl = "https://x.example"\ntag = "t"\n',
        "api_key",
        "x.api-key",
    ),
    "loki": (
        '[[sinks]]\ntype = "loki"\nname = "x"\nurl = "https://x.example"\nusername = "u"\n',
        "password",
        "x.password",
    ),
    "redact": ('[[sinks]]\ntype = "stdout"\nname = "x"\n[sinks.redact]\n', "hash_key", "x.hash-key"),
    "api": ("[api]\n", "token", "token"),
    "account": ('[[accounts]]\nname = "x"\n', "token", "x.token"),
}


@pytest.mark.parametrize("form", ["file", "variable", "credential", "itself"])
@pytest.mark.parametrize(
    ("table", "longest"), [("logging-service", 12), ("loki", 14), ("redact", 14), ("api", 13), ("account", 13)]
)
def test_the_way_of_a_secret_is_short(table: str, form: str, longest: int, tmp_path: Path) -> None:
    text, key, credential = SECRETS[table]
    file = tmp_path / (credential if form == "credential" else "my.secret")
    file.write_text("canary")
    file.chmod(0o600)
    line, said, environ = {
        "file": (f'{key}_file = "{file.name}"', file.name, {}),
        "variable": (f'{key}_env = "KEY"', "KEY", {"KEY": "canary"}),
        "credential": ("", str(file), {"CREDENTIALS_DIRECTORY": str(tmp_path)}),
        "itself": (f'{key} = "canary"', "canary", {}),
    }[form]
    way, returns = walk(tmp_path, f"{text}{line}\n", (said, file, str(file), SecretSource), environ)
    assert ("secrets", "SecretSource.__init__") in way
    assert len(way) <= longest, way
    assert returns <= 2, way


def test_every_key_has_a_kind_that_describes_it() -> None:
    def check(table: type[Table]) -> None:
        for field in fields_of(table):
            if isinstance(field.kind, Nested):
                check(field.kind.type)
            else:
                assert field.kind.description, field
                assert field.kind.name(), field
                assert field.kind.schema(), field

    check(Config)
