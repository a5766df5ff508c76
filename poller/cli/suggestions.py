"""What a shell completes at TAB besides commands and options: the names of sinks, contracts, accounts and states.

They are read only from the configuration and the state, which is fast. If these cannot be used, nothing is completed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from poller.config import Config, find_config, load, process_environment
from poller.config.checks import is_name
from poller.core.errors import PollerError

if TYPE_CHECKING:
    from poller.store.overview import Overview

Suggest = Callable[[click.Context, click.Parameter, str], list[str]]


def _from_config(values: Callable[[Config], Iterable[str]]) -> Suggest:
    def suggest(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        given = ctx.obj  # the global options typed so far
        environ = process_environment()
        try:
            path = find_config(getattr(given, "config", None), environ)
            config = load(path, environ, state_dir=getattr(given, "state_dir", None), check_files=False)
            return sorted(value for value in set(values(config)) if value.startswith(incomplete) and is_name(value))
        except PollerError:
            return []

    return suggest


def _collected(config: Config) -> Iterable[str]:
    return (row.contract for state in _states(config) for row in state.contracts)


def _known_sinks(config: Config) -> Iterable[str]:
    return (row.sink.name for state in _states(config) for row in state.sinks)


def _states(config: Config) -> Iterator[Overview]:
    from poller.store.opening import stores_of

    stores = stores_of(config)
    return (stores.snapshot(use) for use in stores.uses())


def _uses(config: Config) -> Iterable[str]:
    from poller.store.opening import stores_of

    return stores_of(config).uses()


configured_sinks = _from_config(lambda config: (sink.name for sink in config.sinks))
known_sinks = _from_config(_known_sinks)
sinks_gone = _from_config(lambda config: set(_known_sinks(config)) - {sink.name for sink in config.sinks})
contracts = _from_config(_collected)
uses = _from_config(_uses)
accounts = _from_config(lambda config: (account.name for account in config.accounts))
