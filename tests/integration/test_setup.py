"""`setup` against a stand-in for the Logging Service's API: first run, repeated, interrupted, refused; where the key is shown."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.integration.fetching import Bench, Run, Starter, finish
from tests.support import COMMAND, TOP, free_port, wait_until

ARGUMENTS = ("--log-level", "debug", "setup", "--region", "de-txl", "--pipeline", "audit", "--tag", "activityLog")


class Place(Bench):
    """A bench whose `setup` uses the stand-in."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.directory, bench.simulator)
        self.config_file = self.directory / "ionos-poller.toml"
        self.key_file = self.directory / "logging.key"
        self.said = ""

    def setup(self, *args: str, env: dict[str, str] | None = None) -> Run:
        run = self.run(*ARGUMENTS, *args, env={"IONOS_LOGGING_API_URL": self.simulator.url, **(env or {})})
        self.said += run.stderr + b"\n".join(run.lines).decode() + run.rest.decode()
        return run

    def asked(self, *methods: str) -> list[str]:
        """The requests to the API with these methods; by default those that change something."""
        return [line for line in self.simulator.pipelines.requests if line.startswith(methods or ("POST", "PATCH"))]

    def sinks(self) -> list[dict[str, Any]]:
        return list(tomllib.loads(self.config_file.read_text())["sinks"])


@pytest.fixture
def place(bench: Starter) -> Place:
    place = Place(bench(contracts=1, events=5, pipeline_ready_seconds=0.3))
    # No port: another test may use it.
    place.config_file.write_text('# mine\n[http]\nlisten = ""\n')
    return place


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def only_told(run: Run, code: int, *words: str) -> None:
    assert run.code == code, run.stderr
    assert len(run.told) == 1, run.stderr
    for word in words:
        assert word in run.told[0], (word, run.told)


def test_twice_makes_one_pipeline_one_configuration_and_shows_no_key(place: Place) -> None:
    first = place.setup("--yes")
    assert first.code == 0, first.stderr
    assert any(line.startswith(b"ok    sink logging") for line in first.lines), "it ends with check"
    assert "ready: `ionos-poller run` begins to collect and deliver" in first.stderr
    assert mode(place.key_file) == 0o600
    (key,) = place.simulator.pipelines.keys
    assert place.key_file.read_text() == f"{key}\n"
    config = place.config_file.read_bytes()
    assert config.startswith(b'# mine\n[http]\nlisten = ""\n'), "what was there stays"
    expected = {"name": "logging", "type": "logging-service", "tag": "activityLog", "api_key_file": "logging.key"}
    assert place.sinks() == [{**expected, "url": f"{place.simulator.url}/sink/logging"}]
    files = sorted(place.directory.iterdir())

    second = place.setup()
    assert second.code == 0, second.stderr
    assert "nothing to do" in second.stderr
    assert place.asked() == ["POST /pipelines"]
    assert place.config_file.read_bytes() == config
    assert place.key_file.read_text() == f"{key}\n"
    assert sorted(place.directory.iterdir()) == files, "nothing is left lying about"
    assert key not in place.said
    assert place.simulator.token not in place.said


def test_the_commands_that_it_ends_with_name_the_configuration_as_a_shell_takes_it(place: Place) -> None:
    place.config_file.rename(place.directory / "my own.toml")
    run = place.run("--config", "my own.toml", *ARGUMENTS, "--yes", env={"IONOS_LOGGING_API_URL": place.simulator.url})
    assert run.code == 0, run.stderr
    assert "ready: `ionos-poller --config 'my own.toml' run` begins to" in run.stderr
    assert "`ionos-poller --config 'my own.toml' setup --service`, as root" in run.stderr


def test_a_configuration_that_it_makes_is_for_its_owner_only_and_works(bench: Starter) -> None:
    place = Place(bench(contracts=1, events=5, pipeline_ready_seconds=0))
    run = place.setup("--yes", "--sink", "audit", env={"IONOS_POLLER_HTTP__LISTEN": f"127.0.0.1:{free_port()}"})
    assert run.code == 0, run.stderr
    assert mode(place.config_file) == 0o600
    assert mode(place.directory / "audit.key") == 0o600
    assert place.run("config", "show").code == 0


def test_a_dry_run_says_what_would_be_done_and_does_nothing(place: Place) -> None:
    run = place.setup("--dry-run")
    assert run.code == 0
    assert [line.partition(b" the ")[0] for line in run.lines[:1]] == [b"would create"]
    assert run.lines[-1] == b"nothing was changed"
    assert place.asked() == []
    assert not place.key_file.exists()


