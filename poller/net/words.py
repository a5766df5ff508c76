"""The words of a server as one line that is safe to show: bounded, printable, without secrets and without our body."""

from __future__ import annotations

import codecs
import html
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_plus

from poller.config import MASK
from poller.core.damage import without_lone_surrogates
from poller.net.transport import Response

_MAX_WORDS = 200
_ECHO_CHARS = 32
_MAX_MESSAGES = 20
_MAX_BODY_BYTES = 64 * 1024
_MOST_NESTED = 4
_UNICODE_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_ENTRY = re.compile(r'"(?:_source|@uuid)"\s*:')


def words_of(answer: Response, secrets: Sequence[str], sent: bytes) -> str:
    """The server's words as one printable line of at most 200 characters, without our secrets and body.

    Of an error body of an IONOS API only its messages: entries hold such bodies, too, so all of it would be taken for an echo.
    """
    if messages := _messages(answer, is_marked=True):
        answer = answer._replace(body=messages, headers={})
    text = _masked(_text_of(answer.body[:_MAX_BODY_BYTES]), [*secrets, *answer.secrets])
    if "html" in answer.headers.get("Content-Type", ""):
        text = re.sub(r"<[^<>]*>", " ", text)
    return _without_echo(one_line(text), sent)


def said(text: object, secrets: Sequence[str] = ()) -> str:
    """The words of a server that a library reports, as such a line."""
    return words_of(Response(0, {}, str(text).encode("utf-8", "replace")), secrets, b"")


def one_line(text: str, max_chars: int = _MAX_WORDS) -> str:
    """A text as one printable line for terminals, logs and databases."""
    text = "".join(char if char.isprintable() else " " for char in text[: 20 * max_chars])
    return " ".join(text.split())[:max_chars]


def api_words_of(answer: Response, secrets: Sequence[str]) -> str:
    """The words of an answer of an IONOS API: the messages of its error body, otherwise the whole body.

    Source: docs/facts.md, "IONOS Activity Log API".
    """
    # An answer with entries has no words, with any status: no entry belongs in a log.
    if _ENTRY.search(_plain(_text_of(answer.body[:_MAX_BODY_BYTES]))):
        return ""
    said = error_words_of(answer, secrets)
    return words_of(answer, secrets, b"") if said is None else said


def error_words_of(answer: Response, secrets: Sequence[str]) -> str | None:
    """The messages of an error body of an IONOS API, with any status; None if the answer is no error body."""
    messages = _messages(answer)
    return None if messages is None else words_of(answer._replace(body=messages, headers={}), secrets, b"")


def _messages(answer: Response, *, is_marked: bool = False) -> bytes | None:
    """The messages of an error body of an IONOS API in one line; with `is_marked`, only if it has their `httpStatus`."""
    try:
        body = json.loads(answer.body[:_MAX_BODY_BYTES])
        texts = [_message(message) for message in body["messages"][:_MAX_MESSAGES]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if is_marked and "httpStatus" not in body:
        return None
    return "; ".join(text for text in texts if text).encode("utf-8", "replace")


def loose_json(body: bytes) -> Any:
    """The content of a JSON body whose texts may hold cut characters, halves of a pair or control characters.

    Raises: ValueError, RecursionError if it is not JSON.
    """
    text = body.decode(json.detect_encoding(body), "replace")
    return json.loads(without_lone_surrogates(text.encode()).decode(), strict=False)


def _text_of(body: bytes) -> str:
    """A body as text: in the Unicode encoding that its first bytes show, otherwise one character per byte."""
    encoding, is_whole = json.detect_encoding(body), len(body) < _MAX_BODY_BYTES
    try:
        return codecs.getincrementaldecoder(encoding)().decode(body, is_whole)
    except ValueError:
        return body.decode("latin-1" if encoding.startswith("utf-8") else encoding, "replace")


def _masked(text: str, secrets: Sequence[str]) -> str:
    """The text without the secrets. If it holds one in the notation of JSON, a URL or HTML, the text is decoded first."""
    longest_first = sorted(filter(None, secrets), key=len, reverse=True)
    for secret in longest_first:
        text = text.replace(secret, MASK).replace(json.dumps(secret)[1:-1], MASK)
    plain, plain_secrets = _plain(text), [found for secret in longest_first if (found := _plain(secret))]
    if not any(secret in plain for secret in plain_secrets):
        return text
    for secret in plain_secrets:
        plain = plain.replace(secret, MASK)
    return plain


def _plain(text: str) -> str:
    """The text decoded from the notation of JSON, a URL or HTML, also nested; without backslashes."""
    for _ in range(_MOST_NESTED):
        read = _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text).replace("\\", "")
        # The two halves of a pair, which JSON escapes separately, become one character.
        read = read.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        read = html.unescape(unquote_plus(read))
        if read == text:
            break
        text = read
    return text


def _message(message: Any) -> str:
    if isinstance(message, dict):
        return ": ".join(str(message[key]) for key in ("errorCode", "message") if message.get(key))
    return str(message)


def _without_echo(words: str, sent: bytes) -> str:
    """The words up to where they repeat our body, also if it was quoted several times."""
    haystack = sent.replace(b"\\", b"")
    for flat in (words.replace("\\", ""), _plain(words)):
        for start in range(0, len(flat) - _ECHO_CHARS + 1, _ECHO_CHARS):
            if flat[start : start + _ECHO_CHARS].encode("utf-8", "replace") in haystack:
                # The echo may have begun in the span before.
                return f"{flat[: max(0, start - _ECHO_CHARS)]}..."
    return words
