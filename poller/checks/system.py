"""Checks of the program's surroundings: the port of its endpoint, systemd's unit and its credentials."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from poller.checks import Finding, fail, ok, warn
from poller.config import Config, SecretSource
from poller.config.files import File
from poller.config.kinds import fields_of
from poller.core.errors import EXIT_CONFIG
from poller.system.listening import Address, is_ours, listen, problem, show, stop_listening

UNIT = "ionos-poller.service"
# Source: systemd.unit(5), "System Unit Search Path", highest precedence first.
UNIT_DIRECTORIES = tuple(
    Path(directory)
    for directory in (
        "/etc/systemd/system",
        "/run/systemd/system",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    )
)
_RUNNING_CREDENTIALS = Path("/run/credentials") / UNIT
# The variables that the program reads. Those of a shell are not the service's.
_OWN_SETTINGS = re.compile(
    r"IONOS_(?!POLLER_LOG_).*|(https?|all|no)_proxy|(requests|curl)_ca_bundle|state_directory", re.IGNORECASE
)
_DEFAULT_CONFIG = "/etc/ionos-poller/config.toml"


def check_listen(address: Address | None, daemon_pid: int | None) -> Finding:
    """Check that `http.listen` is free, or used by our own daemon. `daemon_pid` is the process that holds `run`'s state."""
    name = "http.listen"
    if address is None:
        return ok(name, "turned off")
    try:
        stop_listening(address, listen(address))
    except OSError as error:
        if error.errno == errno.EADDRINUSE and daemon_pid is not None and is_ours(address):
            return ok(name, f"{show(address)}: in use by the daemon, process {daemon_pid}")
        found = problem(address, error)
        return fail(name, found.message, found.hint, EXIT_CONFIG)
    return ok(name, f"{show(address)}: free")


def check_credentials(environ: Mapping[str, str], config: Config) -> Iterator[Finding]:
    """Check that systemd's $CREDENTIALS_DIRECTORY can be read, and that each credential in it is used."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208 - names only
    except OSError as error:
        hint = "check that the unit has LoadCredential= and that this is the unit's user"
        yield fail("credentials", f"{directory}: {error.strerror}", hint, EXIT_CONFIG)
        return
    sources = list(secret_sources(config))
    used = {Path(source.place).name for source in sources if source.origin == "credential"}
    # If the service may not read a file, it uses the credential of that name. The user of `check`, such as root, may read it.
    files = {Path(source.place).name for source in sources if source.origin == "file"}
    files |= {file.name for file in private_files(config)}
    if Path(directory) != _RUNNING_CREDENTIALS and "config.toml" in names:
        return  # not systemd's directory: the directory of the files themselves, which has other files, too
    for name in names:
        # A unit may set an empty credential in place of an optional file.
        if name not in used | files and not _is_blank(Path(directory) / name):
            hint = (
                "name it token, or after its sink, such as logging.key; check whether it is also given in another way"
            )
            yield warn("credentials", f"nothing uses the credential {name}", hint)
    if used:
        yield ok("credentials", f"from systemd: {', '.join(sorted(used))}")


def _is_blank(path: Path) -> bool:
    try:
        return not path.read_bytes().strip()
    except OSError:
        return False


def secret_sources(config: Config) -> Iterator[SecretSource]:
    """The source of each secret of the configuration."""
    for table in (*config.accounts, *config.sinks, config.redact, config.state):
        for name in table.__struct_fields__:
            value = getattr(table, name)
            if isinstance(value, SecretSource):
                yield value


def private_files(config: Config) -> Iterator[Path]:
    """The files of private keys: for evidence, and for certificates."""
    for table in (config.api, config.evidence, *config.sinks):
        for field in fields_of(type(table)):
            if isinstance(field.kind, File) and field.kind.is_private and (file := getattr(table, field.name)):
                yield file


def service_environment(
    environ: Mapping[str, str], directories: Sequence[Path] = UNIT_DIRECTORIES, running: Path = _RUNNING_CREDENTIALS
) -> dict[str, str] | None:
    """The environment that the installed unit gives to its service; None if there is no unit.

    Our variables are kept unless `_OWN_SETTINGS` matches. Credentials are the running service's copies, otherwise their files.
    """
    path = _unit_path(directories)
    if path is None:
        return None
    keys = _unit_keys(path, directories)
    found = {name: value for name, value in environ.items() if not _OWN_SETTINGS.fullmatch(name)}
    for setting in keys.get("Environment", []):
        found |= dict(word.split("=", 1) for word in shlex.split(setting) if "=" in word)
    for name in keys.get("EnvironmentFile", []):
        found |= _environment_file(Path(name.removeprefix("-")))
    sources = [value.partition(":")[2] for value in keys.get("LoadCredential", [])]
    if running.is_dir():
        found["CREDENTIALS_DIRECTORY"] = str(running)
    elif sources:
        found["CREDENTIALS_DIRECTORY"] = str(Path(sources[0]).parent)
    if state := keys.get("StateDirectory"):
        found["STATE_DIRECTORY"] = f"/var/lib/{state[-1].split()[0]}"
    return found


def _environment_file(path: Path) -> dict[str, str]:
    """The settings of a unit's EnvironmentFile=.  Source: systemd.exec(5); values over several lines are not read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.strip().partition("=") for line in lines if not line.strip().startswith(("#", ";")))
    return {name: value.strip().strip("\"'") for name, is_setting, value in pairs if is_setting}


