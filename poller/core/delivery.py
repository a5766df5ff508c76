"""Decisions about sending and retrying, as pure functions of values.

The outcomes name how a send ended; `decide` says what follows from one. Holds no socket, no clock and no random source:
each is handed in. The promise behind it: nothing leaves the outbox but by being accepted or as a dead letter with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Accepted(NamedTuple):
    """Every event of the batch was taken, except those in `refused`: index in the batch to the reason.

    `retry` lists the indexes of events that were neither taken nor refused for good and must be sent again. `later` says why
    they were not taken, and when to send them.
    """

    refused: Mapping[int, str] = {}
    retry: tuple[int, ...] = ()
    status: int | None = None
    later: RetryAfter | None = None


class RetryAfter(NamedTuple):
    """Not now: rate limit, overload, no connection. `seconds` is the other side's wish, if it had one.

    `is_size_suspect`: a smaller batch may be taken where this one fails every time (a time-out, a rate that one batch exceeds,
    an event that the other side cannot handle), or would repeat less of what was stored without an answer.
    """

    reason: str
    seconds: float | None = None
    is_size_suspect: bool = False


# How the reason of a RetryAfter begins where a sink ended in an unexpected exception.
CRASHED = "internal error"


class TooLarge(NamedTuple):
    """The request is larger than the other side takes."""

    reason: str
    status: int | None = None


class Refused(NamedTuple):
    """The request will never be taken as it is: some event in it is to blame."""

    reason: str
    status: int | None = None


class CredentialsRefused(NamedTuple):
    """Key, token or subscription was refused: a person is needed, the data waits."""

    reason: str
    status: int | None = None


Outcome = Accepted | RetryAfter | TooLarge | Refused | CredentialsRefused

_FAILURE_KINDS: dict[type[Outcome], str] = {
    Accepted: "partly_accepted",
    RetryAfter: "unavailable",
    TooLarge: "too_large",
    Refused: "refused",
    CredentialsRefused: "credentials_refused",
}


def failure_kind(outcome: Outcome) -> str:
    """How a send failed, in one word."""
    return _FAILURE_KINDS[type(outcome)]


class RetryPolicy(NamedTuple):
    """Exponential backoff with full jitter: the n-th wait is uniform in `[0, min(max, initial * 2**(n-1))]` seconds."""

    initial_seconds: float = 0.5
    max_seconds: float = 60.0

    def wait_seconds(
        self, attempt: int, random: Callable[[], float], retry_after_seconds: float | None = None
    ) -> float:
        """How long to wait after the `attempt`-th failure (from 1). `random` gives uniform values in [0, 1).

        The other side's `Retry-After` is a floor: never sooner, and jittered a little later so that not all come at once.
        """
        ceiling = min(self.max_seconds, self.initial_seconds * 2.0 ** min(attempt - 1, 32))
        jitter = random() * ceiling
        # No wait at all is no wish: `Retry-After: 0`, or a date gone by, with every answer would be a busy loop.
        if not retry_after_seconds:
            return jitter
        return retry_after_seconds + min(jitter, 0.1 * retry_after_seconds)


PARKED_RETRY_SECONDS = 60.0
# A batch that failed this often, for a reason that its size can explain, is sent in halves.
HALVE_AT_ATTEMPT = 3
# A sink that failed this often in a row is tried with each contract alone: the fault may be that of one of them.
POSTPONE_AT_ATTEMPT = 3
# An event becomes a dead letter when it was answered with 403 this often, and each time another event was accepted after it.
FORBIDDEN_TIMES = 2
# After this many batches of a reduced size were taken, a size that failed before is tried again.
GROW_AFTER_BATCHES = 16
# A wish beyond this is a mistake of the other side's: `Retry-After: 1e9` must not silence a sink for thirty years.
MAX_RETRY_AFTER_SECONDS = 3600.0


class BatchSize(NamedTuple):
    """How many events are sent at once: `now` of at most `most`. Reduced where the size makes a send fail, and grown again."""

    most: int
    now: int
    good: int = 0
    """The largest batch that was taken since the size was reduced; 0 for none."""
    bad: int = 0
    """A batch of this size failed when smaller ones were taken; 0 for none."""
    taken: int = 0
    """How many batches were taken at this size."""

    def is_doubtful(self, count: int) -> bool:
        """Whether a batch of `count` events is larger than any that was taken since larger ones failed."""
        return self.good < count and self.now < self.most

    def after_failure(self, count: int) -> BatchSize:
        """The size after a batch of `count` events failed for its size."""
        half = max(1, count // 2)
        return BatchSize(self.most, half, self.good, count) if 0 < self.good < count else BatchSize(self.most, half)

    def after_success(self, count: int) -> BatchSize:
        """The size after a batch of `count` events was taken: twice as much, but slowly where that has failed before."""
        if self.now >= self.most:
            return self
        good, larger = max(self.good, count), min(self.most, self.now * 2)
        bad = self.bad if good < self.bad else 0
        if 0 < bad <= larger and self.taken + 1 < GROW_AFTER_BATCHES:
            return self._replace(good=good, taken=self.taken + 1)
        return BatchSize(self.most, larger, good, bad)


class Wait(NamedTuple):
    """Keep everything and send the same again in `seconds`, in halves where `is_halved`."""

    seconds: float
    reason: str
    is_halved: bool = False


class Settle(NamedTuple):
    """Done with the batch: the events in `dead` become dead letters, the rest is delivered, except `retry`: those wait as
    `later` says and are sent again first.
    """

    dead: Mapping[int, str]
    retry: tuple[int, ...] = ()
    status: int | None = None
    later: Wait | None = None


class Park(NamedTuple):
    """Keep everything, call a person, and try again in `seconds` with the key read anew.

    `is_doubtful`: the answer was 403. A firewall in front of the receiver also gives it for the content of a single event.
    """

    seconds: float
    reason: str
    is_doubtful: bool = False


class Halve(NamedTuple):
    """Send each half on its own: one of them is smaller, or free of the culprit."""


class Shrink(NamedTuple):
    """A single event is too large for the other side: handle it as `oversize` says."""

    reason: str
    status: int | None = None


Decision = Settle | Wait | Park | Halve | Shrink


def decide(
    outcome: Outcome,
    count: int,
    attempt: int,
    policy: RetryPolicy,
    random: Callable[[], float],
    *,
    is_doubtful: bool = False,
) -> Decision:
    """What follows from the outcome of sending `count` events for the `attempt`-th time (from 1).

    `is_doubtful`: larger batches than those that are known to be taken have failed before, and this one is larger. Then one
    failure is enough to halve it.
    """
    match outcome:
        case Accepted(refused, retry, status, later):
            if not retry:
                return Settle(refused, (), status)
            later = later or RetryAfter("some events of the batch were not taken")
            return Settle(refused, retry, status, wait_after(later, len(retry), attempt, policy, random, is_doubtful))
        case RetryAfter():
            return wait_after(outcome, count, attempt, policy, random, is_doubtful)
        case CredentialsRefused(reason, status):
            return Park(PARKED_RETRY_SECONDS, reason, status == 403)
        case TooLarge(reason, status):
            return Halve() if count > 1 else Shrink(reason, status)
        case Refused(reason, status):  # pragma: no branch - mypy proves that there is no other outcome
            return Halve() if count > 1 else Settle({0: reason}, (), status)


def wait_after(
    later: RetryAfter, count: int, attempt: int, policy: RetryPolicy, random: Callable[[], float], is_doubtful: bool
) -> Wait:
    """How to wait after the `attempt`-th send of `count` events was put off."""
    wish = None if later.seconds is None else min(later.seconds, MAX_RETRY_AFTER_SECONDS)
    is_halved = later.is_size_suspect and count > 1 and (is_doubtful or attempt >= HALVE_AT_ATTEMPT)
    return Wait(policy.wait_seconds(attempt, random, wish), later.reason, is_halved)
