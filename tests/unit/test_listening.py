"""Listening where `http.listen` says, with the same code for the daemon and for `check`."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

import pytest

from poller.checks.system import check_listen
from poller.config import Config, Http
from poller.core.errors import ConfigError, TransientError
from poller.service.health import Endpoint
from poller.system.listening import Address, is_ours, listen
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
