"""The pages of the documentation, and the blocks in them: commands with their printed output, files, drawings."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from tests.support import TOP

PAGES = [
    TOP / "README.md",
    *sorted((TOP / "docs").glob("*.md")),
    *(TOP / room / "README.md" for room in ("fluent-bit", "grafana", "opensearch", "systemd")),
]

_BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"[$#] ")


class Block(NamedTuple):
    """The text between two fences, with its language and its heading."""

    heading: str
    language: str
    text: str
    line_number: int


class Shown(NamedTuple):
    """A command to type, and the lines that it prints according to the page. The page may show no lines."""

    command: str
    output: list[str]


def name_of(page: Path) -> str:
    return str(page.relative_to(TOP))


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        headings = re.findall(r"^##+ (.*)$", before, re.MULTILINE)
        found.append(
            Block(
                headings[-1] if headings else "",
                match["language"],
                textwrap.dedent(match["text"]),
                before.count("\n") + 1,
            )
        )
    return found


def commands(block: Block) -> list[Shown]:
    """The commands in a block of language `console`: the lines with a prompt. The lines below a command are its output."""
    shown: list[Shown] = []
    for line in block.text.splitlines():
        if _PROMPT.match(line):
            shown.append(Shown(_without_comment(line[2:]), []))
        elif line.strip():
            assert shown, f"output before any command: {line}"
            shown[-1].output.append(line)
    return shown


def _without_comment(command: str) -> str:
    return re.sub(r"\s+# .*$", "", command)


def differences(expected: list[str], actual: list[str]) -> list[str]:
    """The expected lines that were not printed. Numbers may differ. `...` stands for the rest of a line, or for other lines."""
    rest = [_shape(line) for line in actual]
    missing = []
    for line in expected:
        if line.strip() == "...":
            continue
        wanted = _shape(line.removesuffix("..."))
        place = next((n for n, got in enumerate(rest) if _is_alike(wanted, got, line.endswith("..."))), None)
        if place is None:
            missing.append(line)
        else:
            del rest[: place + 1]
    return missing


def _is_alike(wanted: str, got: str, is_cut: bool) -> bool:
    # Of a line that ends early, only the beginning is compared: the rest depends on the entry.
    return got.startswith(wanted[:24]) if is_cut else got == wanted


def _shape(line: str) -> str:
    line = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d[\d,.:TZ-]*", "0", line)
    line = re.sub(r"\b0 (bytes|KiB|MiB|s|min|h)\b", "0 unit", line)
    return " ".join(line.split())
