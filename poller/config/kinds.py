"""The kinds of configuration values: each reads its TOML value, writes it, and describes itself.

A kind is the annotation of a field: `interval_seconds: Annotated[int, Duration("Time between two polls.", ge=1)]`. It gives the
field its description, its bounds, its word in the reference and its shape in the JSON Schema. A new kind is one class;
no other code changes. `tables.py` has the kinds that hold other fields, `files.py` the kinds of files and secrets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Annotated, Any, ClassVar, NamedTuple, Never, get_args, get_origin

import msgspec

from poller.config import checks
from poller.config.checks import BadValueError
from poller.config.environment import EnvText
from poller.config.reading import Place
from poller.config.secrets import MASK
from poller.config.state_url import check_state_url
from poller.config.values import format_duration, format_size, parse_duration, parse_size, show

_MAX_SECONDS = 10**9
_INTEGER = r"-?[0-9]{1,18}"


class Kind(msgspec.Struct, frozen=True):
    """The kind of a field's value. `word` is its name in the reference. `type` is the field's bare type; `fields_of` sets it.

    `example` is shown if there is no default. `is_alternative`: the field is given instead of another one.
    """

    description: str = ""
    word: str = "text"
    example: object = None
    is_alternative: bool = False
    type: Any = None

    SHAPE: ClassVar[dict[str, Any]] = {"type": "string"}
    endings: ClassVar[tuple[str, ...]] = ("",)
    """The endings of the field's key in TOML. The reference shows the first one."""

    def read(self, raw: object, at: Place) -> Any:
        """The value of the field.  Raises: ValueError with a sentence for the user. Further problems are recorded at `at`."""
        return raw if isinstance(raw, str) else refuse(raw, "text")

    def find(self, field: Field, at: Place) -> Any:
        """The value if the table at this place has none; None: the default.  Raises: ValueError if it is required."""
        if field.is_required:
            raise BadValueError("missing", self.description)
        return None

    def write(self, value: Any) -> Any:
        """The value in the form of TOML and JSON."""
        return value

    def entries(self, key: str, value: Any) -> dict[str, Any]:
        """The keys and values that give the field this value."""
        return {key: self.write(value)}

    def sample(self, key: str) -> Any:
        """The value that the example shows if there is no default."""
        return self.example

    def name(self) -> str:
        """Its name in the reference, with its bounds."""
        return f"{self.word}{self.bounds()}"

    def bounds(self) -> str:
        """Its bounds in brackets, or nothing."""
        return ""

    def schema(self) -> dict[str, Any]:
        """Its shape in JSON Schema."""
        return self.SHAPE


class Field(NamedTuple):
    """One field of a table: `name` in Python, `key` in TOML."""

    name: str
    key: str
    kind: Kind
    default: Any
    is_required: bool

    @property
    def keys(self) -> tuple[str, ...]:
        """All TOML keys that give this field a value."""
        return tuple(f"{self.key}{ending}" for ending in self.kind.endings)


