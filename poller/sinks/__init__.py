"""Sinks: where events go. Each is a short file with `send` and `probe`, and knows nothing of the state or the API.

A sink turns a batch into a request and the answer into an outcome (`poller.delivery`); what follows from it is decided there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from poller.delivery import Outcome
from poller.events import OutboxEvent


class Sink(Protocol):
    """A destination. `batch_events` and `batch_bytes` bound what `send` is given at once, unless one event is larger."""

    name: str
    type: str
    batch_events: int
    batch_bytes: int

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Send a batch, in order. Never raises for what the other side does; OutputError where the output is ours."""
        ...
