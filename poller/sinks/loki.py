"""Grafana Loki: its JSON push API, with the event's own time.

Invariants:
- A request holds one stream, because Loki answers a push of several streams for the last one only.
- A repeat is exact (stream, time, line), and Loki still accepts it: an event that may be sent again is at most an hour older than
  the newest event of its stream. `parts` cuts a batch so that this holds until it is settled.
- A stream stays below the rate at which Loki splits it into shards, so that a repeat goes to the same place as the first copy.

A late event goes to one of a few late streams of its contract, by its hour; consecutive hours use different streams. If time went
back (a second backfill, a replay), Loki refuses it there: then it goes to the next set of streams. Loki refuses a repeat in the
same way, so it ends in the same stream.  Source: docs/facts.md, "Loki push API".
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from poller.config import LokiSink as Settings
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.errors import StoppedError
from poller.core.events import OutboxEvent
from poller.sinks.age import AgeLimit
from poller.sinks.base import Context, Sink
from poller.sinks.http import Endpoint, login_of
from poller.sinks.side_by_side import Pace, side_by_side

SUCCESSES = (204, 200)
LATE_SECONDS = 30 * 60
# The 7 days of Loki, minus the time that a request may take.
MAX_AGE_SECONDS = 7 * 86_400 - 60
# Loki accepts an entry that is this much older than the newest one of its stream.
MAX_BEHIND_US = 3_600_000_000
# Quoting at most doubles a line, so a body exceeds a megabyte only if a single line does.
MAX_REQUEST_BYTES = 480_000

# Loki adds up what it saw of a stream in the last second and what a request brings. Requests of a sixteenth of its rate, at seven
# eighths of it, stay below, also where a batch is sent again right after a kill.
_REQUEST_SHARE = 1 / 16
_PACE_SHARE = 7 / 8

# Refusals of a whole stream that no event causes, and what to do.
_NOT_THE_EVENTS = (
    (
        r"label names; limit|label (name|value) too long|duplicate label name|required labels|label pair|parsing labels",
        "check labels",
    ),
    (r"ingestion blocked", "ask who runs this Loki"),
)
# Loki names the stream before the reason. The name may be longer than the shown part of an answer.
_STREAM_NAME = re.compile(rb"'\{.*?\}'", re.DOTALL)

_HOUR_US = 3_600_000_000
_HOURS_TAKEN = 7 * 24


class Stream(NamedTuple):
    """A stream in Loki. `late` is the value of that label; 0: no such label, for events that were collected in time."""

    contract: str
    late: int


class LokiSink(Sink):
    """POST {url}/loki/api/v1/push."""

    max_age_seconds = MAX_AGE_SECONDS

    def __init__(self, settings: Settings, context: Context, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings)
        self._labels = dict(settings.labels)
        self._late_streams = settings.late_streams
        self._connections = settings.connections
        self._request_bytes = min(MAX_REQUEST_BYTES, int(settings.stream_bytes_per_second * _REQUEST_SHARE))
        self._stop = context.stop
        self._clock = clock
        self._pace = Pace(settings.stream_bytes_per_second * _PACE_SHARE, context.stop)
        self._age = AgeLimit(MAX_AGE_SECONDS, "the 7 days that Loki takes", context, clock)
        self._endpoint = Endpoint(
            settings,
            context,
            path=settings.OWN_PATH,
            successes=SUCCESSES,
            place="url",
            login=login_of(settings),
            headers={"X-Scope-OrgID": settings.tenant_id} if settings.tenant_id else {},
            connections=settings.connections,
            readable=lambda answer: answer._replace(body=_STREAM_NAME.sub(b"'{...}'", answer.body)),
        )

    def parts(self, events: Sequence[OutboxEvent]) -> Iterator[Sequence[OutboxEvent]]:
        """The runs of a batch. In each run, no stream spans more than an hour."""
        start = 0
        spans: dict[Stream, tuple[int, int]] = {}
        for index, event in enumerate(self._age.as_sent(events)):
            at, stream = event.time_us, self._stream_of(event)
            first, last = spans.get(stream, (at, at))
            first, last = min(first, at), max(last, at)
            if last - first > MAX_BEHIND_US:
                yield events[start:index]
                start, spans = index, {}
                first = last = at
            spans[stream] = (first, last)
        yield events[start:] if start else events

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Push the events that Loki can accept, each stream with its own requests."""
        return self._age.send(events, self._push)

    def _push(self, events: Sequence[OutboxEvent]) -> Outcome:
        streams: dict[Stream, list[int]] = {}
        for index, event in enumerate(events):
            streams.setdefault(self._stream_of(event), []).append(index)
        tally = Tally(len(events))
        self._pace.forget()

        def send_stream(item: tuple[Stream, list[int]]) -> bool:
            stream, indexes = item
            for request in self._requests(stream, events, indexes):
                # A stop waits for the current requests, not for the whole batch.
                if self._stop.is_set() and not tally.is_empty():
                    return False
                try:
                    outcome = self._send_request(stream, [events[index] for index in request])
                except StoppedError:
                    if tally.is_empty():
                        raise
                    return False
                tally.add(request, outcome)
                if isinstance(outcome, RetryAfter | CredentialsRefused):
                    break
            return tally.is_worth_going_on(self._connections)

        side_by_side(send_stream, streams.items(), self._connections)
        return tally.outcome()

    def _requests(self, stream: Stream, events: Sequence[OutboxEvent], indexes: Iterable[int]) -> Iterator[list[int]]:
        """The events of one stream, oldest first, as indexes per request. In a late stream, hours are kept apart."""
        request: list[int] = []
        size = hour = 0
        for index in sorted(indexes, key=lambda index: time_ns(events[index])):
            length = len(events[index].line)
            is_other_hour = stream.late and events[index].time_us // _HOUR_US != hour
            if request and (is_other_hour or size + length > self._request_bytes):
                yield request
                request, size = [], 0
            hour = events[index].time_us // _HOUR_US
            request.append(index)
            size += length
        yield request

    def _send_request(self, stream: Stream, events: Sequence[OutboxEvent]) -> Outcome:
        """Send events of one stream. If they are too old for it, they go to the next stream that accepts them.

        A late stream then refuses all events of an hour, because hours that share a stream are at least two apart. The stream for
        events in time may accept some, so only an event that was refused alone goes to another stream.
        """
        size = sum(len(event.line) for event in events)
        outcome: Outcome = Accepted()
        for late in self._tried(stream, events):
            self._pace.wait(stream._replace(late=late), size)
            outcome = self._endpoint.post(encode_push(stream._replace(late=late), events, self._labels))
            if not (isinstance(outcome, Refused) and "too far behind" in outcome.reason):
                break
        if isinstance(outcome, Refused) and (remedy := self._remedy_of(outcome.reason, events)):
            return RetryAfter(f"{outcome.reason} ({remedy})")
        if isinstance(outcome, RetryAfter) and (len(events) == 1 or "stream limit" in outcome.reason):
            return outcome._replace(is_size_suspect=False)
        return outcome

    def _remedy_of(self, reason: str, events: Sequence[OutboxEvent]) -> str:
        """The remedy for a refusal that no event causes; empty for any other refusal."""
        # If one event is too new for Loki's clock, the others are found by halving.
        if "timestamp too new" in reason and len(events) == 1 and events[0].time_us <= self._clock() * 1_000_000:
            return "check the clock of Loki's machine: it is behind"
        return next((remedy for told, remedy in _NOT_THE_EVENTS if re.search(told, reason, re.IGNORECASE)), "")

    def _tried(self, stream: Stream, events: Sequence[OutboxEvent]) -> Iterator[int]:
        first = stream.late
        if not first:
            yield 0
            if len(events) > 1:
                return
            first = self._turn_of(events[0])
        # Maximum number of sets: enough for each accepted hour to have its own stream.
        yield from range(first, _HOURS_TAKEN + self._late_streams + 1, self._late_streams)

    def _stream_of(self, event: OutboxEvent) -> Stream:
        return Stream(event.contract, self._turn_of(event) if is_late(event) else 0)

    def _turn_of(self, event: OutboxEvent) -> int:
        """The number, from 1, of the late stream in the first set for the event's hour."""
        return 1 + event.time_us // _HOUR_US % self._late_streams

    def probe(self) -> Outcome:
        """Push no streams. If Loki complains about that, it is reachable and accepts our credentials."""
        outcome = self._endpoint.post(b'{"streams":[]}')
        if isinstance(outcome, Refused) and (outcome.status == 422 or "stream" in outcome.reason):
            return Accepted(status=outcome.status)
        return outcome


