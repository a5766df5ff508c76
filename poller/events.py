"""What the API's answers become: pages of events, each with its identity, its time and its line.

Owns three decisions and nothing else: what makes two entries the same one (`_identity`), what time an entry has, and how
its line is written. An entry's line is the API's own bytes with the white space between tokens taken out: key order,
`1.10`, integers beyond 64 bits and escapes stay as they came. Nothing here does I/O.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, overload

import msgspec

IDENTITY_BYTES = 16
# A second's nano-, micro- and milliseconds, and itself: how many there are, and from which number on it is that unit.
_EPOCH_UNITS = ((1e9, 1e17), (1e6, 1e14), (1e3, 1e11), (1.0, 1e8))
_FIRST_US, _LAST_US = (
    round(time.replace(tzinfo=UTC).timestamp() * 1_000_000)
    for time in (datetime.min, datetime.max)  # noqa: DTZ901
)


class BadAnswerError(Exception):
    """The API's answer is not what docs/facts.md describes; the text says how. The API client makes it one of our errors."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One entry of the audit trail, with what we know about it.

    `identity` is the same for every read of the same entry and differs for different ones, within a contract.
    `has_id` tells whether it rests on an id of the API's; otherwise it is a hash of the content, and `ordinal` counts
    the equal entries before this one. `time_us` is in microseconds since 1970, the entry's own if `is_timed`.
    `line` is compact JSON in UTF-8, without a newline.
    """

    time_us: int
    identity: bytes
    line: bytes
    has_id: bool = True
    is_timed: bool = True
    ordinal: int = 0

    def twin(self, ordinal: int) -> Event:
        """The same content once more: the `ordinal`-th entry equal to this one, an entry of its own."""
        identity = _digest(b"twin%d:" % ordinal + self.identity)
        return msgspec.structs.replace(self, identity=identity, ordinal=ordinal)

    def at(self, time_us: int) -> Event:
        """This event, without a time of its own, given the time at which the API showed it."""
        return msgspec.structs.replace(self, time_us=time_us)


class OutboxEvent(msgspec.Struct, frozen=True, gc=False):
    """An event on its way to a sink. `collected_at` is in unix seconds; `line` has no newline."""

    contract: str
    time_us: int
    collected_at: int
    identity: bytes
    ordinal: int
    line: bytes

    def with_line(self, line: bytes) -> OutboxEvent:
        """The same event with another line."""
        return msgspec.structs.replace(self, line=line)


class StoredEvents(Sequence[OutboxEvent]):
    """Events of which the lines lie ready, one behind the other; each is made an object only when somebody asks for one.

    Most sinks want the lines alone, and are spared the rest.
    """

    def __init__(
        self, count: int, lines: bytes, open_: Callable[[], list[OutboxEvent]], longest_bytes: Callable[[], int]
    ) -> None:
        """`lines`: newline-terminated; `open_` makes the objects, `count` of them; `longest_bytes`: of a line, without it."""
        self._count = count
        self._open = open_
        self.longest_bytes = longest_bytes
        self._events: list[OutboxEvent] | None = None
        self.lines = lines

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> OutboxEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[OutboxEvent]: ...
    def __getitem__(self, index: int | slice) -> OutboxEvent | list[OutboxEvent]:
        return self._opened()[index]

    def __iter__(self) -> Iterator[OutboxEvent]:
        return iter(self._opened())

    def _opened(self) -> list[OutboxEvent]:
        if self._events is None:
            self._events = self._open()
        return self._events


def ndjson(events: Sequence[OutboxEvent]) -> bytes:
    """The events' lines, each with its newline."""
    return events.lines if isinstance(events, StoredEvents) else b"\n".join([*(event.line for event in events), b""])


class Page(msgspec.Struct, frozen=True, gc=False):
    """One answer to one query: the events in the API's order, and the API's own count of the whole window.

    `total` is None where the API did not say; `is_capped` means that it said "at least". `weight_bytes` is the size of
    the lines. `is_mended` means that bytes which are not UTF-8 were replaced.
    """

    events: tuple[Event, ...]
    total: int | None
    is_capped: bool
    weight_bytes: int
    is_mended: bool


