"""Each command that checks the books reports an imbalance, also by its exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from poller.cli import run
from poller.store.overview import Overview
from poller.store.sqlite import State
from tests.fake_api import BEGAN, H, Log

CONFIG = """
[api]
token = "none-is-sent"
[[sinks]]
name = "out"
type = "stdout"
"""
BEFORE = "2027-01-15T00:00:00Z --to 2027-01-15T01:00:00Z"  # before collecting began: no difference
LINE = "out: new 7 is not delivered 5 + dead 0 + waiting 1"


@pytest.mark.parametrize(
    "command", ["status", "status --json", f"audit --from {BEFORE}", f"audit --json --from {BEFORE}"]
)
@pytest.mark.parametrize("code", [0, 1])
def test_an_imbalance_is_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, code: int
) -> None:
    state = State.open(tmp_path, "run")
    state.contracts.enrol(["1"], "default", BEGAN, BEGAN)
    state.close()
    (tmp_path / "ionos-poller.toml").write_text(CONFIG)
    log = Log("1")
    log.now = BEGAN + 24 * H
    monkeypatch.setattr("poller.cli.audit.activity_logs", lambda *_: {"default": log})
    monkeypatch.setattr("time.time", lambda: float(BEGAN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Overview, "imbalances", lambda overview: [LINE] * code)
    assert run(["--config", "ionos-poller.toml", "--state-dir", str(tmp_path), *command.split()]) == code
    said = "".join(capsys.readouterr())
    assert (LINE in said) == bool(code)