def test_without_a_terminal_it_wants_to_be_told_everything(place: Place) -> None:
    only_told(place.setup(), 2, "--yes", "--dry-run")
    assert place.asked() == []
    run = place.run("setup", "--pipeline", "audit", env={"IONOS_LOGGING_API_URL": ""})
    only_told(run, 2, "--region", "missing")
    only_told(place.run("setup", "--region", "de-txl"), 2, "--pipeline", "missing")


def test_what_cannot_be_is_refused_before_anything_is_asked(place: Place) -> None:
    run = place.run("setup", "--region", "de-txl", "--pipeline", "x" * 21, "--tag", "no-tag", "--sink", "a/b")
    assert run.code == 2
    assert [line.split(": ")[1] for line in run.told] == ["--pipeline", "--tag", "--sink"]


def test_a_new_key_ends_the_old_one(place: Place) -> None:
    place.setup("--yes")
    run = place.setup("--rotate-key", "--yes")
    assert run.code == 0
    old, new = place.simulator.pipelines.keys
    assert place.key_file.read_text() == f"{new}\n"
    assert mode(place.key_file) == 0o600
    assert any(b"senders with the old one" in line for line in run.lines)
    assert len(place.sinks()) == 1
    assert old not in place.said
    assert new not in place.said


def test_a_pipeline_whose_key_is_not_here_is_not_given_another_unasked(place: Place) -> None:
    place.setup("--yes")
    place.key_file.unlink()
    only_told(place.setup("--yes"), 2, "logging.key", "--rotate-key")
    assert len(place.simulator.pipelines.keys) == 1
    assert place.setup("--yes", "--rotate-key").code == 0
    assert place.key_file.read_text() == f"{place.simulator.pipelines.keys[-1]}\n"


def test_a_pipeline_that_is_there_gets_the_log_source_it_lacks(place: Place) -> None:
    place.setup("--yes")
    run = place.setup("--yes", "--tag", "another", "--sink", "another")
    assert run.code == 0, run.stderr
    assert len(place.simulator.pipelines.keys) == 1, "a pipeline has one key for all that send to it"
    ((properties, _),) = place.simulator.pipelines.pipelines.values()
    assert [source.tag for source in properties.logs] == ["activityLog", "another"]
    assert [(sink["name"], sink["api_key_file"]) for sink in place.sinks()] == [
        ("logging", "logging.key"),
        ("another", "logging.key"),
    ]


def test_entries_can_be_kept_without_limit(place: Place) -> None:
    assert place.setup("--yes", "--retention-days", "0").code == 0
    ((properties, _),) = place.simulator.pipelines.pipelines.values()
    assert [[kept["retentionInDays"] for kept in source.destinations] for source in properties.logs] == [[0]]


def test_it_can_be_named_by_its_id(place: Place) -> None:
    place.setup("--yes")
    (made,) = place.simulator.pipelines.pipelines
    assert place.setup("--pipeline", made).code == 0
    assert place.asked() == ["POST /pipelines"]


def test_what_is_configured_otherwise_is_left_alone(place: Place) -> None:
    table = '[[sinks]]\nname = "logging"\ntype = "loki"\nurl = "http://localhost:3100"\n'
    place.config_file.write_text(table)
    only_told(place.setup("--yes"), 2, "sinks.logging", "--sink")
    assert place.asked() == []
    assert place.config_file.read_text() == table
    place.config_file.write_text("")
    place.key_file.write_text("precious")
    only_told(place.setup("--yes"), 2, "the key of another pipeline", "move it away")
    assert place.key_file.read_text() == "precious"


def test_a_file_that_cannot_be_added_to_is_left_as_it_is(place: Place) -> None:
    place.config_file.write_text("sinks = []\n")
    run = place.setup("--yes")
    assert run.code == 2
    assert "by hand" in run.stderr
    assert place.config_file.read_text() == "sinks = []\n"
    assert place.key_file.exists(), "the key is safe, whatever comes after it"


def test_no_pipeline_is_made_where_its_key_has_no_place(place: Place) -> None:
    elsewhere = place.directory / "gone"
    elsewhere.mkdir()
    config = elsewhere / "ionos-poller.toml"
    config.write_text(
        '[[sinks]]\nname = "logging"\ntype = "logging-service"\nurl = "https://x"\ntag = "activityLog"\n'
        'api_key_file = "nowhere/logging.key"\n'
    )
    place.setup("--yes")
    only_told(place.setup("--config", str(config), "--rotate-key", "--yes"), 2, "something else")
    config.write_text(config.read_text().replace("https://x", f"{place.simulator.url}/sink/logging"))
    only_told(place.setup("--config", str(config), "--rotate-key", "--yes"), 2, "nowhere/logging.key", "this user")
    assert len(place.simulator.pipelines.keys) == 1, "the old key is still good"


