"""Taking out of entries what must not be known: drop, mask, keyed hash, by path. Pure: bytes in, bytes out.

Only what a path names changes; the rest keeps the API's own bytes. It fails closed: where the shape of an entry is not the usual
one, more is taken out rather than less. Doing it twice is doing it once.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec

from poller.events import Shield
from poller.mapping.fields import Path, getter_of, parse_path, shape_of

MASKED = b'"***"'
HASH_PREFIX = "hmac:"
_HASH_CHARS = 32  # 128 bits: no two users of one installation will ever share it
_HASHED = re.compile(rf'"{HASH_PREFIX}[0-9a-f]{{{_HASH_CHARS}}}"'.encode())
_REMEMBERED_HASHES = 4096  # few users cause most entries, and a hash costs more than all the rest
_NULL = b"null"

Change = Callable[[bytes], bytes | None]
"""A JSON value to what takes its place; None: it goes."""

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_@-]+")
# How a plain name might be written otherwise.
_ESCAPED_ASCII = re.compile(rb"\\u00[0-7]")


class Redactor:
    """The compiled paths. `key` is the key of the hashes. Safe to use from several threads."""

    def __init__(
        self,
        *,
        drop: Iterable[str] = (),
        mask: Iterable[str] = (),
        hashed: Iterable[str] = (),
        key: bytes = b"",
    ) -> None:
        hash_ = lru_cache(_REMEMBERED_HASHES)(lambda raw: _hash(key, raw))
        # The harsher comes later: it is what counts where two meet.
        changes: list[tuple[Path, Change]] = [
            *((parse_path(path), hash_) for path in hashed),
            *((parse_path(path), _mask) for path in mask),
            *((parse_path(path), _drop) for path in drop),
        ]
        self._all = _tree(changes)
        plain = [(path, change) for path, change in changes if _is_plain(path) and change is not _drop]
        shape = shape_of([path for path, _ in plain], msgspec.Raw, msgspec.Raw())
        if shape is None or len({path for path, _ in changes}) < len(changes):
            plain, shape = [], None
        self._decode = msgspec.json.Decoder(shape).decode if shape is not None and plain else None
        self._plain = [(f'"{path[-1].name}":'.encode(), getter_of(path), change) for path, change in plain]
        others = [item for item in changes if item not in plain]
        self._others = _tree(others) if others else None

    def __call__(self, line: bytes) -> bytes:
        """The line of an entry without what is to be taken out."""
        redacted = self._replace_plain(line)
        if redacted is None:
            return _rewritten(self._all, line)
        return redacted if self._others is None else _rewritten(self._others, redacted)

    def _replace_plain(self, line: bytes) -> bytes | None:
        """The line with the plain paths done, by cutting it where their values stand; None where that is not safe.

        It is where the name of the field, as it is usually written, is in the entry once, and there with this value. That is how
        entries are, and it costs half of taking objects apart and putting them together again.
        """
        if self._decode is None or (b"\\u00" in line and _ESCAPED_ASCII.search(line)):
            return None
        try:
            entry = self._decode(line)
        except (msgspec.DecodeError, RecursionError):
            return None
        for token, get, change in self._plain:
            value = bytes(get(entry))
            head, found, tail = line.partition(token)
            if bool(found) != bool(value) or token in tail or not tail.startswith(value):
                return None
            if found:
                line = b"".join((head, token, change(value) or b"", tail[len(value) :]))
        return line


def _is_plain(path: Path) -> bool:
    return all(not step.is_list and _PLAIN_NAME.fullmatch(step.name) for step in path)


# The changes


def _drop(value: bytes) -> None:
    return None


def _mask(value: bytes) -> bytes:
    return value if value == _NULL else MASKED


def _hash(key: bytes, value: bytes) -> bytes:
    """The keyed hash of a text, or of what else is written there; equal texts have equal hashes, however they are escaped."""
    if value == _NULL or _HASHED.fullmatch(value):
        return value
    text = _decode_text(value).encode("utf-8", "surrogatepass") if value.startswith(b'"') else value
    digest = hmac.digest(key, text, "sha256").hex()[:_HASH_CHARS]
    return f'"{HASH_PREFIX}{digest}"'.encode()


# Any paths, entries of any shape


class _Node:
    """What is done to the value at one place: to it as `whole`, to its `items` if it is a list, or to what is in it."""

    def __init__(self) -> None:
        self.inner: dict[str, _Node] = {}
        self.whole: Change | None = None
        self.items: Change | None = None

    def strictest(self) -> Change:
        """The harshest of all that is done here and below: for a value that is not of the shape the paths expect."""
        found = list(self._changes())
        return next((change for change in (_drop, _mask) if change in found), found[0])

    def _changes(self) -> Iterator[Change]:
        yield from (change for change in (self.whole, self.items) if change is not None)
        yield from chain.from_iterable(node._changes() for node in self.inner.values())


def _tree(changes: Iterable[tuple[Path, Change]]) -> _Node:
    root = _Node()
    for path, change in changes:
        node = root
        for step in path:
            node = node.inner.setdefault(step.name, _Node())
        if path[-1].is_list:
            node.items = change
        else:
            node.whole = change
    return root


def _rewritten(root: _Node, line: bytes) -> bytes:
    try:
        try:
            return _rewrite(root, line) or b"{}"
        except msgspec.DecodeError:  # a lone surrogate somewhere: it is JSON all the same
            shield = Shield(line)
            return shield.restore(_rewrite(root, shield.shielded) or b"{}")
    except (msgspec.DecodeError, RecursionError):
        # Better nothing than what nobody was to see.
        return _encode({"_unreadable": {"original_bytes": len(line)}})


def _rewrite(node: _Node, value: bytes) -> bytes | None:
    if node.whole is not None:
        return node.whole(value)
    match value[:1]:
        case b"{" if node.items is None:
            return _rewrite_object(node, value)
        case b"[":
            # With or without `[]` on the path: what is in a list is meant as well.
            change = node.items or (lambda item: _rewrite(node, item))
            items = [change(bytes(item)) for item in _decode_list(value)]
            return b"[" + b",".join([item for item in items if item is not None]) + b"]"
        case _ if value == _NULL:
            return value
        case _:
            return node.strictest()(value)


def _rewrite_object(node: _Node, value: bytes) -> bytes:
    fields: dict[str, Any] = _decode_object(value)
    for name, inner in node.inner.items():
        if name in fields:
            changed = _rewrite(inner, bytes(fields[name]))
            if changed is None:
                del fields[name]
            else:
                fields[name] = msgspec.Raw(changed)
    return _encode(fields)
