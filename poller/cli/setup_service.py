"""`setup --service`: turns a configuration into a running systemd service: secrets as credentials, the unit, the first entry.

Secrets are written only to files of root (0600), which systemd passes to the service. They never stay in an environment.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import click

from poller.checks.programs import ask
from poller.checks.system import UNIT, UNIT_DIRECTORIES, private_files, secret_sources
from poller.cli.acting import log_done
from poller.cli.messages import note, printable, tell
from poller.cli.setup_steps import STATE_DIRECTORY
from poller.cli.stopping import until_stopped
from poller.config import Config, LoggingServiceSink, load
from poller.config.installed import source
from poller.config.load import SYSTEM_CONFIG
from poller.config.sinks import LokiSink
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, ConfigError, PollerError, StateError
from poller.store.opening import stores_of
from poller.store.overview import Overview
from poller.system.files import NewFile

SYSTEM_DIRECTORY = SYSTEM_CONFIG.parent
_TOKEN = SYSTEM_DIRECTORY / "token"
_PROGRAM = Path("/opt/ionos-poller/bin/ionos-poller")  # of an installation that only the service uses
_EXTRAS = {"archive", "firehose", "kafka", "otlp"}  # each has the name of the sink type that needs it
_USUAL_PROGRAM = "/usr/local/bin/ionos-poller"
_HIDDEN = ("/home", "/root", "/run/user")  # by ProtectHome= of the unit
_IN_UNIT = {_TOKEN, SYSTEM_DIRECTORY / "logging.key"}  # the unit loads these already
_LOOK_AGAIN_SECONDS = 0.5
_FIRST_ENTRY_SECONDS = 120.0


class Installation(NamedTuple):
    """What the service needs: files by their path, each with its content and mode, and the commands to run after that."""

    files: Mapping[Path, tuple[bytes, int]]
    commands: tuple[tuple[str, ...], ...] = (
        ("systemctl", "daemon-reload"),
        ("systemctl", "enable", UNIT),
        ("systemctl", "restart", "--no-block", UNIT),
    )

    def steps(self) -> Iterator[str]:
        """Each step in one line, without the content of files: it may be a secret."""
        for path, (_, mode) in self.files.items():
            yield f"write {path} (mode {mode:04o})"
        for command in self.commands:
            yield f"run {shlex.join(command)}"


def service_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the secrets that are already stored for the service."""
    return {"CREDENTIALS_DIRECTORY": str(SYSTEM_DIRECTORY), **environ}


def installation(config: Config) -> Installation:
    """What must be installed for this configuration, without unchanged files.  Raises: ConfigError."""
    program = _program(config)
    files: dict[Path, tuple[bytes, int]] = {}
    token = config.accounts[0].credentials().token
    if token is None:
        raise ConfigError.of("--service", "needs a token, not a user name and a password", "make one in the DCD")
    source = config.source
    if source is not None and source.absolute() != SYSTEM_CONFIG:
        files[SYSTEM_CONFIG] = (_with_state_directory(source, config), 0o644)
    if any(found.origin == "inline" for found in secret_sources(config)):
        hint = "keep each in a file of its own, named by its ..._file key"
        raise ConfigError.of(
            "--service", "the configuration holds secrets, and every user can read the service's", hint
        )
    files[_TOKEN] = (token.reveal().encode() + b"\n", 0o600)
    loaded = []
    secrets = {Path(found.place): found for found in secret_sources(config) if found.origin in ("file", "credential")}
    for named in (*secrets, *private_files(config)):
        path = named.absolute()
        is_moved = source is not None and path.parent == source.absolute().parent != SYSTEM_DIRECTORY
        target = SYSTEM_DIRECTORY / path.name if is_moved else path
        if is_moved:
            content = secrets[named].read().reveal().encode() + b"\n" if named in secrets else _content(path)
            files.setdefault(target, (content, 0o600))
        if target not in _IN_UNIT:
            loaded.append(f"LoadCredential={target.name}:{target}")
    if not any((directory / UNIT).exists() for directory in UNIT_DIRECTORIES[1:]):
        files[UNIT_DIRECTORIES[0] / UNIT] = (_unit().replace(_USUAL_PROGRAM, program).encode(), 0o644)
    if loaded:
        text = "\n".join(["# Written by `ionos-poller setup --service`.", "[Service]", *dict.fromkeys(loaded), ""])
        files[UNIT_DIRECTORIES[0] / f"{UNIT}.d" / "credentials.conf"] = (text.encode(), 0o644)
    is_there = {path: path.is_file() and path.read_bytes() == content for path, (content, _) in files.items()}
    return Installation({path: found for path, found in files.items() if not is_there[path]})


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError.of(str(path), f"cannot be read: {error.strerror}", "check that the file exists") from error


