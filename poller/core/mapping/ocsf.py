"""An entry as an event of OCSF 1.8.0: API Activity (class 6003), or Authentication (3002) for a token. Pure.

Profiles: cloud, datetime. Nothing is invented: an accepted request is not a success. Data without a field is in `unmapped`.
Source: https://schema.ocsf.io/1.8.0/classes/api_activity and .../authentication; docs/facts.md, "IONOS Activity Log API".
"""

from __future__ import annotations

import msgspec

from poller.core.mapping.facts import Facts, What, Who
from poller.core.mapping.shapes import FAILURES, Resource
from poller.core.mapping.table import Derived, Row, Standard, Values

VERSION = "1.8.0"
API_ACTIVITY, AUTHENTICATION = 6003, 3002
UNKNOWN = "Unknown"

_CREATE, _READ, _UPDATE, _DELETE = (1, "Create"), (2, "Read"), (3, "Update"), (4, "Delete")
_OTHER = 99
ACTIVITIES = {
    **dict.fromkeys(("create", "reserve", "add", "POST"), _CREATE),
    **dict.fromkeys(("read", "get", "list", "GET", "HEAD"), _READ),
    **dict.fromkeys(("update", "change", "activate", "attach", "PUT", "PATCH"), _UPDATE),
    **dict.fromkeys(("delete", "release", "remove", "DELETE"), _DELETE),
}
"""Number and name, by the last word of a dotted action or by the method."""


class _Observable(msgspec.Struct, gc=False):
    name: str
    type_id: int
    type: str
    value: str


class _Data(msgspec.Struct, gc=False):
    action: list[str]


class _Resource(msgspec.Struct, omit_defaults=True, gc=False):
    uid: str
    type: str | None = None
    data: _Data | None = None


def activity_of(what: What) -> tuple[int, str]:
    """The activity: number and name, from the first dotted action, otherwise from the method, command or other word."""
    if what.action:
        word = what.action.rpartition(".")[2] or what.action
        return ACTIVITIES.get(word.lower(), (_OTHER, word))
    if what.method and not what.command:
        return ACTIVITIES.get(what.method, (_OTHER, what.method))
    word = what.command or what.word or ""
    return (_OTHER, word) if word else (0, UNKNOWN)


def status_of(what: What) -> tuple[int, str]:
    """The status: number and name. A request that was accepted has not succeeded."""
    word, is_acceptance = (what.status or "").upper(), what.type == "RequestAccepted"
    if word == "FAILED" or what.type in FAILURES:
        return 2, "Failure"
    if word == "DONE" and not is_acceptance:
        return 1, "Success"
    raw = what.status or (what.type if is_acceptance else None)
    return (_OTHER, raw) if raw else (0, UNKNOWN)


def _of_who(who: Who) -> Values:
    return (
        None if who.user else who.service or UNKNOWN,
        None if who.ip else who.service or UNKNOWN,
        who.account or (None if who.user else who.contract),
        who.service or UNKNOWN,
    )


def _table_for(what: What) -> int:
    return AUTHENTICATION if what.type == "GenerateToken" else API_ACTIVITY


def _of_what(what: What) -> Values:
    table = _table_for(what)
    activity = (3, "Authentication Ticket") if table == AUTHENTICATION else activity_of(what)
    severity = (3, "Medium") if what.type in FAILURES else (1, "Informational")
    status = status_of(what)
    raw_status = what.status if what.status != status[1] else None
    return table * 100 + activity[0], *activity, *severity, *status, raw_status


def _of_entry(facts: Facts) -> Values:
    who, what, own, _ = facts
    is_token = _table_for(what) == AUTHENTICATION
    seen = [_Observable("src_endpoint.ip", 2, "IP Address", who.ip)] if who.ip else []
    if who.user:
        seen.append(_Observable("user.name" if is_token else "actor.user.name", 4, "User Name", who.user))
    resources: list[_Resource] = []
    left: list[Resource] = []
    for resource in own.resources or ():
        if is_token or not resource.id:
            left.append(resource)
        else:
            uid = str(resource.id)
            resources.append(_Resource(uid, resource.type, _Data(resource.action) if resource.action else None))
            seen.append(_Observable("resources.uid", 10, "Resource UID", uid))
    operation = what.action or _operation(what, own.path)
    return operation, seen or None, resources or None, left or None, None if own.is_timed else _NOT_TIMED


def _operation(what: What, path: str | None) -> str:
    request = " ".join(part for part in (what.method or what.word, path) if part)
    return request or what.type or UNKNOWN


_NOT_TIMED = ["the entry has no usable time of its own: time is the last second of the window that it was read in"]


