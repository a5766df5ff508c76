"""The URL of a PostgreSQL database: its checks, its parts, and the removal of its password.

No message repeats a URL, because it may hold a password.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote

from poller.config.checks import BadValueError, is_this_machine
from poller.config.values import show
from poller.core.amounts import plural

_URL = (
    r"postgres(?:ql)?://(?:(?P<login>[^@/?#]*)@)?(?P<hosts>[^/?#@]*)(?:/(?P<database>[^/?#]*))?(?:\?(?P<query>[^#]*))?"
)
_SERVER = r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>[^:]*))?"
_LABEL = r"[A-Za-z0-9_-]{1,63}"
_SUCH_AS = "such as postgresql://user@host:5432/database"
# The parameters of libpq that a URL may have. `options` is left out on purpose: a pooler refuses it.
_PARAMETERS = ("host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs", "gssencmode")
_VALUES = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "target_session_attrs": ("any", "read-write", "primary"),  # libpq has more values, for read-only servers
    "gssencmode": ("disable", "prefer", "require"),
}
_VERIFYING = "verify-full"


class StateUrl(NamedTuple):
    """The parts of a database's URL. `hosts` and `ports` belong together; a host that is a path is the directory of a socket."""

    user: str
    password: str
    hosts: tuple[str, ...]
    ports: tuple[str, ...]
    database: str
    parameters: dict[str, str]

    @property
    def is_local(self) -> bool:
        """Whether every host is this machine."""
        return all(host.startswith("/") or is_this_machine(host) for host in self.hosts)

    @property
    def ssl_mode(self) -> str:
        """Libpq's `sslmode`: from the URL, otherwise `verify-full`; on this machine `prefer`, so that the server decides."""
        return self.parameters.get("sslmode") or ("prefer" if self.is_local else _VERIFYING)

    @property
    def shown(self) -> str:
        """Host, port and database, for messages."""
        servers = ",".join(f"{host}:{port}" for host, port in zip(self.hosts, self.ports, strict=True))
        return f"{servers}/{self.database}"


def check_state_url(text: str) -> str:
    """A URL that libpq and this program accept, or "".  Raises: BadValueError."""
    if text:
        parse_state_url(text)
    return text


def parse_state_url(text: str) -> StateUrl:
    """The parts of the URL.  Raises: BadValueError."""
    if not text.isprintable() or " " in text or "\\" in text:
        raise BadValueError("holds a space, a backslash or a control character")
    match = re.fullmatch(_URL, text)
    if match is None:
        is_other = not re.match("postgres(ql)?://", text)
        raise BadValueError("must begin with postgresql://" if is_other else "is not a URL of a database", _SUCH_AS)
    parameters = _parameters(match["query"] or "")
    user, _, password = (_decoded(part) for part in (match["login"] or "").partition(":"))
    hosts, ports = _servers(match["hosts"] or "", parameters)
    database = _decoded(match["database"] or "") or user
    if not database:
        raise BadValueError("names no database", _SUCH_AS)
    return StateUrl(user, password, hosts, ports, database, parameters)


def _servers(text: str, parameters: dict[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hosts and ports, the same number of each: from the URL itself, otherwise from its parameters."""
    found = []
    for item in text.split(",") if text else ():
        match = re.fullmatch(_SERVER, item)
        if match is None:
            raise BadValueError("names no usable host and port", _SUCH_AS)
        found.append((_decoded(match["host"]).removeprefix("[").removesuffix("]"), match["port"]))
    if not found:
        found = [(host, None) for host in (parameters.get("host") or "localhost").split(",")]
    ports = parameters.get("port", "").split(",")
    if len(ports) not in (1, len(found)):
        hint = "give one port, or one for each host"
        raise BadValueError(f"has {len(ports)} ports for {plural(len(found), 'host')}", hint)
    if len(ports) == 1:
        ports *= len(found)
    hosts = tuple(_checked_host(host) for host, _ in found)
    return hosts, tuple(_checked_port(own or other or "5432") for (_, own), other in zip(found, ports, strict=True))


def _checked_host(host: str) -> str:
    """A name, an address, or the directory of a socket.  Raises: BadValueError."""
    if host.startswith("/") or _is_address(host) or re.fullmatch(rf"{_LABEL}(\.{_LABEL})*\.?", host):
        return host
    raise BadValueError("names no usable host and port", _SUCH_AS)


def _checked_port(port: str) -> str:
    if re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65_536:
        return port
    raise BadValueError("names no usable host and port", _SUCH_AS)


def _decoded(text: str) -> str:
    """The text with percent-encoding resolved.  Raises: BadValueError if it holds a control character."""
    decoded = unquote(text)
    if not decoded.isprintable():
        raise BadValueError("holds a control character")
    return decoded


def _parameters(query: str) -> dict[str, str]:
    found = {
        _decoded(name): _decoded(value) for name, _, value in (item.partition("=") for item in query.split("&") if item)
    }
    for name, value in found.items():
        if name == "options":
            raise BadValueError("has the parameter options", "a pooler refuses it; set what you need on the role")
        if name == "password":
            raise BadValueError("has the parameter password", "give password_file")
        if name not in _PARAMETERS:
            raise BadValueError(f"has the unknown parameter {show(name)}", f"known: {', '.join(_PARAMETERS)}")
        if name in _VALUES and value not in _VALUES[name]:
            raise BadValueError(f"{name} {show(value)} is not one of {', '.join(_VALUES[name])}")
    return found


def is_unverified(text: str) -> bool:
    """Whether the connection to another machine may be unencrypted, or its certificate is not verified."""
    url = parse_state_url(text)
    return not url.is_local and url.ssl_mode != _VERIFYING


def take_password(state: dict[str, Any], origins: dict[str, str]) -> None:
    """Move a password from the URL of `[state]` to its own key, so that no URL that is shown or logged has one.

    `origins` as in `Reading`: if a variable set the URL, it also set the password.
    """
    url = state.get("url")
    match = re.match(r"(postgres(?:ql)?://[^:@/?#]*):([^@/?#]*)@", url) if isinstance(url, str) else None
    if match is None or not isinstance(url, str):
        return
    state["url"] = type(url)(f"{match[1]}@{url[match.end() :]}")
    if match[2]:
        state["password"] = unquote(match[2])
        if "state.url" in origins:
            origins["state.password"] = origins["state.url"]


def _is_address(host: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(host)
    except ValueError:
        return False
    return True
