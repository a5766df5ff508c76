"""Parsing the API's answers into pages of events.

Owns how an entry's line is written: the API's own bytes without the white space between tokens. Key order, `1.10`,
integers beyond 64 bits and escapes stay as they came. `entries.py` makes an event of one entry, `identity.py` decides which
entries are the same, and `times.py` reads the time of an entry. Nothing here does I/O.
"""

from __future__ import annotations

import codecs
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from poller.core.damage import Broken, Shield, without_broken_elements
from poller.core.entries import event_of, head_of, heads_of, second_in
from poller.core.errors import BodyTooLargeError
from poller.core.events import Event
from poller.core.identity import decoded

# Limits that bound memory. The API serves no more entries than this at once. If an API ignores `limit` and sends more, the rest
# is not read, and the page says that there is more. An answer with few commas has few elements, so these are not counted.
MAX_ENTRIES = 10_000
_FEW_COMMAS = 50_000
_CHUNK_BYTES = 1024 * 1024


class BadAnswerError(Exception):
    """The API's answer is not as docs/facts.md describes; the text says how. The API client makes it one of our errors."""


class PartialAnswerError(Exception):
    """The API says that it looked at only a part of its data; the text says how. The API client makes it one of our errors."""


class Unreadable(msgspec.Struct, frozen=True, gc=False):
    """An element of an answer that is not a usable entry: the number of usable ones before it (`place`), its bytes, and why.

    `second` is its time, if one can be found in the bytes.
    """

    place: int
    content: bytes
    reason: str
    second: int | None = None

    def behind(self, count: int) -> Unreadable:
        """The same element with `count` more usable ones before it."""
        return msgspec.structs.replace(self, place=self.place + count)


class Page(msgspec.Struct, frozen=True, gc=False):
    """One answer to one query: the events in the API's order, and the API's own count of the whole window.

    `total` is None if the API gave none; `is_capped` means that it said "at least". `weight_bytes` is the size of the lines.
    `is_mended` means that bytes that are not UTF-8 were replaced. `unreadable` are elements that count but cannot be used.
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
"""The page of an answer without content."""


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
    """An answer whose elements are not all hits, or that has none."""

    hits: _LooseHits | None = None
    total: int | _Total | None = None


class _Envelope(msgspec.Struct, gc=False):
    """An answer, or its `hits`, with its fields not decoded yet."""

    hits: msgspec.Raw = _ABSENT
    items: msgspec.Raw = _ABSENT
    total: msgspec.Raw = _ABSENT


class _Shards(msgspec.Struct, gc=False):
    failed: msgspec.Raw = _ABSENT
    successful: msgspec.Raw = _ABSENT
    total: msgspec.Raw = _ABSENT


class _Search(msgspec.Struct, gc=False):
    """The fields of an answer that say whether its search was complete."""

    timed_out: msgspec.Raw = _ABSENT
    shards: msgspec.Raw = msgspec.field(name="_shards", default=_ABSENT)


class _Element(msgspec.Struct, gc=False):
    source: msgspec.Raw = msgspec.field(name="_source", default=_ABSENT)
    id: msgspec.Raw = msgspec.field(name="_id", default=_ABSENT)


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_loose = msgspec.json.Decoder(_LooseAnswer).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_total = msgspec.json.Decoder(int | _Total | None).decode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_search = msgspec.json.Decoder(_Search).decode
_decode_shards = msgspec.json.Decoder(_Shards).decode
_decode_element = msgspec.json.Decoder(_Element).decode

_NO_ENTRY = "the API shows something in its place that is no entry"


def parse_page(body: bytes, max_bytes: int = sys.maxsize) -> Page:
    """Read one answer of `GET /contracts/{number}`.

    Accepts `{"hits": {"total", "hits": [{"_source"}]}}`, `{"items": [...]}` with or without a `total`, and a bare list, whose
    elements may be hits or entries.  Source: docs/facts.md, "IONOS Activity Log API".
    Raises: BadAnswerError if it is anything else, PartialAnswerError if it says that it is incomplete, BodyTooLargeError if
    it exceeds `max_bytes` after its text is mended.
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
    """Whether these bytes are UTF-8. Makes no copy of them as text, which may be four times as large."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    try:
        for start in range(0, len(body), _CHUNK_BYTES):
            decode(body[start : start + _CHUNK_BYTES])
        decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _mended(body: bytes, max_bytes: int) -> bytes:
    """The body with U+FFFD instead of each byte that is not UTF-8. The result is up to three times as large."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    mended = bytearray()
    for start in range(0, len(body), _CHUNK_BYTES):
        mended += decode(body[start : start + _CHUNK_BYTES], final=start + _CHUNK_BYTES >= len(body)).encode()
        if len(mended) > max_bytes:
            raise BodyTooLargeError(f"the answer is larger than {max_bytes} bytes once what is not UTF-8 is replaced")
    return bytes(mended)


