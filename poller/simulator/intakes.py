"""Stand-ins for receivers of events. Each one records exactly which events it accepted.

An intake first judges a request, then stores the items of the verdict, so that a fault can happen between
the two. It keeps one count per 16-byte digest of a line, not the lines (unless `keep_lines`), so that a
million events fit into memory.
Words: accepted = acknowledged events; stored = events that a user would find; repeats = found more than once.
"""

from __future__ import annotations

import hashlib
import re
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from poller.simulator.answers import JSON, Answer, Request, inflated, json_answer
from poller.simulator.settings import SimulatorSettings

MOESIF_MAX_AGE = timedelta(days=30)
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def digest_of(line: bytes) -> bytes:
    """The 16-byte digest that identifies a line."""
    return hashlib.blake2b(line, digest_size=16).digest()


class Item(NamedTuple):
    """One event to store. `key`: its identity, if that is not its text. `stream`, `at_ns`: for Loki."""

    line: bytes
    key: bytes = b""
    stream: str = ""
    at_ns: int = 0


class Verdict(NamedTuple):
    """An intake's decision about a request: the answer, the items to store, how many events are refused."""

    answer: Answer
    items: list[Item]
    refused: int = 0


def _refusal(status: int, message: str, refused: int = 0) -> Verdict:
    return Verdict(json_answer(status, {"message": message}), [], refused)


class Intake(ABC):
    """The base of all intakes: the record of events. Callers hold the simulator's lock of this intake."""

    name = ""

    def __init__(self) -> None:
        self.accepted = 0
        self.stored = 0
        self.refused = 0
        self.counts: dict[bytes, int] = {}  # digest of the key or line -> times stored
        self.kept: list[Item] = []  # in the order stored, if lines are kept

    @abstractmethod
    def judge(self, request: Request, settings: SimulatorSettings) -> Verdict:
        """The decision of the real receiver about this request, now."""

    def store(self, items: list[Item], *, keep_lines: bool) -> None:
        """Store the items of a verdict."""
        for item in items:
            self.accepted += 1
            digest = digest_of(item.key or item.line)
            if self._collapses(item, digest):
                continue
            self.counts[digest] = self.counts.get(digest, 0) + 1
            self.stored += 1
            if keep_lines:
                self.kept.append(item)

    def _collapses(self, item: Item, digest: bytes) -> bool:
        """Whether this event is merged into an equal one stored before. Called once for each event, in order."""
        return False

    @property
    def lines(self) -> list[bytes]:
        """The stored events in order, if lines are kept."""
        return [item.line for item in self.kept]

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @property
    def repeats(self) -> int:
        """Number of events that a user finds again, not counting the first of each."""
        return self.stored - len(self.counts)

    def state(self) -> dict[str, Any]:
        """The figures of `GET /_simulator/state`."""
        return {
            "accepted": self.accepted,
            "stored": self.stored,
            "distinct": self.distinct,
            "repeats": self.repeats,
            "collapsed": self.accepted - self.stored,
            "refused": self.refused,
        }


def _json_lines(body: bytes) -> list[bytes]:
    """The elements of a JSON array, or one JSON object, as written. Raises: msgspec.DecodeError."""
    if body.lstrip()[:1] == b"[":
        return [bytes(raw) for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]
    msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return [body.strip()]


def _poisoned(lines: list[bytes], settings: SimulatorSettings) -> Verdict | None:
    """The refusal of a request with a line that the receiver cannot accept. It adds the records of an array one by one."""
    poison = settings.poison.encode()
    places = (place for place, line in enumerate(lines) if line[:1] != b"{" or (poison and poison in line))
    culprit = next(places, None)
    if culprit is None:
        return None
    stored = lines[:culprit] if settings.poison_stores_before else []
    items = [Item(line) for line in stored]
    return Verdict(json_answer(400, {"message": "Bad Request"}), items, len(lines) - len(items))


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON


class LoggingIntake(Intake):
    """The Logging Service: `POST /{tag}` with an APIKEY. Source: docs/facts.md, "IONOS Logging Service"."""

    name = "logging"

    def __init__(self) -> None:
        super().__init__()
        self._arrivals: deque[float] = deque()

    def judge(self, request: Request, settings: SimulatorSettings) -> Verdict:
        if self._is_too_often(settings.logging_requests_per_second):
            return _refusal(429, "Too Many Requests")
        if request.headers.get("apikey") != settings.api_key:
            return _refusal(401, "Unauthorized")
        if settings.logging_tag and not request.path.endswith(f"/{settings.logging_tag}"):
            return _refusal(404, "Not Found")
        if not _is_json(request):
            return _refusal(400, "unsupported content type")
        body = inflated(request)
        if body is None:
            return _refusal(400, "invalid gzip")
        if settings.max_body_bytes and len(body) > settings.max_body_bytes:
            return _refusal(413, "Request Entity Too Large")
        try:
            lines = _json_lines(body)
        except msgspec.DecodeError:
            return _refusal(400, "invalid JSON")
        return _poisoned(lines, settings) or Verdict(Answer(201, content_type="text/plain"), [Item(x) for x in lines])

    def _is_too_often(self, per_second: int) -> bool:
        """Whether the last second had as many requests as a pipeline accepts."""
        now = time.monotonic()
        while self._arrivals and self._arrivals[0] <= now - 1:
            self._arrivals.popleft()
        if per_second and len(self._arrivals) >= per_second:
            return True
        self._arrivals.append(now)
        return False


