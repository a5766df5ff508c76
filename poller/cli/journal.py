"""`journal`: what people did to a state by hand. Reads only, so it works while `run` runs."""

from __future__ import annotations

import sys

import click

from poller.cli.messages import echo_json, note, printable
from poller.cli.options import PAST, USE, GlobalOptionsCommand, Settings, use_of
from poller.core.errors import EXIT_OK
from poller.core.windows import format_time
from poller.pipeline.status import action_data
from poller.store.journal import JournalEntry
from poller.store.opening import stores_of

_LINES = 50


@click.command("journal", cls=GlobalOptionsCommand)
@click.option("--since", type=PAST, metavar="T", help="Only from T on.")
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help=f"The latest N. Default: {_LINES}, and with --json all."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@USE
@click.pass_obj
def command(settings: Settings, since: int | None, limit: int | None, as_json: bool, use: str | None) -> int:
    """What people did to the state by hand: when, who, what, how many, and why. Oldest first.

    It lists dead-letters replay and purge, sinks forget and retry, gaps accept and retry, audit --repair, --since, --adopt-state,
    and reloads of `run`.

    \b
    Examples:
      ionos-poller journal
      ionos-poller journal --since 7d --json
    """
    stores = stores_of(settings.load(check_files=False))
    limit = min(limit, sys.maxsize) if limit is not None else None if as_json else _LINES
    entries = stores.journal(use_of(use, stores), since=since or 0, limit=limit)
    for entry in entries:
        if as_json:
            echo_json(action_data(entry))
        else:
            click.echo(line_of(entry))
    if not entries and not as_json:
        note("nothing was done by hand")
    return EXIT_OK


def line_of(entry: JournalEntry) -> str:
    """An entry of the journal in one line."""
    count = "" if entry.affected is None else f"  count: {entry.affected:,}"
    reason = f"  reason: {entry.reason}" if entry.reason else ""
    export = f"  export: {entry.export}" if entry.export else ""
    subject = f"  {entry.subject}" if entry.subject else ""
    return printable(f"{format_time(entry.at)}  {entry.person}  {entry.action}{subject}{count}{reason}{export}")
