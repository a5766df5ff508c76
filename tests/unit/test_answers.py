"""Answers to sinks over real HTTP: the status decides, not the body. An HTML page for people is no answer of a receiver."""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poller.checks.sinks import judge
from poller.config import Config, LoggingServiceSink, LokiSink, MoesifSink, Secret, SecretSource
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter
from poller.core.errors import TransientError
from poller.core.events import OutboxEvent
from poller.net.transport import Transport
from poller.sinks.base import Sink
from poller.sinks.build import build_sink
from tests.certificates import make_certificate, serving
from tests.hostile import Answer, Asked, RawServer, endless, headed, http

EVENTS = [OutboxEvent("31960001", 1_000_000, 1, b"i" * 16, 0, b'{"a":1}')]
SIGN_ON = b"\xef\xbb\xbf\n <!DOCTYPE html>\n<html><title>Sign in</title></html>"
NGINX_PAGE = (
    b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head><body>"
    b"<center><h1>400 Bad Request</h1></center></body></html>"
)


@pytest.fixture
def serve() -> Iterator[Callable[..., RawServer]]:
    servers: list[RawServer] = []

    def make(answer: Callable[[Asked], Answer], **options: Any) -> RawServer:
        servers.append(RawServer(answer, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def secret() -> SecretSource:
    return SecretSource("inline", "", path="test", inline=Secret("key"))


def sink_of(url: str, **settings: object) -> Sink:
    table = LoggingServiceSink(**{"name": "s", "url": url, "tag": "activityLog", "api_key": secret(), **settings})  # type: ignore[arg-type]
    return build_sink(table, Config(), threading.Event())


@pytest.mark.parametrize(
    "answer",
    [
        http(b" " * 2 * 1024 * 1024),
        http(b'[{"a":1}]' * 1000),
        http(b"{}", "Content-Encoding: gzip"),
        http(b"{}", "Content-Encoding: br"),
        http(gzip.compress(bytes(100 * 1024 * 1024), 1), "Content-Encoding: gzip"),
        http(b"{}", length=99),
        headed(b"zz\r\n", "Transfer-Encoding: chunked"),
        headed(b""),
        endless(headed(b""), b" " * 65_536),
        endless(headed(b"", "Content-Length: 9999"), b"y", 0.02),
        endless(headed(b"1\r\ny\r\n0\r\n", "Transfer-Encoding: chunked"), b"X: y\r\n", 0.02),
        headed(b"{}", "Content-Length: 2", "Content-Length: 3"),
        headed(b"{}", "Content-Length: 2, 7"),
        headed(b"{}", *[f"X-{number}: y" for number in range(150)]),
        headed(b"{}", f"X: {'y' * 70_000}"),
        http(b"", "Content-Type: text/html"),
        http(b"ok", "Content-Type: text/html"),
        http(b"<ok/>", "Content-Type: text/xml"),
        http(b'"<html>"', "Content-Type: application/json"),
    ],
    ids=[
        "2 MiB",
        "an echo",
        "wrong encoding",
        "unknown encoding",
        "a bomb",
        "cut short",
        "broken chunks",
        "without a length",
        "endless",
        "in drips",
        "trailers in drips",
        "two lengths",
        "two lengths in a line",
        "150 headers",
        "a long header",
        "empty html",
        "a word as html",
        "xml",
        "html in JSON",
    ],
)
def test_a_listed_success_counts_whatever_its_body_is(
    serve: Callable[..., RawServer], answer: Answer | Callable[[Asked], Answer]
) -> None:
    server = serve(lambda asked: answer(asked) if callable(answer) else answer, is_kept=True)
    sink = sink_of(server.url)
    started = time.monotonic()
    for _ in range(2):
        assert sink.send(EVENTS) == Accepted(status=200)
    assert time.monotonic() - started < 8
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "answer",
    [
        http(SIGN_ON, "Content-Type: text/html; charset=utf-8"),
        http(SIGN_ON),
        http(gzip.compress(SIGN_ON), "Content-Type: text/html", "Content-Encoding: gzip"),
        http(b"<p>Please accept our terms", "Content-Type: text/html"),
        endless(headed(b"", "Content-Type: text/html", "Content-Length: 99"), b"", 0.05),
        http(SIGN_ON, "Content-Type: application/json", status="201 Created"),
    ],
    ids=["html", "no type", "compressed", "only the type", "never comes", "as JSON"],
)
def test_a_page_for_people_is_no_success(
    serve: Callable[..., RawServer], answer: Answer | Callable[[Asked], Answer]
) -> None:
    server = serve(lambda asked: answer(asked) if callable(answer) else answer)
    outcome = sink_of(server.url).send(EVENTS)
    assert isinstance(outcome, RetryAfter)
    assert "check url and tag" in outcome.reason


@pytest.mark.parametrize("status", ["400 Bad", "503 Oh"])
def test_a_refusal_counts_whatever_its_body_is(serve: Callable[..., RawServer], status: str) -> None:
    server = serve(endless(headed(b"", "Content-Encoding: gzip", status=status), b" " * 65_536))
    assert isinstance(sink_of(server.url).send(EVENTS), Refused if status.startswith("400") else RetryAfter)


@pytest.mark.parametrize(
    "answer",
    [
        http(NGINX_PAGE, "Content-Type: text/html", status="400 Bad Request"),
        http(b"Client sent an HTTP request to an HTTPS server.\n", status="400 Bad Request"),
        http(b"You're speaking plain HTTP to an SSL-enabled server port.", status="400 Bad Request"),
        http(b"This combination of host and port requires TLS.", status="400 Bad Request"),
    ],
    ids=["nginx", "Go", "Apache", "Tomcat"],
)
@pytest.mark.parametrize("kind", [LoggingServiceSink, MoesifSink, LokiSink])
def test_plain_http_to_a_tls_port_costs_no_event_and_is_no_yes(
    serve: Callable[..., RawServer], answer: bytes, kind: type[LoggingServiceSink | MoesifSink | LokiSink]
) -> None:
    url = serve(lambda asked: answer, is_kept=True).url
    keys = {
        LoggingServiceSink: {"tag": "activityLog", "api_key": secret()},
        MoesifSink: {"application_id": secret()},
        LokiSink: {},
    }[kind]
    settings = kind(name="s", url=url, **keys)  # type: ignore[arg-type]
    sink = build_sink(settings, Config(), threading.Event(), too_old="stamp-now")
    young = [OutboxEvent("1", round(time.time() * 1_000_000), int(time.time()), b"i" * 16, 0, b'{"a":1}')]
    assert isinstance(sink.send(young), RetryAfter)
    found = judge(settings, sink.probe(), "sink s")
    assert found.level == "fail"
    assert "https://" in found.hint


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (http(b'{"message":"batch is empty"}', status="400 Bad Request"), "ok"),
        (http(b'{"message":"at least one action"}', status="422 No"), "ok"),
        (http(b'{"message":"unknown field"}', status="400 Bad Request"), "warn"),
        (http(b"<html>oops</html>", status="400 Bad Request"), "warn"),
        (http(b"{}", status="201 Created"), "ok"),
        (http(SIGN_ON), "fail"),
    ],
)
def test_only_a_refusal_of_emptiness_is_a_yes(serve: Callable[..., RawServer], answer: bytes, level: str) -> None:
    settings = MoesifSink(name="s", url=serve(lambda asked: answer).url, application_id=secret())
    probe = build_sink(settings, Config(), threading.Event()).probe()
    assert judge(settings, probe, "sink s").level == level


