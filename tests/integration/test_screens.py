"""The output of commands on terminals of two usual sizes: no line is wrapped, and short output fits the screen."""

from __future__ import annotations

import json
import re
import signal

import pytest
from rich.cells import cell_len

from tests.integration.fetching import FIRST, Bench, Starter
from tests.support import COMMAND, wait_until
from tests.terminal import COLOUR, Terminal, on_terminal

SIZES = [(80, 24), (120, 40)]


def lines_of(place: Bench, *args: str, columns: int, rows: int) -> list[str]:
    """The lines that a command shows. Checks that none is too wide."""
    terminal = on_terminal([*COMMAND, *args], place.directory, place.environment(), columns=columns, rows=rows)
    lines = "\n".join(terminal.painted).rstrip("\n").splitlines()
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


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_status_fits_the_screen_while_it_is_watched_whatever_is_wrong(bench: Starter, columns: int, rows: int) -> None:
    place = bench(events=20, contracts=30, forbidden=tuple(FIRST + number for number in range(25, 30)))
    assert place.fetch("--since", "2h").code == 1
    for name in ("a", "b"):
        assert place.run("backfill", "--contract", str(FIRST), "--from", "2h", "--output", f"{name}.ndjson").code == 0
    lines_of(place, "status", columns=columns, rows=rows)
    terminal = Terminal(
        [*COMMAND, "status", "--watch"], place.directory, place.environment(), columns=columns, rows=rows
    )
    wait_until(lambda: "more lines" in terminal.shown or "books:" in terminal.shown, what="a page")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 0
    screen = terminal.shown.rstrip().splitlines()
    assert len(screen) <= rows
    assert [line for line in screen if cell_len(line) > columns] == []
    assert any(line.startswith("fetch   not running") for line in screen)
    assert sum("failed" in line for line in screen) >= 2, "what is not well is seen first"


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_audit_backfill_and_check_fit_the_screen(bench: Starter, columns: int, rows: int) -> None:
    place = bench(events=300, span_seconds=7200)
    assert place.fetch("--since", "90m").code == 0
    audit = lines_of(place, "audit", "--from", "3h", columns=columns, rows=rows)
    assert audit[0].startswith("equal: 2 contracts")
    assert len(lines_of(place, "backfill", "--from", "3h", "--output", "a.ndjson", columns=columns, rows=rows)) < rows
    assert len(lines_of(place, "check", columns=columns, rows=rows)) < rows


@pytest.mark.parametrize(("columns", "rows"), SIZES)
def test_the_log_of_run_has_a_line_for_each_event_and_one_for_an_outage(
    bench: Starter, columns: int, rows: int
) -> None:
    place = bench(events=50)
    sink = '[[sinks]]\nname = "loki"\ntype = "loki"\nurl = "http://127.0.0.1:9"\nretry_max = "1s"\n'
    config = f'[poll]\ninterval = "1s"\ninitial_lookback = "2h"\n[http]\nlisten = ""\n{sink}'
    (place.directory / "ionos-poller.toml").write_text(config)
    terminal = Terminal([*COMMAND, "run"], place.directory, place.environment(), columns=columns, rows=rows)
    attempts = lambda: json.loads(place.run("status", "--json").lines[0])["uses"]["run"]["sinks"][0]["attempts"]  # noqa: E731
    wait_until(lambda: "batch.retry_scheduled" in terminal.shown, what="the sink fails")
    wait_until(lambda: attempts() >= 3, what="it fails again and again")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.wait() == 0
    lines = terminal.shown.splitlines()
    assert max(map(cell_len, lines)) <= min(columns, 100)
    assert all(line.startswith("20") and line[4] == "-" for line in lines), "no line goes on in a second one"
    assert sum("batch.retry_scheduled" in line for line in lines) == 1
    assert COLOUR.search(terminal.raw)


SINK = '[[sinks]]\nname = "a"\ntype = "file"\npath = "a.ndjson"\n'


@pytest.mark.parametrize(
    ("env", "unwanted"),
    [
        ({"TERM": "dumb"}, "\x1b"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, COLOUR),
    ],
    ids=["dumb", "NO_COLOR"],
)
def test_a_terminal_gets_no_colours_that_it_does_not_know_or_want(
    bench: Starter, env: dict[str, str], unwanted: str | re.Pattern[str]
) -> None:
    place = bench(events=20, span_seconds=600)
    (place.directory / "ionos-poller.toml").write_text(SINK)
    assert place.fetch("--since", "1h").code == 0
    commands = ["demo", "check", "tail --once --since 1h", "status", "sinks list --use fetch", "fetch --since x"]
    commands += ["backfill --from 1h --output a.ndjson", "fetch --explain-filter --since 1h"]
    for command in commands:
        shown = on_terminal([*COMMAND, *command.split()], place.directory, {**place.environment(), **env})
        assert shown.raw
        assert not re.search(unwanted, shown.raw), (command, shown.raw)
    run = Terminal([*COMMAND, "run"], place.directory, {**place.environment(), **env})
    wait_until(lambda: "poller.started" in run.raw or "window.collected" in run.raw, what="a line of the log")
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 0
    assert not re.search(unwanted, run.raw), run.raw


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_watch_goes_on_below_on_a_terminal_that_shows_nothing_in_place(bench: Starter, term: str) -> None:
    place = bench(events=1)
    assert place.fetch("--since", "1h").code == 0
    terminal = Terminal([*COMMAND, "status", "--watch"], place.directory, {**place.environment(), "TERM": term})
    wait_until(lambda: terminal.raw.count("fetch   not running") >= 2, what="it is shown twice")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 0
    assert "\x1b" not in terminal.raw
