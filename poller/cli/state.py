"""`state`: the tables of a state in a database."""

from __future__ import annotations

import click

from poller.cli.options import GlobalOptionsCommand, GlobalOptionsGroup, Settings
from poller.core.errors import EXIT_OK, ConfigError, Problem
from poller.store.opening import stores_of


@click.group("state", cls=GlobalOptionsGroup)
def command() -> None:
    """The state in a database: its tables.

    \b
    Examples:
      ionos-poller state init
    """


@command.command("init", cls=GlobalOptionsCommand, short_help="Create or upgrade the tables in PostgreSQL.")
@click.pass_obj
def init(settings: Settings) -> int:
    """Create the schema and its tables in the database of `[state] url`, or bring them up to this version.

    The first start does so as well, where its role may. Run it as the owner of the database where it may not.

    \b
    Example:
      IONOS_POLLER_STATE__URL=postgresql://owner@db.example/poller ionos-poller state init
    """
    config = settings.load(check_files=False)
    if not config.state.url:
        hint = "set state.url to that of a PostgreSQL database; files need no init"
        raise ConfigError([Problem("state.url", "missing", hint)])
    stores = stores_of(config)
    applied = stores.prepare()
    click.echo(f"{stores.place}: schema {config.state.schema} {'is ready' if applied else 'was ready already'}")
    return EXIT_OK
