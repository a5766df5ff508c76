"""HTTP: foreign exceptions are translated, answers limited in size and time, tokens sent to their own host only, rates kept."""

from __future__ import annotations

import base64
import errno
import gzip
import inspect
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import requests
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from requests.adapters import BaseAdapter

from poller.core.errors import BodyTooLargeError, RejectedError, TransientError
from poller.net import transport as transport_module
from poller.net.connections import EarlyAnswerError, SendTimeoutError, TooSlowError
from poller.net.failures import root_cause
from poller.net.transport import (
    Response,
    Transport,
    parse_http_date,
    retry_after_seconds,
    unrequested_encoding,
)
from poller.net.words import api_words_of, words_of
from tests.certificates import make_certificate, serving
from tests.hostile import RawServer, headed, http
from tests.support import free_port

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """A server on loopback that answers with `answer`, and records its requests."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answer: Answer = ok
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.released = threading.Event()  # set when the test is over: a slow answer ends then

        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                server.seen.append((self.command, self.path, headers, body))
                try:
                    server.answer(self)
                except ConnectionError:  # the client closed the connection early
                    self.close_connection = True

            do_GET = do_POST = do_CONNECT = handle_any  # noqa: N815  # the names are the library's

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name is the library's
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that close the connection early."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def ok(handler: BaseHTTPRequestHandler) -> None:
    reply(handler, b"{}")


def reply(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def transport() -> Iterator[Transport]:
    transport = Transport(timeout_seconds=(1.0, 5.0))
    yield transport
    transport.close()


# Answers


def test_an_answer_comes_whole_whatever_its_status(server: Server, transport: Transport) -> None:
    for status in (200, 201, 204, 301, 400, 401, 404, 429, 500, 503):
        body = b"" if status == 204 else b"body of %d" % status
        server.answer = lambda handler, body=body, status=status: reply(handler, body, status, X_Name="value")
        response = transport.request("GET", server.url)
        assert (response.status, response.body, response.headers["x-NAME"]) == (status, body, "value")


def test_a_request_carries_what_was_asked_for_and_connections_are_used_again(
    server: Server, transport: Transport
) -> None:
    ports = []
    server.answer = lambda handler: (ports.append(handler.client_address[1]), ok(handler))[-1]
    for _ in range(3):
        transport.request("POST", f"{server.url}/a", headers={"X-A": "1"}, params={"q": "x y"}, body=b"body")
    method, path, headers, body = server.seen[-1]
    assert (method, path, headers["x-a"], body) == ("POST", "/a?q=x+y", "1", b"body")
    assert headers["user-agent"].startswith("ionos-poller/")
    assert len(set(ports)) == 1


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("", {}),
        ("/", {}),
        ("/activitylog/v1/contracts/31960001", {"params": {"dateStart": "2026-05-01T07:42:20Z", "offset": 0}}),
        ("/a b/\u00fc%C3%BC/%zz", {"params": {"q": "x y&=+#%\u00fc", "empty": ""}}),
        ("/a/../b/./c//d", {}),
        ("/a;b=c,d@e:f/", {"headers": {"Authorization": "Bearer t", "user-agent": "mine"}}),
        ("/a?b=c d&e", {"method": "POST", "body": b"body", "headers": {"Content-Type": "text/plain"}}),
        ("/a", {"method": "POST"}),
        ("/a", {"method": "POST", "body": b""}),
        ("/a", {"body": b"with a body"}),
    ],
)
def test_a_request_is_the_one_that_requests_makes(
    server: Server, transport: Transport, path: str, given: dict[str, Any]
) -> None:
    options = {**given}
    method = options.pop("method", "GET")
    transport.request(method, server.url + path, **options)
    session = transport._session
    session.request(
        method,
        server.url + path,
        headers=options.get("headers"),
        params=options.get("params"),
        data=options.get("body"),
        timeout=5,
    )
    assert server.seen[0] == server.seen[1]


@pytest.mark.parametrize("value", ["a\r\nX-B: c", "a\nb", "\u20ac"])
def test_a_header_that_would_be_another_is_not_sent(server: Server, transport: Transport, value: str) -> None:
    with pytest.raises(TransientError, match="could not be made"):
        transport.request("GET", server.url + "/a", headers={"Authorization": value})
    assert server.seen == []


def test_a_compressed_answer_is_inflated(server: Server, transport: Transport) -> None:
    server.answer = lambda handler: reply(handler, gzip.compress(b"[1,2]"), Content_Encoding="gzip")
    assert transport.request("GET", server.url).body == b"[1,2]"
    assert server.seen[0][2]["accept-encoding"] == "gzip"


def test_a_chunked_answer_is_put_together(server: Server, transport: Transport) -> None:
    def chunked(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (b"[1,", b"2,", b"3]" + b" " * 300_000):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    server.answer = chunked
    assert transport.request("GET", server.url).body == b"[1,2,3]" + b" " * 300_000


def test_an_answer_may_be_as_large_as_allowed_and_not_a_byte_larger(server: Server, transport: Transport) -> None:
    server.answer = lambda handler: reply(handler, b"x" * 600_000)
    assert len(transport.request("GET", server.url, max_bytes=600_000).body) == 600_000
    with pytest.raises(BodyTooLargeError):
        transport.request("GET", server.url, max_bytes=599_999)


def test_a_bomb_is_given_up_before_it_goes_off(server: Server, transport: Transport) -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024), 1)
    server.answer = lambda handler: reply(handler, bomb, Content_Encoding="gzip")
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError):
            transport.request("GET", server.url, max_bytes=1024 * 1024)
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_an_answer_in_drips_does_not_hold_a_worker_for_ever(server: Server) -> None:
    drips: list[int] = []

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(1000):
            drips.append(handler.wfile.write(b"x"))
            if server.released.wait(0.05):
                break
        handler.close_connection = True

    server.answer = drip
    transport = Transport(timeout_seconds=(1.0, 0.2))
    with pytest.raises(TransientError, match="too slowly"):
        transport.request("GET", server.url)
    assert 1 < len(drips) < 500, "no drip came too late, but the answer would have taken most of a minute"
    transport.close()


def test_an_answer_that_never_begins_is_given_up(server: Server) -> None:
    server.answer = lambda handler: server.released.wait(5) and None
    transport = Transport(timeout_seconds=(1.0, 0.1))
    with pytest.raises(TransientError, match="no answer within read_timeout"):
        transport.request("GET", server.url)
    transport.close()


# Where requests go


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_so_no_token_travels(server: Server, transport: Transport, status: int) -> None:
    server.answer = lambda handler: reply(handler, b"", status, Location=f"{server.url}/elsewhere")
    response = transport.request("GET", f"{server.url}/here", headers={"Authorization": "Bearer canary"})
    assert response.status == status
    assert [path for _, path, _, _ in server.seen] == ["/here"]


def test_neither_netrc_nor_proxies_of_the_environment_have_a_say(
    server: Server, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login thief password thief\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    transport.request("GET", server.url, headers={"Authorization": "Bearer token"})
    transport.request("GET", server.url)
    assert [headers.get("authorization") for _, _, headers, _ in server.seen] == ["Bearer token", None]


def test_a_proxy_that_is_handed_in_is_asked(server: Server) -> None:
    transport = Transport(timeout_seconds=(1.0, 1.0), proxies={"http": server.url})
    transport.request("GET", "http://api.example/path")
    assert server.seen[0][1] == "http://api.example/path"
    transport.close()


def test_the_login_of_a_proxy_that_quotes_it_is_not_among_its_words(server: Server) -> None:
    def quote(handler: BaseHTTPRequestHandler) -> None:
        login = handler.headers["Proxy-Authorization"]
        reply(handler, f"refused {login} of canary:p%40ss-word, p@ss-word".encode(), 407)

    server.answer = quote
    proxy = server.url.replace("//", "//canary:p%40ss-word@")
    transport = Transport(timeout_seconds=(1.0, 1.0), proxies={"http": proxy})
    answer = transport.request("GET", "http://api.example/path")
    transport.close()
    login = base64.b64encode(b"canary:p@ss-word")
    assert login in answer.body, "it was sent, and quoted"
    for words in (words_of(answer, [], b""), api_words_of(answer, [])):
        assert words == "refused Basic ******** of canary:********, ********"


def test_a_proxy_that_refuses_is_named_as_the_culprit(server: Server) -> None:
    server.answer = lambda handler: reply(handler, b"", 407)
    transport = Transport(timeout_seconds=(1.0, 1.0), proxies={"https": server.url})
    with pytest.raises(TransientError, match="proxy"):
        transport.request("GET", "https://api.example/path")
    transport.close()


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("socks5://127.0.0.1:1", "a SOCKS proxy cannot be used"),
        ("socks5h://127.0.0.1:1", "a SOCKS proxy cannot be used"),
        ("http://127.0.0.1:{port}", "the proxy did not let the request through: it refused the connection"),
        ("http://name.invalid:1", "the proxy did not let the request through: its host name is not known"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_in_words(proxy: str, words: str) -> None:
    transport = Transport(timeout_seconds=(1.0, 1.0), proxies={"http": proxy.format(port=free_port())})
    with pytest.raises(TransientError) as raised:
        transport.request("GET", "http://api.example/path")
    transport.close()
    assert raised.value.message == words
    assert "HTTPS_PROXY or HTTP_PROXY" in raised.value.hint


# Foreign exceptions


class Failing(BaseAdapter):
    """An adapter that raises while a request is sent, or while its answer is read."""

    def __init__(self, error: Exception, *, while_reading: bool) -> None:
        super().__init__()
        self.error = error
        self.while_reading = while_reading

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        if not self.while_reading:
            raise self.error
        response = requests.Response()
        response.status_code = 200
        response.raw = self
        return response

    def read(self, *args: Any, **kwargs: Any) -> bytes:
        raise self.error

    read1 = stream = read

    def close(self) -> None:
        pass

    release_conn = close


def exceptions_of(*modules: ModuleType) -> list[type[Exception]]:
    """Every exception class that the libraries define in these modules, without warnings."""
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and not issubclass(value, Warning)
        and value.__module__.split(".")[0] in ("requests", "urllib3")
    }
    return sorted(classes, key=lambda value: (value.__module__, value.__name__))


def instance(kind: type[Exception]) -> Exception:
    """An exception of a class, with as many texts as its constructor needs. If texts do not suffice, only `__new__` is called."""
    for count in range(6):
        try:
            return kind(*("canary",) * count)
        except (TypeError, AttributeError):
            continue
    return kind.__new__(kind, "canary")


FOREIGN = exceptions_of(requests.exceptions, urllib3.exceptions)


def test_the_enumeration_finds_the_exceptions() -> None:
    assert len(FOREIGN) > 40
    assert {requests.exceptions.ChunkedEncodingError, urllib3.exceptions.ProtocolError} <= {*FOREIGN}


@pytest.mark.parametrize("while_reading", [False, True], ids=["sending", "reading"])
@pytest.mark.parametrize(
    "kind", [*FOREIGN, OSError, ConnectionResetError, TimeoutError, UnicodeEncodeError], ids=lambda kind: kind.__name__
)
def test_every_foreign_exception_becomes_one_of_ours(kind: type[Exception], while_reading: bool) -> None:
    error = UnicodeEncodeError("latin-1", "canary", 0, 1, "no") if kind is UnicodeEncodeError else instance(kind)
    transport = Transport()
    transport._session.mount("http://", Failing(error, while_reading=while_reading))
    with pytest.raises(TransientError) as raised:
        transport.request("GET", "http://host/path?query=canary", headers={"Authorization": "Bearer canary"})
    assert raised.value.__cause__ is error
    assert "canary" not in str(raised.value)
    assert raised.value.status is None
    transport.close()


def test_what_breaks_while_a_refusal_is_handled_is_told_as_what_it_is(transport: Transport) -> None:
    with socket.socket() as taken:  # bound, but nothing listens
        taken.bind(("127.0.0.1", 0))
        try:
            raise RejectedError("refused before")
        except RejectedError:
            with pytest.raises(TransientError, match="connection refused by"):
                transport.request("GET", f"http://127.0.0.1:{taken.getsockname()[1]}/")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://127.0.0.1:{port}/", "connection refused by 127.0.0.1:"),
        ("http://name.invalid/", "the host name of name.invalid is not known"),
        ("http://", "could not be made"),
        ("no-scheme", "could not be made"),
        ("ftp://host/", "could not be made"),
        ("http://a..b/", "could not be made"),
        ("http://a..b/c", "could not be made"),
        ("http://a:99999/c", "could not be made"),
        ("http://host:port/", "could not be made"),
    ],
)
def test_what_keeps_a_connection_from_coming_about_is_said_with_a_hint(
    transport: Transport, url: str, text: str
) -> None:
    with pytest.raises(TransientError, match=text) as raised:
        transport.request("GET", url.format(port=free_port()))
    assert raised.value.hint


@pytest.mark.parametrize(
    "reply_bytes",
    [
        b"",
        b"HTTP/1.1",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    ],
    ids=lambda value: value[:60].decode(),
)
def test_an_answer_that_breaks_off_or_is_no_http_is_transient(
    server: Server, transport: Transport, reply_bytes: bytes
) -> None:
    def broken(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(reply_bytes)
        handler.close_connection = True

    server.answer = broken
    with pytest.raises(TransientError):
        transport.request("GET", server.url)


def caused(error: BaseException, cause: BaseException) -> Any:
    error.__cause__ = cause
    return error


def of_tls(**attributes: str) -> Any:
    """The translation of an error of OpenSSL with these attributes."""
    root = ssl.SSLError(1, "canary")
    for name, value in attributes.items():
        setattr(root, name, value)
    return caused(requests.exceptions.SSLError("canary"), root)


BROKE = "the connection to host:1 broke"
TLS = "TLS failed with host:1"


@pytest.mark.parametrize(
    ("error", "message", "hint", "is_size_suspect"),
    [
        (OSError(errno.EMFILE, "x"), "no connection to host:1: too many open files", "LimitNOFILE", False),
        (
            caused(requests.exceptions.ProxyError(), OSError(errno.ENFILE, "x")),
            "no connection to host:1: too many open files",
            "LimitNOFILE",
            False,
        ),
        (
            caused(requests.exceptions.ConnectionError(), SendTimeoutError()),
            "host:1 took no more of the request within send_timeout",
            "raise send_timeout",
            True,
        ),
        (
            caused(requests.exceptions.ConnectionError(), EarlyAnswerError()),
            "host:1 answered before the request was sent whole",
            "proxy or firewall",
            False,
        ),
        (
            caused(requests.exceptions.ConnectionError(), socket.gaierror()),
            "the host name of host:1 is not known",
            "the DNS",
            False,
        ),
        (
            caused(requests.exceptions.ConnectionError(), ConnectionRefusedError()),
            "connection refused by host:1",
            "a server listens there",
            False,
        ),
        (requests.exceptions.ConnectionError(), f"{BROKE}: ConnectionError", "tried again", True),
        (
            caused(requests.exceptions.ConnectionError(), ConnectionResetError()),
            f"{BROKE}: ConnectionResetError",
            "",
            True,
        ),
        (requests.exceptions.ChunkedEncodingError(), f"{BROKE}: ChunkedEncodingError", "tried again", True),
        (
            caused(requests.exceptions.ProxyError(), OSError("Tunnel connection failed: 407 Nope")),
            "the proxy did not let the request through: it wants credentials (407)",
            "user and password",
            False,
        ),
        (
            caused(requests.exceptions.ProxyError(), ConnectionRefusedError()),
            "the proxy did not let the request through: it refused the connection",
            "check HTTPS_PROXY or HTTP_PROXY",
            False,
        ),
        (
            caused(requests.exceptions.ProxyError(), socket.gaierror(-2, "Name or service not known")),
            "the proxy did not let the request through: its host name is not known",
            "check HTTPS_PROXY or HTTP_PROXY, and the DNS",
            False,
        ),
        (
            caused(requests.exceptions.ProxyError(), ConnectionResetError()),
            "the proxy did not let the request through: ConnectionResetError",
            "check HTTPS_PROXY or HTTP_PROXY",
            False,
        ),
        (
            caused(requests.exceptions.ProxyError(), OSError("Tunnel connection failed: 403 canary")),
            "the proxy did not let the request through: it answered 403",
            "check HTTPS_PROXY or HTTP_PROXY",
            False,
        ),
        (
            OSError("Could not find the TLS key file, invalid path: /a/b.key"),
            "no connection to host:1: /a/b.key is missing",
            "correct ca_file, cert_file or key_file",
            False,
        ),
        *(
            (of_tls(reason=reason), f"{TLS}: {reason}", "cert_file and key_file are what it accepts", False)
            for reason in (
                "TLSV13_ALERT_CERTIFICATE_REQUIRED",
                "SSLV3_ALERT_HANDSHAKE_FAILURE",
                "SSLV3_ALERT_CERTIFICATE_EXPIRED",
                "SSLV3_ALERT_BAD_CERTIFICATE",
                "TLSV1_ALERT_UNKNOWN_CA",
                "TLSV1_ALERT_ACCESS_DENIED",
            )
        ),
        (of_tls(reason="TLSV1_ALERT_PROTOCOL_VERSION"), TLS, "TLS 1.2 or later", False),
        (
            caused(
                requests.exceptions.SSLError("canary"), urllib3.exceptions.SSLError("Client private key is encrypted")
            ),
            f"{TLS}: Client private key is encrypted",
            "no passphrase",
            False,
        ),
        (
            caused(requests.exceptions.SSLError("canary"), ssl.SSLError(1, "[SSL] PEM lib (_ssl.c:3905)")),
            f"{TLS}: PEM lib",
            "are PEM, and belong together",
            False,
        ),
        (of_tls(verify_message="self-signed", reason="X"), f"{TLS}: self-signed", "name its file in ca_file", False),
        (of_tls(verify_message="unable to get local issuer"), f"{TLS}: unable to get local issuer", "ca_file", False),
        (of_tls(verify_message="IP address mismatch, certificate is not valid for 'x'"), TLS, "another name", False),
        (of_tls(verify_message="certificate has expired"), TLS, "check the clock", False),
        (of_tls(reason="WRONG_VERSION_NUMBER"), f"{TLS}: WRONG_VERSION_NUMBER", "begins with http://", False),
        (of_tls(reason="KEY_VALUES_MISMATCH"), f"{TLS}: KEY_VALUES_MISMATCH", "belong together", False),
        (of_tls(reason="NEW"), f"{TLS}: NEW", "check the url, and its certificate", False),
        (requests.exceptions.SSLError(), f"{TLS}: SSLError", "check the url, and its certificate", False),
        (
            requests.exceptions.ConnectTimeout(),
            "no connection to host:1 within connect_timeout",
            "any proxy or firewall",
            False,
        ),
        (requests.exceptions.ReadTimeout(), "no answer within read_timeout", "raise read_timeout", True),
        (TimeoutError(), "no answer within read_timeout", "raise read_timeout", True),
        (
            urllib3.exceptions.ReadTimeoutError(None, "", ""),
            "no answer within read_timeout",
            "raise read_timeout",
            True,
        ),  # type: ignore[arg-type]
        (TooSlowError(), "the answer came too slowly", "raise read_timeout", True),
        (ValueError(), "the request could not be made: ValueError", "check the url", False),
        (requests.exceptions.InvalidURL(), "the request could not be made: InvalidURL", "check the url", False),
        (requests.exceptions.ContentDecodingError(), "the answer's compression is broken", "check the url", False),
        (urllib3.exceptions.DecodeError(), "the answer's compression is broken", "check the url", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_went_wrong_is_said_in_our_words_with_what_to_do(
    error: Exception, message: str, hint: str, is_size_suspect: bool
) -> None:
    transport = Transport()
    transport._session.mount("http://", Failing(error, while_reading=False))
    with pytest.raises(TransientError) as raised:
        transport.request("GET", "http://host:1/path")
    assert raised.value.message.startswith(message)
    assert hint in raised.value.hint
    assert raised.value.is_size_suspect is is_size_suspect
    transport.close()


def test_the_root_of_an_error_is_found_wherever_it_is_kept() -> None:
    root = KeyError("root")
    assert root_cause(root) is root
    assert root_cause(caused(OSError(), caused(OSError(), root))) is root
    assert root_cause(ValueError("text", 7, ValueError(root))) is root
    assert root_cause(urllib3.exceptions.MaxRetryError(None, "", root)) is root  # type: ignore[arg-type]
    in_its_handling = OSError()
    in_its_handling.__context__ = root
    assert root_cause(in_its_handling) is root
    ours = OSError()
    ours.__context__ = RejectedError("ours")
    assert root_cause(ours) is ours
    itself = OSError()
    itself.args = (itself,)
    assert root_cause(itself) is itself
    deep: BaseException = root
    for _ in range(10):
        deep = caused(OSError(), deep)
    assert root_cause(deep) is root
    assert isinstance(root_cause(caused(OSError(), deep)), OSError), "a circle ends, too"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("", ""),
        (" GZip ", ""),
        ("deflate, x-gzip", ""),
        ("identity,gzip", ""),
        ("br", "br"),
        ("gzip, BR", "gzip, br"),
        ("a\x1bb", "ab"),
        ("x" * 50, "x" * 40),
    ],
)
def test_an_encoding_that_nobody_asked_for_is_named_in_a_few_printable_characters(encoding: str, shown: str) -> None:
    assert unrequested_encoding({"Content-Encoding": encoding}) == shown
    assert unrequested_encoding({}) == ""


def test_of_an_answer_whose_head_counts_only_the_words_are_read(server: Server, transport: Transport) -> None:
    def ask(body: bytes) -> tuple[int, bool]:
        server.answer = lambda handler: reply(handler, body)
        answer = transport.ask_status("POST", server.url, headers={}, body=b"[]")
        assert body.startswith(answer.body)
        return len(answer.body), answer.is_whole

    assert ask(b"") == (0, True)
    assert ask(b"words") == (5, True)
    length, is_whole = ask(bytes(1024 * 1024))
    assert (64 * 1024 < length <= 128 * 1024, is_whole) == (True, False)


def test_a_status_whose_body_does_not_come_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "_WORDS_SECONDS", 0.05)

    def stop_short(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(headed(b"part", "Content-Length: 9", status="503 No"))
        server.released.wait(20)

    server.answer = stop_short
    transport = Transport(timeout_seconds=(1.0, 30.0))
    answer = transport.ask_status("POST", server.url, headers={}, body=b"[]", whole=(200,))
    assert (answer.status, answer.body, answer.is_whole) == (503, b"part", False)
    assert answer.body_seconds < 10
    transport.close()


def test_a_body_that_counts_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "_WORDS_SECONDS", 0.01)

    def pause(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(headed(b"part", "Content-Length: 13"))
        time.sleep(0.1)  # the body comes late on purpose
        handler.wfile.write(b" and rest")

    server.answer = pause
    transport = Transport(timeout_seconds=(1.0, 5.0))
    answer = transport.ask_status("POST", server.url, headers={}, body=b"[]", whole=(200,))
    assert (answer.status, answer.body, answer.is_whole) == (200, b"part and rest", True)
    transport.close()


def test_a_body_that_counts_has_the_bounds_of_every_answer() -> None:
    def ask(answer: Any, **given: Any) -> Response:
        with (
            RawServer(lambda asked: answer(server) if callable(answer) else answer) as server,
            closing(Transport(timeout_seconds=(1.0, 0.2))) as transport,
        ):
            return transport.ask_status("POST", server.url, headers={}, body=b"[]", whole=(200,), **given)

    assert len(ask(http(bytes(1001)), max_bytes=1001).body) == 1001
    with pytest.raises(BodyTooLargeError, match="larger than 1000 bytes"):
        ask(http(bytes(1001)), max_bytes=1000)
    for cut in (http(b"part", length=9), headed(b"4\r\npart\r\n5\r\n", "Transfer-Encoding: chunked")):
        answer = ask(cut)
        assert (answer.body, answer.is_whole) == (b"part", False)
    with pytest.raises(TransientError, match="contradict each other"):
        ask(headed(b"{}", "Content-Length: 2", "Content-Length: 3"))
    with pytest.raises(TransientError, match="compression is broken"):
        ask(http(b"{}", "Content-Encoding: gzip"))

    def stop_short(server: RawServer) -> Iterator[bytes]:
        yield http(b"part", length=9)
        server.released.wait(20)

    with pytest.raises(TransientError, match="read_timeout"):
        ask(stop_short)


def test_how_long_an_answer_took_is_told_in_two_parts(
    server: Server, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0

    def answer_late(handler: BaseHTTPRequestHandler) -> None:
        nonlocal now
        now += 3
        handler.send_response(200)
        handler.send_header("Content-Length", "4")
        handler.end_headers()
        assert is_head_read.wait(5)
        now += 5
        handler.wfile.write(b"body")

    def wall_clock() -> float:
        nonlocal is_answered
        is_answered = True
        return 1_777_621_340.5

    def steady_clock() -> float:
        seconds = now
        if is_answered:  # the body is sent only after the head was read
            is_head_read.set()
        return seconds

    is_head_read, is_answered = threading.Event(), False
    server.answer = answer_late
    monkeypatch.setattr(transport_module, "time", SimpleNamespace(monotonic=steady_clock, time=wall_clock))
    answer = transport.request("GET", server.url)
    assert (answer.head_at, answer.head_seconds, answer.body_seconds) == (1_777_621_340.5, 3.0, 5.0)
    assert answer.is_whole


# Retry-After

NOW = datetime(2026, 5, 1, 7, 42, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 120 ", 120.0),
        ("1000000000", 1e9),
        ("Fri, 01 May 2026 07:43:20 GMT", 60.0),
        ("Fri, 01 May 2026 07:43:20 -0000", 60.0),
        ("Fri, 01 May 2026 09:43:20 +0200", 60.0),
        ("Friday, 01-May-26 07:43:20 GMT", 60.0),
        ("Fri, 01 May 2026 07:41:20 GMT", 0.0),
        ("1e9", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("", None),
        ("9" * 400, None),
        ("Fri, 99 May 2026 07:43:20 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -1400", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(value: str, expected: float | None) -> None:
    assert retry_after_seconds({"Retry-After": value}, NOW) == expected


@pytest.mark.parametrize("theirs", ["Fri, 01 May 2026 06:42:20 GMT", "Sat, 02 May 2026 07:42:20 GMT"])
def test_a_date_to_wait_for_is_one_of_the_clock_that_the_answer_shows(theirs: str) -> None:
    at = (parse_http_date(theirs) or NOW) + timedelta(seconds=30)
    headers = {"Date": theirs, "Retry-After": at.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    assert retry_after_seconds(headers, NOW) == 30.0
    assert retry_after_seconds(headers | {"Date": "soon"}, NOW) == max(0.0, (at - NOW).total_seconds())


def test_without_retry_after_there_is_no_wish() -> None:
    assert retry_after_seconds({}, NOW) is None


@given(st.text() | st.text(alphabet="0123456789 ,:-+GMTFriMay.e²", max_size=40))
def test_no_text_breaks_the_reading_of_a_wish_or_a_date(text: str) -> None:
    seconds = retry_after_seconds({"Retry-After": text}, NOW)
    assert seconds is None or seconds >= 0
    at = parse_http_date(text)
    assert at is None or at.utcoffset() == timedelta(0)


def test_a_server_that_cannot_prove_who_it_is_sees_no_request_until_its_certificate_is_trusted(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with RawServer(lambda asked: http(b"{}"), tls=serving(certificate)) as other:
        stranger = Transport(timeout_seconds=(1.0, 1.0))
        with pytest.raises(TransientError, match="TLS failed"):
            stranger.request("GET", f"{other.url}/x", headers={"Authorization": "secret"})
        assert other.asked == []
        trusting = Transport(timeout_seconds=(1.0, 1.0), ca_file=str(certificate))
        assert trusting.request("GET", f"{other.url}/x").body == b"{}"
        for transport in (stranger, trusting):
            transport.close()
