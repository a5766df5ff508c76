"""The address of `http.listen`: the daemon and `check` listen there with the same code.

Defines what an address is and which of its errors pass by themselves, and manages the file of a Unix socket.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from poller.core.errors import ConfigError, PollerError, Problem, TransientError

Address = tuple[str, int] | Path

# Enough for clients that connect at the same moment. The library's default of 5 is soon full.
_BACKLOG = 64
_MAX_ANSWER_BYTES = 64 * 1024
# The address, its network or its directory may appear later, and another program may release it.
_PASSING = {
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
    errno.ENETDOWN,
    errno.ENODEV,
    errno.ENOENT,
    errno.EMFILE,
    errno.ENFILE,
}


def show(address: Address) -> str:
    """The address as the configuration writes it."""
    if isinstance(address, Path):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(address: Address) -> socket.socket:
    """A socket that listens there. `::` also accepts IPv4. A socket file that a killed process left is replaced.

    Raises: OSError.
    """
    if isinstance(address, Path) and address.is_socket() and not _is_answered(address):
        address.unlink(missing_ok=True)
    family, where = _resolve(address)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(where)
        if isinstance(address, Path):
            address.chmod(0o666)  # its directory limits who may connect, as the network does for a port
        listener.listen(_BACKLOG)
    except BaseException:  # an interrupt, too, must leave no socket open
        listener.close()
        raise
    return listener


def _resolve(address: Address) -> tuple[int, Any]:
    """Family and socket address. If a name has several addresses, IPv4 is preferred."""
    if isinstance(address, Path):
        return socket.AF_UNIX, str(address)
    host, port = address
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, where = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, where


def _is_answered(path: Path) -> bool:
    try:
        _connect(path).close()
    except OSError as error:
        return not isinstance(error, ConnectionRefusedError)
    return True


def stop_listening(address: Address, listener: socket.socket) -> None:
    """Close the socket, and remove its file if it has one."""
    listener.close()
    if isinstance(address, Path):
        with suppress(OSError):
            address.unlink()


def problem(address: Address, error: OSError) -> Problem:
    """The problem that a person sees for an error of `listen`."""
    words = "taken by another program" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return Problem("http.listen", f"{show(address)}: {words}", 'choose another http.listen, or "" for none')


def failure(address: Address, error: OSError) -> PollerError:
    """Our error for an error of `listen`: TransientError if it may pass by itself, otherwise ConfigError."""
    found = problem(address, error)
    if isinstance(error, socket.gaierror) or error.errno in _PASSING:
        return TransientError(f"{found.path}: {found.message}", hint=found.hint)
    return ConfigError([found])


def is_ours(address: Address) -> bool:
    """Whether the process that listens there answers like the daemon."""
    try:
        with _connect(address) as channel:
            channel.settimeout(2.0)
            channel.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            answer = b""
            while part := channel.recv(_MAX_ANSWER_BYTES - len(answer)):
                answer += part
    except OSError:
        return False
    return b'"reasons"' in answer


def _connect(address: Address) -> socket.socket:
    if isinstance(address, Path):
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            channel.settimeout(1.0)
            channel.connect(str(address))
        except BaseException:  # an interrupt must not leave it open either
            channel.close()
            raise
        return channel
    host, port = address
    # A process that listens on all addresses also listens on loopback.
    return socket.create_connection(({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port), timeout=1.0)  # noqa: S104 - nothing listens here