class HttpIntake(Intake):
    """Any HTTP source: accepts NDJSON, a JSON array or a JSON object, without credentials."""

    name = "http"

    def judge(self, request: Request, settings: SimulatorSettings) -> Verdict:
        body = inflated(request)
        if body is None:
            return _refusal(400, "invalid gzip")
        if settings.max_body_bytes and len(body) > settings.max_body_bytes:
            return _refusal(413, "Request Entity Too Large")
        try:
            lines = _json_lines(body)
        except msgspec.DecodeError:
            lines = [line for line in body.splitlines() if line.strip()]
            try:
                for line in lines:
                    msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            except msgspec.DecodeError:
                return _refusal(400, "neither JSON nor NDJSON")
        return _poisoned(lines, settings) or Verdict(Answer(200, b"{}"), [Item(line) for line in lines])


class _TooLargeError(Exception):
    """An action is larger than Moesif accepts."""


class _ActionRequest(msgspec.Struct):
    time: datetime
    uri: str
    ip_address: str = ""


class _Action(msgspec.Struct):
    action_name: str
    request: _ActionRequest
    transaction_id: str = ""
    user_id: str = ""
    company_id: str = ""
    metadata: dict[str, msgspec.Raw] = {}


class MoesifIntake(Intake):
    """Moesif's Actions API, which collapses a repeated `transaction_id`. Source: docs/facts.md, "Moesif Actions API"."""

    name = "moesif"

    def judge(self, request: Request, settings: SimulatorSettings) -> Verdict:
        wanted = settings.application_id
        if wanted not in (
            request.headers.get("x-moesif-application-id"),
            request.headers.get("authorization"),
        ):
            return _refusal(401, "Unauthorized Access")
        if not _is_json(request):
            return _refusal(415, "Unsupported Media Type")
        body = inflated(request)
        if body is None:
            return _refusal(400, "invalid gzip")
        if len(body) > settings.moesif_max_body_bytes:
            return _refusal(413, "request entity too large")
        is_batch = request.path.rstrip("/").endswith("/batch")
        try:
            if is_batch != (body.lstrip()[:1] == b"["):
                return _refusal(400, "an array goes to /batch, one action to /actions")
            lines = _json_lines(body)
        except msgspec.DecodeError as error:
            return _refusal(400, f"invalid JSON: {error}")
        items: list[Item] = []
        for line in lines:
            try:
                items.append(self._item(line, settings))
            except _TooLargeError:
                return _refusal(413, "an action exceeds the size limit", len(lines))
            except msgspec.DecodeError as error:
                # It is not documented what happens to the others. The worse case: those before it are stored.
                answer = json_answer(400, {"message": f"invalid action: {error}"})
                return Verdict(answer, items, len(lines) - len(items))
        return Verdict(json_answer(201, {}), items)

    def _item(self, line: bytes, settings: SimulatorSettings) -> Item:
        """The action to store.  Raises: _TooLargeError, msgspec.DecodeError."""
        if len(line) > settings.moesif_max_action_bytes:
            raise _TooLargeError
        action = msgspec.json.decode(line, type=_Action)
        uri, at = urlsplit(action.request.uri), action.request.time
        if not (action.action_name and uri.scheme and uri.netloc):
            raise msgspec.ValidationError("action_name and an absolute request.uri are required")
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        if at < datetime.fromtimestamp(time.time(), UTC) - MOESIF_MAX_AGE:
            raise msgspec.ValidationError("request.time is older than 30 days")
        if action.transaction_id and not _UUID.fullmatch(action.transaction_id):
            raise msgspec.ValidationError("transaction_id must be a UUID of 36 characters")
        return Item(line, key=action.transaction_id.encode())

    def _collapses(self, item: Item, digest: bytes) -> bool:
        return bool(item.key) and digest in self.counts


class Books(NamedTuple):
    """The comparison of the logs with an intake: every entry should be in the intake once."""

    expected: int
    received: int
    lost: int
    repeated: int
    invented: int


def balance(expected: Iterator[bytes], intake: Intake) -> Books:
    """The books of an intake of plain lines. An entry that is twice in the logs may be there twice."""
    wanted: dict[bytes, int] = {}
    for line in expected:
        digest = digest_of(line)
        wanted[digest] = wanted.get(digest, 0) + 1
    had = intake.counts
    return Books(
        expected=sum(wanted.values()),
        received=intake.stored,
        lost=sum(max(0, count - had.get(digest, 0)) for digest, count in wanted.items()),
        repeated=sum(max(0, count - wanted[digest]) for digest, count in had.items() if digest in wanted),
        invented=sum(count for digest, count in had.items() if digest not in wanted),
    )
