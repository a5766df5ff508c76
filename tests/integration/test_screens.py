"""What commands show on terminals of two usual sizes: no line is wrapped by the terminal, and what should fit the screen does."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from tests.integration.fetching import Bench, Starter
from tests.support import COMMAND
from tests.terminal import on_terminal

SIZES = [(80, 24), (120, 40)]


def lines_of(place: Bench, *args: str, columns: int, rows: int) -> list[str]:
    """What a command shows, once none of it is found to be too wide."""
    terminal = on_terminal([*COMMAND, *args], place.directory, place.environment(), columns=columns, rows=rows)
    lines = terminal.shown.rstrip("\n").splitlines()
    assert [line for line in lines if cell_len(line) > columns] == []
    assert lines
    return lines


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_the_demo_fits_the_screen_and_ends_with_rows(bench: Starter, columns: int, rows: int) -> None:
    lines = lines_of(bench(events=0), "demo", columns=columns, rows=rows)
    assert len(lines) < rows
    heading = next(number for number, line in enumerate(lines) if line.startswith("time "))
    found = lines[heading + 1 : heading + 6]
    assert all(row[2] == row[5] == ":" and " 3196000" in row for row in found), found
    assert "lost 0   repeated 0" in lines[-3]


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_tail_fits_the_screen(bench: Starter, columns: int, rows: int) -> None:
    place = bench(events=200, span_seconds=600)
    lines = lines_of(place, "tail", "--once", "--since", "1h", columns=columns, rows=rows)
    assert len(lines) >= 402
