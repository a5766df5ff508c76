"""Listening at the address in `http.listen`, with the same code for the daemon and for `check`."""

from __future__ import annotations

import errno
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poller.checks.system import check_listen
from poller.config import Config, Http
from poller.core.errors import ConfigError, TransientError
from poller.service.health import Endpoint
from poller.system.listening import Address, failure, is_ours, listen, problem, show, stop_listening
from tests.endpoint import routes
from tests.support import free_port

LISTEN = ["127.0.0.1:{port}", "localhost:{port}", "0.0.0.0:{port}", "[::1]:{port}", "[::]:{port}", "unix:{path}"]


def address_of(text: str, directory: Path) -> Address:
    address = Http(listen=text.format(port=free_port(), path=directory / "http.sock")).address
    assert address is not None
    return address


def endpoint_at(address: Address) -> Endpoint:
    return Endpoint(address, routes())


@pytest.fixture(params=LISTEN)
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return address_of(request.param, tmp_path)


def test_what_check_calls_free_can_be_listened_on_and_answers(address: Address) -> None:
    assert check_listen(address, None).message.endswith("free")
    endpoint = endpoint_at(address)
    try:
        assert is_ours(address)
        assert check_listen(address, None).level == "fail", "taken, and by whom is not known"
        assert "in use by the daemon, process 7" in check_listen(address, 7).message
        with pytest.raises(TransientError, match=r"http\.listen: .*taken by another program"):
            endpoint_at(address)
        assert is_ours(address), "the second one harmed nothing"
    finally:
        endpoint.close()
    assert check_listen(address, None).level == "ok", "free again at once"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_all_addresses_of_ipv6_are_those_of_ipv4_too(host: str) -> None:
    endpoint = endpoint_at(("::", 0))
    try:
        connection = http.client.HTTPConnection(host, endpoint.port, timeout=5)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        endpoint.close()


def test_the_file_of_a_killed_process_is_replaced_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    killed = listen(path)
    killed.close()
    assert path.is_socket()
    endpoint = endpoint_at(path)
    assert is_ours(path)
    endpoint.close()
    assert not path.exists()


def test_whoever_may_enter_its_directory_may_use_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    endpoint = endpoint_at(path)
    assert path.stat().st_mode & 0o777 == 0o666
    endpoint.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    path.write_text("mine")
    with pytest.raises(TransientError):
        endpoint_at(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "address",
    [("192.0.2.1", 9464), ("no-such-name.invalid", 9464), Path("/no/such/directory/http.sock")],
    ids=str,
)
def test_an_address_that_may_come_is_waited_for(address: Address) -> None:
    with pytest.raises(TransientError, match=r"http\.listen"):
        endpoint_at(address)


def test_what_only_a_person_can_change_is_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, where: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ConfigError, match=r"http\.listen: 127\.0\.0\.1:80: Permission denied"):
        endpoint_at(("127.0.0.1", 80))


@pytest.mark.parametrize(
    ("listen_", "address"),
    [
        ("[::1]:9464", ("::1", 9464)),
        ("[fe80::1%1]:9464", ("fe80::1%1", 9464)),
        ("unix:/run/x.sock", Path("/run/x.sock")),
        ("", None),
    ],
)
def test_an_address_is_read_from_its_text(listen_: str, address: object) -> None:
    assert Config(http=Http(listen=listen_)).http.address == address


@pytest.mark.parametrize(
    ("address", "shown"),
    [(("127.0.0.1", 80), "127.0.0.1:80"), (("::1", 80), "[::1]:80"), (Path("/run/x.sock"), "unix:/run/x.sock")],
    ids=str,
)
def test_an_address_is_shown_as_it_stands_in_the_configuration(address: Address, shown: str) -> None:
    assert show(address) == shown
    taken = problem(address, OSError(errno.EADDRINUSE, "x"))
    assert (taken.path, taken.message) == ("http.listen", f"{shown}: taken by another program")
    assert taken.hint
    assert problem(address, OSError(errno.EACCES, "no right")).message == f"{shown}: no right"
    assert problem(address, OSError("words alone")).message == f"{shown}: words alone"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((OSError(number, "x"), TransientError) for number in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EMFILE)),
        *(
            (OSError(number, "x"), TransientError)
            for number in (errno.ENETDOWN, errno.ENODEV, errno.ENOENT, errno.ENFILE)
        ),
        (socket.gaierror(-2, "x"), TransientError),
        (OSError(errno.EACCES, "x"), ConfigError),
        (OSError(errno.EAFNOSUPPORT, "x"), ConfigError),
    ],
    ids=str,
)
def test_what_passes_by_itself_is_told_from_what_does_not(error: OSError, kind: type[Exception]) -> None:
    found = failure(("127.0.0.1", 80), error)
    assert type(found) is kind
    assert "http.listen: 127.0.0.1:80: " in str(found)
    assert "choose another http.listen" in str(found)


def test_a_socket_that_cannot_listen_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: socket.socket, backlog: int) -> None:
        raise OSError(errno.EINVAL, "x")

    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    monkeypatch.setattr(socket.socket, "listen", fail)
    for address in (("127.0.0.1", 0), tmp_path / "x.sock"):
        with pytest.raises(OSError, match="x"):
            listen(address)
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before


def test_of_a_name_with_several_addresses_the_one_of_ipv4_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    asked: list[object] = []
    for found in ([six, four], [four, six]):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *at, **how: asked.append((at, how)) or found)  # noqa: B023
        with listen(("name.example", 0)) as listener:
            assert listener.family == socket.AF_INET
    assert asked[0] == (("name.example", 0), {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE})


def test_who_stops_listening_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    stop_listening(path, listen(path))
    assert not path.exists()
    stop_listening(path, socket.socket(socket.AF_UNIX))
    stop_listening(("127.0.0.1", 0), listener := listen(("127.0.0.1", 0)))
    assert listener.fileno() == -1


@contextmanager
def saying(*parts: bytes) -> Iterator[Address]:
    """Another program, which answers one request with these parts."""
    with listen(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            channel, _ = listener.accept()
            with channel:
                assert channel.recv(100) == b"GET /healthz HTTP/1.0\r\n\r\n"
                for part in parts:
                    channel.sendall(part)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[:2]
        thread.join()


def test_what_answers_otherwise_is_not_ours(tmp_path: Path) -> None:
    with saying(b'{"rea', b'sons": []}') as address:
        assert is_ours(address)
    with saying(b"HTTP/1.0 200 OK\r\n\r\n{}") as address:
        assert not is_ours(address)
    with saying(b" " * 65_536 + b'"reasons"') as address:
        assert not is_ours(address), "no more is read than that"
    assert not is_ours(tmp_path / "missing.sock")
    assert not is_ours(("127.0.0.1", free_port()))


def test_who_listens_on_all_addresses_can_be_asked_on_one() -> None:
    for everywhere in ("0.0.0.0", "::"):
        endpoint = endpoint_at((everywhere, 0))
        assert is_ours((everywhere, endpoint.port))
        endpoint.close()
