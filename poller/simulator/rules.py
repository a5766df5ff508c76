"""The rules of the Activity Log API: they turn a request into the answer of the real API, or of one with oddities. No sockets.

Source: docs/facts.md, "IONOS Activity Log API".
"""

from __future__ import annotations

import base64
import hmac
import random
import re
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from poller.simulator.answers import Answer, Request, api_error, json_answer
from poller.simulator.faults import Fault
from poller.simulator.log import ContractLog, Page
from poller.simulator.settings import SimulatorSettings

BASE_PATH = "/activitylog/v1"
TOTAL_CAP = 10_000
_DEFAULT_LIMIT = 20
_DATE = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?", re.ASCII)
_FOREVER_MS = 1 << 53


def path_kind(path: str) -> tuple[str, str]:
    """The part of the API: `root`, `contracts`, `entries` or `unknown`; and the contract the path names."""
    parts = [part for part in path.removeprefix(BASE_PATH).split("/") if part]
    if not parts:
        return "root", ""
    if parts[0] != "contracts" or len(parts) > 2:
        return "unknown", ""
    return ("entries", parts[1]) if len(parts) == 2 else ("contracts", "")


def _is_authorised(header: str, settings: SimulatorSettings) -> bool:
    basic = base64.b64encode(f"{settings.username}:{settings.password}".encode()).decode()
    accepted = (f"Bearer {settings.token}", f"Basic {basic}")
    return any(hmac.compare_digest(header.encode(), one.encode()) for one in accepted)


def _parse_date_ms(text: str) -> int | None:
    if not _DATE.fullmatch(text):
        return None
    try:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000
    except ValueError:
        return None


class _BadQueryError(Exception):
    """The query breaks a rule of the API; args: status, error code, message."""


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, "")
    if name not in query:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _BadQueryError(400, "VALIDATION", f"[{name}] must be a number of 0 or more")
    return int(text)


def _date(query: Mapping[str, str], name: str, default_ms: int) -> int:
    if name not in query:
        return default_ms
    time_ms = _parse_date_ms(query[name])
    if time_ms is None:
        raise _BadQueryError(400, "VALIDATION", f"[{name}] must be yyyy-MM-dd or yyyy-MM-dd'T'HH:mm:ss'Z'")
    return time_ms


def _find(
    log: ContractLog,
    query: Mapping[str, str],
    settings: SimulatorSettings,
    refused_limit: int,
    oddities: Mapping[str, Fault],
) -> Page:
    start_ms, end_ms = _date(query, "dateStart", 0), _date(query, "dateEnd", _FOREVER_MS)
    offset = _number(query, "offset", 0)
    limit = _number(query, "limit", _DEFAULT_LIMIT)
    if refused_limit and limit > refused_limit:
        raise _BadQueryError(400, "VALIDATION", f"limit must not exceed {refused_limit}")
    limit = min(limit, settings.max_limit)
    if settings.max_range_days and end_ms - start_ms > settings.max_range_days * 86_400_000:
        raise _BadQueryError(400, "VALIDATION", f"the range must not exceed {settings.max_range_days} days")
    if offset + limit > settings.result_window:
        raise _BadQueryError(
            settings.result_window_status,
            "RESULT_WINDOW",
            "Result window is too large, from + size must be less than or equal to: "
            f"[{settings.result_window}] but was [{offset + limit}]",
        )
    if (old := oddities.get("old")) and start_ms < (time.time() - old.seconds) * 1000:
        raise _BadQueryError(old.status, "VALIDATION", f"dateStart must not be older than {old.seconds:.0f} seconds")
    if dense := oddities.get("dense"):
        if offset >= dense.count:
            raise _BadQueryError(dense.status, "RESULT_WINDOW", f"offset must be less than {dense.count}")
        limit = min(limit, dense.count - offset)
    if "shuffle" in oddities:
        whole = log.page(start_ms, end_ms, 0, _FOREVER_MS)
        random.shuffle(whole.refs)
        return whole._replace(refs=whole.refs[offset : offset + limit])
    return log.page(start_ms, end_ms, offset, limit, oldest_first=settings.oldest_first)


