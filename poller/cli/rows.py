"""Entries as rows: in columns that fit a terminal, or whole for a pipe."""

from __future__ import annotations

import re

import click
from rich.cells import cell_len, set_cell_size

from poller.cli.messages import printable
from poller.core.mapping.rows import Row

_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F-]{22}")
_TIME, _RESULT = 8, 10
# Columns that share the rest of a terminal's width. The first widths fit 64 columns; each step is taken if there is room.
_LEAST = {"user": 8, "what": 11, "resource": 8}
_STEPS = (
    ("user", 14),
    ("what", 18),
    ("resource", 17),
    ("what", 20),
    ("resource", 21),
    ("user", 32),
    ("resource", 50),
    ("user", 60),
    ("what", 40),
)
_CONTRACT = 8
_PIPE = {"time": 24, "user": 32, "contract": 8, "what": 20, "resource": 50}
_EMPTY = "-"


def heading(width: int) -> str:
    """The names of the columns, for a terminal of this width."""
    widths = _widths(width, _CONTRACT)
    names = ("time", "user", "contract", "what", "resource", "result")
    return click.style(" ".join(_cell(name, size) for name, size in zip(names, widths, strict=True)).rstrip(), dim=True)


def line_for_terminal(row: Row, width: int) -> str:
    """A row in one line that fits the columns. A text too long for its column ends in `…`. The time has no date."""
    widths = _widths(width, max(_CONTRACT, len(row.contract)))
    resource = row.resource
    if cell_len(resource) > widths[4] and _UUID.fullmatch(row.resource_id):
        resource = f"{row.resource_type} {row.resource_id[:8]}".strip()  # enough to recognise it
    cells = (row.time[11:19], row.user, row.contract, row.what, resource, row.result)
    time, user, contract, what, resource, result = map(_cell, cells, widths)
    colour = "red" if row.has_failed else "green" if row.result.upper() == "DONE" else None
    styled = (click.style(time, dim=True), click.style(user, bold=True), contract, what, resource)
    return " ".join([*styled, click.style(result.rstrip(), fg=colour)])


def line_for_pipe(row: Row) -> str:
    """A complete row. Each column is wide enough for most values."""
    cells = (row.time, row.user, row.contract, row.what, row.resource)
    texts = [printable(text) or _EMPTY for text in cells]
    padded = [text + " " * (size - cell_len(text)) for text, size in zip(texts, _PIPE.values(), strict=True)]
    return "  ".join([*padded, printable(row.result) or _EMPTY])


def _widths(width: int, contract: int) -> tuple[int, ...]:
    sizes = dict(_LEAST)
    left = width - _TIME - contract - _RESULT - 5 - sum(sizes.values())
    for name, size in _STEPS:
        more = min(max(0, left), size - sizes[name])
        sizes[name] += more
        left -= more
    return (_TIME, sizes["user"], contract, sizes["what"], sizes["resource"], _RESULT)


def _cell(text: str, size: int) -> str:
    text = printable(text) or _EMPTY
    return set_cell_size(text if cell_len(text) <= size else set_cell_size(text, size - 1).rstrip() + "…", size)
