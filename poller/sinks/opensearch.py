"""OpenSearch and Elasticsearch: `_bulk` with `create`, so that each event is stored once.

The `_id` is made of the contract and the entry's identity: a repeat gets 409 and changes nothing. This holds within an index:
with `{date}` always, in a data stream unless it rolls over between an event and its repeat.

`_bulk` answers 200 with a status for each item. If the receiver refuses an event itself, it becomes a dead letter with the words.
If the reason is the index, the cluster or our rights, the event waits. An event in a failure store is not in its index, so it
counts as refused.
Source: docs/facts.md, "OpenSearch and Elasticsearch".
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from poller.config import OpenSearchSink as Settings
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter
from poller.core.events import OutboxEvent
from poller.core.mapping import format_time_us, with_time
from poller.net.transport import Response
from poller.net.words import loose_json, one_line
from poller.sinks.base import Context, Sink
from poller.sinks.http import Endpoint, login_of
from poller.sinks.render import build_render

SUCCESSES = (200,)
_DATE, _DATE_CHARS = "{date}", len("2026-05-01")
# The requested parts of the answer. The whole answer would be many times as large.
_BULK = (
    "/_bulk?filter_path=errors,items.*._id,items.*.status,items.*.failure_store"
    ",items.*.error.type,items.*.error.reason,items.*.error.caused_by.reason"
)
_MAX_ANSWER_BYTES = 64 * 1024 * 1024  # more than a batch with a long refusal for each event
_OLDEST_MAJOR = 7  # of Elasticsearch: before it, every document had a type
_MAX_WORDS = 300
_FINAL = (400, 413, 422)  # for an item: this event will never be accepted
# It quotes the value that does not fit. The value is part of the event and must not get into a log.
_PREVIEW = re.compile(r"[\s.]*Preview of field's value: .*", re.DOTALL)
_IN_FAILURE_STORE = "used"
_SEE_FAILURE_STORE = (
    "it is in the failure store, not in the index: search there, the index's name with ::failures, for why"
)

_RIGHTS = ("security_exception", "access_control_exception")
_RIGHTS_REMEDY = "give its user create_doc and auto_configure on the index (OpenSearch: write and create_index)"
# 400, 403 or 404, of an item or of the request, and about neither the event nor our rights: how the words begin, and what to do.
_NOT_THE_EVENTS = (
    ("cluster_block_exception", "lift the block, after making room on its disks if that is why"),
    ("index_closed_exception", "open the index"),
    ("index_not_found_exception", "check index, or let it be created"),
    ("invalid_index_name_exception", "check index"),
    ("resource_already_exists_exception", "the index was created at the same time"),
    ("routing_missing_exception", "use an index that wants no routing"),
    (
        "(validation|illegal_argument)_exception.*this action would add",
        "delete old indices, or raise cluster.max_shards_per_node",
    ),
    ("illegal_argument_exception.*(no write index|single index op)", "give the alias in index a write index"),
    ("illegal_argument_exception.*explicit index", "the cluster must allow it: rest.action.multi.allow_explicit_index"),
    ("illegal_argument_exception.*Document ID is not supported", "use a collection of type search: others take no _id"),
    ("no handler found for uri", "nothing takes events there: check url"),
    ("illegal_argument_exception.*pipeline with id", "create the pipeline, or take it out of the index's settings"),
)


class OpenSearchSink(Sink):
    """POST {url}/_bulk."""

    def __init__(self, settings: Settings, context: Context) -> None:
        super().__init__(settings)
        self._index = settings.index
        self._render = build_render(settings)
        self._is_timed = settings.format == "ecs"
        self._endpoint = Endpoint(
            settings,
            context,
            path="",
            successes=SUCCESSES,
            place="url and index",
            login=login_of(settings),
            content_type="application/x-ndjson",
            readable=_readable,
            max_success_bytes=_MAX_ANSWER_BYTES,
        )

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        """Send a batch. Refused events, and events that exist already, do not affect the others."""
        names = [f"{event.contract}-{event.identity.hex()}" for event in events]
        lines = []
        for event, name in zip(events, names, strict=True):
            lines += [self._action(event.time_us, name), self._document(event)]
        return self._bulk(lines, names)

    def _document(self, event: OutboxEvent) -> bytes:
        document = self._render(event) if self._render else event.line
        # A data stream needs a time; an ECS event has one.
        return document if self._is_timed else with_time(document, "@timestamp", event.time_us)

    def _index_of(self, time_us: int) -> str:
        return self._index.replace(_DATE, format_time_us(time_us)[:_DATE_CHARS])

    def _action(self, time_us: int, name: str) -> bytes:
        return msgspec.json.encode({"create": {"_index": self._index_of(time_us), "_id": name}})

    def _bulk(self, lines: Sequence[bytes], names: Sequence[str]) -> Outcome:
        outcome, answer = self._endpoint.exchange(b"\n".join([*lines, b""]), _BULK)
        if isinstance(outcome, Refused | CredentialsRefused):
            remedy = _remedy_of(outcome.reason.partition(": ")[2])
            return RetryAfter(f"{outcome.reason} ({remedy})") if remedy else outcome
        if answer is None or not isinstance(outcome, Accepted):
            return outcome
        return outcome_of_items(answer.body, names)

    def probe(self) -> Outcome:
        """Request the version. If the index exists, try to create an invalid document, which shows the rights."""
        outcome, answer = self._endpoint.exchange(b"", "/", method="GET")
        # A user with write rights only gets 403 for the version.
        if answer is None or (answer.status != 403 and not isinstance(outcome, Accepted)):
            return outcome
        if too_old := _too_old(answer):
            return RetryAfter(too_old)
        now_us = time.time_ns() // 1000
        outcome, answer = self._endpoint.exchange(b"", f"/{self._index_of(now_us)}", method="HEAD")
        if answer is None or answer.status == 401:
            return outcome
        if answer.status == 404:  # the first event creates the index
            return Accepted(status=404)
        name = "ionos-poller-check"
        tried = self._bulk([self._action(now_us, name), b"{"], [name])
        return Accepted(status=tried.status) if isinstance(tried, Accepted) and not tried.retry else tried


# What is answered


class _Result(msgspec.Struct):
    status: int
    error: Any = None  # an object with `type` and `reason`; a proxy or an old version may say it in other ways
    id: str | None = msgspec.field(name="_id", default=None)
    failure_store: Any = None

    @property
    def is_in_failure_store(self) -> bool:
        """Whether the failure store has a document instead of the event, with another id."""
        return bool(self.failure_store == _IN_FAILURE_STORE)


class _Bulk(msgspec.Struct):
    items: list[dict[str, _Result]]


class _LooseBulk(msgspec.Struct):
    items: list[Any]


class _Rejected(NamedTuple):
    """A refused item: the receiver's words, and whether they concern the event itself, or our rights."""

    words: str
    is_final: bool
    is_forbidden: bool


