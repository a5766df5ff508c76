"""Input from outside takes time in proportion to its length: twice the input takes about twice the time, never four times."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from poller.core.answers import BadAnswerError, parse_page
from poller.core.listing import parse_contracts
from poller.core.mapping import escaped, truncated
from poller.core.mapping.filter import Filter
from poller.core.mapping.redact import Redactor
from poller.net.transport import Response
from poller.net.words import words_of

START_BYTES = (1 << 12, 1 << 14)  # for slow functions, and for fast ones
LONG_SECONDS = 0.0002
DOUBLINGS = 4
# Maximum ratio of the times for 16 times the input. Linear time gives 16, quadratic time gives 256.
MOST = 16 * 2.5 * 2

ATOMS = (
    b"lone-surrogate-", b"-", b"lone-surrogate--", b"<lone-surrogate-", b"\\ud800", b"\\", b"\\\\u", b"{", b"[", b"[[", b'"',
    b'{"_source":', b'{"a":', b"<", b"<p>", b">", b"\xff", b" ", b"0", b"9", b"\x1b", b"%", b"&", b",", b"NaN,", b"{},",
)  # fmt: skip
FRAMES = (
    b"%s",
    b"lone-surrogate-%s\\ud800",
    b'{"hits":{"total":1,"hits":[%s',
    b'{"hits":{"hits":[{"_source":{"a":"%s"}}]}}',
    b'{"items":[%s]}',
    b'"%s',
)


def page(data: bytes) -> None:
    with suppress(BadAnswerError):
        parse_page(data)


def contracts(data: bytes) -> None:
    with suppress(BadAnswerError):
        parse_contracts(data)


REDACT = Redactor(drop=["a.b"], mask=["event.resources[].id"], hashed=["x"], key=b"k")
FILTER = Filter([{"type": "*DCD*"}], [])
TAKERS: dict[str, Callable[[bytes], object]] = {
    "an answer with entries": page,
    "an answer with contracts": contracts,
    "a sink's words": lambda data: words_of(
        Response(400, {"Content-Type": "text/html"}, data), ["secret"], data[:5000]
    ),
    "redaction": REDACT,
    "a filter": lambda data: FILTER.reason("1", b'{"event":{"type":"%s"}}' % data.replace(b"\xff", b"")),
    "shortening": lambda data: truncated(b'{"a":%s}' % data, 1000),
    "a terminal": lambda data: escaped(data.decode("utf-8", "replace")),
}


def seconds_of(take: Callable[[bytes], object], data: bytes) -> float:
    started = time.process_time()
    with suppress(RecursionError):  # the reader accepts no line that is nested so deeply
        take(data)
    return time.process_time() - started


@pytest.mark.parametrize("name", TAKERS)
def test_time_grows_in_proportion_to_what_comes_from_outside(name: str) -> None:
    take = TAKERS[name]
    for frame in FRAMES:
        for atom in ATOMS:

            def of_size(size: int, frame: bytes = frame, atom: bytes = atom) -> bytes:
                return frame.replace(b"%s", atom * (size // len(atom)))

            size, larger = START_BYTES
            if seconds_of(take, of_size(size)) < LONG_SECONDS:
                size = larger
            small = max(seconds_of(take, of_size(size)), 0.0005)
            large = seconds_of(take, of_size(size << DOUBLINGS))
            if large > small * MOST:  # measure again: a busy machine rarely disturbs both
                large = seconds_of(take, of_size(size << DOUBLINGS))
            assert large <= small * MOST, (name, frame, atom, small, large)
