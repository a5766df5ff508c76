"""`check --fluent-bit` reports what Fluent Bit refuses or ignores, and nothing else, even if it is not installed.

Each change was tried with Fluent Bit 5.1.1. tests/integration/test_fluent_bit.py tries it again if it is installed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from poller.checks import Finding
from poller.checks import fluent_bit_known as known
from poller.checks.fluent_bit import check_fluent_bit
from poller.checks.fluent_bit_keys import COMMON, KEYS, PARSER, PLUGINS, SERVICE
from tests.fluent_bit import REFUSED, REFUSED_AT_START, REFUSED_YAML, TAKEN
from tests.support import TOP

FILES = TOP / "fluent-bit"


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with an `ionos-poller` that starts, and without Fluent Bit."""
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "ionos-poller").write_text("#!/bin/sh\n")
    (directory / "ionos-poller").chmod(0o755)
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setattr(known, "_ITS_PACKAGES", str(directory))
    return directory


def checked(directory: Path, text: str, name: str = "fluent-bit.conf") -> list[Finding]:
    path = directory / name
    path.write_text(text)
    (directory / "parsers.conf").write_text((FILES / "parsers.conf").read_text())
    return check_fluent_bit(path, None)


def changed(file: str, right: str, wrong: str) -> str:
    text = (FILES / file).read_text()
    assert right in text
    return text.replace(right, wrong, 1)


@pytest.mark.parametrize(("file", "right", "wrong", "words"), REFUSED + REFUSED_AT_START + REFUSED_YAML)
def test_what_fluent_bit_refuses_fails(
    tmp_path: Path, file: str, right: str, wrong: str, words: tuple[str, ...]
) -> None:
    findings = checked(tmp_path, changed(file, right, wrong), file)
    said = [f"{found.message} ({found.hint})" for found in findings if found.level == "fail"]
    assert any(all(word in line for word in words) for line in said), findings
    assert all(found.hint for found in findings)


def test_a_byte_order_mark_is_told_as_that(tmp_path: Path) -> None:
    """Read in the source of Fluent Bit, and not tried: nothing in it passes over the mark."""
    text = (FILES / "push.conf").read_text()
    (found,) = checked(tmp_path, "\ufeff" + text)
    assert (found.level, "byte order mark" in found.message, found.hint) == (
        "fail",
        True,
        "save it as UTF-8 without BOM",
    )


@pytest.mark.parametrize(
    ("file", "right", "wrong", "words"),
    [
        ("push.conf", "Grace   ", "Grase   ", ("Grase", "ignores", "write grace")),
        ("push.conf", "[OUTPUT]", "[OUTPT]\n    Name x\n[OUTPUT]", ("[OUTPT]", "write output")),
        ("push.conf", "Name              http\n    Match", "Name              bespoke\n    Match", ("not known here",)),
        (
            "push.conf",
            "[SERVICE]",
            "[PLUGINS]\n    Path x.so\n[OUTPUT]\n    Name lokki\n    Match x\n    Retry_Limit off\n[SERVICE]",
            ("not known here",),
        ),
        ("push.conf", "[OUTPUT]", "[FILTER]\n    Name bespoke\n    Anything goes\n[OUTPUT]", ("not known here",)),
    ],
)
def test_what_fluent_bit_ignores_or_we_do_not_know_is_a_warning(
    tmp_path: Path, file: str, right: str, wrong: str, words: tuple[str, ...]
) -> None:
    findings = checked(tmp_path, changed(file, right, wrong), file)
    said = [f"{found.message} ({found.hint})" for found in findings if found.level == "warn"]
    assert any(all(word in line for word in words) for line in said), findings
    assert [found for found in findings if found.level == "fail"] == []


@pytest.mark.parametrize(("file", "right", "wrong"), TAKEN)
def test_what_fluent_bit_takes_is_no_mistake(tmp_path: Path, file: str, right: str, wrong: str) -> None:
    findings = checked(tmp_path, changed(file, right, wrong), file)
    assert [found for found in findings if found.level == "fail"] == []


def test_tables_in_yaml_are_left_to_fluent_bit(tmp_path: Path) -> None:
    text = changed(
        "push.yaml", "port: 9880", "port: 9880\n      processors: {logs: [{name: sql}]}\n      telemetry: {a: b}"
    )
    assert [found.level for found in checked(tmp_path, text, "push.yaml")] == ["ok"]


@pytest.mark.parametrize("setting", ["@SET SUM=on\n", "@set SUM=True\n"])
def test_a_variable_that_the_file_sets_is_looked_up(tmp_path: Path, setting: str) -> None:
    text = setting + changed("push.conf", "storage.checksum           off", "storage.checksum ${SUM}")
    (found,) = checked(tmp_path, text)
    assert (found.level, "never sent" in found.message) == ("warn", True)
    text = "env:\n  SUM: on\n" + changed("push.yaml", "storage.checksum: off", "storage.checksum: ${SUM}")
    (found,) = checked(tmp_path, text, "push.yaml")
    assert (found.level, "never sent" in found.message) == ("warn", True)


