"""`audit`: compares what the API says it holds with the collected entries."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import click

from poller.cli.acting import acting
from poller.cli.compose import activity_logs, preparation
from poller.cli.messages import echo_json, exit_code, note, tell, wrapped
from poller.cli.options import CONTRACTS, TIME, TIME_END, GlobalOptionsCommand, Settings, check_chosen, use_of
from poller.cli.stopping import until_stopped
from poller.config import Config, format_duration
from poller.core.amounts import plural
from poller.core.errors import EXIT_INCOMPLETE, ConfigError, PollerError, StateError
from poller.core.gaps import summary, without
from poller.core.hours import HOUR_SECONDS
from poller.core.windows import Window, format_time
from poller.pipeline.archive import HourCloser
from poller.pipeline.audit import Audited, Parts, parts_of, whole_hours
from poller.pipeline.collect import Collector
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.pipeline.repair import Comparison, Repair, compare
from poller.pipeline.room import never
from poller.pipeline.status import gap_data
from poller.store.gaps import Gap
from poller.store.journal import Action
from poller.store.opening import stores_of
from poller.store.protocols import State
from poller.store.rows import Contract

# The command waits for a repair by the daemon: up to an interval until its next poll begins, and this long for the poll.
_DAEMON_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 600.0
_TOLD_BEGINNINGS = 3
_TOLD_GAPS = 5
_TOLD_CONTRACTS = 5


@click.command("audit", cls=GlobalOptionsCommand)
@click.option("--from", "start", type=TIME, required=True, metavar="T", help="Start of the range.")
@click.option(
    "--to", "end", type=TIME_END, default="now", metavar="T", help="End of the range, not included. Default: now."
)
@CONTRACTS
@click.option("--use", type=click.Choice(["run", "fetch"]), help="Whose state. Default: run, if there is one.")
@click.option("--repair", is_flag=True, help="Collect what is missing, so that it is delivered once.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def command(
    settings: Settings,
    start: int,
    end: int,
    contracts: tuple[str, ...],
    use: str | None,
    repair: bool,
    as_json: bool,
) -> int:
    """Compare what the API says it holds with what was collected, per contract and hour.

    Compares every hour that the range touches, up to poll.overlap ago: younger entries may still appear. What lies before
    collecting began is named and is no difference: `backfill` exports it. Gaps are named and left out. Exit code 0: all is
    equal, or repaired; 1: something differs, or a gap in the range is not accepted. The next `run` or `fetch` delivers what
    `--repair` collects. While `run` runs, it collects it at its next poll, and the command waits for that. With `--repair`, an
    archive states the hours of the range anew.

    \b
    Examples:
      ionos-poller audit --from 7d
      ionos-poller audit --from 2026-01-01 --to 2026-02-01 --repair
    """
    if start >= end:
        raise ConfigError.of("--from", "is not before --to", "ranges are [from, to)")
    if start >= time.time():
        raise ConfigError.of("--from", "lies in the future", "nothing has happened there yet")
    config = settings.load()
    check_chosen(config, contracts)
    stores = stores_of(config)
    use_name = use_of(use, stores)

    def work(stop: threading.Event) -> int:
        state = stores.attach(use_name)
        try:
            if not repair:
                return _Audit(config, state, stop, use_name, as_json=as_json).run(Window(start, end), contracts)
            with acting(stores, "audit --repair", str(Window(start, end))) as by:
                # No self-audit covers an old hour, so only this can report to the archives that the hour is complete now.
                hours = HourCloser(state, state.overview().archives)
                audit = _Audit(config, state, stop, use_name, as_json=as_json, hours=hours)
                return audit.run(Window(start, end), contracts, by=by)
        finally:
            stop.set()
            state.close()

    return until_stopped(work)


class _Before(NamedTuple):
    """The part of the range before collecting of a contract began. `at_api` is None if the API gives no count."""

    contract: str
    window: Window
    at_api: int | None
    is_exact: bool


class Compared(NamedTuple):
    """The compared window of a contract, and the result."""

    contract: str
    window: Window
    result: Audited
    gaps: Sequence[Window]

    @property
    def hours(self) -> int:
        """How many hours were compared, at least in part. Excludes hours in a gap, and hours that the API refuses."""
        apart = [*self.gaps, *(part.window for part in self.result.refused)]
        parts = [whole_hours(part) for part in without(self.window, apart)]
        return len({hour for part in parts for hour in range(part.start, part.end, HOUR_SECONDS)})


class _Audit:
    def __init__(
        self,
        config: Config,
        state: State,
        stop: threading.Event,
        use: str,
        *,
        as_json: bool,
        hours: HourCloser | None = None,
    ) -> None:
        self._config = config
        self._state = state
        self._stop = stop
        self._use = use
        self._as_json = as_json
        self._accounts = activity_logs(config, stop)
        self._now = time.time()
        # One time for the whole command: after a repair, the same span is compared as before it.
        self._auditor = LedgerAuditor(state, self._accounts, config, hours=hours, clock=lambda: self._now)

    def run(self, asked: Window, only: Sequence[str], *, by: Action | None = None) -> int:
        """Compare, and repair if a person asks for it (`by`).  Returns: the exit code."""
        rows = self._contracts(only)
        contracts, span = [row.contract for row in rows], whole_hours(asked)
        reached = _around([self._parts(row, span).compared for row in rows])
        before = [self._before(row, part) for row in rows if (part := self._parts(row, asked).before) is not None]
        comparison = compare(self._auditor, contracts, span)
        results, failures, differences = comparison.results, list(comparison.failures), comparison.differences
        gaps = self._gaps(contracts, span)
        compared = [
            Compared(row.contract, part, results[row.contract], [g.window for g in gaps if g.contract == row.contract])
            for row in rows
            if row.contract in results and (part := self._parts(row, span).compared) is not None
        ]
        if not self._as_json:
            self._show(compared, reached, before, gaps)
            if compared:
                self._tell_too_young(asked, reached)
        if missing := comparison.missing if by is None and not self._as_json else 0:
            note(f"{plural(missing, 'entry is', 'entries are')} missing; the same with --repair collects them")
        if by is not None and differences:
            comparison = self._repair(contracts, span, comparison, by)
            failures += comparison.failures
            results, differences = comparison.results, comparison.differences
            compared = [row._replace(result=results[row.contract]) for row in compared if row.contract in results]
            missing = comparison.missing
            note(f"after repair: {missing} missing" if missing else "after repair: nothing is missing")
        gaps = self._gaps(contracts, span)
        if self._as_json:  # one object, with the final result
            self._show_json(compared, reached, before, gaps, is_complete=not failures)
        code = exit_code([], failures)
        imbalances = self._state.overview().imbalances()
        for line in imbalances:
            tell(f"the books do not balance: {line}")
        is_unproven = any(gap.is_open for gap in gaps) or any(result.refused for result in results.values())
        return EXIT_INCOMPLETE if differences or is_unproven or imbalances or (failures and compared) else code

    def _tell_too_young(self, asked: Window, reached: Window | None) -> None:
        """Say from when on entries cannot be compared yet."""
        end = asked.start if reached is None else reached.end
        if end < min(asked.end, int(self._now)):
            overlap = format_duration(self._config.poll.overlap_seconds)
            note(
                f"not compared yet: from {format_time(end)} on, younger than poll.overlap ({overlap}), entries may still come"
            )

    def _gaps(self, contracts: Sequence[str], span: Window) -> list[Gap]:
        """The gaps in the span. They could not be read, so they are not compared."""
        gaps = self._state.gaps.find()
        return [gap for gap in gaps if gap.contract in contracts and span.overlaps(gap.window)]

    def _parts(self, row: Contract, span: Window) -> Parts:
        return parts_of(span, row.origin, self._now, self._config.poll.overlap_seconds)

    def _before(self, row: Contract, window: Window) -> _Before:
        """Count the entries before collecting began. They are not a difference, so a missing count is not a failure."""
        try:
            return _Before(row.contract, window, *self._auditor.count_roughly(row.contract, window))
        except StateError:
            raise
        except PollerError:
            return _Before(row.contract, window, None, is_exact=False)

    def _contracts(self, only: Sequence[str]) -> list[Contract]:
        rows = self._state.contracts.all()
        known = [row.contract for row in rows]
        if unknown := sorted(set(only) - set(known)):
            hint = f"`{self._use}` has collected: {', '.join(known) or 'none'}"
            raise ConfigError.of("--contract", f"{', '.join(unknown)} was never collected", hint)
        if not known:
            hint = "check that the token is accepted: `ionos-poller check` says what it sees"
            raise StateError(
                f"`{self._use}` has not collected any contract yet: there is nothing to compare", hint=hint
            )
        left_out = [] if only else [contract for contract in known if not self._config.poll.wants(contract)]
        told = ", ".join(left_out[:_TOLD_CONTRACTS]) + (", ..." if len(left_out) > _TOLD_CONTRACTS else "")
        if left_out == known:
            hint = "change poll.contracts and poll.exclude_contracts, or name one with --contract"
            raise ConfigError.of("poll", f"the configuration leaves out all that was collected: {told}", hint)
        if left_out:  # they are no longer collected, so newer entries would be missing
            what = plural(len(left_out), "contract")
            note(f"not compared: {what} that the configuration leaves out: {told}")
        return [row for row in rows if (row.contract in only if only else row.contract not in left_out)]

    def _show(
        self, compared: Sequence[Compared], reached: Window | None, before: Sequence[_Before], gaps: Sequence[Gap]
    ) -> None:
        """Print what was compared. `reached` is the compared range; None: nothing was compared."""
        differences = [row for part in compared for row in part.result.differences]
        if differences:
            click.echo(f"{'contract':<10} {'hour':<41} {'at API':>7} {'collected':>9} {'missing':>7}")
            for row in differences:
                click.echo(f"{row.contract:<10} {row.window!s:<41} {row.at_api:>7} {row.collected:>9} {row.missing:>7}")
        elif reached is None and before:
            click.echo("nothing was compared: all of it lies before collecting began")
        elif reached is None:
            click.echo("nothing was compared: entries younger than poll.overlap may still appear")
        elif compared:
            but = f", but for {summary([gap.window for gap in gaps])}" if gaps else ""
            but += ", but for what the API refuses" if any(part.result.refused for part in compared) else ""
            contracts = plural(len(compared), "contract")
            click.echo(wrapped(f"equal: {contracts}, every hour as the API counts it{but}", sys.stdout))
            _show_proof(compared)
        _tell_before(before)
        _tell_gaps(gaps)
        for part in compared:
            for refused in part.result.refused:
                note(f"not compared: {refused.window} of contract {part.contract}: {refused.reason}")

    def _show_json(
        self,
        compared: Sequence[Compared],
        reached: Window | None,
        before: Sequence[_Before],
        gaps: Sequence[Gap],
        *,
        is_complete: bool,
    ) -> None:
        """Print the same as JSON. `is_complete` is False if part of it could not be compared."""
        rows = [
            _row(row.contract, row.window, at_api=row.at_api, collected=row.collected, missing=row.missing)
            for part in compared
            for row in part.result.differences
        ]
        refused = [
            _row(part.contract, unread.window, reason=unread.reason)
            for part in compared
            for unread in part.result.refused
        ]
        beginnings = [_row(row.contract, row.window, at_api=row.at_api, is_exact=row.is_exact) for row in before]
        contracts = [
            _row(
                part.contract,
                part.window,
                hours=part.hours,
                at_api=part.result.at_api,
                collected=part.result.collected,
            )
            for part in compared
        ]
        answer = {
            "use": self._use,
            "equal": is_complete and not rows and not refused and not any(gap.is_open for gap in gaps),
            "compared": None if reached is None else _range(reached),
            "contracts": contracts,
            "differences": rows,
            "before_collecting": beginnings,
            "gaps": [gap_data(gap) for gap in gaps],
            "refused": refused,
        }
        echo_json(answer)

    def _repair(self, contracts: Sequence[str], span: Window, first: Comparison, by: Action) -> Comparison:
        """Have the missing entries collected, print the outcome, and return the last comparison."""
        repaired = Repair(
            self._state,
            self._auditor,
            lambda: Collector(
                self._state,
                self._accounts,
                self._config,
                stop=self._stop,
                prepare=preparation(self._config),
                room_may_come=never,
            ),
            self._stop,
            patience_seconds=min(self._config.poll.interval_seconds + _DAEMON_SECONDS, _LONGEST_WAIT_SECONDS),
            on_waiting=lambda: note(
                "the running daemon collects them at its next poll; waiting for it (Ctrl-C only ends the waiting)"
            ),
        ).run(contracts, span, first, by=by)
        if repaired.is_late:
            note("it has not done so yet; run this audit again later to see whether it has")
        if repaired.forgotten:
            lie = plural(repaired.forgotten, "missing entry lies", "missing entries lie")
            note(f"{lie} in hours older than poll.ledger_retention: `backfill` exports those")
        if repaired.collected:
            note(f"{plural(repaired.collected, 'entry')} collected, for the next `{self._use}` to deliver")
        return repaired.comparison


def _show_proof(compared: Sequence[Compared]) -> None:
    """Print the counts of each contract in a table."""
    click.echo(f"{'contract':<9} {'hours':>5} {'at API':>9} {'collected':>9}  {'from':<20}  to")
    for part in compared:
        at_api, collected = f"{part.result.at_api:,}", f"{part.result.collected:,}"
        start, end = map(format_time, part.window)
        click.echo(f"{part.contract:<9} {part.hours:>5} {at_api:>9} {collected:>9}  {start}  {end}")


def _row(contract: str, window: Window, **values: object) -> dict[str, object]:
    return {"contract": contract, **_range(window), **values}


def _range(window: Window) -> dict[str, str]:
    return {"from": format_time(window.start), "to": format_time(window.end)}


def _around(windows: Sequence[Window | None]) -> Window | None:
    """From the first compared hour to the end of the last; None if nothing was compared."""
    present = [window for window in windows if window is not None]
    if not present:
        return None
    first = whole_hours(min(present))  # a window may begin within an hour, when collecting began
    return Window(first.start, max(window.end for window in present))


def _tell_before(before: Sequence[_Before]) -> None:
    """Print one line for each span: contracts that were found together have the same."""
    groups: dict[Window, list[_Before]] = {}
    for row in before:
        groups.setdefault(row.window, []).append(row)
    for window, rows in list(groups.items())[:_TOLD_BEGINNINGS]:
        of = f" of {len(rows)} contracts" if len(rows) > 1 else f" of contract {rows[0].contract}"
        note(
            f"not compared: {window} lies before collecting began, {_count(rows)}{of};"
            f" `ionos-poller backfill --from {format_time(window.start)} --to {format_time(window.end)} --output FILE`"
            " exports them"
        )
    if len(groups) > _TOLD_BEGINNINGS:
        note(f"... and {plural(len(groups) - _TOLD_BEGINNINGS, 'more beginning')}: --json names each")


def _tell_gaps(gaps: Sequence[Gap]) -> None:
    for gap in gaps[:_TOLD_GAPS]:
        state = "accepted" if gap.is_accepted else "not accepted"
        note(f"not compared: gap {gap.id} of contract {gap.contract}, {gap.window}, {state}: {gap.reason}")
    if len(gaps) > _TOLD_GAPS:
        note(f"... and {plural(len(gaps) - _TOLD_GAPS, 'more gap')}: `ionos-poller gaps list` names each")


def _count(rows: Sequence[_Before]) -> str:
    counts = [row.at_api for row in rows if row.at_api is not None]
    if not counts:
        return "an unknown number of entries"
    is_exact = len(counts) == len(rows) and all(row.is_exact for row in rows)
    return f"{'' if is_exact else 'at least '}{plural(sum(counts), 'entry')}"