@cache
def fields_of(table: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The fields of a table that have a kind, in the order of the model. A field without a kind is not a key."""
    return tuple(
        Field(
            info.name,
            info.encode_name,
            msgspec.structs.replace(info.type.__metadata__[0], type=_bare(info.type.__origin__)),
            info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory(),
            info.required,
        )
        for info in msgspec.structs.fields(table)
        if get_origin(info.type) is Annotated
    )


def _bare(annotated: Any) -> Any:
    """The type without its None."""
    others = [one for one in get_args(annotated) if one is not type(None)]
    return others[0] if len(others) == 1 and type(None) in get_args(annotated) else annotated


# Text


class Text(Kind, frozen=True):
    """Text that `check` accepts: it returns the value, or raises ValueError."""

    check: Callable[[str], str] = checks.check_text

    def read(self, raw: object, at: Place) -> str:
        return self.check(raw) if isinstance(raw, str) else refuse(raw, "text")


class Glob(Text, frozen=True):
    """A pattern. It may be written as the number it matches."""

    check: Callable[[str], str] = checks.check_glob

    SHAPE = {"type": ["string", "integer"]}

    def read(self, raw: object, at: Place) -> str:
        is_whole = isinstance(raw, int) and not isinstance(raw, bool)
        return super().read(str(raw) if is_whole else raw, at)


class Choice(Kind, frozen=True):
    """One of the words of the field's Literal."""

    def read(self, raw: object, at: Place) -> object:
        choices = get_args(self.type)
        if raw not in choices:
            raise BadValueError(f"{show(raw)} is not one of {', '.join(choices)}", suggest(show(raw), choices))
        return raw

    def name(self) -> str:
        return " or ".join(f'"{choice}"' for choice in get_args(self.type))

    def schema(self) -> dict[str, Any]:
        return {"enum": list(get_args(self.type))}


class Flag(Kind, frozen=True):
    """True or false."""

    word: str = "true or false"

    SHAPE = {"type": "boolean"}

    def read(self, raw: object, at: Place) -> bool:
        if isinstance(raw, EnvText) and raw.lower() in ("true", "false"):
            return raw.lower() == "true"
        return raw if isinstance(raw, bool) else refuse(raw, self.word)


# Numbers


class Amount(Kind, frozen=True):
    """A value between bounds. `ge` and `le` are in the field's unit, both inclusive."""

    ge: float = -math.inf
    le: float = math.inf

    def outside(self, value: float) -> BadValueError:
        """The error for a value outside the bounds."""
        if value < self.ge:
            return BadValueError(f"{self._shown(value)} is too small", f"at least {self._shown(self.ge)}")
        return BadValueError(f"{self._shown(value)} is too large", f"at most {self._shown(self.le)}")

    def _shown(self, value: float) -> str:
        written = self.write(value)
        return written if isinstance(written, str) else show(value)

    def bounds(self) -> str:
        if self.ge == -math.inf:
            return ""
        upper = "or more" if self.le == math.inf else f"to {self.write(self.le)}"
        return f" ({self.write(self.ge)} {upper})"


class Number(Amount, frozen=True):
    """A number; a whole number if the field's type is int."""

    word: str = "number"

    def read(self, raw: Any, at: Place) -> float:
        if isinstance(raw, EnvText):
            try:
                raw = int(raw) if re.fullmatch(_INTEGER, raw) else float(raw)
            except ValueError:
                raise BadValueError(f"{show(str(raw))} is not a number") from None
        is_whole = isinstance(raw, int) and not isinstance(raw, bool)
        if not is_whole and not (isinstance(raw, float) and self.type is float and math.isfinite(raw)):
            raise BadValueError(f"{show(raw)} is not a {'whole number' if self.type is int else 'number'}")
        if not self.ge <= raw <= self.le:  # before float(), which fails beyond 10**308
            raise self.outside(raw)
        return int(raw) if self.type is int else float(raw)

    def write(self, value: float) -> Any:
        return int(value) if value == int(value) else value

    def name(self) -> str:
        return f"{'whole ' if self.type is int else ''}{super().name()}"

    def schema(self) -> dict[str, Any]:
        bounds = {"minimum": self.ge, "maximum": self.le}
        found: dict[str, Any] = {"type": "integer" if self.type is int else "number"}
        return found | {name: bound for name, bound in bounds.items() if math.isfinite(bound)}


class Duration(Amount, frozen=True):
    """A span of time such as `1h30m`, in seconds."""

    word: str = "duration"

    SHAPE = {"type": "string", "pattern": "^([0-9]+(d|h|m|s|ms))+$"}

    def read(self, raw: object, at: Place) -> float:
        if not isinstance(raw, str):
            example = f'"{raw}s"' if isinstance(raw, int) and 0 < raw < _MAX_SECONDS else '"60s" or "1h30m"'
            raise BadValueError(f"{show(raw)} is not a duration", f"quote it with its unit, such as {example}")
        if re.fullmatch(r"[0-9]{1,9}", raw):
            raise BadValueError(f"{show(raw)} is not a duration", f'it has no unit: "{int(raw)}s", "5m" or "1h30m"')
        seconds = parse_duration(raw)
        if not self.ge <= seconds <= self.le:
            raise self.outside(seconds)
        if self.type is int and not seconds.is_integer():
            raise BadValueError(f"{show(raw)} is not in whole seconds")
        return int(seconds) if self.type is int else seconds

    def write(self, value: float) -> str:
        return format_duration(value)


class Size(Amount, frozen=True):
    """A number of bytes such as `512KiB`."""

    word: str = "size"

    SHAPE = {"type": ["string", "integer"], "pattern": "^[0-9]+ ?([KMGTkmgt][Ii]?)?[Bb]?$", "minimum": 0}

    def read(self, raw: object, at: Place) -> float:
        if not isinstance(raw, str | int) or isinstance(raw, bool):
            raise BadValueError(f"{show(raw)} is not a size", 'such as "512KiB" or 1000')
        size = parse_size(raw if isinstance(raw, str) else show(raw))
        if not self.ge <= size <= self.le:
            raise self.outside(size)
        return size

    def write(self, value: float) -> str:
        return format_size(int(value))


# Lists and tables of plain values


class Items(Kind, frozen=True, kw_only=True):
    """A list. `check` returns each of its values, or raises ValueError. `shape` is the schema of a value; None: text."""

    check: Callable[[object], Any]
    shape: dict[str, Any] | None = None
    at_least: int = 0

    def read(self, raw: object, at: Place) -> tuple[Any, ...]:
        if isinstance(raw, EnvText) and not raw.lstrip().startswith("["):
            raw = [item.strip() for item in raw.split(",") if item.strip()]
        made: list[Any] = []
        raw = list_of(raw)
        if len(raw) < self.at_least:
            raise BadValueError(
                f"must name at least {self.at_least}", f"such as {msgspec.json.encode(self.example).decode()}"
            )
        for index, item in enumerate(raw):
            try:
                made.append(self.check(item))
            except ValueError as error:
                at.item(index).note(error)
        return tuple(made)

    def write(self, value: tuple[Any, ...]) -> list[Any]:
        return list(value)

    def schema(self) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "array", "items": self.shape or {"type": "string"}}
        return found | {"minItems": self.at_least} if self.at_least else found


