"""Answers that are almost JSON: parts that a strict decoder refuses are taken out, and the rest is kept byte for byte."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import NamedTuple

import msgspec

_encode = msgspec.json.Encoder().encode

# Maximum number of pieces of a damaged answer, to bound memory.
_MAX_PIECES = 100_000
_MARGIN_DEPTH = 16
_MAX_DEPTH = 500_000  # an entry that is too deep to read is set apart, but beyond this depth the answer stays as it is


# A pair of surrogate escapes, one alone (1), or any other escape.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u([dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)


def without_lone_surrogates(line: bytes) -> bytes:
    """The line with U+FFFD instead of each surrogate escape (`\\ud800`) that is not half of a pair."""
    return _ESCAPE.sub(lambda match: match[0] if match[1] is None else rb"\ufffd", line)


def encoded(value: object) -> bytes:
    """The value as compact JSON; a lone surrogate in its texts is written as an escape."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value), separators=(",", ":")).encode()


class Shield:
    """Lets a decoder read lone surrogate escapes (`\\ud800`), which are valid JSON but not Unicode, and which it would refuse.

    Each is replaced by a mark and restored in the lines. The mark holds the digest of the body, so no body can contain it.
    """

    def __init__(self, body: bytes) -> None:
        self._mark = b"lone-surrogate-" + blake2b(body, digest_size=16).hexdigest().encode()
        pieces, end = [], 0
        for match in _ESCAPE.finditer(body):
            if match[1] is None:
                continue
            pieces += [body[end : match.start()], b"<" + self._mark + match[1] + b">"]
            end = match.end()
            if len(pieces) > _MAX_PIECES:
                raise msgspec.DecodeError("more damage than an answer of the API has")
        self.is_needed = end > 0
        self.shielded = b"".join([*pieces, body[end:]]) if pieces else body
        self._marked = re.compile(b"<" + re.escape(self._mark) + rb"([0-9a-fA-F]{4})>")
        self._marked_text = re.compile(self._marked.pattern.decode())

    def restore(self, line: bytes) -> bytes:
        return self._marked.sub(rb"\\u\1", line)

    def restore_text(self, text: str) -> str:
        """A decoded text with its surrogates restored, because a text that is stored must not depend on the body."""
        return self._marked_text.sub(lambda match: chr(int(match[1], 16)), text)


class Broken(NamedTuple):
    """An element of an answer that is not valid JSON: its bytes, and what is wrong."""

    content: bytes
    reason: str


# The tokens that show where an element ends: whole strings, brackets and commas.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]', re.DOTALL)
_SCALAR = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+"|[^\s"\[\]{},:]++)(?=\s*+(:?))', re.DOTALL)  # and whether it is a key
_LIST_START = re.compile(rb'\A\s*\[|"(?:hits|items)"\s*:\s*\[')


def without_broken_elements(body: bytes) -> tuple[bytes, list[Broken]]:
    """The answer with null instead of each element of its list that is not valid JSON, and those elements.

    An invalid value outside the list becomes null, too. The answer is returned as it is if its elements cannot be separated,
    because a bracket or a quote is missing or the answer was cut.
    """
    start = _LIST_START.search(body)
    if start is None:
        return _without_list(body), []
    pieces, broken = [_without_broken_scalars(body[: start.end()])], []
    begin, depth = start.end(), 0
    for token in _TOKEN.finditer(body, begin):
        mark = token[0]
        if mark in (b"{", b"["):
            depth += 1
            if depth > _MAX_DEPTH:
                return body, []
        elif depth and mark in (b"}", b"]"):
            depth -= 1
        elif not depth and mark in (b",", b"]", b"}"):
            element = body[begin : token.start()].strip()
            why = _why_broken(element) if element else ""
            if why:
                broken.append(Broken(element, why))
            pieces.append((b"null" if why else element) + mark)
            begin = token.end()
            if len(pieces) > _MAX_PIECES:
                return body, []
            if mark != b",":
                return b"".join([*pieces, _without_broken_scalars(body[begin:])]), broken
    return body, []


def _without_list(body: bytes) -> bytes:
    """An answer without a list, with invalid values replaced; unchanged if it is not JSON at all, like a page of a proxy."""
    return _without_broken_scalars(body) if body.lstrip().startswith(b"{") else body


def _without_broken_scalars(rest: bytes) -> bytes:
    """The part outside the list, with null instead of each invalid value ("" instead of a key); unchanged if it has a list."""
    # The search ends before the last byte, because `rest` may end with the start of the list itself. Entries are never changed.
    if _LIST_START.search(rest, 0, len(rest) - 1):
        return rest
    pieces, end = [], 0
    for number, token in enumerate(_SCALAR.finditer(rest)):
        if number == _MAX_PIECES:
            return rest
        if _why_broken(token[0]):
            pieces += [rest[end : token.start()], b'""' if token[1] else b"null"]
            end = token.end()
    return b"".join([*pieces, rest[end:]])


def _why_broken(element: bytes) -> str:
    try:
        # In more brackets than an answer has around it: an element that passes here must also be readable inside the answer.
        inside = b"[" * _MARGIN_DEPTH + element + b"]" * _MARGIN_DEPTH
        msgspec.json.decode(inside, type=msgspec.Raw)
        msgspec.json.format(inside, indent=-1)
    except (msgspec.DecodeError, RecursionError) as error:
        return f"an entry that is not valid JSON: {error}"
    return ""
