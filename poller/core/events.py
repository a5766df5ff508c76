"""What the API's answers become: pages of events, each with its identity, its time and its line.

Owns three decisions and nothing else: what makes two entries the same one (`_identity`), what time an entry has, and how
its line is written. An entry's line is the API's own bytes with the white space between tokens taken out: key order,
`1.10`, integers beyond 64 bits and escapes stay as they came. Nothing here does I/O.
"""

from __future__ import annotations

import codecs
import email.utils
import functools
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, overload

import msgspec

from poller.core.damage import Broken, Shield, without_broken_elements
from poller.core.errors import BodyTooLargeError

IDENTITY_BYTES = 16
# A second's nano-, micro- and milliseconds, and itself: how many there are, and from which number on it is that unit.
_EPOCH_UNITS = ((1e9, 1e17), (1e6, 1e14), (1e3, 1e11), (1.0, 1e8))
# From 1970 until 64 bits of nanoseconds are used up, in 2262. Other times cannot be written in every format and for every sink,
# so they are no usable times.
# Bounds on memory, whatever comes. The API serves no more entries than this at once; an API that ignores `limit` may send more:
# those are not read, and the page says that there are more. Few commas are few elements, which are not counted.
MAX_ENTRIES = 10_000
_FEW_COMMAS = 50_000
_MAX_SCALAR_BYTES = 64 * 1024  # no id and no time is longer
_MAX_CANONICAL_BYTES = 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_PIECE = 256  # events that are rendered at once
_FIRST_US, _LAST_US = 0, (2**63 - 1) // 1000


class BadAnswerError(Exception):
    """The API's answer is not what docs/facts.md describes; the text says how. The API client makes it one of our errors."""


class PartialAnswerError(Exception):
    """The API says that it looked at only a part of its data; the text says how. The API client makes it one of our errors."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One entry of the audit trail, with what we know about it.

    `identity` is the same for every read of the same entry and differs for different ones, within a contract.
    `has_id` tells whether it rests on an id of the API's; otherwise it is a hash of the content, and `ordinal` counts
    the equal entries before this one. `time_us` is in microseconds since 1970, the entry's own if `is_timed`.
    `line` is compact JSON in UTF-8, without a newline. `shared_id` is the identity that the API's id alone would give, set only
    where the API gave one id to several different entries.
    """

    time_us: int
    identity: bytes
    line: bytes
    has_id: bool = True
    is_timed: bool = True
    ordinal: int = 0
    shared_id: bytes = b""

    def duplicate(self, ordinal: int) -> Event:
        """The same content once more: the `ordinal`-th entry equal to this one, an entry of its own."""
        identity = _digest(b"twin%d:" % ordinal + self.identity)
        return msgspec.structs.replace(self, identity=identity, ordinal=ordinal)

    def apart(self) -> Event:
        """This event, told by its content from others that the API gave the same id."""
        shared = self.shared_id or self.identity
        identity = _digest(b"shared:", shared, _canonical(self.line))
        return msgspec.structs.replace(self, identity=identity, ordinal=1, shared_id=shared)

    def at(self, time_us: int) -> Event:
        """This event, without a usable time of its own, given the time at which the API showed it."""
        return msgspec.structs.replace(self, time_us=time_us, is_timed=False)


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


Record = tuple[int, int, int, bytes]
"""Of an event: its time in microseconds, the length of its line without the newline, its ordinal, its identity."""


class Run(NamedTuple):
    """Events of one contract: a record of each, and their lines, newline-terminated, one behind the other."""

    contract: str
    records: Iterable[Record]
    lines: bytes


class StoredEvents(Sequence[OutboxEvent]):
    """Events of which the lines lie ready, one behind the other; each is made an object only when somebody asks for one.

    Most sinks want the lines alone, and are spared the rest.
    """

    def __init__(
        self,
        count: int,
        runs: Callable[[], Iterable[Run]],
        open_: Callable[[], list[OutboxEvent]],
        longest_bytes: Callable[[], int],
    ) -> None:
        """`open_` makes the objects, `count` of them, of what is in `runs`; `longest_bytes`: of a line, without its newline."""
        self._count = count
        self._open = open_
        self.longest_bytes = longest_bytes
        self._events: list[OutboxEvent] | None = None
        self.runs = runs

    @property
    def lines(self) -> bytes:
        """All lines, newline-terminated."""
        return b"".join([run.lines for run in self.runs()])

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


