"""`archive keygen` as a command: which names are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.in_process import run_here


def command(where: Path, *args: str) -> tuple[int, list[str], str]:
    code, output, errors = run_here("archive", *args, cwd=where, env={})
    return code, output.decode().splitlines(), errors.decode()


@pytest.mark.parametrize("name", ["x.pub", "X.PUB", "a.b.Pub", "sub/x.pub", ".", "..", "sub/.."])
def test_a_private_key_gets_no_name_that_its_public_key_would_take(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    code, output, errors = command(tmp_path, "keygen", name)
    assert (code, output) == (2, [])
    assert "is no name for a private key (name the file of the private key, such as evidence.key" in errors
    assert [path.name for path in tmp_path.rglob("*")] == ["sub"]


def test_where_one_of_two_keys_cannot_be_written_neither_is(tmp_path: Path) -> None:
    code, _, errors = command(tmp_path, "keygen", f"{'x' * 243}.k")
    assert (code, "cannot be written" in errors, list(tmp_path.iterdir())) == (2, True, [])
    assert command(tmp_path, "keygen", "evidence.key")[0] == 0
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "evidence.key": 0o600,
        "evidence.pub": 0o644,
    }
