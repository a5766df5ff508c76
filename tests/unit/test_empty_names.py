"""An empty name of a file or directory, as from an unset shell variable, is refused everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.in_process import run_here

CLI = Path(__file__).parents[2] / "poller" / "cli"
COMMANDS = [
    "--state-dir= config show",
    "--config= config show",
    "status --state-dir=",
    "fetch --adopt-state=",
    "backfill --from 1h --output=",
    "check --fluent-bit=",
    "dead-letters purge --export=",
    "archive keygen ''",
    "archive keygen --output=",
    "archive verify ''",
    "archive verify . --public-key=",
    "archive list ''",
    "archive restore ''",
    "archive restore . --output=",
    "archive rebuild-state ''",
    "state copy --from= --to x",
    "state copy --from x --to=",
    "simulate --write-config=",
]


def test_every_file_and_directory_of_the_command_line_is_of_the_type_that_refuses_an_empty_one() -> None:
    assert [file.name for file in CLI.glob("*.py") if "click.Path" in file.read_text()] == ["options.py"]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_one_is_refused_and_nothing_is_written(command: str, tmp_path: Path) -> None:
    code, output, errors = run_here(*(word.strip("'") for word in command.split()), cwd=tmp_path, env={})
    assert (code, output) == (2, b"")
    assert b": must not be empty (a variable of the shell may not be set)" in errors
    assert list(tmp_path.iterdir()) == []


LONG = "a" * 300


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("backfill --from 1h --output /", 2, "--output: / is a directory"),
        ("backfill --from 1h --output .", 2, "--output: . is a directory"),
        (f"archive list {LONG}", 2, "is no directory and no archive of the configuration"),
        (f"archive restore {LONG} --output -", 2, "is no directory and no archive of the configuration"),
        (f"setup --region de-txl --pipeline a --yes --config {LONG}", 2, "cannot be read: File name too long"),
        (f"simulate --port 0 --write-config {LONG}", 2, "File name too long"),
    ],
)
def test_a_name_that_no_file_can_have_is_told(command: str, code: int, words: str, tmp_path: Path) -> None:
    found, output, errors = run_here(*command.split(), cwd=tmp_path, env={})
    assert (found, output) == (code, b"")
    assert words in errors.decode()
    assert list(tmp_path.iterdir()) == []


def test_check_tells_what_it_can_of_a_state_directory_that_it_cannot_look_into(tmp_path: Path) -> None:
    code, output, errors = run_here(
        "check", "--offline", "--state-dir", LONG, cwd=tmp_path, env={"IONOS_API_TOKEN": "t"}
    )
    assert (code, errors) == (4, b"")
    assert b"fail  state" in output
    assert b"cannot be written: File name too long (choose another --state-dir" in output
    assert list(tmp_path.iterdir()) == []
