"""`sinks`: those the state knows, and letting go of one that left the configuration."""

from __future__ import annotations

import click

from poller.cli import suggestions
from poller.cli.acting import acting
from poller.cli.options import USE, GlobalOptionsCommand, GlobalOptionsGroup, Settings, use_of
from poller.core.errors import EXIT_OK, ConfigError, Problem
from poller.store import State
from poller.store.overview import overview_of


@click.group("sinks", cls=GlobalOptionsGroup)
def command() -> None:
    """Sinks known to the state: list, forget.

    \b
    Examples:
      ionos-poller sinks list
      ionos-poller sinks forget old-loki
    """


@command.command("list", cls=GlobalOptionsCommand, short_help="What was delivered to each, and what waits.")
@USE
@click.pass_obj
def list_(settings: Settings, use: str | None) -> int:
    """List the sinks the state knows: what waits for each, and whether it is still configured.

    \b
    Example:
      ionos-poller sinks list
    """
    config = settings.load(check_files=False)
    configured = {sink.name for sink in config.sinks}
    use = use_of(use, config.state_dir)
    for row in overview_of(State.path(config.state_dir, use)).sinks:
        note = "" if row.sink.name in configured or use != "run" else "  left the config: `sinks forget` lets go of it"
        click.echo(
            f"{row.sink.name}  {row.sink.type}  delivered {row.sink.delivered}  waiting {row.waiting}"
            f"  dead letters {row.dead_letters}{note}"
        )
    return EXIT_OK


@command.command("forget", cls=GlobalOptionsCommand, short_help="Let go of a sink that left the config.")
@click.argument("name", shell_complete=suggestions.sinks_gone)
@USE
@click.pass_obj
def forget(settings: Settings, name: str, use: str | None) -> int:
    """Let go of a sink that left the configuration: what waited for it alone is deleted.

    \b
    Example:
      ionos-poller sinks forget old-loki
    """
    config = settings.load(check_files=False)
    if name in {sink.name for sink in config.sinks}:
        hint = "remove it from the config first, and reload `run` with SIGHUP"
        raise ConfigError([Problem("NAME", f"{name} is a configured sink", hint)])
    state = State.attach(config.state_dir, use_of(use, config.state_dir))
    try:
        waiting = sum(row.waiting for row in state.overview().sinks if row.sink.name == name)
        with acting(config.state_dir, "sinks forget", name) as by:
            is_known = state.outbox.forget(name, by=by)
        if not is_known:
            known = ", ".join(sink.name for sink in state.outbox.sinks()) or "none"
            raise ConfigError([Problem("NAME", f"the state knows no sink {name}", f"it knows: {known}")])
    finally:
        state.close()
    click.echo(f"{name} forgotten, and {waiting:,} entries that waited for it" if waiting else f"{name} forgotten")
    return EXIT_OK
