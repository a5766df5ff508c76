"""The checks of the system around the program, at their bounds: the unit and its drop-ins, credentials, other programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from poller.checks import Finding, fail, ok, programs, warn
from poller.checks import system as checks
from poller.checks.programs import Answer, ask
from poller.checks.system import check_credentials, check_unit, private_files, secret_sources, service_environment
from poller.config import load
from poller.core.errors import EXIT_CONFIG


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories of units. The first one has precedence."""
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    for place in (etc, lib):
        (place / "ionos-poller.service.d").mkdir(parents=True)
    return etc, lib


def write(place: Path, *lines: str, drop_in: str = "") -> None:
    where = place / "ionos-poller.service.d" / drop_in if drop_in else place / "ionos-poller.service"
    where.write_text("\n".join(["[Service]", *lines]))


def secret(directory: Path, name: str, mode: int = 0o600) -> Path:
    made = directory / name
    made.write_text("s")
    made.chmod(mode)
    return made


def messages(directories: Sequence[Path]) -> list[str]:
    return [f"{found.level} {found.message}" for found in check_unit(directories)]


WELL = "ok {}/ionos-poller.service: its program, configuration and credentials are there"


def test_the_first_unit_counts_and_drop_ins_of_all_directories_by_name(places: tuple[Path, Path]) -> None:
    etc, lib = places
    assert list(check_unit(places)) == []
    write(lib, "ExecStart=/nowhere/lib run")
    assert messages(places) == ["fail the unit's program /nowhere/lib is missing"]
    write(etc, "ExecStart=/nowhere/etc run")
    assert messages(places) == ["fail the unit's program /nowhere/etc is missing"]
    write(lib, "ExecStart=", "ExecStart=/nowhere/b run", drop_in="b.conf")
    write(etc, "ExecStart=", "ExecStart=/nowhere/a run", drop_in="a.conf")
    assert messages(places) == ["fail the unit's program /nowhere/b is missing"], "the last by name"
    write(etc, "ExecStart=", "ExecStart=/bin/sh", drop_in="b.conf")
    assert messages(places) == [WELL.format(etc)], "of the same name, the one that comes first"
    write(etc, "ExecStart=/nowhere/c run", drop_in="c.txt")
    assert messages(places) == [WELL.format(etc)]


def test_what_is_wrong_with_a_unit_is_told_with_the_remedy(places: tuple[Path, Path]) -> None:
    etc, _ = places
    open_, none = secret(etc, "key", 0o644), etc / "none"
    config = secret(etc, "config.toml")
    write(
        etc,
        "ExecStart=-/nowhere/x --config " + str(config),
        f"LoadCredential=key:{open_}",
        f"LoadCredential=token:{none}",
        "User=poller",
    )
    assert list(check_unit(places)) == [
        fail(
            "systemd",
            "the unit's program /nowhere/x is missing",
            "set ExecStart= in a drop-in (`systemctl edit ionos-poller`) to where ionos-poller is installed",
            EXIT_CONFIG,
        ),
        warn("systemd", f"others can read {open_}", f"chmod 600 {open_}: systemd reads it as root"),
        fail(
            "systemd",
            f"LoadCredential=token: {none} is missing, so the unit does not start",
            "put the secret there (mode 0600), or take the line out of the unit with a drop-in",
            EXIT_CONFIG,
        ),
        warn(
            "systemd",
            f"the unit's user cannot read {config}",
            f"chmod 644 {config}, with every secret in a file of its own, handed over by LoadCredential=",
        ),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "ExecStart=ionos-poller run",  # systemd finds it on its own path
        "ExecStart=@-:+!/bin/sh run",
        "# ExecStart=/nowhere/x run",
        "; ExecStart=/nowhere/x run",
        "ExecStart",
        "Description=x\\\nExecStart=/nowhere/x",
        "LoadCredential=token:other-credential",
        "LoadCredential=token",
    ],
)
def test_what_is_nothing_to_be_told_of(places: tuple[Path, Path], line: str) -> None:
    write(places[0], line)
    assert messages(places) == [WELL.format(places[0])]


def test_a_secret_of_root_alone_or_a_directory_of_them_is_well(places: tuple[Path, Path]) -> None:
    etc, _ = places
    for mode, is_well in ((0o600, True), (0o400, True), (0o640, False), (0o604, False), (0o610, False)):
        write(etc, f"LoadCredential=key:{secret(etc, 'key', mode)}")
        assert (messages(places) == [WELL.format(etc)]) == is_well, oct(mode)
    write(etc, f"LoadCredential=keys:{etc}")
    assert messages(places) == [WELL.format(etc)]


