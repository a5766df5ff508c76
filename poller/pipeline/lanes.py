"""What one poll of a contract reads, in order: spans to be read once more, the present, and due gaps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from poller.core.gaps import FAILING, REFUSED, UNREADABLE, UNSTABLE, Unread, in_turn, without
from poller.core.narrowing import samples_of
from poller.core.reading import Reading
from poller.core.windows import MAX_SPAN_SECONDS, Window, tile
from poller.store.gaps import Gap
from poller.store.parts import Claim
from poller.store.rows import Contract

_HOUR_SECONDS = 3600
# How much more a poll may read if a contract has gaps: this number of pieces, or the trial of one gap.
_EXTRA_REQUESTS = 2
# Up to this length, the last second of a tail shows whether it is served; beyond it the middle, as the tail may have shrunk.
_SHORT_TAIL_SECONDS = 10
_REMEMBERED_SECONDS = 3600


class Lane(NamedTuple):
    """Windows to be read in order: those up to now, those of a span that is read once more, or those of a gap.

    `samples`: as in `Conduct`.
    """

    windows: list[Window]
    of_range: int | None = None
    is_repair: bool = False
    of_gap: Gap | None = None
    is_exact: bool = True
    samples: Mapping[Window, Sequence[int]] = MappingProxyType({})

    @property
    def is_present(self) -> bool:
        return self.of_range is None and self.of_gap is None


class Tail(NamedTuple):
    """The newest part of the due span, if the last poll found that the API does not serve it yet: its length.

    It is read once one second of it is served, so it costs one request per poll. `found_at`: by a monotonic clock.
    """

    seconds: int
    found_at: float

    def is_remembered(self, now: float) -> bool:
        """Whether it is still checked separately, even if all of it was served the last time: it may come and go."""
        return now - self.found_at < _REMEMBERED_SECONDS


def lanes(
    claim: Claim, row: Contract, due: Window | None, tail_seconds: int, now: float, turn: int, gaps_at_once: int
) -> Iterator[Lane]:
    """A span that failed the last time comes after the present, and due gaps come last.

    `due`: the window up to now, if any; its last `tail_seconds` may not be served yet. `turn`: the number of this poll, by which
    pieces between gaps take turns. `gaps_at_once`: how many due gaps are tried again. They are searched after the rest is read.
    """
    spans = [Lane(_around_gaps(claim, span.window), span.id, span.purpose == "repair") for span in claim.ranges()]
    present = [] if due is None else [_present(claim.gaps(), row, due, tail_seconds, now, turn)]
    yield from [*present, *spans] if row.failure else [*spans, *present]
    to_try = [gap for gap in claim.gaps() if gap.is_due(now)]
    most = _EXTRA_REQUESTS - bool(tail_seconds)
    yield from (_of_gap(gap, most) for gap in sorted(to_try, key=_by_next_try)[:gaps_at_once])


def _present(gaps: Sequence[Gap], row: Contract, due: Window, tail_seconds: int, now: float, turn: int) -> Lane:
    # A span that is served incompletely is still read for late entries, but not searched second by second again.
    is_exact = not any(_is_wide(gap) and gap.end > due.start for gap in gaps)
    is_one_due = any(gap.is_due(now) for gap in gaps)
    tail = Window(max(due.start, due.end - tail_seconds), due.end)
    pieces = without(Window(due.start, tail.start), [gap.window for gap in gaps if not _is_wide(gap)])
    chosen = in_turn(pieces, row.watermark, turn, 0 if is_one_due else _EXTRA_REQUESTS - bool(tail_seconds))
    windows = [part for piece in chosen for part in tile(piece)]
    if not tail_seconds:
        return Lane(windows, is_exact=is_exact)
    is_short = tail.seconds <= _SHORT_TAIL_SECONDS
    sample = tail.end - 1 if is_short else tail.start + tail.seconds // 2
    return Lane([*windows, tail], is_exact=is_exact, samples={tail: [sample]})


def without_tail(
    readings: Iterable[tuple[Window, Reading]], since: float, tail: list[Unread]
) -> Iterator[tuple[Window, Reading]]:
    """The readings up to now, without the last part after `since` that the API refuses or fails at. That part is left in `tail`.

    It is not a gap. It may only be too new: our clock may be ahead, or the API may show entries only after some time.
    """
    for window, reading in readings:
        last = reading.unread[-1] if is_all_unread(window, reading) else None
        if last and last.kind in (REFUSED, FAILING) and last.is_narrow and window.start >= since:
            tail.append(last)
            continue
        while tail:  # a later span is served
            part = tail.pop(0)
            yield part.window, Reading([], 0, (part,))
        yield window, reading
        del reading  # before the next one is read, which may need as much memory


def tried(
    readings: Iterable[tuple[Window, Reading]], lane: Lane, left: list[Unread]
) -> Iterator[tuple[Window, Reading]]:
    """The readings of a gap that is tried again, without the unchanged parts. The unread rest is in `left`.

    Without samples, the first incomplete part ends the trial: the rest is for later trials.
    """
    for window, reading in readings:
        left += reading.unread
        is_over = bool(reading.unread) and not lane.samples
        if not is_all_unread(window, reading):
            yield window, reading
        if is_over:
            return
        del reading


def is_all_unread(window: Window, reading: Reading) -> bool:
    """Whether a window gave nothing: no entry, and no content in place of one."""
    return not reading.fetched and any(unread.window == window and not unread.entries for unread in reading.unread)


def _around_gaps(claim: Claim, window: Window) -> list[Window]:
    gaps = [gap.window for gap in claim.gaps()]
    return [part for piece in without(window, gaps) for part in tile(piece)]


def _of_gap(gap: Gap, most: int) -> Lane:
    """The samples of refused or failing windows, at most `most` each: such a window is read if one of them is served.

    Windows that are served incompletely are tried an hour at a time: this shows that they still are, without reading all.
    """
    if gap.is_narrow and gap.kind in (REFUSED, FAILING) and gap.window.seconds > 1:
        samples: dict[Window, list[int]] = {}
        for second in samples_of(gap.window, gap.tries, most):
            part = next(part for part in tile(gap.window) if second < part.end)
            samples.setdefault(part, []).append(second)
        return Lane(list(samples), of_gap=gap, samples=samples)
    is_served = gap.kind in (UNREADABLE, UNSTABLE)
    return Lane(list(tile(gap.window, _HOUR_SECONDS if is_served else MAX_SPAN_SECONDS))[::-1], of_gap=gap)


def _is_wide(gap: Gap) -> bool:
    """Whether it is served incompletely, and longer than a second."""
    return gap.kind in (UNREADABLE, UNSTABLE) and gap.window.seconds > 1


def _by_next_try(gap: Gap) -> int:
    return gap.next_try_at
