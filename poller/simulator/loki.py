"""A stand-in for Loki's push API that enforces Loki's limits and gives Loki's answers.

A push passes two stages. The distributor checks the age and length of each entry and the labels of its stream, and splits
streams that are too fast into shards. The ingester processes one stream after the other. It refuses one stream too many, a
stream that is too fast, and entries too far behind; its answer reports only the last stream.
Source: docs/facts.md, "Loki push API", tried against a real Loki 3 with default limits.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from poller.simulator.answers import Answer, Request, inflated
from poller.simulator.intakes import Intake, Item, Verdict
from poller.simulator.settings import SimulatorSettings

_SECOND_NS = 1_000_000_000
MAX_AGE_NS = 7 * 86_400 * _SECOND_NS
MAX_FUTURE_NS = 600 * _SECOND_NS
MAX_BEHIND_NS = 3600 * _SECOND_NS
MAX_LINE_BYTES = 256 * 1024
MAX_LABELS = 15
MAX_LABEL_NAME_BYTES = 1024
MAX_LABEL_VALUE_BYTES = 2048


class _Stream(msgspec.Struct):
    stream: dict[str, str]
    values: list[list[str | dict[str, str]]]


class _Push(msgspec.Struct):
    streams: list[_Stream]


class _Answered(NamedTuple):
    """The ingester's result for a stream: the items to store, and the status and message if it refuses some."""

    items: list[Item]
    status: int = 204
    words: str = ""


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // _SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refusal(status: int, message: str, refused: int = 0) -> Verdict:
    return Verdict(Answer(status, message.encode() + b"\n", "text/plain; charset=utf-8"), [], refused)


def label_text(labels: dict[str, str]) -> str:
    """The stream as Loki writes it: `{contract="1", tag_name="activityLog"}`."""
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"


class _Bucket:
    """A limit of bytes per second, with a burst."""

    def __init__(self) -> None:
        self._left: float | None = None
        self._at = 0.0

    def takes(self, size: int, rate: int, burst: int, now: float) -> bool:
        left = burst if self._left is None else min(burst, self._left + (now - self._at) * rate)
        self._left, self._at = (left - size if size <= left else left), now
        return size <= left


class _Active:
    """A stream that the ingester has in memory."""

    def __init__(self) -> None:
        self.newest_ns = 0
        self.used_at = 0.0
        self.bucket = _Bucket()


