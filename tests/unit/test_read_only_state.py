"""A state on a read-only file system can be read: `status` of a backup, or in a container with read access only."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poller.store.sqlite import State
from poller.store.sqlite.overview import overview_of
from tests.states import enrolled


def test_a_state_that_was_closed_is_read_without_a_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrolled(State.open(tmp_path, "run")).close()
    before = sorted(tmp_path.iterdir())
    made: list[list[Path]] = []
    real = os.statvfs
    read_only: Any = lambda path: SimpleNamespace(f_flag=real(path).f_flag | os.ST_RDONLY)  # noqa: E731
    monkeypatch.setattr(os, "statvfs", read_only)
    from poller.store.sqlite import overview

    read = overview.read_overview
    monkeypatch.setattr(
        overview, "read_overview", lambda connection: (read(connection), made.append(sorted(tmp_path.iterdir())))[0]
    )
    assert [row.contract for row in overview_of(tmp_path / "run.db").contracts] == ["1"]
    assert made == [before]


def test_what_lies_in_the_log_of_a_state_that_is_in_use_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = enrolled(State.open(tmp_path, "run"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("run.db", "run.db-wal"):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    state.close()
    real = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=real(path).f_flag | os.ST_RDONLY))
    assert [row.contract for row in overview_of(copy / "run.db").contracts] == ["1"]
