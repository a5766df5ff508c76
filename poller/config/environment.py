"""Reads environment variables from a mapping: configuration keys, proxies, CA bundle."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

PREFIX = "IONOS_POLLER_"
# These do not name configuration keys: command-line options, and the state directory, which `config_variables` adds.
_RESERVED = {"CONFIG", "STATE_DIR", "LOG_LEVEL", "LOG_FORMAT"}
# Kubernetes sets these in every pod if the namespace has a service called ionos-poller.
_KUBERNETES = r"SERVICE_(HOST|PORT.*)|PORT(_\d+_(TCP|UDP|SCTP).*)?"


def process_environment() -> Mapping[str, str]:
    """The environment of this process, for `find_config` and `load`."""
    return os.environ


class EnvText(str):
    """Text of an environment variable, which may stand for a number, a flag or a list. `""` is the empty text."""

    __slots__ = ()

    def __new__(cls, text: str) -> EnvText:
        return super().__new__(cls, "" if text == '""' else text)


def config_variables(environ: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """(variable, key parts) of each variable that sets a key. Empty ones count as unset. If two set one key, the last wins."""
    short = {"IONOS_API_URL": ["api", "url"], "IONOS_POLLER_STATE_DIR": ["state_dir"]}
    found = []
    for variable, value in environ.items():
        rest = variable.removeprefix(PREFIX)
        if rest == variable or not value or rest in _RESERVED or re.fullmatch(_KUBERNETES, rest):
            continue
        found.append((variable, rest.lower().split("__")))
    found.sort(key=lambda pair: [(part.zfill(6) if part.isdigit() else part) for part in pair[1]])
    return [(variable, parts) for variable, parts in short.items() if environ.get(variable)] + found


_PORTS = {"http": 80, "https": 443}
_CA_BUNDLES = ("requests_ca_bundle", "curl_ca_bundle")  # the first that is set counts


class NetworkEnvironment:
    """Proxies and CA bundle, from the variables that `requests` and curl read. Its repr shows no value."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Mapping[str, str]) -> None:
        names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", *_CA_BUNDLES)
        # The lower-case spelling wins, as it does in curl and requests.
        pairs = ((name, environ.get(name) or environ.get(name.upper(), "")) for name in names)
        self._environ = {name: value.strip() for name, value in pairs if value.strip()}

    @property
    def ca_bundle(self) -> str | None:
        """A file or directory of CA certificates."""
        return next((self._environ[name] for name in _CA_BUNDLES if name in self._environ), None)

    @property
    def ca_bundle_variable(self) -> str:
        """The name of the variable that sets `ca_bundle`; "" if none does."""
        return next((name.upper() for name in _CA_BUNDLES if name in self._environ), "")

    def proxies_for(self, url: str) -> dict[str, str]:
        """`{scheme: proxy URL}` for `requests`; empty if no proxy is set or NO_PROXY names the host."""
        scheme = url.partition(":")[0].lower()
        proxy = self._environ.get(f"{scheme}_proxy") or self._environ.get("all_proxy")
        if not proxy:
            return {}
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        no_proxy = self._environ.get("no_proxy", "")
        if _is_excepted(parts.hostname or "", parts.port or _PORTS.get(scheme, 0), no_proxy):
            return {}
        return {scheme: proxy if "://" in proxy else f"http://{proxy}"}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkEnvironment) and self._environ == other._environ

    def __hash__(self) -> int:
        return hash(tuple(self._environ.items()))

    def __repr__(self) -> str:
        return f"<NetworkEnvironment {' '.join(self._environ)}>"


def _is_excepted(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY (`*`, hosts, domains, `host:port`, addresses, networks) covers the host.

    All usual notations are accepted: a domain also as `.domain` or `*.domain`, an IPv6 address also in brackets.
    """
    host = host.lower().rstrip(".")
    names = {host, f"[{host}]", f"{host}:{port}", f"[{host}]:{port}"}
    for item in no_proxy.replace(" ", ",").lower().split(","):
        entry = item.removeprefix("*").strip(".")
        if item == "*" or (entry and (entry in names or host.endswith(f".{entry}"))) or _is_in_network(host, entry):
            return True
    return False


def _is_in_network(host: str, network: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
