"""`tail`: who did what, live, without a state."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.integration.fetching import FIRST, SECOND, Starter
from tests.support import COMMAND, wait_until
from tests.terminal import COLUMNS, Terminal


def test_a_terminal_shows_what_comes_in_rows_that_fit_until_it_is_interrupted(bench: Starter) -> None:
    place = bench(events=40, span_seconds=300)
    terminal = Terminal([*COMMAND, "tail"], place.directory, place.environment())
    wait_until(lambda: terminal.shown.count(f" {FIRST} ") + terminal.shown.count(f" {SECOND} ") == 80, what="80 rows")
    place.simulator.add_entries(FIRST, count=1)
    wait_until(lambda: terminal.shown.count(f" {FIRST} ") == 41, what="a new row")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 0
    assert [line for line in terminal.shown.splitlines() if len(line) > COLUMNS] == []
    assert terminal.shown.startswith("time     user ")
    assert not Path(place.state_dir).exists()


def test_a_pipe_and_a_machine_get_all_of_it_whole(bench: Starter) -> None:
    place = bench(events=20, span_seconds=300)
    run = place.run("tail", "--once", "--json", "--contract", str(SECOND))
    rows = [json.loads(line) for line in run.lines]
    assert run.code == 0
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    assert {row["contract"] for row in rows} == {str(SECOND)}
    entries = [json.loads(line) for line in place.oracle(SECOND)]
    assert [row["user"] for row in rows] == [
        entry.get("principal", {}).get("identity", {}).get("username", "") for entry in entries
    ]
    user = next(row["user"] for row in rows if row["user"])
    kind = rows[0]["type"]
    text = place.run("tail", "--once", "--user", user)
    assert text.lines
    assert all(user.encode() in line for line in text.lines)
    chosen = place.run("tail", "--once", "--json", "--contract", str(SECOND), "--type", f"{kind[:3]}*", "--type", "no")
    assert chosen.lines
    assert {json.loads(line)["type"][:3] for line in chosen.lines} == {kind[:3]}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251"])
def test_a_letter_that_the_output_does_not_know_is_written_by_its_number(bench: Starter, encoding: str) -> None:
    place = bench(events=200, span_seconds=300)
    whole = place.run("tail", "--once")
    run = place.run("tail", "--once", env={"PYTHONIOENCODING": encoding})
    assert (run.code, len(run.lines), run.told) == (0, len(whole.lines), whole.told)
    terminal = Terminal(
        [*COMMAND, "tail", "--once"], place.directory, {**place.environment(), "PYTHONIOENCODING": encoding}
    )
    assert terminal.wait() == 0


def test_what_cannot_be_read_is_told_and_the_exit_code_says_so(bench: Starter) -> None:
    place = bench(events=5, span_seconds=60, forbidden=(SECOND,))
    run = place.run("tail", "--once")
    assert run.code == 1
    assert len(run.lines) == 5
    assert [f"contract {SECOND}: " in line for line in run.told] == [True]
    refused = place.run("tail", env={"IONOS_API_TOKEN": "wrong"})
    assert (refused.code, refused.lines) == (3, [])