def test_a_missing_tenant_is_named_and_no_key_is_asked_for(serve: Callable[..., RawServer]) -> None:
    server = serve(lambda asked: http(b"no org id\n", status="401 Unauthorized"))
    settings = LokiSink(name="s", url=server.url)
    outcome = build_sink(settings, Config(), threading.Event()).probe()
    assert isinstance(outcome, CredentialsRefused)
    assert "no org id" in outcome.reason
    assert judge(settings, outcome, "sink s").hint == "set tenant_id"


def test_an_encoding_that_is_not_taken_names_its_key(serve: Callable[..., RawServer]) -> None:
    server = serve(lambda asked: http(b"", status="415 Unsupported Media Type"))
    outcome = sink_of(server.url).send(EVENTS)
    assert isinstance(outcome, RetryAfter)
    assert 'compression = "none"' in outcome.reason


# Time-outs


def test_a_time_out_makes_the_size_suspect_and_a_refused_connection_does_not(serve: Callable[..., RawServer]) -> None:
    server = serve(lambda asked: b"" if server.released.wait(5) else b"late")
    outcome = sink_of(server.url, read_timeout_seconds=0.1).send(EVENTS)
    assert isinstance(outcome, RetryAfter)
    assert outcome.is_size_suspect
    server.close()
    gone = sink_of(server.url).send(EVENTS)
    assert isinstance(gone, RetryAfter)
    assert not gone.is_size_suspect


class SlowReader:
    """Reads a request slowly, and answers 200 when it has read all of it. If `early` is given, it sends that first."""

    def __init__(self, pause_seconds: float, *, early: bytes = b"") -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.stopped = threading.Event()
        self._pause_seconds = pause_seconds
        self._early = early
        self.received = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.received = len(head.split(b"\r\n\r\n", 1)[1])
            if self._early:
                connection.sendall(self._early)
                self.stopped.wait(10)
            while self.received < length and not self.stopped.wait(self._pause_seconds):
                self.received += len(connection.recv(64 * 1024))
            connection.sendall(http(b""))

    def close(self) -> None:
        self.stopped.set()
        self._listener.close()


