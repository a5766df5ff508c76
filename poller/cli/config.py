"""`config`: an example, the effective configuration, the JSON Schema."""

from __future__ import annotations

import json

import click

from poller.cli.options import GlobalOptionsGroup, Settings
from poller.config import describe
from poller.core.errors import EXIT_OK


@click.group("config", cls=GlobalOptionsGroup)
def command() -> None:
    """Example, effective configuration, JSON Schema.

    \b
    Examples:
      ionos-poller config example > ionos-poller.toml
      ionos-poller config show
      ionos-poller config schema > schema.json
    """


@command.command("example", short_help="Every key, its default and what it does.")
def example() -> int:
    """Print a complete configuration with every key, its default and what it does.

    \b
    Example:
      ionos-poller config example > ionos-poller.toml
    """
    click.echo(describe.example(), nl=False)
    return EXIT_OK


@command.command("show", short_help="What is in effect, with secrets masked.")
@click.option("--json", "as_json", is_flag=True, help="As JSON instead of TOML.")
@click.pass_obj
def show(settings: Settings, as_json: bool) -> int:
    """Print the configuration in effect, from file, environment and defaults, with secrets masked.

    \b
    Example:
      IONOS_POLLER_POLL__INTERVAL=30s ionos-poller config show
    """
    click.echo(describe.effective(settings.load(check_files=False), as_json=as_json), nl=False)
    return EXIT_OK


@command.command("schema", short_help="The JSON Schema, for editors.")
def schema() -> int:
    """Print the JSON Schema of the configuration, for editors.

    \b
    Example:
      ionos-poller config schema > ionos-poller.schema.json
    """
    click.echo(json.dumps(describe.schema(), indent=2))
    return EXIT_OK
