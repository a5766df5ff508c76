"""Removing confidential values from entries by path: drop, mask, or keyed hash. Pure: bytes in, bytes out.

Only the values at the paths change; the rest keeps the API's own bytes. If an entry has an unusual shape, more is removed rather
than less. Redacting an entry twice gives the same result as once.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import msgspec

from poller.core.damage import Shield
from poller.core.mapping.fields import Path, parse_path

MASK = "***"
MASKED = f'"{MASK}"'.encode()
HASH_PREFIX = "hmac:"
_HASH_CHARS = 32  # 128 bits: two users of one installation will never have the same
_HASH = rf"{HASH_PREFIX}[0-9a-f]{{{_HASH_CHARS}}}"
_HASHED = re.compile(f'"{_HASH}"'.encode())
_REDACTED = re.compile(f"{re.escape(MASK)}|{_HASH}")
# A few users on a few machines cause most entries, so the result for a `principal` is cached.
_REMEMBERED = 4096
_REMEMBERED_BYTES = 512
_NULL = b"null"

Change = Callable[[bytes], bytes | None]
"""Maps a JSON value to its replacement; None removes it."""

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


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
        self._key = key
        self._hashed, self._masked, self._dropped = ([*map(parse_path, paths)] for paths in (hashed, mask, drop))
        self._root = self._tree()
        for node in self._root.inner.values():
            node.remembered = lru_cache(_REMEMBERED)(partial(_rewrite, node))

    def _tree(self, text_of: Callable[[str], str] = str) -> _Node:
        """`text_of` maps a text of an entry to the text that is hashed."""
        # The stricter change comes later: if two concern the same place, it wins.
        changes: list[tuple[Path, Change]] = [
            *((path, partial(_hash, self._key, text_of)) for path in self._hashed),
            *((path, _mask) for path in self._masked),
            *((path, _drop) for path in self._dropped),
        ]
        return _tree(changes)

    def __call__(self, line: bytes) -> bytes:
        """The redacted line of an entry."""
        try:
            try:
                return _rewrite(self._root, line) or b"{}"
            except msgspec.DecodeError:  # a lone surrogate: msgspec refuses it, but it is valid JSON
                shield = Shield(line)
                return shield.restore(_rewrite(self._tree(shield.restore_text), shield.shielded) or b"{}")
        except (msgspec.DecodeError, RecursionError):
            # Nothing of the entry is kept, because it may hold confidential values.
            return _encode({"_unreadable": {"original_bytes": len(line)}})


def is_redacted(text: str) -> bool:
    """Whether the text is a mask or a hash that replaced the entry's own value."""
    return _REDACTED.fullmatch(text) is not None


# The changes


def _drop(value: bytes) -> None:
    return None


def _mask(value: bytes) -> bytes:
    return value if value == _NULL else MASKED


def _hash(key: bytes, text_of: Callable[[str], str], value: bytes) -> bytes:
    """The keyed hash of a text, or of the bytes of another value. Equal texts have equal hashes, even if escaped differently."""
    if value == _NULL or _HASHED.fullmatch(value):
        return value
    text = _decode_text(value) if value.startswith(b'"') else value.decode()
    digest = hmac.digest(key, text_of(text).encode("utf-8", "surrogatepass"), "sha256").hex()[:_HASH_CHARS]
    return f'"{HASH_PREFIX}{digest}"'.encode()


# The tree of the paths, for entries of any shape


class _Node:
    """The changes at one place: to the value as a `whole`, to its `items` if it is a list, or to the fields in it (`inner`).

    `remembered` does the same as `_rewrite`, and caches the results.
    """

    def __init__(self) -> None:
        self.inner: dict[str, _Node] = {}
        self.whole: Change | None = None
        self.items: Change | None = None
        self.remembered: Change | None = None

    def strictest(self) -> Change:
        """The strictest change here and below, for a value whose shape the paths do not expect."""
        found = list(self.changes())
        return next((change for change in (_drop, _mask) if change in found), found[0])

    def changes(self) -> Iterator[Change]:
        """All changes here and below."""
        yield from (change for change in (self.whole, self.items) if change is not None)
        yield from chain.from_iterable(node.changes() for node in self.inner.values())


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


def _rewrite(node: _Node, value: bytes) -> bytes | None:
    if node.whole is not None:
        return node.whole(value)
    match value[:1]:
        case b"{" if node.items is None:
            return _rewrite_object(node, value)
        case b"[":
            # The items of a list are changed even if the path has no `[]`.
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
            old = bytes(fields[name])
            remembered = inner.remembered if len(old) <= _REMEMBERED_BYTES else None
            changed = remembered(old) if remembered else _rewrite(inner, old)
            if changed is None:
                del fields[name]
            else:
                fields[name] = msgspec.Raw(changed)
    return _encode(fields)
