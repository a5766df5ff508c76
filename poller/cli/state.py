"""`state`: the tables of a state in a database, and copies from files to a database and back."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import msgspec

from poller.cli.messages import settle, wrapped
from poller.cli.options import GlobalOptionsGroup, PathType, Settings
from poller.config import Config
from poller.config.checks import BadValueError
from poller.config.state_url import parse_state_url
from poller.core.errors import EXIT_OK, ConfigError
from poller.pipeline.copy import copy as copy_states
from poller.store.opening import stores_of
from poller.store.protocols import Stores
from poller.system.terminals import is_capable

log = logging.getLogger(__name__)


@click.group("state", cls=GlobalOptionsGroup)
def command() -> None:
    """The state in a database: its tables, and copies from files to a database and back.

    \b
    Examples:
      ionos-poller state init
      ionos-poller state copy --from state --to postgresql://poller@db/poller
    """


@command.command("init", short_help="Create or upgrade the tables in PostgreSQL.")
@click.pass_obj
def init(settings: Settings) -> int:
    """Create the schema and its tables in the database of `[state] url`, or bring them up to this version.

    The first start does the same if its database role may. If it may not, run this as the owner of the database.

    \b
    Example:
      IONOS_POLLER_STATE__URL=postgresql://owner@db/poller ionos-poller state init
    """
    config = settings.load(check_files=False)
    if not config.state.url:
        hint = "set state.url to that of a PostgreSQL database; files need no init"
        raise ConfigError.of("state.url", "missing", hint)
    stores = stores_of(config)
    applied = stores.prepare()
    click.echo(f"{stores.place}: schema {config.state.schema} {'is ready' if applied else 'was ready already'}")
    return EXIT_OK


@command.command("copy", short_help="From files to a database, and back.")
@click.option(
    "--from",
    "source",
    required=True,
    type=PathType(None),
    metavar="PLACE",
    help="The state directory or database URL to copy from.",
)
@click.option(
    "--to",
    "target",
    required=True,
    type=PathType(None),
    metavar="PLACE",
    help="The state directory or database URL to copy to.",
)
@click.pass_obj
def copy(settings: Settings, source: str, target: str) -> int:
    """Copy every state of a place to another: watermarks, ledger, outbox, places, dead letters, gaps, journal and books.

    All or nothing. Refused while a process uses either, and if the target already has a state. The source is not changed:
    do not run both. The password of a database is that of `[state]` in the configuration.

    \b
    Examples:
      ionos-poller state copy --from state --to postgresql://poller@db/poller
      ionos-poller state copy --from postgresql://poller@db/poller --to state
    """
    config = settings.load(check_files=False)
    if "://" not in source and "://" not in target and Path(source).resolve() == Path(target).resolve():
        raise ConfigError.of("--to", "is the directory of --from", "name another directory, or a database")
    before, after = _stores(config, source, "--from"), _stores(config, target, "--to")
    uses = copy_states(before, after, _tell)
    click.echo(wrapped(f"copied {', '.join(uses)} from {before.place} to {after.place}", sys.stdout))
    return EXIT_OK


def _stores(config: Config, place: str, option: str) -> Stores:
    """The states at a place.  Raises: ConfigError."""
    if "://" not in place:
        state = msgspec.structs.replace(config.state, url="")
        return stores_of(msgspec.structs.replace(config, state=state, state_dir=Path(place)))
    try:
        if parse_state_url(place).password:
            hint = "a command line is not secret: give password_file in [state]"
            raise ConfigError.of(option, "holds a password", hint)
    except BadValueError as error:
        raise ConfigError.of(option, error.message, error.hint) from error
    return stores_of(msgspec.structs.replace(config, state=msgspec.structs.replace(config.state, url=place)))


def _tell(done: int, total: int) -> None:
    if is_capable(sys.stderr):
        click.echo(f"\r{done:,} of {total:,} rows", nl=done == total, err=True)
        settle()
    elif done == total or done % 100_000 == 0:
        log.info("state.copied", extra={"rows": done, "of": total})
