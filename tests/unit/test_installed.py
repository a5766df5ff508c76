"""Hints about what to install: they match how this program was installed."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest

from poller.config import installed
from poller.config.installed import how_to_add, source


class Distribution(NamedTuple):
    """pip's record of where it took a package from (PEP 610)."""

    told: str | None

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.told


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(installed, "source", source.__wrapped__)


def taken_from(monkeypatch: pytest.MonkeyPatch, url: str, **more: object) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(json.dumps({"url": url, **more})))


def test_from_an_index_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(None))
    assert how_to_add("kafka") == "pip install 'ionos-poller[kafka]'"


def test_from_a_checkout_or_a_file_it_is_that_while_it_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkout = tmp_path / "a checkout"
    taken_from(monkeypatch, f"file://{tmp_path}/a%20checkout", dir_info={})
    assert how_to_add("kafka") == "pip install 'ionos-poller[kafka]'"
    checkout.mkdir()
    assert how_to_add("kafka") == f"pip install '{checkout}[kafka]'"
    taken_from(monkeypatch, f"file://{tmp_path}/a%20checkout", dir_info={"editable": True})
    assert how_to_add("kafka") == "pip install 'ionos-poller[kafka]'"
    taken_from(monkeypatch, "https://example.org/ionos_poller.whl", archive_info={})
    assert how_to_add("kafka") == "pip install 'ionos-poller[kafka]'"


def test_without_a_record_of_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert how_to_add("otlp") == "pip install 'ionos-poller[otlp]'"


@pytest.mark.parametrize(
    ("mark", "command"),
    [
        ("pipx_metadata.json", "pipx runpip ionos-poller install '{source}[archive]'"),
        ("uv-receipt.toml", "uv pip install --python {prefix} '{source}[archive]'"),
    ],
)
def test_pipx_and_uv_have_a_way_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mark: str, command: str
) -> None:
    taken_from(monkeypatch, f"file://{tmp_path}", dir_info={})
    (tmp_path / mark).touch()
    assert how_to_add("archive") == command.format(source=tmp_path, prefix=tmp_path)
