"""TAB in real shells: commands, options, and the existing sinks and contracts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.debian import program
from tests.integration.fetching import Bench, Starter
from tests.support import clean_environment, wait_until
from tests.terminal import Terminal

CONFIG = """
[[sinks]]
name = "archive"
type = "file"
path = "archive.ndjson"

[[sinks]]
name = "analytics"
type = "stdout"
"""
# The text before TAB, and the text after it.
CASES = [
    ("ionos-poller statu", "ionos-poller status"),
    ("ionos-poller dead-letters pu", "ionos-poller dead-letters purge"),
    ("ionos-poller fetch --expl", "ionos-poller fetch --explain-filter"),
    ("ionos-poller backfill --sink ar", "ionos-poller backfill --sink archive"),
    ("ionos-poller --config here.toml backfill --sink he", "ionos-poller --config here.toml backfill --sink here"),
    ("ionos-poller audit --contract 3", "ionos-poller audit --contract 31960001"),
    ("ionos-poller dead-letters list --use f", "ionos-poller dead-letters list --use fetch"),
]
START = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(ionos-poller completion bash)"'),
    "zsh": (["-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(ionos-poller completion zsh)"'),
}


@pytest.fixture
def place(bench: Starter) -> Bench:
    """A directory with two configurations, and a state with one contract."""
    made = bench(contracts=1, events=1)
    (made.directory / "ionos-poller.toml").write_text(CONFIG)
    (made.directory / "here.toml").write_text(CONFIG.replace("archive", "here"))
    assert made.fetch("--since", "1h").code == 0
    return made


def environment() -> dict[str, str]:
    """An environment in which `ionos-poller` is the command that is installed beside this interpreter."""
    return clean_environment({"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})


def test_a_name_that_a_shell_would_have_to_quote_is_not_offered(place: Bench) -> None:
    (place.state_dir / "f; touch x.db").write_bytes((place.state_dir / "fetch.db").read_bytes())
    asked = {
        "_IONOS_POLLER_COMPLETE": "bash_complete",
        "COMP_WORDS": "ionos-poller dead-letters list --use ",
        "COMP_CWORD": "4",
    }
    offered = [line.split(b",")[1] for line in place.run(env=asked).lines]
    assert offered == [b"fetch"]


@pytest.mark.parametrize("shell", [*START])
def test_tab_completes(shell: str, place: Bench) -> None:
    path = program(shell, shell, f"completion in {shell}")
    options, preparation = START[shell]
    terminal = Terminal([path, *options], place.directory, environment() | {"PS1": "> ", "HOME": str(place.directory)})
    try:
        terminal.type(f"{preparation}; echo pre''pared\n")
        wait_until(lambda: "prepared" in terminal.shown, what="the script is read")
        for number, (typed, expected) in enumerate(CASES):
            terminal.type(f"{typed}\t")
            wait_until(lambda expected=expected: f"{expected} " in terminal.shown, what=f"{expected}: {terminal.shown}")
            terminal.type(f"\x15echo do''ne{number}\n")  # Ctrl-U: the line is not run
            wait_until(lambda number=number: f"\ndone{number}" in terminal.shown, what=terminal.shown)
        terminal.type("exit\n")
    finally:
        terminal.wait()


def test_tab_completes_in_fish(place: Bench) -> None:
    path = program("fish", "fish", "completion in fish")
    for typed, expected in CASES:
        script = f"ionos-poller completion fish | source; complete -C '{typed}'"
        done = subprocess.run(
            [path, "--no-config", "-c", script],
            cwd=place.directory,
            env=environment() | {"HOME": str(place.directory)},
            capture_output=True,
            encoding="utf-8",
            timeout=30,
            check=False,
        )
        assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [expected.split()[-1]], done
        assert done.stderr == ""


def test_where_nothing_is_right_nothing_is_offered_and_nothing_said(tmp_path: Path) -> None:
    (tmp_path / "ionos-poller.toml").write_text("[nonsense")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "run.db").write_text("nonsense")
    asked = {"_IONOS_POLLER_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    for words in ("ionos-poller backfill --sink ", "ionos-poller audit --contract ", "ionos-poller sinks forget "):
        done = subprocess.run(
            ["ionos-poller"],
            cwd=tmp_path,
            env=environment() | asked | {"COMP_WORDS": words},
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, b"", b""), words
