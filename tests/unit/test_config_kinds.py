"""A kind of value is one class: reading, showing, schema and reference need only its annotation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import date
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ClassVar, get_args

import msgspec
import pytest

from poller.config import AnySink, Config, SecretSource, load
from poller.config.checks import BadValueError
from poller.config.environment import EnvText
from poller.config.kinds import (
    Brokers,
    Contracts,
    Duration,
    Flag,
    Glob,
    Headers,
    Kind,
    Labels,
    Number,
    Size,
    Text,
    fields_of,
)
from poller.config.reading import Place, Reading
from poller.config.tables import Nested, Table, table_schema, write_table
from poller.core.errors import Problem


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
    """Whether a value is one of `wanted`, or holds one at any depth."""
    if isinstance(value, dict):
        return any(holds(item, wanted) for item in value.values())
    if isinstance(value, list | tuple):
        return any(holds(item, wanted) for item in value)
    if isinstance(value, msgspec.Struct) and not isinstance(value, Kind):
        return any(holds(getattr(value, name), wanted) for name in value.__struct_fields__)
    # A type in `wanted` matches each of its instances: a source that is being made cannot be compared yet.
    return any(type(value) is one or (type(value) is type(one) and value == one) for one in wanted)


def stops(file: Path, wanted: tuple[object, ...], environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """(module, function) of each call in the program that received or returned the value during a load, in order.

    The way of a secret ends at `SecretSource.read`, which uses it. A load calls that once; its inner calls do not count.
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
    """The calls on the way of a key, its use included, and how often the way returns to an earlier module."""
    file = directory / "ionos-poller.toml"
    file.write_text(text)
    file.chmod(0o600)
    load(file, environ or {})  # fills the caches, which do not count
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
LONGER = {"loki": 11, "archive": 11}  # loki: a rule besides those of all HTTP sinks; archive: the directory of a URL


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


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("a", "text"),
        (True, "true or false"),
        (7, "a number"),
        (1.5, "a number"),
        (["a"], "a list"),
        ({"a": 1}, "a table"),
        (date(2026, 5, 1), "a date or time"),
    ],
)
def test_what_a_value_is_and_should_be_is_said_without_it(raw: object, name: str) -> None:
    for wanted, read in (
        ("text", Text().read),
        ("true or false", Flag().read),
        ("a table", Labels().read),
        ("a list", Contracts().read),
    ):
        if name == wanted or (wanted == "a list" and name == "text"):
            continue
        with pytest.raises(BadValueError) as error:
            read(raw, Place(Reading({}, {}), "x"))
        assert error.value.message == f"must be {wanted}, not {name}"
        assert bool(error.value.hint) is ((wanted, name) == ("text", "a number"))