def runs(events: Sequence[OutboxEvent]) -> Iterable[Run]:
    """The events in order, in runs of one contract each."""
    if isinstance(events, StoredEvents):
        yield from events.runs()
        return
    for contract, group in itertools.groupby(events, key=lambda event: event.contract):
        run = list(group)
        records = [(event.time_us, len(event.line), event.ordinal, event.identity) for event in run]
        yield Run(contract, records, b"\n".join([*(event.line for event in run), b""]))


def ndjson(events: Sequence[OutboxEvent], render: Callable[[OutboxEvent], bytes] | None = None) -> bytes:
    """The events' lines, each with its newline: as `render` makes them, else as they are."""
    if render is None:
        return (
            events.lines if isinstance(events, StoredEvents) else b"\n".join([*(event.line for event in events), b""])
        )
    lines = io.BytesIO()
    lines.writelines(ndjson_pieces(events, render))
    return lines.getvalue()


def ndjson_pieces(
    events: Sequence[OutboxEvent], render: Callable[[OutboxEvent], bytes] | None = None
) -> Iterator[bytes]:
    """The same in pieces of whole lines, each so small that it stays in the processor's cache while it is made and used.

    What `render` has as `pieces` makes an event in pieces of its own, which are copied once, all together.
    """
    if render is None:
        yield ndjson(events)
        return
    pieces_of: Callable[[OutboxEvent], Sequence[bytes]] | None = getattr(render, "pieces", None)
    for at in range(0, len(events), _PIECE):
        some = events[at : at + _PIECE]
        if pieces_of is None:
            yield b"\n".join([*map(render, some), b""])
            continue
        pieces: list[bytes] = []
        for event in some:
            pieces += pieces_of(event)
            pieces.append(b"\n")
        yield b"".join(pieces)


class Unreadable(msgspec.Struct, frozen=True, gc=False):
    """An element of an answer that is no entry we can use: how many usable ones came before it, its bytes, and why.

    `second` is its time where one can be found in the bytes.
    """

    place: int
    content: bytes
    reason: str
    second: int | None = None

    def behind(self, count: int) -> Unreadable:
        """The same behind so many more usable ones."""
        return msgspec.structs.replace(self, place=self.place + count)


class Page(msgspec.Struct, frozen=True, gc=False):
    """One answer to one query: the events in the API's order, and the API's own count of the whole window.

    `total` is None where the API did not say; `is_capped` means that it said "at least". `weight_bytes` is the size of
    the lines. `is_mended` means that bytes which are not UTF-8 were replaced. `unreadable` are elements that count, but
    cannot be used.
    """

    events: tuple[Event, ...]
    total: int | None
    is_capped: bool
    weight_bytes: int
    is_mended: bool
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def count(self) -> int:
        """How many of the window's entries this page covers, usable or not."""
        return len(self.events) + len(self.unreadable)


NOTHING = Page((), 0, is_capped=False, weight_bytes=0, is_mended=False)
"""What an answer without content says."""


_ABSENT = msgspec.Raw()


class _Total(msgspec.Struct, gc=False):
    value: int
    relation: str = "eq"


class _Hit(msgspec.Struct, gc=False):
    source: msgspec.Raw = msgspec.field(name="_source")
    id: msgspec.Raw = msgspec.field(name="_id", default=_ABSENT)


class _Hits(msgspec.Struct, gc=False):
    hits: list[_Hit]
    total: int | _Total | None = None


class _Answer(msgspec.Struct, gc=False):
    hits: _Hits


class _LooseHits(msgspec.Struct, gc=False):
    hits: list[msgspec.Raw] | None = None
    total: int | _Total | None = None


class _LooseAnswer(msgspec.Struct, gc=False):
    """Where an answer's elements are not all hits, or where it has none."""

    hits: _LooseHits | None = None
    total: int | _Total | None = None


class _Envelope(msgspec.Struct, gc=False):
    """An answer, or its `hits`, of which nothing is opened yet."""

    hits: msgspec.Raw = _ABSENT
    items: msgspec.Raw = _ABSENT
    total: msgspec.Raw = _ABSENT


class _Shards(msgspec.Struct, gc=False):
    failed: msgspec.Raw = _ABSENT
    total: msgspec.Raw = _ABSENT


class _Search(msgspec.Struct, gc=False):
    """What an answer says of how it came about."""

    timed_out: msgspec.Raw = _ABSENT
    shards: msgspec.Raw = msgspec.field(name="_shards", default=_ABSENT)


