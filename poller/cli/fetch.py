"""`fetch`: one poll, new entries as JSON lines on stdout."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import msgspec

from poller.cli.acting import acting
from poller.cli.compose import activity_logs, preparation
from poller.cli.messages import exit_code, told_gaps
from poller.cli.options import CONTRACTS, PAST, GlobalOptionsCommand, PathType, Settings, check_chosen
from poller.cli.stopping import until_stopped
from poller.config import Config
from poller.config.sink_base import FORMATS, Format
from poller.core.errors import ConfigError, StateHeldError
from poller.core.events import OutboxEvent
from poller.core.mapping import SHORTEST_ACTION_BYTES, SHORTEST_BYTES, SHORTEST_MADE_BYTES, truncated, with_time
from poller.core.windows import Window, format_time
from poller.pipeline.adopt import adopt
from poller.pipeline.fetch import Fetched, fetch
from poller.sinks.render import Render, chosen_render
from poller.sinks.stdout import PRINTED, StdoutSink
from poller.store.opening import stores_of

log = logging.getLogger("poller.fetch")

Renderer = Callable[[OutboxEvent], bytes]

_SAMPLE_SECONDS = 3600
_SHORTEST_BYTES: dict[Format, int] = {
    "raw": SHORTEST_BYTES,
    "ocsf": SHORTEST_MADE_BYTES,
    "ecs": SHORTEST_MADE_BYTES,
    "moesif-action": SHORTEST_ACTION_BYTES,
}
_TIME_KEY_BYTES = 60  # encoded as JSON; the shortest lines have room for it


def _checked_time_key(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Raises: ConfigError if the name is empty, or so long that the shortest line has no room for an entry."""
    if value is not None and not 0 < len(json.dumps(value)) - 2 <= _TIME_KEY_BYTES:
        raise ConfigError.of("--time-key", f"{value!r} is not a name of 1 to {_TIME_KEY_BYTES} bytes", "such as time")
    return value


@click.command("fetch", cls=GlobalOptionsCommand)
@click.option("--since", type=PAST, metavar="T", help="Read again from T; what was already printed is not repeated.")
@CONTRACTS
@click.option(
    "--format",
    "line_format",
    type=click.Choice(FORMATS),
    default="raw",
    show_default=True,
    help="The entry as the API gave it, or an event that holds it.",
)
@click.option(
    "--time-key",
    metavar="NAME",
    callback=_checked_time_key,
    help="Add a top-level copy of the entry's time under this name.",
)
@click.option(
    "--max-line-bytes", type=click.IntRange(min=512), metavar="N", help="Shorten longer lines, with a marker."
)
@click.option("--wait/--no-wait", default=False, help="Wait for another run that holds the state. Default: exit 4.")
@click.option(
    "--adopt-state",
    type=PathType(),
    metavar="FILE",
    help='Begin where the tutorial\'s script stopped: {"last_run": "<iso>"}. Used only if nothing was collected yet.',
)
@click.option(
    "--explain-filter",
    is_flag=True,
    help="Print no entries, but what [filter] does to those of the last hour (or since T). Changes nothing.",
)
@click.pass_obj
def command(
    settings: Settings,
    since: int | None,
    contracts: tuple[str, ...],
    line_format: Format,
    time_key: str | None,
    max_line_bytes: int | None,
    wait: bool,
    adopt_state: Path | None,
    explain_filter: bool,
) -> int:
    """One poll: new entries as JSON lines on stdout, oldest first per contract.

    T is RFC 3339, YYYY-MM-DD (UTC midnight), or an age such as 90m, 36h, 7d.

    \b
    Examples:
      ionos-poller fetch
      ionos-poller fetch --since 7d --contract 31960001 > week.ndjson
      ionos-poller fetch --format ocsf
      ionos-poller fetch --time-key time --max-line-bytes 250000  (Fluent Bit)
      ionos-poller fetch --explain-filter --since 24h
    """
    config = settings.load()
    check_chosen(config, contracts)
    if explain_filter:
        from poller.cli.explain import explain

        now = int(time.time())
        window = Window(now - _SAMPLE_SECONDS if since is None else since, now)
        return until_stopped(lambda stop: explain(config, activity_logs(config, stop), window, contracts))
    _check_line_bytes(line_format, max_line_bytes)
    # Each machine prints only the entries that it has collected: no other machine can continue its output.
    printed = msgspec.structs.replace(PRINTED, shared=bool(config.state.url))
    sink = StdoutSink(printed, _renderer(chosen_render(line_format, config.sinks), time_key, max_line_bytes))
    return until_stopped(lambda stop: _fetch(config, stop, sink, since, contracts, adopt_state, is_waiting=wait))


