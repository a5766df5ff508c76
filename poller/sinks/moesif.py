"""Moesif: its Actions API.

An action's `transaction_id` depends on its entry alone, and Moesif stores each once: a repeat is harmless.
Source: docs/facts.md, "Moesif Actions API".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from poller.config import MoesifSink as Settings
from poller.core.delivery import Outcome, TooLarge
from poller.core.events import OutboxEvent
from poller.sinks.age import AgeLimit
from poller.sinks.base import Context, Sink
from poller.sinks.http import Endpoint, Login, probed
from poller.sinks.render import build_actions

SUCCESSES = (201, 200, 202, 204)
MAX_BODY_BYTES = 12_000_000
# Moesif's 30 days, less the time a request may take.
MAX_AGE_SECONDS = 30 * 86_400 - 60


class MoesifSink(Sink):
    """POST {url}/v1/actions/batch; a single action to {url}/v1/actions."""

    max_age_seconds = MAX_AGE_SECONDS

    def __init__(self, settings: Settings, context: Context, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings)
        self._actions = build_actions(settings)
        self._age = AgeLimit(MAX_AGE_SECONDS, "the 30 days that Moesif takes", context, clock)
        self._endpoint = Endpoint(
            settings,
            context,
            path=settings.OWN_PATH,
            successes=SUCCESSES,
            place="url",
            login=Login("X-Moesif-Application-Id", settings.application_id),
        )

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Post what Moesif can take. What it would call too large is found here, and costs no request."""
        return self._age.send(events, self._post)

    def _post(self, events: Sequence[OutboxEvent]) -> Outcome:
        actions = [self._actions.make(event) for event in events]
        largest = max(map(len, actions))
        if largest > self.settings.max_event_bytes:
            return TooLarge(f"larger than max_event_bytes: an action of {largest} bytes")
        if len(actions) == 1:
            return self._endpoint.post(actions[0])
        body = b"[" + b",".join(actions) + b"]"
        return (
            TooLarge(f"a batch of {len(body)} bytes")
            if len(body) > MAX_BODY_BYTES
            else self._endpoint.post(body, "/batch")
        )

    def probe(self) -> Outcome:
        """Post an empty array. Refused for being empty means reachable and let in."""
        return probed(self._endpoint.post(b"[]", "/batch"))
