"""What the kinds of `setup` have in common: asking a person, printing the steps, adding a sink to the configuration."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import click

from poller.cli.messages import note, printable
from poller.cli.options import Settings
from poller.cli.stopping import until_stopped
from poller.config import Account, Config, load, process_environment
from poller.config.checks import BadValueError, check_url, is_clear_text
from poller.config.load import SYSTEM_CONFIG
from poller.core.errors import ConfigError, StoppedError
from poller.system.files import NewFile

Result = TypeVar("Result")

STATE_DIRECTORY = Path("/var/lib/ionos-poller")
"""The state directory of the service."""


def is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def ask(option: str, question: str, default: str, choices: tuple[str, ...] = ()) -> str:
    """Ask on a terminal.  Raises: ConfigError if there is none."""
    if not is_terminal():
        raise ConfigError.of(option, "missing", "give it: without a terminal, nobody can be asked")
    kind = click.Choice(choices) if choices else None
    return str(click.prompt(question, default=default, type=kind, err=True))


def confirm(is_agreed: bool) -> None:
    if is_agreed:
        return
    if not is_terminal():
        raise ConfigError.of("--yes", "missing", "give it to have this done, or --dry-run to only see it")
    click.confirm("Do this?", default=True, abort=True, err=True)


def tell_steps(steps: Sequence[str], *, is_dry_run: bool) -> None:
    """Print each step that will be done, or would be, in one line."""
    for step in steps:
        click.echo(printable(f"{'would ' if is_dry_run else ''}{step}"))
    if is_dry_run:
        click.echo("nothing was changed" if steps else "nothing to do")


def secure_url(url: str) -> str:
    """The address of an API, without a slash at its end.  Raises: ConfigError if it is not a URL, or is not encrypted."""
    try:
        url = check_url(url)
    except BadValueError as error:
        raise ConfigError.of("--api-url", error.message, error.hint) from None
    if is_clear_text(url):
        raise ConfigError.of("--api-url", "would send the token in clear text", "use https://")
    return url


def load_existing(path: Path, settings: Settings) -> Config:
    """The current configuration: the file, if it exists, and the environment.  Raises: ConfigError."""
    try:
        is_there = path.exists()
    except OSError:  # `load` says why it cannot be read
        is_there = True
    return load(path if is_there else None, settings.variables, state_dir=settings.state_dir, check_files=False)


def account_of(config: Config, name: str | None) -> Account:
    """The account of this name; without one, the only one.  Raises: ConfigError."""
    accounts = [account for account in config.accounts if name in (None, account.name)]
    if len(accounts) != 1:
        names = ", ".join(account.name for account in config.accounts)
        raise ConfigError.of("--account", "does not name one account", f"there is {names}")
    return accounts[0]


def in_turn(work: Callable[[threading.Event], Result], *, grace_seconds: float = 1.0) -> Result:
    """Do one step of several.  Raises: StoppedError if a signal came meanwhile, even if the step is done."""

    def do(stop: threading.Event) -> Result:
        result = work(stop)
        if stop.is_set():
            raise StoppedError("asked to stop")
        return result

    return until_stopped(do, grace_seconds=grace_seconds)


def path_beside(path: Path, config_path: Path) -> str:
    """A path as the configuration names it: only the file name if both are in the same directory."""
    return str(path.absolute()) if path.parent != config_path.parent else path.name


def add_table(table: Mapping[str, str | Sequence[str]], config: Config, config_path: Path) -> None:
    """Add a sink's table at the end of the file, which is otherwise unchanged.  Raises: ConfigError."""
    lines = ["[[sinks]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), ""]
    source = config.source
    is_system = config_path.absolute().parent == SYSTEM_CONFIG.parent
    before = source.read_bytes() if source else b"# `ionos-poller config example` shows every key.\n"
    if source is None and is_system:  # so that commands by hand find the service's state
        before += f'state_dir = "{STATE_DIRECTORY}"\n'.encode()
    content = before.rstrip(b"\n") + b"\n\n" + "\n".join(lines).encode()
    with NewFile(config_path) as file:
        file.write(content)
        try:
            load(file.draft, process_environment(), check_files=False)
        except ConfigError as error:
            hint = f"add this table to it by hand: {' '.join(lines)}"
            raise ConfigError.of(str(config_path), "cannot be added to as it is", hint) from error
        # The service's user must read the system's configuration. It holds no secret: secrets are in separate files.
        file.commit(source.stat().st_mode & 0o777 if source else 0o644 if is_system else 0o600)
    note(f"wrote {config_path}")
