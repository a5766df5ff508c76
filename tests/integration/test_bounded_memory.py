"""The peak memory of the real commands, for a table of hostile answers of the API.

`docs/security.md` shows the results.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.hostile import Asked, RawServer, http
from tests.support import COMMAND, clean_environment

MIB = 1024 * 1024
MAX_BYTES = 200 * MIB
PAGE = 8 * MIB - 1024  # almost the default limit of a page
SINGLE = 2 * PAGE
CONTRACTS = b'[{"id":"31960001"}]'
EMPTY = b'{"hits":{"total":0,"hits":[]}}'
# Answers to one contract, then it is refused: the peak is reached after a few, and each answer costs processor time.
ENOUGH = 10
REFUSED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def many(element: bytes, size: int) -> bytes:
    return b",".join([element] * (size // (len(element) + 1)))


def page(elements: bytes) -> bytes:
    return b'{"hits":{"total":1,"hits":[%s]}}' % elements


def entry(source: bytes) -> bytes:
    return page(b'{"_source":%s}' % source)


# Name -> the body of a page, or of the list of contracts.
PAGES: dict[str, Callable[[], bytes]] = {
    "2.8 million empty objects": lambda: b'{"items":[%s]}' % many(b"{}", PAGE),
    "4 million numbers": lambda: b"[%s]" % many(b"0", PAGE),
    "600,000 empty hits": lambda: page(many(b'{"_source":{}}', PAGE)),
    "an entry of 2.8 million objects": lambda: entry(b'{"a":[%s]}' % many(b"{}", PAGE)),
    "an entry of 600,000 keys": lambda: entry(
        b"{%s}" % b",".join(b'"%07d":0' % number for number in range(PAGE // 12))
    ),
    "an entry of 1.6 million strings": lambda: entry(b'{"a":[%s]}' % many(b'"ab"', PAGE)),
    "lists 900 deep": lambda: entry(b'{"a":[%s]}' % many(b"[" * 900 + b"]" * 900, PAGE)),
    "lists 4 million deep": lambda: b"[" * (PAGE // 2) + b"]" * (PAGE // 2),
    "a string of 8 MiB": lambda: entry(b'{"a":"%s"}' % (b"x" * (PAGE - 100))),
    "a string of 2 million emoji": lambda: entry(b'{"a":"%s"}' % ("\U0001f600".encode() * (PAGE // 4 - 30))),
    "a string of 16 MiB": lambda: entry(b'{"a":"%s"}' % (b"x" * (SINGLE - 100))),
    "16 MiB of empty objects": lambda: b'{"items":[%s]}' % many(b"{}", SINGLE),
    "an _id of 2.8 million objects": lambda: page(b'{"_source":{},"_id":[%s]}' % many(b"{}", PAGE)),
    "an @uuid of 8 MiB": lambda: entry(b'{"@uuid":"%s"}' % (b"x" * (PAGE - 100))),
    "8 MiB that are not UTF-8": lambda: entry(b'{"a":"%s"}' % (b"\xff" * (PAGE - 100))),
    "5 MiB that are not UTF-8": lambda: entry(b'{"a":"%s"}' % (b"\xff" * (SINGLE // 3 - 100))),
    "1.4 million lone surrogates": lambda: entry(b'{"a":"%s"}' % (b"\\ud800" * (PAGE // 6 - 30))),
    "600,000 entries that are not valid": lambda: page(many(b'{"_source":NaN}', PAGE)),
    "a page that was cut": lambda: b'{"items":[%s' % many(b"{}", PAGE),
    "a gzip bomb of 300 MiB": lambda: bytes(300 * MIB),
}
LISTS: dict[str, Callable[[], bytes]] = {
    "520,000 contracts": lambda: b"[%s]" % b",".join(b'{"id":%d}' % number for number in range(10**5, 10**5 + 520_000)),
    "2.8 million empty contracts": lambda: b"[%s]" % many(b"{}", PAGE),
    "the same contract 800,000 times": lambda: b'{"items":[%s]}' % many(b'{"id":1}', PAGE),
    "2.8 million objects beside the contracts": lambda: b'{"items":[],"x":[%s]}' % many(b"{}", PAGE - 100),
}
HEAVY_SECOND = "a second of 8 GB"
# The heaviest answers are sent for eight contracts at the same time.
OF_EIGHT = [
    HEAVY_SECOND,
    "a string of 16 MiB",
    "an entry of 600,000 keys",
    "8 MiB that are not UTF-8",
    "600,000 entries that are not valid",
]
EIGHT_CONTRACTS = b"[%s]" % b",".join(b'{"id":%d}' % number for number in range(31960001, 31960009))
COMMANDS = {
    "fetch": ["fetch", "--since", "2s"],
    "check": ["check"],
    "audit": ["audit", "--from", "2h", "--to", "1h"],
}

# Runs a command and writes its peak memory in bytes, as the kernel counts it, to a file. The command is killed after 4 s of
# processor time: with so many contracts it would run for long.
METER = """
import resource, subprocess, sys
resource.setrlimit(resource.RLIMIT_CPU, (4, 4))
code = subprocess.call(sys.argv[2:], stdin=subprocess.DEVNULL)
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(code)
"""


@functools.cache
def packed(name: str) -> bytes:
    return gzip.compress((PAGES.get(name) or LISTS[name])(), 1)


def second_of_gigabytes(asked: Asked) -> bytes:
    """A page of any span, which holds 20,000 entries of 400 kB. The page is as large as the limit allows."""
    query = {key: int(value) for key, (value,) in parse_qs(urlsplit(asked.path).query).items() if value.isdigit()}
    numbers = range(query["offset"], query["offset"] + min(query["limit"], 20))
    hits = (b'{"_source":{"@uuid":"%d","a":"%s"}}' % (number, b"x" * 400_000) for number in numbers)
    return b'{"hits":{"total":20000,"hits":[%s]}}' % b",".join(hits)


def measured(directory: Path, command: Sequence[str], name: str) -> tuple[int, float, str]:
    """Runs a command.  Returns: its peak memory in bytes, its time, and its output."""

    is_kind = command[0] == "audit"  # it needs collected entries
    contracts = EIGHT_CONTRACTS if command[0] == "fetch" and name in OF_EIGHT else CONTRACTS

    served = itertools.count(1)

    def answer(asked: Asked) -> bytes:
        is_list = asked.path.partition("?")[0].endswith("/contracts")
        if is_list == (name in LISTS) and not is_kind:
            if contracts is CONTRACTS and next(served) > ENOUGH:
                return REFUSED
            packed_answer = gzip.compress(second_of_gigabytes(asked), 1) if name == HEAVY_SECOND else packed(name)
            return http(packed_answer, "Content-Encoding: gzip", "Connection: close")
        return http(contracts if is_list else EMPTY, "Connection: close")

    if name != HEAVY_SECOND:
        packed(name)  # once, before requests come in parallel
    peak = directory / "peak"
    with RawServer(answer) as server:
        environment = {
            "IONOS_API_URL": server.url,
            "IONOS_API_TOKEN": "canary-token",
            "IONOS_POLLER_API__MAX_RETRIES": "0",
            "IONOS_POLLER_API__REQUESTS_PER_SECOND": "1000",
        }
        if is_kind:
            subprocess.run(
                [*COMMAND, "fetch", "--since", "3h"], cwd=directory, env=clean_environment(environment), check=True
            )
            is_kind = False
        started = time.monotonic()
        run = subprocess.run(
            [sys.executable, "-c", METER, str(peak), *COMMAND, *command],
            cwd=directory,
            env=clean_environment(environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert peak.exists(), (run.returncode, run.stderr)
        return int(peak.read_text()), time.monotonic() - started, run.stderr


CASES = [
    *(("fetch", name) for name in [*PAGES, *LISTS]),
    ("fetch", HEAVY_SECOND),
    *((command, name) for command in ("check", "audit") for name in list(PAGES)[:4]),
    ("check", next(iter(LISTS))),
]


@pytest.mark.parametrize(("command", "name"), CASES)
def test_no_answer_takes_more_memory_than_the_bound(tmp_path: Path, command: str, name: str) -> None:
    peak_bytes, seconds, errors = measured(tmp_path, COMMANDS[command], name)
    assert "Traceback" not in errors
    assert peak_bytes < MAX_BYTES
    assert seconds < 60
    name += " from eight contracts" if command == "fetch" and name in OF_EIGHT else ""
    print(f"| `{command}` | {name} | {peak_bytes // MIB} MiB | {seconds:.1f} s |")