class Pairs(Kind, frozen=True, kw_only=True):
    """A table of text. `check` raises ValueError for a bad name or value. `is_hidden`: values may be secret and are not shown."""

    check: Callable[[str, object], Any]
    is_hidden: bool = False
    word: str = "table of text"

    SHAPE = {"type": "object", "additionalProperties": {"type": "string"}}

    def read(self, raw: object, at: Place) -> dict[str, str]:
        pairs: dict[str, Any] = table_of(raw)
        for name, value in pairs.items():
            try:
                self.check(name, value)
            except ValueError as error:
                at.note(error)
            if self.is_hidden and checks.is_secret_name(name) and not at.may_hold_secrets:
                at.add_exposed(f"the value of {show(name)}")
        return dict(pairs)

    def write(self, value: dict[str, str]) -> dict[str, str]:
        return dict.fromkeys(value, MASK) if self.is_hidden else value


# These kinds differ only in their check and their word in the reference.
Url = partial(Text, check=checks.check_url, word="url")
StateUrl = partial(Text, check=check_state_url, word="url")
ArchiveUrl = partial(Text, check=checks.check_archive, word="s3:// or file:// URL")
Listen = partial(Text, check=checks.check_listen, word="address:port or unix:path")
Name = partial(Text, check=checks.check_name, word="name")
Identifier = partial(Text, check=checks.check_identifier, word="name")
UserName = partial(Text, check=checks.check_user)
HeaderText = partial(Text, check=checks.check_header_text)
FieldTemplate = partial(Text, check=checks.check_mapping)
Index = partial(Text, check=checks.check_index)
FieldPaths = partial(Items, check=checks.check_field_path, word="list of field paths")
Contracts = partial(
    Items, check=checks.check_contract, word="list of contract numbers", shape={"type": ["string", "integer"]}
)
Hosts = partial(Items, check=checks.check_host, word="list of host names")
Brokers = partial(Items, check=checks.check_broker, word="list of host:port", at_least=1)
Statuses = partial(
    Items, check=checks.check_status, word="list of numbers", shape={"type": "integer", "minimum": 200, "maximum": 299}
)
Labels = partial(Pairs, check=checks.check_label)
Headers = partial(Pairs, check=checks.check_header, is_hidden=True)
Parameters = partial(Pairs, check=checks.check_parameter, is_hidden=True)


# Raw values


def table_of(raw: object) -> dict[str, object]:
    """The value, if it is a table, or a variable that holds a table as JSON."""
    value = decode_json(raw) if isinstance(raw, EnvText) else raw
    return value if isinstance(value, dict) else refuse(value, "a table")


def list_of(raw: object) -> list[object]:
    """The value, if it is a list, or a variable that holds a list as JSON."""
    value = decode_json(raw) if isinstance(raw, EnvText) else raw
    return value if isinstance(value, list) else refuse(value, "a list")


def decode_json(value: EnvText) -> object:
    """The structure that an environment variable holds as JSON.  Raises: BadValueError."""
    try:
        return msgspec.json.decode(value.encode())
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        hint = 'a list or a table in an environment variable is written as JSON, such as ["a", "b"]'
        raise BadValueError("is not valid JSON", hint) from None


def refuse(raw: object, wanted: str) -> Never:
    """Say what the value should be.  Raises: BadValueError."""
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}
    name = "text" if isinstance(raw, str) else names.get(type(raw), "a date or time")
    # The message never holds the value: it may be a misplaced secret.
    hints = {("text", "a number"): "put it in quotes", ("a list", "text"): 'put it in brackets: ["..."]'}
    raise BadValueError(f"must be {wanted}, not {name}", hints.get((wanted, name), ""))


def suggest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word that the user may have meant, or all known words if they are few."""
    from difflib import get_close_matches

    words = list(known)
    if close := get_close_matches(word.lower(), words, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    if len(begun := [known for known in words if len(word) > 2 and known.startswith(word.lower())]) == 1:
        return f"did you mean {begun[0]}?"
    return f"known: {', '.join(words)}" if len(words) <= 12 else ""