def _parse_damaged(body: bytes, is_mended: bool) -> Page:
    """An answer that is not valid JSON as a whole; some of its entries may be valid.  Raises: msgspec.DecodeError."""
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
    """The same JSON without white space between its tokens; the same object if it had none, to save a copy."""
    compact = msgspec.json.format(body, indent=-1)
    return body if compact == body else compact


def _parse(compact: bytes, is_mended: bool, shield: Shield | None, broken: Sequence[Broken] = ()) -> Page:
    """The page of valid JSON. `broken`: the elements that were replaced by null in it, in order."""
    _refuse_a_part(compact)
    compact, is_cut = _cut(compact)
    elements, total, shape = _elements_and_total(compact)
    is_capped = is_cut or (isinstance(total, _Total) and total.relation != "eq")
    total = _count(total)
    if total is not None and total < 0:
        raise BadAnswerError(f"a negative total: {total}")
    if is_cut:
        total = max(total or 0, len(elements) + 1)
    hits, unreadable = _usable(elements, broken, is_bare_allowed=shape == "list")
    lines = [bytes(hit.source) for hit in hits]
    heads = heads_of(compact, lines) if shape == "usual" and not unreadable else [head_of(line) for line in lines]
    if shield is not None:
        lines = [shield.restore(line) for line in lines]
        for head in heads:
            head.uuid = shield.restore_text(head.uuid) if head.uuid is not None else None
        hits = [_Hit(hit.source, msgspec.Raw(shield.restore(bytes(hit.id)))) for hit in hits]
        unreadable = [
            msgspec.structs.replace(element, content=shield.restore(element.content)) for element in unreadable
        ]
    events = tuple(event_of(head, line, hit.id) for head, line, hit in zip(heads, lines, hits, strict=True))
    return Page(events, total, is_capped, sum(map(len, lines)), is_mended, tuple(unreadable))


def _refuse_a_part(compact: bytes) -> None:
    """Raises: PartialAnswerError if the API did not search all of its data.

    Source: Elasticsearch's search API: `timed_out`, `_shards`. An unallocated shard is neither successful nor failed.
    """
    if not compact.startswith(b"{") or (b'"timed_out"' not in compact and b'"_shards"' not in compact):
        return
    search = _decode_search(compact)
    if decoded(search.timed_out) is True:
        raise PartialAnswerError("its search timed out")
    if not _starts_with(search.shards, b"{"):
        return
    shards = _decode_shards(search.shards)
    failed, successful, total = (decoded(count) for count in (shards.failed, shards.successful, shards.total))
    if isinstance(failed, int | float) and failed > 0:
        raise PartialAnswerError(f"{failed} of its {total or 'many'} shards failed")
    if isinstance(successful, int | float) and isinstance(total, int | float) and successful < total:
        raise PartialAnswerError(f"{successful} of its {total} shards answered")


def _cut(compact: bytes) -> tuple[bytes, bool]:
    """The answer with at most its first MAX_ENTRIES elements, and whether it has more.

    Counts the elements without an object for each: millions of objects would take a hundred times the memory of the answer.
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
    """Decodes a list, but makes objects only of its first elements: those after the last field are skipped."""
    fields = [(f"e{number}", msgspec.Raw, _ABSENT) for number in range(MAX_ENTRIES + 1)]
    kind = msgspec.defstruct("_FirstElements", fields, array_like=True, gc=False)
    return msgspec.json.Decoder(kind).decode


def _object(**fields: bytes) -> bytes:
    return b"{%s}" % b",".join(b'"%s":%s' % (key.encode(), value) for key, value in fields.items() if value)


def _elements_and_total(
    compact: bytes,
) -> tuple[Sequence[_Hit | msgspec.Raw], int | _Total | None, Literal["usual", "hits", "list"]]:
    """The elements, the total, and the shape of the answer: all hits ("usual"), not all hits ("hits"), or a list ("list")."""
    if compact.startswith(b"["):
        return _decode_raws(compact), None, "list"
    try:
        usual = _decode_answer(compact).hits
        return usual.hits, usual.total, "usual"
    except msgspec.ValidationError:
        fields = _decode_envelope(compact)
        if fields.items:
            total = _decode_total(fields.total) if fields.total else None
            if bytes(fields.items) != b"null":
                return _decode_raws(fields.items), total, "list"
            if total is not None and _count(total) != 0:
                raise
            return [], 0, "list"
        loose = _decode_loose(compact)
        hits = loose.hits
        total = loose.total if hits is None else hits.total
        elements = None if hits is None else hits.hits
        if elements is None and _count(total) != 0:
            raise
        return elements or [], total, "hits"


def _count(total: int | _Total | None) -> int | None:
    return total.value if isinstance(total, _Total) else total


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
        unreadable.append(Unreadable(len(hits), content, why, second_in(content)))
    return hits, unreadable


def _hit(element: msgspec.Raw, *, is_bare_allowed: bool) -> _Hit | None:
    """An element as a hit, or as the entry itself if that is allowed. None if it is neither."""
    try:
        fields = _decode_element(element)
    except msgspec.ValidationError:
        return None
    if fields.source:
        return _Hit(fields.source, fields.id)
    return _Hit(element) if is_bare_allowed else None
