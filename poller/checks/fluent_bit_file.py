"""Reads a Fluent Bit configuration, classic or YAML, into sections. Checks the syntax, not the values.

Source: docs/facts.md, "Fluent Bit", and its manual's pages on both formats.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from poller.config.installed import needed
from poller.core.errors import ConfigError

_MAX_DEPTH = 8
_MAX_BYTES = 1024 * 1024
_MAX_NESTING = 50  # of lists and tables in YAML; Fluent Bit itself needs about eight
_PARTS = ("inputs", "filters", "outputs")
_TOP = (
    *("service", "pipeline", "parsers", "multiline_parsers", "includes", "env", "customs", "plugins"),
    *("stream_processor", "upstream_servers"),
)
_VARIABLE = re.compile(r"\$\{([^}]+)\}")
# Fluent Bit's units are powers of 1000.
_SIZE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


class Section(NamedTuple):
    """A section such as `[INPUT]`: `kind` in lower case, keys in lower case, each with its values as text, in order."""

    kind: str
    keys: Mapping[str, list[str]]
    names: Mapping[str, str] = {}
    """The keys as they are spelled in the file."""
    path: Path = Path()

    def get(self, key: str, default: str = "") -> str:
        """The last value of a key."""
        return (self.keys.get(key.lower()) or [default])[-1]

    def is_on(self, key: str) -> bool:
        """Whether Fluent Bit reads the value as on; `1` is not on."""
        return self.get(key).lower() in ("on", "true", "yes")

    def spelled(self, key: str) -> str:
        return self.names.get(key, key)

    @property
    def title(self) -> str:
        """The section's name for messages."""
        return f"[{self.kind.upper()}] {self.get('name')}".strip()


def read_sections(path: Path) -> list[Section]:
    """All sections of a configuration, its includes, and the parser files that it names, with its own variables filled in.

    Raises: ConfigError if a file is missing, or not in the format of its name: then Fluent Bit does not start either.
    """
    variables: dict[str, str] = {}
    sections = _read(path, path.parent, 0, variables)
    for service in [section for section in sections if section.kind == "service"]:
        for name in service.keys.get("parsers_file", []):
            if name not in ("parsers.conf", "parsers.yaml") or (path.parent / name).exists():
                sections += _read(path.parent / name, path.parent, 0, variables, what="Parsers_File")
    return [_filled(section, variables) for section in sections]


def _filled(section: Section, variables: Mapping[str, str]) -> Section:
    """The section with the configuration's own variables filled in. Environment variables stay as they are."""
    if not variables:
        return section
    keys = {
        name: [_VARIABLE.sub(lambda found: variables.get(found[1], found[0]), value) for value in values]
        for name, values in section.keys.items()
    }
    return section._replace(keys=keys)


def size_bytes(text: str) -> int | None:
    """Bytes of `32K`, `2M`, `1.5M`, `4096`; None if it is not a size; -1 for `false`, which turns a limit off."""
    if text.lower() == "false":
        return -1
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([kmg]?)b?", text.strip().lower())
    return int(float(found[1]) * _SIZE_UNITS[found[2]]) if found else None


