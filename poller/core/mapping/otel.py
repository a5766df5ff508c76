"""An entry as an OpenTelemetry log record. Pure, and without a library: the sink encodes it.

The body is the exact line, so nothing is lost. The attributes are a few fields that people search by. Missing ones are left out.
Source: OpenTelemetry's log data model and semantic conventions (`user.*`, `client.*`, `http.*`, `url.*`, `error.*`, `cloud.*`,
`log.record.uid`).
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

from poller.core.events import OutboxEvent
from poller.core.mapping.fields import Fields, Value
from poller.core.mapping.shapes import FAILURES, METHODS

RESOURCE = {"cloud.provider": "ionos", "service.name": "ionos-activitylog"}
"""The attributes that all records share. Receivers make labels of them, so there must be few."""
EVENT_NAME = "ionos.activitylog"
INFO, ERROR = 9, 17
SEVERITIES = {INFO: "INFO", ERROR: "ERROR"}

# Attribute -> the path in an entry that it is read from. A path with a list gives a list of texts.
ATTRIBUTES = {
    "user.name": "principal.identity.username",
    "client.address": "principal.sourceIP",
    "http.request.method": "event.param.action",
    "url.path": "event.param.uri",
    "error.type": "event.param.errorCode",
    "ionos.event.type": "event.type",
    "ionos.event.status": "event.status",
    "ionos.event.action": "event.resources[].action[]",
    "ionos.resource.type": "event.resources[].type",
    "ionos.resource.id": "event.resources[].id",
    "ionos.request.id": "meta.requestId",
    "ionos.service": "principal.sourceService",
}
_END_OF_PATH = re.compile(r"[?#]")
_fields = Fields(ATTRIBUTES.values())

Attribute = str | list[str]


class Record(NamedTuple):
    """A log record. Times are in nanoseconds; `severity` is an OpenTelemetry severity number; texts are valid Unicode."""

    time_ns: int
    observed_ns: int
    event_name: str
    severity: int
    body: str
    attributes: dict[str, Attribute]


def record_of(event: OutboxEvent) -> Record:
    """The record of an event. Its `log.record.uid` depends only on the entry, so a repeat has the same."""
    values: dict[str, Value] = dict(zip(ATTRIBUTES, _fields.read(event.line), strict=True))
    kind, status = values["ionos.event.type"], values["ionos.event.status"]
    method = values["http.request.method"]
    values["http.request.method"] = method.upper() if isinstance(method, str) and method.upper() in METHODS else None
    if isinstance(path := values["url.path"], str):
        values["url.path"] = _path_of(path)
    ordinal = f"-{event.ordinal}" if event.ordinal else ""
    attributes: dict[str, Attribute] = {
        "log.record.uid": f"{event.identity.hex()}{ordinal}",
        "cloud.account.id": event.contract,
    }
    attributes.update({name: _unicode(value) for name, value in values.items() if value})
    return Record(
        # Equal entries are a nanosecond apart: some receivers merge records of the same time and body.
        time_ns=event.time_us * 1000 + min(event.ordinal, 999),
        observed_ns=event.collected_at * 1_000_000_000,
        event_name=f"{EVENT_NAME}.{_one(kind)}" if isinstance(kind, str) and kind else EVENT_NAME,
        severity=ERROR if kind in FAILURES or str(status).upper() == "FAILED" else INFO,
        body=str(event.line, "utf-8", "replace"),
        attributes=attributes,
    )


def _path_of(uri: str) -> str:
    if uri.startswith("/"):  # urlsplit would read `//a` as a host, and remove tabs
        return _END_OF_PATH.split(uri, 1)[0]
    try:
        return urlsplit(uri).path
    except ValueError:  # brackets without a valid address in them
        return uri


def _unicode(value: str | list[str]) -> Attribute:
    return _one(value) if isinstance(value, str) else [_one(text) for text in value]


def _one(text: str) -> str:
    """The text without lone surrogates, which UTF-8 cannot encode."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