@pytest.fixture
def slow() -> Iterator[Callable[..., SlowReader]]:
    readers: list[SlowReader] = []

    def make(pause_seconds: float, **options: bytes) -> SlowReader:
        readers.append(SlowReader(pause_seconds, **options))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


def post(url: str, *, send_timeout_seconds: float, size: int) -> int:
    transport = Transport(timeout_seconds=(0.2, 1.0), send_timeout_seconds=send_timeout_seconds)
    try:
        return transport.ask_status("POST", url, headers={}, body=os.urandom(size)).status
    finally:
        transport.close()


def test_a_large_body_may_take_longer_than_every_time_out_while_it_moves(slow: Callable[..., SlowReader]) -> None:
    started = time.monotonic()
    assert post(slow(0.02).url, send_timeout_seconds=0.5, size=1_500_000) == 200
    assert time.monotonic() - started > 0.5


def test_a_body_that_does_not_move_is_given_up(slow: Callable[..., SlowReader]) -> None:
    with pytest.raises(TransientError, match="send_timeout") as raised:
        post(slow(60).url, send_timeout_seconds=0.2, size=12_000_000)
    assert raised.value.is_size_suspect


def test_a_success_before_the_whole_body_was_taken_is_none(slow: Callable[..., SlowReader]) -> None:
    reader = slow(60, early=http(b""))
    with pytest.raises(TransientError, match="before the request was sent whole"):
        post(reader.url, send_timeout_seconds=0.2, size=12_000_000)


@pytest.mark.parametrize("status", [301, 413])
def test_what_is_no_success_counts_before_the_whole_body_was_taken(
    slow: Callable[..., SlowReader], status: int
) -> None:
    reader = slow(60, early=http(b"", status=f"{status} No"))
    assert post(reader.url, send_timeout_seconds=0.2, size=12_000_000) == status


# Connections


@pytest.mark.parametrize("status", ["500 Oh", "503 Oh", "429 Slow", "408 Late"])
def test_after_trouble_the_name_is_looked_up_again(serve: Callable[..., RawServer], status: str) -> None:
    server = serve(lambda asked: http(b"", status=status), is_kept=True)
    transport = Transport(timeout_seconds=(1.0, 1.0))
    for _ in range(2):
        transport.request("GET", server.url)
        transport.ask_status("POST", server.url, headers={}, body=b"[]")
    assert server.connection_count == 4
    transport.close()


def test_a_connection_that_is_old_is_not_used_again(serve: Callable[..., RawServer]) -> None:
    server = serve(lambda asked: http(b""), is_kept=True)
    transport = Transport(timeout_seconds=(1.0, 1.0))
    for _ in range(3):
        transport.request("GET", server.url)
    assert server.connection_count == 1
    transport.close()
    transport = Transport(timeout_seconds=(1.0, 1.0), max_age_seconds=0.0)
    for _ in range(3):
        transport.request("GET", server.url)
    assert server.connection_count == 4
    transport.close()


# Files


def test_too_many_open_files_is_no_refused_credential(
    serve: Callable[..., RawServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    key = tmp_path / "key"
    key.write_text("key")
    server = serve(lambda asked: http(b""))
    sink = sink_of(server.url, api_key=SecretSource("file", str(key), path="sinks[0].api_key_file"))

    def no_more(*args: object, **options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def refused() -> Outcome:
        outcome = sink.send(EVENTS)
        assert isinstance(outcome, RetryAfter)
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_more)
        assert "raise the limit of open files" in str(refused())
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", no_more)
        assert "raise the limit of open files" in str(refused())
    assert sink.send(EVENTS) == Accepted(status=200)


# Certificates of our own


@pytest.mark.parametrize("is_apart", [True, False])
def test_a_client_certificate_is_shown_with_its_key_wherever_that_lies(
    serve: Callable[..., RawServer], tmp_path: Path, is_apart: bool
) -> None:
    ours = make_certificate(tmp_path, host="localhost")
    context = serving(make_certificate(tmp_path))
    context.load_verify_locations(ours)
    context.verify_mode = ssl.CERT_REQUIRED
    server = serve(lambda asked: http(b""), tls=context)
    key, _, certificate = ours.read_text().partition("-----BEGIN CERTIFICATE-----")
    files = {"ca_file": str(tmp_path / "127.0.0.1-1.pem"), "cert_file": str(ours)}
    if is_apart:
        (tmp_path / "key.pem").write_text(key)
        (tmp_path / "certificate.pem").write_text(f"-----BEGIN CERTIFICATE-----{certificate}")
        files |= {"cert_file": str(tmp_path / "certificate.pem"), "key_file": str(tmp_path / "key.pem")}
    assert sink_of(server.url, **files).send(EVENTS) == Accepted(status=200)
    without = sink_of(server.url, ca_file=files["ca_file"]).send(EVENTS)
    assert isinstance(without, RetryAfter)
