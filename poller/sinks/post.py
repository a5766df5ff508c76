"""Any receiver over HTTP: a batch as JSON array or as lines of JSON, or one event per request.

Events have no key by which a receiver could detect repeats: if an answer is lost, the batch in flight may show twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from poller.config import AnyHttpSink as Settings
from poller.config import HttpSink
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter
from poller.core.events import OutboxEvent, ndjson
from poller.sinks.base import Context, Sink
from poller.sinks.http import Endpoint, Login, login_of, probed
from poller.sinks.render import Render, build_render

_NDJSON = "application/x-ndjson"
# A receiver need not support HEAD at an address for events: these answers show that it is reachable and accepts our credentials.
_REACHED = (400, 405, 415, 422, 501)


class Shape(NamedTuple):
    """The form of requests. `place` names the keys of the address; `are_chosen`: `successes` is a key, too."""

    path: str = ""
    method: str = "POST"
    body: Literal["array", "ndjson", "object"] = "array"
    successes: Collection[int] = (200, 201, 202, 204)
    are_chosen: bool = False
    place: str = "url"
    login: Login | None = None
    render: Render | None = None
    query: Mapping[str, str] | None = None


class PostSink(Sink):
    """Sends batches in one of three shapes to one address."""

    def __init__(self, settings: HttpSink, context: Context, shape: Shape) -> None:
        super().__init__(settings)
        self._shape = shape
        self._endpoint = Endpoint(
            settings,
            context,
            path=shape.path,
            successes=shape.successes,
            are_chosen=shape.are_chosen,
            place=shape.place,
            login=shape.login,
            content_type=_NDJSON if shape.body == "ndjson" else "application/json",
            query=shape.query,
        )

    def parts(self, events: Sequence[OutboxEvent]) -> Iterable[Sequence[OutboxEvent]]:
        """One run; if a request holds one event, a run for each event."""
        return [[event] for event in events] if self._shape.body == "object" else (events,)

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        body = ndjson(events, self._shape.render)
        if self._shape.body == "object":
            body = body[:-1]
        elif self._shape.body == "array":
            # No line contains a newline, so newlines separate the lines.
            body = b"[" + body[:-1].replace(b"\n", b",") + b"]"
        return self._endpoint.exchange(body, method=self._shape.method)[0]

    def probe(self) -> Outcome:
        """Send an empty array: refused because it is empty means that sending works. For other bodies, send HEAD."""
        if self._shape.body == "array":
            return probed(self._endpoint.exchange(b"[]", method=self._shape.method)[0])
        outcome, answer = self._endpoint.exchange(b"", method="HEAD")
        if answer is None or isinstance(outcome, Accepted | CredentialsRefused):
            return outcome
        if answer.status in _REACHED or 200 <= answer.status < 300:
            return Refused(f"HTTP {answer.status} to HEAD", answer.status)
        return outcome if isinstance(outcome, RetryAfter) else RetryAfter(f"HTTP {answer.status} to HEAD")


def build(settings: Settings, context: Context) -> Sink:
    """Make the sink of a table of type `http`."""
    shape = Shape(
        method=settings.method,
        body=settings.body,
        successes=settings.successes,
        are_chosen=True,
        login=login_of(settings),
        render=build_render(settings),
        query=settings.query,
    )
    return PostSink(settings, context, shape)