class LokiIntake(Intake):
    """`POST /loki/api/v1/push`. `streams` counts the stored lines of each stream.

    An exact repeat (stream, time, line) is acknowledged and stored only once, even if it comes much later.
    """

    name = "loki"

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[str, int] = {}
        self.most_active = 0
        self._active: dict[str, _Active] = {}
        self._tenant = _Bucket()
        self._pushed: dict[str, deque[tuple[float, int]]] = {}  # stream, with its shards -> (time, bytes) of a second
        self._next_shard = 0
        self._numbers: dict[str, int] = {}  # stream -> a small number
        self._places: dict[bytes, int] = {}  # digest of a line -> the first (time, stream) that it was stored at
        self._more_places: dict[bytes, set[int]] = {}  # the other places of the few lines that have several

    def judge(self, request: Request, settings: SimulatorSettings) -> Verdict:
        if settings.loki_authorization and request.headers.get("authorization") != settings.loki_authorization:
            return _refusal(401, "no credentials, or wrong ones")
        if settings.loki_tenant and request.headers.get("x-scope-orgid") != settings.loki_tenant:
            return _refusal(401, "no org id")
        body = inflated(request)
        if body is None:
            return _refusal(400, "gzip: invalid header")
        try:
            push = msgspec.json.decode(body, type=_Push)
            streams = [
                (stream.stream, [self._item(stream, value) for value in stream.values]) for stream in push.streams
            ]
        except (msgspec.DecodeError, ValueError) as error:
            return _refusal(400, f"couldn't parse push request: {error}")
        if not any(items for _, items in streams):
            return _refusal(422, "error at least one valid stream is required for ingestion")
        burst, now = settings.loki_max_body_bytes, time.monotonic()
        if not self._tenant.takes(len(body), settings.loki_bytes_per_second, burst, now):
            return _refusal(
                429,
                f"ingestion rate limit exceeded for user fake (limit: {settings.loki_bytes_per_second} bytes/sec) while "
                f"attempting to ingest '{len(body)}' bytes, reduce log volume or contact your Loki administrator",
            )
        return self._push(streams, settings, now)

    def _item(self, stream: _Stream, value: list[Any]) -> Item:
        """Raises: ValueError if a value is not [ns as a string of digits, line], with or without metadata."""
        if len(value) not in (2, 3) or not isinstance(value[0], str) or not isinstance(value[1], str):
            raise ValueError("a value must be [time, line] or [time, line, metadata], time and line strings")
        if not (value[0].isascii() and value[0].isdigit()) or (len(value) == 3 and isinstance(value[2], str)):
            raise ValueError(f"invalid time or metadata beside {value[0]!r}")
        return Item(value[1].encode(), stream=label_text(stream.stream), at_ns=int(value[0]))

    # The distributor

    def _push(
        self, streams: Sequence[tuple[dict[str, str], list[Item]]], settings: SimulatorSettings, now: float
    ) -> Verdict:
        """Keep the good entries. The answer names a refused entry if Loki's answer would."""
        count = sum(len(items) for _, items in streams)
        told = _Answered([])  # by the distributor
        good: list[list[Item]] = []
        for labels, items in streams:
            valid = []
            for item in items:
                words = _wrong_labels(item.stream, labels) or _wrong_entry(item)
                if words:
                    told = _Answered([], 400, told.words or words)
                else:
                    valid.append(item)
            good += self._sharded(labels, valid, settings, now) if valid else []
        self._forget_idle(settings, now)
        self.most_active = max(self.most_active, len(self._active))
        answered = _Answered([])
        stored: list[Item] = []
        for items in good:
            answered = self._take(items, settings, now)
            stored += answered.items
        last = answered if answered.status != 204 else told
        refused = count - len(stored)
        if last.status == 204:
            return Verdict(Answer(204), stored, refused)
        return _refusal(last.status, last.words, refused)._replace(items=stored)

    def _sharded(
        self, labels: dict[str, str], items: list[Item], settings: SimulatorSettings, now: float
    ) -> list[list[Item]]:
        """The items by shards. If the stream is not too fast, there is one shard, without a label."""
        whole, size = items[0].stream, sum(len(item.line) for item in items)
        pushed = self._pushed.setdefault(whole, deque())
        while pushed and pushed[0][0] <= now - 1:
            pushed.popleft()
        rate = sum(bytes_ for _, bytes_ in pushed)
        pushed.append((now, size))
        shards = 1
        if rate and settings.loki_shard_bytes_per_second:  # the first push of a stream is never split
            shards = min(len(items), math.ceil((rate + size) / settings.loki_shard_bytes_per_second))
        if shards == 1:
            return [items]
        first, self._next_shard = self._next_shard, (self._next_shard + 1) % shards
        length = math.ceil(len(items) / shards)
        split = []
        for number in range(0, len(items), length):
            shard = label_text({**labels, "__stream_shard__": str((first + number // length) % shards)})
            split.append([item._replace(stream=shard) for item in items[number : number + length]])
        return split

    # The ingester

    def _forget_idle(self, settings: SimulatorSettings, now: float) -> None:
        idle = [name for name, stream in self._active.items() if now - stream.used_at >= settings.loki_idle_seconds]
        for name in idle:
            del self._active[name]

    def _take(self, items: list[Item], settings: SimulatorSettings, now: float) -> _Answered:
        """The ingester's result for the entries of one stream."""
        name = items[0].stream
        stream = self._active.get(name)
        if stream is None:
            if len(self._active) >= settings.loki_max_streams:
                return _Answered(
                    [],
                    429,
                    f"Maximum active stream limit exceeded when trying to create stream {name}, reduce the number of active "
                    "streams (reduce labels or reduce label values), or contact your Loki administrator to see if the limit "
                    "can be increased, user: 'fake'",
                )
            stream = self._active[name] = _Active()
        stream.used_at = now
        size = sum(len(item.line) for item in items)
        rate = settings.loki_stream_bytes_per_second
        limited = f'contract="{settings.loki_limited_contract}"'
        if limited in name or not stream.bucket.takes(size, rate, settings.loki_stream_burst_bytes, now):
            return _Answered(
                [],
                429,
                f"Per stream rate limit exceeded (limit: {rate}B/sec) while attempting to ingest for stream '{name}' totaling "
                f"{size}B, consider splitting a stream via additional labels or contact your Loki administrator to see if "
                "the limit can be increased",
            )
        good: list[Item] = []
        words = ""
        newest_ns = stream.newest_ns
        for item in items:
            oldest_ns = newest_ns - MAX_BEHIND_NS
            if item.at_ns < oldest_ns:
                words = words or (
                    f"entry with timestamp {_time(item.at_ns)} ignored, reason: 'entry too far behind, "
                    f"entry timestamp is: {_time(item.at_ns)}, oldest acceptable timestamp is: {_time(oldest_ns)}'"
                )
            else:
                good.append(item)
                newest_ns = max(newest_ns, item.at_ns)
        if not words:
            return _Answered(good)
        ignored = len(items) - len(good)
        return _Answered(good, 400, f"{words},\nuser 'fake', total ignored: {ignored} out of {len(items)}")

    def _collapses(self, item: Item, digest: bytes) -> bool:
        stream = self._active.setdefault(item.stream, _Active())
        stream.newest_ns = max(stream.newest_ns, item.at_ns)
        place = item.at_ns << 16 | self._numbers.setdefault(item.stream, len(self._numbers))
        if digest not in self.counts:
            self._places[digest] = place
        elif place == self._places[digest] or place in self._more_places.get(digest, ()):
            return True
        else:
            self._more_places.setdefault(digest, set()).add(place)
        self.streams[item.stream] = self.streams.get(item.stream, 0) + 1
        return False

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "streams": self.streams,
            "active_streams": len(self._active),
            "most_active_streams": max(self.most_active, len(self._active)),
        }


def _wrong_labels(stream: str, labels: dict[str, str]) -> str:
    """Why Loki refuses a stream with these labels; empty if it does not. Loki's own labels are added later."""
    if not labels:
        return "error at least one label pair is required per stream"
    if len(labels) > MAX_LABELS:
        return f"entry for stream '{stream}' has {len(labels)} label names; limit {MAX_LABELS}"
    for name, value in labels.items():
        if len(name.encode()) > MAX_LABEL_NAME_BYTES:
            return f"stream '{stream}' has label name too long: '{name}'"
        if len(value.encode()) > MAX_LABEL_VALUE_BYTES:
            return f"stream '{stream}' has label value too long: '{value}'"
    return ""


def _wrong_entry(item: Item) -> str:
    """Why Loki refuses this entry in any stream; empty if it does not."""
    now_ns = time.time_ns()
    if item.at_ns < now_ns - MAX_AGE_NS:
        return (
            f"entry for stream '{item.stream}' has timestamp too old: {_time(item.at_ns)}, "
            f"oldest acceptable timestamp is: {_time(now_ns - MAX_AGE_NS)}"
        )
    if item.at_ns > now_ns + MAX_FUTURE_NS:
        return f"entry for stream '{item.stream}' has timestamp too new: {_time(item.at_ns)}"
    if len(item.line) > MAX_LINE_BYTES:
        return (
            f"max entry size '{MAX_LINE_BYTES}' bytes exceeded for stream '{item.stream}' while "
            f"adding an entry with length '{len(item.line)}' bytes"
        )
    return ""