class _Total(msgspec.Struct, gc=False):
    value: int
    relation: str = "eq"


class _Hit(msgspec.Struct, gc=False):
    source: msgspec.Raw = msgspec.field(name="_source")
    id: Any = msgspec.field(name="_id", default=None)


class _Hits(msgspec.Struct, gc=False):
    hits: list[_Hit]
    total: int | _Total | None = None


class _Answer(msgspec.Struct, gc=False):
    hits: _Hits


class _Meta(msgspec.Struct, gc=False):
    time: datetime | None = None


class _Head(msgspec.Struct, gc=False):
    """The part of an entry that identity and time are made of, where it has the usual types."""

    uuid: str | None = msgspec.field(name="@uuid", default=None)
    meta: _Meta | None = None


class _HitHead(msgspec.Struct, gc=False):
    source: _Head = msgspec.field(name="_source")


class _HitsHeads(msgspec.Struct, gc=False):
    hits: list[_HitHead]


class _AnswerHeads(msgspec.Struct, gc=False):
    hits: _HitsHeads


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_answer_heads = msgspec.json.Decoder(_AnswerHeads).decode
_decode_head = msgspec.json.Decoder(_Head).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def parse_page(body: bytes) -> Page:
    """Read one answer of `GET /contracts/{number}`.

    Accepts `{"hits": {"total", "hits": [{"_source"}]}}`, `{"items": [...]}` and a bare list, whose elements may be hits or
    entries.  Raises: BadAnswerError when it is anything else.  Source: docs/facts.md, "IONOS Activity Log API".
    """
    try:
        body.decode()
        is_mended = False
    except UnicodeDecodeError:
        body = body.decode("utf-8", "replace").encode()
        is_mended = True
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        try:
            return _parse(msgspec.json.format(body, indent=-1), is_mended, None)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            shield = Shield(body)
            if not shield.is_needed:
                raise
            return _parse(msgspec.json.format(shield.shielded, indent=-1), is_mended, shield)
    except msgspec.DecodeError as error:
        raise BadAnswerError(f"not the JSON that was expected: {error}") from error
    except RecursionError as error:
        raise BadAnswerError("JSON nested too deeply to read") from error


def _parse(compact: bytes, is_mended: bool, shield: Shield | None) -> Page:
    hits, total, is_usual = _hits_and_total(compact)
    is_capped = False
    if isinstance(total, _Total):
        is_capped = total.relation != "eq"
        total = total.value
    if total is not None and total < 0:
        raise BadAnswerError(f"a negative total: {total}")
    lines = [bytes(hit.source) for hit in hits]
    heads = _heads(compact, lines) if is_usual else [_head(line) for line in lines]
    if shield is not None:
        lines = [shield.restore(line) for line in lines]
    events = tuple(_event(head, line, hit.id) for head, line, hit in zip(heads, lines, hits, strict=True))
    return Page(events, total, is_capped, sum(map(len, lines)), is_mended)


def _hits_and_total(compact: bytes) -> tuple[list[_Hit], int | _Total | None, bool]:
    """The hits, the total, and whether the answer has the API's usual shape."""
    if compact.startswith(b"["):
        return _tolerant_hits(_decode_raws(compact)), None, False
    try:
        hits = _decode_answer(compact).hits
    except msgspec.ValidationError:
        items = _decode_object(compact).get("items")
        if items is None:
            raise
        return _tolerant_hits(_decode_raws(items)), None, False
    return hits.hits, hits.total, True


def _tolerant_hits(raws: Iterable[msgspec.Raw]) -> list[_Hit]:
    """Elements of a bare list or of `items`: hits, or the entries themselves."""
    hits = []
    for raw in raws:
        fields = _decode_object(raw)
        if "_source" in fields:
            hits.append(msgspec.json.decode(raw, type=_Hit))
        else:
            hits.append(_Hit(raw))
    return hits


def _heads(compact: bytes, lines: Sequence[bytes]) -> list[_Head]:
    """Identity and time fields of every entry: in one go where all have the usual types, else one by one."""
    try:
        return [hit.source for hit in _decode_answer_heads(compact).hits.hits]
    except msgspec.ValidationError:
        return [_head(line) for line in lines]


