"""Picks the backend of the state from the configuration. The only module that knows which there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.config import Config
from poller.config.installed import needed

if TYPE_CHECKING:
    from poller.store.protocols import Stores


def stores_of(config: Config) -> Stores:
    """The states that a configuration means. Opens nothing yet.  Raises: ConfigError where its library is not installed."""
    if config.state.url:
        with needed("postgres", "state.url", "needs the extra `postgres`, which is not installed"):
            from poller.store import postgres
        return postgres.Stores(config)
    from poller.store import sqlite

    return sqlite.Stores(config.state_dir)
