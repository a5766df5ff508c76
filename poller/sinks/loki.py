"""Grafana Loki: its JSON push API, with the event's own time.

What is sent of an event (stream, time, line) depends on what is stored of it alone, so a repeat is exact and
Loki drops it. An event collected late goes to a stream of its hour, by one more label: no stream ever gets an
entry more than an hour behind its newest, which Loki would refuse.  Source: docs/facts.md, "Loki push API".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from poller.config import Config
from poller.config import LokiSink as Settings
from poller.delivery import Accepted, Outcome, Refused, TooLarge
from poller.events import OutboxEvent
from poller.mapping import format_time_us
from poller.sinks import Configured, TooOld
from poller.sinks.age import AgeLimit
from poller.sinks.http import Endpoint, Login

SUCCESSES = (204, 200)
LATE_SECONDS = 30 * 60
# Loki's 7 days, less the time a request may take.
MAX_AGE_SECONDS = 7 * 86_400 - 60
MAX_BODY_BYTES = 1_000_000
# Quoting makes a batch of entries a sixth larger.
_MAX_BATCH_BYTES = 800_000


class LokiSink(Configured):
    """POST {url}/loki/api/v1/push."""

    def __init__(
        self,
        settings: Settings,
        config: Config,
        stop: threading.Event,
        *,
        too_old: TooOld = "dead-letter",
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(settings)
        self.batch_bytes = min(settings.batch_bytes, _MAX_BATCH_BYTES)
        self.max_age_seconds = MAX_AGE_SECONDS
        self._labels = dict(settings.labels)
        self._age = AgeLimit(MAX_AGE_SECONDS, "the 7 days that Loki takes", too_old, clock)
        self._endpoint = Endpoint(
            settings,
            config,
            stop,
            path="/loki/api/v1/push",
            successes=SUCCESSES,
            place="url",
            login=_login(settings),
            headers={"X-Scope-OrgID": settings.tenant_id} if settings.tenant_id else {},
        )

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Push what Loki can take."""
        return self._age.send(events, self._push)

    def _push(self, events: Sequence[OutboxEvent]) -> Outcome:
        body = encode_push(events, self._labels)
        if len(body) > MAX_BODY_BYTES and len(events) > 1:
            return TooLarge(f"a push of {len(body)} bytes")
        return self._endpoint.post(body)

    def probe(self) -> Outcome:
        """Push no streams. That Loki says so shows that it is there and let us in."""
        outcome = self._endpoint.post(b'{"streams":[]}')
        if isinstance(outcome, Refused) and (outcome.status == 422 or "stream" in outcome.reason):
            return Accepted(status=outcome.status)
        return outcome


def _login(settings: Settings) -> Login | None:
    if settings.bearer_token is not None:
        return Login("Authorization", settings.bearer_token, scheme="Bearer")
    if settings.username is not None and settings.password is not None:
        return Login("Authorization", settings.password, username=settings.username)
    return None


def encode_push(events: Sequence[OutboxEvent], labels: Mapping[str, str]) -> bytes:
    """The body of a push: events by stream, oldest first in each."""
    streams: dict[tuple[str, str], list[OutboxEvent]] = {}
    for event in events:
        streams.setdefault((event.contract, late_hour(event)), []).append(event)
    return msgspec.json.encode(
        {
            "streams": [
                {
                    "stream": {**labels, "contract": contract, **({"late": hour} if hour else {})},
                    "values": [
                        (str(time_ns(event)), str(event.line, "utf-8", "replace"))
                        for event in sorted(members, key=time_ns)
                    ],
                }
                for (contract, hour), members in streams.items()
            ]
        }
    )


def late_hour(event: OutboxEvent) -> str:
    """The event's UTC hour, such as `2026-05-01T09`, where it was collected late; else empty."""
    if event.collected_at * 1_000_000 - event.time_us <= LATE_SECONDS * 1_000_000:
        return ""
    return format_time_us(event.time_us)[: len("2026-05-01T09")]


def time_ns(event: OutboxEvent) -> int:
    """The event's time, with equal entries a nanosecond apart: Loki would take them for one."""
    return event.time_us * 1000 + min(event.ordinal, 999)
