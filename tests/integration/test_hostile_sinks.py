"""Sinks with arbitrary answers, and the daemon: every entry reaches each of them in the end."""

from __future__ import annotations

import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.daemon import Daemon, MakeDaemon
from tests.hostile import Answer, Asked, RawServer, endless, headed, http
from tests.support import wait_until

ENTRIES = 30
BOMB = gzip.compress(bytes(100 * 1024 * 1024), 1)
KEY_ECHO = b"the key demo-key was not liked\x1b[31m\r\n"
FAILURES = 2


# Sink -> its answer to the first requests. None of these answers means that events were accepted.
HOSTILE: dict[str, Answer | Callable[[Asked], Answer]] = {
    "nothing": b"",
    "no-http": b"\0\xff" * 100,
    "drips": endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.02),
    "continue": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
    "sign-on": http(b"<!doctype html><title>Sign in</title>", "Content-Type: text/html"),
    "endless-failure": endless(headed(b"", status="502 Bad Gateway"), b" " * 65_536),
    "bomb-in-failure": http(BOMB, "Content-Encoding: gzip", status="500 Oh"),
    "broken-gzip": http(b"{}", "Content-Encoding: gzip", status="503 Oh"),
    "cut-in-failure": http(b"{}", length=99, status="500 Oh"),
    "redirect": http(b"", "Location: http://[::1", status="307 Elsewhere"),
    "not-there": http(KEY_ECHO, status="404 Not Found"),
    "echo": http(KEY_ECHO * 100, status="500 Oh"),
    "wish": http(b"", "Retry-After: 1e9", status="429 Slow"),
    "past-wish": http(b"", "Retry-After: Fri, 01 Jan 2010 00:00:00 GMT", status="503 Slow"),
    "odd-status": http(b"", status="299 Perhaps"),
    "teapot": http(b"", status="418 Teapot"),
    "refused-for-good": http(b"\xff\xfe", status="260 Blocked"),
    "cookies": http(b"", "Set-Cookie: a=b", status="500 Oh"),
    "headers": http(b"", *["X: y"] * 3000, status="500 Oh"),
}


class Sinks:
    """All sinks of the table, by the first part of their path. After FAILURES requests, a sink accepts everything."""

    def __init__(self) -> None:
        self.sends: Counter[str] = Counter()
        self.lines: dict[str, set[bytes]] = {name: set() for name in HOSTILE}
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Answer:
        name = asked.path.split("/")[1]
        with self._lock:
            self.sends[name] += 1
            if self.sends[name] <= FAILURES:
                answer = HOSTILE[name]
                return answer(asked) if callable(answer) else answer
            entries = json.loads(gzip.decompress(asked.body))
            self.lines[name].update(json.dumps(entry, separators=(",", ":")).encode() for entry in entries)
        return http(b"", "Connection: close", status="201 Created")


@pytest.fixture
def sinks() -> Iterator[tuple[RawServer, Sinks]]:
    sinks = Sinks()
    with RawServer(sinks) as server:
        yield server, sinks


def test_every_entry_reaches_every_sink_whatever_it_answered_at_first(
    daemon_of: MakeDaemon, sinks: tuple[RawServer, Sinks]
) -> None:
    server, taken = sinks
    daemon: Daemon = daemon_of(contracts=1, events=ENTRIES, span_seconds=3000)
    tables = {f"logging-{name}": {"url": f'"{server.url}/{name}"', "read_timeout": '"300ms"'} for name in HOSTILE}
    daemon.configure(sinks=tables)
    daemon.start()
    expected = {json.dumps(json.loads(line), separators=(",", ":")).encode() for line in oracle(daemon)}
    assert len(expected) == ENTRIES

    def missing() -> list[str]:
        return [name for name in HOSTILE if taken.lines[name] != expected]

    wait_until(lambda: not missing(), 40, what=f"all is delivered, except to {missing()}")
    daemon.stop()
    daemon.assert_clean()
    told = {line["sink"]: line["why"] for line in daemon.logged("batch.retry_scheduled")}
    assert set(told) == {f"logging-{name}" for name in HOSTILE}
    for why in told.values():
        assert why.isprintable()
        assert len(why) < 400
    assert "demo-key" not in daemon.stderr
    assert not [asked for asked in server.asked if "cookie" in asked.headers]
    assert {asked.headers["apikey"] for asked in server.asked} == {"demo-key"}
    assert {sink["dead"] for sink in daemon.state()["sinks"]} == {0}


def oracle(daemon: Daemon) -> Iterator[bytes]:
    for number in daemon.simulator.contracts:
        yield from daemon.simulator.oracle(number)
