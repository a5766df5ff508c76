"""What one poll of a contract reads, and in which order: spans that are read once more, the present, gaps that are due."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from poller.core.gaps import UNREADABLE, UNSTABLE, in_turn, without
from poller.core.windows import MAX_SPAN_SECONDS, Window, tile
from poller.store.gaps import Gap
from poller.store.parts import Claim
from poller.store.rows import Contract

_HOUR_SECONDS = 3600
# What a contract with gaps may cost a poll besides what it costs without: so many more pieces, or the trial of a gap.
_EXTRA_REQUESTS = 2


class Lane(NamedTuple):
    """A row of windows to be read in order: those up to now, those of a span that is read once more, or those of a gap."""

    windows: list[Window]
    of_range: int | None = None
    is_repair: bool = False
    of_gap: Gap | None = None
    is_exact: bool = True

    @property
    def is_present(self) -> bool:
        return self.of_range is None and self.of_gap is None


def lanes(claim: Claim, row: Contract, due: Window | None, now: float, turn: int, gaps_at_once: int) -> Iterator[Lane]:
    """A span that failed last time comes after the present, and a gap that is due last of all.

    `due`: the window up to now, if there is one. `turn`: the number of this poll, by which pieces between gaps take turns.
    `gaps_at_once`: how many gaps that are due are tried again. They are looked for when the rest has been read.
    """
    spans = [Lane(_around_gaps(claim, span.window), span.id, span.purpose == "repair") for span in claim.ranges()]
    present = [] if due is None else [_present(claim.gaps(), row, due, now, turn)]
    yield from [*present, *spans] if row.failure else [*spans, *present]
    to_try = [gap for gap in claim.gaps() if gap.is_due(now)]
    yield from (_of_gap(gap) for gap in sorted(to_try, key=_by_next_try)[:gaps_at_once])


def _present(gaps: Sequence[Gap], row: Contract, due: Window, now: float, turn: int) -> Lane:
    # What is served, if not as it should be, is read for late entries as before; but not looked at second by second again.
    is_exact = not any(_is_wide(gap) and gap.end > due.start for gap in gaps)
    is_one_due = any(gap.is_due(now) for gap in gaps)
    pieces = without(due, [gap.window for gap in gaps if not _is_wide(gap)])
    chosen = in_turn(pieces, row.watermark, turn, 0 if is_one_due else _EXTRA_REQUESTS)
    return Lane([part for piece in chosen for part in tile(piece)], is_exact=is_exact)


def _around_gaps(claim: Claim, window: Window) -> list[Window]:
    gaps = [gap.window for gap in claim.gaps()]
    return [part for piece in without(window, gaps) for part in tile(piece)]


def _of_gap(gap: Gap) -> Lane:
    """Newest part first: of what is too old that is what may be readable by now, and one request tells that it is not.

    Of what is served, but not as it should be, an hour each: that it is so still is seen without reading all of it.
    """
    is_served = gap.kind in (UNREADABLE, UNSTABLE)
    return Lane(list(tile(gap.window, _HOUR_SECONDS if is_served else MAX_SPAN_SECONDS))[::-1], of_gap=gap)


def _is_wide(gap: Gap) -> bool:
    """Whether more than a second of it is served, though not as it should be."""
    return gap.kind in (UNREADABLE, UNSTABLE) and gap.window.seconds > 1


def _by_next_try(gap: Gap) -> int:
    return gap.next_try_at
