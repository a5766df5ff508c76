"""Finding out what of a window can be read that cannot be read whole, with few requests, and how many may be spent on that.

A refusal mostly concerns one span: all that is too old, or a moment. So the two ends and the quarters of the window are asked
for: where all are refused, all of it counts as refused, until a later try finds a second that is not (`samples_of`); where one
end is, halving finds how far that reaches. Does no I/O: it is told what is served.
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

# On finding out what of the windows of one lane can be read: where entries would be missing for longer otherwise, and where it
# is only about how narrow a gap is.
_REQUESTS = 256
_SOFT_REQUESTS = 64


class Conduct(NamedTuple):
    """What to do with a window that cannot be read.

    `present` are seconds, newest first: the API serves one of them if it serves anything, and only then is a refusal the
    window's own (none: it never is). `is_failing`: the poll before failed, so that a failure, too, may be the window's own.
    `is_trial`: a gap is tried again, with one or two requests unless it can be read by now. `is_exact`: what is served but
    cannot be used is narrowed down to its second. `samples`: windows that are read only if one of these seconds is served.
    """

    present: tuple[Window, ...] = ()
    is_failing: bool = False
    is_trial: bool = False
    is_exact: bool = True
    samples: Mapping[Window, Sequence[int]] = MappingProxyType({})


CAREFUL = Conduct()
"""Nothing is set apart that the API refuses, or fails at: it is raised."""


def present_at(trusted: int, overlap_seconds: int) -> tuple[Window, ...]:
    """Seconds that both clocks have passed by `trusted`, newest first; older ones, too, as the newest may not be served yet.

    Before the overlap is no present any more.
    """
    ages = sorted({3, 60, max(60, overlap_seconds)})
    return tuple(Window(trusted - age, trusted - age + 1) for age in ages)


class Narrowing:
    """What is known of the windows of one contract that cannot be read, and what may still be spent on knowing more."""

    def __init__(self, *, is_exact: bool = True) -> None:
        """`is_exact`: whether to look for the very second of what is served but cannot be used."""
        self._requests_left = _REQUESTS
        self._soft_requests_left = _SOFT_REQUESTS if is_exact else 0
        self._served: set[int] = set()  # seconds from which on all was served when they were asked for

    def may_spend(self, requests: int) -> bool:
        """Whether so many requests may be spent on entries that are not served; they are counted."""
        self._requests_left -= requests
        return self._requests_left >= 0

    def may_halve(self, window: Window, requests: int) -> bool:
        """Whether a window that is served, though not as it should be, may be read in halves, for so many requests."""
        self._soft_requests_left -= requests
        return window.seconds > 1 and self._soft_requests_left >= 0

    def narrowed(self, unread: Unread, is_served: Callable[[int], bool]) -> Unread | list[Window]:
        """Windows to read instead of one that cannot be read, or that it stays as it is.

        `is_served` asks for a single second.  Raises: what that raises.
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
        if window.start in self._served:  # and is not any more
            edge = _moved_edge(window, is_served)
        else:
            edge = self._edge(window, is_served, is_first_served=is_first_served)
        if not is_first_served:
            self._served.add(edge)
        # What is refused of it is looked at again: its ends and its quarters tell whether all of it is.
        return [Window(window.start, edge), Window(edge, window.end)]

    def _edge(self, window: Window, is_served: Callable[[int], bool], *, is_first_served: bool) -> int:
        """The second at which what is served ends or begins: from the end that is not, in steps that double, then by halving."""
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
    """A second from which on all is served, with some room: it moves on, as what is too old grows while we ask."""
    step = 4
    while step < window.seconds and not is_served(window.start + step // 2):
        step *= 2
    return window.start + min(step, window.seconds - 1)


def samples_of(window: Window, tries: int, most: int) -> list[int]:
    """One or two seconds by which to see whether some of a window can be read that could not be: at try `tries`.

    The last one, and one that is elsewhere at each try: the other end, the middle, the quarters, the eighths. So all of it is
    looked at in the end. Only one of these in turn if `most` is 1.
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
    """Whether another query would fare no better: no answer came, or the account may not read the contract (403, 404)."""
    if isinstance(error, TransientError):
        return error.status is None and not isinstance(error, UnusableAnswerError)
    return isinstance(error, AuthError) or (isinstance(error, RejectedError) and error.status == 404)


def unread_by(window: Window, error: PollerError, offset: int, *, is_failing: bool) -> Unread | None:
    """The window as one that cannot be read, where the error may be its own; None where it concerns more than that.

    From an `offset` on, the API has served its first page and serves no more. It may say so with 500 as well, when a query is too
    large for it. `is_failing`: it has failed before, so that a failure, too, may be the window's own.
    """
    is_query_too_large = isinstance(error, TransientError) and error.status == 500
    if offset and (isinstance(error, RejectedError) or is_query_too_large):
        return Unread(window, DENSE, error.message)
    if isinstance(error, RejectedError) or (isinstance(error, AuthError) and error.is_denied):
        return Unread(window, REFUSED, error.message)
    if isinstance(error, BodyTooLargeError):  # asked for its first entry alone
        return Unread(window, FAILING, error.message)
    # 429 limits the account, whatever is asked for. A 408 may be a query that takes the API too long.
    if isinstance(error, TransientError) and error.status != 429 and is_failing:
        return Unread(window, FAILING, error.message)
    return None
