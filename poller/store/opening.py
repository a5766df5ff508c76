"""Picks the backend of the state from the configuration. The only module that knows which there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.config import Config

if TYPE_CHECKING:
    from poller.store.protocols import Stores


def stores_of(config: Config) -> Stores:
    """The states that a configuration means. Opens nothing yet."""
    from poller.store import sqlite

    return sqlite.Stores(config.state_dir)
