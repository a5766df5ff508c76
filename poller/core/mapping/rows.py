"""An entry as one row for people: who did what to which resource, and with what result. Pure.

Every entry has a row. Fields that the entry lacks are empty.
Source: docs/facts.md, "IONOS Activity Log API".
"""

from __future__ import annotations

from typing import NamedTuple

from poller.core.events import Event
from poller.core.mapping.fields import Fields, Value
from poller.core.mapping.shapes import FAILURES, METHODS
from poller.core.mapping.shorten import format_time_us

_PATHS = (
    "principal.identity.username",
    "event.type",
    "event.status",
    "event.param.action",
    "event.param.errorCode",
    "event.param.error.httpStatus",
    "event.resources[].type",
    "event.resources[].id",
    "event.resources[].action[]",
)
FAILED = "FAILED"


class Row(NamedTuple):
    """One entry. `time` is RFC 3339 in UTC; `what` is the dotted action, otherwise method and type; the others may be empty."""

    time: str
    user: str
    contract: str
    type: str
    what: str
    resource_type: str
    resource_id: str
    result: str

    @property
    def resource(self) -> str:
        """The first resource: its type and its id."""
        return f"{self.resource_type} {self.resource_id}".strip()

    @property
    def has_failed(self) -> bool:
        return self.result.upper().startswith(FAILED)


_fields = Fields(_PATHS)


def row_of(contract: str, event: Event) -> Row:
    """The row of an event of this contract."""
    user, kind, status, action, code, http_status, types, ids, actions = _fields.read(event.line)
    name = _first(kind)
    return Row(
        time=format_time_us(event.time_us),
        user=_first(user),
        contract=contract,
        type=name,
        what=_first(actions) or " ".join(filter(None, [_method(action), name])),
        resource_type=_first(types),
        resource_id=_first(ids),
        result=_result(name, _first(status), _first(http_status) or _first(code)),
    )


def _first(value: Value) -> str:
    texts = [value] if isinstance(value, str) else value or []
    return next((text for text in texts if text), "")


def _method(value: Value) -> str:
    """The HTTP method in `param.action`; "" for any other word, for example `http`."""
    text = _first(value).upper()
    return text if text in METHODS else ""


def _result(kind: str, status: str, code: str) -> str:
    status = status or (FAILED if kind in FAILURES or code else "")
    return f"{status} {code}".strip()
