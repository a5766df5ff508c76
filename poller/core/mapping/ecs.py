"""An entry as an event of the Elastic Common Schema, ECS 9. Pure.

Nothing is invented: an accepted request is not a success. Data without a field in the standard is below `ionos.activitylog`, with
the API's names. Known values there are always texts, so that a field has only one type in an index. Unknown values are below
`ionos.activitylog.unmapped`, which should be stored but not indexed.
Source: https://www.elastic.co/docs/reference/ecs; docs/facts.md, "IONOS Activity Log API".
"""

from __future__ import annotations

import msgspec

from poller.core.mapping.facts import Facts, What, Who
from poller.core.mapping.ocsf import activity_of, status_of
from poller.core.mapping.table import Derived, Row, Standard, Values

VERSION = "9.4.0"

_TYPES = {1: "creation", 2: "access", 3: "change", 4: "deletion"}
_OUTCOMES = {1: "success", 2: "failure"}
_NOT_TIMED = ["no_usable_time"]


class _Resource(msgspec.Struct, omit_defaults=True, gc=False):
    type: str | None = None
    id: str | None = None
    action: list[str] | None = None


def _of_who(who: Who) -> Values:
    return [who.user] if who.user else None, [who.ip] if who.ip else None


def _of_what(what: What) -> Values:
    if what.type == "GenerateToken":
        category, kind = "authentication", "creation"
    else:
        category = "iam" if (what.action or "").lower().startswith("sec.") else "configuration"
        kind = _TYPES.get(activity_of(what)[0], "info")
    return ["api", category], [kind], what.action or what.type, _OUTCOMES.get(status_of(what)[0], "unknown")


def _of_entry(facts: Facts) -> Values:
    own = facts.own
    resources = None
    if own.resources:
        resources = [
            _Resource(resource.type, None if resource.id is None else str(resource.id), resource.action or None)
            for resource in own.resources
        ]
    queue_ref = None if own.queue_ref is None else str(own.queue_ref)
    odd_time = None if own.original_time == own.time else own.original_time
    return resources, queue_ref, odd_time, None if own.is_timed else _NOT_TIMED


_ROWS = (
    Row("@timestamp", "`meta.time`", "time"),
    Row("ecs.version", "", constant=VERSION),
    Row("event.kind", "", constant="event"),
    Row("event.module", "", constant="ionos"),
    Row("event.dataset", "", constant="ionos.activitylog"),
    Row("event.id", "`@uuid`; if it is missing or masked, the entry's identity in this program", "uid"),
    Row(
        "event.category",
        "api, and: authentication if `event.type` is GenerateToken, iam if the first action begins with `sec.`,"
        " configuration for all else",
        "category",
    ),
    Row(
        "event.type",
        "creation if `event.type` is GenerateToken; else creation, access, change or deletion, by the last word of the first"
        " `event.resources[].action[]`, else by `event.param.action`; info for all else, also for a POST to a path that ends in"
        " start, stop or reboot",
        "kind",
    ),
    Row("event.action", "the first `event.resources[].action[]`, else `event.type`", "event_action"),
    Row(
        "event.outcome",
        "success if `event.status` is DONE; failure if it is FAILED, or `event.type` is Error or RequestFailed; unknown for"
        " all else, also for an accepted request, which has not succeeded",
        "outcome",
    ),
    Row("event.provider", "`event.param.sourceService`, else `principal.sourceService`", "service"),
    Row("event.reason", "`event.message`", "message"),
    Row("event.created", "when the entry was collected", "collected"),
    Row("event.original", "the entry, to the byte", "line"),
    Row("user.name", "`principal.identity.username`", "user"),
    Row("user.email", "the same, if it is an e-mail address", "email"),
    Row("source.address", "`principal.sourceIP`", "address"),
    Row("source.ip", "the same, if it is an IP address", "ip"),
    Row("cloud.provider", "", constant="ionos"),
    Row("cloud.account.id", "the contract that the entry was collected from", "contract"),
    Row("http.request.method", "`event.param.action`, if it is a method", "method"),
    Row("http.request.id", "`meta.requestId`", "request_id"),
    Row("http.response.status_code", "`event.param.error.httpStatus`", "http_status"),
    Row("url.path", "`event.param.uri` up to its query", "path"),
    Row("url.query", "its query", "query"),
    Row("url.original", "`event.param.uri`, if it is no path with or without a query", "odd_uri"),
    Row("error.code", "`event.param.errorCode`", "error_code"),
    Row("error.message", "`event.param.error.messages[].message`", "error_message"),
    Row("related.user", "the user", "users"),
    Row("related.ip", "the IP address", "ips"),
    Row(
        "tags",
        "`no_usable_time`, if the entry has none: `@timestamp` is the last second of the window that it was read in",
        "tags",
    ),
    Row("ionos.activitylog.@uuid", "`@uuid`, if several entries have the same, or it is masked", "shared_uid"),
    Row("ionos.activitylog.meta.time", "`meta.time`, if it is not written like `@timestamp`", "odd_time"),
    Row("ionos.activitylog.meta.queueRefId", "`meta.queueRefId`", "queue_ref_text"),
    Row("ionos.activitylog.meta.transactionId", "`meta.transactionId`", "transaction_id"),
    Row("ionos.activitylog.meta.auditVersion", "`meta.auditVersion`", "audit_version"),
    Row(
        "ionos.activitylog.principal.sourceService",
        "`principal.sourceService`, if it is another one",
        "principal_service",
    ),
    Row("ionos.activitylog.principal.serviceHost", "`principal.serviceHost`", "service_host"),
    Row("ionos.activitylog.principal.identity.contractNumber", "`principal.identity.contractNumber`", "account"),
    Row("ionos.activitylog.event.type", "`event.type`", "type"),
    Row("ionos.activitylog.event.status", "`event.status`", "status"),
    Row("ionos.activitylog.event.param.action", "`event.param.action`, if it is not written as a method", "word"),
    Row("ionos.activitylog.event.param.initiator", "`event.param.initiator`", "initiator"),
    Row(
        "ionos.activitylog.event.param.error.codes",
        "`event.param.error.messages[].errorCode`, if there are others",
        "error_codes",
    ),
    Row("ionos.activitylog.event.resources", "`event.resources[]`: `type`, `id`, `action`", "resources_text"),
)

ECS = Standard(
    {0: _ROWS},
    lambda what: 0,
    who=Derived(("users", "ips"), _of_who),
    what=Derived(("category", "kind", "event_action", "outcome"), _of_what),
    own=Derived(("resources_text", "queue_ref_text", "odd_time", "tags"), _of_entry),
    rest="ionos.activitylog.unmapped",
)
