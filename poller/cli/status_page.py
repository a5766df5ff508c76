"""The layout of `status`: for each use a table of contracts, a table of sinks, one line for each problem, and the books."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from poller.cli.journal import line_of
from poller.cli.messages import books_of, printable
from poller.config import Config
from poller.core.amounts import duration, plural, size
from poller.core.windows import format_time
from poller.pipeline.status import Seen, Use, away_host, has_left, is_polled, is_stale
from poller.service.readiness import gaps_told
from poller.store.overview import Overview, SinkOverview
from poller.store.rows import Contract, Replica

_WIDTH_OF_A_PIPE = 10_000  # nothing is wrapped or cut if stdout is not a terminal
CONTRACTS_AT_A_GLANCE = 20
_FEWER_CONTRACTS = (CONTRACTS_AT_A_GLANCE, 10, 5, 2)
_FINISHED_AT_A_GLANCE = 3
_POSTPONED_AT_A_GLANCE = 5
_PENDING_AT_A_GLANCE = 5


def console() -> Console:
    """A console on stdout: as wide as the terminal, or very wide if stdout is not a terminal."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=_WIDTH_OF_A_PIPE)


def page(config: Config, seen: Seen, *, contracts: int | None) -> RenderableType:
    """All states, the daemon's first. `contracts`: how many are shown, those with problems first; None: all of them, and
    finished backfills in full.
    """
    is_whole = contracts is None
    done = [use for use in seen.uses if use.state.is_done and not is_whole]
    parts: list[RenderableType] = [Text(f"state in {seen.place}", "dim", overflow="fold")]
    for use in seen.uses:
        if use not in done:
            parts += [Text(), *_use(config, use, contracts)]
    if done:
        parts += [Text(), _finished(done)]
    failures = [Text(printable(str(failure)), "red", overflow="fold") for failure in seen.failures]
    return Group(*parts, *([Text()] if failures else []), *failures)


def fitted(screen: Console, config: Config, seen: Seen, *, is_whole: bool) -> RenderableType:
    """The page on one screen. If it is too long, it shows fewer contracts; if that is not enough, it is cut and says so."""
    lines: list[list[Segment]] = []
    for contracts in (None,) if is_whole else _FEWER_CONTRACTS:
        found = page(config, seen, contracts=contracts)
        lines = screen.render_lines(found, pad=False)
        if len(lines) < screen.height:
            return found
    room = max(1, screen.height - 2)
    kept = Segments([segment for line in lines[:room] for segment in (*line, Segment.line())])
    return Group(
        kept,
        Text(f"... and {plural(len(lines) - room, 'more line')}: `ionos-poller status`", "dim", overflow="ellipsis"),
    )


def _finished(done: Sequence[Use]) -> Padding:
    names = [use.name for use in done]
    more = f" and {len(names) - _FINISHED_AT_A_GLANCE} more" if len(names) > _FINISHED_AT_A_GLANCE else ""
    delivered = sum(row.sink.delivered for use in done for row in use.state.sinks)
    told = f"{plural(len(done), 'finished backfill')}, {plural(delivered, 'entry')} delivered (--all shows more)"
    which = ", ".join(names[:_FINISHED_AT_A_GLANCE]) + more
    return _line("dim", f"{told}; `ionos-poller backfill forget ID` takes one off the list: {which}")


def _use(config: Config, use: Use, contracts: int | None) -> Iterator[RenderableType]:
    now = time.time()
    running = _running(use)
    if use.state.finished:
        running += f", finished {use.state.finished}"
    yield Text.assemble((use.name, "bold"), "   ", (running, "" if running.startswith("not") else "green"))
    if use.state.replicas:
        headings = ("replica", "process", "version", "contracts>", "last sign of life")
        yield _table(*headings, rows=(_replica(row, now) for row in use.state.replicas))
    if use.state.contracts or use.name not in ("run", "fetch"):
        yield from _contracts(config, use.state, now, contracts)
    else:
        yield _line("yellow", "no contract is known yet: `ionos-poller check` says why")
    if use.state.sinks:
        yield _sink_table(config, use)
    yield from _troubles(config, use, now)
    yield from _books(config, use.state)


def _running(use: Use) -> str:
    if use.state.replicas:
        return f"at work, {plural(len(use.state.replicas), 'replica')}"
    return f"at work, process {use.process}" if use.process else "not running"


