"""Replicas have the same fingerprint if their configurations treat entries in the same way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poller.config import Config, load
from poller.store.postgres.fingerprint import fingerprint


def of(tmp_path: Path, text: str, **environment: str) -> str:
    file = tmp_path / "ionos-poller.toml"
    file.write_text(f'state_dir = "{tmp_path}"\n{text}')
    return fingerprint(load(file, environment))


def test_it_is_short_and_the_same_wherever_it_is_made() -> None:
    made = fingerprint(Config())
    assert re.fullmatch("[0-9a-f]{12}", made)
    assert made == fingerprint(Config())


def test_what_a_machine_has_for_itself_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert of(tmp_path, "") == of(tmp_path / "other", '[http]\nlisten = "127.0.0.1:9999"\n')


def test_the_way_to_the_database_does_not_count(tmp_path: Path) -> None:
    # Replicas that reach it through proxies of their own passed for configured differently, and kept more than their share.
    one, other = (
        of(tmp_path, f'[state]\nurl = "postgresql://poller@127.0.0.1:{port}/a"\n', IONOS_POLLER_STATE__PASSWORD=word)
        for port, word in ((5432, "canary-1"), (6432, "canary-2"))
    )
    assert one == other


@pytest.mark.parametrize(
    "text",
    [
        '[state]\nlease = "16s"\n',
        '[poll]\ninterval = "2m"\n',
        "[api]\npage_size = 17\n",
        '[poll]\noverlap = "11m"\n',
        '[[sinks]]\nname = "out"\ntype = "stdout"\n',
    ],
)
def test_all_else_counts(tmp_path: Path, text: str) -> None:
    assert of(tmp_path, "") != of(tmp_path, text)


def test_another_secret_is_the_same_configuration(tmp_path: Path) -> None:
    one, other = (of(tmp_path, "", IONOS_API_TOKEN=token) for token in ("canary-1", "canary-2"))
    assert one == other
