"""`gaps`: the spans that cannot be read, and what a person decides about them. Works while `run` runs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence

import click

from poller.cli.acting import acting, attached
from poller.cli.messages import echo_json, note, printable, wrapped
from poller.cli.options import CONTRACTS, USE, GlobalOptionsGroup, Settings, use_of
from poller.core.amounts import plural
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, ConfigError
from poller.core.gaps import summary
from poller.core.windows import format_time
from poller.pipeline.status import gap_data
from poller.store.gaps import Gap, first_in_turn
from poller.store.opening import stores_of
from poller.store.protocols import State


@click.group("gaps", cls=GlobalOptionsGroup)
def command() -> None:
    """Spans that could not be read whole: list, show, retry, accept.

    Everything else is collected and delivered. A gap is tried again after a minute, later every hour, and closes when it is read.

    \b
    Examples:
      ionos-poller gaps list
      ionos-poller gaps show 3
      ionos-poller gaps accept 3
    """


_JSON = click.option("--json", "as_json", is_flag=True, help="For machines: one array.")


@command.command("list", short_help="Contract, span, and the API's words.")
@CONTRACTS
@_JSON
@USE
@click.pass_obj
def list_(settings: Settings, contracts: tuple[str, ...], as_json: bool, use: str | None) -> int:
    """List gaps, oldest first for each contract: number, contract, span, tries, reason.

    Exit code 1 while there is one that is not accepted.

    \b
    Example:
      ionos-poller gaps list --contract 31960001
    """
    config = settings.load(check_files=False)
    stores = stores_of(config)
    gaps = stores.snapshot(use_of(use, stores)).gaps
    gaps = [gap for gap in gaps if not contracts or gap.contract in contracts]
    if as_json:
        echo_json([gap_data(gap) for gap in gaps])
    else:
        for gap in gaps:
            click.echo(wrapped(_line(gap), sys.stdout))
        note(_total(gaps))
    return EXIT_INCOMPLETE if any(gap.is_open for gap in gaps) else EXIT_OK


@command.command("show", short_help="A gap with what came and cannot be used.")
@click.argument("id_", type=int, metavar="ID")
@_JSON
@USE
@click.pass_obj
def show(settings: Settings, id_: int, as_json: bool, use: str | None) -> int:
    """Show a gap, and the raw bytes of the entries in it that cannot be used.

    \b
    Example:
      ionos-poller gaps show 3
    """
    with attached(settings.load(check_files=False), use) as (_, state):
        gap = _find(state, id_)
        entries = state.gaps.entries(gap.id)
    if as_json:
        contents = [
            {"content": entry.content.decode("utf-8", "backslashreplace"), "bytes": entry.size_bytes}
            for entry in entries
        ]
        echo_json({**gap_data(gap), "entries": contents})
        return EXIT_OK
    click.echo(wrapped(_line(gap), sys.stdout))
    click.echo(f"first seen {format_time(gap.first_seen)}, {_tried(gap)} since, {_next(gap)}")
    for number, entry in enumerate(entries, 1):
        cut = f", the first {len(entry.content):,}" if entry.size_bytes > len(entry.content) else ""
        click.echo(f"what came and cannot be used, {number} of {len(entries)} ({entry.size_bytes:,} bytes{cut}):")
        click.echo(printable(entry.content.decode("utf-8", "backslashreplace")))
    return EXIT_OK


@command.command("retry", short_help="Try again at the next poll.")
@click.argument("id_", type=int, metavar="[ID]", required=False)
@USE
@click.pass_obj
def retry(settings: Settings, id_: int | None, use: str | None) -> int:
    """Try a gap again at the next poll, or all that are not accepted. An accepted one is open again.

    A contract tries one gap at each poll. One that is named comes first.

    \b
    Example:
      ionos-poller gaps retry 3
    """
    subject = "all that are open" if id_ is None else f"gap {id_}"
    config = settings.load(check_files=False)
    with attached(config, use) as (stores, state), acting(stores, "gaps retry", subject) as by:
        now = int(time.time())
        now = min(now, int(state.shared_now() or now))  # the clock of the machine that tries it may be behind
        known = state.gaps.find()
        chosen = [gap for gap in known if gap.is_open] if id_ is None else [_find(state, id_)]
        for gap in chosen:
            state.gaps.retry(gap.id, now if id_ is None else first_in_turn(gap, known, now), by=by)
    name = use_of(use, stores)
    # In all uses but `run`, --contract may name the contracts.
    polled = [gap for gap in chosen if config.poll.wants(gap.contract, [] if name == "run" else [gap.contract])]
    polls = max(Counter(gap.contract for gap in polled).values(), default=0)
    when = "at the next poll" if polls < 2 else f"in the next {polls:,} polls: a contract tries one at each"
    if name not in ("run", "fetch"):
        when = "when the same backfill is run again"
    click.echo(f"{len(polled):,} will be tried {when}")
    if left_out := sorted({gap.contract for gap in chosen if gap not in polled}):
        note(f"not polled, as the configuration leaves it out: contract {', '.join(left_out)}")
    return EXIT_OK


@command.command("accept", short_help="Accept that a gap stays: no alert, no more tries.")
@click.argument("id_", type=int, metavar="ID")
@USE
@click.pass_obj
def accept(settings: Settings, id_: int, use: str | None) -> int:
    """Accept that a gap stays: it remains in the list, is not tried again, and is no alert any more. `retry` undoes this.

    \b
    Example:
      ionos-poller gaps accept 3
    """
    with attached(settings.load(check_files=False), use) as (stores, state):
        gap = _find(state, id_)
        with acting(stores, "gaps accept", f"gap {id_}: contract {gap.contract}, {gap.window}") as by:
            state.gaps.accept(gap.id, by=by)
    click.echo(wrapped(f"accepted: {_line(gap)}", sys.stdout))
    return EXIT_OK


def _find(state: State, id_: int) -> Gap:
    """Raises: ConfigError if no gap has this number."""
    gaps = state.gaps.find()
    for gap in gaps:
        if gap.id == id_:
            return gap
    known = ", ".join(str(gap.id) for gap in gaps[:10]) or "none"
    raise ConfigError.of("ID", f"there is no gap {id_}", f"`gaps list` shows them: {known}")


def _line(gap: Gap) -> str:
    state = "accepted" if gap.is_accepted else _tried(gap)
    return printable(
        f"{gap.id}  {gap.contract}  {gap.window}  {gap.window.seconds:,} s  {state}  {gap.kind}: {gap.reason}"
    )


def _tried(gap: Gap) -> str:
    return f"tried {plural(gap.tries, 'time')}"


def _next(gap: Gap) -> str:
    return "accepted: not tried again" if gap.is_accepted else f"next try from {format_time(gap.next_try_at)}"


def _total(gaps: Sequence[Gap]) -> str:
    return summary([gap.window for gap in gaps]) if gaps else "no gaps: nothing is unreadable"