def _read(path: Path, base: Path, depth: int, variables: dict[str, str], what: str = "") -> list[Section]:
    if depth > _MAX_DEPTH:
        raise ConfigError.of(str(path), "includes itself", "remove the @INCLUDE that includes it again")
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        named_there = f"correct {what}, or put the file there"
        hint = named_there if what else "check that the file exists and that this user can read it"
        raise ConfigError.of(str(path), f"cannot be read: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError.of(str(path), "is not UTF-8", "check that this is the right file") from error
    except ValueError as error:
        raise ConfigError.of(str(base), f"names a {what} with NUL in its name", "correct it") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError.of(str(path), "is larger than 1 MiB", "check that this is the right file")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml(path, text, base, depth, variables)
    return list(_read_classic(path, text, base, depth, variables))


# Classic


def _read_classic(path: Path, text: str, base: Path, depth: int, variables: dict[str, str]) -> Iterator[Section]:
    """Read as strictly as Fluent Bit: all keys of a file begin in the column of its first key, and a space ends a key."""
    if text.startswith("\ufeff"):
        what = "begins with a byte order mark (BOM), which Fluent Bit takes for a key"
        raise ConfigError.of(f"{path}:1", what, "save it as UTF-8 without BOM")
    section: Section | None = None
    indent = ""
    lines = ((f"{path}:{number}", line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1))
    for where, line in ((where, line) for where, line in lines if line and not line.startswith("#")):
        if line.startswith("@"):
            yield from _directive(line, base, depth, variables)
        elif line.startswith("["):
            if section is not None:
                yield section
            section = Section(_head(line, where), {}, {}, path)
        else:
            indent = indent or _indent(line, where)
            rest = _inner(line, indent, where)
            if rest and not rest.startswith("#"):
                _add(section, rest, where)
    if section is not None:
        yield section


def _directive(line: str, base: Path, depth: int, variables: dict[str, str]) -> Iterator[Section]:
    if line[:9].upper() == "@INCLUDE ":
        for included in _included(base, line[9:]):
            yield from _read(included, base, depth + 1, variables, what="@INCLUDE")
    elif setting := re.fullmatch(r"@SET\s+([^=\s]+)=(.*)", line, re.IGNORECASE):
        variables[setting[1]] = setting[2].strip()


def _head(line: str, where: str) -> str:
    """The kind of a section. The plural, as in YAML, is accepted, too."""
    name, bracket, _ = line[1:].partition("]")
    if not bracket:
        raise ConfigError.of(where, "a section has no `]`", "write it as [OUTPUT]")
    kind = name.lower()
    return kind.removesuffix("s") if kind in ("inputs", "filters", "outputs", "customs") else kind


def _indent(line: str, where: str) -> str:
    indent = line[: len(line) - len(line.lstrip(" \t"))]
    if not indent:
        key = line.split(" ", 1)[0]
        raise ConfigError.of(where, f"the key {key[:40]} is not indented", "put four spaces before every key")
    return indent


def _inner(line: str, indent: str, where: str) -> str:
    """The line without its indentation. Lines of a group are indented twice."""
    rest = line.removeprefix(indent)
    deeper = len(rest) - len(rest.lstrip(" \t"))
    if not line.startswith(indent) or (deeper and deeper != len(indent)):
        hint = (
            "begin all lines in the column of the file's first key, comments and blank lines, too; no tab among spaces"
        )
        raise ConfigError.of(where, "is indented in another way than the first key of the file", hint)
    return rest[deeper:]


def _add(section: Section | None, text: str, where: str) -> None:
    key, space, value = text.partition(" ")
    if section is None:
        hint = "check that it is a Fluent Bit configuration; YAML ends in .yaml"
        raise ConfigError.of(where, "stands in no section", hint)
    if key.startswith("["):
        raise ConfigError.of(where, "a section is indented", "begin it in the first column")
    if key.startswith("@"):
        raise ConfigError.of(where, f"{key} is indented", "begin it in the first column")
    if not space or not value.strip():
        raise ConfigError.of(where, f"the key {key[:40]!r} has no value", "put a space between key and value")
    assert isinstance(section.keys, dict)  # noqa: S101 - made above
    assert isinstance(section.names, dict)  # noqa: S101 - made above
    section.keys.setdefault(key.lower(), []).append(value.strip())
    section.names.setdefault(key.lower(), key)


def _included(base: Path, pattern: str) -> list[Path]:
    """The files of an include, which may be a pattern. A plain name is returned even if the file is missing."""
    if "\0" in pattern:
        raise ConfigError.of(str(base), "includes a file with NUL in its name", "correct it")
    found = sorted(glob.glob(str(base / pattern)))  # noqa: PTH207 - the pattern may be absolute
    return [Path(name) for name in found] or ([] if "*" in pattern else [base / pattern])


# YAML


def _load_yaml(path: Path, text: str) -> dict[Any, Any]:
    with needed("fluent-bit", str(path), "reading YAML needs PyYAML, which is not installed"):
        import yaml
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # unlike loading, this does not recurse
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_NESTING:
                raise ValueError(f"nested more than {_MAX_NESTING} deep")
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise ConfigError.of(str(path), f"is not valid YAML{where}", "check the indentation there") from error
    except ValueError as error:
        message = "holds a value that is too long, too deep, or no date"
        raise ConfigError.of(str(path), message, "check that this is the right file") from error
    if not isinstance(tree, dict):
        raise ConfigError.of(str(path), "is no Fluent Bit configuration", "it has `pipeline:` at its top")
    return tree


def _read_yaml(path: Path, text: str, base: Path, depth: int, variables: dict[str, str]) -> list[Section]:
    tree = _load_yaml(path, text)
    if isinstance(env := tree.get("env"), dict):
        variables.update({str(name): _text(value) for name, value in env.items()})
    sections = []
    for name in _list(tree.get("includes")):
        for included in _included(base, str(name)):
            sections += _read(included, base, depth + 1, variables, what="includes")
    sections += [_service(tree["service"], path)] if "service" in tree else []
    sections += [_section("parser", item, path) for item in _list(tree.get("parsers"))]
    sections += [_section("plugins", item, path) for item in _list(tree.get("plugins"))]
    pipeline = tree.get("pipeline")
    _check_names(tree, _TOP, path)
    if isinstance(pipeline, dict):
        _check_names(pipeline, _PARTS, path)
        for part in _PARTS:
            if isinstance(pipeline.get(part), dict):
                hint = "put `- ` before the first key of each, and indent the others"
                raise ConfigError.of(str(path), f"{part} is no list", hint)
            sections += [_section(part.removesuffix("s"), item, path) for item in _list(pipeline.get(part))]
    return sections


def _check_names(table: Mapping[Any, Any], known: Sequence[str], path: Path) -> None:
    """Raises: ConfigError if a name is almost a known one: Fluent Bit does not start with it."""
    for name in table:
        if isinstance(name, str) and name not in known and (near := get_close_matches(name, known, 1, 0.8)):
            raise ConfigError.of(str(path), f"Fluent Bit does not know {name}", f"write {near[0]}")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _service(item: Any, path: Path) -> Section:
    """Raises: ConfigError if it holds a table, such as `storage: {path: ...}`: Fluent Bit does not start with one."""
    for key, value in item.items() if isinstance(item, dict) else ():
        if isinstance(value, dict) and key != "telemetry":
            hint = f"write each key of it as {str(key)[:40]}.KEY"
            raise ConfigError.of(str(path), f"service has a table {str(key)[:40]}", hint)
    return _section("service", item, path)


def _section(kind: str, item: Any, path: Path) -> Section:
    keys = item if isinstance(item, dict) else {}
    names = {_snake(str(key)): str(key) for key in keys}
    return Section(
        kind, {_snake(str(key)): [_text(one) for one in _list(value)] for key, value in keys.items()}, names, path
    )


def _snake(key: str) -> str:
    """The key in snake case: `bufSize` is `buf_size`, only in YAML."""
    if not key[:1].islower() or "_" in key:
        return key.lower()
    return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", key)


def _text(value: Any) -> str:
    """A plain value as text; "" for a table or list: no check uses it, and with aliases it may be endless."""
    if isinstance(value, dict | list):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