def test_the_key_of_hashes_is_made_once(place: Place) -> None:
    text = '[redact]\nhash = ["principal.sourceIP"]\nhash_key_file = "hash.key"\n'
    place.config_file.write_text(place.config_file.read_text() + text)
    assert place.setup("--yes").code == 0
    path = place.directory / "hash.key"
    made = path.read_text()
    assert mode(path) == 0o600
    assert len(made.strip()) == 64
    assert place.setup().code == 0
    assert path.read_text() == made
    assert made.strip() not in place.said


def test_interrupted_while_it_waits_it_goes_on_the_next_time(place: Place) -> None:
    place.simulator.change_settings(pipeline_ready_seconds=3600)
    env = {"IONOS_LOGGING_API_URL": place.simulator.url}
    process = place.start(*ARGUMENTS, "--yes", env=env)
    wait_until(lambda: len(place.asked("GET")) > 2, what="it waits")
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 130
    assert place.key_file.exists()
    assert "sinks" not in place.config_file.read_text()
    slow = place.setup("--yes", "--timeout", "300ms")
    only_told(slow._replace(stderr=slow.stderr.splitlines()[-1]), 1, "still provisioning", "run setup again")
    place.simulator.change_settings(pipeline_ready_seconds=0)
    assert place.setup("--yes").code == 0
    assert place.asked() == ["POST /pipelines"]


def test_what_the_api_refuses_is_told(place: Place) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    only_told(place.setup(env={"IONOS_API_TOKEN": "wrong"}), 3, "refused the token", "ionos-poller check")
    only_told(place.setup(env={"IONOS_API_TOKEN": ""}), 2, "no IONOS API token", "IONOS_API_TOKEN")
    only_told(place.setup(env={"IONOS_LOGGING_API_URL": nowhere}), 1, "connection refused", "--region")
    only_told(place.setup(env={"IONOS_LOGGING_API_URL": "https://nowhere.invalid"}), 1, "not known", "DNS")
    clear = {"IONOS_LOGGING_API_URL": "http://logging.example"}
    only_told(place.setup(env=clear), 2, "clear text", "https://")
    for text, message in (
        ("x", "must begin with https:// or http://"),
        ("ftp://x", "must begin with https:// or http://"),
        ("http://[", "is not a URL"),
        ("https://user:word@x", "must not hold credentials"),
        ("https://x?y=z", "must not have a query"),
        ("https://", "names no host"),
        ("https://x:99999", "is not a URL"),
    ):
        only_told(place.setup(env={"IONOS_LOGGING_API_URL": text}), 2, f"--api-url: {message}", "")
    wrong = f"{place.simulator.url}/nowhere"
    only_told(place.setup(env={"IONOS_LOGGING_API_URL": wrong}), 1, "refused the request (404", "--api-url")
    html = place.simulator.url.replace("http", "https")
    only_told(place.setup(env={"IONOS_LOGGING_API_URL": html}), 1, "TLS failed")


def test_without_the_extra_it_says_how_to_get_it(place: Place) -> None:
    directory = place.directory / "patched"
    directory.mkdir()
    (directory / "ionoscloud_logging.py").write_text("raise ImportError('not here')\n")
    run = place.setup(env={"PYTHONPATH": f"{directory}{os.pathsep}{TOP}"})
    only_told(run, 2, "ionoscloud-logging", "pip install 'ionos-poller[setup]'")


def on_terminal(place: Place, *args: str, typed: bytes = b"") -> bytes:
    """Run `setup` on a terminal; it must succeed.  Returns: its output."""
    env = place.environment({"IONOS_LOGGING_API_URL": place.simulator.url, "TERM": "dumb"})
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "setup", *args],
        cwd=place.directory,
        env=env,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        close_fds=True,
    )
    os.close(slave)
    os.write(master, typed)
    said = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        said += piece
    os.close(master)
    assert process.wait(30) == 0, said
    return said


def test_on_a_terminal_it_asks(place: Place) -> None:
    said = on_terminal(place, typed=b"audit\nactivityLog\n\n")  # the last: yes, do it
    assert b"Name of the pipeline" in said
    assert b"Do this?" in said
    assert b"sink logging" in said
    assert place.simulator.pipelines.keys[0].encode() not in said
    assert json.dumps("activityLog") in place.config_file.read_text()


def test_the_line_of_the_readme_asks_nothing_on_a_terminal(place: Place) -> None:
    (line,) = re.findall(r"^\$ ionos-poller setup (.*)$", (TOP / "README.md").read_text(), re.MULTILINE)
    said = on_terminal(place, *line.split())
    assert b"Tag [" not in said
    assert json.dumps("activityLog") in place.config_file.read_text()