_decode_bulk = msgspec.json.Decoder(_Bulk).decode
_NO_STATUS = _Result(0, "its item in the answer has no status")


def outcome_of_items(body: bytes, names: Sequence[str]) -> Outcome:
    """The outcome of a 200 for the items with the `_id`s `names`."""
    count, results = len(names), _results(body, names)
    if results is None:
        return RetryAfter("this is no answer of _bulk (check url)", is_size_suspect=True)
    rejected = {index: found for index, result in enumerate(results) if (found := _rejected(result))}
    refused = {index: one.words for index, one in rejected.items() if one.is_final}
    waiting = {index: one for index, one in rejected.items() if not one.is_final}
    if not waiting:
        return Accepted(refused, status=200)
    words = Counter(one.words for one in waiting.values()).most_common(1)[0][0]
    if len(waiting) < count:
        later = RetryAfter(f"{len(waiting)} of {count} events were not taken: {words}", is_size_suspect=True)
        return Accepted(refused, tuple(waiting), 200, later)
    if all(one.is_forbidden for one in waiting.values()):
        return CredentialsRefused(words, 403)
    return RetryAfter(f"no event was taken: {words}", is_size_suspect=True)


def _results(body: bytes, names: Sequence[str]) -> Sequence[_Result] | None:
    """The result of each item, by its `_id`, or by its position if the `_id` is not ours. None if it is unknown.

    An ingest pipeline may set another `_id`, and a failure store does. Results come in the order of the request.
    """
    try:
        items = _items(body)
    except (ValueError, RecursionError):
        return None
    found = [result for item in items for result in item.values() or (_NO_STATUS,)]
    if len(items) != len(names) or len(found) != len(names):
        return None
    ours = set(names)
    ids = [result.id if result.id in ours else None for result in found]
    if ids == names or all(own in (None, name) for own, name in zip(ids, names, strict=True)):
        return found
    by_id = {result.id: result for result in found}
    return [by_id[name] for name in names] if by_id.keys() == ours else None