@pytest.mark.parametrize(
    ("user", "is_told"),
    [
        ("User=poller", True),
        ("DynamicUser=yes", True),
        ("DynamicUser=TRUE", True),
        ("DynamicUser=on", True),
        ("DynamicUser=1", True),
        ("DynamicUser=no\nUser=root", False),
        ("User=0", False),
        ("User=root\nDynamicUser=yes", True),
        ("User=poller\nUser=root", False),
        ("", False),
    ],
)
def test_only_another_user_than_root_needs_a_configuration_that_others_can_read(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, user: str, is_told: bool
) -> None:
    etc, _ = places
    config = secret(etc, "config.toml")
    monkeypatch.setattr(checks, "_DEFAULT_CONFIG", str(config))
    write(etc, "ExecStart=/bin/sh run", user)
    assert messages(places) == ([f"warn the unit's user cannot read {config}"] if is_told else [WELL.format(etc)])
    config.chmod(0o604)
    assert messages(places) == [WELL.format(etc)]
    write(etc, f"ExecStart=/bin/sh --config {etc}/none run", user)
    assert messages(places) == [WELL.format(etc)]


def test_the_environment_of_a_service_is_what_its_unit_says_last(places: tuple[Path, Path], tmp_path: Path) -> None:
    etc, _ = places
    file = tmp_path / "settings"
    file.write_text("A=2\nB='two words'\n nothing\n#C=3\nD = 4 \n")
    write(
        etc,
        'Environment=A=1 "E=x=y" F',
        f"EnvironmentFile={file}",
        "StateDirectory=poller other",
        "StateDirectory=last",
    )
    assert service_environment({"A": "0", "IONOS_TOKEN": "t", "no_proxy": "*"}, places, tmp_path / "none") == {
        "A": "2",
        "B": "two words",
        "D ": "4",
        "E": "x=y",
        "STATE_DIRECTORY": "/var/lib/last",
    }
    write(etc, "LoadCredential=a:/one/a", "LoadCredential=b:/two/b")
    assert service_environment({}, places, tmp_path / "none") == {"CREDENTIALS_DIRECTORY": "/one"}
    assert service_environment({}, [], tmp_path) is None


# Credentials


CONFIG = """
[evidence]
signing_key_file = "evidence.key"
[[sinks]]
name = "l"
type = "loki"
url = "https://x"
username = "u"
"""


def test_where_each_secret_comes_from_is_known(tmp_path: Path) -> None:
    for name in ("token", "l.password"):
        secret(tmp_path, name)
    secret(tmp_path, "evidence.key")
    file = secret(tmp_path, "my.toml")
    file.write_text(CONFIG)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    config = load(file, environ)
    assert {Path(source.place).name for source in secret_sources(config) if source.origin == "credential"} == {
        "token",
        "l.password",
    }
    assert [path.name for path in private_files(config)] == ["evidence.key"]
    assert [(found.level, found.message) for found in check_credentials(environ, config)] == [
        ("warn", "nothing uses the credential my.toml"),
        ("ok", "from systemd: l.password, token"),
    ]
    (tmp_path / "config.toml").write_text("")
    assert list(check_credentials(environ, config)) == [], "it is not systemd's"


def test_credentials_that_cannot_be_listed_are_told(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "none")}
    assert list(check_credentials(environ, load(None, {}))) == [
        fail(
            "credentials",
            f"{tmp_path / 'none'}: No such file or directory",
            "check that the unit has LoadCredential= and that this is the unit's user",
            EXIT_CONFIG,
        )
    ]


def test_nothing_is_told_where_nothing_is_used(tmp_path: Path) -> None:
    secret(tmp_path, "blank").write_text(" \n")
    assert list(check_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path)}, load(None, {}))) == []


# Other programs


def script(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


def test_what_another_program_says_on_both_streams_is_its_answer(tmp_path: Path) -> None:
    says = "import os, sys; print('out', flush=True); print(os.getcwd(), file=sys.stderr); sys.exit(3)"
    assert ask(script(says), directory=tmp_path) == Answer(3, f"out\n{tmp_path}\n")
    assert ask(script("print(input())")).code == 1, "nobody types"
    with pytest.raises(FileNotFoundError):
        ask(["/nowhere/program"])


def test_one_that_says_too_much_or_for_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_MAX_SAID_BYTES", 1000)
    found = ask(script("while True: print('x' * 99)"))
    assert (len(found.said), found.code != 0) == (1000, True)
    monkeypatch.setattr(programs, "_SECONDS", 0.2)
    with pytest.raises(TimeoutError, match="did not end within 0 s"):
        ask(script("import time; print('x', flush=True); time.sleep(60)"))


def test_a_finding_says_how_bad_it_is() -> None:
    assert ok("a", "b") == Finding("ok", "a", "b", "", 0)
    assert warn("a", "b", "c") == Finding("warn", "a", "b", "c", 0)
    assert fail("a", "b", "c") == Finding("fail", "a", "b", "c", 1)
