"""`fetch --explain-filter`: shows what the rules do to a sample of real entries. Reads only from the API; uses no state."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from poller.cli.compose import entry_filter
from poller.cli.messages import exit_code, note
from poller.config import Config
from poller.core.clocks import trusted_now
from poller.core.errors import ConfigError, PollerError, is_access_refused
from poller.core.events import Event
from poller.core.gaps import Unread, merged, summary
from poller.core.narrowing import Conduct, present_at
from poller.core.reading import Reading, WindowReader
from poller.core.windows import Window
from poller.ionos.api import ActivityLog
from poller.pipeline.collect import PollResult
from poller.pipeline.discovery import unseen, warn_if_incomplete

STAYS = "stays"


class Share(NamedTuple):
    """Entries, and the bytes of their lines."""

    entries: int = 0
    bytes: int = 0

    def plus(self, event: Event) -> Share:
        """The share with one more event."""
        return Share(self.entries + 1, self.bytes + len(event.line))


def explain(config: Config, accounts: Mapping[str, ActivityLog], window: Window, only: Sequence[str]) -> int:
    """Print how many of the window's entries each rule removes, and how many stay. Returns the exit code."""
    rules = entry_filter(config)
    if rules is None:
        note("no rules in [filter]: everything stays")
    readers, failures = _readers(config, accounts, only)
    shares = {reason: Share() for reason in [*(rules.reasons if rules else []), STAYS]}
    read = []
    for contract, apis in readers.items():
        unread: list[Unread] = []
        try:
            for reading in _readings(config, apis, contract, window):
                unread += reading.unread
                for event in reading.events:
                    reason = rules.reason(contract, event.line) if rules else None
                    shares[reason or STAYS] = shares[reason or STAYS].plus(event)
            read.append(PollResult(contract))
        except PollerError as error:  # the other contracts can still be read
            error.contract = error.contract or contract
            failures.append(error)
        if unread:
            spans = summary([part.window for part in merged(unread)])
            message = f"{spans} cannot be read: {unread[0].reason}"
            failures.append(PollerError(message, contract=contract, hint="the table is without what lies there"))
    _show(shares, f"{window}, contracts: {len(read)}")
    return exit_code(read, failures)


def _readers(
    config: Config, accounts: Mapping[str, ActivityLog], only: Sequence[str]
) -> tuple[dict[str, list[ActivityLog]], list[PollerError]]:
    """The contracts to read, each with the accounts that may read it, and what failed.

    Raises: ConfigError if every account answered and none sees any of the contracts in `only`.
    """
    readers: dict[str, list[ActivityLog]] = {}
    failures: list[PollerError] = []
    named = set(config.poll.contracts)  # read even if the API does not list them
    for name, api in accounts.items():
        try:
            listed = api.contracts()
        except PollerError as error:
            if len(accounts) > 1:
                error.message = f"account {name}: {error.message}"
            failures.append(error)
            continue
        warn_if_incomplete(name, listed)
        named.update(only if listed.missing else ())
        for contract in listed:
            readers.setdefault(contract, []).append(api)
    for contract in sorted(named):
        readers.setdefault(contract, [*accounts.values()])
    unknown = [contract for contract in dict.fromkeys(only) if contract not in readers]
    readers = {contract: apis for contract, apis in readers.items() if config.poll.wants(contract, only)}
    if not failures:  # otherwise an account that failed may see it
        if only and not readers:
            raise ConfigError.of("--contract", f"no account sees {', '.join(unknown)}", "check the number")
        failures += [unseen(contract) for contract in unknown]
    return readers, failures


def _readings(config: Config, apis: Sequence[ActivityLog], contract: str, window: Window) -> Iterator[Reading]:
    """Read a contract through the first account that may: its entries and its unread spans.  Raises: PollerError."""
    for api, *others in (apis[place:] for place in range(len(apis))):
        present = present_at(int(trusted_now(api.clock_skew_seconds, window.end)), config.poll.overlap_seconds)
        has_begun = False
        try:
            for reading in WindowReader(api, contract, config.api.limits(), Conduct(present)).read_all(window):
                has_begun = True
                yield reading
            return
        except PollerError as error:
            if has_begun or not others or not is_access_refused(error):
                raise


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
