"""`fetch --explain-filter`: what the rules do to a sample of real entries. Reads from the API alone; no state is touched."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from poller.cli.compose import entry_filter
from poller.cli.messages import exit_code, note
from poller.config import Config
from poller.core.errors import ConfigError, PollerError, Problem
from poller.core.events import Event
from poller.core.reading import WindowReader
from poller.core.windows import Window
from poller.ionos.api import ActivityLog

STAYS = "stays"


class Share(NamedTuple):
    """Entries, and the bytes of their lines."""

    entries: int = 0
    bytes: int = 0

    def plus(self, event: Event) -> Share:
        """With one more."""
        return Share(self.entries + 1, self.bytes + len(event.line))


def explain(config: Config, accounts: Mapping[str, ActivityLog], window: Window, only: Sequence[str]) -> int:
    """Show what each rule takes of the window's entries, and what stays. Returns the exit code."""
    rules = entry_filter(config)
    if rules is None:
        note("no rules in [filter]: everything stays")
    shares = {reason: Share() for reason in [*(rules.reasons if rules else []), STAYS]}
    failures: list[PollerError] = []
    count = 0
    for name, api in accounts.items():
        try:
            for contract in _chosen(config, api.contracts(), only):
                count += 1
                for event in _events(config, api, contract, window):
                    reason = rules.reason(contract, event.line) if rules else None
                    shares[reason or STAYS] = shares[reason or STAYS].plus(event)
        except PollerError as error:
            if len(accounts) > 1:
                error.message = f"account {name}: {error.message}"
            failures.append(error)
    if only and not count and not failures:
        raise ConfigError([Problem("--contract", f"no account sees {', '.join(only)}", "check the number")])
    _show(shares, f"{window}, contracts: {count}")
    return exit_code([], failures)


def _chosen(config: Config, visible: Sequence[str], only: Sequence[str]) -> list[str]:
    return [contract for contract in visible if config.poll.wants(contract, only)]


def _events(config: Config, api: ActivityLog, contract: str, window: Window) -> Iterator[Event]:
    reader = WindowReader(api, contract, config.api.limits())
    for reading in reader.read_all(window):
        yield from reading.events


def _show(shares: Mapping[str, Share], title: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rule", overflow="fold")
    for heading in ("entries", "%", "bytes", "%"):
        table.add_column(heading, justify="right", no_wrap=True)
    entries, size = (sum(share[column] for share in shares.values()) for column in (0, 1))
    for reason, share in shares.items():
        cells = (
            f"{share.entries:,}",
            _percent(share.entries, entries),
            f"{share.bytes:,}",
            _percent(share.bytes, size),
        )
        table.add_row(escape(reason), *cells, style="bold" if reason == STAYS else "")
    table.add_row("all", f"{entries:,}", "", f"{size:,}", "", style="dim")
    # A pipe has no width: its reader can wrap lines.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(title, style="dim")
    console.print(table)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else ""
