"""An API with arbitrary answers, and the real command: each contract gets one kind of hostile answer.

A wrong answer never counts as read: its contract fails with one line, the others are collected, the watermark stays where it was,
and when the API answers correctly, every entry arrives.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from poller.core.windows import format_time
from tests.hostile import Answer, Asked, RawServer, endless, headed, http, page_of
from tests.integration.fetching import Run, finished
from tests.support import COMMAND, clean_environment

MIB = 1024 * 1024
TOKEN = "canary-token"
ENTRIES = 3
PAUSE_SECONDS = 0.05
# Short time limits: a hostile answer is abandoned within a second or two.
SETTINGS = {
    "IONOS_POLLER_API__MAX_RETRIES": "1",
    "IONOS_POLLER_API__READ_TIMEOUT": "400ms",
    "IONOS_POLLER_API__CONCURRENCY": "16",
    "IONOS_POLLER_API__MAX_PAGE_BYTES": "1MiB",
    "IONOS_POLLER_API__REQUESTS_PER_SECOND": "1000",
}


def entries_of(contract: str, now: float) -> list[dict[str, Any]]:
    """The entries of a contract: one a minute."""
    return [
        {"@uuid": f"{contract}-{number}", "meta": {"time": format_time(int(now) - 1200 + 60 * number)}, "n": number}
        for number in range(ENTRIES)
    ]


def hits(*sources: bytes, total: bytes = b"") -> bytes:
    """A page of the API, written by hand."""
    count = total or b"%d" % len(sources)
    listed = b",".join(b'{"_source":%s}' % source for source in sources)
    return b'{"hits":{"total":%s,"hits":[%s]}}' % (count, listed)


BOMB = gzip.compress(bytes(300 * MIB), 1)
DEEP = b"[" * 10_000 + b"]" * 10_000

# Answers without a readable entry: their contract must fail.
HOSTILE: dict[str, Answer | Callable[[Asked], Answer]] = {
    "a bomb": http(BOMB, "Content-Encoding: gzip"),
    "a bomb in a bomb": http(gzip.compress(BOMB, 1), "Content-Encoding: gzip, gzip"),
    "a bomb behind a redirect": http(BOMB, "Content-Encoding: gzip", "Location: /", status="302 Found"),
    "a body without end": endless(headed(b"[", "Connection: close"), b" " * 65_536),
    "chunks without end": endless(headed(b"", "Transfer-Encoding: chunked"), b"4000\r\n" + b" " * 0x4000 + b"\r\n"),
    "headers in drips": endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", PAUSE_SECONDS),
    "a body in drips": endless(headed(b"[", "Content-Length: 9999"), b" ", PAUSE_SECONDS),
    "interim answers without end": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
    "trailers without end": endless(headed(b"0\r\n", "Transfer-Encoding: chunked"), b"X: y\r\n", 0.001),
    "nothing at all": b"",
    "HTTP/0.9": hits(b"{}"),
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + http(hits()),
    "no protocol": b"\0\xff" * 1000,
    "a header without end": endless(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65_536),
    "thousands of headers": http(hits(), *["X: y"] * 5000),
    "a longer body than it says": http(hits(b'{"@uuid":"a"}') + b"...", length=10),
    "a shorter body than it says": http(hits(), length=9999),
    "two lengths": headed(hits(), "Content-Length: 3", "Content-Length: 4"),
    "chunks that are none": headed(hits(), "Transfer-Encoding: chunked"),
    "gzip that is none": http(hits(), "Content-Encoding: gzip"),
    "gzip cut in the middle": http(gzip.compress(hits(b'{"@uuid":"a"}'))[:-20], "Content-Encoding: gzip"),
    "a redirect": http(b"", "Location: http://evil.example/", status="302 Found"),
    "a page of HTML": http(b"<html>Please log in</html>", "Content-Type: application/json"),
    "an empty body": http(b""),
    "NUL": http(bytes(1000)),
    "a key twice": http(b'{"hits":5,' + hits(b'{"@uuid":"a"}')[1:]),
    "no list": http(b'{"hits":{"hits":null}}'),
    "deep nesting": http(DEEP),
    "deep nesting in an entry": http(hits(b'{"a":%s}' % DEEP)),
    "JSON cut in the middle": http(hits(b'{"@uuid":"a"}')[:-1]),
    "NaN": http(hits(b'{"a":NaN}')),
    "a negative total": http(hits(b"{}", total=b"-1")),
    "a total of thousands of digits": http(hits(total=b"9" * 5000)),
    "a total that nothing follows": http(hits(total=b"5")),
    "UTF-16": http(hits(b'{"@uuid":"a"}').decode().encode("utf-16")),
}

# Odd answers that still hold their entries.
ODD: dict[str, Callable[[bytes], Answer]] = {
    "an infinite total": lambda body: http(re.sub(rb'("total":\s*)\d+', rb"\1Infinity", body)),
    "the wrong type of content": lambda body: http(body, "Content-Type: text/html; charset=\xff"),
    "headers beyond ASCII": lambda body: http(body, "X-\xe9: \xff\x01", "X\0: y", ": nameless", " folded"),
    "cookies": lambda body: http(body, "Set-Cookie: a=b", "Set-Cookie: ;;=\xff"),
    "early hints": lambda body: [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", http(body)],
    "a date in another age": lambda body: http(body, "Date: Fri, 31 Dec 9999 23:59:59 GMT"),
    "no date": lambda body: http(body, "Date: yesterday"),
    "a wish for thirty years": lambda body: http(body, "Retry-After: 1e9"),
    "one byte a chunk": lambda body: headed(
        b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body) + b"0\r\nX: y\r\n\r\n", "Transfer-Encoding: chunked"
    ),
    "many members of gzip": lambda body: http(
        b"".join(gzip.compress(body[at : at + 7]) for at in range(0, len(body), 7)), "Content-Encoding: gzip"
    ),
    "a byte order mark": lambda body: http(b"\xef\xbb\xbf" + body),
}

CONTRACT_OF = {name: str(31960001 + number) for number, name in enumerate([*HOSTILE, *ODD])}
NAME_OF = {contract: name for name, contract in CONTRACT_OF.items()}


class Api:
    """The contracts of the tables above, each with its answers. With `is_kind` all answers are correct."""

    def __init__(self) -> None:
        self.now = time.time()
        self.is_kind = False

    def __call__(self, asked: Asked) -> Answer:
        url = urlsplit(asked.path)
        if url.path.endswith("/contracts"):
            return http(json.dumps([{"id": contract} for contract in NAME_OF]).encode(), "Connection: close")
        name = NAME_OF[url.path.rpartition("/")[2]]
        if not self.is_kind and name in HOSTILE:
            answer = HOSTILE[name]
            return answer(asked) if callable(answer) else answer
        body = page_of(self.asked_for(CONTRACT_OF[name], parse_qs(url.query)))
        return http(body, "Connection: close") if self.is_kind else ODD[name](body)

    def asked_for(self, contract: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        start, end = query["dateStart"][0], query["dateEnd"][0]
        return [entry for entry in entries_of(contract, self.now) if start <= entry["meta"]["time"] < end]


class Outcome(NamedTuple):
    """The run against the hostile API, and the next one with correct answers."""

    first: Run
    seconds: float
    memory_bytes: int
    second: Run
    api: Api
    asked: list[Asked]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    directory = tmp_path_factory.mktemp("hostile")
    api = Api()
    with RawServer(api) as server:
        started = time.monotonic()
        first, memory_bytes = fetch(directory, server, "--since", "1h")
        seconds = time.monotonic() - started
        api.is_kind = True
        subprocess.run([*COMMAND, "gaps", "retry"], cwd=directory, env=clean_environment({}), check=True)
        second, _ = fetch(directory, server)
        return Outcome(first, seconds, memory_bytes, second, api, server.asked)


# A small process in between: the peak memory of a child includes that of its parent at the fork.
METER = """
import pathlib, resource, subprocess, sys
code = subprocess.run(sys.argv[2:], timeout=120).returncode
pathlib.Path(sys.argv[1]).write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


