"""A stand-in for Loki's push API that enforces its limits.

Source: docs/facts.md, "Loki push API", tried against a real Loki 3 with default limits.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

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


class _Stream(msgspec.Struct):
    stream: dict[str, str]
    values: list[list[str | dict[str, str]]]


class _Push(msgspec.Struct):
    streams: list[_Stream]


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // _SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _refusal(status: int, message: str, refused: int = 0) -> Verdict:
    return Verdict(Answer(status, message.encode() + b"\n", "text/plain; charset=utf-8"), [], refused)


def label_text(labels: dict[str, str]) -> str:
    """The stream as Loki writes it: `{contract="1", tag_name="activityLog"}`."""
    return "{" + ", ".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"


class LokiIntake(Intake):
    """`POST /loki/api/v1/push`. `streams` counts the stored lines of each stream.

    An exact repeat (stream, time, line) is acknowledged and collapses, however much later it comes.
    """

    name = "loki"

    def __init__(self) -> None:
        super().__init__()
        self.streams: dict[str, int] = {}
        self._newest_ns: dict[str, int] = {}
        self._numbers: dict[str, int] = {}  # stream -> a small number
        self._places: dict[bytes, int] = {}  # digest of a line -> the (time, stream) it was first stored at
        self._more_places: dict[bytes, set[int]] = {}  # the others, for the few lines that have several

    def judge(self, request: Request, settings: SimulatorSettings) -> Verdict:
        if settings.loki_authorization and request.headers.get("authorization") != settings.loki_authorization:
            return _refusal(401, "no credentials, or wrong ones")
        if settings.loki_tenant and request.headers.get("x-scope-orgid") != settings.loki_tenant:
            return _refusal(401, "no org id")
        body = inflated(request)
        if body is None:
            return _refusal(400, "gzip: invalid header")
        if len(body) > settings.loki_max_body_bytes:
            return _refusal(
                429,
                "ingestion rate limit exceeded for user fake (limit: 4194304 bytes/sec) while attempting to "
                f"ingest '{len(body)}' bytes, reduce log volume or contact your Loki administrator",
            )
        try:
            push = msgspec.json.decode(body, type=_Push)
            items = [self._item(stream, value) for stream in push.streams for value in stream.values]
        except (msgspec.DecodeError, ValueError) as error:
            return _refusal(400, f"couldn't parse push request: {error}")
        if not items:
            return _refusal(422, "error at least one valid stream is required for ingestion")
        return self._sift(items, {label_text(stream.stream): len(stream.stream) for stream in push.streams})

    def _item(self, stream: _Stream, value: list[Any]) -> Item:
        """Raises: ValueError when a value is not [ns as a string of digits, line], metadata or not."""
        if len(value) not in (2, 3) or not isinstance(value[0], str) or not isinstance(value[1], str):
            raise ValueError("a value must be [time, line] or [time, line, metadata], time and line strings")
        if not (value[0].isascii() and value[0].isdigit()) or (len(value) == 3 and isinstance(value[2], str)):
            raise ValueError(f"invalid time or metadata beside {value[0]!r}")
        return Item(value[1].encode(), stream=label_text(stream.stream), at_ns=int(value[0]))

    def _sift(self, items: list[Item], label_counts: dict[str, int]) -> Verdict:
        """Keep the good entries; name one of the others, as Loki does."""
        now_ns, newest_ns = time.time_ns(), dict(self._newest_ns)
        good: list[Item] = []
        message = ""
        for item in items:
            reason = self._refuse(item, label_counts[item.stream], now_ns, newest_ns.get(item.stream, 0))
            if reason:
                message = message or reason
            else:
                good.append(item)
                newest_ns[item.stream] = max(newest_ns.get(item.stream, 0), item.at_ns)
        if not message:
            return Verdict(Answer(204), good)
        refused = len(items) - len(good)
        message = f"{message}, user 'fake', total ignored: {refused} out of {len(items)}"
        return _refusal(400, message, refused)._replace(items=good)

    def _refuse(self, item: Item, label_count: int, now_ns: int, newest_ns: int) -> str:
        """Why Loki refuses this entry; empty if it does not."""
        if label_count > MAX_LABELS:
            return f"entry for stream '{item.stream}' has {label_count} label names; limit {MAX_LABELS}"
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
        if item.at_ns < newest_ns - MAX_BEHIND_NS:
            return (
                f"entry with timestamp {_time(item.at_ns)} ignored, reason: 'entry too far behind, "
                f"entry timestamp is: {_time(item.at_ns)}, "
                f"oldest acceptable timestamp is: {_time(newest_ns - MAX_BEHIND_NS)}'"
            )
        return ""

    def _collapses(self, item: Item, digest: bytes) -> bool:
        place = item.at_ns << 16 | self._numbers.setdefault(item.stream, len(self._numbers))
        if digest not in self.counts:
            self._places[digest] = place
        elif place == self._places[digest] or place in self._more_places.get(digest, ()):
            return True
        else:
            self._more_places.setdefault(digest, set()).add(place)
        self._newest_ns[item.stream] = max(self._newest_ns.get(item.stream, 0), item.at_ns)
        self.streams[item.stream] = self.streams.get(item.stream, 0) + 1
        return False

    def state(self) -> dict[str, Any]:
        return {**super().state(), "streams": self.streams}
