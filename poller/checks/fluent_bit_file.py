"""Reads a Fluent Bit configuration, classic or YAML, into sections. Knows the syntax and no rule about what is good.

Source: docs/facts.md, "Fluent Bit", and its manual's pages on both formats.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from poller.errors import ConfigError, Problem

_MAX_DEPTH = 8
_MAX_BYTES = 1024 * 1024
# Fluent Bit's units are of 1000.
_SIZE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


class Section(NamedTuple):
    """`[INPUT]` and its like: `kind` in lower case, keys in lower case, each with its values as text, in order."""

    kind: str
    keys: Mapping[str, list[str]]

    def get(self, key: str, default: str = "") -> str:
        """The last value of a key."""
        return self.keys.get(key.lower(), [default])[-1]

    def is_on(self, key: str) -> bool:
        """As Fluent Bit reads it: `1` is not on."""
        return self.get(key).lower() in ("on", "true", "yes")

    @property
    def title(self) -> str:
        """How a person finds it."""
        return f"[{self.kind.upper()}] {self.get('name')}".strip()


def read_sections(path: Path) -> list[Section]:
    """All sections of a configuration with its includes, and of the parser files that it names.

    Raises: ConfigError when a file is missing or cannot be read as what its name says.
    """
    sections = _read(path, path.parent, 0)
    for service in [section for section in sections if section.kind == "service"]:
        for name in service.keys.get("parsers_file", []):
            if name not in ("parsers.conf", "parsers.yaml") or (path.parent / name).exists():
                sections += _read(path.parent / name, path.parent, 0, what="Parsers_File")
    return sections


def size_bytes(text: str) -> int | None:
    """Bytes of `32K`, `2M`, `4096`; None for what is no size, -1 for no limit."""
    if text.lower() == "false":
        return -1
    found = re.fullmatch(r"([0-9]{1,15})([kmg]?)b?", text.strip().lower())
    return int(found[1]) * _SIZE_UNITS[found[2]] if found else None


def _read(path: Path, base: Path, depth: int, what: str = "") -> list[Section]:
    if depth > _MAX_DEPTH:
        raise ConfigError([Problem(str(path), "includes itself", "take the @INCLUDE out that leads back")])
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode()
    except OSError as error:
        hint = f"correct {what}, or put the file there" if what else "does it exist, and may this user read it?"
        raise ConfigError([Problem(str(path), f"cannot be read: {error.strerror}", hint)]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(str(path), "is not UTF-8", "is it the right file?")]) from error
    except ValueError as error:
        raise ConfigError([Problem(str(base), f"names a {what} with NUL in its name", "correct it")]) from error
    if len(content) > _MAX_BYTES:
        raise ConfigError([Problem(str(path), "is larger than 1 MiB", "is it the right file?")])
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml(path, text, base, depth)
    return list(_read_classic(path, text, base, depth))


# Classic


def _read_classic(path: Path, text: str, base: Path, depth: int) -> Iterator[Section]:
    section: Section | None = None
    keys: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#") or stripped.upper().startswith("@SET"):
            continue
        if stripped.upper().startswith("@INCLUDE"):
            for included in _included(base, stripped.split(None, 1)[-1]):
                yield from _read(included, base, depth + 1, what="@INCLUDE")
        elif head := re.fullmatch(r"\[([A-Za-z_]+)\]", stripped):
            if section is not None:
                yield section
            keys = {}
            section = Section(head[1].lower(), keys)
        elif section is None:
            raise ConfigError(
                [
                    Problem(
                        f"{path}:{number}",
                        "stands in no section",
                        "is it a Fluent Bit configuration? YAML ends in .yaml",
                    )
                ]
            )
        else:
            key, *value = stripped.split(None, 1)
            keys.setdefault(key.lower(), []).append(value[0] if value else "")
    if section is not None:
        yield section


def _included(base: Path, pattern: str) -> list[Path]:
    """The files of an include, which may be a pattern; a plain name is given back even if it is missing."""
    if "\0" in pattern:
        raise ConfigError([Problem(str(base), "includes a file with NUL in its name", "correct it")])
    found = sorted(glob.glob(str(base / pattern)))  # noqa: PTH207 - the pattern may be absolute
    return [Path(name) for name in found] or ([] if "*" in pattern else [base / pattern])


# YAML


def _read_yaml(path: Path, text: str, base: Path, depth: int) -> list[Section]:
    try:
        import yaml
    except ImportError as error:
        hint = "pip install 'ionos-poller[fluent-bit]'"
        raise ConfigError([Problem(str(path), "reading YAML needs PyYAML, which is not installed", hint)]) from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise ConfigError([Problem(str(path), f"is not valid YAML{where}", "mind the indentation there")]) from error
    except (ValueError, RecursionError) as error:
        message = "holds a value that is too long, too deep, or no date"
        raise ConfigError([Problem(str(path), message, "is it the right file?")]) from error
    if not isinstance(tree, dict):
        raise ConfigError([Problem(str(path), "is no Fluent Bit configuration", "it has `pipeline:` at its top")])
    sections = []
    for name in _list(tree.get("includes")):
        for included in _included(base, str(name)):
            sections += _read(included, base, depth + 1, what="includes")
    sections += [_section("service", tree["service"])] if "service" in tree else []
    sections += [_section("parser", item) for item in _list(tree.get("parsers"))]
    pipeline = tree.get("pipeline")
    for kind in ("input", "filter", "output"):
        items = pipeline.get(f"{kind}s") if isinstance(pipeline, dict) else None
        sections += [_section(kind, item) for item in _list(items)]
    return sections


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _section(kind: str, item: Any) -> Section:
    keys = item if isinstance(item, dict) else {}
    return Section(kind, {str(key).lower(): [_text(one) for one in _list(value)] for key, value in keys.items()})


def _text(value: Any) -> str:
    """A plain value as text. Of a table or list nothing: it is none that we look at, and aliases may make it without end."""
    if isinstance(value, dict | list):
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
