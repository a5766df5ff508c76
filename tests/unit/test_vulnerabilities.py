"""The judgement of the outputs of pip-audit. The outputs are real ones, of version 2.10."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vulnerabilities import ask, judge, main

SOUND = {"name": "requests", "version": "2.34.2", "vulns": []}
FAULTY = {
    "name": "urllib3",
    "version": "1.0",
    "vulns": [
        {"id": "PYSEC-1", "fix_versions": ["2.0", "1.1"], "aliases": ["CVE-1"], "description": "bad"},
        {"id": "PYSEC-2", "fix_versions": [], "aliases": [], "description": "worse"},
    ],
}
UNKNOWN = {"name": "rich", "skip_reason": "Dependency not found on PyPI and could not be audited: rich (15.0.0)"}
NOT_CHECKED = "SKIPPED: NOT CHECKED whether the lock has known vulnerabilities: "


def answer(*packages: dict) -> str:
    return json.dumps({"dependencies": list(packages), "fixes": []})


def test_packages_without_a_vulnerability_pass():
    assert judge(answer(SOUND), "No known vulnerabilities found\n") == (False, ("none known in 1 packages",))


def test_each_vulnerability_is_told_and_is_a_failure():
    assert judge(answer(SOUND, FAULTY), "Found 2 known vulnerabilities in 1 package\n") == (
        True,
        ("urllib3 1.0: PYSEC-1, mended in 2.0, 1.1", "urllib3 1.0: PYSEC-2, mended in no version"),
    )


def test_an_index_that_knows_nothing_has_checked_nothing():
    # Here pip-audit exits with 0 and "No known vulnerabilities found".
    verdict = judge(answer(UNKNOWN, UNKNOWN), "No known vulnerabilities found\n")
    assert verdict == (False, (f"{NOT_CHECKED}the index knows none of the 2 packages",))


def test_what_the_index_does_not_know_is_named_beside_the_rest():
    unknown = f"{NOT_CHECKED}the index does not know rich"
    assert judge(answer(SOUND, UNKNOWN), "") == (False, ("none known in 1 packages", unknown))
    is_failed, lines = judge(answer(FAULTY, UNKNOWN), "")
    assert is_failed
    assert lines[-1] == unknown


@pytest.mark.parametrize(
    "last_line",
    [
        "requests.exceptions.ProxyError: HTTPSConnectionPool(host='index', port=443): Max retries exceeded",
        "requests.exceptions.ConnectionError: ('Connection aborted.', ConnectionResetError(104, 'reset'))",
        "requests.exceptions.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
        "pip_audit._service.interface.ServiceError",
        "ERROR:pip_audit._cli:Could not connect to PyPI's vulnerability feed",
        "ERROR:pip_audit._cli:PyPI is not redirecting properly",
    ],
)
def test_no_connection_is_told_and_is_no_failure(last_line: str):
    stderr = f"Traceback (most recent call last):\n  ...\n{last_line}\n"
    assert judge("", stderr) == (False, (f"{NOT_CHECKED}the index cannot be reached",))


def test_any_other_failure_is_one():
    stderr = "ERROR:pip_audit._cli:requirement file lock contains invalid specifier at line 1\n"
    is_failed, lines = judge("", stderr)
    assert is_failed
    assert lines == ("pip-audit failed:", stderr.strip())


# The program itself


def lock(directory: Path, text: str) -> Path:
    file = directory / "requirements.lock"
    file.write_text(text)
    return file


def test_pip_audit_without_a_network_is_reported_as_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path))
    assert main(lock(tmp_path, f"requests==2.32.0 --hash=sha256:{'0' * 64}\n")) == 0
    assert capsys.readouterr().out == f"vulnerabilities: {NOT_CHECKED}the index cannot be reached\n"


def test_a_lock_that_is_none_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(lock(tmp_path, "requests==\n")) == 1
    assert "invalid specifier" in capsys.readouterr().out


def test_an_index_that_hangs_is_given_up(tmp_path: Path):
    is_failed, (line,) = ask(lock(tmp_path, ""), deadline_seconds=0.01)
    assert not is_failed
    assert line == f"{NOT_CHECKED}the index did not answer within 0.01 s"
