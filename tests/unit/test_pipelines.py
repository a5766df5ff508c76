"""The Logging Service's API through the vendor's SDK."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from poller.core.errors import AuthError, ConfigError, PollerError, RejectedError, TransientError
from poller.ionos.pipelines import Pipelines, region_url
from poller.simulator import Simulator, SimulatorSettings
from tests.hostile import RawServer, endless, headed, http
from tests.support import free_port


def client(url: str, proxy: str = "", read_seconds: float = 1.0) -> Pipelines:
    proxies = {"http": proxy} if proxy else {}
    return Pipelines(url, "Bearer demo-token", proxies=proxies, ca_file=None, timeout_seconds=(1.0, read_seconds))


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorSettings(contracts=1, events=0, pipeline_ready_seconds=0)) as running:
        yield running


def test_a_pipeline_from_its_making_to_its_next_key(simulator: Simulator) -> None:
    pipelines = client(simulator.url)
    assert pipelines.find("audit") is None
    made, key = pipelines.create("audit", "activityLog", 30)
    assert key is not None
    assert key.reveal() == simulator.pipelines.keys[0] == simulator.settings.api_key
    found = pipelines.find("audit")
    assert found == pipelines.find(made.id) == pipelines.get(made.id)
    assert found is not None
    assert (found.is_ready, found.is_broken) == (True, False)
    assert (found.url, found.tags) == (f"{simulator.url}/sink/logging", ("activityLog",))
    pipelines.add_tag(made.id, "another", 7)
    assert pipelines.get(made.id).tags == ("activityLog", "another")
    assert pipelines.new_key(made.id).reveal() == simulator.settings.api_key != key.reveal()


def test_one_is_found_among_many_and_two_of_a_name_are_told(simulator: Simulator) -> None:
    pipelines = client(simulator.url)
    for number in range(205):
        pipelines.create(f"pipeline-{number}", "activityLog", 30)
    found = pipelines.find("pipeline-204")
    assert found is not None
    pipelines.create("pipeline-204", "activityLog", 30)
    with pytest.raises(ConfigError, match=f"give the id of one: {found.id}"):
        pipelines.find("pipeline-204")


class _Answering(ThreadingHTTPServer):
    """Answers every request the same way, and counts them."""

    def __init__(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.requests = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests += 1
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if status == 0:
                    return  # hangs up
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the name http.server looks for

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


ERROR = b'{"httpStatus": 422, "messages": [{"errorCode": "x", "message": "too\\nlong"}]}'


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (401, b"{}", AuthError, "refused the token"),
        (403, b"{}", AuthError, "denied access"),
        (404, b"{}", RejectedError, "--api-url"),
        (422, ERROR, RejectedError, r"422: too long"),
        (429, b"{}", TransientError, "answered 429"),
        (503, b"<html>", TransientError, "answered 503"),
        (302, b"{}", TransientError, "redirect, which is not followed"),
        (0, b"", TransientError, "the connection to .* broke"),
        (201, b"no JSON", TransientError, "cannot be used"),
        (201, b"[1]", TransientError, "cannot be used"),
        (201, b'{"properties": {"key": {"canary": 1}}}', TransientError, "cannot be used"),
    ],
)
def test_every_answer_becomes_an_error_of_ours_and_nothing_is_asked_twice(
    status: int, body: bytes, kind: type[PollerError], words: str
) -> None:
    with _Answering(status, body) as server:
        with pytest.raises(kind, match=words) as caught:
            client(server.url).create("audit", "activityLog", 30)
        assert server.requests == 1, "a second POST would make a second pipeline"
    assert caught.value.hint
    assert "canary" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_who_cannot_be_reached_is_told_apart() -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TransientError, match="connection refused"):
        client(nobody).find("audit")
    with pytest.raises(TransientError, match="proxy"):
        client("http://logging.example", proxy=nobody).find("audit")
    with pytest.raises(TransientError, match=r"nowhere\.invalid is not known"):
        client("http://nowhere.invalid").find("audit")
    with _Answering(200, b"") as server, pytest.raises(TransientError, match="TLS failed"):
        client(server.url.replace("http", "https")).find("audit")


@pytest.mark.parametrize(
    ("first", "piece", "pause_seconds", "words"),
    [
        (headed(b"{", "Connection: close"), b" " * 65_536, 0.0, "larger than"),
        (headed(b"{", "Connection: close", status="503 No"), b" " * 65_536, 0.0, "larger than"),
        (http(gzip.compress(bytes(16 << 20)), "Content-Encoding: gzip"), b"", 0.1, "larger than"),
        (headed(b"{", "Content-Length: 9999"), b" ", 0.02, "too slowly"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.02, "too slowly"),
    ],
)
def test_an_answer_without_end_is_given_up(first: bytes, piece: bytes, pause_seconds: float, words: str) -> None:
    with RawServer(endless(first, piece, pause_seconds)) as server:
        pipelines = client(server.url, read_seconds=0.2)
        started = time.monotonic()
        with pytest.raises(TransientError, match=words):
            pipelines.find("audit")
    assert time.monotonic() - started < 5


def test_a_list_of_pipelines_without_end_is_given_up() -> None:
    page = json.dumps({"items": [{"id": f"{number}"} for number in range(100)]}).encode()
    with RawServer(lambda asked: http(page), is_kept=True) as server:
        with pytest.raises(TransientError, match="does not end"):
            client(server.url).find("audit")
        assert len(server.asked) == 100


def test_a_key_that_the_api_does_not_show_is_an_error() -> None:
    with _Answering(201, b"{}") as server, pytest.raises(RejectedError, match="did not show it"):
        client(server.url).new_key("x")


def test_a_region_has_its_own_api() -> None:
    assert region_url("de-txl") == "https://logging.de-txl.ionos.com"
