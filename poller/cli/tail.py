"""`tail`: shows who did what, live from the API. Keeps no state, and delivers nothing."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import click

from poller.cli.compose import activity_logs
from poller.cli.messages import echo_json, exit_code, note, tell
from poller.cli.options import CONTRACTS, PAST, GlobalOptionsCommand, Settings, check_chosen
from poller.cli.stopping import until_stopped
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, PollerError, StoppedError
from poller.core.mapping.filter import Filter
from poller.core.mapping.rows import Row, row_of
from poller.pipeline.follow import Follower

_ROUND_SECONDS = 5.0
_SINCE_SECONDS = 600


@click.command("tail", cls=GlobalOptionsCommand)
@CONTRACTS
@click.option("--user", "users", multiple=True, metavar="GLOB", help="Only what this user did (repeatable).")
@click.option("--type", "types", multiple=True, metavar="GLOB", help="Only entries of this event type (repeatable).")
@click.option("--since", type=PAST, metavar="T", help="Begin with what happened since T. Default: 10m.")
@click.option("--once", is_flag=True, help="Show what there is, and end.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one JSON object per line.")
@click.pass_obj
def command(
    settings: Settings,
    contracts: tuple[str, ...],
    users: tuple[str, ...],
    types: tuple[str, ...],
    since: int | None,
    once: bool,
    as_json: bool,
) -> int:
    """Show who did what, live: time (UTC), user, contract, what, resource and result of each entry.

    Reads the API every few seconds, until interrupted. It keeps no state and delivers nothing, so it may run beside `run`;
    `[filter]` and `[redact]` are not applied. A terminal gets columns that fit it, a pipe whole lines.

    \b
    Examples:
      ionos-poller tail
      ionos-poller tail --since 2h --user '*@example.org' --type Provision
      ionos-poller tail --once --since 1d --json | jq -r .user | sort | uniq -c
    """
    config = settings.load(check_files=False)
    check_chosen(config, contracts)
    start = int(time.time()) - _SINCE_SECONDS if since is None else since

    def work(stop: threading.Event) -> int:
        follower = Follower(activity_logs(config, stop), config, start, contracts)
        return _follow(follower, _wanted(users, types), _shower(as_json=as_json), stop, is_once=once)

    with suppress(StoppedError):  # a signal is its normal end
        return until_stopped(work)
    return EXIT_OK


def _follow(
    follower: Follower,
    is_wanted: Callable[[str, bytes], bool],
    show: Callable[[Row], None],
    stop: threading.Event,
    *,
    is_once: bool,
) -> int:
    outages = _Outages()
    while True:
        for contract, event in follower.round():
            if is_wanted(contract, event.line):
                show(row_of(contract, event))
        sys.stdout.flush()
        for contract, unread in follower.unread:
            outages.note_once(f"contract {contract}: {unread.window} cannot be read: {unread.reason}")
        if is_once or (follower.failures and not follower.is_any_read):
            code = exit_code([], follower.failures)
            return EXIT_INCOMPLETE if follower.unread or (code and follower.is_any_read) else code
        outages.tell(follower.failures)
        if stop.wait(_ROUND_SECONDS):
            return EXIT_OK


class _Outages:
    """Prints when a failure begins, and when it is over."""

    def __init__(self) -> None:
        self._failing: set[str] = set()
        self._noted: set[str] = set()

    def tell(self, failures: Sequence[PollerError]) -> None:
        now = {failure.contract: failure for failure in failures}
        for contract, failure in now.items():
            if contract not in self._failing:
                tell(f"{failure}; it is tried again every {_ROUND_SECONDS:.0f} s")
        for contract in sorted(self._failing - set(now)):
            note(f"contract {contract}: can be read again" if contract else "the contracts can be listed again")
        self._failing = set(now)

    def note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            note(text)


def _wanted(users: Sequence[str], types: Sequence[str]) -> Callable[[str, bytes], bool]:
    """A function that says whether an entry is wanted: it must match one of the users and one of the types."""
    filters = [
        Filter([], [{key: pattern} for pattern in patterns])
        for key, patterns in (("username", users), ("type", types))
        if patterns
    ]
    return lambda contract, line: all(rules.reason(contract, line) is None for rules in filters)


def _shower(*, as_json: bool) -> Callable[[Row], None]:
    if as_json:
        return lambda row: echo_json(row._asdict())
    from poller.cli.rows import heading, line_for_pipe, line_for_terminal

    if not sys.stdout.isatty():
        return lambda row: click.echo(line_for_pipe(row))
    days: set[str] = set()

    def show(row: Row) -> None:
        width, day = shutil.get_terminal_size().columns, row.time[:10]
        if not days:
            click.echo(heading(width))
        if day not in days:
            days.clear()
            days.add(day)
            click.echo(click.style(f"{day} (UTC)", dim=True))
        click.echo(line_for_terminal(row, width))

    return show
