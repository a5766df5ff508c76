"""Unexpected input from a person, a file or the environment: one line says what to do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.hostile import RawServer, http, page_of
from tests.in_process import run_here
from tests.integration.fetching import Run, finished
from tests.support import COMMAND, clean_environment

SOON_SECONDS = 20.0
CONTRACTS = b'[{"id": 31960001}]'


class Case(NamedTuple):
    """A command that cannot work: its arguments and files, its exit code, and words of the expected line."""

    code: int
    words: tuple[str, ...]
    args: tuple[str, ...] = ("fetch",)
    env: Mapping[str, str] = {}
    files: Mapping[str, bytes] = {}


def toml(text: str | bytes) -> dict[str, bytes]:
    return {"ionos-poller.toml": text if isinstance(text, bytes) else text.encode()}


DOTS = ".".join("a" * 3000)
DEEP = "[" * 900 + "]" * 900
ADOPT = ("fetch", "--adopt-state", "old.json")
ODD = "\udcff\udcfe"  # bytes that are not UTF-8, as Python decodes them

CASES = {
    # Configuration
    "config without end": Case(2, ("/dev/zero", "larger than 1 MiB"), ("--config", "/dev/zero", "fetch")),
    "config of a megabyte and more": Case(2, ("larger than 1 MiB",), files=toml("#" * 1_100_000)),
    "config that is a directory": Case(2, ("cannot be read",), ("--config", ".", "fetch")),
    "config of zeros": Case(2, ("is not valid TOML",), files=toml(bytes(1000))),
    "config cut in the middle": Case(2, ("is not valid TOML",), files=toml('[api]\nurl = "http')),
    "config in UTF-16": Case(2, ("is not UTF-8",), files=toml("[api]".encode("utf-16"))),
    "config with a value a thousand deep": Case(
        2, ("poll.interval", "nested"), files=toml(f"poll.interval.{DOTS} = 1")
    ),
    "config with a list item a thousand deep": Case(
        2, ("poll.contracts[0]", "nested"), files=toml(f"[poll]\ncontracts = [{{{DOTS} = 1}}]")
    ),
    "config with a type a thousand deep": Case(
        2, ("sinks[0].type", "nested"), files=toml(f'[[sinks]]\nname = "x"\ntype.{DOTS} = 1')
    ),
    "config with brackets a hundred thousand deep": Case(
        2, ("too long or too deep",), files=toml("x = " + "[" * 100_000)
    ),
    "config with a number of thousands of digits": Case(
        2, ("too long or too deep",), files=toml("[api]\npage_size = " + "9" * 5000)
    ),
    "config with a key twice": Case(2, ("Cannot overwrite",), files=toml("[api]\npage_size = 1\npage_size = 2")),
    "config with NaN": Case(2, ("requests_per_second", "not a number"), files=toml("[api]\nrequests_per_second = nan")),
    "config with a date": Case(2, ("poll.interval",), files=toml("[poll]\ninterval = 2026-01-01")),
    "config with NUL in a path": Case(2, ("token_file",), files=toml('[api]\ntoken_file = "a\\u0000b"')),
    "config that colours the terminal": Case(2, ("unknown key",), files=toml('"\\u001b[31m\\u009b\\u202e" = 1')),
    "config that turns TLS verification off": Case(
        2, ("api.verify", "unknown key"), files=toml("[api]\nverify = false")
    ),
    "config with a tag that is a path": Case(
        2,
        ("sinks[0].tag",),
        files=toml('[[sinks]]\nname="x"\ntype="logging-service"\nurl="http://h"\ntag="../../x"\napi_key_env="K"'),
        env={"K": "key"},
    ),
    "config with a sink name that is a path": Case(
        2, ("sinks[0].name",), files=toml('[[sinks]]\nname="../x"\ntype="file"\npath="x"')
    ),
    "config with a way up in a path": Case(
        2, ("sinks[0].path", ".."), files=toml('[[sinks]]\nname="x"\ntype="file"\npath="/var/log/{date}/../../etc/x"')
    ),
    "config with a placeholder of its own": Case(
        2, ("sinks[0].path", "{contract}"), files=toml('[[sinks]]\nname="x"\ntype="file"\npath="/x/{contract}"')
    ),
    "config with a header in a header": Case(
        2,
        ("sinks[0].headers",),
        files=toml('[[sinks]]\nname="x"\ntype="loki"\nurl="http://h"\nheaders={X="1\\r\\nAPIKEY: 2"}'),
    ),
    "config with a header in a header's name": Case(
        2,
        ("sinks[0].headers",),
        files=toml('[[sinks]]\nname="x"\ntype="loki"\nurl="http://h"\nheaders={"X: 1\\r\\nY"="2"}'),
    ),
    "config with a header in a tenant": Case(
        2,
        ("sinks[0].tenant_id",),
        files=toml('[[sinks]]\nname="x"\ntype="loki"\nurl="http://h"\ntenant_id="a\\r\\nAPIKEY: 2"'),
    ),
    "config with a label that ends the line": Case(
        2,
        ("sinks[0].labels",),
        files=toml('[[sinks]]\nname="x"\ntype="loki"\nurl="http://h"\nlabels={a="1\\n2"}'),
    ),
    # Environment
    "variable a thousand deep": Case(
        2, ("IONOS_POLLER_POLL__INTERVAL", "nested"), env={f"IONOS_POLLER_POLL__INTERVAL__{'__'.join('A' * 3000)}": "1"}
    ),
    "variable with JSON a thousand deep": Case(
        2, ("IONOS_POLLER_POLL__CONTRACTS",), env={"IONOS_POLLER_POLL__CONTRACTS": DEEP}
    ),
    "variable with half a character": Case(
        2, ("IONOS_POLLER_SINKS", "JSON"), env={"IONOS_POLLER_SINKS": '[{"type":"\\ud800"}]'}
    ),
    "token of other bytes": Case(2, ("IONOS_API_TOKEN", "control character"), env={"IONOS_API_TOKEN": ODD}),
    "token of two lines": Case(2, ("IONOS_API_TOKEN",), env={"IONOS_API_TOKEN": "a\r\nX-Evil: 1"}),
    "user of other bytes": Case(
        2, ("IONOS_USERNAME",), env={"IONOS_API_TOKEN": "", "IONOS_USERNAME": ODD, "IONOS_PASSWORD": "x"}
    ),
    "user with a colon": Case(
        2, ("IONOS_USERNAME",), env={"IONOS_API_TOKEN": "", "IONOS_USERNAME": "a:b", "IONOS_PASSWORD": "x"}
    ),
    "address of other bytes": Case(2, ("IONOS_API_URL",), env={"IONOS_API_URL": f"http://{ODD}"}),
    "address of two lines": Case(2, ("IONOS_API_URL",), env={"IONOS_API_URL": "http://h/\r\nX-Evil: 1"}),
    "address with credentials": Case(2, ("IONOS_API_URL",), env={"IONOS_API_URL": "http://api.ionos.com@evil.example"}),
    "address of a file": Case(2, ("IONOS_API_URL",), env={"IONOS_API_URL": "file:///etc/passwd"}),
    "CA bundle that is a word": Case(2, ("REQUESTS_CA_BUNDLE",), env={"REQUESTS_CA_BUNDLE": "false"}),
    "proxy that is no address": Case(1, ("proxy",), env={"HTTP_PROXY": "http://[::1"}),
    "proxy of other bytes": Case(1, ("proxy",), env={"HTTP_PROXY": f"http://{ODD}:1"}),
    "proxy of an unknown kind": Case(1, ("proxy",), env={"HTTP_PROXY": "gopher://127.0.0.1:1"}),
    # Files
    "adopted state without end": Case(2, ("/dev/zero", "last_run"), ("fetch", "--adopt-state", "/dev/zero")),
    "adopted state that is missing": Case(2, ("--adopt-state", "cannot be read"), ADOPT),
    "adopted state of brackets": Case(2, ("last_run",), ADOPT, files={"old.json": b"[" * 100_000}),
    "adopted state of zeros": Case(2, ("last_run",), ADOPT, files={"old.json": bytes(100)}),
    "adopted state cut in the middle": Case(2, ("last_run",), ADOPT, files={"old.json": b'{"last_run": "2026-'}),
    "adopted state with NaN": Case(2, ("last_run",), ADOPT, files={"old.json": b'{"last_run": NaN}'}),
    "adopted state of another world": Case(2, ("last_run",), ADOPT, files={"old.json": b'{"last_run": "9999-12-31"}'}),
    "adopted state of a long number": Case(
        2, ("last_run",), ADOPT, files={"old.json": b'{"last_run": ' + b"9" * 5000 + b"}"}
    ),
    "token file of zeros": Case(
        2, ("api.token_file",), env={"IONOS_API_TOKEN": ""}, files={**toml("[api]\ntoken_file='t'"), "t": b"to\0ken"}
    ),
    "token file without end": Case(
        2,
        ("/dev/zero is larger than 64 KiB",),
        env={"IONOS_API_TOKEN": "", "IONOS_POLLER_API__TOKEN_FILE": "/dev/zero"},
    ),
    # Arguments
    "time in other digits": Case(2, ("--since",), ("fetch", "--since", "٣h")),
    "time of thousands of digits": Case(2, ("--since",), ("fetch", "--since", "9" * 5000 + "h")),
    "time of other bytes": Case(2, ("--since",), ("fetch", "--since", ODD)),
    "contract that ends the header": Case(
        2, ("--contract", "not a contract number"), ("fetch", "--contract", "1\r\nX-Evil: 1")
    ),
    "contract that is a path": Case(2, ("--contract", "not a contract number"), ("fetch", "--contract", "../../x")),
    "use that is a path": Case(2, ("--use", "not the name"), ("dead-letters", "list", "--use", "../../x")),
}


@pytest.fixture(scope="module")
def api() -> Iterator[RawServer]:
    """An API with one contract without entries."""
    with RawServer(lambda asked: http(CONTRACTS if asked.path.endswith("/contracts") else page_of([]))) as server:
        yield server


@pytest.mark.parametrize("name", CASES)
def test_it_is_told_in_one_line_what_is_wrong_and_what_to_do(tmp_path: Path, api: RawServer, name: str) -> None:
    case = CASES[name]
    before = len(api.asked)
    run = finished(*run_here(*case.args, cwd=prepared(tmp_path, case), env=settings_of(case, api)))
    expect_one_line(case, run)
    assert case.code == 1 or len(api.asked) == before, "nothing is done before that"


@pytest.mark.parametrize("name", ["token of other bytes", "proxy of other bytes", "time of other bytes"])
def test_a_process_says_the_same(tmp_path: Path, api: RawServer, name: str) -> None:
    case = CASES[name]
    done = subprocess.run(
        [*COMMAND, *case.args],
        cwd=prepared(tmp_path, case),
        env=clean_environment(settings_of(case, api)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SOON_SECONDS,
        check=False,
    )
    expect_one_line(case, finished(done.returncode, done.stdout, done.stderr))


def prepared(directory: Path, case: Case) -> Path:
    """The directory with the files of a case in it."""
    for file, content in case.files.items():
        (directory / file).write_bytes(content)
        (directory / file).chmod(0o600)
    return directory


def settings_of(case: Case, api: RawServer) -> dict[str, str]:
    settings = {"IONOS_API_URL": api.url, "IONOS_API_TOKEN": "canary", "IONOS_POLLER_API__MAX_RETRIES": "0"}
    return settings | dict(case.env)


def expect_one_line(case: Case, run: Run) -> None:
    """Check that one plain line says what is wrong, with a hint, without a secret. It must not be an internal error."""
    assert run.lines == []
    assert run.code == case.code, run.stderr
    (line,) = run.told
    assert all(word in line for word in case.words), line
    assert line.startswith("ionos-poller: ")
    assert line.isprintable()
    assert len(line) < 600 + max(map(len, case.env), default=0)
    assert "internal error" not in run.stderr
    assert "canary" not in run.stderr
    if case.code == 1:
        assert line.endswith(")"), f"no hint: {line}"


@pytest.mark.parametrize("command", [("check", "--offline", "--json"), ("status", "--json")], ids=lambda args: args[0])
def test_what_is_for_machines_is_json_whatever_a_file_is_called(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / f"{ODD}.toml").write_text("")
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / "run.db").write_bytes(b"no state")
    done = subprocess.run(
        [*COMMAND, "--config", f"{ODD}.toml", "--state-dir", ODD, *command],
        cwd=tmp_path,
        env=clean_environment({"IONOS_API_TOKEN": "token"}),
        capture_output=True,
        timeout=SOON_SECONDS,
        check=False,
    )
    run = finished(done.returncode, done.stdout, done.stderr)
    assert run.code == 4, run
    assert run.told == []
    assert "\\udcff\\udcfe" in str(json.loads(run.lines[0])).replace("\\\\", "\\")
