"""The configuration, commands and options of 0.1.0 work unchanged. They are kept in tests/data/0.1.0.

test_grafana.py checks the same for the dashboard and alerts, and the tests of the store for states.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from poller.cli import cli
from poller.config import load
from poller.config.describe import effective
from tests.support import TOP

OLD = TOP / "tests" / "data" / "0.1.0"


def test_a_configuration_with_every_key_of_0_1_0_is_read_and_every_value_is_in_effect() -> None:
    file = OLD / "config.toml"
    config = load(file, {}, check_files=False)

    def compare(given: Any, found: Any, where: str) -> None:
        if isinstance(given, dict):
            for key, value in given.items():
                # The value of a header is masked, and the token of [api] moves to the only account.
                if where != "sinks[0].headers" and (where, key) != ("api", "token_file"):
                    compare(value, found[key], f"{where}.{key}" if where else key)
        elif isinstance(given, list) and given and isinstance(given[0], dict):
            for index, (one, other) in enumerate(zip(given, found, strict=True)):
                compare(one, other, f"{where}[{index}]")
        else:
            assert found == given, where

    compare(tomllib.loads(file.read_text()), tomllib.loads(effective(config)), "")


@pytest.mark.parametrize("prefix", ["", "#"], ids=["set", "commented out"])
def test_the_variables_of_0_1_0_set_the_same_keys(prefix: str, tmp_path: Path) -> None:
    file = tmp_path / "ionos-poller.toml"
    file.write_text(f'[poll]\n{prefix}interval = "5m"\n')
    environ = {
        "IONOS_API_TOKEN": "t",
        "IONOS_API_URL": "https://api.example",
        "IONOS_POLLER_STATE_DIR": "/srv/state",
        "IONOS_POLLER_POLL__INTERVAL": "90s",
    }
    config = load(file, environ)
    assert (config.poll.interval_seconds, config.api.url, str(config.state_dir)) == (
        90,
        "https://api.example",
        "/srv/state",
    )
    assert str(config.accounts[0].credentials().origin) == "environment variable IONOS_API_TOKEN"


def test_every_command_and_option_of_0_1_0_exists() -> None:
    found: set[str] = set()

    def look(command: click.Command, path: str) -> None:
        found.add(path)
        for param in command.params:
            found.update(f"{path} {name}".strip() for name in (*param.opts, *param.secondary_opts))
        for name in command.list_commands(click.Context(command)) if isinstance(command, click.Group) else ():
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            look(inner, f"{path} {name}".strip())

    look(cli, "")
    asked = {line.strip() for line in (OLD / "commands.txt").read_text().splitlines()}
    assert len(asked) > 150
    assert asked - found == set()
