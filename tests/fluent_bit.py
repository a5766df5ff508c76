"""Reads the configurations of fluent-bit/ in both syntaxes into the same structure.

It is stricter than Fluent Bit on purpose: these files must all be written in the same way. It shares no code with `check
--fluent-bit`, so that a mistake there does not hide one here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Pipeline(NamedTuple):
    """A configuration in either syntax: keys in lower case, values as text."""

    service: dict[str, str]
    parsers: list[dict[str, str]]
    inputs: list[dict[str, str]]
    outputs: list[dict[str, str]]


def classic_sections(path: Path) -> list[tuple[str, dict[str, str]]]:
    """The sections of a classic file, in order: `[NAME]`, then indented `Key  Value`. A section has each key once."""
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
    """The values of YAML as classic files spell them: true is `on`."""
    return {key: ("on" if value else "off") if isinstance(value, bool) else str(value) for key, value in keys.items()}


def alike(pipeline: Pipeline) -> Pipeline:
    """The pipeline with one spelling for each value, and without the parsers that it does not use."""
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


# What Fluent Bit 5.1.1 refuses: a file of fluent-bit/, the change to it, and words of the message of `check`.
# `--dry-run` finds these ...
REFUSED = [
    (
        "push.conf",
        "    Name              http\n    # Everyone",
        "    Name htp\n    # Everyone",
        ("htp", "set Name http"),
    ),
    ("push.conf", "Name              http\n    Match", "Name lokki\n    Match", ("lokki", "set Name loki")),
    ("push.conf", "    Name              http\n    Match", "    Match", ("has no Name",)),
    ("push.conf", "    Host  ", "    Hosst  ", ("Hosst", "write host")),
    ("push.conf", "    Buffer_Max_Size ", "    Bufer_Max_Size ", ("Bufer_Max_Size", "write buffer_max_size")),
    ("push.conf", "    URI ", "    Quite_Unheard_Of x\n    URI ", ("Quite_Unheard_Of",)),
    ("push.conf", "    Port              443", "Port 443", ("indented", "column")),
    ("push.conf", "    Flush                      1", "Flush 1", ("the key Flush is not indented",)),
    ("push.conf", "    Port              443", "      Port 443", ("indented in another way",)),
    ("push.conf", "    Port              443", "\tPort 443", ("indented in another way",)),
    ("push.conf", "    Port              443", "  # a comment\n    Port 443", ("indented in another way",)),
    ("push.conf", "    Port              443", "  \n    Port 443", ("indented in another way",)),
    ("push.conf", "    Port              443", "    Port\t443", ("has no value",)),
    ("push.conf", "    Port              443", "    Port", ("'Port' has no value",)),
    ("push.conf", "    URI               /activityLog", "    URI /activityLog\n    uri /a", ("2 times",)),
    ("push.conf", "[OUTPUT]", "[OUTPUT", ("no `]`",)),
    ("push.conf", "[OUTPUT]", "    [OUTPUT]", ("a section is indented",)),
    ("push.conf", "[SERVICE]", "[PARSER]\n    Name x\n    Format json\n[SERVICE]", ("main file", "Parsers_File")),
    ("push.conf", "storage.type      filesystem", "storage.type      disk", ("disk is none of filesystem",)),
    ("push.conf", "Log_Level                  info", "Log_Level loud", ("loud is none of",)),
    ("logging-service.conf", "Threaded          On", "Threaded 1", ("1 is neither on nor off",)),
    ("logging-service.conf", "Parsers_File               parsers.conf", "Parsers_File gone.conf", ("gone.conf",)),
    ("logging-service.conf", "Name              exec", "Name exce", ("exce", "set Name exec")),
    ("logging-service.conf", "    Command  ", "    Comand  ", ("Comand", "write command")),
]
REFUSED_YAML = [
    ("push.yaml", "name: http              # no", "name: htp              # no", ("htp", "set Name http")),
    ("push.yaml", "      host:", "      hosst:", ("hosst", "write host")),
    ("push.yaml", "  inputs:", "  input:", ("input", "write inputs")),
    ("push.yaml", "pipeline:", "pipline:", ("pipline", "write pipeline")),
    ("push.yaml", "      compress: gzip", "      format: json\n      uri: [/a, /b]", ("2 times",)),
    ("push.yaml", "      port: 9880", "      port: 9880\n      tag:", ("tag has no value",)),
    ("logging-service.yaml", "format: json\n    time_key", "format: jsn\n    time_key", ("jsn is none of",)),
    ("push.yaml", "  grace: 30", "  storage: {metrics: on}", ("a table storage", "storage.KEY")),
    (
        "push.yaml",
        "  inputs:\n    - name: http              #",
        "  inputs:\n      name: http              #",
        ("no list", "`- `"),
    ),
    ("logging-service.yaml", "threaded: on", "threaded: 1", ("1 is neither on nor off",)),
]
# ... and it finds these only when it starts.
REFUSED_AT_START = [
    ("push.conf", "compress          gzip", "compress gz", ("gz is none of gzip, snappy, zstd",)),
    ("push.conf", "compress          gzip", "http_method get", ("get is none of",)),
    ("push.conf", "compress          gzip", "allow_duplicated_headers 1", ("is neither on nor off",)),
    ("push.conf", "    storage.path               /var/lib/fluent-bit/ionos\n", "", ("needs storage.path",)),
    ("push.conf", "storage.sync               full", "storage.sync none", ("none is none of normal, full",)),
    ("logging-service.conf", "Buf_Size          2M", "Buf_Size 2MiB", ("2MiB is not a size",)),
    ("logging-service.conf", "Buf_Size          2M", "Buf_Size 2 M", ("2 M is not a size",)),
    ("logging-service.conf", "Buf_Size          2M", "Buf_Size False", ("Buf_Size False loses",)),
    ("logging-service.conf", "Buf_Size          2M", "Oneshot 1\n    Buf_Size 2M", ("is neither on nor off",)),
]

# Unusual configurations that it accepts.
TAKEN = [
    ("push.conf", "    Name              http\n    # Everyone", "    name HTTP\n    # Everyone"),
    ("push.conf", "[INPUT]", "[inputs] # ours"),
    ("push.conf", "[SERVICE]", "\r\n[SERVICE]\r"),
    ("push.conf", "Port              443", "Port ${PORT}\n    net.keepalive off\n    Workers 2\n    header A b"),
    ("push.conf", "Port              443", "Port 443\n    Active true\n    storage.total_limit_size off"),
    ("push.conf", "Buffer_Max_Size   4M", "Buffer_Max_Size 1.5mb\n    http_server.max_connections 5"),
    ("push.conf", "[SERVICE]", "@SET sum=off\n[SERVICE]"),
    (
        "push.conf",
        "[OUTPUT]",
        "[FILTER]\n    Name modify\n    Match *\n    Add a b\n    Add c d\n    Condition x y z\n[OUTPUT]",
    ),
    ("push.yaml", "buffer_max_size", "bufferMaxSize"),
    ("push.yaml", "header: APIKEY ${IONOS_LOGGING_KEY}", 'header: ["APIKEY ${IONOS_LOGGING_KEY}", A b]'),
    ("push.yaml", "compress: gzip", "compress:"),
    ("push.yaml", "port: 9880", "port: 9880\n      threaded: yes"),
]
