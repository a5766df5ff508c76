"""`demo`: collects and delivers on this machine, against the simulator, with the same collector, state and sink as `run`."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click

from poller.cli.compose import activity_logs
from poller.cli.options import GlobalOptionsCommand, Settings
from poller.cli.rows import heading, line_for_pipe, line_for_terminal
from poller.cli.stopping import until_stopped
from poller.config import Config, load
from poller.core.amounts import plural
from poller.core.answers import parse_page
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK
from poller.core.mapping.rows import row_of
from poller.pipeline.collect import Collector
from poller.pipeline.deliver import Deliverer
from poller.pipeline.transfer import Transfer
from poller.simulator import Simulator, SimulatorSettings
from poller.sinks.build import build_sink
from poller.store.opening import stores_of
from poller.store.protocols import State

_EVENTS = 1500
_LATE_SECONDS = 1.0
_ROWS = 5
_FAILURES = ("path=entries:500:x1:after=1", "path=entries:truncate:x1:after=3", "sink=logging:503:x1:after=1")


class _Setting(NamedTuple):
    simulator: Simulator
    config: Config
    state: State
    stop: threading.Event


class _Polled(NamedTuple):
    contracts: list[str]
    delivered: int


@click.command("demo", cls=GlobalOptionsCommand)
@click.pass_obj
def command(settings: Settings) -> int:
    """Show how it works, in a few seconds. Needs no account, installs nothing, leaves nothing behind.

    Starts a simulated Activity Log API and an HTTP sink on loopback, collects through failing requests and a late
    entry, delivers, and shows the books.

    \b
    Example:
      ionos-poller demo
    """
    settings.setup_logging(default_level="error")
    return until_stopped(_demonstrate)


def _demonstrate(stop: threading.Event) -> int:
    simulated = SimulatorSettings(events=_EVENTS, span_seconds=7200, faults=_FAILURES, keep_lines=True)
    with Simulator(simulated) as simulator, TemporaryDirectory(prefix="ionos-poller-demo-") as directory:
        config = load(_write_config(Path(directory), simulator), {"IONOS_API_TOKEN": simulator.token})
        state = stores_of(config).open("demo")
        try:
            return _show(_Setting(simulator, config, state, stop))
        finally:
            stop.set()
            state.close()


def _write_config(directory: Path, simulator: Simulator) -> Path:
    path = directory / "demo.toml"
    path.write_text(
        f"""
        state_dir = "{directory}/state"
        [api]
        url = "{simulator.url}"
        [[sinks]]
        name = "logging"
        type = "logging-service"
        url = "{simulator.url}/sink/logging"
        tag = "activityLog"
        api_key = "{simulator.settings.api_key}"
        """
    )
    path.chmod(0o600)
    return path


def _show(setting: _Setting) -> int:
    simulator = setting.simulator
    _step(f"A simulated Activity Log API and an HTTP sink listen on {simulator.url}")
    started = time.monotonic()
    first = _poll(setting, since=int(time.time()) - 3 * 3600)
    failed = sum(
        count for kind in simulator.traffic.counts.values() for status, count in kind.items() if status != "200"
    )
    _step(f"Contracts found: {', '.join(first.contracts)}")
    _step(f"Collected and delivered {first.delivered:,} entries in {time.monotonic() - started:.1f} s")
    _step(f"{plural(failed, 'request')} failed on the way; tried again: nothing is lost")
    simulator.add_entries(simulator.contracts[0], count=1, visible_in_seconds=_LATE_SECONDS)
    none_yet = _poll(setting)
    _step(f"An entry happens that the API shows only {_LATE_SECONDS:.0f} s later. Poll: {none_yet.delivered} new")
    setting.stop.wait(_LATE_SECONDS + 0.2)
    late = _poll(setting)
    _step(f"Poll again, which overlaps with the last one: {late.delivered} new, none repeated")
    _step("Who did what, of the entries that the sink has:")
    _show_rows(simulator)
    books = simulator.books("logging")
    is_right = not (books.lost or books.repeated or books.invented)
    outcome = click.style(
        f"lost {books.lost}   repeated {books.repeated}", fg="green" if is_right else "red", bold=True
    )
    click.echo(
        f"\n{_bold('The books')}   expected {books.expected:,}   received {books.received:,}   {outcome}\n\n"
        f"With your account:  {_bold('IONOS_API_TOKEN=... ionos-poller fetch --since 1h')}"
    )
    return EXIT_OK if is_right else EXIT_INCOMPLETE


def _step(text: str) -> None:
    click.echo(f"{click.style('>', fg='green', bold=True)} {text}")


def _bold(text: str) -> str:
    return click.style(text, bold=True)


def _show_rows(simulator: Simulator) -> None:
    """Print the last entries that the sink received, as `tail` shows them."""
    contract_of = {line: str(number) for number in simulator.contracts for line in simulator.oracle(number)}
    lines = simulator.intakes["logging"].lines[-_ROWS:]
    width = shutil.get_terminal_size().columns
    if is_terminal := sys.stdout.isatty():
        click.echo(heading(width))
    for line, event in zip(lines, parse_page(b"[%s]" % b",".join(lines)).events, strict=True):
        row = row_of(contract_of.get(line, ""), event)
        click.echo(line_for_terminal(row, width) if is_terminal else line_for_pipe(row))


def _poll(setting: _Setting, since: int | None = None) -> _Polled:
    """One poll, as in `fetch`, but into the sink of the configuration."""
    config, stop = setting.config, setting.stop
    sink = build_sink(config.sinks[0], config, stop)
    transfer = Transfer([Deliverer(setting.state.outbox, sink)], stop)
    accounts = activity_logs(config, stop)
    collector = Collector(setting.state, accounts, config, stop=stop, on_window=transfer.after_window)
    polls = transfer.run(collector, lambda: collector.discover(since=since)[0], config.api.concurrency)
    return _Polled([poll.contract for poll in polls], transfer.delivered)