def _render(log: ContractLog, page: Page, total: int, settings: SimulatorSettings, spoilt: Mapping[str, int]) -> bytes:
    if settings.shape == "hits" and settings.ids != "hit" and page.refs and not spoilt:
        return log.joined(page, b'{"hits":{"total":%d,"hits":[{"_source":' % total, b'},{"_source":', b"}]}}")
    bodies = _spoil(log.bodies(page), page, spoilt)
    if settings.shape != "hits":
        items = b"[%s]" % b",".join(bodies)
        return items if settings.shape == "list" else b'{"items":%s}' % items
    if settings.ids == "hit":
        hits = [b'{"_id":"%s","_source":%s}' % hit for hit in zip(log.ids(page), bodies, strict=True)]
    else:
        hits = [b'{"_source":%s}' % body for body in bodies]
    return b'{"hits":{"total":%d,"hits":[%s]}}' % (total, b",".join(hits))


def _spoil(bodies: list[bytes], page: Page, spoilt: Mapping[str, int]) -> list[bytes]:
    """The entries of a page, some of them unusable. `spoilt`: an n by kind; every n-th entry is spoilt, always the same ones."""
    null, nan = spoilt.get("null", 0), spoilt.get("nan", 0)
    for place, (ref, _) in enumerate(page.refs):
        if null and ref % null == 0:
            bodies[place] = b"null"
        elif nan and ref % nan == 0:
            bodies[place] = b'{"value":NaN,' + bodies[place].lstrip(b"{ \n")
    return bodies


def _indented(body: bytes) -> bytes:
    """The body with white space in it; unchanged if it is not JSON."""
    try:
        return msgspec.json.format(body, indent=2)
    except msgspec.DecodeError:
        return body


def _list_contracts(
    numbers: Sequence[int], request: Request, settings: SimulatorSettings, size: int, base_url: str
) -> Answer:
    """The list of contracts: whole, or a page of `size` by offset and limit, with the total and a link to the next page."""
    url = f"{base_url}{BASE_PATH}/contracts"
    items = [{"id": number, "type": "contracts", "href": f"{url}/{number}"} for number in numbers]
    if not size:
        return json_answer(200, {"items": items} if settings.shape == "items" else items)
    offset = int(request.query.get("offset", "0"))
    size = min(size, int(request.query.get("limit", str(size))))
    page = {"items": items[offset : offset + size], "offset": offset, "limit": size, "total": len(items)}
    if offset + size < len(items):
        page["_links"] = {"next": f"{url}?offset={offset + size}&limit={size}"}
    return json_answer(200, page)


def answer_api(
    request: Request,
    logs: Mapping[int, ContractLog],
    settings: SimulatorSettings,
    *,
    base_url: str,
    is_total_capped: bool = False,
    refused_limit: int = 0,
    list_page: int = 0,
    unlisted: Collection[str] = (),
    oddities: Mapping[str, Fault] = {},
) -> Answer:
    """The answer of the API to a GET below its base path.

    A `limit` above `refused_limit` is refused; 0: none is. The list of contracts comes in pages of `list_page` (0: whole),
    without the contracts in `unlisted`. `oddities`: the faults of `faults.ODDITIES` that hit this request, by kind.
    """
    kind, contract = path_kind(request.path)
    if request.method != "GET":
        return api_error(405, "METHOD_NOT_ALLOWED", f"{request.method} is not supported")
    if kind == "root":
        return json_answer(200, {"name": "CLOUD API", "version": "1.0"})
    if not _is_authorised(request.headers.get("authorization", ""), settings):
        return api_error(401, "UNAUTHORIZED", "The provided credentials are invalid or expired")
    if kind == "unknown":
        return api_error(404, "NOT_FOUND", f"{request.path} does not exist")
    if kind == "contracts":
        numbers = [number for number in logs if number not in settings.unlisted and str(number) not in unlisted]
        return _list_contracts(numbers, request, settings, list_page, base_url)
    if not (contract.isascii() and contract.isdigit() and int(contract) in logs):
        return api_error(404, "NOT_FOUND", f"contract {contract} does not exist")
    if int(contract) in settings.forbidden:
        return api_error(403, "FORBIDDEN", "The user lacks the privilege ACCESS_ACTIVITY_LOG for this contract")
    if settings.raw_body:
        return Answer(200, settings.raw_body.encode())
    log = logs[int(contract)]
    try:
        page = _find(log, request.query, settings, refused_limit, oddities)
    except _BadQueryError as error:
        return api_error(*error.args)
    caps = [cap for cap in (settings.total_cap, TOTAL_CAP if is_total_capped else 0) if cap]
    total = min([page.total + ("miscount" in oddities), *caps])
    spoilt = {kind: oddities[kind].count for kind in ("null", "nan") if kind in oddities}
    body = _render(log, page, total, settings, spoilt)
    return Answer(200, _indented(body) if settings.indented else body)
