"""The facts of an entry that OCSF and ECS share: who it was, what kind of event it is, and the entry's own values. Pure.

Nothing is invented: a missing value is None. Values that no fact holds are in `rest`, as the API gave them; each standard has a
place for them.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import msgspec

from poller.core.events import OutboxEvent
from poller.core.mapping.redact import MASK, is_redacted
from poller.core.mapping.shapes import (
    METHODS,
    Error,
    Json,
    Principal,
    Resource,
    decode_entry,
    decode_principal,
    take_apart,
    written_version,
)
from poller.core.mapping.shorten import format_time_us
from poller.core.times import time_us_of

COMMANDS = frozenset({"start", "stop", "reboot"})
"""A POST to a path that ends in one of these creates nothing."""

REMEMBERED = 1024
"""Maximum number of users, and of kinds of events, with cached results: a few of them make most of a log."""
REMEMBERED_BYTES = 4096
"""Nothing is cached for an entry longer than this, to bound memory."""

# Source: OCSF 1.8.0, type email_t.
_EMAIL = re.compile(r"[a-zA-Z0-9!#$%&'*+\-/=?^_`{|}~.]+@[a-zA-Z0-9-]+\.[a-zA-Z0-9.-]+")

# Source: RFC 3986, appendix B: scheme and host, which a URI may have before its path, and the path.
_PATH = re.compile(r"(?:[^:/?#]+:)?(?://[^/?#]*)?([^?#]*)")


class Who(NamedTuple):
    """Who did it, and from where."""

    contract: str
    user: str | None
    email: str | None
    """The user, if that is an e-mail address."""
    account: str | None
    """The user's own contract."""
    ip: str | None
    address: str | None
    """The source address as it is written, whether it is an IP address or not."""
    odd_address: str | None
    """The same, if `ip` differs from it or is None."""
    service: str | None
    principal_service: str | None
    """The principal's service, if it differs from `service`."""
    service_host: str | None


class What(NamedTuple):
    """What kind of event it is."""

    type: str | None
    status: str | None
    action: str | None
    """The first dotted action of its resources, for example `vr.server.create`."""
    method: str | None
    """`param.action`, if it is an HTTP method."""
    word: str | None
    """`param.action`, if it is not an HTTP method, or not in capitals."""
    command: str | None
    """The last part of the path, if it is a POST and the part is one of COMMANDS."""
    initiator: str | None
    audit_version: str | None


class Own(NamedTuple):
    """The values that differ from entry to entry."""

    original_time: str | None
    request_id: str | None
    queue_ref: int | str | None
    transaction_id: str | None
    message: str | None
    http_status: int | None
    resources: list[Resource] | None
    error_code: str | None
    error_message: str | None
    """The messages of its error, joined."""
    error_codes: list[str] | None
    """The codes of those messages, if any differs from `error_code`."""
    path: str | None
    query: str | None
    odd_uri: str | None
    """The URI as it is written, if it is not a plain path, with or without a query."""
    shared_uid: str | None
    """`@uuid`, if it is not `uid` because several entries share it or it is masked."""
    is_timed: bool
    """Whether the time is the entry's own."""
    uid: str
    """`@uuid`; if it is missing, shared with another entry, or masked, the event's identity in hexadecimal."""
    time_ms: int
    time: str
    collected_ms: int
    collected: str
    line: str
    """The exact line of the entry."""


class Facts(NamedTuple):
    """All facts of an entry. `rest` keeps the nesting and the values of the entry."""

    who: Who
    what: What
    own: Own
    rest: Json


# These read several fields of an entry at once.
_of_meta = attrgetter("time", "requestId", "queueRefId", "transactionId", "auditVersion")
_of_event = attrgetter("type", "status", "message", "resources", "param")
_of_param = attrgetter("action", "uri", "initiator", "sourceService", "errorCode", "error")


