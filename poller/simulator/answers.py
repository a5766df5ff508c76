"""The values between the HTTP edge and the simulated services: request, answer, common error bodies."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

JSON = "application/json"


class Request(NamedTuple):
    """A request as the services see it: names in `headers` are lower-case, `query` has one value for each name."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


class Answer(NamedTuple):
    """An answer. `headers`: in addition to those of every answer. `lines`: sent instead of `body`, each as a line."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    lines: Iterator[bytes] | None = None


def json_answer(status: int, value: Any) -> Answer:
    return Answer(status, msgspec.json.encode(value))


def api_error(status: int, code: str, message: str) -> Answer:
    """An error of the Activity Log API. Source: docs/facts.md, "IONOS Activity Log API"."""
    return json_answer(status, {"httpStatus": status, "messages": [{"errorCode": code, "message": message}]})


def inflated(request: Request) -> bytes | None:
    """The body, decompressed; None if a header says that it is gzip and it is not."""
    if request.headers.get("content-encoding", "").lower() != "gzip":
        return request.body
    try:
        return zlib.decompress(request.body, wbits=31)
    except zlib.error:
        return None