def _replica(row: Replica, now: float) -> list[Text]:
    ago = Text(f"{duration(now - row.seen_at)} ago", "green")
    return [Text(printable(row.host)), Text(str(row.pid)), Text(row.version), Text(f"{row.contracts:,}"), ago]


def _contracts(config: Config, state: Overview, now: float, at_most: int | None) -> Iterator[RenderableType]:
    rows = state.contracts
    if at_most is not None and len(rows) > at_most:
        is_unwell = [is_polled(row, config) and (bool(row.failure) or is_stale(row, config.poll, now)) for row in rows]
        rows = [row for _, row in sorted(zip(is_unwell, rows, strict=True), key=lambda pair: not pair[0])]
        rows = rows[:at_most]
    headings = ("contract", "account", "complete up to", "lag>", "entries>", "late>", "last poll")
    yield _table(*headings, rows=(_contract(config, row, now) for row in rows))
    if len(rows) < len(state.contracts):
        yield Text(f" ... and {len(state.contracts) - len(rows):,} more, none worse than these: --all", style="dim")


def _contract(config: Config, row: Contract, now: float) -> list[Text]:
    ago = f"{duration(now - row.succeeded_at)} ago" if row.succeeded_at else "never"
    if not is_polled(row, config):
        last = Text("excluded", "dim")
    elif row.failure:
        last = Text("failed", "red")
    else:
        last = Text(ago, "yellow" if is_stale(row, config.poll, now) else "green")
    words = (row.contract, row.account, format_time(row.watermark), duration(now - row.watermark))
    return [*map(Text, words), Text(f"{row.new:,}"), Text(f"{row.late:,}"), last]


def sinks_page(config: Config, use: Use) -> RenderableType:
    """The sinks of one use, and their problems."""
    return Group(_sink_table(config, use), *_sink_troubles(config, use, time.time()))


def _sink_table(config: Config, use: Use) -> Table:
    return _table("sink", "type", "delivered>", "waiting>", "dead letters>", "state", rows=_sinks(config, use))


def _sinks(config: Config, use: Use) -> Iterator[list[Text]]:
    for row in use.state.sinks:
        dead = Text(f"{row.dead_letters:,}", "red" if row.dead_letters else "")
        name, type_ = Text(row.sink.name), Text(row.sink.type)
        yield [name, type_, Text(f"{row.sink.delivered:,}"), Text(f"{row.waiting:,}"), dead, _state(config, row, use)]


def _state(config: Config, row: SinkOverview, use: Use) -> Text:
    if has_left(config, row, use):
        return Text("left", "yellow")
    if away_host(config, row, use):
        return Text("away", "yellow")
    if row.sink.parked_at is not None:
        return Text("parked", "red")
    is_retrying = row.sink.retry_at is not None or row.postponed
    return Text("retrying", "yellow") if is_retrying else Text("ok", "green")


def _gaps(use: Use) -> Iterator[Padding]:
    for contract, told in gaps_told(use.state.gaps).items():
        yield _line("red", f"contract {contract}: complete but for {told} (`ionos-poller gaps list --use {use.name}`)")
    if accepted := sum(gap.is_accepted for gap in use.state.gaps):
        what = "spans that could not be read, and that a person takes as they are"
        yield _line("", f"{accepted:,} accepted gaps: {what}")


def _troubles(config: Config, use: Use, now: float) -> Iterator[Padding]:
    """The problems in full, which the tables show in one word."""
    for line in use.state.replica_troubles():
        yield _line("yellow", line)
    for line in use.state.clock_troubles(now):
        yield _line("red", line)
    # In other uses than `run`, the command line may have named the contracts.
    polled = [row for row in use.state.contracts if use.name != "run" or is_polled(row, config)]
    for contract in polled:
        if contract.failure:
            again = "tried at every poll" if use.process else f"next try when `{use.name}` runs"
            yield _line("red", f"contract {contract.contract}: {contract.failure}; {again}")
    yield from _gaps(use)
    names = {row.contract for row in polled}
    pending = [span for span in use.state.pending if span.contract in names]
    for span in pending[:_PENDING_AT_A_GLANCE]:
        yield _line("yellow", f"contract {span.contract}: not complete yet, {span.window} is still to be read")
    if len(pending) > _PENDING_AT_A_GLANCE:
        yield _line("yellow", f"... and {plural(len(pending) - _PENDING_AT_A_GLANCE, 'more span')}: --json names each")
    yield from _sink_troubles(config, use, now)


