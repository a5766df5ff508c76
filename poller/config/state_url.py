"""The URL of a PostgreSQL database: what it may hold, whether it is this machine, and how its password leaves it.

Nothing here repeats a URL in a message: it may hold a password.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from poller.config.checks import BadValueError
from poller.config.values import show

_URL = (
    r"postgres(?:ql)?://(?:(?P<login>[^@/?#]*)@)?(?P<hosts>[^/?#@]*)(?:/(?P<database>[^/?#]*))?(?:\?(?P<query>[^#]*))?"
)
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::(?P<port>[0-9]{1,5}))?"
_SUCH_AS = "such as postgresql://user@host:5432/database"
# What libpq may be told beside host, user and database. `options` is missing on purpose: a pooler refuses it.
_PARAMETERS = ("host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs", "gssencmode")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VERIFYING = "verify-full"


class StateUrl(NamedTuple):
    """The parts of a database's URL. `hosts` with their ports, several with commas; a path is the directory of a socket."""

    user: str
    password: str
    hosts: tuple[str, ...]
    ports: tuple[str, ...]
    database: str
    parameters: dict[str, str]

    @property
    def is_local(self) -> bool:
        """Whether every host is this machine."""
        return all(map(_is_local, self.hosts))

    @property
    def ssl_mode(self) -> str:
        """Libpq's `sslmode`: the URL's own, else `verify-full` but on this machine, where the server decides."""
        return self.parameters.get("sslmode") or ("prefer" if self.is_local else _VERIFYING)

    @property
    def shown(self) -> str:
        """Host, port and database, for messages."""
        return (
            f"{','.join(f'{host}:{port}' for host, port in zip(self.hosts, self.ports, strict=True))}/{self.database}"
        )


def check_state_url(text: str) -> str:
    """A URL that libpq and we understand.  Raises: BadValueError."""
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
    user, _, password = (unquote(part) for part in (match["login"] or "").partition(":"))
    hosts, ports = [], []
    for item in (match["hosts"] or parameters.get("host") or "localhost").split(","):
        host, port = _host(unquote(item))
        hosts.append(host)
        ports.append(port or parameters.get("port", "5432"))
    database = unquote(match["database"] or "") or user
    if not database:
        raise BadValueError("names no database", _SUCH_AS)
    return StateUrl(user, password, tuple(hosts), tuple(ports), database, parameters)


def _host(item: str) -> tuple[str, str]:
    if item.startswith("/"):
        return item, ""
    match = re.fullmatch(_HOST, item)
    port = match["port"] or "" if match else ""
    host = item.removesuffix(f":{port}") if port else item
    if match is None or not host or (port and not 0 < int(port) < 65_536):
        raise BadValueError("names no usable host and port", _SUCH_AS)
    return host.strip("[]"), port


def _parameters(query: str) -> dict[str, str]:
    found = dict(parse_qsl(query, keep_blank_values=True))
    for name, value in found.items():
        if name == "options":
            raise BadValueError("has the parameter options", "a pooler refuses it; set what you need on the role")
        if name == "password":
            raise BadValueError("has the parameter password", "give password_file")
        if name not in _PARAMETERS:
            raise BadValueError(f"has the unknown parameter {show(name)}", f"known: {', '.join(_PARAMETERS)}")
        if name == "sslmode" and value not in _SSL_MODES:
            raise BadValueError(f"sslmode {show(value)} is not one of {', '.join(_SSL_MODES)}")
    return found


def is_unverified(text: str) -> bool:
    """Whether a host that is not this machine could be another than it says, or hear us in clear text."""
    url = parse_state_url(text)
    return not url.is_local and url.ssl_mode != _VERIFYING


def take_password(state: dict[str, Any], origins: dict[str, str]) -> None:
    """Move a password from the URL of `[state]` to its own key, so that no URL that is shown or logged has one.

    `origins` as in `Reading`: where a variable gave the URL, it gave the password, too.
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


def _is_local(host: str) -> bool:
    if host.startswith("/") or host == "localhost" or host.endswith(".localhost"):
        return True
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
