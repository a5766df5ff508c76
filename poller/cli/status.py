"""`status`: what the state says, at a glance. Reads only, so it works while `run` runs."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from poller.cli.options import GlobalOptionsCommand, Settings
from poller.config import Config, format_size
from poller.errors import EXIT_INCOMPLETE, EXIT_OK, ConfigError, Problem
from poller.store.overview import Overview, SinkOverview, overview_of
from poller.windows import format_time

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_WATCH_SECONDS = 2.0


@click.command("status", cls=GlobalOptionsCommand)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--watch", is_flag=True, help="Show it again every two seconds, until interrupted.")
@click.pass_obj
def command(settings: Settings, as_json: bool, watch: bool) -> int:
    """What the state says: per contract watermark and lag, per sink backlog, retry state and dead letters; the books.

    Exit code 1 when the books do not balance.

    \b
    Examples:
      ionos-poller status
      ionos-poller status --json | jq '.uses.run.sinks'
      ionos-poller status --watch
    """
    config = settings.load(check_files=False)
    if watch and not as_json:
        return _watch(config)
    states = _read(config)
    if as_json:
        click.echo(msgspec.json.encode({"uses": {use: _as_data(state) for use, state in states.items()}}))
    else:
        _console().print(_page(config, states))
    return EXIT_INCOMPLETE if any(state.imbalances() for state in states.values()) else EXIT_OK


def _watch(config: Config) -> int:
    from rich.live import Live

    with Live(_page(config, _read(config)), console=_console(), screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(_WATCH_SECONDS)
                live.update(_page(config, _read(config)), refresh=True)
        except KeyboardInterrupt:
            return EXIT_OK


def _read(config: Config) -> dict[str, Overview]:
    """The states in the state directory, by use.  Raises: ConfigError when there is none yet."""
    paths = sorted(Path(config.state_dir).glob("*.db"))
    if not paths:
        hint = "run `ionos-poller fetch` or `run` first, or name another --state-dir"
        raise ConfigError([Problem("state_dir", f"no state in {config.state_dir}", hint)])
    return {path.stem: overview_of(path) for path in paths}


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _page(config: Config, states: dict[str, Overview]) -> RenderableType:
    from rich.console import Group

    parts: list[RenderableType] = []
    for use, state in states.items():
        parts.append(f"[bold]{use}[/]   {config.state_dir / use}.db")
        parts += [_contracts(config, state), _sinks(config, state, use), _books(config, state), ""]
    return Group(*parts)


def _contracts(config: Config, state: Overview) -> RenderableType:
    from rich.table import Table

    now = time.time()
    table = Table(box=None, pad_edge=True, header_style="dim")
    for heading in ("contract", "account", "complete up to", "lag", "entries", "late", "last poll"):
        table.add_column(heading, justify="right" if heading in ("lag", "entries", "late") else "left")
    for row in state.contracts:
        is_stale = now - (row.succeeded_at or 0) > 3 * config.poll.interval_seconds
        last = row.failure or (f"{_ago(now - row.succeeded_at)} ago" if row.succeeded_at else "never")
        style = "red" if row.failure else "yellow" if is_stale else "green"
        table.add_row(
            row.contract,
            row.account,
            format_time(row.watermark),
            _ago(now - row.watermark),
            f"{row.new:,}",
            f"{row.late:,}",
            f"[{style}]{_escape(last)}[/]",
        )
    return table


def _sinks(config: Config, state: Overview, use: str) -> RenderableType:
    from rich.table import Table

    table = Table(box=None, pad_edge=True, header_style="dim")
    for heading in ("sink", "type", "delivered", "waiting", "dead letters", "state"):
        table.add_column(heading, justify="right" if heading in ("delivered", "waiting", "dead letters") else "left")
    for row in state.sinks:
        dead = f"{row.dead_letters:,}"
        table.add_row(
            row.sink.name,
            row.sink.type,
            f"{row.sink.delivered:,}",
            f"{row.waiting:,}",
            f"[red]{dead}[/]" if row.dead_letters else dead,
            _sink_state(config, row, use),
        )
    return table


def _sink_state(config: Config, row: SinkOverview, use: str) -> str:
    if use == "run" and row.sink.name not in {sink.name for sink in config.sinks}:
        return f"[yellow]left the config and holds the outbox: `sinks forget {row.sink.name}`[/]"
    if row.sink.parked_at is not None:
        return f"[red]parked: {_escape(row.sink.failure)}[/]"
    if row.sink.retry_at is not None:
        return f"[yellow]attempt {row.sink.attempts} failed: {_escape(row.sink.failure)}[/]"
    return "[green]ok[/]"


def _books(config: Config, state: Overview) -> str:
    total = {
        name: sum(getattr(row, name) for row in state.contracts) for name in ("fetched", "new", "seen", "filtered")
    }
    sums = f"new {total['new']:,} + seen before {total['seen']:,} + filtered {total['filtered']:,}"
    lines = [f" books: fetched {total['fetched']:,} = {sums}"]
    lines += [f"   filtered {count:,} by {_escape(reason)}" for reason, count in state.filtered.items()]
    lines += [f" [red]DOES NOT BALANCE: {_escape(line)}[/]" for line in state.imbalances()]
    share = f"{format_size(state.outbox.bytes)} of {format_size(config.outbox.max_bytes)}"
    lines.append(f" outbox: {state.outbox.events:,} events, {share}")
    return "\n".join(lines)


def _as_data(state: Overview) -> dict[str, object]:
    now = time.time()
    return {
        "contracts": [
            {**row._asdict(), "watermark": format_time(row.watermark), "lag_seconds": round(now - row.watermark, 3)}
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
                "attempts": row.sink.attempts,
                "retry_at": _time(row.sink.retry_at),
                "parked_at": _time(row.sink.parked_at),
                "failure": row.sink.failure,
                "balanced": row.is_balanced,
            }
            for row in state.sinks
        ],
        "filtered": state.filtered,
        "outbox": state.outbox._asdict(),
        "balanced": not state.imbalances(),
        "imbalances": state.imbalances(),
    }


def _time(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)


def _ago(seconds: float) -> str:
    return str(timedelta(seconds=max(0, int(seconds))))


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
