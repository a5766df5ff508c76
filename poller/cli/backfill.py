"""`backfill`: one-off export of a past range, resumable."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import click

from poller.cli import suggestions
from poller.cli.acting import log_done, warn_of_root
from poller.cli.compose import activity_logs, preparation, trusted_clock
from poller.cli.messages import books_of, exit_code, note, restarted_if_it_may_pass, tell, told_gaps
from poller.cli.options import (
    CONTRACTS,
    SINKS,
    TIME_TEXT,
    GlobalOptionsGroup,
    PathType,
    Settings,
    check_chosen,
    parse_time_option,
)
from poller.cli.progress import progress_for
from poller.cli.stopping import until_stopped
from poller.config import Config
from poller.config.sink_base import FORMATS, Format
from poller.core.amounts import plural
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, ConfigError, PollerError, Problem, StoppedError
from poller.core.windows import Window, format_time
from poller.pipeline.backfill import Backfill, Order, Span, TooOldEntries, discard, open_state, to_forget
from poller.pipeline.status import read_status, read_use
from poller.sinks.base import TooOld
from poller.store.opening import stores_of
from poller.store.protocols import State

_GO_ON = "not complete: run the same command again to go on where it stopped"

_TOO_OLD: dict[TooOld, str] = {
    "dead-letter": "each becomes a dead letter",
    "skip": "each is skipped",
    "stamp-now": "each is stamped now",
}


@click.group("backfill", cls=GlobalOptionsGroup, invoke_without_command=True)
@click.option("--from", "start", type=TIME_TEXT, metavar="T", help="Start of the range. Required.")
@click.option(
    "--to", "end", type=TIME_TEXT, metavar="T", default="now", help="End of the range, not included. Default: now."
)
@CONTRACTS
@click.option(
    "--output",
    type=PathType(None, is_new=True),
    metavar="FILE",
    help="Write JSON lines to FILE (.gz: compressed), or - for stdout.",
)
@SINKS
@click.option(
    "--format",
    "line_format",
    type=click.Choice(FORMATS),
    default="raw",
    show_default=True,
    help="Of --output: the entry as the API gave it, or an event that holds it.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Windows fetched at once.")
@click.option("--restart", is_flag=True, help="Start again instead of continuing.")
@click.option("--again", is_flag=True, help="Also send what `run` has already collected for these sinks.")
@click.option(
    "--too-old",
    type=click.Choice(["dead-letter", "skip", "stamp-now"]),
    default="dead-letter",
    show_default=True,
    help="What to do with entries that are too old for a sink.",
)
@click.pass_context
def command(
    ctx: click.Context,
    start: str | None,
    end: str,
    contracts: tuple[str, ...],
    output: str | None,
    sinks: tuple[str, ...],
    line_format: Format,
    jobs: int,
    restart: bool,
    again: bool,
    too_old: TooOld,
) -> int:
    """Export a past range once: to a file, to stdout, or to sinks of the configuration.

    The same command again goes on where an interrupted one stopped. Oldest first per contract; runs beside `run`.
    T is RFC 3339, YYYY-MM-DD (UTC midnight), `now`, or an age such as 90m, 36h, 7d.

    \b
    Examples:
      ionos-poller backfill --from 2026-01-01 --to 2026-02-01 --output jan.ndjson
      ionos-poller backfill --from 7d --to 1h --sink loki --jobs 8
      ionos-poller backfill forget backfill-1c9b5a27d0e4
      ionos-poller backfill --from 30d --to 1d --format ecs --output ecs.ndjson.gz
    """
    settings = ctx.ensure_object(Settings)
    if ctx.invoked_subcommand is not None:
        return EXIT_OK
    if start is None:
        raise ConfigError.of("--from", "missing", "say from when, such as --from 7d or --from 2026-01-01")
    if bool(output) == bool(sinks):
        raise ConfigError.of("--output", "give either --output or --sink", "such as --output export.ndjson.gz")
    if sinks and line_format != "raw":
        hint = "set format in the sink's table"
        raise ConfigError.of("--format", "is for --output: a sink has the format of its table", hint)
    config = settings.load()
    check_chosen(config, contracts)
    _check_sinks(config, sinks)
    stores = stores_of(config)
    warn_of_root(stores)
    order = Order.of(start, end, contracts=contracts, output=output, sinks=sinks, is_again=again, format=line_format)
    window = _window(start, end)

    def work(stop: threading.Event) -> int:
        accounts = activity_logs(config, stop, concurrency=jobs)
        if restart:
            discard(stores, order)
        is_refused = False
        state, is_new = open_state(stores, order)
        try:
            backfill = Backfill(
                config,
                order,
                stores,
                state,
                accounts,
                stop,
                jobs=jobs,
                too_old=too_old,
                prepare=preparation(config),
                trusted_now=trusted_clock(accounts),
            )
            return _run(backfill, state, order.use, window, too_old)
        except ConfigError:
            is_refused = is_new and not any(row.fetched for row in state.contracts.all())
            raise
        finally:
            stop.set()
            state.close()
            if is_refused:  # the new state is empty: nothing to resume, nothing for `status` to show
                stores.discard(order.use)

    try:
        with restarted_if_it_may_pass():
            return until_stopped(work)
    except StoppedError:
        note(_GO_ON)
        raise


@command.command("forget", short_help="Remove a finished one from the lists.")
@click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=suggestions.uses)
@click.option("--finished", "is_all_finished", is_flag=True, help="All that are finished.")
@click.option("--yes", is_flag=True, help="Also one that is not finished. What it exported is then unknown.")
@click.pass_obj
def forget(settings: Settings, ids: tuple[str, ...], is_all_finished: bool, yes: bool) -> int:
    """Forget a backfill that is finished, as `status` names it: its state is deleted, and what it exported stays.

    With `--yes` also one that still has something to export, or dead letters. The same backfill later starts from the beginning.
    What an `archive restore` left, `restore-...`, is forgotten in the same way.

    \b
    Examples:
      ionos-poller backfill forget backfill-1c9b5a27d0e4
      ionos-poller backfill forget --finished
    """
    config = settings.load(check_files=False)
    stores = stores_of(config)
    for name in stores.uses():
        if name.endswith(ids):
            read_use(stores, name)  # an error if it cannot be read
    names = to_forget(read_status(stores).uses, ids, is_all_finished=is_all_finished, may_be_unfinished=yes)
    warn_of_root(stores)
    for name in names:
        stores.discard(name)
        log_done("backfill forget", name)
        click.echo(f"{name} forgotten")
    if not names:
        click.echo("no backfill is finished")
    return EXIT_OK


def _run(backfill: Backfill, state: State, use: str, asked: Window, too_old: TooOld) -> int:
    """Export the rest of the range. Returns the exit code."""
    span = backfill.span(asked)
    _tell_span(span)
    if backfill.is_finished:
        note(f"this backfill of {span.window} is complete already; --restart begins anew (state: {use})")
        return _close_books(state, use)
    sinks = backfill.sinks()
    found, failures = backfill.discover(span.window)
    if not found and failures:
        return exit_code([], failures)
    if any(sink.settings.type == "logging-service" for sink in sinks):
        note("the Logging Service stamps entries with the time of arrival; their own time stays in the line")
    window, old = backfill.limit_age(sinks, found, span.window)
    for entries in old:
        _tell_of_old(entries, too_old)
    if forgotten := backfill.forgotten(found, window):
        note(
            f"`run` collected {plural(forgotten, 'entry')} of these hours so long ago (poll.ledger_retention) that it does not"
            " recognise them: those that these sinks had are sent again"
        )
    with progress_for(found, window, state.overview) as progress:
        export = backfill.export(
            sinks,
            found,
            window,
            on_window=progress.after_window,
            tick=progress.show,
            tick_seconds=progress.tick_seconds,
        )
        progress.show(export.delivered)
    if export.left_out:
        note(
            f"{plural(export.left_out, 'entry')} left out, which `run` has collected or filtered for the same sinks, or will by"
            " its next polls and audits (--again sends all)"
        )
    failures += [poll.failure for poll in export.polls if poll.failure]
    failures += [
        PollerError("another machine is reading it", contract=poll.contract, hint="run the same command again later")
        for poll in export.polls
        if poll.is_elsewhere
    ]
    code = exit_code(export.polls, [*failures, *told_gaps(export.polls, use)])
    if code == EXIT_OK:
        backfill.finish(sinks)
    else:
        note(_GO_ON)
    return max(code, _close_books(state, use))


def _tell_span(span: Span) -> None:
    end = format_time(span.window.end)
    if span.is_cut and span.is_first:
        note(f"--to lies in the future; exporting up to now ({end})")
    elif span.is_cut:
        note(
            f"--to lay in the future when this backfill began: it ends at {end}; for the rest, run it with --from {end}"
        )


def _tell_of_old(old: TooOldEntries, too_old: TooOld) -> None:
    days = max(1, round(old.window.seconds / 86_400))
    is_or_are = "is" if old.entry_count == 1 else "are"
    note(
        f"{plural(old.entry_count, 'entry')} of {plural(days, 'day')} ({old.window}) {is_or_are} too old for"
        f" {' and '.join(old.sinks)}: {_TOO_OLD[too_old]} (--too-old has other choices)"
    )


def _close_books(state: State, use: str) -> int:
    """Print the books. Returns 1 if they do not balance."""
    overview = state.overview()
    note(books_of(overview))
    for row in overview.sinks:
        sink = row.sink
        note(
            f"books: {sink.name}: new {sink.assigned:,} = delivered {sink.delivered:,} + dead {sink.dead:,}"
            f" + waiting {row.waiting:,}"
        )
        if row.dead_letters:
            note(f"`ionos-poller dead-letters list --use {use}` shows the dead letters of {sink.name}")
    if skipped := state.fact("skipped"):
        note(f"books: skipped as too old: {int(skipped):,}, by the API's count")
    for line in overview.imbalances():
        tell(f"the books do not balance: {line}")
    return EXIT_INCOMPLETE if overview.imbalances() else EXIT_OK


def _window(start: str, end: str) -> Window:
    now = int(time.time())
    window = Window(parse_time_option(start, "--from"), parse_time_option(end, "--to", is_end=True))
    if window.start >= window.end:
        raise ConfigError.of("--from", f"{start} is not before --to {end}", "ranges are [from, to)")
    if window.start >= now:
        raise ConfigError.of("--from", f"{start} lies in the future", "nothing has happened there yet")
    return window


def _check_sinks(config: Config, names: Sequence[str]) -> None:
    known = {sink.name for sink in config.sinks}
    problems = [
        Problem("--sink", f"{name} is not in the config", f"it has: {', '.join(sorted(known)) or 'none'}")
        for name in names
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