def test_sections_of_one_kind_add_up(tmp_path: Path) -> None:
    text = changed("push.conf", "    storage.checksum           off\n", "")
    assert [found.level for found in checked(tmp_path, text)] == ["ok"]
    (found,) = checked(tmp_path, text + "[SERVICE]\n    storage.checksum on\n")
    assert (found.level, "never sent" in found.message) == ("warn", True)


def test_a_pattern_or_number_that_python_cannot_read_is_no_reason_to_fail(tmp_path: Path) -> None:
    text = changed("push.conf", "    Match             activityLog", "    Match_Regex (?<a>[")
    assert [found.level for found in checked(tmp_path, text)] == ["ok"]
    text = changed("logging-service.conf", "--max-line-bytes 250000", "--max-line-bytes \u00b2")
    assert [found.level for found in checked(tmp_path, text)] == ["ok"]


def test_storage_that_is_inherited_counts(tmp_path: Path) -> None:
    text = changed("push.conf", "    storage.type      filesystem\n", "")
    assert "kept in memory" in checked(tmp_path, text)[0].message
    inherited = text.replace("[SERVICE]\n", "[SERVICE]\n    storage.type filesystem\n    storage.inherit on\n")
    assert checked(tmp_path, inherited)[0].level == "ok"


def test_the_tables_hold_together() -> None:
    for kind, name in KEYS:
        assert name in PLUGINS[kind].split()
    words = " ".join([*KEYS.values(), *COMMON.values(), SERVICE, PARSER]).split()
    kinds = {word.partition(":")[2] for word in words}
    plain = {"", "bool", "size", "int", "number", "time", "port"}
    assert {kind for kind in kinds if "|" not in kind and kind not in plain} == {"gzip"}
    assert [word for word in words if word != word.lower()] == []


# An installed Fluent Bit


def fake(directory: Path, script: str) -> None:
    (directory / "fluent-bit").write_text(f"#!{sys.executable}\n{script}\n")
    (directory / "fluent-bit").chmod(0o755)


TELL = 'import sys, os, pathlib; pathlib.Path(sys.argv[0]).with_name("asked").write_text(" ".join(sys.argv[1:]))\n'
REFUSE = (
    TELL
    + "print(\"x [error] [config] http: unknown configuration property 'a'. The following properties are ...\"); sys.exit(1)"
)


def test_an_installed_fluent_bit_is_asked_and_its_word_counts(tmp_path: Path, program: Path) -> None:
    fake(program, TELL)
    (found,) = checked(tmp_path, changed("push.conf", "    URI ", "    Newest_Key x\n    URI "))
    assert (found.level, "fluent-bit --dry-run takes it" in found.message) == ("ok", True)
    assert (program / "asked").read_text() == f"--dry-run -c {(tmp_path / 'fluent-bit.conf').resolve()}"
    # Fluent Bit does not check these values.
    (found,) = checked(tmp_path, changed("push.conf", "compress          gzip", "compress gz"))
    assert (found.level, "gz is none of" in found.message) == ("fail", True)
    fake(program, REFUSE)
    (found,) = checked(tmp_path, (FILES / "push.conf").read_text())
    assert found.level == "fail"
    assert found.message.endswith("refuses the file: http: unknown configuration property 'a'.")


def test_a_variable_that_is_not_set_here_may_be_why_it_refuses(tmp_path: Path, program: Path) -> None:
    fake(program, 'print("variable ${X} is used but not set")\n' + REFUSE)
    (found,) = checked(tmp_path, (FILES / "push.conf").read_text())
    assert (found.level, "set its variables" in found.hint) == ("warn", True)


@pytest.mark.parametrize("script", ['print("unknown option"); raise SystemExit(2)', "import sys; sys.exit(139)"])
def test_one_that_does_not_know_the_option_is_as_good_as_none(tmp_path: Path, program: Path, script: str) -> None:
    fake(program, script)
    (found,) = checked(tmp_path, (FILES / "push.conf").read_text())
    assert (found.level, "dry-run" in found.message) == ("ok", False)


@pytest.mark.parametrize("key", ["Log_File /tmp/x.log", "Daemon on"])
def test_one_that_would_write_or_go_on_without_us_is_not_asked(tmp_path: Path, program: Path, key: str) -> None:
    fake(program, TELL)
    (found,) = checked(tmp_path, changed("push.conf", "[SERVICE]\n", f"[SERVICE]\n    {key}\n"))
    assert found.level == "ok"
    assert not (program / "asked").exists()


def test_one_that_never_ends_or_never_stops_talking_is_ended(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.checks.programs._SECONDS", 0.2)
    fake(program, "import time; time.sleep(60)")
    started = time.monotonic()
    (found,) = checked(tmp_path, (FILES / "push.conf").read_text())
    assert (found.level, "did not end" in found.message) == ("warn", True)
    monkeypatch.setattr("poller.checks.programs._SECONDS", 20)
    fake(program, 'while True: print("x" * 1000)')
    (found,) = checked(tmp_path, (FILES / "push.conf").read_text())
    assert found.level == "ok"
    assert time.monotonic() - started < 10
