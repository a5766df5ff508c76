"""Room in the outbox: while it is full, with its dead letters, nothing is collected. The API keeps what is not collected yet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from poller.core import amounts
from poller.core.errors import StateUnavailableError, StoppedError
from poller.store.protocols import State
from poller.store.rows import Size

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2

MayCome = Callable[[Size], bool]
"""Whether a full outbox of this size may have room again, so that it is worth waiting."""


def always(size: Size) -> bool:
    """A daemon waits for its sinks, and for a person who purges dead letters."""
    return True


def by_delivery(size: Size) -> bool:
    """A one-off command waits for its own sinks. They cannot remove dead letters."""
    return size.events > 0


def never(size: Size) -> bool:
    """A command that delivers nothing would wait without end."""
    return False


class Room:
    """The room in the outbox of a state. Safe to use from several threads."""

    def __init__(self, state: State, max_bytes: int, stop: threading.Event, may_come: MayCome) -> None:
        self._state = state
        self._max_bytes = max_bytes
        self._stop = stop
        self._may_come = may_come

    def wait(self) -> None:
        """Wait until there is room.  Raises: StateUnavailableError if none may come; StateError; StoppedError."""
        is_told = False
        while (size := self._state.outbox.size(below=self._max_bytes)).used_bytes >= self._max_bytes:
            if not is_told:
                fields = {"max_bytes": self._max_bytes, "dead_letter_bytes": size.letter_bytes}
                log.warning("outbox.full", extra=fields)
                is_told = True
            if not self._may_come(size):
                events, letters = amounts.size(size.bytes), amounts.size(size.letter_bytes)
                raise StateUnavailableError(
                    f"the outbox is full: {events} of events, {letters} of dead letters",
                    hint="nothing is lost: deliver what waits, replay or purge dead letters, or raise outbox.max_bytes",
                )
            if self._stop.wait(_LOOK_SECONDS):
                raise StoppedError("asked to stop")
        if is_told:
            log.warning("outbox.has_room")
        if self._stop.is_set():
            raise StoppedError("asked to stop")