def _head(line: bytes) -> _Head:
    try:
        return _decode_head(line)
    except msgspec.ValidationError:
        fields = _decode_object(line)
    uuid = _decode_or_none(fields.get("@uuid"))
    try:
        time = _decode_or_none(_decode_object(fields.get("meta", b"{}")).get("time"))
    except msgspec.ValidationError:  # no object
        time = None
    return _Head(str(uuid) if _is_scalar(uuid) else None, _Meta(_parse_time(time)))


def _decode_or_none(raw: msgspec.Raw | None) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except msgspec.DecodeError:  # a number out of range, say: then it is no id and no time
        return None


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _parse_time(value: Any) -> datetime | None:
    """The time in any of the forms that are in use: ISO 8601, HTTP's, seconds since 1970 or smaller units, as number or text."""
    try:
        if isinstance(value, str) and not re.fullmatch(r"[0-9]{9,19}(\.[0-9]+)?", value, re.ASCII):
            return _parse_text_time(value.strip())
        return _parse_epoch(float(value)) if _is_scalar(value) else None
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None


def _parse_text_time(text: str) -> datetime:
    if re.search(r"[A-Za-z]{3} ", text):
        return email.utils.parsedate_to_datetime(text)
    zoned = re.sub(r" ?(UTC|GMT)$", "+00:00", text)
    return datetime.fromisoformat(re.sub(r"^(\d{4})/(\d\d)/(\d\d)", r"\1-\2-\3", zoned))


def _parse_epoch(count: float) -> datetime | None:
    """A number is in the unit in which it means a time of this century or so; a small one is no time."""
    for unit, least in _EPOCH_UNITS:
        if count >= least:
            return datetime.fromtimestamp(count / unit, UTC)
    return None


def _event(head: _Head, line: bytes, hit_id: Any) -> Event:
    identity, has_id = _identity(head.uuid, hit_id, line)
    time = head.meta.time if head.meta is not None else None
    if time is None:
        return Event(0, identity, line, has_id, is_timed=False)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    time_us = round(time.timestamp() * 1_000_000)
    if not _FIRST_US <= time_us <= _LAST_US:  # the year 1 east of Greenwich: no UTC can be written for it
        return Event(0, identity, line, has_id, is_timed=False)
    return Event(time_us, identity, line, has_id)


def _identity(uuid: str | None, hit_id: Any, line: bytes) -> tuple[bytes, bool]:
    """What makes an entry this entry: `@uuid`, else its content with the hit's `_id`. And whether there is an id in it.

    An `_id` alone is believed no more than that: if a store numbered the hits of each answer, all of those would be one entry.
    """
    if uuid:
        return _digest(b"uuid:" + uuid.encode("utf-8", "surrogatepass")), True
    content = _canonical(line)
    if _is_scalar(hit_id) and hit_id != "":
        return _digest(b"id:%d:" % len(content) + content + str(hit_id).encode("utf-8", "surrogatepass")), True
    return _digest(b"content:" + content), False


def _canonical(line: bytes) -> bytes:
    """The content with its keys sorted, so that a store that reorders keys does not make a second entry of one."""
    try:
        return msgspec.json.encode(msgspec.json.decode(line), order="sorted")
    except (msgspec.DecodeError, RecursionError):
        return line


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=IDENTITY_BYTES).digest()


class Shield:
    """Carries lone surrogate escapes (`\\ud800`), which are JSON but no Unicode, through a decoder that refuses them.

    Each is replaced by a mark that holds the digest of the body, so that no body can hold it, and put back in the lines.
    """

    _escape = re.compile(
        rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u([dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
        re.DOTALL,
    )

    def __init__(self, body: bytes) -> None:
        self._mark = b"lone-surrogate-" + blake2b(body, digest_size=16).hexdigest().encode()
        self.shielded = self._escape.sub(
            lambda match: b"<" + self._mark + match[1] + b">" if match[1] else match[0], body
        )
        self.is_needed = self._mark in self.shielded
        self._marked = re.compile(b"<" + re.escape(self._mark) + rb"([0-9a-fA-F]{4})>")

    def restore(self, line: bytes) -> bytes:
        return self._marked.sub(rb"\\u\1", line)