def _sink_troubles(config: Config, use: Use, now: float) -> Iterator[Padding]:
    for row in use.state.sinks:
        sink = row.sink
        if has_left(config, row, use):
            way_out = f"`ionos-poller sinks forget {sink.name}`"
            yield _line("yellow", f"sink {sink.name} left the config and holds the outbox until {way_out}")
            continue
        if host := away_host(config, row, use):
            waits = f"{plural(row.waiting, 'entry waits', 'entries wait')}: start `run` there, or change `host`"
            yield _line("yellow", f"sink {sink.name}: {host} alone writes it, and is not at work; {waits}")
        if sink.retry_at is not None:
            again = _next_try(use, sink.retry_at, now)
            since = f"parked for {duration(now - sink.parked_at)}" if sink.parked_at else f"attempt {sink.attempts}"
            at_once = f"; now: `ionos-poller sinks retry {sink.name}`" if use.process else ""
            style = "red" if sink.parked_at else "yellow"
            yield _line(style, f"sink {sink.name}, {since}, {again}{at_once}: {sink.failure}")
        yield from _postponed(row, use, now)


def _next_try(use: Use, at: float, now: float) -> str:
    return f"next try in {duration(at - now)}" if use.process else f"next try when `{use.name}` runs"


def _postponed(row: SinkOverview, use: Use, now: float) -> Iterator[Padding]:
    """The contracts that the sink does not accept while it accepts others."""
    for one in row.postponed[:_POSTPONED_AT_A_GLANCE]:
        again = _next_try(use, one.retry_at, now)
        since = f"for {duration(now - one.since)}, attempt {one.attempts}"
        what = f"sink {row.sink.name}: contract {one.contract} waits on its own {since}, {again}: {one.failure}"
        yield _line("yellow", what)
    if len(row.postponed) > _POSTPONED_AT_A_GLANCE:
        more = len(row.postponed) - _POSTPONED_AT_A_GLANCE
        what = plural(more, "more contract waits on its own", "more contracts wait on their own")
        yield _line("yellow", f"... and {what}: --json names each")


def _books(config: Config, state: Overview) -> Iterator[Padding]:
    yield _line("", books_of(state))
    for reason, count in state.filtered.items():
        yield _line("", f"  filtered {count:,} by {reason}")
    for line in state.imbalances():
        yield _line("red", f"DOES NOT BALANCE: {line}")
    share = f"{size(state.outbox.bytes)} of {size(config.outbox.max_bytes)}"
    is_full = state.outbox.bytes >= config.outbox.max_bytes
    remedy = "; collecting is paused until a sink takes more" if is_full else ""
    yield _line("red" if is_full else "", f"outbox: {plural(state.outbox.events, 'event')}, {share}{remedy}")
    if state.outbox.letter_bytes:
        letters = f"dead letters: {size(state.outbox.letter_bytes)}, which count towards the same limit"
        is_full = not is_full and state.outbox.used_bytes >= config.outbox.max_bytes
        remedy = "; collecting is paused until you replay or purge them" if is_full else ""
        yield _line("red" if is_full else "", letters + remedy)
    for sink, head in state.archives.items():
        if head.number:
            yield _line(
                "",
                f"archive {sink}: {plural(head.entries, 'entry')}, newest digest {head.number}:{head.sha256}",
            )
    if state.created_at is not None:
        yield _line("", f"state: created {format_time(state.created_at)}")
    if state.last_action is not None:
        yield _line("", f"last done by hand: {line_of(state.last_action)}; `ionos-poller journal` lists all")


def _line(style: str, text: str) -> Padding:
    return Padding(Text(printable(text), style, overflow="fold"), (0, 0, 0, 1), expand=False)


def _table(*headings: str, rows: Iterator[list[Text]]) -> Table:
    """A `>` after a heading marks a column of numbers."""
    table = Table(box=None, header_style="dim")
    for heading in headings:
        table.add_column(heading.rstrip(">"), justify="right" if heading.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