class _Element(msgspec.Struct, gc=False):
    source: msgspec.Raw = msgspec.field(name="_source", default=_ABSENT)
    id: msgspec.Raw = msgspec.field(name="_id", default=_ABSENT)


class _LooseHead(msgspec.Struct, gc=False):
    """The part of an entry that identity and time are made of, whatever type it has."""

    uuid: msgspec.Raw = msgspec.field(name="@uuid", default=_ABSENT)
    meta: msgspec.Raw = _ABSENT


class _LooseMeta(msgspec.Struct, gc=False):
    time: msgspec.Raw = _ABSENT


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
_decode_loose = msgspec.json.Decoder(_LooseAnswer).decode
_decode_answer_heads = msgspec.json.Decoder(_AnswerHeads).decode
_decode_head = msgspec.json.Decoder(_Head).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_search = msgspec.json.Decoder(_Search).decode
_decode_shards = msgspec.json.Decoder(_Shards).decode
_decode_element = msgspec.json.Decoder(_Element).decode
_decode_loose_head = msgspec.json.Decoder(_LooseHead).decode
_decode_loose_meta = msgspec.json.Decoder(_LooseMeta).decode

_NO_ENTRY = "the API shows something in its place that is no entry"
_TIME_IN_BYTES = re.compile(rb'"time"\s*:\s*"([0-9T:.Zz+ -]{10,40})"')


def parse_page(body: bytes, max_bytes: int = sys.maxsize) -> Page:
    """Read one answer of `GET /contracts/{number}`.

    Accepts `{"hits": {"total", "hits": [{"_source"}]}}`, `{"items": [...]}` and a bare list, whose elements may be hits or
    entries.  Source: docs/facts.md, "IONOS Activity Log API".
    Raises: BadAnswerError when it is anything else, PartialAnswerError when it says that it is not all, BodyTooLargeError when
    it is larger than `max_bytes` once its text is mended.
    """
    is_mended = not _is_utf8(body)
    if is_mended:
        body = _mended(body, max_bytes)
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        try:
            return _parse(_compact(body), is_mended, None)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, RecursionError):
            return _parse_damaged(body, is_mended)
    except msgspec.DecodeError as error:
        raise BadAnswerError(f"not the JSON that was expected: {error}") from error
    except RecursionError as error:
        raise BadAnswerError("JSON nested too deeply to read") from error


def _is_utf8(body: bytes) -> bool:
    """Whether these bytes are UTF-8, without a copy of them as text, which may be four times as large."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    try:
        for start in range(0, len(body), _CHUNK_BYTES):
            decode(body[start : start + _CHUNK_BYTES])
        decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _mended(body: bytes, max_bytes: int) -> bytes:
    """The body with U+FFFD in place of what is not UTF-8, which takes up to three times as much."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    mended = bytearray()
    for start in range(0, len(body), _CHUNK_BYTES):
        mended += decode(body[start : start + _CHUNK_BYTES], final=start + _CHUNK_BYTES >= len(body)).encode()
        if len(mended) > max_bytes:
            raise BodyTooLargeError(f"the answer is larger than {max_bytes} bytes once what is not UTF-8 is replaced")
    return bytes(mended)


def _parse_damaged(body: bytes, is_mended: bool) -> Page:
    """An answer that is no valid JSON as a whole, though perhaps entry by entry.  Raises: msgspec.DecodeError."""
    shield = Shield(body)
    try:
        if shield.is_needed:
            return _parse(_compact(shield.shielded), is_mended, shield)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, RecursionError):
        pass
    rest, broken = without_broken_elements(shield.shielded)
    return _parse(_compact(rest), is_mended, shield, broken)


def _compact(body: bytes) -> bytes:
    """The same JSON without white space between its tokens; the very same object where it had none, to save a copy."""
    compact = msgspec.json.format(body, indent=-1)
    return body if compact == body else compact


