"""A process that cannot open more files reports that and what to do, in whichever library the error occurs."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from poller.cli import cli, run
from poller.core.errors import StateUnavailableError
from poller.store.sqlite.translation import as_passing
from poller.system.files import can_open_files

REMEDY = "raise the limit"


@pytest.fixture
def no_more_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", fail)


def test_while_files_can_be_opened_nothing_is_said_of_a_limit(tmp_path: Path) -> None:
    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    assert can_open_files()
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    assert as_passing(tmp_path / "run.db", error) is None


def test_a_state_that_cannot_be_opened_for_it_may_be_later(tmp_path: Path, no_more_files: None) -> None:
    assert not can_open_files()
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    found = as_passing(tmp_path / "run.db", error)
    assert isinstance(found, StateUnavailableError)
    assert "too many open files" in found.message
    assert REMEDY in found.hint


def test_a_command_that_ends_for_it_says_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/etc/hosts")

    monkeypatch.setattr(cli, "main", fail)
    assert run(["run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "too many open files" in line
    assert REMEDY in line
    assert "internal error" not in line
