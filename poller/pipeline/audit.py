"""Auditing: the API's own totals against the ledger's counts, and having what is missing read once more.

Cheap where all is well: one small request for a whole span. Where it is not, halves are asked for down to single hours, and
the second half of a known total is not asked for, so a span costs at most one request for each of its hours. Where totals are
capped, one more for the answer that showed it; and more where the API holds far more than was collected.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

from poller.errors import TransientError
from poller.reading import USUAL_CAP, Source
from poller.store.contracts import Contract
from poller.store.ledger import HOUR_SECONDS, Count
from poller.windows import Window, split

log = logging.getLogger(__name__)

_ROUND = 1000  # what a person would set a limit to is a multiple of this


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


def is_due(last: int, now: int, interval_seconds: int) -> bool:
    """Whether a regular audit's time has come; also when the clock was set back behind the last one."""
    return not 0 <= now - last < interval_seconds


def self_audit_span(row: Contract, now: int, span_seconds: int, retention_seconds: int) -> Window | None:
    """What a regular audit looks at, from a whole hour on; None where there is nothing yet.

    It reaches back a span from the audit before, however long ago that was: an entry that became visible a whole span late,
    just after that audit, or while nothing ran, still lies in this one. Only what the ledger has forgotten is let be. What is
    beyond the watermark is the next poll's, and no gap.
    """
    since = max(min(now, row.audited_at) - span_seconds, now - retention_seconds)
    start = max(row.origin, since // HOUR_SECONDS * HOUR_SECONDS)
    end = min(now, row.watermark)
    return Window(start, end) if start < end else None


class Auditor:
    """Compares one contract. `source` is asked for totals only: pages of one entry."""

    def __init__(self, source: Source, contract: str, result_window: int) -> None:
        self._source = source
        self._contract = contract
        self._result_window = result_window
        self._is_capping = False  # whether an answer has shown that the API does not count to the end

    def compare(self, span: Window, counts: Mapping[int, Count]) -> list[Difference]:
        """The hours of the span that differ, oldest first. `counts` is the ledger's, by the start of the hour.

        Raises: what `Source.page` raises; TransientError when the API gives no totals.
        """
        return self._compare(span, counts, self._total(span))

    def count(self, window: Window) -> int:
        """How many entries the API holds in a window, however many; bisected where it does not count so far."""
        total = self._total(window)
        if total is not None and not self._is_doubtful(total):
            return total
        if window.seconds == 1:
            return total or self._result_window  # at least: more than the API can tell
        return sum(self.count(half) for half in split(window, 2))

    def _compare(self, window: Window, counts: Mapping[int, Count], total: int | None) -> list[Difference]:
        collected, forgotten = _collected(window, counts)
        if total == collected:
            return []
        if total is not None and self._is_doubtful(total):
            total = None
        halves = _halves(window)
        if halves is None:
            at_api = total if total is not None else self.count(window)
            return [] if at_api == collected else [Difference(self._contract, window, at_api, collected, forgotten)]
        first, second = halves
        first_total = self._total_if_told(first, counts)
        if total is not None and first_total is not None:
            second_total: int | None = max(0, total - first_total)
        else:
            second_total = self._total_if_told(second, counts)
        return self._compare(first, counts, first_total) + self._compare(second, counts, second_total)

    def _total_if_told(self, window: Window, counts: Mapping[int, Count]) -> int | None:
        """The API's total; not asked for where it would be capped, going by what was collected."""
        if self._is_capping and _halves(window) and _collected(window, counts)[0] >= self._result_window:
            return None
        return self._total(window)

    def _total(self, window: Window) -> int | None:
        """The API's total, or None where it only says that there are at least so many."""
        page = self._source.page(self._contract, window, 0, 1)
        if page.total is None:
            raise TransientError(
                "the API gives no totals, so nothing can be compared",
                contract=self._contract,
                hint="read the range again instead: fetch --since repeats nothing",
            )
        if page.is_capped or page.total in (self._result_window, USUAL_CAP):
            self._is_capping = True
            return None
        return page.total

    def _is_doubtful(self, total: int) -> bool:
        """Whether a total may be where the API was told to end counting. That it is what we have is believed, but no more."""
        return total > self._result_window and total % _ROUND == 0


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
