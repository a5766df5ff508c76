"""What `setup --service` installs for a configuration, and its message for a service that does not deliver."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from poller.checks.programs import Answer
from poller.checks.system import service_environment
from poller.cli import setup_service
from poller.cli.setup_service import commands_for_root, install, installation
from poller.config import Config, load
from poller.core.errors import ConfigError, PollerError
from poller.store.overview import SinkOverview
from tests.states import open_state

LOGGING = '[[sinks]]\nname = "logging"\ntype = "logging-service"\nurl = "https://x"\ntag = "activityLog"\n'
LOKI = '[[sinks]]\nname = "loki"\ntype = "loki"\nurl = "https://x"\nusername = "u"\npassword_file = "loki.password"\n'
ARCHIVE = '[[sinks]]\nname = "a"\ntype = "archive"\nurl = "file:///srv/audit"\nshared = true\n'
STATE = '[state]\nurl = "postgresql://u@h/d"\n'
TOKEN = {"IONOS_API_TOKEN": "canary"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a configuration's files, and the system's directories beside it."""
    etc = tmp_path / "etc"
    monkeypatch.setattr(setup_service, "SYSTEM_DIRECTORY", etc)
    monkeypatch.setattr(setup_service, "SYSTEM_CONFIG", etc / "config.toml")
    monkeypatch.setattr(setup_service, "_TOKEN", etc / "token")
    monkeypatch.setattr(setup_service, "_IN_UNIT", {etc / "token", etc / "logging.key"})
    monkeypatch.setattr(setup_service, "UNIT_DIRECTORIES", (tmp_path / "system", tmp_path / "lib"))
    monkeypatch.setattr(sys, "argv", ["/opt/ionos-poller/bin/ionos-poller"])
    monkeypatch.setattr(sys, "executable", "/opt/ionos-poller/bin/python")
    (tmp_path / "mine").mkdir()
    for name in ("logging.key", "loki.password"):
        (tmp_path / "mine" / name).write_text(f"{name}-canary\n")
        (tmp_path / "mine" / name).chmod(0o600)
    return tmp_path


def config(place: Path, text: str, environ: dict[str, str] = TOKEN) -> Config:
    file = place / "mine" / "my.toml"
    file.write_text(text)
    file.chmod(0o600)
    return load(file, environ)


def test_secrets_become_files_of_root_and_the_unit_starts_the_program_that_is_there(place: Path) -> None:
    found = installation(config(place, LOGGING + 'api_key_file = "logging.key"\n' + LOKI))
    etc, system = place / "etc", place / "system"
    assert {path: mode for path, (_, mode) in found.files.items()} == {
        etc / "config.toml": 0o644,
        etc / "token": 0o600,
        etc / "logging.key": 0o600,
        etc / "loki.password": 0o600,
        system / "ionos-poller.service": 0o644,
        system / "ionos-poller.service.d" / "credentials.conf": 0o644,
    }
    assert found.files[etc / "token"][0] == b"canary\n"
    assert b"ExecStart=/opt/ionos-poller/bin/ionos-poller run" in found.files[system / "ionos-poller.service"][0]
    drop_in = found.files[system / "ionos-poller.service.d" / "credentials.conf"][0].decode()
    assert f"LoadCredential=loki.password:{etc}/loki.password" in drop_in
    assert "logging.key" not in drop_in, "the unit asks for it"
    assert not [step for step in found.steps() if "canary" in step]


@pytest.mark.parametrize("first", ["", 'state_dir = "/srv/state"\n', STATE])
def test_the_configuration_names_the_state_so_that_commands_by_hand_find_it(place: Path, first: str) -> None:
    found = installation(config(place, f"\ufeff# mine\n{first}{LOKI}"))
    (text,) = [content.decode() for path, (content, _) in found.files.items() if path.name == "config.toml"]
    added = "" if first else 'state_dir = "/var/lib/ionos-poller"\n'
    assert text == f"{added}# mine\n{first}{LOKI}"


