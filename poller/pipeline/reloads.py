"""What came of the last reload of the daemon on this machine: noted in the state, for the person who asked for it."""

from __future__ import annotations

import platform
from typing import NamedTuple

import msgspec

from poller.store.protocols import State


class Reload(NamedTuple):
    """When which process reloaded, in unix seconds, and why it did not; empty where it did."""

    pid: int
    at: float
    failure: str


def note_reload(state: State, reload: Reload) -> None:
    """Commits: what came of it.  Raises: StateError."""
    state.remember(_name(), msgspec.json.encode(reload).decode())


def last_reload(state: State) -> Reload | None:
    """The last one; None where there was none.  Raises: StateError."""
    found = state.fact(_name())
    return msgspec.json.decode(found, type=Reload) if found else None


def _name() -> str:
    return f"reload {platform.node()}"  # several machines may share a state
