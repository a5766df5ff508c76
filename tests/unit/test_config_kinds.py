"""A kind of value is one class: reading, showing, schema and reference know it from its annotation alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ClassVar

import msgspec
import pytest

from poller.config import Config, load
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
    return any(type(value) is type(one) and value == one for one in wanted)


def stops(file: Path, wanted: tuple[object, ...]) -> Iterator[tuple[str, str]]:
    """(module, function) of each call in the program that got the value or gave it back, in order, while the file is loaded."""
    calls: list[list[Any]] = []
    open_calls: dict[FrameType, list[Any]] = {}

    def note(frame: FrameType, event: str, result: object) -> None:
        code = frame.f_code
        if "/poller/" not in code.co_filename or code.co_name.startswith("<"):
            return
        if event == "call":
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
        load(file, {})
    finally:
        sys.setprofile(before)
    return ((module, name) for module, name, is_stop in calls if is_stop)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [('[poll]\ninterval = "47s"', ("47s", 47, 47.0)), ("[api]\npage_size = 743", (743,))],
    ids=["a duration", "a number"],
)
def test_the_way_of_a_key_from_the_file_to_the_configuration_is_short(
    text: str, wanted: tuple[object, ...], tmp_path: Path
) -> None:
    file = tmp_path / "ionos-poller.toml"
    file.write_text(text)
    load(file, {})  # what is cached is not on the way
    way = list(stops(file, wanted))
    rooms: list[str] = []
    for module, _ in way:
        if not rooms or rooms[-1] != module:
            rooms.append(module)
    assert way[0] == ("load", "load")
    assert len(way) + 1 <= 10, way  # and one who uses it
    assert len(rooms) - len(set(rooms)) <= 2, rooms


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
