"""Auditing: the API's own totals against the ledger's counts, and having what is missing read once more.

Cheap where all is well: one small request for a month. Where it is not, halves are asked for down to single hours, and
the second half of a known total is not asked for, so a span costs at most one request for each of its hours. Where totals are
capped, one more for the answer that showed it; and more where the API holds far more than was collected. What counts by the
hour cannot tell is read: the hour that is not over, and everything where the API gives no totals, or says of each only that there
are at least so many.
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

_ROUND = 1000  # what a person would set a limit to is a multiple of this
_HOUR_US = HOUR_SECONDS * 1_000_000


class NoTotalsError(TransientError):
    """The API does not say how many entries it holds, or only that there are at least so many, where it could count them."""


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


class Audited(NamedTuple):
    """What comparing a contract came to: the hours that differ, and what the API refuses or fails at, each oldest first.

    Of all that was compared, `at_api` is how many entries the API counts or showed, and `collected` how many of them we have.
    """

    differences: list[Difference]
    refused: Sequence[Unread] = ()
    at_api: int = 0
    collected: int = 0


def joined(results: Sequence[Audited]) -> Audited:
    """What comparing several spans came to, oldest first."""
    return Audited(
        sorted((row for result in results for row in result.differences), key=lambda row: row.window),
        merged([part for result in results for part in result.refused]),
        sum(result.at_api for result in results),
        sum(result.collected for result in results),
    )


class Parts(NamedTuple):
    """What a span is for an audit; each part is None when it is nothing.

    What lies `before` collecting began is no difference; totals compare the `closed` hours; only reading compares what of the
    last hour is `open`.
    """

    before: Window | None
    closed: Window | None
    open: Window | None

    @property
    def compared(self) -> Window | None:
        """From where to where the span is compared."""
        parts = [part for part in (self.closed, self.open) if part is not None]
        return Window(parts[0].start, parts[-1].end) if parts else None


def parts_of(span: Window, origin: int, now: float, overlap_seconds: int) -> Parts:
    """The parts of a span for a contract whose collecting began at `origin`. Hours that the span touches are looked at whole.

    Nothing younger than the overlap is compared: it may still be on its way.
    """
    end = min(span.end, int(now - overlap_seconds))
    start, cut = max(_hour_of(span.start), origin), _hour_of(end)
    return Parts(
        before=_window(span.start, min(origin, span.end)),
        closed=_window(start, cut),
        open=_window(max(start, cut), end),
    )


def compared_by(span: Window, origin: int, now: float, overlap_seconds: int, result: Audited) -> Compared | None:
    """What an audit of a span has compared of the hours that are over; None where there is none."""
    closed = parts_of(span, origin, now, overlap_seconds).closed
    if closed is None:
        return None
    differing = {_hour_of(row.window.start) for row in result.differences}
    for part in result.refused:
        differing.update(_hours_of(part.window))
    return Compared(closed, tuple(sorted(differing)))


def around(window: Window, gaps: Sequence[Window]) -> tuple[list[Window], list[Window]]:
    """What of closed hours to compare by totals, and what to read: the rest of the hours in which a gap lies."""
    touched = [whole_hours(gap) for gap in gaps]
    by_totals = without(window, touched)
    return by_totals, [part for hours in without(window, by_totals) for part in without(hours, gaps)]


def _window(start: int, end: int) -> Window | None:
    return Window(start, end) if start < end else None


def whole_hours(span: Window) -> Window:
    """The hours that a span touches."""
    return Window(_hour_of(span.start), -_hour_of(-span.end))


def is_due(last: int, now: int, interval_seconds: int) -> bool:
    """Whether a regular audit's time has come; also when the clock was set back behind the last one."""
    return not 0 <= now - last < interval_seconds


def self_audit_span(row: Contract, now: int, span_seconds: int) -> Window | None:
    """What a regular audit looks at, from a whole hour on; None where there is nothing yet.

    It reaches back a span from the audit before, however long ago that was, and from where that one ended: an entry that became
    visible a whole span late, just after that audit, or while nothing ran, still lies in this one. So does a gap that closed
    since. What is beyond the watermark is the next poll's, and no gap.
    """
    audited = min(now, row.audited_at, row.compared_end or now)  # the one before may have come while we were far behind
    start = max(row.origin, _hour_of(audited - span_seconds))
    end = min(now, row.watermark)
    return Window(start, end) if start < end else None


def remembered(span: Window, counts: Mapping[int, Count]) -> Window | None:
    """What of a span comes after the last hour of which the ledger has forgotten an entry, as nothing could be repaired there."""
    start = max([span.start, *(hour + HOUR_SECONDS for hour, count in counts.items() if count.forgotten)])
    return _window(start, span.end)