def _with_state_directory(source: Path, config: Config) -> bytes:
    """The configuration. If it names no state, the service's is added, so that commands by hand find it."""
    text = source.read_text(encoding="utf-8-sig")
    is_named = config.state.url or "state_dir" in tomllib.loads(text)
    return (text if is_named else f'state_dir = "{STATE_DIRECTORY}"\n{text}').encode()


def install(found: Installation) -> None:
    """Write the files and start the service.  Raises: ConfigError, PollerError."""
    log_done("setup --service", "; ".join(found.steps()))
    make_directory()
    for path, (content, mode) in found.files.items():
        path.parent.mkdir(exist_ok=True)
        with NewFile(path) as file:
            file.write(content)
            file.commit(mode)
    for command in found.commands:
        answer = ask(command)
        if answer.code:
            said = printable(answer.said.strip())
            raise PollerError(f"{shlex.join(command)} failed: {said}", hint=f"journalctl -u {UNIT} -n 20 says more")


def commands_for_root(config: Config, environ: Mapping[str, str]) -> list[str]:
    """The commands that root must run: the installation, if the service cannot read this program, and this command again."""
    found, hidden = _found_program()
    installing = [f"sudo {command}" for command in _installing(config)] if hidden else []
    kept = sorted(name for name in environ if name.startswith("IONOS_"))
    words = ["sudo", *([f"--preserve-env={','.join(kept)}"] if kept else []), str(_PROGRAM) if hidden else found]
    return [*installing, shlex.join([*words, *sys.argv[1:]])]


def _installing(config: Config) -> list[str]:
    """The commands that install this program where the service can read it, with the extras that the configuration needs."""
    extras = {"setup", *({"postgres"} if config.state.url else ()), *(_EXTRAS & {sink.type for sink in config.sinks})}
    wanted = shlex.quote(f"{source()}[{','.join(sorted(extras))}]")
    # If the service cannot read our interpreter, use another one. Without --clear, an old venv keeps its links to ours.
    making = "/usr/bin/python3 -m venv --clear" if _is_hidden(os.path.realpath(sys.executable)) else "python3 -m venv"
    return [f"{making} {_PROGRAM.parents[1]}", f"{_PROGRAM.with_name('pip')} install {wanted}"]


def make_directory() -> None:
    """Create the directory of the configuration. The service's user must be able to enter it."""
    if not SYSTEM_DIRECTORY.exists():
        SYSTEM_DIRECTORY.mkdir(parents=True)
        SYSTEM_DIRECTORY.chmod(0o755)


def await_first_entry() -> int:
    """Wait until the service has delivered an entry, and say where to look.  Returns: the exit code."""
    config = load(SYSTEM_CONFIG, service_environment({}), state_dir=STATE_DIRECTORY, check_files=False)
    note("waiting for the first entry (Ctrl-C: the service goes on)")
    return until_stopped(lambda stop: _await(config, stop))


def _await(config: Config, stop: threading.Event) -> int:
    started = time.time()
    while not stop.wait(_LOOK_AGAIN_SECONDS):
        state = _state(config)
        trouble = _trouble(state, started)
        if trouble or _has_failed():
            tell(f"the service does not deliver: {trouble or 'it ended'} (journalctl -u {UNIT} -n 20 says more)")
            return EXIT_INCOMPLETE
        delivered = {row.sink.name: row.sink.delivered for row in state.sinks} if state else {}
        if state is not None and any(delivered.values()) and _is_polled(state, started):
            told = ", ".join(f"{count:,} to {name}" for name, count in delivered.items())
            click.echo(f"the service runs and delivers: {told}")
            break
        if time.time() - started > _FIRST_ENTRY_SECONDS:
            note("no entry came yet: nothing may have happened in your contracts. The service goes on")
            break
    for line in _where_to_look(config):
        click.echo(line)
    return EXIT_OK