class Tally:
    """The outcomes of the events of one batch, by index. For several threads."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken: set[int] = set()
        self._refused: dict[int, str] = {}
        self._failures: list[RetryAfter | CredentialsRefused | TooLarge | Refused] = []
        self._status: int | None = None
        self._lock = threading.Lock()

    def add(self, request: Sequence[int], outcome: Outcome) -> None:
        """Add the outcome of one request with these events."""
        with self._lock:
            match outcome:
                case Accepted(status=status):
                    self._taken.update(request)
                    self._status = self._status or status
                case Refused(reason, status) if len(request) == 1 < self._count:
                    self._refused[request[0]] = reason
                    self._status = status
                case _:
                    self._failures.append(outcome)

    def is_empty(self) -> bool:
        """Whether there is no outcome yet."""
        return not (self._taken or self._refused or self._failures)

    def is_worth_going_on(self, connections: int) -> bool:
        """Whether further requests make sense: no key was refused, and fewer requests failed than are sent at once."""
        failed = [failure for failure in self._failures if isinstance(failure, RetryAfter | CredentialsRefused)]
        return len(failed) < max(2, connections) and not any(isinstance(one, CredentialsRefused) for one in failed)

    def outcome(self) -> Outcome:
        """The outcome of the batch. Accepted events are not sent again if others failed."""
        waits = [failure for failure in self._failures if isinstance(failure, RetryAfter)]
        if self._taken or self._refused:
            rest = tuple(index for index in range(self._count) if index not in self._taken | self._refused.keys())
            return Accepted(self._refused, rest, self._status, self._later(waits) if rest else None)
        for kind in (CredentialsRefused, TooLarge, Refused):
            for failure in self._failures:
                if isinstance(failure, kind):
                    return failure
        return self._later(waits)

    def _later(self, waits: Sequence[RetryAfter]) -> RetryAfter:
        if not waits:
            return RetryAfter(self._failures[0].reason if self._failures else "asked to stop")
        seconds = [wait.seconds for wait in waits if wait.seconds is not None]
        is_size_suspect = any(wait.is_size_suspect for wait in waits)
        return RetryAfter(waits[0].reason, max(seconds) if seconds else None, is_size_suspect)


def encode_push(stream: Stream, events: Iterable[OutboxEvent], labels: Mapping[str, str]) -> bytes:
    """The body of a push of one stream."""
    late = {"late": str(stream.late)} if stream.late else {}
    values = [(str(time_ns(event)), str(event.line, "utf-8", "replace")) for event in events]
    return msgspec.json.encode(
        {"streams": [{"stream": {**labels, "contract": stream.contract, **late}, "values": values}]}
    )


def is_late(event: OutboxEvent) -> bool:
    """Whether the event was collected late, so that the stream of its contract may be too far ahead."""
    return event.collected_at * 1_000_000 - event.time_us > LATE_SECONDS * 1_000_000


def time_ns(event: OutboxEvent) -> int:
    """The event's time. Equal entries are a nanosecond apart, because Loki would store them as one."""
    return event.time_us * 1000 + min(event.ordinal, 999)
