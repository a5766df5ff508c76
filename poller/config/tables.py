"""Tables: the base class of all tables of the configuration, and the kinds of values that are tables.

A table with a bad value is not created, so that no rule checks a missing value. The other tables are still read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, get_args

import msgspec

from poller.config.checks import BadValueError, is_name
from poller.config.kinds import Kind, fields_of, list_of, suggest, table_of
from poller.config.reading import Place
from poller.config.values import show
from poller.core.errors import ConfigError, Problem


def toml_key(name: str) -> str:
    """The TOML key of a field: its name without the unit, because TOML values have their own."""
    return name.removesuffix("_seconds")


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=toml_key):
    """A table of the configuration."""

    EXAMPLES: ClassVar[Mapping[str, str]] = {}
    """Values for the example, if the kinds' own values do not fit this table."""

    @classmethod
    def type_name(cls) -> str:
        """The value of its key `type`, if a list has tables of several structs; otherwise ""."""
        return str(cls.__struct_config__.tag or "")

    def problems(self) -> Iterator[Problem]:
        """Problems between its fields. The paths are keys of this table; empty: the table itself."""
        return iter(())


class Nested(Kind, frozen=True):
    """A table. Without a description, the docstring of its struct is used.

    `credential` is the prefix of its files in $CREDENTIALS_DIRECTORY. `is_partial`: it is created without its bad values.
    """

    word: str = "table"
    credential: str = ""
    is_partial: bool = False

    def read(self, raw: object, at: Place) -> Table | None:
        given = raw if isinstance(raw, dict) else table_of(raw)
        at = at._replace(credential=self.credential or at.credential)
        fields = fields_of(self.type)
        known = [key for field in fields for key in field.keys]
        before = len(at.reading.problems)
        for key in given:
            if key not in known and not (key == "type" and self.type.type_name()):
                at.key(key).add("unknown key", suggest(key, known) or "`ionos-poller config example` shows every key")
        values: dict[str, Any] = {}
        for field in fields:
            keys = [key for key in field.keys if key in given]
            try:
                if len(keys) > 1:
                    raise BadValueError(f"given more than once: {', '.join(keys)}", "keep one of them")
                value = field.kind.read(given[keys[0]], at.key(keys[0])) if keys else field.kind.find(field, at)
            except (ValueError, ConfigError) as error:
                at.key(min(keys, default=field.key)).note(error)
            else:
                if value is not None:
                    values[field.name] = value
        if len(at.reading.problems) > before and not self.is_partial:
            return None
        made: Table = self.type(**values)
        for problem in made.problems():
            at.below(problem.path).add(problem.message, problem.hint)
        return made

    def write(self, value: Table) -> dict[str, Any]:
        return write_table(value)

    def schema(self) -> dict[str, Any]:
        return table_schema(self.type)


class NestedList(Kind, frozen=True):
    """A list of tables. A table with problems becomes None, so that the others keep their numbers."""

    word: str = "list of tables"

    def read(self, raw: object, at: Place) -> tuple[Table | None, ...]:
        if isinstance(raw, dict):
            raise BadValueError("must be a list, not a table", f"write [[{at.path}]]")
        structs = {struct.type_name(): struct for struct in self.structs()}
        names: dict[str, str] = {}
        made: list[Table | None] = []
        for index, item in enumerate(raw if isinstance(raw, list) else list_of(raw)):
            here = at.item(index)
            made.append(None)
            try:
                table = item if isinstance(item, dict) else table_of(item)
            except BadValueError as error:
                here.note(error)
                continue
            name = table.get("name")
            if isinstance(name, str) and is_name(name):
                here = here._replace(credential=name)
                if (first := names.setdefault(name, here.path)) != here.path:
                    here.key("name").add(f"is the same as that of {first}", "give each a name of its own")
            word = "" if "" in structs else table.get("type")
            if isinstance(word, str) and word in structs:
                made[-1] = Nested(type=structs[word]).read(table, here)
            else:
                message = "missing" if word is None else f"{show(word)} is not a type of sink"
                here.key("type").add(message, suggest(word if isinstance(word, str) else "", structs))
        return tuple(made)

    def structs(self) -> tuple[type[Table], ...]:
        """The structs that a table of the list may have. If there are several, the key `type` names one by its tag."""
        item = get_args(self.type)[0]
        return get_args(item) or (item,)

    def write(self, value: tuple[Table, ...]) -> list[dict[str, Any]]:
        return [write_table(table) for table in value]

    def schema(self) -> dict[str, Any]:
        shapes = [table_schema(struct) for struct in self.structs()]
        return {"type": "array", "items": shapes[0] if len(shapes) == 1 else {"oneOf": shapes}}


def doc(table: type[Table]) -> str:
    """The description of a table: its docstring on one line."""
    return " ".join((table.__doc__ or "").split())


def table_schema(table: type[Table]) -> dict[str, Any]:
    """The JSON Schema of a table."""
    tag = table.type_name()
    properties: dict[str, Any] = {"type": {"const": tag}} if tag else {}
    required = ["type"] if tag else []
    for field in fields_of(table):
        shape = field.kind.schema()
        if field.kind.description:
            shape = shape | {"description": field.kind.description}
        has_default = not field.is_required and field.default is not None
        if has_default and not isinstance(field.kind, Nested | NestedList):
            shape["default"] = field.kind.write(field.default)
        properties |= dict.fromkeys(field.keys, shape)
        # A required secret may be in $CREDENTIALS_DIRECTORY, so the file need not name it.
        required += [field.key] if field.is_required and len(field.keys) == 1 else []
    found = {"type": "object", "description": doc(table), "additionalProperties": False, "properties": properties}
    return found | {"required": required} if required else found


def write_table(table: Table) -> dict[str, Any]:
    """The table in the form of TOML and JSON, without unset fields."""
    tree: dict[str, Any] = {}
    for field in fields_of(type(table)):
        value = getattr(table, field.name)
        if value is not None:
            tree |= field.kind.entries(field.key, value)
        if field.key == "name" and (tag := table.type_name()):
            tree["type"] = tag
    return tree
