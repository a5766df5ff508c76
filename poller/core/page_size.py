"""Finding the page size that the API accepts, if it refuses a query and does not say whether the size is the cause. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

_STATUSES = (400, 413, 416, 422)


def accepted_limit(refused: int, status: int | None, words: str, is_refused: Callable[[int], bool]) -> int:
    """The `limit` to use after the API refused the limit `refused` with these `words`; 0 if the size is not the reason.

    `is_refused` requests that many entries of the present, where only the size can be wrong. The size is the reason if `refused`
    entries are refused there too, and a single one is not. A number in `words` is tried first, otherwise half the limit.
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
