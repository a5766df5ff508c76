"""The list of what the image installs: complete, valid, the same each time, and only with licences that a person has checked."""

from __future__ import annotations

import json
from email.message import Message
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from tests import sbom
from tests.support import TOP

LOCK = TOP / "requirements.lock"


def test_it_lists_what_the_lock_names_and_is_the_same_each_time(tmp_path: Path) -> None:
    assert sbom.main(LOCK, tmp_path / "1") == 0
    assert sbom.main(LOCK, tmp_path / "2") == 0
    (first,), (second,) = ((tmp_path / name).iterdir() for name in "12")
    assert first.read_bytes() == second.read_bytes()
    content = json.loads(first.read_text())
    schema = json.loads((resources.files("cyclonedx.schema") / "_res" / "bom-1.6.SNAPSHOT.schema.json").read_text())
    # Signatures and SPDX ids have schemas of their own; there is no signature, and every licence is an expression.
    for name in ("signature", "licenseChoice"):
        schema["definitions"][name] = {}
    jsonschema.Draft7Validator(schema).validate(content)
    names = {component["name"] for component in content["components"]}
    assert {"requests", "apscheduler", "msgspec", "boto3", "ionoscloud-logging"} <= names
    assert all(component["properties"] for component in content["components"])


def test_a_package_of_another_platform_is_left_out() -> None:
    text = (
        "a==1 ; sys_platform == 'win32' \\\n    --hash=sha256:"
        + "0" * 64
        + "\nb[x]==2 \\\n    --hash=sha256:"
        + "1" * 64
    )
    assert [package.name for package in sbom.read_lock(text)] == ["b"]


@pytest.mark.parametrize("told", ["AGPL-3.0-only", "", "Proprietary"])
def test_a_licence_that_nobody_has_looked_at_fails(told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Message()
    data["License"] = told
    assert sbom.licence_of("new-package", data) not in sbom.accepted()
    monkeypatch.setattr(sbom.metadata, "metadata", lambda name: data)
    monkeypatch.setattr(sbom.metadata, "version", lambda name: "1")
    lock = tmp_path / "lock"
    lock.write_text(f"new-package==1 \\\n    --hash=sha256:{'0' * 64}\n")
    assert sbom.main(lock, tmp_path) == 1