class Auditor:
    """Compares one contract.

    `present` are seconds of which the API serves one if it serves anything: only then is what it refuses set apart (none: never).
    """

    def __init__(self, source: Source, contract: str, limits: Limits, present: tuple[Window, ...] = ()) -> None:
        self._source = source
        self._contract = contract
        self._limits = limits
        self._present = present
        self._is_capping = False  # whether an answer has shown that the API does not count to the end

    def compare(self, span: Window, counts: Mapping[int, Count]) -> Audited:
        """The hours of the span that differ by totals: pages of one entry. What the API refuses or fails at is set apart.

        `counts` is the ledger's, by the start of the hour.
        Raises: what `Source.page` raises, unless it concerns a part of the span alone; NoTotalsError.
        """
        months = tile(whole_hours(span)._replace(end=span.end))
        parts = [month._replace(start=max(month.start, span.start)) for month in months]
        return joined([self._compare_served(part, counts) for part in parts])

    def _compare_served(self, window: Window, counts: Mapping[int, Count], *, is_retried: bool = True) -> Audited:
        """Compare what the API serves of a window. All of it is set apart where its ends and its middle are refused."""
        try:
            total = self._total(window, is_retried=is_retried)
        except ASKING_ERRORS as error:
            unread = self._unread(window, error)
            if unread is None:
                raise
            is_retried = unread.kind == REFUSED  # it has just been tried often enough
            halves = _halves(window)
            if halves and self._is_any_served(window, is_retried=is_retried):
                return joined([self._compare_served(half, counts, is_retried=is_retried) for half in halves])
            if not any(self._is_served(second) for second in self._present):
                raise
            return Audited([], [unread])
        return self._compare(window, counts, total)

    def _unread(self, window: Window, error: PollerError) -> Unread | None:
        """The window as one that is set apart for this error; None where that concerns more than the window."""
        return None if isinstance(error, NoTotalsError) else unread_by(window, error, 0, is_failing=True)

    def _is_any_served(self, window: Window, *, is_retried: bool) -> bool:
        """Whether the API answers for one of these hours of a window: the last (what is refused is mostly old), first, middle."""
        hours = _hours_of(window)
        some = [
            Window(max(window.start, hour), min(window.end, hour + HOUR_SECONDS))
            for hour in (hours[-1], hours[0], hours[len(hours) // 2])
        ]
        return any(self._is_served(hour, is_retried=is_retried) for hour in dict.fromkeys(some))

    def _is_served(self, window: Window, *, is_retried: bool = True) -> bool:
        """Whether the API answers a query for this window at all.  Raises: what concerns more than that."""
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
        """The hours of the span with entries that were not collected, oldest first, by reading every entry that there is.

        What the API shows and cannot be read is not collected either; what it refuses or fails at is set apart.
        `unseen` gives those of the entries that the ledger does not know; where it has forgotten some, their number has to do.
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
                # At least one entry in each of its hours: a repair has them read, and then a gap opens.
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
        """How many entries the API holds in a span, and whether it counts that far, else it is at least so many.

        One request a month.  Raises: what `Source.page` raises.
        """
        pages = [self._source.page(self._contract, month, 0, 1) for month in tile(span)]
        count = sum(len(page.events) if page.total is None else page.total for page in pages)
        return count, not any(page.total is None or self._is_capped(page) for page in pages)

    def count(self, window: Window) -> int:
        """How many entries the API holds in a window; bisected where it does not count so far, read where it does not count."""
        try:
            total = self._total(window)
        except NoTotalsError:
            return sum(len(reading.events) for reading in self._reader().read_all(window))
        if total is not None and not self._is_doubtful(total):
            return total
        if window.seconds == 1:
            return total or self._limits.result_window  # at least: more than the API can tell
        return sum(self.count(half) for half in split(window, 2))

    def count_served(self, windows: Iterable[Window]) -> int:
        """The same of several windows, as far as the API serves them: what it does not is told when it is read.

        Raises: what concerns more than a part of them.
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
            # The whole of it was served, and a half is not.
            return joined([self._compare_served(half, counts) for half in halves])
        return joined([self._compare(first, counts, first_total), self._compare(second, counts, second_total)])

    def _total_if_told(self, window: Window, counts: Mapping[int, Count]) -> int | None:
        """The API's total; not asked for where it would be capped, going by what was collected."""
        if self._is_capping and _halves(window) and _collected(window, counts)[0] >= self._limits.result_window:
            return None
        return self._total(window)

    def _total(self, window: Window, *, is_retried: bool = True) -> int | None:
        """The API's total, or None where it is as far as the API counts.  Raises: NoTotalsError; what `Source.page` raises."""
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
        """Whether a total of which the API says "at least" is where it stops counting. Where it is not, it says so of each."""
        return total >= self._limits.result_window or (total > 0 and total % _ROUND == 0)

    def _is_doubtful(self, total: int) -> bool:
        """Whether a total may be where the API was told to end counting. That it is what we have is believed, but no more."""
        return total > self._limits.result_window and total % _ROUND == 0


def _halves(window: Window) -> tuple[Window, Window] | None:
    """The window cut at the full hour nearest to its middle; None when it lies within one hour."""
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
