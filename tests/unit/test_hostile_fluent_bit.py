"""An invalid or malicious Fluent Bit configuration is quickly reported as one problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from poller.checks.fluent_bit_file import read_sections
from poller.core.errors import ConfigError

DIGITS = "9" * 5000


def laughs(count: int) -> str:
    """Aliases of aliases: expanded, about nine to the power of `count` words."""
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, count)]
    return "\n".join([*lines, f"pipeline: {{inputs: [{{name: *a{count - 1}, command: *a{count - 1}}}]}}"])


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("deep.yaml", b"[" * 3000, "too deep"),
        ("deep-block.yaml", b"- " * 51 + b"x", "too deep"),
        ("deep-tables.yaml", b"{a: " * 51 + b"x" + b"}" * 51, "too deep"),
        ("date.yaml", b"pipeline: {inputs: [{name: 2001-99-99}]}", "no date"),
        ("digits.yaml", f"pipeline: {{inputs: [{{name: {DIGITS}}}]}}".encode(), "too long"),
        ("command.yaml", b"pipeline: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("bytes.conf", bytes(range(256)), "not UTF-8"),
        ("large.conf", b"# comment\n" * 110_000, "larger than 1 MiB"),
        ("include.conf", b"@INCLUDE a\0b\n", "NUL"),
        ("include.yaml", b'includes: ["a\\0b"]', "NUL"),
        ("parsers.conf", b"[SERVICE]\n Parsers_File a\0b\n", "NUL"),
        ("loop.conf", b"@INCLUDE loop*.conf\n@INCLUDE loop.conf\n", "includes itself"),
        ("loop.yaml", b"includes: [loop.yaml, loop.yaml]", "includes itself"),
    ],
)
def test_what_is_no_configuration_is_told_as_one_problem(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=part) as caught:
        read_sections(tmp_path / name)
    (problem,) = caught.value.problems
    assert problem.hint


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        read_sections(Path("/dev/zero"))


def test_aliases_of_aliases_are_not_written_out(tmp_path: Path) -> None:
    (tmp_path / "laughs.yaml").write_text(laughs(40))
    (section,) = read_sections(tmp_path / "laughs.yaml")
    assert set(section.keys["name"]) == {""}


def test_an_alias_of_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "self.yaml").write_text("pipeline: &x\n  inputs: [*x]\n  name: *x\n")
    (section,) = read_sections(tmp_path / "self.yaml")
    assert section.kind == "input"
