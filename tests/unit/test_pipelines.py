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
from poller.ionos.pipelines import Pipeline, Pipelines, region_url
from poller.net.transport import Transport
from poller.simulator import Simulator, SimulatorSettings
from tests.hostile import Asked, RawServer, endless, headed, http
from tests.support import free_port


def client(url: str, proxy: str = "", read_seconds: float = 1.0) -> Pipelines:
    proxies = {"http": proxy} if proxy else {}
    return Pipelines(url, "Bearer demo-token", Transport(timeout_seconds=(1.0, read_seconds), proxies=proxies))


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
    """Answers every request in the same way, and counts the requests."""

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
                """Log nothing."""

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


# The keys that are sent and read


def answering(*answers: object) -> tuple[RawServer, Pipelines]:
    """A server that gives these answers in order and repeats the last one, and a client for it."""
    given = [json.dumps(answer).encode() for answer in answers]

    def answer(asked: Asked) -> bytes:
        return http(given.pop(0) if len(given) > 1 else given[0], "Content-Type: application/json")

    server = RawServer(answer, is_kept=True)  # otherwise it may close a connection that is used again
    return server, client(server.url)


def sent(server: RawServer) -> list[tuple[str, str, object]]:
    return [(asked.method, asked.path, json.loads(asked.body or b"null")) for asked in server.asked]


def http_source(tag: str, days: int) -> dict[str, object]:
    return {
        "source": "generic",
        "tag": tag,
        "protocol": "http",
        "destinations": [{"type": "loki", "retentionInDays": days}],
    }


def made(*logs: dict[str, object], **properties: object) -> dict[str, object]:
    return {
        "id": "7",
        "metadata": {"state": "available"},
        "properties": {"name": "audit", "logs": list(logs), **properties},
    }


def test_a_pipeline_is_made_with_one_source_and_its_key_is_a_secret() -> None:
    server, pipelines = answering(made(http_source("t", 30), key="canary", httpAddress="x.example/"))
    with server:
        pipeline, key = pipelines.create("audit", "t", 30)
    assert sent(server) == [("POST", "/pipelines", {"properties": {"name": "audit", "logs": [http_source("t", 30)]}})]
    assert server.asked[0].headers["authorization"] == "Bearer demo-token"
    assert pipeline == Pipeline("7", "audit", "AVAILABLE", "https://x.example", ("t",))
    assert key is not None
    assert (key.reveal(), "canary" in repr(key)) == ("canary", False)


def test_a_pipeline_may_be_made_without_showing_its_key() -> None:
    server, pipelines = answering({"id": "7"})
    with server:
        assert pipelines.create("audit", "t", 30) == (Pipeline("7", "", "", "", ()), None)


def test_a_source_is_added_to_those_that_are_there() -> None:
    other = {
        "source": "docker",
        "tag": "d",
        "protocol": "tcp",
        "destinations": [{"type": "loki", "retentionInDays": 7}],
    }
    server, pipelines = answering(made(other))
    with server:
        pipelines.add_tag("7", "t", 14)
    assert [asked[:2] for asked in sent(server)] == [("GET", "/pipelines/7"), ("PATCH", "/pipelines/7")]
    assert sent(server)[1][2] == {"properties": {"name": "audit", "logs": [other, http_source("t", 14)]}}


def test_only_sources_over_http_have_a_tag_for_us() -> None:
    logs = [
        {"tag": "a", "protocol": "HTTP", "source": "generic"},
        {"tag": "b", "protocol": "tcp", "source": "generic"},
        {"protocol": "http", "source": "generic"},
        {"tag": "c", "source": "generic"},
    ]
    server, pipelines = answering(made(*logs, httpAddress="http://x.example"))
    with server:
        assert pipelines.get("7")[2:] == ("AVAILABLE", "http://x.example", ("a",))


def test_pipelines_are_looked_through_a_hundred_at_a_time() -> None:
    first = {"items": [{"id": str(number), "properties": {"name": "x"}} for number in range(100)]}
    server, pipelines = answering(first, {"items": [made()]}, {"items": None})
    with server:
        found = pipelines.find("audit")
        assert found is not None
        assert (found.id, pipelines.find("audit")) == ("7", None)
    asked = [path.removeprefix("/pipelines?").split("&") for _, path, _ in sent(server)]
    assert [{*params} for params in asked] == [{"limit=100", f"offset={at}"} for at in (0, 100, 0)]


@pytest.mark.parametrize(
    ("state", "url", "is_ready", "is_broken"),
    [
        ("AVAILABLE", "u", True, False),
        ("", "u", True, False),
        ("AVAILABLE", "", False, False),
        ("BUSY", "u", False, False),
        ("FAILED", "u", False, True),
        ("DESTROYING", "u", False, True),
    ],
)
def test_a_pipeline_is_ready_when_it_is_available_at_an_address(
    state: str, url: str, is_ready: bool, is_broken: bool
) -> None:
    pipeline = Pipeline("7", "audit", state, url, ())
    assert (pipeline.is_ready, pipeline.is_broken) == (is_ready, is_broken)


@pytest.mark.parametrize(
    ("status", "body", "kind", "message", "hint"),
    [
        (300, {}, TransientError, "answered with a redirect, which is not followed", "check --region"),
        (399, {}, TransientError, "answered with a redirect, which is not followed", "check --region"),
        (401, {"messages": []}, AuthError, "refused the token (401)", "check"),
        (403, {"messages": None}, AuthError, "denied access (403)", "privilege"),
        (
            404,
            {"messages": [{"message": "no"}, {"x": 1}, {"message": "way"}]},
            RejectedError,
            "(404: no; ; way)",
            "--region",
        ),
        (408, {}, TransientError, "answered 408", "run setup again later"),
        (
            418,
            {"messages": [{"message": "a\n\tb \x1b[1m" + "x" * 300}]},
            RejectedError,
            "(418: a b [1mxx",
            "other values",
        ),
        (429, ["no"], TransientError, "answered 429", "run setup again later"),
        (500, {"messages": ["no"]}, TransientError, "answered 500", "run setup again later"),
        (599, {"messages": 7}, TransientError, "answered 599", "run setup again later"),
    ],
)
def test_a_refusal_is_told_in_the_words_of_the_api_and_with_what_to_do(
    status: int, body: object, kind: type[PollerError], message: str, hint: str
) -> None:
    with _Answering(status, json.dumps(body).encode()) as server, pytest.raises(PollerError) as error:
        client(server.url).get("7")
    assert type(error.value) is kind
    assert message in error.value.message
    assert error.value.message.endswith(message) or status == 418
    assert len(error.value.message) < 300
    assert hint in error.value.hint
    assert getattr(error.value, "is_denied", False) == (status == 403)
    if isinstance(error.value, TransientError | RejectedError):
        assert error.value.status == (None if status < 400 else status)
