"""`status`: a summary of the state. Reads only, so it works while `run` runs."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import click

from poller.cli.messages import echo_json
from poller.cli.options import GlobalOptionsCommand, Settings
from poller.cli.stopping import until_stopped
from poller.config import Config
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK
from poller.pipeline.status import read_status, status_data
from poller.store.opening import stores_of
from poller.system.terminals import is_capable

if TYPE_CHECKING:
    from rich.console import RenderableType

_WATCH_SECONDS = 2.0


@click.command("status", cls=GlobalOptionsCommand)
@click.option("--json", "as_json", is_flag=True, help="For machines: one object.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until interrupted.")
@click.option(
    "--all",
    "is_whole",
    is_flag=True,
    help="Every contract and every finished backfill. Otherwise a terminal shows 20, those with problems first.",
)
@click.pass_obj
def command(settings: Settings, as_json: bool, watch: bool, is_whole: bool) -> int:
    """Show the state: watermark and lag per contract; backlog, retries and dead letters per sink; the books.

    Exit code 1 when the books do not balance, 4 when a state cannot be used.

    \b
    Examples:
      ionos-poller status
      ionos-poller status --json | jq '.uses.run.sinks'
      ionos-poller status --watch
    """
    config = settings.load(check_files=False)
    if not watch:
        return _show(config, as_json=as_json, is_whole=is_whole)

    def work(stop: threading.Event) -> int:
        if is_capable(sys.stdout) and not as_json:
            _watch_in_place(config, stop, is_whole=is_whole)
        while not stop.is_set():
            _show(config, as_json=as_json, is_whole=is_whole)
            sys.stdout.flush()
            stop.wait(_WATCH_SECONDS)
        return EXIT_OK

    return until_stopped(work)


def _show(config: Config, *, as_json: bool, is_whole: bool) -> int:
    """Print the status once.  Returns: the exit code."""
    seen = read_status(stores_of(config))
    if as_json:
        echo_json(status_data(seen, config))
    else:
        from poller.cli.status_page import CONTRACTS_AT_A_GLANCE, console, page

        contracts = None if is_whole else CONTRACTS_AT_A_GLANCE if sys.stdout.isatty() else sys.maxsize
        console().print(page(config, seen, contracts=contracts))
    if seen.failures:
        return max(failure.exit_code for failure in seen.failures)
    return EXIT_INCOMPLETE if any(use.state.imbalances() for use in seen.uses) else EXIT_OK


def _watch_in_place(config: Config, stop: threading.Event, *, is_whole: bool) -> None:
    """Show the status on an alternate screen, so that the terminal is as before when it ends."""
    from rich.live import Live

    from poller.cli.status_page import console, fitted

    screen, stores = console(), stores_of(config)

    def seen() -> RenderableType:
        return fitted(screen, config, read_status(stores), is_whole=is_whole)

    with Live(seen(), console=screen, screen=True, auto_refresh=False) as live:
        while not stop.wait(_WATCH_SECONDS):
            live.update(seen(), refresh=True)
