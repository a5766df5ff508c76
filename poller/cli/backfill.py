"""`backfill`: one-off export of a past range, resumable."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from poller.cli import suggestions
from poller.cli.acting import log_done, warn_of_root
from poller.cli.compose import activity_logs, preparation, trusted_clock
from poller.cli.messages import exit_code, note, restarted_if_it_may_pass, tell, told_gaps
from poller.cli.options import (
    CONTRACTS,
    TIME_TEXT,
    GlobalOptionsCommand,
    GlobalOptionsGroup,
    Settings,
    parse_time_option,
)
from poller.cli.progress import progress_for
from poller.cli.stopping import until_stopped
from poller.config import AnySink, Config
from poller.config.sinks import FORMATS, Format
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, ConfigError, PollerError, Problem, StoppedError
from poller.core.events import Event
from poller.core.reading import Limits
from poller.core.windows import Window, format_time, tile
from poller.ionos.api import ActivityLog
from poller.pipeline.audit import Auditor
from poller.pipeline.collect import Collector, Done
from poller.pipeline.deliver import Deliverer
from poller.pipeline.status import read_status
from poller.pipeline.transfer import Transfer
from poller.sinks.base import Sink, TooOld
from poller.sinks.build import build_sink
from poller.sinks.output import OutputFile
from poller.sinks.redaction import redactions_of
from poller.sinks.render import chosen_render
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.opening import stores_of
from poller.store.overview import FINISHED, Overview
from poller.store.protocols import State, Stores

log = logging.getLogger("poller.backfill")

_PREFIX = "backfill-"  # of the name of its use
_GO_ON = "not complete: run the same command again to go on where it stopped"

# A backfill is over when it ends: it tries whatever is due of its gaps, not one at each poll.
_ALL_GAPS = 1000

# Larger windows take fewer requests; this much is well within what a backfill may take.
_JOB_BYTES = 3 * 1024 * 1024
_ALL_JOBS_BYTES = 24 * 1024 * 1024

# What is too old in an hour would be refused while the backfill runs.
_AGE_MARGIN_SECONDS = 3600


class _Order(NamedTuple):
    """What was asked for, as it was typed: the same order again goes on with the same state."""

    start: str
    end: str
    contracts: tuple[str, ...]
    output: str
    sinks: tuple[str, ...]
    is_again: bool
    format: Format = "raw"

    @property
    def digest(self) -> str:
        # Without the format where there is none, as it was before there were formats.
        words = tuple(self) if self.format != "raw" else tuple(self)[:-1]
        return hashlib.blake2b(repr(words).encode(), digest_size=6).hexdigest()

    @property
    def use(self) -> str:
        return f"{_PREFIX}{self.digest}"


@click.group("backfill", cls=GlobalOptionsGroup, invoke_without_command=True)
@click.option("--from", "start", type=TIME_TEXT, metavar="T", help="The range's start. Needed.")
@click.option("--to", "end", type=TIME_TEXT, metavar="T", default="now", help="Its end, not included. Default: now.")
@CONTRACTS
@click.option(
    "--output",
    type=click.Path(readable=False),
    metavar="FILE",
    help="Write JSON lines to FILE (.gz: compressed), or - for stdout.",
)
@click.option(
    "--sink",
    "sinks",
    multiple=True,
    metavar="NAME",
    shell_complete=suggestions.configured_sinks,
    help="Send to this sink of the config (repeatable).",
)
@click.option(
    "--format",
    "line_format",
    type=click.Choice(FORMATS),
    default="raw",
    show_default=True,
    help="Of --output: the entry as the API gave it, or an event that holds it.",
)
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Windows fetched at once.")
@click.option("--restart", is_flag=True, help="Begin anew instead of going on.")
@click.option("--again", is_flag=True, help="Send to the sinks also what `run` has collected for them already.")
@click.option(
    "--too-old",
    type=click.Choice(["dead-letter", "skip", "stamp-now"]),
    default="dead-letter",
    show_default=True,
    help="What becomes of entries older than a sink takes.",
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
        raise ConfigError([Problem("--from", "missing", "say from when, such as --from 7d or --from 2026-01-01")])
    if bool(output) == bool(sinks):
        raise ConfigError([Problem("--output", "give either --output or --sink", "such as --output export.ndjson.gz")])
    if sinks and line_format != "raw":
        hint = "set format in the sink's table"
        raise ConfigError([Problem("--format", "is for --output: a sink has the format of its table", hint)])
    config = settings.load()
    _check_sinks(config, sinks)
    stores = stores_of(config)
    warn_of_root(stores)
    chosen, only = tuple(sorted(set(sinks))), tuple(sorted(set(contracts)))
    order = _Order(start, end, only, _absolute(output), chosen, again, line_format)
    window = _window(start, end)

    def work(stop: threading.Event) -> int:
        accounts = activity_logs(config, stop)
        if restart:
            _discard(stores, order)
        is_new, is_refused = order.use not in stores.uses(), False
        state = stores.open(order.use)
        try:
            return _Backfill(config, order, stores, state, accounts, stop, jobs=jobs, too_old=too_old).run(window)
        except ConfigError:
            is_refused = is_new and not any(row.fetched for row in state.contracts.all())
            raise
        finally:
            stop.set()
            state.close()
            if is_refused:  # nothing to go on with, nor for `status` to show
                stores.discard(order.use)

    try:
        with restarted_if_it_may_pass():
            return until_stopped(work)
    except StoppedError:
        note(_GO_ON)
        raise


@command.command("forget", cls=GlobalOptionsCommand, short_help="Take a finished one off the lists.")
@click.argument("ids", nargs=-1, metavar="[ID]...", shell_complete=suggestions.uses)
@click.option("--finished", "is_all_finished", is_flag=True, help="All that are finished.")
@click.option("--yes", is_flag=True, help="Also one that is not finished: what it had exported is not known any more.")
@click.pass_obj
def forget(settings: Settings, ids: tuple[str, ...], is_all_finished: bool, yes: bool) -> int:
    """Forget a backfill that is finished, as `status` names it: its state is deleted, and what it exported stays.

    One that still has something to export or dead letters is forgotten with `--yes` alone. The same backfill later begins anew.

    \b
    Examples:
      ionos-poller backfill forget backfill-1c9b5a27d0e4
      ionos-poller backfill forget --finished
    """
    config = settings.load(check_files=False)
    stores = stores_of(config)
    known = {use.name: use for use in read_status(stores).uses if use.name.startswith(_PREFIX)}
    names = [_PREFIX + id_.removeprefix(_PREFIX) for id_ in ids]
    names += [name for name, use in known.items() if is_all_finished and use.state.is_done and name not in names]
    if not names and not is_all_finished:
        raise ConfigError([Problem("ID", "missing", f"name one, or give --finished; there are: {_listed(known)}")])
    problems = [
        Problem("ID", f"there is no {name}", f"there are: {_listed(known)}") for name in names if name not in known
    ]
    problems += [
        Problem(
            name,
            "is not finished, or has dead letters",
            "run it again to go on, or give --yes to forget it all the same",
        )
        for name in names
        if name in known and not known[name].state.is_done and not yes
    ]
    if problems:
        raise ConfigError(problems)
    warn_of_root(stores)
    for name in names:
        stores.discard(name)
        log_done("backfill forget", name)
        click.echo(f"{name} forgotten")
    if not names:
        click.echo("no backfill is finished")
    return EXIT_OK


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


class _Backfill:
    """One run of one order."""

    def __init__(
        self,
        config: Config,
        order: _Order,
        stores: Stores,
        state: State,
        accounts: Mapping[str, ActivityLog],
        stop: threading.Event,
        *,
        jobs: int,
        too_old: TooOld,
    ) -> None:
        window_bytes = max(config.api.window_bytes, min(jobs * _JOB_BYTES, _ALL_JOBS_BYTES))
        api = msgspec.structs.replace(config.api, concurrency=jobs, window_bytes=window_bytes)
        poll = msgspec.structs.replace(config.poll, overlap_seconds=0)
        self._config = msgspec.structs.replace(config, api=api, poll=poll)
        self._order = order
        self._stores = stores
        self._state = state
        self._accounts = accounts
        self._stop = stop
        self._jobs = jobs
        self._too_old = too_old
        self._left_out: list[int] = []  # from several threads

    def run(self, asked: Window) -> int:
        """Export what is left of the range. Returns the exit code."""
        window = self._remembered(asked)
        before = self._state.overview()
        # Dead letters that were replayed since wait to be sent, however complete it was.
        if self._state.fact(FINISHED) and not any(row.waiting for row in before.sinks):
            note(f"this backfill of {window} is complete already; --restart begins anew (state: {self._order.use}.db)")
            return self._close_books(before)
        sinks = self._sinks()
        found, failures = self._discover(window)
        if not found and failures:
            return exit_code([], failures)
        window = self._warn_of_old(sinks, found, window)
        redactions = redactions_of(self._chosen(), self._config)
        transfer = Transfer(
            [Deliverer(self._state.outbox, sink, redact=redactions.get(sink.name)) for sink in sinks], self._stop
        )
        with progress_for(found, window, self._state.overview) as progress, ExitStack() as others:

            def after_window(done: Done) -> None:
                transfer.after_window(done)
                progress.after_window(done)
                self._left_out.append(done.left_out)

            collector = Collector(
                self._state,
                self._accounts,
                self._config,
                stop=self._stop,
                prepare=preparation(self._config),
                elsewhere=self._elsewhere(others),
                on_window=after_window,
                until=window.end,
                gaps_at_once=_ALL_GAPS,
            )
            polls = transfer.run(
                collector, lambda: found, self._jobs, lambda: progress.show(transfer.delivered), progress.tick_seconds
            )
            progress.show(transfer.delivered)
        if left_out := sum(self._left_out):
            note(
                f"{left_out:,} entries left out: `run` has collected them for the same sinks (--again sends them, too)"
            )
        failed = [poll.failure for poll in polls if poll.failure]
        code = exit_code(polls, [*failures, *failed, *told_gaps(polls, self._order.use)])
        if code == EXIT_OK:
            for sink in sinks:
                if isinstance(sink, OutputFile):
                    sink.finish()
            self._state.remember(FINISHED, format_time(int(time.time())))
            self._state.shrink()
        else:
            note(_GO_ON)
        return max(code, self._close_books(self._state.overview()))

    def _remembered(self, asked: Window) -> Window:
        """The range of the first run: an age means the same time in every run of the order."""
        known = self._state.fact("range")
        if known:
            start, end, *cut = known.split("/")
            if cut:
                until = format_time(int(end))
                note(
                    f"--to lay in the future when this backfill began: it ends at {until}; the rest wants --from {until}"
                )
            return Window(int(start), int(end))
        now = int(time.time())
        mark = ""
        if asked.end > now:
            note(f"--to lies in the future; exporting up to now ({format_time(now)})")
            asked = Window(asked.start, now)
            mark = "/cut"
        self._state.remember("range", f"{asked.start}/{asked.end}{mark}")
        return asked

    def _sinks(self) -> list[Sink]:
        render = chosen_render(self._order.format, self._config.sinks)
        if self._order.output == "-":
            return [StdoutSink(PRINTED, render)]
        if self._order.output:
            return [OutputFile(Path(self._order.output), self._order.digest, render)]
        now = trusted_clock(self._accounts)
        return [
            build_sink(settings, self._config, self._stop, too_old=self._too_old, trusted_now=now)
            for settings in self._chosen()
        ]

    def _chosen(self) -> list[AnySink]:
        return [settings for settings in self._config.sinks if settings.name in self._order.sinks]

    def _discover(self, window: Window) -> tuple[list[str], list[PollerError]]:
        collector = Collector(self._state, self._accounts, self._config, stop=self._stop)
        found, failures = collector.discover(since=window.start, only=self._order.contracts)
        collector.close()
        left_out = {*found, *self._config.poll.exclude_contracts}
        for row in self._state.contracts.all():
            if row.contract in left_out:
                continue
            if row.account in self._accounts:
                message = "the API does not list it any more, and none of it was read"
                hint = "run the same command again when it does, or put it into poll.exclude_contracts"
            else:
                message = "its account is not configured any more"
                hint = "put it back into the configuration, or the contract into poll.exclude_contracts"
            failures.append(PollerError(message, contract=row.contract, hint=hint))
        unknown = set(self._order.contracts) - set(found)
        if unknown and all(error.contract for error in failures):  # every account could be asked
            hint = "check the number, and which contracts the token may see with `ionos-poller check`"
            raise ConfigError([Problem("--contract", f"no account sees {', '.join(sorted(unknown))}", hint)])
        return found, failures

    def _warn_of_old(self, sinks: Sequence[Sink], contracts: Sequence[str], window: Window) -> Window:
        """Say before the start how much lies beyond what the sinks take. Returns the range to read."""
        if any(sink.settings.type == "logging-service" for sink in sinks):
            note("the Logging Service stamps entries with the time of arrival; their own time stays in the line")
        ages = {sink.name: sink.max_age_seconds for sink in sinks if sink.max_age_seconds is not None}
        now = time.time()
        if ages and self._too_old == "skip":
            if len(ages) < len(sinks) or len(set(ages.values())) > 1:
                hint = "skipping would keep them from sinks that take them: make a backfill of its own for each sink"
                raise ConfigError([Problem("--too-old skip", "these sinks do not take entries equally old", hint)])
            limit = min(int(now - min(ages.values())) + _AGE_MARGIN_SECONDS, window.end)
            counts = {contract: self._count(contract, limit) for contract in contracts}
            self._tell_of_old(" and ".join(ages), sum(counts.values()), Window(window.start, limit))
            for contract, count in counts.items():
                self._state.contracts.skip_to(contract, limit, count)
            return Window(max(window.start, limit), window.end)
        for name, age in ages.items():
            limit = min(int(now - age), window.end)
            self._tell_of_old(
                name, sum(self._count(contract, limit) for contract in contracts), Window(window.start, limit)
            )
        return window

    def _tell_of_old(self, sinks: str, count: int, old: Window) -> None:
        if not count:
            return
        days = max(1, round(old.seconds / 86_400))
        what = {
            "dead-letter": "they become dead letters",
            "skip": "they are skipped",
            "stamp-now": "they are stamped now",
        }
        note(
            f"{count:,} entries of {days} days ({old}) are older than {sinks} will take: {what[self._too_old]}"
            " (--too-old says what becomes of them)"
        )

    def _count(self, contract: str, end: int) -> int:
        """How many entries the API holds from where we are up to `end`."""
        row = self._state.contracts.get(contract)
        if row is None or row.watermark >= end:
            return 0
        api = self._config.api
        limits = Limits(api.page_size, api.result_window, api.window_bytes)
        auditor = Auditor(self._accounts[row.account], contract, limits)
        return sum(auditor.count(part) for part in tile(Window(row.watermark, end)))

    def _elsewhere(self, others: ExitStack) -> Callable[[str, Sequence[Event]], Collection[bytes]]:
        """What `run` has collected for these sinks, unless it is to be sent again. `others` closes it."""
        if self._order.is_again or not self._order.sinks or "run" not in self._stores.uses():
            return lambda contract, events: ()
        other = others.enter_context(closing(self._stores.collected("run", self._order.sinks)))

        def collected(contract: str, events: Sequence[Event]) -> Collection[bytes]:
            unseen = {event.identity for event in other.unseen(contract, events)}
            return {event.identity for event in events if event.identity not in unseen}

        return collected

    def _close_books(self, state: Overview) -> int:
        """Show what became of everything. Returns 1 if it does not add up."""
        total = {
            name: sum(getattr(row, name) for row in state.contracts) for name in ("fetched", "new", "seen", "filtered")
        }
        note(
            f"books: fetched {total['fetched']:,} = new {total['new']:,} + seen before {total['seen']:,}"
            f" + filtered {total['filtered']:,}"
        )
        for row in state.sinks:
            sink = row.sink
            note(
                f"books: {sink.name}: new {sink.assigned:,} = delivered {sink.delivered:,} + dead {sink.dead:,}"
                f" + waiting {row.waiting:,}"
            )
            if row.dead_letters:
                note(f"`ionos-poller dead-letters list --use {self._order.use}` shows the dead letters of {sink.name}")
        if skipped := self._state.fact("skipped"):
            note(f"books: skipped as too old: {int(skipped):,}, by the API's count")
        for line in state.imbalances():
            tell(f"the books do not balance: {line}")
        return EXIT_INCOMPLETE if state.imbalances() else EXIT_OK


def _discard(stores: Stores, order: _Order) -> None:
    """Forget what was exported, and delete it where it is in a file: the file that we wrote, and no other of that name."""
    if order.use not in stores.uses():
        stores.discard(order.use)  # it may have vanished
        return
    state = stores.open(order.use)
    try:
        mark = next((sink.mark for sink in state.outbox.sinks()), None)
        is_finished = state.fact(FINISHED) is not None
    finally:
        state.close()
    stores.discard(order.use)
    if order.output not in ("", "-"):
        OutputFile(Path(order.output), order.digest).discard(mark, is_finished=is_finished)


def _window(start: str, end: str) -> Window:
    now = int(time.time())
    window = Window(parse_time_option(start, "--from"), parse_time_option(end, "--to", is_end=True))
    if window.start >= window.end:
        raise ConfigError([Problem("--from", f"{start} is not before --to {end}", "ranges are [from, to)")])
    if window.start >= now:
        raise ConfigError([Problem("--from", f"{start} lies in the future", "nothing has happened there yet")])
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


def _absolute(output: str | None) -> str:
    return output if output == "-" else str(Path(output).absolute()) if output else ""
