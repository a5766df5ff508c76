"""An entry as a Moesif action. Pure.

Every action is valid, even if the entry lacks fields: it has a name, a time, an address and an absolute URI. Its `transaction_id`
depends only on the entry, so Moesif stores it once if it is sent twice. The entry itself is included unchanged as `metadata`.
Source: docs/facts.md, "Moesif Actions API".
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import quote

from poller.core.damage import encoded
from poller.core.events import OutboxEvent
from poller.core.mapping.fields import Fields, Value
from poller.core.mapping.shorten import format_time_us, short_text, truncated

NO_NAME = "unknown"
NO_ADDRESS = "0.0.0.0"  # noqa: S104 - without an address Moesif uses the caller's as the user's

CONTRACT = "contract"
"""In a path or template: the contract the entry was collected from, which is not read from the entry."""

_UUID_NAMESPACE = uuid.UUID("5b0f3a52-6d1c-5b7e-9f0e-2c7a4d3e81b6")  # ours; it must never change
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_CUT_ESCAPE = re.compile(r"%[0-9A-Fa-f]?(?=\.\.\.$)")
_ABSOLUTE = re.compile(r"https?://[^/?#\s]+", re.IGNORECASE)
# Characters of a URI that are not escaped: RFC 3986, and `%`, because the API's URIs are escaped already.
_URI_CHARS = "!#$%&'()*+,/:;=?@[]~"


class ActionMaker:
    """Makes actions of events. `action_name`, `company_id` and `user_id` are paths (`event.type`) or templates of them
    (`{event.type} {event.param.action}`); `uri_base` goes before `event.param.uri`. Safe to use from several threads.
    """

    def __init__(
        self,
        *,
        action_name: str = "event.type",
        company_id: str = CONTRACT,
        user_id: str = "principal.identity.username",
        uri_base: str = "https://api.ionos.com",
    ) -> None:
        self._name, self._company, self._user = _Template(action_name), _Template(company_id), _Template(user_id)
        self._uri_base = uri_base.rstrip("/")
        templates = (self._name, self._company, self._user)
        wanted = ["@uuid", "event.param.uri", "principal.sourceIP", *(path for t in templates for path in t.paths)]
        self._paths = [path for path in dict.fromkeys(wanted) if path != CONTRACT]
        self._fields = Fields(self._paths)

    def make(self, event: OutboxEvent, *, max_bytes: int | None = None) -> bytes:
        """The action as compact JSON.

        If it would be longer than `max_bytes`, its `metadata` is shortened and gets a marker, then its own texts are shortened.
        """
        values = dict(zip(self._paths, self._fields.read(event.line), strict=True))
        values[CONTRACT] = event.contract
        head = self._head(event, values)
        made = _join(head, event.line)
        if max_bytes is None or len(made) <= max_bytes:
            return made
        made = _shortened(head, event.line, max_bytes)
        return (
            made if len(made) <= max_bytes else _shortened(self._head(event, values, short_text), event.line, max_bytes)
        )

    def _head(self, event: OutboxEvent, values: dict[str, Value], fit: Callable[[str], str] = str) -> bytes:
        """The action without its entry, with `fit` applied to each of its texts."""
        action = {
            "action_name": fit(self._name.fill(values)) or NO_NAME,
            "transaction_id": _transaction_id(event, values["@uuid"]),
            "company_id": fit(self._company.fill(values)),
            "user_id": fit(self._user.fill(values)),
            "request": {
                "time": format_time_us(event.time_us),
                "uri": _uri(self._uri_base, values["event.param.uri"], fit),
                "ip_address": _address(values["principal.sourceIP"]),
            },
        }
        return encoded({key: value for key, value in action.items() if value})


class _Template:
    """A path, or text with paths in braces."""

    def __init__(self, text: str) -> None:
        self._text = text if "{" in text else f"{{{text}}}"
        self.paths: list[str] = _PLACEHOLDER.findall(self._text)

    def fill(self, values: dict[str, Value]) -> str:
        """The text with the values filled in. Missing values are left out; the text is empty if all are missing."""
        if not any(values[path] for path in self.paths):
            return ""
        return " ".join(_PLACEHOLDER.sub(lambda match: _joined(values[match[1]]), self._text).split())


def _joined(value: Value) -> str:
    return ",".join(value) if isinstance(value, list) else value or ""


def _transaction_id(event: OutboxEvent, entry_id: Value) -> str:
    """The entry's own UUID, or one made from its contract and identity if the UUID is missing, shared or redacted."""
    if isinstance(entry_id, str) and _UUID.fullmatch(entry_id) and not event.ordinal:
        return entry_id
    return str(uuid.uuid5(_UUID_NAMESPACE, f"{event.contract}:{event.identity.hex()}"))


def _join(head: bytes, line: bytes) -> bytes:
    return b'%s,"metadata":%s}' % (head[:-1], line)


def _shortened(head: bytes, line: bytes, max_bytes: int) -> bytes:
    return _join(head, truncated(line, max_bytes - len(_join(head, b""))))


def _uri(base: str, path: Value, fit: Callable[[str], str]) -> str:
    text = path if isinstance(path, str) else ""
    if not re.fullmatch(r"[\w.~/-]*", text, re.ASCII):
        text = quote(text, safe=_URI_CHARS, errors="ignore")
    if fit(text) != text:
        text = _CUT_ESCAPE.sub("", fit(text))
    if _ABSOLUTE.match(text):
        return text
    return f"{base}/{text.lstrip('/')}"


def _address(value: Value) -> str:
    return _known_address(value) if isinstance(value, str) else NO_ADDRESS


@lru_cache(4096)
def _known_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip().partition("%")[0]))  # a zone has no meaning outside its host
    except ValueError:  # masked, or hashed
        return NO_ADDRESS