def _unit_path(directories: Sequence[Path]) -> Path | None:
    return next((found for directory in directories if (found := directory / UNIT).is_file()), None)


def check_unit(directories: Sequence[Path] = UNIT_DIRECTORIES) -> Iterator[Finding]:
    """If a unit is installed, check that its program, its configuration and its credentials are there for its user."""
    path = _unit_path(directories)
    if path is None:
        return
    keys = _unit_keys(path, directories)
    problems = [*_check_program(keys), *_check_loaded(keys), *_check_config_mode(keys)]
    yield from problems
    if not problems:
        yield ok("systemd", f"{path}: its program, configuration and credentials are there")


def _unit_keys(path: Path, directories: Sequence[Path]) -> dict[str, list[str]]:
    """The settings of the unit and its drop-ins; as in systemd, an empty value removes those before it."""
    drop_ins = sorted(
        {
            found.name: found
            for directory in reversed(directories)
            for found in (directory / f"{UNIT}.d").glob("*.conf")
        }.items()
    )
    keys: dict[str, list[str]] = {}
    for file in (path, *(found for _, found in drop_ins)):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:  # this user may list the file, but not read it
            continue
        for line in text.replace("\\\n", " ").splitlines():
            key, is_setting, value = line.strip().partition("=")
            if not is_setting or key.startswith(("#", ";")):
                continue
            if value.strip():
                keys.setdefault(key.strip(), []).append(value.strip())
            else:
                keys.pop(key.strip(), None)
    return keys


def _check_program(keys: Mapping[str, list[str]]) -> Iterator[Finding]:
    for command in keys.get("ExecStart", []):
        program = command.lstrip("@-:+!").split()[0]
        if program.startswith("/") and not os.access(program, os.X_OK):
            hint = "set ExecStart= in a drop-in (`systemctl edit ionos-poller`) to where ionos-poller is installed"
            yield fail("systemd", f"the unit's program {program} is missing", hint, EXIT_CONFIG)


def _check_loaded(keys: Mapping[str, list[str]]) -> Iterator[Finding]:
    replaced = {value.partition(":")[0] for value in keys.get("SetCredential", [])}
    for value in keys.get("LoadCredential", []):
        name, _, source = value.partition(":")
        if not source.startswith("/"):
            continue
        mode = _mode(source)
        if mode == 0 and name not in replaced:
            hint = "put the secret there (mode 0600), or take the line out of the unit with a drop-in"
            yield fail(
                "systemd", f"LoadCredential={name}: {source} is missing, so the unit does not start", hint, EXIT_CONFIG
            )
        elif mode and stat.S_ISREG(mode) and mode & 0o077:
            yield warn("systemd", f"others can read {source}", f"chmod 600 {source}: systemd reads it as root")


def _check_config_mode(keys: Mapping[str, list[str]]) -> Iterator[Finding]:
    """Warn if the unit's user is not root and cannot read the configuration."""
    is_dynamic = keys.get("DynamicUser", ["no"])[-1].lower() in ("yes", "true", "on", "1")
    is_root = not is_dynamic and keys.get("User", ["root"])[-1] in ("root", "0")
    for command in keys.get("ExecStart", []):
        words = shlex.split(command)
        named = [after for word, after in pairwise(words) if word == "--config"]
        config = named[0] if named else _DEFAULT_CONFIG
        mode = _mode(config)
        if mode and not is_root and not mode & 0o004:
            hint = f"chmod 644 {config}, with every secret in a file of its own, handed over by LoadCredential="
            yield warn("systemd", f"the unit's user cannot read {config}", hint)


def _mode(path: str) -> int | None:
    """The mode of a file; 0 if it does not exist; None if we may not see it."""
    try:
        return Path(path).stat().st_mode
    except FileNotFoundError:
        return 0
    except OSError:
        return None
