"""The result of the last reload of the daemon on this machine, stored for the person who requested it."""

from __future__ import annotations

import platform
from typing import NamedTuple

import msgspec

from poller.store.protocols import State


class Reload(NamedTuple):
    """The time of a reload in unix seconds, the process, and why it failed; empty if it succeeded."""

    pid: int
    at: float
    failure: str


def note_reload(state: State, reload: Reload) -> None:
    """Commits: the result.  Raises: StateError."""
    state.remember(_name(), msgspec.json.encode(reload).decode())


def last_reload(state: State) -> Reload | None:
    """The last result; None without one.  Raises: StateError."""
    found = state.fact(_name())
    return msgspec.json.decode(found, type=Reload) if found else None


def _name() -> str:
    return f"reload {platform.node()}"  # several machines may share a state
