"""Another user plants a file in a directory in which root works: the token must not go to the address in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poller.simulator import Simulator, SimulatorSettings
from tests.integration.fetching import Starter, failed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT CHECKED: only root can make files of another user")
MALLORY = 65_534


@pytest.mark.parametrize("command", ["check", "fetch", "audit --from 1h --to 1m"])
def test_a_configuration_that_another_user_left_in_the_current_directory_gets_no_token(
    command: str, bench: Starter
) -> None:
    place = bench()
    with Simulator(SimulatorSettings(contracts=1, events=1)) as thief:
        planted = place.directory / "ionos-poller.toml"
        planted.write_text(f'[api]\nurl = "{thief.url}"\n')
        os.chown(planted, MALLORY, -1)
        planted.chmod(0o644)
        run = place.run(*command.split(), env={"IONOS_API_URL": ""})
        assert run.code == 2
        told = run.stderr + b"\n".join(run.lines).decode()
        assert "ionos-poller.toml" in told
        assert f"belongs to another user (uid {MALLORY})" in told
        assert thief.traffic.counts == {}


def test_check_and_the_first_line_of_the_log_say_which_configuration_is_in_force(bench: Starter) -> None:
    place = bench()
    config = place.directory / "ionos-poller.toml"
    config.write_text('[[sinks]]\nname = "a"\ntype = "file"\npath = "a.ndjson"\n[http]\nlisten = ""\n')
    run = place.run("check")
    assert any(line.startswith(b"ok    config") and str(config).encode() in line for line in run.lines)
    daemon = place.start("run")
    assert daemon.stderr is not None
    assert b'"config": "ionos-poller.toml"' in daemon.stderr.readline()


def test_a_token_file_of_another_user_is_not_sent_anywhere(bench: Starter) -> None:
    place = bench()
    token = Path(place.directory / "token")
    token.write_text(place.simulator.token)
    os.chown(token, MALLORY, -1)
    env = {"IONOS_API_TOKEN": "", "IONOS_POLLER_API__TOKEN_FILE": str(token)}
    failed(place.fetch(env=env), 2, "belongs to another user", "chown 0")
    assert place.simulator.traffic.counts == {}