def _state(config: Config) -> Overview | None:
    try:
        return stores_of(config).snapshot("run")
    except StateError:  # the service creates it when it starts
        return None


def _trouble(state: Overview | None, since: float) -> str:
    """The problem that stops the first entry and needs a person; "" if there is none."""
    if state is None:
        return ""
    parked = [
        f"sink {row.sink.name}: {row.sink.failure}"
        for row in state.sinks
        if row.sink.parked_at is not None and (row.sink.postponed_at or 0) >= since
    ]
    failed = [
        f"contract {row.contract}: {row.failure}" for row in state.contracts if row.failure and not row.succeeded_at
    ]
    return next(iter([*parked, *failed]), "")


def _is_polled(state: Overview, since: float) -> bool:
    """Whether this start has read every contract."""
    return all((row.succeeded_at or 0) >= int(since) for row in state.contracts)


def _has_failed() -> bool:
    """Whether the service has failed, or systemd is restarting it after a failure."""
    said = ask(["systemctl", "show", "--value", "--property=ActiveState,SubState", UNIT]).said.split()
    return "failed" in said or "auto-restart" in said


def _where_to_look(config: Config) -> Iterator[str]:
    for sink in config.sinks:
        if isinstance(sink, LoggingServiceSink):
            yield f'look: in the Grafana that the DCD shows for the pipeline, {{tag_name="{sink.tag}"}} | json'
        elif isinstance(sink, LokiSink):
            labels = ", ".join(f'{name}="{value}"' for name, value in sink.labels.items())
            yield f"look: in the Grafana of {sink.name}, {{{labels}}} | json"
    yield f"look: ionos-poller --state-dir {STATE_DIRECTORY} status; journalctl -fu {UNIT}"


def _program(config: Config) -> str:
    """The command that the unit starts.  Raises: ConfigError if the service cannot read it."""
    found, hidden = _found_program()
    if hidden:
        hint = f"{' && '.join(_installing(config))}; then {_PROGRAM} setup --service"
        raise ConfigError.of("--service", f"the service cannot read {hidden}", hint)
    if closed := _closed_to_others(Path(found)):
        hint = f"chmod {'-R ' if closed.is_relative_to(sys.prefix) else ''}a+rX {closed}"
        raise ConfigError.of("--service", f"the service, which has a user of its own, cannot read {closed}", hint)
    return found


def _closed_to_others(program: Path) -> Path | None:
    """The outermost directory of a program's path that not all users may enter, or the program. A strict umask causes this."""
    for path in (program, program.resolve()):
        for place in (*reversed(path.parents), path):
            if place.exists() and not place.stat().st_mode & stat.S_IXOTH:
                return place
    return None


def _found_program() -> tuple[str, str]:
    """The command that runs, and which part of it the unit's sandbox hides, or "".  Raises: ConfigError."""
    name = Path(sys.argv[0])
    found = str(name.absolute()) if name.name == "ionos-poller" else shutil.which("ionos-poller")
    if found is None:
        raise ConfigError.of("--service", "there is no command ionos-poller", "install it, such as in /opt")
    places = (found, os.path.realpath(found), os.path.realpath(sys.executable))
    return found, next(filter(_is_hidden, places), "")


def _is_hidden(path: str) -> bool:
    """Whether the unit's sandbox hides a path from the service."""
    return any(Path(path).is_relative_to(directory) for directory in _HIDDEN)


def _unit() -> str:
    """The text of the unit: from a wheel, which has it beside this file, otherwise from the checkout."""
    beside = Path(__file__).with_name(UNIT)
    path = beside if beside.exists() else Path(__file__).resolve().parents[2] / "systemd" / UNIT
    return path.read_text(encoding="utf-8")
