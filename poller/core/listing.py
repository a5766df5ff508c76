"""Pages of the list of contracts, and how to request the next one. Pure.

Source: docs/facts.md, "IONOS Activity Log API".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urljoin, urlsplit

import msgspec

from poller.core.answers import BadAnswerError
from poller.core.damage import without_broken_elements

_TOTALS = ("total", "totalCount", "totalItems", "totalElements")
_NEXT_LINKS = ("next", "nextLink", "nextPage", "@odata.nextLink")
_FLAGS = ("hasMore", "has_more", "hasNext", "isTruncated")
_TOKENS = ("nextPageToken", "nextToken", "nextCursor", "cursor")
_NUMBER = re.compile(rb'"?([0-9]{1,20})"?')
_MAX_REST_BYTES = 64 * 1024
# Bounds memory, as each element becomes an object. This is thirty fields for each of MAX_CONTRACTS contracts.
_MAX_COMMAS = 1_500_000
_MAX_UNREADABLE = 1000
MAX_CONTRACTS = 50_000
"""Maximum number of contracts per account. It bounds memory and time if the list never ends."""


class ContractList(list[str]):
    """Contract numbers as text, in the API's order, each once. `missing` says in words what the list lacks; "" if complete."""

    def __init__(self, numbers: Sequence[str] = (), missing: str = "") -> None:
        super().__init__(numbers)
        self.missing = missing


class _Items(msgspec.Struct, gc=False):
    items: msgspec.Raw = msgspec.Raw()


class _Contract(msgspec.Struct, gc=False):
    id: msgspec.Raw


_decode_items = msgspec.json.Decoder(_Items).decode
_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_contract = msgspec.json.Decoder(_Contract).decode


class ContractPage(NamedTuple):
    """One answer of `GET /contracts`: the numbers in it, and what it says about further pages."""

    numbers: list[str]
    offset: int | None = None
    limit: int | None = None
    total: int | None = None
    next_link: str = ""
    has_more: bool = False  # another field, a flag or a token, says that there is more
    unreadable_count: int = 0
    """How many of its elements name no contract. The others are read nevertheless."""

    def missing(self, count: int) -> str:
        """What is missing, in words, if nothing new comes after `count` contracts; "" if the API's own total is reached."""
        if self.total is not None and self.total <= count:
            return ""
        if self.total is not None:
            return f"the list of contracts names a total of {self.total:,}, but only {count:,} could be read"
        return f"the list of contracts says that it has more than {count:,}, but they could not be read"


def parse_contracts(body: bytes, link_header: str = "") -> ContractPage:
    """Read one answer of `GET /contracts`, with its header `Link` if it has one.

    `{"items": null}` is an empty list.
    Raises: BadAnswerError if it is not a list (or `{"items": [...]}`) of objects with a numeric `id`.
    """
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        is_list = body.lstrip().startswith(b"[")
        raw_items = body if is_list else _decode_items(body).items
        # The rest of the answer, without the list, holds the counts and links. It must be small.
        rest = b"[]" if is_list else body.replace(raw_items, b"null", 1) if raw_items else body
        if len(rest) > _MAX_REST_BYTES or (raw_items and bytes(raw_items).count(b",") > _MAX_COMMAS):
            raise BadAnswerError("it holds far more than contracts")
        answer = json.loads(rest)
        elements = (_decode_elements(raw_items) if bytes(raw_items) != b"null" else []) if raw_items else None
    except msgspec.ValidationError as error:
        raise BadAnswerError(
            f"neither a list of contracts nor an object with `items`, each with an `id`: {error}"
        ) from error
    except (ValueError, RecursionError) as error:
        mended, _ = without_broken_elements(body)
        if mended != body:
            return parse_contracts(mended, link_header)
        raise BadAnswerError(f"not the JSON that was expected: {error}") from error
    if elements is None:
        raise BadAnswerError("neither a list of contracts nor an object with `items`")
    numbers, unreadable_count = _numbers_of(elements)
    linked = re.search(r'<([^<>]*)>\s*;[^,<]*\brel="?next\b', link_header)
    header_link = linked[1] if linked else ""
    if not isinstance(answer, dict):
        return ContractPage(numbers, next_link=header_link, unreadable_count=unreadable_count)
    places = [
        answer,
        *(value for key in ("page", "paging", "pagination", "meta") if isinstance(value := answer.get(key), dict)),
    ]
    return ContractPage(
        numbers,
        _first_count(places, ("offset",)),
        _first_count(places, ("limit", "size", "pageSize")),
        _first_count(places, _TOTALS),
        _next_link(places) or header_link,
        any(place.get(key) is True for place in places for key in _FLAGS)
        or any(place.get(key) for place in places for key in _TOKENS),
        unreadable_count,
    )


def _numbers_of(elements: Sequence[msgspec.Raw]) -> tuple[list[str], int]:
    """The numbers, each once, and how many elements have none.  Raises: BadAnswerError if none has one, or too many lack one."""
    found: dict[str, None] = {}
    unreadable_count = 0
    for element in elements:
        try:
            number = _NUMBER.fullmatch(_decode_contract(element).id)
        except msgspec.DecodeError:
            number = None
        if number is not None:
            found[str(int(number[1]))] = None
        else:
            unreadable_count += 1
        if len(found) > MAX_CONTRACTS or unreadable_count > _MAX_UNREADABLE:
            break
    if unreadable_count > _MAX_UNREADABLE or (unreadable_count and not found):
        raise BadAnswerError("it lists what has no numeric `id`, and so is no contract")
    return list(found), unreadable_count


def _first_count(places: Sequence[dict[str, Any]], keys: Sequence[str]) -> int | None:
    for place in places:
        for key in keys:
            value = place.get(key)
            if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value
    return None


def _next_link(places: Sequence[dict[str, Any]]) -> str:
    for place in places:
        candidates = [place.get(key) for key in _NEXT_LINKS]
        for key in ("_links", "links"):
            links = place.get(key)
            if isinstance(links, dict):
                candidates += [links.get(name) for name in _NEXT_LINKS]
            elif isinstance(links, list):
                candidates += [link for link in links if isinstance(link, dict) and link.get("rel") == "next"]
        for link in candidates:
            target = link.get("href") if isinstance(link, dict) else link
            if isinstance(target, str) and target:
                return target
    return ""


def next_contracts(page: ContractPage, count: int, url: str) -> dict[str, str | int] | None:
    """The query for the next page of `url`, after `count` contracts so far; None at the end of the list.

    Only the query of a link is used, and only if its scheme, host and path are those of `url`.
    """
    is_short = page.total is not None and count < page.total
    if not (is_short or page.next_link or page.has_more):
        return None
    target, here = urlsplit(urljoin(url, page.next_link)), urlsplit(url)
    if page.next_link and target.query and target[:3] == here[:3]:
        return dict(parse_qsl(target.query, keep_blank_values=True))
    limit = page.limit or len(page.numbers)
    offset = count if page.offset is None else page.offset + len(page.numbers)
    return {"offset": offset, "limit": limit} if limit else {"offset": offset}
