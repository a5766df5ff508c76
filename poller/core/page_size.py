"""The page size that the API takes, where it refuses a query and its words do not tell whether that is for the size. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

_STATUSES = (400, 413, 416, 422)


def accepted_limit(refused: int, status: int | None, words: str, is_refused: Callable[[int], bool]) -> int:
    """The `limit` to ask with after the API refused this one with these words; 0 where the size is not the reason.

    `is_refused` asks for so many entries of the present, which nothing but the size can be wrong with: it is the reason if that
    many are refused there, too, and a single one is not. A number in the words is tried before half of it.
    """
    if refused <= 1 or status not in _STATUSES or not is_refused(refused) or is_refused(1):
        return 0
    limit = _smaller(refused, words)
    while limit > 1 and is_refused(limit):
        limit = _smaller(limit, words)
    return limit


def _smaller(limit: int, words: str) -> int:
    named = [int(number) for number in re.findall(r"\d{1,9}", words.partition(": ")[2])]
    return max((number for number in named if 1 <= number < limit), default=limit // 2)