def _items(body: bytes) -> list[dict[str, _Result]]:
    """The items of an answer. An unreadable item counts as not accepted, and does not affect the others.

    Raises: ValueError, RecursionError if this is not an answer of _bulk.
    """
    try:
        return _decode_bulk(body).items
    except ValueError:  # an unusual item, or a text in it that is none, such as a value cut inside a character
        return [_item(found) for found in msgspec.convert(loose_json(body), _LooseBulk).items]


def _item(found: Any) -> dict[str, _Result]:
    try:
        return msgspec.convert(found, dict[str, _Result])
    except msgspec.ValidationError:
        return {}


def _told(error: Any) -> tuple[str, str, str]:
    """Type, reason and cause of an error, each as text, empty if missing. Without values of the event."""
    if not isinstance(error, dict):
        kind, _, reason = _PREVIEW.sub("", _text(error)).partition(": ")
        return kind, reason, ""
    cause = error.get("caused_by")
    reasons = (error.get("reason"), cause.get("reason") if isinstance(cause, dict) else cause)
    reason, caused_by = (_PREVIEW.sub("", _text(said)) for said in reasons)
    return _text(error.get("type")), reason, caused_by


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else msgspec.json.encode(value).decode()


def _remedy_of(told: str) -> str:
    """The remedy for a refusal that no event causes; empty for any other refusal."""
    return next((remedy for words, remedy in _NOT_THE_EVENTS if re.match(words, told)), "")


def _rejected(result: _Result) -> _Rejected | None:
    """None for an item that is stored, now or before."""
    status = result.status
    if result.is_in_failure_store:
        return _Rejected(f"{status} ({_SEE_FAILURE_STORE})", is_final=True, is_forbidden=False)
    kind, reason, cause = _told(result.error)
    if (200 <= status < 300 and result.error is None) or (
        status == 409 and kind in ("", "version_conflict_engine_exception")
    ):
        return None
    words = one_line(": ".join(filter(None, (f"{status or ''} {kind}".strip(), reason, cause))), _MAX_WORDS)
    is_forbidden = status in (401, 403) and kind in ("", *_RIGHTS)
    told = f"{kind}: {reason}: {cause}"
    remedy = _RIGHTS_REMEDY if is_forbidden else _remedy_of(told)
    is_final = status in _FINAL and not remedy
    return _Rejected(f"{words} ({remedy})" if remedy else words, is_final, is_forbidden)


def _readable(answer: Response) -> Response:
    """An answer to the whole request, with only its words as body."""
    try:
        error = loose_json(answer.body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return answer
    words = ": ".join(filter(None, _told(error)[:2])) if isinstance(error, str | dict) else ""
    return answer._replace(body=words.encode("utf-8", "replace")) if words else answer


def _too_old(answer: Response) -> str:
    """The message for a version that is too old; empty for any other version, and if it is unknown."""
    try:
        version = loose_json(answer.body)["version"]
        number, is_elastic = str(version["number"]), version.get("distribution") != "opensearch"
        major = int(number.partition(".")[0])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    if is_elastic and major < _OLDEST_MAJOR:
        return f"Elasticsearch {number} is too old ({_OLDEST_MAJOR} or later is needed)"
    return ""
