"""Auditing: the API's own totals against the ledger's counts, and having what is missing read once more.

Cheap where all is well: one small request for a whole span. Where it is not, halves are asked for down to single hours, and
the second half of a known total is not asked for, so a span never costs more than one request for each of its hours.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from poller.errors import TransientError
from poller.reading import Source
from poller.store.ledger import HOUR_SECONDS, Count
from poller.windows import Window, split

log = logging.getLogger(__name__)


class Difference(NamedTuple):
    """An hour (or the part of it that was asked for) in which the API and the ledger disagree.

    `forgotten` of the `collected` are only known by number: their identities were pruned.
    """

    contract: str
    window: Window
    at_api: int
    collected: int
    forgotten: int

    @property
    def missing(self) -> int:
        """How many entries the API holds that were not collected; 0 where we have more than it shows."""
        return max(0, self.at_api - self.collected)


def closed_span(span: Window, origin: int, now: float, overlap_seconds: int) -> Window | None:
    """The whole hours of a span that are over, for long enough that ordinary lateness is too. None when there are none.

    The hour in which collecting began counts from that second, `origin`.
    """
    start = span.start // HOUR_SECONDS * HOUR_SECONDS
    if start < origin < start + HOUR_SECONDS:
        start = origin
    end = min(span.end, int(now - overlap_seconds)) // HOUR_SECONDS * HOUR_SECONDS
    return Window(start, end) if end > start else None


class Auditor:
    """Compares one contract. `source` is asked for totals only: pages of one entry."""

    def __init__(self, source: Source, contract: str, result_window: int) -> None:
        self._source = source
        self._contract = contract
        self._result_window = result_window

    def compare(self, span: Window, counts: Mapping[int, Count]) -> list[Difference]:
        """The hours of the span that differ, oldest first. `counts` is the ledger's, by the start of the hour.

        Raises: what `Source.page` raises; TransientError when the API gives no totals.
        """
        return self._compare(span, counts, self._total(span))

    def count(self, window: Window) -> int:
        """How many entries the API holds in a window, however many; bisected where it does not count so far."""
        total = self._total(window)
        if total is not None:
            return total
        if window.seconds == 1:
            return self._result_window  # at least: more than the API can tell
        return sum(self.count(half) for half in split(window, 2))

    def _compare(self, window: Window, counts: Mapping[int, Count], total: int | None) -> list[Difference]:
        collected, forgotten = _collected(window, counts)
        if total == collected:
            return []
        halves = _halves(window)
        if halves is None:
            at_api = total if total is not None else self.count(window)
            return [] if at_api == collected else [Difference(self._contract, window, at_api, collected, forgotten)]
        first, second = halves
        first_total = self._total(first)
        is_known = total is not None and first_total is not None
        second_total = max(0, (total or 0) - (first_total or 0)) if is_known else self._total(second)
        return self._compare(first, counts, first_total) + self._compare(second, counts, second_total)

    def _total(self, window: Window) -> int | None:
        """The API's total, or None where it only says that there are at least so many."""
        page = self._source.page(self._contract, window, 0, 1)
        if page.total is None:
            raise TransientError(
                "the API gives no totals, so nothing can be compared",
                contract=self._contract,
                hint="read the range again instead: fetch --since repeats nothing",
            )
        return None if page.is_capped or page.total >= self._result_window else page.total


def _halves(window: Window) -> tuple[Window, Window] | None:
    """The window cut at the full hour nearest to its middle; None when it lies within one hour."""
    first_hour = window.start // HOUR_SECONDS
    last_hour = (window.end - 1) // HOUR_SECONDS
    if first_hour == last_hour:
        return None
    cut = (first_hour + last_hour + 1) // 2 * HOUR_SECONDS
    return Window(window.start, cut), Window(cut, window.end)


def _collected(window: Window, counts: Mapping[int, Count]) -> tuple[int, int]:
    first = window.start // HOUR_SECONDS * HOUR_SECONDS
    hours = range(first, window.end, HOUR_SECONDS)
    inside = [counts[hour] for hour in hours if hour in counts]
    return sum(count.collected for count in inside), sum(count.forgotten for count in inside)