def _parse(compact: bytes, is_mended: bool, shield: Shield | None, broken: Sequence[Broken] = ()) -> Page:
    """`broken`: the elements that were taken out of the answer, of which a null is left in it, in order."""
    _refuse_a_part(compact)
    compact, is_cut = _cut(compact)
    elements, total, shape = _elements_and_total(compact)
    is_capped = is_cut
    if isinstance(total, _Total):
        is_capped = is_capped or total.relation != "eq"
        total = total.value
    if total is not None and total < 0:
        raise BadAnswerError(f"a negative total: {total}")
    if is_cut:
        total = max(total or 0, len(elements) + 1)
    hits, unreadable = _usable(elements, broken, is_bare_allowed=shape == "list")
    lines = [bytes(hit.source) for hit in hits]
    heads = _heads(compact, lines) if shape == "usual" and not unreadable else [_head(line) for line in lines]
    if shield is not None:
        lines = [shield.restore(line) for line in lines]
        unreadable = [
            msgspec.structs.replace(element, content=shield.restore(element.content)) for element in unreadable
        ]
    events = tuple(_event(head, line, hit.id) for head, line, hit in zip(heads, lines, hits, strict=True))
    return Page(events, total, is_capped, sum(map(len, lines)), is_mended, tuple(unreadable))


def _refuse_a_part(compact: bytes) -> None:
    """Raises: PartialAnswerError when the API did not look at all of its data.

    Source: Elasticsearch's search API: `timed_out`, `_shards.failed`.
    """
    if not compact.startswith(b"{") or (b'"timed_out"' not in compact and b'"_shards"' not in compact):
        return
    search = _decode_search(compact)
    if _decode_or_none(search.timed_out) is True:
        raise PartialAnswerError("its search timed out")
    if not _starts_with(search.shards, b"{"):
        return
    shards = _decode_shards(search.shards)
    failed = _decode_or_none(shards.failed)
    if isinstance(failed, int | float) and failed > 0:
        raise PartialAnswerError(f"{failed} of its {_decode_or_none(shards.total) or 'many'} shards failed")


def _cut(compact: bytes) -> tuple[bytes, bool]:
    """An answer with no more than its first MAX_ENTRIES elements, and whether it has more.

    The elements are counted without an object for each: millions of them would take a hundred times the memory of the answer.
    """
    if compact.count(b",") < _FEW_COMMAS:
        return compact, False
    if compact.startswith(b"["):
        return _first_elements(compact)
    answer = _decode_envelope(compact)
    items, is_cut = _first_elements(answer.items)
    hits: bytes = answer.hits
    if _starts_with(hits, b"{"):
        inner = _decode_envelope(hits)
        inner_hits, is_inner_cut = _first_elements(inner.hits)
        hits = _object(hits=inner_hits, total=inner.total)
        is_cut = is_cut or is_inner_cut
    return (_object(hits=hits, items=items, total=answer.total), True) if is_cut else (compact, False)


def _starts_with(raw: bytes, bracket: bytes) -> bool:
    return bytes(memoryview(raw)[:1]) == bracket


def _first_elements(elements: bytes) -> tuple[bytes, bool]:
    if not _starts_with(elements, b"["):
        return elements, False
    first = msgspec.structs.astuple(_first_decoder()(elements))
    return (elements, False) if not first[-1] else (b"[%s]" % b",".join(first[:-1]), True)


@functools.cache
def _first_decoder() -> Callable[[Any], Any]:
    """Reads a list, but makes objects of no more than its first elements: those behind the last field are skipped."""
    fields = [(f"e{number}", msgspec.Raw, _ABSENT) for number in range(MAX_ENTRIES + 1)]
    kind = msgspec.defstruct("_FirstElements", fields, array_like=True, gc=False)
    return msgspec.json.Decoder(kind).decode


def _object(**fields: bytes) -> bytes:
    return b"{%s}" % b",".join(b'"%s":%s' % (key.encode(), value) for key, value in fields.items() if value)


def _elements_and_total(
    compact: bytes,
) -> tuple[Sequence[_Hit | msgspec.Raw], int | _Total | None, Literal["usual", "hits", "list"]]:
    """The elements, the total, and the shape of the answer: hits each and all, elements that should be some, a bare list."""
    if compact.startswith(b"["):
        return _decode_raws(compact), None, "list"
    try:
        usual = _decode_answer(compact).hits
        return usual.hits, usual.total, "usual"
    except msgspec.ValidationError:
        fields = _decode_envelope(compact)
        items = fields.items
        if bytes(items) == b"null" and _decode_or_none(fields.total) in (None, 0):
            return [], 0, "list"
        if items:
            return _decode_raws(items), None, "list"
        loose = _decode_loose(compact)
        hits = loose.hits
        total = loose.total if hits is None else hits.total
        elements = None if hits is None else hits.hits
        if elements is None and (total.value if isinstance(total, _Total) else total) != 0:
            raise
        return elements or [], total, "hits"


