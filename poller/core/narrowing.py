"""Finding the readable parts of a window that cannot be read whole, with a limited number of requests.

A refusal mostly concerns one span: everything too old, or a moment. So the two ends and the quarters of the window are requested.
If all are refused, the whole window counts as refused, until a later try finds a served second (`samples_of`). If one end is
refused, halving finds how far that reaches. Does no I/O: the caller passes a function that asks whether a second is served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from poller.core.errors import (
    AuthError,
    BodyTooLargeError,
    PollerError,
    RejectedError,
    TransientError,
    UnusableAnswerError,
)
from poller.core.gaps import DENSE, FAILING, REFUSED, Unread
from poller.core.windows import Window, split

# Maximum requests of one `Narrowing`: for spans that are not served, whose entries would otherwise be missing for longer, and
# (soft) for spans that are served but not usable, to make their gaps narrower.
_REQUESTS = 256
_SOFT_REQUESTS = 64


class Conduct(NamedTuple):
    """What to do with a window that cannot be read.

    `present` are seconds, newest first. The API serves one of them if it serves anything, and only then does a refusal concern
    the window alone (if empty: never). `is_failing`: the last poll failed, so a failure may also concern the window alone.
    `is_trial`: a gap is tried again, with one or two requests if it still cannot be read. `is_exact`: find the exact second of
    what is served but cannot be used. `samples`: windows that are read only if one of these seconds is served.
    """

    present: tuple[Window, ...] = ()
    is_failing: bool = False
    is_trial: bool = False
    is_exact: bool = True
    samples: Mapping[Window, Sequence[int]] = MappingProxyType({})


CAREFUL = Conduct()
"""If the API refuses a window or fails, the error is raised, and no gap is made of it."""


def present_at(trusted: int, overlap_seconds: int) -> tuple[Window, ...]:
    """Seconds before `trusted`, which both clocks have passed, newest first. The API may not serve the newest yet.

    None is older than the overlap, or than a minute if the overlap is shorter.
    """
    ages = sorted({3, 60, max(60, overlap_seconds)})
    return tuple(Window(trusted - age, trusted - age + 1) for age in ages)


class Narrowing:
    """What is known about the unreadable windows of one contract, and how many requests may still be spent to find out more."""

    def __init__(self, *, is_exact: bool = True) -> None:
        """`is_exact`: whether to find the exact second of what is served but cannot be used."""
        self._requests_left = _REQUESTS
        self._soft_requests_left = _SOFT_REQUESTS if is_exact else 0
        self._served: set[int] = set()  # seconds from which on everything was served when they were found

    def may_spend(self, requests: int) -> bool:
        """Whether this number of requests may be spent on entries that are not served. Counts them."""
        self._requests_left -= requests
        return self._requests_left >= 0

    def may_halve(self, window: Window, requests: int) -> bool:
        """Whether a window that is served but not usable may be read in halves, for this number of requests. Counts them."""
        self._soft_requests_left -= requests
        return window.seconds > 1 and self._soft_requests_left >= 0

    def narrowed(self, unread: Unread, is_served: Callable[[int], bool]) -> Unread | list[Window]:
        """The windows to read instead of one that cannot be read, or `unread` if it stays unread as a whole.

        `is_served` asks the API for a single second.  Raises: the errors of `is_served`.
        """
        window = unread.window
        if window.seconds == 1:
            return unread
        if not self.may_spend(5):
            return unread._replace(is_narrow=False)
        is_first_served, is_last_served = is_served(window.start), is_served(window.end - 1)
        if is_first_served == is_last_served:
            if is_first_served or any(is_served(window.start + window.seconds * place // 4) for place in (2, 1, 3)):
                return split(window, 2)
            return unread
        if window.start in self._served:  # it was served before, but no longer is
            edge = _moved_edge(window, is_served)
        else:
            edge = self._edge(window, is_served, is_first_served=is_first_served)
        if not is_first_served:
            self._served.add(edge)
        # The refused part is examined again: its ends and quarters show whether all of it is refused.
        return [Window(window.start, edge), Window(edge, window.end)]

    def _edge(self, window: Window, is_served: Callable[[int], bool], *, is_first_served: bool) -> int:
        """The second at which the served part ends or begins: found from the refused end by doubling steps, then by halving."""
        origin, direction = (window.end - 1, -1) if is_first_served else (window.start, 1)
        near, step = 0, 1
        while step < window.seconds - 1 and self._is_refused(origin + direction * step, is_served):
            near, step = step, step * 2
        far = min(step, window.seconds - 1)
        while far - near > 1:
            middle = (near + far) // 2
            near, far = (middle, far) if self._is_refused(origin + direction * middle, is_served) else (near, middle)
        return origin - near if is_first_served else origin + far

    def _is_refused(self, second: int, is_served: Callable[[int], bool]) -> bool:
        self.may_spend(1)
        return not is_served(second)


def _moved_edge(window: Window, is_served: Callable[[int], bool]) -> int:
    """A second from which on all is served, with a reserve: the edge moves, because more becomes too old while we ask."""
    step = 4
    while step < window.seconds and not is_served(window.start + step // 2):
        step *= 2
    return window.start + min(step, window.seconds - 1)


def samples_of(window: Window, tries: int, most: int) -> list[int]:
    """One or two seconds to request at try `tries`, to see whether a part of an unreadable window can be read now.

    They are the last second, and one that changes with each try: the other end, the middle, the quarters, the eighths, and so on.
    So in the end all of the window is checked. If `most` is 1, only one of them, in turn.
    """
    if most == 1:
        return [_place(window, tries)]
    return list(dict.fromkeys((_place(window, 0), _place(window, tries + 1))))


def _place(window: Window, number: int) -> int:
    if number < 2:
        return window.start if number else window.end - 1
    part, step, number = 0.0, 0.5, number - 1
    while number:
        part += step * (number % 2)
        step, number = step / 2, number // 2
    return window.start + int(window.seconds * part)


def is_for_all(error: PollerError) -> bool:
    """Whether every query would fail: no answer came, or the account may not read the contract (401, 403, 404)."""
    if isinstance(error, TransientError):
        return error.status is None and not isinstance(error, UnusableAnswerError)
    return isinstance(error, AuthError) or (isinstance(error, RejectedError) and error.status == 404)


def unread_by(window: Window, error: PollerError, offset: int, *, is_failing: bool) -> Unread | None:
    """The window as unread, if the error may concern it alone; None if the error concerns more than that.

    With an `offset`, the API has served the first page but serves no more. It may also answer 500 if a query is too large for it.
    `is_failing`: it has failed before, so a failure may also concern the window alone.
    """
    is_query_too_large = isinstance(error, TransientError) and error.status == 500
    if offset and (isinstance(error, RejectedError) or is_query_too_large):
        return Unread(window, DENSE, error.message)
    if isinstance(error, RejectedError) or (isinstance(error, AuthError) and error.is_denied):
        return Unread(window, REFUSED, error.message)
    if isinstance(error, BodyTooLargeError):  # the request was for one entry only
        return Unread(window, FAILING, error.message)
    # 429 limits the account and says nothing about the query. A 408 may mean that the query takes the API too long.
    if isinstance(error, TransientError) and error.status != 429 and is_failing:
        return Unread(window, FAILING, error.message)
    return None