def read_facts(event: OutboxEvent, line: bytes) -> Facts:
    """The facts of an event; `line` is the entry as it was collected.

    Raises: msgspec.DecodeError for a line that is not a JSON object, or has a lone surrogate.
    """
    is_remembered = len(event.line) <= REMEMBERED_BYTES
    rest: Json = {}
    try:
        entry = decode_entry(event.line)
        known = _who_known if is_remembered else _who_known.__wrapped__
        who = known(bytes(entry.principal), event.contract, entry.event.param.sourceService)
    except msgspec.ValidationError:
        entry, principal, rest = take_apart(event.line)
        who = _who(principal, event.contract, entry.event.param.sourceService)
    own_time, request_id, queue_ref, transaction_id, audit_version = _of_meta(entry.meta)
    if type(audit_version) is float:
        audit_version = written_version(event.line)
    kind, status, message, resources, param = _of_event(entry.event)
    action, uri, initiator, _, error_code, error = _of_param(param)
    path, query, odd_uri = _uri_parts(uri) if uri else (None, None, None)
    last = _last_part(uri) if uri and action and action.upper() == "POST" else None
    what_of = _what_known if is_remembered else _what_known.__wrapped__
    first = _first_action(resources) if resources else None
    what = what_of(kind, status, first, action, last, initiator, audit_version)
    error_message = error_codes = None
    if error_code is not None or error.messages:
        error_code = _text(error_code)
        error_message, error_codes = _messages(error, error_code)
    uid = entry.uuid if type(entry.uuid) is str else _text(entry.uuid)
    shared_uid = uid if event.ordinal or uid == MASK else None
    if not uid or shared_uid:
        uid = event.identity.hex()
    time_us = event.time_us
    time = format_time_us(time_us)
    own = Own(
        own_time or None,
        request_id or None,
        queue_ref or None,
        transaction_id or None,
        message or None,
        error.httpStatus,
        resources or None,
        error_code,
        error_message,
        error_codes,
        path,
        query,
        odd_uri,
        shared_uid,
        own_time == time or _is_own(time_us, own_time),
        uid,
        time_us // 1000,
        time,
        *_collected(event.collected_at),
        line.decode(),
    )
    return Facts(who, what, own, rest)


def _is_own(time_us: int, written: str | None) -> bool:
    """Whether an event's time is the entry's own, if the written one is different, masked or missing.

    A redaction may have changed it. A time assigned by the program has no fraction of a second (`sifting.each_once`).
    """
    is_given = time_us % 1_000_000 == 0 and not is_redacted(written or "")
    return not is_given or time_us_of(written) == time_us


@lru_cache(16)
def _collected(second: int) -> tuple[int, str]:
    return second * 1000, format_time_us(second * 1_000_000)


@lru_cache(REMEMBERED)
def _what_known(
    kind: str | None,
    status: str | None,
    first_action: str | None,
    action: str | None,
    last: str | None,
    initiator: str | None,
    audit_version: str | int | None,
) -> What:
    """`last` is the last part of the path of a POST."""
    method = action.upper() if action else None
    if method not in METHODS:
        method = None
    return What(
        kind or None,
        status or None,
        first_action,
        method,
        None if method == action else action or None,
        last if last in COMMANDS else None,
        initiator or None,
        _text(audit_version),
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


def _text(value: str | int | None) -> str | None:
    return (value or None) if value is None or isinstance(value, str) else str(value)


def _first_action(resources: list[Resource]) -> str | None:
    for resource in resources:
        for action in resource.action or ():
            if action:
                return action
    return None


def _uri_parts(uri: str) -> tuple[str | None, str | None, str | None]:
    """Path, query, and None; or None, None, and the URI, if it is not a plain path with or without a query."""
    path, mark, query = uri.partition("?")
    if not path.startswith("/") or "#" in uri or (mark and not query):
        return None, None, uri
    return path, query or None, None


def _last_part(uri: str) -> str:
    """The last non-empty part of the path, of a path or a whole URL."""
    match = _PATH.match(uri)
    return match[1].rstrip("/").rpartition("/")[2] if match else ""


def _messages(error: Error, error_code: str | None) -> tuple[str | None, list[str] | None]:
    """The text of an error's messages, and their codes if any differs from `error_code`."""
    messages = error.messages or []
    texts = [message.message for message in messages if message.message]
    codes = [code for message in messages if (code := _text(message.errorCode)) is not None]
    return "; ".join(texts) or None, codes if any(code != error_code for code in codes) else None
