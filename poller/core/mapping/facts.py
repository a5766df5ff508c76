"""What an entry says, in words that OCSF and ECS share: who, what, and what it has for itself. Pure.

Nothing is invented: what an entry does not say is None. What it says and no fact holds is in `rest`, as the API gave it, for the
place that each standard has for such things.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from poller.core.events import OutboxEvent, time_us_of
from poller.core.mapping.shapes import (
    Error,
    Json,
    Principal,
    Resource,
    decode_entry,
    decode_principal,
    take_apart,
)
from poller.core.mapping.shorten import format_time_us

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
COMMANDS = frozenset({"start", "stop", "reboot"})
"""The last parts of a path to which a POST creates nothing."""

REMEMBERED = 1024
"""Few users and few kinds of things make most of a log: what follows from those is worked out once for so many of them."""
REMEMBERED_BYTES = 4096
"""Of an entry longer than this nothing is remembered, so that memory is bounded."""

# Source: OCSF 1.8.0, type email_t.
_EMAIL = re.compile(r"[a-zA-Z0-9!#$%&'*+\-/=?^_`{|}~.]+@[a-zA-Z0-9-]+\.[a-zA-Z0-9.-]+")


class Who(NamedTuple):
    """Who it was and from where."""

    contract: str
    user: str | None
    email: str | None
    """The user, if that is an e-mail address."""
    account: str | None
    """The user's own contract."""
    ip: str | None
    address: str | None
    """The source address as it is written, whether an IP address or not."""
    odd_address: str | None
    """The same, where `ip` is not written like it."""
    service: str | None
    principal_service: str | None
    """The principal's service, where it is not `service`."""
    service_host: str | None


class What(NamedTuple):
    """What kind of thing happened."""

    type: str | None
    status: str | None
    action: str | None
    """The first dotted action of its resources, such as `vr.server.create`."""
    method: str | None
    """`param.action`, if it is an HTTP method."""
    word: str | None
    """`param.action`, if it is none, or not written as one."""
    command: str | None
    """What a POST does that creates nothing, one of COMMANDS."""
    initiator: str | None


class Own(NamedTuple):
    """What an entry has for itself."""

    # As they are in the entry, in the order of _OWN.
    original_time: str | None
    request_id: str | None
    queue_ref: int | str | None
    transaction_id: str | None
    message: str | None
    http_status: int | None
    resources: list[Resource] | None
    # Made of it.
    audit_version: str | None
    error_code: str | None
    error_message: str | None
    """The messages of its error, one behind the other."""
    error_codes: list[str] | None
    """The codes of those messages, where they differ from `error_code`."""
    path: str | None
    query: str | None
    odd_uri: str | None
    """The URI as it is written, where it is no path with or without a query."""
    uid: str
    """`@uuid`; where it has none, or shares it with another entry, what identifies it here."""
    shared_uid: str | None
    """`@uuid`, where it is not `uid`."""
    time_ms: int
    time: str
    is_timed: bool
    """Whether the time is the entry's own."""
    collected_ms: int
    collected: str
    line: str
    """The entry itself, to the byte."""


_OWN = attrgetter(
    *("meta.time", "meta.requestId", "meta.queueRefId", "meta.transactionId", "event.message"),
    *("event.param.error.httpStatus", "event.resources"),
)


class Facts(NamedTuple):
    """All of it. `rest` has the nesting and the values of the entry."""

    who: Who
    what: What
    own: Own
    rest: Json


def read_facts(event: OutboxEvent, line: bytes) -> Facts:
    """The facts of an event; `line` is the entry as it was collected.

    Raises: msgspec.DecodeError for a line that is no JSON object, or has a lone surrogate.
    """
    rest: Json = {}
    try:
        entry = decode_entry(event.line)
        known = _who_known if len(event.line) <= REMEMBERED_BYTES else _who_known.__wrapped__
        who = known(bytes(entry.principal), event.contract, entry.event.param.sourceService)
    except msgspec.ValidationError:
        entry, principal, rest = take_apart(event.line)
        who = _who(principal, event.contract, entry.event.param.sourceService)
    happened = entry.event
    param, error, uri = happened.param, happened.param.error, happened.param.uri
    own: tuple[Any, ...] = _OWN(entry)
    if "" in own or [] in own:
        own = tuple([None if value in ("", []) else value for value in own])
    path, query, odd_uri = _uri_parts(uri) if uri else (None, None, None)
    error_code = _text(param.errorCode)
    error_message, error_codes = _messages(error, error_code) if error.messages else (None, None)
    uuid, time = _text(entry.uuid), format_time_us(event.time_us)
    is_shared = uuid is not None and event.ordinal > 0
    return Facts(
        who,
        What(
            happened.type or None,
            happened.status or None,
            _first_action(happened.resources) if happened.resources else None,
            *_action_of(param.action, path),
            param.initiator or None,
        ),
        Own._make(
            (
                *own,
                _text(entry.meta.auditVersion),
                error_code,
                error_message,
                error_codes,
                path,
                query,
                odd_uri,
                event.identity.hex() if uuid is None or is_shared else uuid,
                uuid if is_shared else None,
                event.time_us // 1000,
                time,
                own[0] == time or time_us_of(own[0]) == event.time_us,
                event.collected_at * 1000,
                format_time_us(event.collected_at * 1_000_000),
                line.decode(),
            )
        ),
        rest,
    )


@lru_cache(REMEMBERED)
def _who_known(principal: bytes, contract: str, service: str | None) -> Who:
    return _who(decode_principal(principal), contract, service)


def _who(principal: Principal, contract: str, service: str | None) -> Who:
    user, address, own_service = (
        value or None for value in (principal.identity.username, principal.sourceIP, principal.sourceService)
    )
    ip = _ip_of(address) if address else None
    service = service or own_service
    return Who(
        contract,
        user,
        user if user and _EMAIL.fullmatch(user) else None,
        _text(principal.identity.contractNumber),
        ip,
        address,
        None if ip == address else address,
        service,
        None if own_service == service else own_service,
        principal.serviceHost or None,
    )


def _ip_of(text: str) -> str | None:
    try:
        ip = ipaddress.ip_address(text.strip())
    except ValueError:  # masked, or hashed
        return None
    return None if "%" in text else str(ip)


def _text(value: str | int | float | None) -> str | None:
    return (value or None) if value is None or isinstance(value, str) else str(value)


def _first_action(resources: list[Resource]) -> str | None:
    for resource in resources:
        for action in resource.action or ():
            if action:
                return action
    return None


def _action_of(action: str | None, path: str | None) -> tuple[str | None, str | None, str | None]:
    """The method, the word where that is no method or written otherwise, and the command in the path of a POST."""
    if not action:
        return None, None, None
    method = action.upper()
    if method not in METHODS:
        return None, action, None
    command = path.rpartition("/")[2] if path and method == "POST" else None
    return method, None if method == action else action, command if command in COMMANDS else None


def _uri_parts(uri: str) -> tuple[str | None, str | None, str | None]:
    """Path and query, and the URI itself where they are not all of it."""
    path, mark, query = uri.partition("?")
    if not path.startswith("/") or "#" in uri or (mark and not query):
        return None, None, uri
    return path, query or None, None


def _messages(error: Error, error_code: str | None) -> tuple[str | None, list[str] | None]:
    """The text of an error's messages, and their codes where they say more than `error_code`."""
    messages = error.messages or []
    texts = [message.message for message in messages if message.message]
    codes = [code for message in messages if (code := _text(message.errorCode)) is not None]
    return "; ".join(texts) or None, codes if any(code != error_code for code in codes) else None