def fetch(directory: Path, server: RawServer, *args: str) -> tuple[Run, int]:
    """Run a `fetch` to its end.  Returns: the result, and its peak memory in bytes."""
    output, errors, peak = directory / "output", directory / "errors", directory / "peak"
    with output.open("wb") as stdout, errors.open("wb") as stderr:
        code = subprocess.run(
            [sys.executable, "-c", METER, str(peak), *COMMAND, "fetch", *args],
            cwd=directory,
            env=clean_environment({"IONOS_API_URL": server.url, "IONOS_API_TOKEN": TOKEN, **SETTINGS}),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            check=False,
        ).returncode
    return finished(code, output.read_bytes(), errors.read_bytes()), int(peak.read_text()) * 1024


def lines_of(run: Run, contract: str) -> list[bytes]:
    return [line for line in run.lines if f'"{contract}-'.encode() in line]


def oracle(api: Api, contract: str) -> list[bytes]:
    return [json.dumps(entry, separators=(",", ":")).encode() for entry in entries_of(contract, api.now)]


# Valid answers with unusable content: they become a gap at once, and the rest goes on.
GAPS = {"deep nesting", "deep nesting in an entry", "NaN", "a total that nothing follows"}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_is_told_by_its_contract_and_comes_when_it_can(outcome: Outcome, name: str) -> None:
    contract = CONTRACT_OF[name]
    assert lines_of(outcome.first, contract) == []
    (failure,) = [line for line in outcome.first.log if line.get("contract") == contract and line["level"] != "INFO"]
    assert failure["message"] == ("gap.opened" if name in GAPS else "contract.failed")
    assert failure["why"].isprintable()
    assert len(failure["why"]) < 300
    assert failure["hint"]
    assert lines_of(outcome.second, contract) == oracle(outcome.api, contract)


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_but_whole_is_taken_at_once_and_once(outcome: Outcome, name: str) -> None:
    contract = CONTRACT_OF[name]
    assert lines_of(outcome.first, contract) == oracle(outcome.api, contract)
    assert lines_of(outcome.second, contract) == []


def test_it_ends_in_time_within_bounds_and_says_so_in_a_few_lines(outcome: Outcome) -> None:
    assert outcome.seconds < 60
    # Sixteen workers, each with the largest allowed entry: sixteen times the limit of a page (1 MiB).
    assert outcome.memory_bytes < (16 * 16 + 100) * MIB
    assert outcome.first.code == 1
    assert len(outcome.first.told) == 6, "five failures, and how many more"
    assert (outcome.second.code, outcome.second.told) == (0, [])


def test_nobody_but_the_api_saw_the_token_and_it_saw_no_cookie(outcome: Outcome) -> None:
    assert {asked.headers["authorization"] for asked in outcome.asked} == {f"Bearer {TOKEN}"}
    assert {asked.headers["host"] for asked in outcome.asked} == {outcome.asked[0].headers["host"]}
    assert not [asked for asked in outcome.asked if "cookie" in asked.headers]
    assert TOKEN not in outcome.first.stderr
