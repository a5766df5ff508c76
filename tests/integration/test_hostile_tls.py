"""The server's certificate is always verified. Nothing turns that off, and no secret goes to a server that is not verified."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from poller.config import (
    AnySink,
    Config,
    FirehoseSink,
    LoggingServiceSink,
    LokiSink,
    MoesifSink,
    Secret,
    SecretSource,
    load,
)
from poller.core.delivery import Accepted, RetryAfter
from poller.core.events import OutboxEvent
from poller.sinks import logging_service, loki, moesif
from poller.sinks.base import Sink
from poller.sinks.build import build_sink
from tests.certificates import make_certificate, serving
from tests.hostile import Asked, RawServer, http, page_of
from tests.in_process import run_here
from tests.integration.fetching import Run, Starter, failed, finished
from tests.support import COMMAND, clean_environment

TOKEN = "canary-token"
CONTRACTS = b'[{"id": 31960001}]'
TAKEN = b'{"RequestResponses":[{"RecordId":"1"}]}'
AWS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nowhere",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
}


def answer(asked: Asked) -> bytes:
    body = TAKEN if asked.method == "POST" else CONTRACTS if asked.path.endswith("/contracts") else page_of([])
    return http(body, "Connection: close")


Serve = Callable[[Path], RawServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Servers that speak TLS with a certificate."""
    servers: list[RawServer] = []

    def make(certificate: Path) -> RawServer:
        servers.append(RawServer(answer, tls=serving(certificate)))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def settings_to(server: RawServer, env: Mapping[str, str] | None = None) -> dict[str, str]:
    settings = {"IONOS_API_URL": server.url, "IONOS_API_TOKEN": TOKEN, "IONOS_POLLER_API__MAX_RETRIES": "0"}
    return settings | dict(env or {})


def fetch(directory: Path, server: RawServer, env: Mapping[str, str] | None = None) -> Run:
    return finished(*run_here("fetch", cwd=directory, env=settings_to(server, env)))


def fetch_in_a_process(directory: Path, server: RawServer, env: Mapping[str, str]) -> Run:
    """`fetch` in a process of its own, for variables that Python and OpenSSL read at their start."""
    done = subprocess.run(
        [*COMMAND, "fetch"],
        cwd=directory,
        env=clean_environment(settings_to(server, env)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return finished(done.returncode, done.stdout, done.stderr)


UNVERIFIED = {
    "nothing": {},
    "an empty REQUESTS_CA_BUNDLE": {"REQUESTS_CA_BUNDLE": ""},
    "a blank REQUESTS_CA_BUNDLE": {"REQUESTS_CA_BUNDLE": " "},
    "an empty CURL_CA_BUNDLE": {"CURL_CA_BUNDLE": "", "REQUESTS_CA_BUNDLE": ""},
    "PYTHONHTTPSVERIFY": {"PYTHONHTTPSVERIFY": "0"},
    "an empty ca_file": {"IONOS_POLLER_API__CA_FILE": ""},
    "an empty SSL_CERT_FILE": {"SSL_CERT_FILE": "", "SSL_CERT_DIR": ""},
}


@pytest.mark.parametrize("name", UNVERIFIED)
def test_no_variable_turns_verification_off(tmp_path: Path, serve: Serve, name: str) -> None:
    server = serve(make_certificate(tmp_path))
    run = fetch_in_a_process(tmp_path, server, UNVERIFIED[name])
    assert run.code == 1
    (line,) = run.told
    assert "self-signed certificate" in line
    assert "ca_file" in line
    assert server.asked == []
    assert TOKEN not in run.stderr


@pytest.mark.parametrize("word", ["0", "false", "False", "no", "none", "/nowhere"])
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "IONOS_POLLER_API__CA_FILE"])
def test_a_word_in_place_of_a_file_is_refused(tmp_path: Path, variable: str, word: str) -> None:
    with pytest.raises(Exception, match="unreadable file"):
        load(None, {variable: word})


@pytest.mark.parametrize("key", ["verify", "insecure", "tls_verify", "ssl_verify", "skip_verify", "verify_ssl"])
@pytest.mark.parametrize("table", ["[api]", "[[accounts]]", "[[sinks]]\ntype='loki'", "[[sinks]]\ntype='firehose'"])
def test_there_is_no_key_that_turns_verification_off(tmp_path: Path, table: str, key: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"{table}\n{key} = false\n")
    with pytest.raises(Exception, match=f"{key}: unknown key"):
        load(file, {})