_COMMON = (
    Row(
        "activity_id",
        "last word of the first `event.resources[].action[]`, else `event.param.action`; 99 for a POST to a path that ends in"
        " start, stop or reboot",
        "activity_id",
    ),
    Row("activity_name", "its name; of an activity that OCSF has no number for, the word itself", "activity_name"),
    Row("type_uid", "100 * `class_uid` + `activity_id`", "type_uid"),
    Row("time", "`meta.time`, in milliseconds since 1970", "time_ms"),
    Row("time_dt", "`meta.time`", "time"),
    Row("severity_id", "3 if `event.type` is Error or RequestFailed, else 1", "severity_id"),
    Row("severity", "its name", "severity"),
    Row(
        "status_id",
        "1 if `event.status` is DONE; 2 if it is FAILED, or `event.type` is Error or RequestFailed; 99 for any other status"
        " and for an accepted request, which has not succeeded; 0 if there is none",
        "status_id",
    ),
    Row("status", "its name; if that is 99, `event.status` as it is, or RequestAccepted without one", "status_name"),
    Row("status_code", "`event.param.errorCode`", "error_code"),
    Row("status_detail", "`event.param.error.messages[].message`", "error_message"),
    Row("message", "`event.message`", "message"),
    Row("actor.user.name", "`principal.identity.username`", "user"),
    Row("actor.user.email_addr", "the same, if it is an e-mail address", "email"),
    Row("actor.user.account.uid", "`principal.identity.contractNumber`", "account"),
    Row("actor.app_name", "without a user: the service, else Unknown", "app_name"),
    Row(
        "api.operation",
        "the first `event.resources[].action[]`, else `event.param.action` and the path, else `event.type`, else Unknown",
        "operation",
    ),
    Row("api.service.name", "`event.param.sourceService`, else `principal.sourceService`", "service"),
    Row("api.request.uid", "`meta.requestId`", "request_id"),
    Row("api.response.code", "`event.param.error.httpStatus`", "http_status"),
    Row("api.response.error", "`event.param.errorCode`", "error_code"),
    Row("api.response.error_message", "`event.param.error.messages[].message`", "error_message"),
    Row("http_request.http_method", "`event.param.action`, if it is a method", "method"),
    Row("http_request.url.path", "`event.param.uri` up to its query", "path"),
    Row("http_request.url.query_string", "its query", "query"),
    Row("http_request.url.url_string", "`event.param.uri`, if it is no path with or without a query", "odd_uri"),
    Row("src_endpoint.ip", "`principal.sourceIP`, if it is an IP address", "ip"),
    Row("src_endpoint.svc_name", "without one: the service, else Unknown", "endpoint"),
    Row("cloud.provider", "", constant="IONOS Cloud"),
    Row("cloud.account.uid", "the contract that the entry was collected from", "contract"),
    Row("cloud.account.type_id", "Other: OCSF has no number for a contract of IONOS", constant=99),
    Row("cloud.account.type", "", constant="IONOS Contract"),
    Row("metadata.version", "of OCSF", constant=VERSION),
    Row("metadata.product.name", "", constant="Activity Log"),
    Row("metadata.product.vendor_name", "", constant="IONOS Cloud"),
    Row("metadata.profiles", "", constant=["cloud", "datetime"]),
    Row("metadata.log_name", "", constant="ionos.activitylog"),
    Row("metadata.log_version", "`meta.auditVersion`", "audit_version"),
    Row("metadata.uid", "`@uuid`; if it is missing or masked, the entry's identity in this program", "uid"),
    Row("metadata.correlation_uid", "`meta.requestId`", "request_id"),
    Row("metadata.event_code", "`event.type`", "type"),
    Row("metadata.original_time", "`meta.time` as it is written", "original_time"),
    Row("metadata.logged_time", "when the entry was collected, in milliseconds since 1970", "collected_ms"),
    Row("metadata.logged_time_dt", "the same", "collected"),
    Row("metadata.tenant_uid", "the contract", "contract"),
    Row("metadata.labels", "says so if `time` is not the entry's own", "labels"),
    Row("observables", "address, user, and the resources' ids", "observables"),
    Row("raw_data", "the entry, to the byte", "line"),
    Row("unmapped.@uuid", "`@uuid`, if several entries have the same, or it is masked", "shared_uid"),
    Row("unmapped.meta.queueRefId", "`meta.queueRefId`", "queue_ref"),
    Row("unmapped.meta.transactionId", "`meta.transactionId`", "transaction_id"),
    Row(
        "unmapped.principal.sourceIP",
        "`principal.sourceIP`, if `src_endpoint.ip` is not written like it",
        "odd_address",
    ),
    Row("unmapped.principal.sourceService", "`principal.sourceService`, if it is another one", "principal_service"),
    Row("unmapped.principal.serviceHost", "`principal.serviceHost`", "service_host"),
    Row("unmapped.event.status", "`event.status`, if `status` does not say it", "raw_status"),
    Row("unmapped.event.param.action", "`event.param.action`, if it is not written as a method", "word"),
    Row("unmapped.event.param.initiator", "`event.param.initiator`", "initiator"),
    Row(
        "unmapped.event.param.error.codes",
        "`event.param.error.messages[].errorCode`, if there are others",
        "error_codes",
    ),
    Row("unmapped.event.resources", "resources without an id; of a token, all", "left_resources"),
)
_OF_API_ACTIVITY = (
    Row("category_uid", "Application Activity", constant=6),
    Row("class_uid", "API Activity", constant=API_ACTIVITY),
    *_COMMON,
    Row("resources", "`event.resources[]`: `uid` is its id, `type` its type, `data.action` its actions", "resources"),
)
_OF_AUTHENTICATION = (
    Row("category_uid", "Identity & Access Management", constant=3),
    Row("class_uid", "Authentication: `event.type` is GenerateToken, and `activity_id` 3", constant=AUTHENTICATION),
    *_COMMON,
    Row("user.name", "`principal.identity.username`", "user"),
    Row("user.email_addr", "the same, if it is an e-mail address", "email"),
    Row("user.account.uid", "`principal.identity.contractNumber`; without a user, else the contract", "owner"),
    Row("service.name", "the service, else Unknown", "service_or_unknown"),
)

OCSF = Standard(
    {API_ACTIVITY: _OF_API_ACTIVITY, AUTHENTICATION: _OF_AUTHENTICATION},
    _table_for,
    who=Derived(("app_name", "endpoint", "owner", "service_or_unknown"), _of_who),
    what=Derived(
        (
            *("type_uid", "activity_id", "activity_name"),
            *("severity_id", "severity", "status_id", "status_name", "raw_status"),
        ),
        _of_what,
    ),
    own=Derived(("operation", "observables", "resources", "left_resources", "labels"), _of_entry),
    rest="unmapped",
)
