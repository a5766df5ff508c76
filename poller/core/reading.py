"""Reading one window, page after page. The result is the window with the parts that cannot be read, or how to split it.

A sweep requests pages from offset 0, moves on by the entries received, and ends when the API's own total is reached. It is
proven complete if the total did not change, as many entries came as it says, and none came twice. Otherwise the sweep is
repeated: an entry that becomes visible meanwhile shifts the pages, so some entries come twice, and equal entries without
an id cannot be told apart. The entries of all sweeps together are accepted once they account for the API's count. One
window is in memory at a time, and one that is too heavy is split.

A window that cannot be read whole is split, down to a second. Of such a second all served entries are returned, and it is
marked as unread. An error concerns the window only if the API serves the present (`narrowing`); otherwise it is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from poller.core.amounts import plural
from poller.core.answers import Page, Unreadable
from poller.core.density import dense_part, is_capped, parts_needed, too_dense
from poller.core.errors import (
    ASKING_ERRORS,
    BodyTooLargeError,
    PollerError,
    TransientError,
    UnusableAnswerError,
)
from poller.core.events import Event
from poller.core.gaps import DENSE, FAILING, REFUSED, UNREADABLE, UNSTABLE, Unread, merged
from poller.core.narrowing import CAREFUL, Conduct, Narrowing, is_for_all, unread_by
from poller.core.sifting import all_of, each_once, empty_if_repeated, has_repeats, is_by_time, span_of, told_apart
from poller.core.windows import Limits, Window, around, split, split_around, tile

_MAX_SWEEPS = 5
_FEW_SWEEPS = 2
_LONG_SECONDS = 20 * 86_400  # a whole month is long, most pieces of a split month are not
_LOOK_ENTRIES = 20
_MIB = 1024 * 1024
# A second cannot be split, so up to this much of it is held in memory, or as much as a window may weigh if that is more.
_SECOND_BYTES = 24 * _MIB
# Only a window that cannot be split becomes heavier than this and than its share. A few of them at once would fill the memory.
_HEAVY_BYTES = 4 * _MIB
_MOST_SKIPPED = 8  # unreadable entries in a row; after more, the whole window counts as unreadable


class Reading(NamedTuple):
    """A window as read: its events, oldest first and each once; the number of entries received; the parts that were not read."""

    events: list[Event]
    fetched: int
    unread: tuple[Unread, ...] = ()

    @property
    def is_complete(self) -> bool:
        return not self.unread


class Split(NamedTuple):
    """The window cannot be read at once: read these windows instead, which cover all of it without overlap."""

    windows: list[Window]


class Source(Protocol):
    """Where pages come from: the Activity Log client, or a table in a test."""

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page: ...


class _Sweep(NamedTuple):
    events: list[Event]
    unreadable: list[Unreadable]
    first_total: int | None
    last_total: int | None
    page_count: int
    cut: Unread | None = None  # set if there are more entries that the API does not serve

    @property
    def size(self) -> int:
        return len(self.events) + len(self.unreadable)

    @property
    def is_proven(self) -> bool:
        """Nothing shifted while we read: the totals agree with each other and with the entries, and no entry came twice."""
        is_total_met = self.first_total == self.last_total and self.last_total in (None, self.size)
        return is_total_met and len({event.identity for event in self.events}) == len(self.events)


class WindowReader:
    """Reads windows of one contract. It keeps the page size that suits the weight of the entries, from window to window."""

    def __init__(
        self,
        source: Source,
        contract: str,
        limits: Limits,
        conduct: Conduct = CAREFUL,
        before_heavy: Callable[[Window], None] = lambda window: None,
    ) -> None:
        """`before_heavy` is called before a window takes more memory than its share; it may raise."""
        self._before_heavy = before_heavy
        self._source = source
        self._contract = contract
        self._limits = limits
        self._conduct = conduct
        self._page_size = limits.page_size
        self._narrowing = Narrowing(is_exact=conduct.is_exact and not conduct.is_trial)
        self._sweeps = 1 if conduct.is_trial else _MAX_SWEEPS if conduct.is_exact else _FEW_SWEEPS
        self._present = conduct.present
        self._is_present_known = False
        self._skipped = 0  # unreadable entries in a row

    def read(self, window: Window, *, is_again: bool = False) -> Reading | Split:
        """Read a window, or return how to split it. A window of one second is never split: its readable entries are returned.

        Raises: the errors of `Source.page`, unless they concern this window alone.
        """
        if window in self._conduct.samples:
            return self._sampled(window, self._conduct.samples[window])
        try:
            return self._read(window)
        except ASKING_ERRORS as error:
            unread = self._unread(window, error)
            if unread is None:
                raise
            if unread.kind == REFUSED and not is_again and not self._conduct.is_trial:
                return self.read(window, is_again=True)  # it may have been a short fault of the API
            if not self._is_present_served(error):
                raise
            result = self._narrowed(unread)
            if unread.kind == FAILING and not self._is_present_served(error):  # the whole API fails
                raise
            return result

    def read_all(self, span: Window) -> Iterator[Reading]:
        """A span of any length, oldest first, one window in memory at a time.  Raises: the errors of `read`."""
        todo = list(tile(span))[::-1]
        while todo:
            result = self.read(todo.pop())
            if isinstance(result, Split):
                todo.extend(reversed(result.windows))
            else:
                yield result

    def _read(self, window: Window) -> Reading | Split:
        shown: dict[bytes, Event] = {}
        before: Counter[bytes] | None = None
        sweeps = self._sweeps
        number = 0
        while True:
            number += 1
            sweep = self._sweep(window)
            if isinstance(sweep, Split):
                return sweep
            now = Counter(event.identity for event in sweep.events)
            if sweep.cut is not None or sweep.is_proven or self._is_one_page(sweep):
                return self._accepted(window, sweep, sweep.events)
            is_still = now == before and sweep.size >= (sweep.last_total or 0)
            # If an entry with an id comes twice in each sweep, the order may differ from page to page and hide another entry.
            # Only a window of a single page can show that.
            if is_still and not has_repeats(sweep.events):
                return self._accepted(window, sweep, sweep.events)
            before = now
            shown.update((event.identity, event) for event in sweep.events)
            if not is_still and _accounts_for(shown, sweep, sweep.last_total):
                return self._accepted(window, sweep, list(shown.values()))
            if number == sweeps and _accounts_for(shown, sweep, sweep.first_total):
                # The window grows faster than we read. All entries that existed when this sweep began were read; the overlap
                # covers those that came later.
                return self._accepted(window, sweep, list(shown.values()))
            # If the counts are known to disagree, a window of one page is not read again: one answer shows a single moment.
            is_known = not self._conduct.is_exact and sweep.page_count <= 1
            if is_still or is_known or number == sweeps:
                return self._unstable(window, sweep, shown, number, is_still=is_still)

    def _unstable(
        self, window: Window, sweep: _Sweep, shown: Mapping[bytes, Event], number: int, *, is_still: bool
    ) -> Reading | Split:
        """Handle a window whose sweeps do not agree: halve it, because a smaller one may not change while it is read."""
        self._sweeps = min(self._sweeps, _FEW_SWEEPS)  # the API's answers keep changing: more sweeps would not help
        cost = 2 * self._sweeps * max(1, sweep.page_count)
        if is_by_time(window, sweep.events) and self._narrowing.may_halve(window, cost):
            return Split(split(window, 2))
        counted = (
            "does not say how many entries there are" if sweep.last_total is None else f"counts {sweep.last_total}"
        )
        reason = f"the API {counted}, and showed {len(shown)} different ones in {plural(number, 'reading')}"
        events = all_of(shown, sweep.events, is_one_moment=is_still or sweep.page_count <= 1)
        return self._accepted(window, sweep._replace(cut=Unread(window, UNSTABLE, reason)), events)

    def _is_one_page(self, sweep: _Sweep) -> bool:
        """Whether the sweep is a single complete answer: it shows one moment, so equal entries in it are separate entries."""
        return sweep.page_count == 1 and sweep.last_total in (None, sweep.size)

    def _accepted(self, window: Window, sweep: _Sweep, events: Sequence[Event]) -> Reading | Split:
        """The entries of the window and its unread parts; a split if the second of an unread element has yet to be found."""
        unread = [] if sweep.cut is None else [sweep.cut]
        for element in sweep.unreadable:
            span = span_of(element, window, sweep.events)
            if is_by_time(window, sweep.events) and self._narrowing.may_halve(span, 2):
                around = [Window(window.start, span.start), span, Window(span.end, window.end)]
                parts = [part for part in around if part.seconds > 0]
                return Split(parts if len(parts) > 1 else split(window, 2))
            part = Unread(span, UNREADABLE, element.reason, (element.content,) if element.content else ())
            if sweep.cut is not None and sweep.cut.window == span:  # otherwise one second would become two gaps
                part = sweep.cut._replace(entries=part.entries)
            unread.append(part)
        return Reading(each_once(window, events), len(events), tuple(merged(unread)))

    def _sweep(self, window: Window) -> _Sweep | Split:
        """Read every page once.  Returns: a Split as soon as the window proves too large."""
        is_splittable = window.seconds > 1
        events: list[Event] = []
        unreadable: list[Unreadable] = []
        first_total: int | None = None
        before: Page | None = None
        offset = page_count = weight_bytes = 0
        while True:
            asked = self._limit(window, offset)  # computed before the request, because the answer may lower it
            page = self._next_page(window, offset, before)
            if isinstance(page, Unread):
                if is_splittable:
                    return Split(split(window, 2))
                return _Sweep(told_apart(events), unreadable, first_total, None, page_count, cut=page)
            before, total = page, page.total
            first_total = total if first_total is None else first_total
            weight_bytes += page.weight_bytes
            parts = parts_needed(page, offset, weight_bytes, self._page_size, self._limits)
            is_miscounted = False
            if parts > 1 and is_splittable:
                parts = self._believed(parts, window, offset, page, asked)
                if parts > 1:
                    return Split(split_around(window, dense_part(window, page), parts))
                is_miscounted = True
            if weight_bytes > max(_HEAVY_BYTES, self._limits.window_bytes):
                self._before_heavy(window)
            unreadable += [element.behind(len(events)) for element in page.unreadable]
            events.extend(page.events)
            offset += page.count
            page_count += bool(page.count)
            cut = too_dense(window, page, self._limits) if self._conduct.is_trial else None
            # A total below the number of entries received is wrong: then only an empty page is the end.
            is_end = is_miscounted or not page.count or (offset == total and not is_capped(page, self._limits))
            if weight_bytes > max(_SECOND_BYTES, self._limits.window_bytes) and not is_end:
                cut = Unread(
                    window,
                    DENSE,
                    f"more than {weight_bytes // _MIB} MiB of entries in one second (see api.window_bytes)",
                )
            if cut or is_end:
                return _Sweep(told_apart(events), unreadable, first_total, total, page_count, cut)

    def _next_page(self, window: Window, offset: int, before: Page | None) -> Page | Unread:
        """The page at this offset, or why there is none.  Raises: errors of the first page, or of more than the window."""
        room = self._limits.result_window - offset
        if room <= 0:
            reason = f"more entries than the API serves of one second ({self._limits.result_window})"
            return Unread(window, DENSE, reason)
        limit = self._limit(window, offset)
        try:
            return empty_if_repeated(self._page(window, offset, limit), before, limit)
        except ASKING_ERRORS as error:
            unread = self._unread(window, error, offset) if offset else None
            if unread is None:
                raise
            return unread

    def _limit(self, window: Window, offset: int) -> int:
        """How many entries to request at this offset."""
        # For a long window we mostly want the count: the window is then split and read again.
        is_first_look = offset == 0 and window.seconds > _LONG_SECONDS
        most = min(self._page_size, self._limits.result_window - offset)
        return min(most, _LOOK_ENTRIES) if is_first_look else most

    def _believed(self, parts: int, window: Window, offset: int, page: Page, asked: int) -> int:
        """How many parts to split a window into if this page asks for `parts`; 1 if its total is wrong and nothing follows it.

        A first page is complete if it has fewer entries than requested and than its total says, and none follow. Splitting would
        not help: it would give very many windows, with wrong totals as well.
        """
        if offset or page.count >= asked or page.count >= (page.total or 0):
            return parts
        follow = self._next_page(window, page.count, page)
        if isinstance(follow, Unread):
            return 2  # unknown: a smaller window may show it
        if follow.count:
            return parts
        return 2 if page.weight_bytes > self._limits.window_bytes else 1

    def _page(self, window: Window, offset: int, limit: int) -> Page:
        is_retried = not self._conduct.is_trial
        while True:
            if limit == 1 < self._limits.page_size:  # entries were heavy: a single one may weigh as much as two pages
                self._before_heavy(window)
            try:
                page = self._source.page(self._contract, window, offset, limit, is_retried=is_retried)
            except BodyTooLargeError as error:
                if limit == 1:
                    error.hint = "raise api.max_page_bytes"
                    return self._skip(f"an entry is too large to read: {error.message}", b"", error)
                limit = self._page_size = max(1, limit // 8)
            except UnusableAnswerError as error:
                if not self._conduct.is_failing or self._conduct.is_trial or not self._narrowing.may_spend(1):
                    raise
                if not self._is_present_known and not self._is_present_served(error):
                    raise  # the API gives no usable answer at all: smaller pages would not help
                if limit == 1:
                    return self._skip(error.message, error.body, error)
                limit = self._page_size = max(1, limit // 8)
                is_retried = False
            else:
                self._skipped = 0
                self._adapt_page_size(page, limit)
                return page

    def _skip(self, reason: str, content: bytes, error: PollerError) -> Page:
        """A page with one unreadable element instead of the entry.  Raises: TransientError after too many of them in a row."""
        self._skipped += 1
        if self._skipped > _MOST_SKIPPED:
            raise TransientError(reason, hint=error.hint, contract=self._contract) from error
        return Page((), None, False, 0, False, (Unreadable(0, content, reason),))

    def _adapt_page_size(self, page: Page, limit: int) -> None:
        """Set the page size so that a page weighs no more than a window may, and never above the configured size."""
        if page.events:
            mean_bytes = max(1, page.weight_bytes // len(page.events))
            fitting = max(1, self._limits.window_bytes // mean_bytes)
            # Never more than doubled at once: the next entries may be heavier than these.
            self._page_size = min(self._limits.page_size, fitting, max(self._page_size, limit) * 2)

    # Errors, and the parts of a window that cannot be read

    def _unread(self, window: Window, error: PollerError, offset: int = 0) -> Unread | None:
        return unread_by(window, error, offset, is_failing=self._conduct.is_failing or self._conduct.is_trial)

    def _is_present_served(self, error: PollerError) -> bool:
        """Whether the API serves the present, so an error concerns the window alone. In a trial the present was just read."""
        if self._conduct.is_trial:
            return True
        if isinstance(error, TransientError) or not self._is_present_known:
            self._is_present_known = False
            is_retried = True
            for window in self._present:
                refusal = self._refusal(window, is_retried=is_retried)
                if refusal is None:
                    self._present, self._is_present_known = (window,), True
                if refusal is None or is_for_all(refusal):
                    break
                is_retried = False
        return self._is_present_known

    def _refusal(self, window: Window, *, is_retried: bool) -> PollerError | None:
        """The API's error for a query of this window; None if it answers.  Raises: errors that concern more than the window."""
        try:
            self._source.page(self._contract, window, 0, 1, is_retried=is_retried)
        except BodyTooLargeError:
            return None
        except ASKING_ERRORS as error:
            if self._unread(window, error) is None:
                raise
            return error
        return None

    def _sampled(self, window: Window, seconds: Sequence[int]) -> Reading | Split:
        """A window that could not be read before: read if the API serves one of these seconds now, otherwise it stays unread."""
        unread: Unread | None = None
        for second in seconds:
            refusal = self._refusal(Window(second, second + 1), is_retried=False)
            if refusal is None:
                try:
                    return self._read(window)
                except ASKING_ERRORS as error:
                    if self._unread(window, error) is None:
                        raise
                    return Split(around(window, second))
            unread = self._unread(window, refusal)
        return Reading([], 0, (unread,) if unread else ())

    def _narrowed(self, unread: Unread) -> Reading | Split:
        """Handle a window that cannot be read whole. A trial goes on only if a sample or the last second is served."""
        is_retried = unread.kind == REFUSED and not self._conduct.is_trial

        def is_served(second: int) -> bool:
            return self._refusal(Window(second, second + 1), is_retried=is_retried) is None

        window = unread.window
        is_unsampled = self._conduct.is_trial and not self._conduct.samples
        if is_unsampled and (window.seconds == 1 or not is_served(window.end - 1)):
            return Reading([], 0, (unread,))
        result = self._narrowing.narrowed(unread, is_served)
        return Reading([], 0, (result,)) if isinstance(result, Unread) else Split(result)


def _accounts_for(shown: Mapping[bytes, Event], sweep: _Sweep, total: int | None) -> bool:
    """Whether as many different entries came as the API counts. Entries do not disappear between sweeps, so these are all."""
    is_all = total is not None and len(shown) + len(sweep.unreadable) >= total
    return is_all and all(event.has_id for event in shown.values())