@pytest.mark.parametrize(
    ("kind", "raw", "value"),
    [
        (Number("", type=int, ge=1, le=5), 1, 1),
        (Number("", type=int, ge=1, le=5), 5, 5),
        (Number("", type=int, ge=1, le=5), EnvText("3"), 3),
        (Number("", type=float, ge=1, le=5), 1, 1.0),
        (Number("", type=float, ge=1, le=5), EnvText("4.5"), 4.5),
        (Duration("", type=int, ge=1, le=5), "5s", 5),
        (Duration("", type=float, ge=0.5, le=5), "500ms", 0.5),
        (Size("", ge=1, le=1024), "1KiB", 1024),
        (Size("", ge=1, le=1024), 1, 1),
        (Flag(), EnvText("TRUE"), True),
        (Flag(), EnvText("false"), False),
        (Glob(), 31960001, "31960001"),
        (Contracts(), EnvText(" 7 ,, 08 "), ("7", "8")),
        (Contracts(), EnvText(' [7, "08"]'), ("7", "8")),
        (Brokers(), ["a:1"], ("a:1",)),
    ],
)
def test_a_value_is_read_up_to_its_bounds(kind: Kind, raw: object, value: object) -> None:
    read = kind.read(raw, Place(Reading({}, {}), "x"))
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "raw", "message", "hint"),
    [
        (Number("", type=int, ge=1, le=5), 0, "0 is too small", "at least 1"),
        (Number("", type=int, ge=1, le=5), 6, "6 is too large", "at most 5"),
        (Number("", type=int, ge=1, le=5), 1.0, "1.0 is not a whole number", ""),
        (Number("", type=int, ge=1), EnvText("1.5"), "1.5 is not a whole number", ""),
        (Number("", type=float), EnvText("x"), "'x' is not a number", ""),
        (Number("", type=float), float("inf"), "inf is not a number", ""),
        (Number("", type=float, le=5), 10**400, "a number this large is too large", "at most 5"),
        (Duration("", type=int, ge=1, le=60), "0s", "0s is too small", "at least 1s"),
        (Duration("", type=int, ge=1, le=60), "61s", "1m1s is too large", "at most 1m"),
        (Duration("", type=int), "1500ms", "'1500ms' is not in whole seconds", ""),
        (Duration(""), 60, "60 is not a duration", 'quote it with its unit, such as "60s"'),
        (Duration(""), 0, "0 is not a duration", 'quote it with its unit, such as "60s" or "1h30m"'),
        (Duration(""), 10**9, "1000000000 is not a duration", 'quote it with its unit, such as "60s" or "1h30m"'),
        (Duration(""), "060", "'060' is not a duration", 'it has no unit: "60s", "5m" or "1h30m"'),
        (Size("", ge=2, le=1024), 1, "1 is too small", "at least 2"),
        (Size("", ge=2, le=1024), "1025", "1025 is too large", "at most 1KiB"),
        (Size(""), True, "True is not a size", 'such as "512KiB" or 1000'),
        (Brokers(example=["a:1"]), [], "must name at least 1", 'such as ["a:1"]'),
    ],
)
def test_a_value_beyond_its_bounds_is_told_in_its_unit(kind: Kind, raw: object, message: str, hint: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        kind.read(raw, Place(Reading({}, {}), "x"))
    assert (str(error.value), getattr(error.value, "hint", "")) == (message, hint)


@pytest.mark.parametrize(
    ("kind", "name", "schema"),
    [
        (Number("", type=int, ge=1, le=5), "whole number (1 to 5)", {"type": "integer", "minimum": 1, "maximum": 5}),
        (Number("", type=float, ge=0.5, word="number"), "number (0.5 or more)", {"type": "number", "minimum": 0.5}),
        (Number("", type=float), "number", {"type": "number"}),
        (Duration("", ge=1, le=60), "duration (1s to 1m)", Duration.SHAPE),
        (Size("", ge=1024), "size (1KiB or more)", Size.SHAPE),
        (Brokers(), "list of host:port", {"type": "array", "items": {"type": "string"}, "minItems": 1}),
        (Contracts(), "list of contract numbers", {"type": "array", "items": {"type": ["string", "integer"]}}),
    ],
)
def test_a_kind_names_its_bounds_and_has_them_in_its_schema(kind: Kind, name: str, schema: object) -> None:
    assert (kind.name(), kind.schema()) == (name, schema)


def test_a_bad_item_is_told_with_its_place_and_the_others_are_read() -> None:
    reading = Reading({}, {})
    assert Contracts().read(["1", "x", 2], Place(reading, "poll.contracts")) == ("1", "2")
    assert [problem.path for problem in reading.problems] == ["poll.contracts[1]"]


def test_headers_are_shown_by_name_and_one_that_is_a_secret_wants_a_private_file() -> None:
    pairs = {"X-Team": "a", "X-Key": "b"}
    for is_private, count in ((True, 0), (False, 1)):
        reading = Reading({}, {}, is_private=is_private)
        assert Headers().read(pairs, Place(reading, "x")) == pairs
        assert [problem.message.partition(" stands")[0] for problem in reading.problems] == [
            "the value of 'X-Key'"
        ] * count
    assert Headers().write(pairs) == {"X-Team": "********", "X-Key": "********"}
    assert Labels().write(pairs) == pairs


# Places


def test_a_key_that_is_not_bare_is_quoted() -> None:
    place = Place(Reading({}, {}))
    assert [place.key(key).path for key in ("a-b_9", "a.b", "a b", "")] == ["a-b_9", "'a.b'", "'a b'", "''"]
    assert place.key("a").key("b.c").path == "a.'b.c'"
    assert place.key("a").item(3).below("b").path == "a[3].b"
    assert (place.below("").path, place.below("b").path, place.key("a").below("").path) == ("", "b", "a")


@pytest.mark.parametrize(
    ("origins", "path", "variable"),
    [
        ({"sinks": "S"}, "sinks[0].url", "S[0].url"),
        ({"sinks": "S", "sinks[0].url": "U"}, "sinks[0].url", "U"),
        ({"poll.interval": "I"}, "poll.interval", "I"),
        ({"poll.interval": "I"}, "poll.intervals", ""),
        ({"poll.interval": "I"}, "poll", ""),
        ({}, "poll", ""),
    ],
)
def test_a_value_that_a_variable_gave_is_named_by_it(origins: dict[str, str], path: str, variable: str) -> None:
    reading = Reading({}, origins, is_private=False)
    place = Place(reading, path)
    assert place.variable == variable
    assert place.may_hold_secrets is bool(variable)
    place.add("message", "hint")
    assert reading.problems == [Problem(variable or path, "message", "hint")]


def test_a_variable_that_goes_deeper_than_a_key_is_what_is_wrong_with_it() -> None:
    origins = {
        "poll.interval.x": "DEEP",
        "state_dir.y": "DEEPER",
        "sinks[0].url.z": "IN_A_LIST",
        "poll.intervals.x": "NO",
    }
    reading = Reading({}, origins)
    for path in ("poll.interval", "state_dir", "sinks[0].url", "poll"):
        Place(reading, path).add("wrong")
    assert [problem.path for problem in reading.problems] == ["DEEP", "DEEPER", "sinks[0].url", "poll"]


def test_a_file_is_looked_for_beside_the_configuration_unless_a_variable_names_it() -> None:
    reading = Reading({"HOME": "/home/a"}, {"x": "X"}, base=Path("/etc"))
    named, given = Place(reading, "y"), Place(reading, "x")
    assert [str(named.file(text)) for text in ("a", "/b", "~/c", "~d/e")] == ["/etc/a", "/b", "/home/a/c", "/etc/~d/e"]
    assert [str(given.file(text)) for text in ("a", "~/c")] == ["a", "/home/a/c"]
    assert str(Place(Reading({}, {}, base=Path("/etc")), "y").file("~/c")) == "/etc/~/c"