def test_private_keys_become_credentials_too(place: Path) -> None:
    key = place / "mine" / "evidence.key"
    key.write_text("evidence-canary")
    key.chmod(0o600)
    text = f'[evidence]\nsigning_key_file = "evidence.key"\n{ARCHIVE}'
    found = installation(config(place, text))
    assert found.files[place / "etc/evidence.key"] == (b"evidence-canary", 0o600)
    drop_in = found.files[place / "system/ionos-poller.service.d/credentials.conf"][0].decode()
    assert f"LoadCredential=evidence.key:{place}/etc/evidence.key" in drop_in
    wanted = config(place, text)
    key.unlink()
    with pytest.raises(ConfigError, match=r"evidence\.key: cannot be read: No such file"):
        installation(wanted)


def test_what_is_there_already_is_not_written_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(setup_service, "ask", lambda command: asked.append(command) or Answer(0, ""))
    (place / "lib").mkdir()
    (place / "lib" / "ionos-poller.service").write_text("the package's own")
    wanted = config(place, LOGGING + 'api_key_file = "logging.key"\n')
    found = installation(wanted)
    install(found)
    assert sorted(path.name for path in found.files) == ["config.toml", "logging.key", "token"]
    assert (place / "etc").stat().st_mode & 0o777 == 0o755
    assert (place / "etc/token").stat().st_mode & 0o777 == 0o600
    assert [command[1] for command in asked] == ["daemon-reload", "enable", "restart"]
    assert installation(wanted).files == {}


