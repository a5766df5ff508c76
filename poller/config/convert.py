"""From raw TOML values to the frozen tables, field by field, so that one bad value hides no other.

A `Converter` collects problems and never raises for a value. Where a value came from the environment, its
problem names the variable, and text stands for numbers and lists as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from poller.config import checks
from poller.config.checks import BadValueError
from poller.config.kinds import Field, fields_of
from poller.config.rules import check_table
from poller.config.scalars import (
    expect_list,
    expect_table,
    expect_text,
    read_scalar,
    split_list,
    suggest,
)
from poller.config.secrets import Secret, SecretSource
from poller.config.sinks import SINK_TYPES, AnySink
from poller.config.trust import read_trusted
from poller.config.values import show
from poller.core.errors import ConfigError, FileProblem, Problem

T = TypeVar("T", bound=msgspec.Struct)


class Converter:
    """One load's conversion. `origins` maps paths such as `poll.interval` to the variables that set them.

    `base` is where relative paths of the file start. `is_private`: no other user can read the file.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        origins: Mapping[str, str],
        *,
        base: Path = Path(),
        is_private: bool = True,
        check_files: bool = True,
    ) -> None:
        self.problems: list[Problem] = []
        self._environ = environ
        self._origins = origins
        self._base = base
        self._is_private = is_private
        self._check_files = check_files

    # Where a value stands

    def variable(self, path: str) -> str:
        """What the user wrote, where an environment variable set this path or one above it; else empty."""
        ends = [match.start() for match in re.finditer(r"[.\[]|$", path)]
        for end in reversed(ends):
            if name := self._origins.get(path[:end]):
                return f"{name}{path[end:]}"
        return ""

    def add(self, path: str, message: str, hint: str = "", kind: type[Problem] = Problem) -> None:
        """Note a problem, at the variable where there is one."""
        # A variable that goes deeper than the key, as POLL__INTERVAL__X does, is what is wrong with the key.
        is_key = path == "state_dir" or ("." in path and "[" not in path)
        below = [name for place, name in self._origins.items() if is_key and place.startswith(f"{path}.")]
        self.problems.append(kind(self.variable(path) or (below or [path])[0], message, hint))

    # Tables

    def table(self, kind: type[T], raw: object, path: str, *, credential: str = "", skip: str = "") -> T | None:
        """The table, or None when something in it is wrong.

        `credential` begins the names of its files in $CREDENTIALS_DIRECTORY; `skip` is a known key.
        """
        before = len(self.problems)
        given: dict[str, object] | None = self._attempt(path, expect_table, raw)
        if given is None:
            return None
        fields = [field for field in fields_of(kind) if not field.extra.get("is_internal")]
        known = [key for field in fields for key in field.keys]
        for key in given:
            if key not in known and key != skip:
                self.add(_join(path, key), "unknown key", suggest(key, known))
        values = {field.name: self._value(field, given, path, credential) for field in fields}
        if len(self.problems) > before:
            return None
        made = kind(**{name: value for name, value in values.items() if value is not None})
        for found in check_table(made):
            self.add(_join(path, found.path) if found.path else path, found.message, found.hint)
        return made

    def tables(self, kind: type[T], raw: object, path: str) -> dict[str, T]:
        """A list of tables by their paths; those with problems are left out. A `name` leads to a table's credentials."""
        made = {
            where: self.table(kind, item, where, credential=_name_of(item)) for where, item in self._items(raw, path)
        }
        return {where: table for where, table in made.items() if table is not None}

    def sinks(self, raw: object, path: str) -> dict[str, AnySink]:
        """The list of sinks by their paths, each by its `type`; those with problems are left out."""
        made: dict[str, AnySink] = {}
        for where, item in self._items(raw, path):
            word = item.get("type")
            if not isinstance(word, str) or word not in SINK_TYPES:
                message = "missing" if word is None else f"{show(word)} is not a type of sink"
                self.add(f"{where}.type", message, suggest("" if word is None else show(word), SINK_TYPES))
            elif sink := self.table(SINK_TYPES[word], item, where, credential=_name_of(item), skip="type"):
                made[where] = sink
        return made

    def _items(self, raw: object, path: str) -> Iterator[tuple[str, dict[str, object]]]:
        """The tables of a list, each with its path. Those that have a name may not have the same."""
        places: dict[str, str] = {}
        if isinstance(raw, dict):
            self.add(path, "must be a list, not a table", f"write [[{path}]]")
            return
        for index, item in enumerate(self._attempt(path, expect_list, raw) or ()):
            where = f"{path}[{index}]"
            table = self._attempt(where, expect_table, item)
            if table is None:
                continue
            if (name := _name_of(table)) and (first := places.setdefault(name, where)) != where:
                self.add(f"{where}.name", f"is the same as that of {first}", "give each a name of its own")
            yield where, table

    # Fields

    def _value(self, field: Field, given: Mapping[str, object], path: str, credential: str) -> Any:
        """The value of a field, or None where it is not given or has a problem, which is noted."""
        if field.kind == "secret":
            return self._secret(field, given, path, credential)
        if field.key in given:
            return self._field(field, given[field.key], _join(path, field.key))
        if field.is_required:
            self.add(_join(path, field.key), "missing", field.description)
        return None

    def _attempt(self, path: str, convert: Callable[..., Any], *values: object) -> Any:
        """What `convert` makes of the values, or None with its problem noted."""
        try:
            return convert(*values)
        except BadValueError as error:
            self.add(path, error.message, error.hint)
        except ValueError as error:
            self.add(path, str(error))
        return None

    def _field(self, field: Field, raw: object, path: str) -> Any:
        """The value of any field but a secret, or None with a problem noted."""
        match field.kind:
            case "table":
                return self.table(field.extra["table"], raw, path, credential=field.extra.get("credential", ""))
            case "tables":
                return tuple(self.tables(field.extra["table"], raw, path).values())
            case "contracts" | "field_paths" | "hosts" | "brokers" | "statuses":
                return self._items_of(field, raw, path)
            case "headers" | "labels":
                return self._mapping(field, raw, path)
            case "file" | "directory":
                return self._attempt(path, self._file, field, raw, path)
            case "template":
                return self._attempt(path, self._template, raw, path)
            case _:
                return self._attempt(path, read_scalar, field, raw)

    def _items_of(self, field: Field, raw: object, path: str) -> tuple[Any, ...]:
        check: Callable[[object], Any] = {
            "contracts": checks.check_contract,
            "hosts": checks.check_host,
            "brokers": checks.check_broker,
            "statuses": checks.check_status,
        }.get(field.kind, checks.check_field_path)
        items = self._attempt(path, expect_list, split_list(raw)) or []
        made = [self._attempt(f"{path}[{at}]", check, item) for at, item in enumerate(items)]
        return tuple(item for item in made if item is not None)

    def _mapping(self, field: Field, raw: object, path: str) -> dict[str, str] | None:
        pairs = self._attempt(path, expect_table, raw)
        if pairs is None:
            return None
        check = checks.check_header if field.kind == "headers" else checks.check_label
        for name, value in pairs.items():
            self._attempt(path, check, name, value)
            if field.kind == "headers" and checks.is_secret_header(name) and not self._may_hold_secrets(path):
                self.add(path, *self._exposed(f"the value of {show(name)}"))
        return dict(pairs)

    def _path(self, text: str, path: str) -> Path:
        if text.startswith("~/") and (home := self._environ.get("HOME")):
            text = f"{home}{text[1:]}"
        return Path(text) if self.variable(path) else self._base / text

    def _template(self, raw: object, path: str) -> str:
        return str(self._path(checks.check_template(expect_text(raw)), path))

    def _file(self, field: Field, raw: object, path: str) -> Path:
        file = self._path(checks.check_text(expect_text(raw)), path)
        is_readable = os.access(file, os.R_OK)
        if field.kind == "file" and self._check_files and not is_readable:
            self.add(path, f"unreadable file {file}", "does it exist, and may this user read it?", FileProblem)
        if self._check_files and is_readable and field.extra.get("is_private"):
            _, _, refusal = read_trusted(file, 0, is_secret=True)
            if refusal is not None:
                raise BadValueError(*refusal)
        return file

    # Secrets

    def _may_hold_secrets(self, path: str) -> bool:
        return self._is_private or bool(self.variable(path))

    def _exposed(self, what: str) -> tuple[str, str]:
        return (
            f"{what} stands in a file that others can read",
            "chmod 600 the file, or keep the secret in its own",
        )

    def _secret(self, field: Field, raw: Mapping[str, object], path: str, credential: str) -> SecretSource | None:
        """Where the secret comes from; None where it need not be given, or with a problem noted."""
        given = [key for key in field.keys if key in raw]
        if len(given) > 1:
            self.add(_join(path, given[0]), f"given more than once: {', '.join(given)}", "keep one of them")
            return None
        if given:
            source = self._given_secret(field, given[0], raw[given[0]], _join(path, given[0]))
        else:
            source = self._found_secret(field, path, credential)
        if source is None or not self._check_files:
            return source
        try:
            source.read()
        except ConfigError as error:
            self.problems.extend(error.problems)
            return None
        return source

    def _given_secret(self, field: Field, key: str, raw: object, path: str) -> SecretSource | None:
        where, is_text = self.variable(path) or path, bool(field.extra.get("is_text"))
        if not isinstance(raw, str) or not raw:
            self.add(path, "must be text, not empty")
        elif key == field.key:
            if self._may_hold_secrets(path):
                return SecretSource("inline", "", path=where, is_text=is_text, inline=Secret(raw))
            self.add(path, *self._exposed("the secret"))
        elif key.endswith("_env"):
            if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", raw) and not _looks_like_secret(raw):
                return SecretSource("env", raw, path=where, is_text=is_text, environ=self._environ)
            self.add(path, "is not the name of an environment variable")
        elif _looks_like_secret(raw) or not raw.isprintable():
            self.add(
                path,
                "is not the name of a file",
                f"the secret itself goes into {field.key}, or better a file",
            )
        else:
            return self._secret_file(self._path(raw, path), where, is_text=is_text)
        return None

    def _secret_file(self, file: Path, where: str, *, is_text: bool) -> SecretSource:
        """The file, or where we may not read it, systemd's copy of it: a credential of the same name."""
        if not os.access(file, os.R_OK) and (found := find_credential(self._environ, [file.name])):
            return SecretSource("credential", found, path=where, is_text=is_text)
        return SecretSource("file", str(file), path=where, is_text=is_text)

    def _found_secret(self, field: Field, path: str, credential: str) -> SecretSource | None:
        names = [f"{credential}.{ending}" for ending in (field.key.replace("_", "-"), *field.extra.get("aliases", ()))]
        is_text = bool(field.extra.get("is_text"))
        if credential and (found := find_credential(self._environ, names)):
            return SecretSource("credential", found, path=_join(path, field.key), is_text=is_text)
        if not field.is_required:
            return None
        hint = f"give {field.key}_file or {field.key}_env, or a systemd credential {names[-1]}"
        where = self.variable(path) or path
        return SecretSource("missing", "", path=_join(where, field.key), is_text=is_text, hint=hint)


def find_credential(environ: Mapping[str, str], names: Iterable[str]) -> str | None:
    """The first of these files that systemd left in $CREDENTIALS_DIRECTORY."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    files = (os.path.join(directory, name) for name in names)  # noqa: PTH118 - text in, text out
    return next((file for file in files if os.path.isfile(file)), None)  # noqa: PTH113 - never raises


def _looks_like_secret(text: str) -> bool:
    """A token put where the name of a file or variable belongs; it must not be repeated in a message."""
    return text.startswith("eyJ") or (len(text) > 80 and "/" not in text)


def _name_of(item: object) -> str:
    name = item.get("name") if isinstance(item, dict) else None
    return name if isinstance(name, str) and checks.is_name(name) else ""


def _join(path: str, key: str) -> str:
    """A path one key further; a key that is not bare is quoted, so that it cannot pass for something else."""
    key = key if checks.is_name(key) and "." not in key else show(key)
    return f"{path}.{key}" if path else key