def make_trust(directory: Path, kind: str) -> Path:
    """Make a certificate, and a trust file with which it is still not valid.  Returns: the certificate for the server."""
    trusted = directory / "trusted.pem"
    match kind:
        case "another host":
            served = make_certificate(directory, host="api.example")
            trusted.write_bytes(served.read_bytes())
        case "another address":
            served = make_certificate(directory, host="127.0.0.2")
            trusted.write_bytes(served.read_bytes())
        case "expired":
            served = make_certificate(directory, days=-1)
            trusted.write_bytes(served.read_bytes())
        case "an empty file":
            served = make_certificate(directory)
            trusted.touch()
        case "a file of something else":
            served = make_certificate(directory)
            trusted.write_bytes(b"not a certificate\n" * 10)
        case _:
            served = make_certificate(directory)
            trusted.mkdir()
    return served


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("another host", "another name: check the url"),
        ("another address", "another name: check the url"),
        ("expired", "check the clock of this machine"),
        ("an empty file", "are PEM"),
        ("a file of something else", "are PEM"),
        ("an empty directory", "an unknown CA signed"),
    ],
)
def test_trust_in_something_else_is_no_trust(tmp_path: Path, serve: Serve, kind: str, remedy: str) -> None:
    server = serve(make_trust(tmp_path, kind))
    run = fetch(tmp_path, server, {"REQUESTS_CA_BUNDLE": str(tmp_path / "trusted.pem")})
    assert run.code == 1
    (line,) = run.told
    assert f"TLS failed with {urlsplit(server.url).netloc}: " in line
    assert remedy in line
    assert server.asked == []


def test_who_speaks_no_tls_is_told(bench: Starter) -> None:
    place = bench(events=1)
    url = place.simulator.url.replace("http://", "https://")
    failed(place.fetch("--since", "1h", env={"IONOS_API_URL": url}), 1, "check that it speaks TLS at that port")


def test_a_certificate_that_is_trusted_opens_the_door(tmp_path: Path, serve: Serve) -> None:
    certificate = make_certificate(tmp_path)
    server = serve(certificate)
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "IONOS_POLLER_API__CA_FILE"):
        assert fetch(tmp_path, server, {variable: str(certificate)}).code == 0
    assert len(server.asked) == 6


# Sinks


EVENT = OutboxEvent("31960001", 1_900_000_000_000_000, 1_900_000_000, b"x" * 16, 0, b'{"a":1}')


def hang_up(sink: Sink) -> None:
    """Close the idle connection of a sink."""
    assert isinstance(sink, logging_service.LoggingServiceSink | loki.LokiSink | moesif.MoesifSink)
    sink._endpoint._transport.close()


def secret() -> SecretSource:
    return SecretSource("inline", "", path="test", inline=Secret("canary"))


def settings_for(kind: str, url: str, ca_file: Path | None) -> AnySink:
    common = {"name": kind, "read_timeout_seconds": 2.0, "ca_file": ca_file}
    match kind:
        case "logging-service":
            return LoggingServiceSink(url=url, tag="a", api_key=secret(), **common)
        case "loki":
            return LokiSink(url=url, bearer_token=secret(), **common)
        case "moesif":
            return MoesifSink(url=url, application_id=secret(), **common)
        case _:
            return FirehoseSink(endpoint_url=url, stream="s", **common)


@pytest.mark.parametrize("kind", ["logging-service", "loki", "moesif", "firehose"])
def test_no_sink_sends_to_who_is_not_trusted(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    certificate = make_certificate(tmp_path)
    server = serve(certificate)
    for variable in ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(variable, "")
        sink = build_sink(settings_for(kind, server.url, None), load(None, {variable: ""}), threading.Event())
        outcome = sink.send([EVENT])
        assert isinstance(outcome, RetryAfter)
        assert "TLS failed" in outcome.reason
    assert server.asked == []
    trusting = build_sink(settings_for(kind, server.url, certificate), Config(), threading.Event())
    assert isinstance(trusting.send([EVENT]), Accepted)
    assert len(server.asked) == 1


# Where secrets go


@pytest.mark.parametrize("kind", ["logging-service", "loki", "moesif"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_secret_follows_a_redirect_to_another_host(kind: str, status: int) -> None:
    with RawServer(lambda asked: http(TAKEN)) as thief:
        lead = f"Location: {thief.url.replace('127.0.0.1', 'localhost')}/"
        with RawServer(lambda asked: http(b"moved", lead, status=f"{status} Gone"), is_kept=True) as server:
            sink = build_sink(settings_for(kind, server.url, None), Config(), threading.Event())
            assert isinstance(sink.send([EVENT]), RetryAfter), "what was not taken waits"
            assert len(server.asked) == 1
            hang_up(sink)
        assert thief.asked == []


def test_the_token_follows_no_redirect_and_netrc_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login thief password thief\ndefault login x password y\n")
    (tmp_path / ".netrc").chmod(0o600)
    with RawServer(lambda asked: http(CONTRACTS)) as thief:
        lead = f"Location: {thief.url.replace('127.0.0.1', 'localhost')}/activitylog/v1/contracts"
        with RawServer(lambda asked: http(b"", lead, "Connection: close", status="307 Elsewhere")) as api:
            env = {"HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}
            run = fetch(tmp_path, api, env)
            assert run.code == 1
            (line,) = run.told
            assert "redirect (307), which is not followed" in line
            assert [asked.headers["authorization"] for asked in api.asked] == [f"Bearer {TOKEN}"]
        assert thief.asked == []
