"""A span that cannot be read becomes a gap, and all else is delivered: the real command against an API with such answers."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from poller.core.windows import format_time
from tests.commands import run_command

DAY = 86_400
OLD = b'{"httpStatus":400,"messages":[{"errorCode":"AF20055","message":"dateStart must lie within the last 90 days"}]}'


class Api(ThreadingHTTPServer):
    """One contract with an entry a day; `broken` replaces one of them. Nothing older than 90 days is served."""

    daemon_threads = True

    def __init__(self) -> None:
        self.now = int(time.time())
        self.broken: bytes | None = b'{"@uuid":"broken","meta":{"time":"%s"},"x":NaN}' % self.stamp(1)
        self.refuses_old = True
        self.queries = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                status, body = api.answer(url.path, {key: value for key, (value,) in parse_qs(url.query).items()})
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library chose the name
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stamp(self, day: int) -> bytes:
        return format_time(self.now - day * DAY - 3600).encode()

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        if path.endswith("/contracts"):
            return 200, b'[{"id":31000000}]'
        self.queries += 1
        start, end = query["dateStart"].encode(), query["dateEnd"].encode()
        if self.refuses_old and start < format_time(int(time.time()) - 90 * DAY).encode():
            return 400, OLD
        days = [day for day in range(110) if start <= self.stamp(day) < end]
        entries = [
            self.broken
            if day == 1 and self.broken
            else b'{"@uuid":"entry-%d","meta":{"time":"%s"}}' % (day, self.stamp(day))
            for day in days
        ]
        offset, limit = int(query["offset"]), int(query["limit"])
        shown = b",".join(b'{"_source":%s}' % entry for entry in entries[offset : offset + limit])
        return 200, b'{"hits":{"total":%d,"hits":[%s]}}' % (len(entries), shown)


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as made:
        yield made
        made.shutdown()


@pytest.fixture
def run(api: Api, tmp_path: Path) -> Any:
    environment = {
        "IONOS_API_URL": f"http://127.0.0.1:{api.server_port}",
        "IONOS_API_TOKEN": "t",
        "IONOS_POLLER_LOG_FORMAT": "json",
    }

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        return run_command(*args, cwd=tmp_path, env=environment, timeout=60)

    return command


def test_a_refused_age_and_an_entry_that_is_no_json_stop_nothing_else_until_a_person_decides(
    run: Any, api: Api
) -> None:
    first = run("fetch", "--since", "100d")
    assert first.returncode == 1
    days = {json.loads(line)["@uuid"] for line in first.stdout.splitlines()}
    assert {f"entry-{day}" for day in range(89) if day != 1} <= days
    assert len(days) == len(first.stdout.splitlines())
    opened = [line for line in map(json.loads, first.stderr.splitlines()[:-1]) if line["message"] == "gap.opened"]
    assert [(line["level"], line["kind"]) for line in opened] == [("ERROR", "refused"), ("ERROR", "unreadable")]
    assert "2 gaps of" in first.stderr

    listed = run("gaps", "list", "--json")
    assert listed.returncode == 1
    old, broken = json.loads(listed.stdout)
    assert "dateStart must lie within the last 90 days" in old["reason"]
    assert (broken["seconds"], broken["accepted"], broken["tries"]) == (1, False, 0)
    shown = run("gaps", "show", str(broken["id"]))
    assert '"x":NaN' in shown.stdout
    assert json.loads(run("gaps", "show", str(broken["id"]), "--json").stdout)["entries"][0]["bytes"] > 40

    api.queries = 0
    second = run("fetch")
    assert (second.returncode, second.stdout) == (1, "")
    assert api.queries <= 3

    status = json.loads(run("status", "--json").stdout)
    assert [gap["id"] for gap in status["uses"]["fetch"]["gaps"]] == [old["id"], broken["id"]]
    assert "2 gaps of" in run("status").stdout
    assert "gaps fetch" in run("check").stdout

    assert run("gaps", "accept", str(old["id"])).returncode == 0
    api.broken = None
    assert run("gaps", "retry").returncode == 0
    third = run("fetch")
    assert third.returncode == 0, third.stderr
    assert [json.loads(line)["@uuid"] for line in third.stdout.splitlines()] == ["entry-1"]
    assert '"message": "gap.closed"' in third.stderr
    left = run("gaps", "list")
    assert (left.returncode, len(left.stdout.splitlines())) == (0, 1)
    assert "accepted" in left.stdout
    assert run("gaps", "list", "--contract", "4711").stdout == ""
    assert run("gaps", "show", "4711").returncode == 2


def test_a_backfill_is_not_complete_while_a_span_of_it_is_refused_and_nobody_accepted_that(run: Any, api: Api) -> None:
    order = ("backfill", "--from", "100d", "--to", "80d", "--output", "-")
    first = run(*order)
    assert first.returncode == 1
    assert len(first.stdout.splitlines()) in (9, 10)
    assert "run the same command again" in first.stderr
    use = f"backfill-{first.stderr.partition('--use backfill-')[2].split('`')[0]}"
    assert run("gaps", "accept", "1", "--use", use).returncode == 0
    second = run(*order)
    assert (second.returncode, second.stdout) == (0, "")
