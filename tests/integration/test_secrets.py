"""The canary test: every command runs at DEBUG, and no secret is on stdout, on stderr, or in any file."""

from __future__ import annotations

import base64
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from poller.cli import _COMMANDS
from tests.integration.fetching import FIRST, Bench, Run, Starter, finish
from tests.support import free_port, wait_until

TOKEN = "canary-token-5e1f"
PASSWORD = "canary-password-77ab"
API_KEY = "canary-key-c0de"
PROXY_PASSWORD = "canary-proxy-9d9d"
HASH_KEY = "canary-hash-1b2c"

# Command -> the arguments to run it with. `run` and `simulate` are stopped when they work.
RUNS: dict[str, list[tuple[str, ...]]] = {
    "fetch": [("--since", "3h")],
    "run": [()],
    "backfill": [("--from", "2h", "--to", "1h", "--output", "-"), ("--from", "30m", "--to", "1m", "--sink", "logging")],
    # Three hours always contain at least one hour that is over.
    "audit": [("--from", "3h", "--to", "1m", "--use", "fetch"), ("--from", "3h", "--to", "1m", "--repair")],
    "check": [(), ("--json",), ("--offline",)],
    "tail": [("--once", "--since", "2h"), ("--once", "--json")],
    "status": [(), ("--json",)],
    "reload": [()],
    "dead-letters": [("list",), ("show", "1"), ("replay",), ("purge", "--reason", "test")],
    "journal": [(), ("--json",)],
    "state": [("init",)],
    "archive": [("--help",)],
    "gaps": [("list",), ("list", "--json"), ("retry",)],
    "sinks": [("list",), ("retry", "logging"), ("forget", "logging")],
    "setup": [("--help",), ("--service", "--dry-run")],
    "demo": [()],
    "simulate": [("--port", "0")],
    "config": [("example",), ("show",), ("schema",)],
    "completion": [("bash",)],
}


def disguises(secret: str) -> Iterator[bytes]:
    """The forms of a secret: as it is, and encoded for Basic authentication."""
    yield secret.encode()
    for user in ("canary", "me"):
        yield base64.b64encode(f"{user}:{secret}".encode())


FORBIDDEN = [text for one in (TOKEN, PASSWORD, API_KEY, PROXY_PASSWORD, HASH_KEY) for text in disguises(one)]


def expect_no_canary(run: Run, directory: Path) -> None:
    places = {"stdout": b"\n".join([*run.lines, run.rest]), "stderr": run.stderr.encode()}
    places |= {
        str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.suffix != ".key"
    }
    for place, content in places.items():
        for text in FORBIDDEN:
            assert text not in content, f"{text!r} in {place}"


def configured(place: Bench) -> dict[str, str]:
    """Write a configuration with a secret from every origin.  Returns: its environment."""
    (place.directory / "hash.key").write_text(HASH_KEY)
    # Also named `.key`, because it contains a secret on purpose.
    config = place.directory / "config.key"
    config.write_text(
        f"""
        [[sinks]]
        name = "logging"
        type = "logging-service"
        url = "{place.simulator.url}/sink/logging"
        tag = "activityLog"
        api_key = "{API_KEY}"
        [redact]
        hash = ["principal.sourceIP"]
        hash_key_file = "hash.key"
        [http]
        listen = ""
        """
    )
    config.chmod(0o600)
    return {"IONOS_POLLER_CONFIG": str(config), "IONOS_API_TOKEN": TOKEN}


def run_at_debug(place: Bench, env: dict[str, str], command: str, *args: str) -> Run:
    arguments = ("--log-level", "debug", command, *args)
    if command not in ("run", "simulate") or "--help" in args:
        return place.run(*arguments, env=env)
    output = place.directory / f"{command}.out"
    before = place.requests("contracts")
    with output.open("wb") as stdout:
        process = place.start(*arguments, env=env, stdout=stdout, stderr=subprocess.STDOUT)
        wait_until(lambda: output.stat().st_size > 0, what=f"`{command}` says something")
        if command == "run":
            wait_until(lambda: place.requests("contracts") > before, what="a poll")
        process.send_signal(signal.SIGTERM)
        return finish(process)._replace(lines=output.read_bytes().split(b"\n"))


def test_every_command_is_in_the_table_of_this_test() -> None:
    assert set(_COMMANDS) <= set(RUNS), "add a row to RUNS"


@pytest.mark.parametrize("command", sorted(set(_COMMANDS) & set(RUNS)))
def test_no_command_shows_a_secret(bench: Starter, command: str) -> None:
    place = bench(events=20, token=TOKEN, api_key=API_KEY)
    env = configured(place)
    prepared = place.fetch("--since", "1h", "--log-level", "debug", env=env)
    assert (prepared.code, len(prepared.lines)) == (0, 40), "the canary is the key that opens the door"
    for args in RUNS[command]:
        expect_no_canary(run_at_debug(place, env, command, *args), place.directory)


def test_no_failure_shows_a_secret(bench: Starter) -> None:
    place = bench(events=20, username="canary", password=PASSWORD)
    proxy = f"http://me:{PROXY_PASSWORD}@127.0.0.1:{free_port()}"
    basic = {"IONOS_API_TOKEN": "", "IONOS_USERNAME": "canary", "IONOS_PASSWORD": PASSWORD}
    quick = {"IONOS_POLLER_API__MAX_RETRIES": "1", "IONOS_POLLER_API__READ_TIMEOUT": "300ms"}
    wrong = {"IONOS_API_TOKEN": TOKEN}

    def expect(code: int, *faults: str, **env: str) -> None:
        place.simulator.set_faults(faults)
        run = place.fetch("--since", "1h", "--log-level", "debug", env=quick | env)
        assert run.code == code, run.stderr
        expect_no_canary(run, place.directory)

    expect(3, **wrong)
    expect(0, **basic)
    expect(1, "path=entries:hang", **basic)
    expect(1, "path=entries:html", f"contract={FIRST}:reset", **basic)
    expect(1, HTTP_PROXY=proxy, **basic)
    expect(1, IONOS_API_URL=f"http://127.0.0.1:{free_port()}", **wrong)
    # Mistakes of a user who puts a secret in the wrong place.
    expect(2, IONOS_API_URL=f"https://me:{PASSWORD}@api.ionos.com", **wrong)
    expect(2, IONOS_POLLER_API__TOKEN=TOKEN, IONOS_API_TOKEN="", IONOS_POLLER_API__NOPE=PASSWORD)
    expect(2, IONOS_API_TOKEN=f"{TOKEN} {PASSWORD}")
    expect(2, IONOS_API_TOKEN=f"{TOKEN}\n{PASSWORD}")
    expect(3, IONOS_API_TOKEN=f"{TOKEN}\n")  # valid for us; the API refuses it
    (place.directory / "ionos-poller.toml").write_text(f"[api]\ntoken = '{TOKEN}'\npage_sise = 1\n")
    (place.directory / "ionos-poller.toml").chmod(0o644)
    run = place.fetch("--log-level", "debug")
    assert run.code == 2
    (place.directory / "ionos-poller.toml").unlink()
    expect_no_canary(run, place.directory)