def _usable(
    elements: Sequence[_Hit | msgspec.Raw], broken: Sequence[Broken], *, is_bare_allowed: bool
) -> tuple[list[_Hit], list[Unreadable]]:
    """The elements that hold an entry, and the others."""
    hits: list[_Hit] = []
    unreadable: list[Unreadable] = []
    left = list(reversed(broken))
    for element in elements:
        hit = element if isinstance(element, _Hit) else _hit(element, is_bare_allowed=is_bare_allowed)
        if hit is not None and bytes(hit.source).startswith(b"{"):
            hits.append(hit)
            continue
        content = b'{"_source":%s}' % bytes(element.source) if isinstance(element, _Hit) else bytes(element)
        why = _NO_ENTRY
        if content == b"null" and left:
            content, why = left.pop()
        unreadable.append(Unreadable(len(hits), content, why, _second_in(content)))
    return hits, unreadable


def _hit(element: msgspec.Raw, *, is_bare_allowed: bool) -> _Hit | None:
    """An element as a hit, or where that is allowed as the entry itself. None where it is neither."""
    try:
        fields = _decode_element(element)
    except msgspec.ValidationError:
        return None
    if fields.source:
        return _Hit(fields.source, fields.id)
    return _Hit(element) if is_bare_allowed else None


def _second_in(content: bytes) -> int | None:
    """The time of an entry that cannot be decoded, as far as one is written in it: unix seconds."""
    match = _TIME_IN_BYTES.search(content)
    time_us = time_us_of(match[1].decode()) if match else None
    return None if time_us is None else time_us // 1_000_000


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
        fields = _decode_loose_head(line)
    uuid = _decode_or_none(fields.uuid)
    try:
        time = _decode_or_none(_decode_loose_meta(fields.meta or b"{}").time)
    except msgspec.ValidationError:  # no object
        time = None
    return _Head(str(uuid) if _is_scalar(uuid) else None, _Meta(_parse_time(time)))


def _decode_or_none(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw) if 0 < memoryview(raw).nbytes <= _MAX_SCALAR_BYTES else None
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


def time_us_of(value: object) -> int | None:
    """The time that an entry writes in any of these forms, in microseconds since 1970; None where it is no usable time."""
    time = _parse_time(value)
    return None if time is None else _time_us(time)


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


def _event(head: _Head, line: bytes, hit_id: msgspec.Raw) -> Event:
    identity, has_id = _identity(head.uuid, hit_id, line)
    time = head.meta.time if head.meta is not None else None
    time_us = None if time is None else _time_us(time)
    if time_us is None:
        return Event(0, identity, line, has_id, is_timed=False)
    return Event(time_us, identity, line, has_id)


def _time_us(time: datetime) -> int | None:
    """Microseconds since 1970, UTC where the time does not say; None where that is no time that every sink takes."""
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    time_us = round(time.timestamp() * 1_000_000)
    return time_us if _FIRST_US <= time_us <= _LAST_US else None


def _identity(uuid: str | None, raw_id: msgspec.Raw, line: bytes) -> tuple[bytes, bool]:
    """What makes an entry this entry: `@uuid`, else its content with the hit's `_id`. And whether there is an id in it.

    An `_id` alone is believed no more than that: if a store numbered the hits of each answer, all of those would be one entry.
    """
    if uuid:
        return _digest(b"uuid:" + uuid.encode("utf-8", "surrogatepass")), True
    content = _canonical(line)
    hit_id = _decode_or_none(raw_id)
    if _is_scalar(hit_id) and hit_id != "":
        return _digest(b"id:%d:" % len(content), content, str(hit_id).encode("utf-8", "surrogatepass")), True
    return _digest(b"content:", content), False


def _canonical(line: bytes) -> bytes:
    """The content with its keys sorted, so that a store that reorders keys does not make a second entry of one.

    Of an entry larger than any that is known the content as it came, as objects take many times its memory.
    """
    if len(line) > _MAX_CANONICAL_BYTES:
        return line
    try:
        return msgspec.json.encode(msgspec.json.decode(line), order="sorted")
    except (msgspec.DecodeError, RecursionError):
        return line


def _digest(*parts: bytes) -> bytes:
    digest = blake2b(digest_size=IDENTITY_BYTES)
    for part in parts:
        digest.update(part)
    return digest.digest()
