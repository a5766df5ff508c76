"""Reads the configurations of fluent-bit/ into one shape, whichever of the two syntaxes they are in.

Stricter than Fluent Bit, on purpose: what is not written as these files are is a mistake in them. Independent of what `check
--fluent-bit` reads with, so that a mistake there does not hide one here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Pipeline(NamedTuple):
    """A configuration, whichever syntax it was written in: keys in lower case, values as text."""

    service: dict[str, str]
    parsers: list[dict[str, str]]
    inputs: list[dict[str, str]]
    outputs: list[dict[str, str]]


def classic_sections(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The sections of a classic file, in order: `[NAME]`, then indented `Key  Value`; a key once in each."""
    sections: list[tuple[str, dict[str, str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if header := re.fullmatch(r"\[([A-Z]+)]", line):
            sections.append((header[1].lower(), {}))
            continue
        entry = re.fullmatch(r" {4}(\S+) +(\S.*)", line)
        assert entry, f"{path.name}:{number}: neither section nor key: {line!r}"
        assert entry[1].lower() not in sections[-1][1], f"{path.name}:{number}: twice: {entry[1]}"
        sections[-1][1][entry[1].lower()] = entry[2]
    return sections


def read_classic(path: Path) -> Pipeline:
    sections = classic_sections(path)

    def of_kind(kind: str) -> list[dict[str, str]]:
        return [keys for name, keys in sections if name == kind]

    assert {name for name, _ in sections} <= {"service", "input", "output"}
    (service,) = of_kind("service")
    parsers: list[dict[str, str]] = []
    if "parsers_file" in service:
        found = classic_sections(path.parent / service.pop("parsers_file"))
        assert {name for name, _ in found} == {"parser"}
        parsers = [keys for _, keys in found]
    return Pipeline(service, parsers, of_kind("input"), of_kind("output"))


def read_yaml(path: Path) -> Pipeline:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(document) <= {"service", "parsers", "pipeline"}
    assert set(document["pipeline"]) == {"inputs", "outputs"}
    return Pipeline(
        _texts(document["service"]),
        [_texts(keys) for keys in document.get("parsers", [])],
        [_texts(keys) for keys in document["pipeline"]["inputs"]],
        [_texts(keys) for keys in document["pipeline"]["outputs"]],
    )


def _texts(keys: dict[str, Any]) -> dict[str, str]:
    """YAML's own types as classic files spell them: `on` is true there."""
    return {key: ("on" if value else "off") if isinstance(value, bool) else str(value) for key, value in keys.items()}


def alike(pipeline: Pipeline) -> Pipeline:
    """Without what two spellings of one value differ in, and without parsers that it does not use."""
    used = {keys.get("parser") for keys in pipeline.inputs}
    words = {"true": "on", "false": "off"}

    def plain(keys: dict[str, str]) -> dict[str, str]:
        return {key: words.get(value.lower(), value.lower()) for key, value in keys.items()}

    return Pipeline(
        plain(pipeline.service),
        [plain(keys) for keys in pipeline.parsers if keys["name"] in used],
        [plain(keys) for keys in pipeline.inputs],
        [plain(keys) for keys in pipeline.outputs],
    )


def size_bytes(size: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]?)", size).groups()  # type: ignore[union-attr]
    return int(number) * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[unit]