def _fetch(
    config: Config,
    stop: threading.Event,
    sink: StdoutSink,
    since: int | None,
    only: Sequence[str],
    adopt_state: Path | None,
    *,
    is_waiting: bool,
) -> int:
    """Collect and print until there is nothing new.  Returns: the exit code."""
    accounts = activity_logs(config, stop)
    prepare = preparation(config)
    stores = stores_of(config)
    try:
        with acting(stores, "fetch --since", "" if since is None else format_time(since)) as by:
            state = stores.open("fetch", wait=is_waiting, stop=stop, since=since, accounts=accounts, by=by)
    except StateHeldError as error:
        error.hint += "; --wait waits for its turn"
        raise
    try:
        if adopt_state is not None:
            with acting(stores, "fetch --adopt-state", str(adopt_state)) as by:
                adopt(adopt_state, state, accounts, now=time.time(), by=by)
        return _conclude(fetch(state, accounts, config, sink, stop, only=only, prepare=prepare))
    finally:
        stop.set()
        state.close()


def _check_line_bytes(line_format: Format, max_line_bytes: int | None) -> None:
    """Raises: ConfigError if not even the shortest entry fits."""
    shortest = _SHORTEST_BYTES[line_format]
    if max_line_bytes is not None and max_line_bytes < shortest:
        hint = "use a larger one, or --format raw"
        what = f"an event of {line_format} may take {shortest} bytes, however short its entry is"
        raise ConfigError.of("--max-line-bytes", what, hint)


def _renderer(made: Render | None, time_key: str | None, max_line_bytes: int | None) -> Renderer | None:
    """The function that turns an event into a line; None: the line is the stored entry."""
    if time_key is None and max_line_bytes is None:
        return made
    shape = made or _entry

    def render(event: OutboxEvent) -> bytes:
        line = _timed(shape(event), time_key, event)
        if max_line_bytes is None or len(line) < max_line_bytes:
            return line
        # The time is added after the line is shortened, so that the time itself is never cut.
        added = 0 if time_key is None else len(_timed(b"{}", time_key, event)) - 1
        return _timed(shape(event, max_bytes=max_line_bytes - 1 - added), time_key, event)

    return render


def _entry(event: OutboxEvent, *, max_bytes: int | None = None) -> bytes:
    return event.line if max_bytes is None else truncated(event.line, max_bytes)


def _timed(line: bytes, time_key: str | None, event: OutboxEvent) -> bytes:
    return line if time_key is None else with_time(line, time_key, event.time_us)


def _conclude(fetched: Fetched) -> int:
    """Log the totals, print each failure in one line, and choose the exit code."""
    polls = fetched.polls
    log.info(
        "fetch.finished",
        extra={
            "contracts": len(polls),
            "failed": len(fetched.failures),
            "fetched": sum(poll.fetched for poll in polls),
            "new": sum(poll.new for poll in polls),
            "filtered": sum(poll.filtered for poll in polls),
            "late": sum(poll.late for poll in polls),
            "gaps": sum(len(poll.gaps) for poll in polls),
            "delivered": fetched.delivered,
        },
    )
    return exit_code(polls, [*fetched.failures, *told_gaps(polls)])
