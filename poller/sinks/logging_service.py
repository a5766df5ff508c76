"""IONOS Logging Service, or any HTTP source that takes a JSON array and wants an `APIKEY` header.

Source: docs/facts.md, "IONOS Logging Service". It stamps the time of arrival and has no key to tell a repeat by.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from poller.config import LoggingServiceSink as Settings
from poller.core.delivery import Outcome
from poller.core.events import OutboxEvent, ndjson
from poller.sinks.base import Context, Sink
from poller.sinks.http import Endpoint, Login, probed

SUCCESSES = (200, 201, 202, 204)


class LoggingServiceSink(Sink):
    """POST {url}/{tag}, the lines as they are as the elements of one array."""

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings)
        self._endpoint = Endpoint(
            settings,
            context,
            path="/" + quote(settings.tag),
            successes=SUCCESSES,
            place="url and tag",
            login=Login("APIKEY", settings.api_key),
        )

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        # No line holds a newline, so those between the lines are all there are.
        return self._endpoint.post(b"[" + ndjson(events)[:-1].replace(b"\n", b",") + b"]")

    def probe(self) -> Outcome:
        """Post an empty array. Refused for being empty means reachable and let in."""
        return probed(self._endpoint.post(b"[]"))
