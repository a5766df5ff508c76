"""Picks the backend of the state from the configuration. The only module that knows which there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.config import Config
from poller.config.installed import how_to_add
from poller.core.errors import ConfigError, Problem

if TYPE_CHECKING:
    from poller.store.protocols import Stores


def stores_of(config: Config) -> Stores:
    """The states that a configuration means. Opens nothing yet."""
    if config.state.url:
        return _in_database(config)
    from poller.store import sqlite

    return sqlite.Stores(config.state_dir)


def _in_database(config: Config) -> Stores:
    try:
        from poller.store import postgres
    except ImportError as error:
        hint = how_to_add("postgres")
        raise ConfigError([Problem("state.url", "needs the extra `postgres`, which is not installed", hint)]) from error
    return postgres.Stores(config)
