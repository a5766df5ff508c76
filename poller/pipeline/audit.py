"""Auditing: comparing the API's totals with the counts of the ledger.

Cheap if nothing is missing: one small request for a month. Otherwise the span is halved down to single hours. The second half
of a known total is not requested, so a span costs at most one request per hour; one more if totals are capped, and more if the
API holds far more than was collected. Where totals cannot decide, entries are read: in the hour that is not over, and everywhere
if the API gives no totals, or only minimum totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from poller.core.answers import Page
from poller.core.density import USUAL_CAP
from poller.core.errors import ASKING_ERRORS, PollerError, TransientError
from poller.core.events import Event
from poller.core.gaps import FAILING, REFUSED, Unread, merged, without
from poller.core.hours import Compared
from poller.core.narrowing import Conduct, is_for_all, unread_by
from poller.core.reading import Source, WindowReader
from poller.core.windows import Limits, Window, split, tile
from poller.store.rows import HOUR_SECONDS, Contract, Count

_ROUND = 1000  # a person sets limits to a multiple of this
_HOUR_US = HOUR_SECONDS * 1_000_000


class NoTotalsError(TransientError):
    """The API gives no total, or only a minimum although it could count."""


class Difference(NamedTuple):
    """An hour (or the part of it that was asked for) in which the API and the ledger disagree.

    For `forgotten` of the `collected` only the number is known: their identities were pruned.
    """

    contract: str
    window: Window
    at_api: int
    collected: int
    forgotten: int

    @property
    def missing(self) -> int:
        """How many entries of the API were not collected; 0 if we have more than it shows."""
        return max(0, self.at_api - self.collected)


class Audited(NamedTuple):
    """The result of comparing a contract: the differing hours, and the spans that the API refuses or fails at, oldest first.

    For all that was compared, `at_api` is the number of entries at the API, and `collected` how many of them we have.
    """

    differences: list[Difference]
    refused: Sequence[Unread] = ()
    at_api: int = 0
    collected: int = 0


def joined(results: Sequence[Audited]) -> Audited:
    """The joined result of several spans, oldest first."""
    return Audited(
        sorted((row for result in results for row in result.differences), key=lambda row: row.window),
        merged([part for result in results for part in result.refused]),
        sum(result.at_api for result in results),
        sum(result.collected for result in results),
    )


class Parts(NamedTuple):
    """The parts of a span for an audit; a part is None if it is empty.

    The part `before` collecting began is no difference. The `closed` hours are compared by totals, the `open` hour by reading.
    """

    before: Window | None
    closed: Window | None
    open: Window | None

    @property
    def compared(self) -> Window | None:
        """The part of the span that is compared."""
        parts = [part for part in (self.closed, self.open) if part is not None]
        return Window(parts[0].start, parts[-1].end) if parts else None


def parts_of(span: Window, origin: int, now: float, overlap_seconds: int) -> Parts:
    """The parts of a span for a contract whose collecting began at `origin`. Hours that the span touches are compared whole.

    Nothing younger than the overlap is compared, because entries may still arrive there.
    """
    end = min(span.end, int(now - overlap_seconds))
    start, cut = max(_hour_of(span.start), origin), _hour_of(end)
    return Parts(
        before=_window(span.start, min(origin, span.end)),
        closed=_window(start, cut),
        open=_window(max(start, cut), end),
    )


def compared_by(span: Window, origin: int, now: float, overlap_seconds: int, result: Audited) -> Compared | None:
    """The closed hours that an audit of a span has compared; None if there are none."""
    closed = parts_of(span, origin, now, overlap_seconds).closed
    if closed is None:
        return None
    differing = {_hour_of(row.window.start) for row in result.differences}
    for part in result.refused:
        differing.update(_hours_of(part.window))
    return Compared(closed, tuple(sorted(differing)))


def around(window: Window, gaps: Sequence[Window]) -> tuple[list[Window], list[Window]]:
    """The closed hours to compare by totals, and the spans to read: the rest of the hours with a gap."""
    touched = [whole_hours(gap) for gap in gaps]
    by_totals = without(window, touched)
    return by_totals, [part for hours in without(window, by_totals) for part in without(hours, gaps)]


def _window(start: int, end: int) -> Window | None:
    return Window(start, end) if start < end else None


def whole_hours(span: Window) -> Window:
    """The hours that a span touches."""
    return Window(_hour_of(span.start), -_hour_of(-span.end))


def is_due(last: int, now: int, interval_seconds: int) -> bool:
    """Whether a regular audit is due; also if the clock was set back to before the last one."""
    return not 0 <= now - last < interval_seconds


def self_audit_span(row: Contract, now: int, span_seconds: int) -> Window | None:
    """The span of a regular audit, from a whole hour on; None if there is nothing yet.

    It reaches back one span from the end of the previous audit, even if that was long ago. So it includes an entry that became
    visible a whole span late, just after that audit or while nothing ran, and a gap that closed since. The time after the
    watermark belongs to the next poll.
    """
    audited = min(
        now, row.audited_at, row.compared_end or now
    )  # at the previous audit, the watermark may have been far behind
    start = max(row.origin, _hour_of(audited - span_seconds))
    end = min(now, row.watermark)
    return Window(start, end) if start < end else None


def remembered(span: Window, counts: Mapping[int, Count]) -> Window | None:
    """The part of a span after the last hour with forgotten entries, because nothing could be repaired up to there."""
    start = max([span.start, *(hour + HOUR_SECONDS for hour, count in counts.items() if count.forgotten)])
    return _window(start, span.end)


class Auditor:
    """Compares one contract.

    `present`: seconds of which the API serves at least one if it works. Only then are refused spans set apart (none: never).
    """

    def __init__(self, source: Source, contract: str, limits: Limits, present: tuple[Window, ...] = ()) -> None:
        self._source = source
        self._contract = contract
        self._limits = limits
        self._present = present
        self._is_capping = False  # whether an answer has shown that the API caps its totals

    def compare(self, span: Window, counts: Mapping[int, Count]) -> Audited:
        """The hours of the span that differ by totals, from pages of one entry. Refused and failing spans are set apart.

        `counts` is the ledger's, by the start of the hour.
        Raises: what `Source.page` raises, unless it concerns a part of the span alone; NoTotalsError.
        """
        months = tile(whole_hours(span)._replace(end=span.end))
        parts = [month._replace(start=max(month.start, span.start)) for month in months]
        return joined([self._compare_served(part, counts) for part in parts])

    def _compare_served(self, window: Window, counts: Mapping[int, Count], *, is_retried: bool = True) -> Audited:
        """Compare the served part of a window. The window is set apart if its ends and its middle are refused."""
        try:
            total = self._total(window, is_retried=is_retried)
        except ASKING_ERRORS as error:
            unread = self._unread(window, error)
            if unread is None:
                raise
            is_retried = unread.kind == REFUSED  # it was just retried often enough
            halves = _halves(window)
            if halves and self._is_any_served(window, is_retried=is_retried):
                return joined([self._compare_served(half, counts, is_retried=is_retried) for half in halves])
            if not any(self._is_served(second) for second in self._present):
                raise
            return Audited([], [unread])
        return self._compare(window, counts, total)

    def _unread(self, window: Window, error: PollerError) -> Unread | None:
        """The window as a part that is set apart for this error; None if the error concerns more than the window."""
        return None if isinstance(error, NoTotalsError) else unread_by(window, error, 0, is_failing=True)

    def _is_any_served(self, window: Window, *, is_retried: bool) -> bool:
        """Whether the API answers for one hour of a window: the last (mostly old spans are refused), the first, the middle."""
        hours = _hours_of(window)
        some = [
            Window(max(window.start, hour), min(window.end, hour + HOUR_SECONDS))
            for hour in (hours[-1], hours[0], hours[len(hours) // 2])
        ]
        return any(self._is_served(hour, is_retried=is_retried) for hour in dict.fromkeys(some))

    def _is_served(self, window: Window, *, is_retried: bool = True) -> bool:
        """Whether the API answers a query for this window.  Raises: errors that concern more than the window."""
        try:
            self._source.page(self._contract, window, 0, 1, is_retried=is_retried)
        except ASKING_ERRORS as error:
            if self._unread(window, error) is None:
                raise
            return False
        return True

    def read(
        self,
        span: Window,
        counts: Mapping[int, Count],
        unseen: Callable[[Sequence[Event]], Sequence[Event]],
    ) -> Audited:
        """The hours of the span with entries that were not collected, oldest first, found by reading all entries.

        Unreadable entries count as not collected; refused and failing spans are set apart. `unseen` returns the entries that the
        ledger does not know; if it has forgotten some, numbers are compared.
        Raises: what `WindowReader.read` raises.
        """
        at_api: Counter[int] = Counter()
        missing: Counter[int] = Counter()
        refused: list[Unread] = []
        for reading in self._reader().read_all(span):
            at_api.update(_hour_of_event(event) for event in reading.events)
            missing.update(_hour_of_event(event) for event in unseen(reading.events))
            for part in reading.unread:
                if part.kind in (REFUSED, FAILING):
                    refused.append(part)
                    continue
                # Count at least one entry in each of its hours: a repair reads them, and then a gap opens.
                unread = dict.fromkeys(_hours_of(part.window), max(1, len(part.entries)))
                at_api.update(unread)
                missing.update(unread)
        found = []
        ours = 0
        for hour, total in sorted(at_api.items()):
            known = counts.get(hour, Count(0, 0))
            collected = known.collected if known.forgotten else total - missing[hour]
            ours += collected
            if collected < total:
                window = Window(max(span.start, hour), min(span.end, hour + HOUR_SECONDS))
                found.append(Difference(self._contract, window, total, collected, known.forgotten))
        return Audited(found, merged(refused), at_api.total(), ours)

    def _reader(self) -> WindowReader:
        return WindowReader(self._source, self._contract, self._limits, Conduct(self._present, is_failing=True))

    def count_roughly(self, span: Window) -> tuple[int, bool]:
        """How many entries the API holds in a span, and whether this is exact or a minimum.

        One request a month.  Raises: what `Source.page` raises.
        """
        pages = [self._source.page(self._contract, month, 0, 1) for month in tile(span)]
        count = sum(len(page.events) if page.total is None else page.total for page in pages)
        return count, not any(page.total is None or self._is_capped(page) for page in pages)

    def count(self, window: Window) -> int:
        """How many entries the API holds in a window. It is bisected if totals are capped, and read if there are none."""
        try:
            total = self._total(window)
        except NoTotalsError:
            return sum(len(reading.events) for reading in self._reader().read_all(window))
        if total is not None and not self._is_doubtful(total):
            return total
        if window.seconds == 1:
            return total or self._limits.result_window  # a minimum: the API cannot count further
        return sum(self.count(half) for half in split(window, 2))

    def count_served(self, windows: Iterable[Window]) -> int:
        """The same for several windows, without the parts that the API does not serve: reading reports those.

        Raises: errors that concern more than a part of them.
        """
        counts: list[int] = []
        refusal: PollerError | None = None
        for window in windows:
            try:
                counts.append(self.count(window))
            except ASKING_ERRORS as error:
                if self._unread(window, error) is None:
                    raise
                halves = _halves(window)
                if halves and self._is_any_served(window, is_retried=False):
                    counts.append(self.count_served(halves))
                elif is_for_all(error):
                    refusal = error
                else:
                    counts.append(0)
        if refusal is not None and not counts:
            raise refusal
        return sum(counts)

    def _compare(self, window: Window, counts: Mapping[int, Count], total: int | None) -> Audited:
        collected, forgotten = _collected(window, counts)
        if total == collected:
            return Audited([], at_api=total, collected=collected)
        if total is not None and self._is_doubtful(total):
            total = None
        halves = _halves(window)
        if halves is None:
            at_api = total if total is not None else self.count(window)
            difference = Difference(self._contract, window, at_api, collected, forgotten)
            return Audited([difference] if at_api != collected else [], at_api=at_api, collected=collected)
        first, second = halves
        try:
            first_total = self._total_if_told(first, counts)
            if total is not None and first_total is not None:
                second_total: int | None = max(0, total - first_total)
            else:
                second_total = self._total_if_told(second, counts)
        except ASKING_ERRORS as error:
            if self._unread(window, error) is None:
                raise
            # The whole window was served, but a half is not.
            return joined([self._compare_served(half, counts) for half in halves])
        return joined([self._compare(first, counts, first_total), self._compare(second, counts, second_total)])

    def _total_if_told(self, window: Window, counts: Mapping[int, Count]) -> int | None:
        """The API's total. It is not requested if it would be capped, judging by the collected number."""
        if self._is_capping and _halves(window) and _collected(window, counts)[0] >= self._limits.result_window:
            return None
        return self._total(window)

    def _total(self, window: Window, *, is_retried: bool = True) -> int | None:
        """The API's total, or None if it is capped.  Raises: NoTotalsError; what `Source.page` raises."""
        page = self._source.page(self._contract, window, 0, 1, is_retried=is_retried)
        if page.total is None or (page.is_capped and not self._may_be_cap(page.total)):
            exact = "" if page.total is None else "exact "
            raise NoTotalsError(
                f"the API gives no {exact}totals, so nothing can be compared",
                contract=self._contract,
                hint="`ionos-poller audit` reads the entries instead",
            )
        if self._is_capped(page):
            self._is_capping = True
            return None
        return page.total

    def _is_capped(self, page: Page) -> bool:
        return page.is_capped or page.total in (self._limits.result_window, USUAL_CAP)

    def _may_be_cap(self, total: int) -> bool:
        """Whether an "at least" total is the cap of the API. If not, the API says "at least" with every total."""
        return total >= self._limits.result_window or (total > 0 and total % _ROUND == 0)

    def _is_doubtful(self, total: int) -> bool:
        """Whether a total may be the configured cap of the API. If it equals our number it is accepted, otherwise not."""
        return total > self._limits.result_window and total % _ROUND == 0


def _halves(window: Window) -> tuple[Window, Window] | None:
    """The two parts of the window, cut at the full hour nearest to its middle; None within one hour."""
    first_hour = window.start // HOUR_SECONDS
    last_hour = (window.end - 1) // HOUR_SECONDS
    if first_hour == last_hour:
        return None
    cut = (first_hour + last_hour + 1) // 2 * HOUR_SECONDS
    return Window(window.start, cut), Window(cut, window.end)


def _hour_of(second: int) -> int:
    """The start of the hour that a second lies in."""
    return second // HOUR_SECONDS * HOUR_SECONDS


def _hours_of(window: Window) -> range:
    """The starts of the hours that a window touches."""
    return range(_hour_of(window.start), window.end, HOUR_SECONDS)


def _hour_of_event(event: Event) -> int:
    return event.time_us // _HOUR_US * HOUR_SECONDS


def _collected(window: Window, counts: Mapping[int, Count]) -> tuple[int, int]:
    inside = [counts[hour] for hour in _hours_of(window) if hour in counts]
    return sum(count.collected for count in inside), sum(count.forgotten for count in inside)
