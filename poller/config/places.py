"""The line of each key in a TOML file. Pure: text in, numbers out.

`tomllib` gives values without their lines. This module reads no values: it follows tables and keys, and skips strings,
comments and brackets. The text must be valid TOML.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

_PIECE = re.compile(
    r'"""(?:\\.|[^\\])*?"""+'  # a multi-line string may end in quotes of its own
    r"|'''.*?'''+"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[A-Za-z0-9_-]+"
    r"|.",
    re.DOTALL,
)


def places(text: str) -> dict[str, int]:
    """The line of each table, key and list element by its path, such as `poll.interval` and `sinks[0].labels.x`."""
    found: dict[str, int] = {}
    counts: Counter[str] = Counter()
    inside: list[tuple[str, int | None]] = []  # open lists and inline tables: path, and number of the element in a list
    line, table, key, here, is_key = 1, "", "", "", True  # `is_key`: before the `=`
    for match in _PIECE.finditer(text):
        piece = match[0]
        if piece == "\n" and not inside:
            if is_key and key.startswith("["):
                table = _table(key, counts)
                _note(table, line, found)
            key, is_key = "", True
        elif piece.isspace() or piece.startswith("#"):
            pass
        elif piece in ("]", "}") and inside:
            here, is_key = inside.pop()[0], False
        elif piece == "=" and is_key and not key.startswith("["):
            above = inside[-1][0] if inside else table
            here = f"{above}.{key}" if above else key
            _note(here, line, found)
            key, is_key = "", False
        elif is_key:
            key += piece[1:-1] if len(piece) > 1 and piece[0] in "\"'" else piece
        elif piece == "," and inside:
            path, number = inside.pop()
            is_key = number is None
            inside.append((path, None if number is None else number + 1))
            here = path if number is None else f"{path}[{number + 1}]"
        else:
            found.setdefault(here, line)
            if piece in ("[", "{"):
                is_key = piece == "{"
                inside.append((here, None if is_key else 0))
                here = here if is_key else f"{here}[0]"
        line += piece.count("\n")
    return found


def _note(path: str, line: int, found: dict[str, int]) -> None:
    """Note the line of a path, and of the tables around it: `[sinks.a]` is also the first line of `sinks`."""
    while path and path not in found:
        found[path] = line
        path = _around(path)


def _around(path: str) -> str:
    """The path without its last key or number; empty at the top."""
    return path[: max(path.rfind("."), path.rfind("["), 0)]


def _table(header: str, counts: Counter[str]) -> str:
    """The path of a table, from its header. Tables of a list are numbered, also inside a longer path."""
    is_list = header.startswith("[[")
    path = ""
    *above, last = header.strip("[]").split(".")
    for part in above:
        path = f"{path}.{part}" if path else part
        path = f"{path}[{counts[path] - 1}]" if counts[path] else path
    path = f"{path}.{last}" if path else last
    if is_list:
        counts[path] += 1
    return f"{path}[{counts[path] - 1}]" if is_list else path


def line_of(path: str, found: Mapping[str, int]) -> int | None:
    """The line of a path, or of the nearest key or table around it; None if there is none."""
    while path and path not in found:
        path = _around(path)
    return found.get(path)