@pytest.mark.parametrize(
    ("text", "environ", "why"),
    [
        (LOGGING + 'api_key = "inline"\n', TOKEN, "the configuration holds secrets"),
        (LOGGING + 'api_key_file = "logging.key"\n', {"IONOS_USERNAME": "u", "IONOS_PASSWORD": "p"}, "needs a token"),
        (LOGGING + 'api_key_file = "logging.key"\n', {}, "no IONOS API token"),
    ],
)
def test_what_makes_no_service_is_told(place: Path, text: str, environ: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        installation(config(place, text, environ))


@pytest.mark.parametrize("program", ["/home/anna/.local/bin/ionos-poller", "/run/user/1/ionos-poller"])
def test_a_program_that_the_sandbox_hides_is_told(place: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(ConfigError, match=f"the service cannot read {program}") as caught:
        installation(config(place, LOKI))
    (problem,) = caught.value.problems
    assert problem.hint.startswith("python3 -m venv /opt/ionos-poller && /opt/ionos-poller/bin/pip install ")
    monkeypatch.setattr(sys, "argv", ["python -m poller"])
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(ConfigError, match="there is no command"):
        installation(config(place, LOKI))


def test_an_interpreter_that_the_sandbox_hides_is_told_with_one_that_it_shows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with pyenv: the program is in /opt, but its links lead to another place."""
    ours = place / "python"
    ours.symlink_to("/home/anna/.pyenv/bin/python3.12")
    monkeypatch.setattr(sys, "executable", str(ours))
    with pytest.raises(ConfigError, match=r"the service cannot read /home/anna/\.pyenv/bin/python") as caught:
        installation(config(place, LOKI))
    (problem,) = caught.value.problems
    assert problem.hint.startswith("/usr/bin/python3 -m venv --clear /opt/ionos-poller && /opt/ionos-poller/bin/pip ")


@pytest.mark.parametrize("closed", ["opt", "opt/venv", "opt/venv/bin", "opt/venv/bin/ionos-poller"])
def test_a_program_that_a_strict_umask_keeps_to_its_owner_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="opened-", dir="/tmp") as name:  # pytest's own are only for their owner
        top = Path(name)
        program = top / "opt/venv/bin/ionos-poller"
        program.parent.mkdir(parents=True)
        program.touch()
        for path in (top, *top.rglob("*")):
            path.chmod(0o755)
        monkeypatch.setattr(sys, "argv", [str(program)])
        monkeypatch.setattr(sys, "prefix", str(top / "opt/venv"))
        assert str(program) in str(installation(config(place, LOKI)).files)
        (top / closed).chmod(0o750)
        with pytest.raises(ConfigError, match=f"cannot read {top / closed}") as caught:
            installation(config(place, LOKI))
        assert caught.value.problems[0].hint == f"chmod {'-R ' if closed != 'opt' else ''}a+rX {top / closed}"


def test_a_systemd_that_refuses_is_told_with_its_words(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_service, "ask", lambda command: Answer(1, "Access denied\n"))
    with pytest.raises(PollerError, match="systemctl daemon-reload failed: Access denied"):
        install(installation(config(place, LOKI)))


def test_root_is_told_to_type_the_same_command_with_what_it_needs_of_the_environment(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["setup", "--service", "--pipeline", "my trail"]
    environ = {**TOKEN, "IONOS_POLLER_CONFIG": "my.toml", "HOME": "/home/anna"}
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/ionos-poller", *typed])
    assert commands_for_root(config(place, LOKI), {}) == [
        "sudo /usr/local/bin/ionos-poller setup --service --pipeline 'my trail'"
    ]
    (line,) = commands_for_root(config(place, LOKI), environ)
    assert "canary" not in line
    assert line.startswith("sudo --preserve-env=IONOS_API_TOKEN,IONOS_POLLER_CONFIG /usr/local/bin/ionos-poller setup")


def test_root_is_told_to_install_first_what_the_service_could_not_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/anna/.local/bin/ionos-poller", "setup", "--service"])
    monkeypatch.setattr(setup_service, "source", lambda: "/home/anna/a checkout")
    assert commands_for_root(config(place, STATE + ARCHIVE + LOKI), {}) == [
        "sudo python3 -m venv /opt/ionos-poller",
        "sudo /opt/ionos-poller/bin/pip install '/home/anna/a checkout[archive,postgres,setup]'",
        "sudo /opt/ionos-poller/bin/ionos-poller setup --service",
    ]


def test_what_keeps_the_first_entry_away_is_told(place: Path) -> None:
    with closing(open_state(place / "state")) as state:
        state.outbox.register("logging", "logging-service")
        empty = state.overview()
    assert setup_service._trouble(None, 0) == setup_service._trouble(empty, 0) == ""
    (row,) = empty.sinks
    parked = SinkOverview(row.sink._replace(parked_at=1.0, postponed_at=5.0, failure="HTTP 401"), 1, None, 0)
    assert setup_service._trouble(empty._replace(sinks=[parked]), 4.0) == "sink logging: HTTP 401"
    assert setup_service._trouble(empty._replace(sinks=[parked]), 6.0) == "", "that was before"


def test_where_to_look_is_said_for_each_sink(place: Path) -> None:
    lines = list(setup_service._where_to_look(config(place, LOGGING + 'api_key_file = "logging.key"\n' + LOKI)))
    assert '{tag_name="activityLog"} | json' in lines[0]
    assert "the Grafana of loki" in lines[1]
    assert "status; journalctl -fu ionos-poller.service" in lines[2]


def test_the_environment_of_the_service_is_that_of_its_unit_and_not_of_the_shell(tmp_path: Path) -> None:
    assert service_environment({}, [tmp_path]) is None
    settings = tmp_path / "environment"
    settings.write_text('# a comment\nIONOS_API_URL="https://x"\n; another\nHTTPS_PROXY=http://proxy\n')
    (tmp_path / "ionos-poller.service").write_text(
        f"[Service]\nEnvironment=A=1 B=2\nEnvironmentFile=-{settings}\nEnvironmentFile=-/nowhere\n"
        "LoadCredential=token:/etc/x/token\nStateDirectory=ionos-poller\n"
    )
    shell = {"PATH": "/bin", "IONOS_API_TOKEN": "t", "http_proxy": "p", "IONOS_POLLER_LOG_LEVEL": "debug"}
    found = service_environment(shell, [tmp_path], running=tmp_path / "no")
    assert found == {
        "PATH": "/bin",
        "IONOS_POLLER_LOG_LEVEL": "debug",
        "A": "1",
        "B": "2",
        "IONOS_API_URL": "https://x",
        "HTTPS_PROXY": "http://proxy",
        "CREDENTIALS_DIRECTORY": "/etc/x",
        "STATE_DIRECTORY": "/var/lib/ionos-poller",
    }
    running = service_environment(shell, [tmp_path], running=tmp_path)
    assert running is not None
    assert running["CREDENTIALS_DIRECTORY"] == str(tmp_path)
