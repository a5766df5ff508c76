"""`status`: what the state says, at a glance. Reads only, so it works while `run` runs."""

from __future__ import annotations

import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import click

from poller.cli.gaps import as_data
from poller.cli.journal import as_data as action_as_data
from poller.cli.messages import echo_json, printable
from poller.cli.options import GlobalOptionsCommand, Settings
from poller.cli.stopping import until_stopped
from poller.config import Config
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, EXIT_STATE, StateError
from poller.core.windows import format_time
from poller.store import State
from poller.store.dead_letters import NO_LETTERS, LetterBooks
from poller.store.inspection import holder_of, missing_in
from poller.store.overview import Overview, overview_of

_WATCH_SECONDS = 2.0


class Seen(NamedTuple):
    """All there is in the state directory: what can be read, and what is wrong with the rest."""

    uses: list[Use]
    failures: list[StateError]


class Use(NamedTuple):
    """One state file: what it says, and the process that is working on it, if there is one."""

    name: str
    path: Path
    state: Overview
    process: int | None


@click.command("status", cls=GlobalOptionsCommand)
@click.option("--json", "as_json", is_flag=True, help="For machines: one object.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until interrupted.")
@click.option("--all", "is_whole", is_flag=True, help="Every contract; else a terminal shows 20, those not well first.")
@click.pass_obj
def command(settings: Settings, as_json: bool, watch: bool, is_whole: bool) -> int:
    """What the state says: per contract watermark and lag, per sink backlog, retry state and dead letters; the books.

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
        if sys.stdout.isatty() and not as_json:
            _watch_in_place(config, stop, is_whole=is_whole)
        while not stop.is_set():
            _show(config, as_json=as_json, is_whole=is_whole)
            sys.stdout.flush()
            stop.wait(_WATCH_SECONDS)
        return EXIT_OK

    return until_stopped(work)


def _show(config: Config, *, as_json: bool, is_whole: bool) -> int:
    """Print it.  Returns: the exit code."""
    seen = _read(config)
    if as_json:
        data = {
            "uses": {use.name: _as_data(use) for use in seen.uses},
            "gaps": [{"use": use.name, **as_data(gap)} for use in seen.uses for gap in use.state.gaps],
            "failures": [printable(str(failure)) for failure in seen.failures],
        }
        echo_json(data)
    else:
        from poller.cli.status_page import console, page

        console().print(page(config, seen, is_whole=is_whole or not sys.stdout.isatty()))
    if seen.failures:
        return EXIT_STATE
    return EXIT_INCOMPLETE if any(use.state.imbalances() for use in seen.uses) else EXIT_OK


def _watch_in_place(config: Config, stop: threading.Event, *, is_whole: bool) -> None:
    """On a screen of its own, which leaves the terminal as it was."""
    from rich.live import Live

    from poller.cli.status_page import console, page

    with Live(
        page(config, _read(config), is_whole=is_whole), console=console(), screen=True, auto_refresh=False
    ) as live:
        while not stop.wait(_WATCH_SECONDS):
            live.update(page(config, _read(config), is_whole=is_whole), refresh=True)


def _read(config: Config) -> Seen:
    """The states in the state directory.  Raises: StateError when there is none yet, or it cannot be read."""
    seen = Seen([], [])
    for path in State.files(config.state_dir):
        try:
            seen.uses.append(Use(path.stem, path, overview_of(path), holder_of(path.with_suffix(".lock"))))
        except StateError as error:
            seen.failures.append(error)
    seen.failures.extend(missing_in(config.state_dir).values())
    if not seen.uses and not seen.failures:
        hint = "run `ionos-poller fetch` or `run` first, or name another --state-dir"
        raise StateError(f"no state in {config.state_dir}", hint=hint)
    return seen


def _as_data(use: Use) -> dict[str, object]:
    now, state = time.time(), use.state
    return {
        "process": use.process,
        "created_at": _time(state.created_at),
        "last_action": action_as_data(state.last_action) if state.last_action else None,
        "contracts": [
            {
                **row._asdict(),
                "complete_from": format_time(row.origin),
                "watermark": format_time(row.watermark),
                "lag_seconds": round(now - row.watermark, 3),
            }
            for row in state.contracts
        ],
        "sinks": [
            {
                "name": row.sink.name,
                "type": row.sink.type,
                "assigned": row.sink.assigned,
                "delivered": row.sink.delivered,
                "dead": row.sink.dead,
                "waiting": row.waiting,
                "dead_letters": row.dead_letters,
                **_letters(state.letters.get(row.sink.name, NO_LETTERS)),
                "attempts": row.sink.attempts,
                "retry_at": _time(row.sink.retry_at),
                "parked_at": _time(row.sink.parked_at),
                "failure": row.sink.failure,
                "balanced": row.is_balanced and state.letters.get(row.sink.name, NO_LETTERS).is_balanced,
            }
            for row in state.sinks
        ],
        "pending": [
            {
                "contract": span.contract,
                "start": format_time(span.window.start),
                "end": format_time(span.window.end),
                "purpose": span.purpose,
            }
            for span in state.pending
        ],
        "gaps": [as_data(gap) for gap in state.gaps],
        "letters": {name: {**row._asdict(), "balanced": row.is_balanced} for name, row in state.letters.items()},
        "clock_troubles": state.clock_troubles(now),
        "filtered": state.filtered,
        "outbox": state.outbox._asdict(),
        "balanced": not state.imbalances(),
        "imbalances": state.imbalances(),
    }


def _letters(books: LetterBooks) -> dict[str, int]:
    return {f"letters_{name}": getattr(books, name) for name in ("written", "replayed", "purged")}


def _time(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)
