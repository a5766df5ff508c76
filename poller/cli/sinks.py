"""`sinks`: lists the sinks in a state, tries one now, and forgets one that is no longer configured."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import click

from poller.cli import suggestions
from poller.cli.acting import acting, is_at_work
from poller.cli.messages import tell
from poller.cli.options import USE, GlobalOptionsGroup, Settings, use_of
from poller.cli.stopping import until_stopped
from poller.core.amounts import plural
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, ConfigError, PollerError
from poller.pipeline.status import read_use
from poller.sinks.output import WRITTEN
from poller.sinks.stdout import PRINTED
from poller.store.journal import FORGET_SINK
from poller.store.opening import stores_of
from poller.store.overview import SinkOverview
from poller.store.protocols import State

_OUTCOME_SECONDS = 20.0  # the daemon notices it and most receivers answer within this time
_LOOK_AGAIN_SECONDS = 0.2


@click.group("sinks", cls=GlobalOptionsGroup)
def command() -> None:
    """Sinks known to the state: list, retry, forget.

    \b
    Examples:
      ionos-poller sinks list
      ionos-poller sinks retry logging
      ionos-poller sinks forget old-loki
    """


@command.command("list", short_help="What was delivered to each, and what waits.")
@USE
@click.pass_obj
def list_(settings: Settings, use: str | None) -> int:
    """List the sinks the state knows: what waits for each, and whether it is still configured.

    \b
    Example:
      ionos-poller sinks list
    """
    from poller.cli.status_page import console, sinks_page

    config = settings.load(check_files=False)
    stores = stores_of(config)
    console().print(sinks_page(config, read_use(stores, use_of(use, stores))))
    return EXIT_OK


@command.command("retry", short_help="Try it now, after its problem was fixed.")
@click.argument("name", shell_complete=suggestions.known_sinks)
@USE
@click.pass_obj
def retry(settings: Settings, name: str, use: str | None) -> int:
    """Try a sink now that waits after a failure or is parked, and report the result.

    Exit code 1 when it failed again. While nothing runs, the next start tries it at once.

    \b
    Example:
      ionos-poller sinks retry logging
    """
    config = settings.load(check_files=False)
    stores = stores_of(config)
    use = use_of(use, stores)

    def work(stop: threading.Event) -> int:
        with closing(stores.attach(use)) as state:
            before = _sink(state, name)
            if use == "run" and name not in {sink.name for sink in config.sinks}:
                hint = f"put it back, then `ionos-poller reload`; `ionos-poller sinks forget {name}` deletes what waits for it"
                raise ConfigError.of("NAME", f"{name} left the config, so nothing is sent to it", hint)
            if before.sink.retry_at is None and not before.postponed:
                click.echo(f"{name} does not wait for anything: {_told(before)}")
                return EXIT_OK
            with acting(stores, "sinks retry", name) as by:
                state.outbox.retry(name, time.time(), by=by)
            if not is_at_work(stores, state):
                click.echo(f"{name} is tried as soon as `{use}` runs: it does not run now")
                return EXIT_OK
            return _outcome(state, before, stop)

    return until_stopped(work)


def _outcome(state: State, before: SinkOverview, stop: threading.Event) -> int:
    """Wait for the try, and report the result."""
    name, deadline = before.sink.name, time.monotonic() + _OUTCOME_SECONDS
    while time.monotonic() < deadline and not stop.wait(_LOOK_AGAIN_SECONDS):
        after = _sink(state, name)
        if after.sink.retry_at is None and not after.postponed:
            click.echo(f"{name} works again: {_told(after)}")
            return EXIT_OK
        if _tries(after) != _tries(before):
            failures = [after.sink.failure, *(f"contract {row.contract}: {row.failure}" for row in after.postponed)]
            tell(str(PollerError(f"it failed again: {next(filter(None, failures))}", sink=name)))
            return EXIT_INCOMPLETE
    click.echo(f"{name} is being tried; `ionos-poller status` shows the result")
    return EXIT_OK


def _tries(row: SinkOverview) -> list[float | None]:
    """When the sink was tried last, then the same for each contract that waits on its own."""
    return [row.sink.postponed_at, *(one.postponed_at for one in row.postponed)]


def _told(row: SinkOverview) -> str:
    return f"delivered {row.sink.delivered:,}, waiting {row.waiting:,}"


def _sink(state: State, name: str) -> SinkOverview:
    """The sink's row in the state.  Raises: ConfigError if there is no sink of that name."""
    rows = {row.sink.name: row for row in state.overview().sinks}
    if name not in rows:
        raise ConfigError.of("NAME", f"the state knows no sink {name}", f"it knows: {', '.join(rows) or 'none'}")
    return rows[name]


@command.command("forget", short_help="Forget a sink that is no longer configured.")
@click.argument("name", shell_complete=suggestions.sinks_gone)
@USE
@click.pass_obj
def forget(settings: Settings, name: str, use: str | None) -> int:
    """Forget a sink that is no longer configured. What waits for this sink only is deleted.

    \b
    Example:
      ionos-poller sinks forget old-loki
    """
    config = settings.load(check_files=False)
    if name in {sink.name for sink in config.sinks}:
        hint = "remove it from the config first, then `ionos-poller reload`"
        raise ConfigError.of("NAME", f"{name} is a configured sink", hint)
    stores = stores_of(config)
    use = use_of(use, stores)
    if use != "run" and name in (PRINTED.name, WRITTEN.name):
        hint = "what waits for it is sent when the same command runs again"
        raise ConfigError.of("NAME", f"{name} is the output of {use} itself, which cannot leave the config", hint)
    with closing(stores.attach(use)) as state:
        waiting = _sink(state, name).waiting
        with acting(stores, FORGET_SINK, name) as by:
            state.outbox.forget(name, by=by)
    lost = f", and {plural(waiting, 'entry')} that waited for it" if waiting else ""
    click.echo(f"{name} forgotten{lost}")
    return EXIT_OK
