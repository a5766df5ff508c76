"""Decisions about sending and retrying, as pure functions of values.

An outcome says how a send ended; `decide` returns what to do next. Has no socket, clock or random source: the caller passes
values. Invariant: an event leaves the outbox only after it was accepted, or as a dead letter with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Accepted(NamedTuple):
    """Every event of the batch was accepted, except those in `refused` (index in the batch to the reason) and `retry`.

    `retry` lists the indexes of events that were neither accepted nor refused for good and must be sent again. `later` says why
    they were not accepted, and when to send them.
    """

    refused: Mapping[int, str] = {}
    retry: tuple[int, ...] = ()
    status: int | None = None
    later: RetryAfter | None = None


class RetryAfter(NamedTuple):
    """Not now: rate limit, overload, no connection. `seconds` is how long the other side asks to wait, if it does.

    `is_size_suspect`: a smaller batch may be accepted although this one fails every time (a time-out, a rate that one batch
    exceeds, an event that the other side cannot handle), or it would repeat fewer events that were stored without an answer.
    """

    reason: str
    seconds: float | None = None
    is_size_suspect: bool = False


# The reason of a RetryAfter begins with this if a sink raised an unexpected exception.
CRASHED = "internal error"


class TooLarge(NamedTuple):
    """The request is larger than the other side accepts."""

    reason: str
    status: int | None = None


class Refused(NamedTuple):
    """The request will never be accepted as it is: some event in it is the cause."""

    reason: str
    status: int | None = None


class CredentialsRefused(NamedTuple):
    """Key, token or subscription was refused: a person is needed, and the events wait."""

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

        The other side's `Retry-After` is the minimum. A little jitter is added so that not all senders come at once.
        """
        ceiling = min(self.max_seconds, self.initial_seconds * 2.0 ** min(attempt - 1, 32))
        jitter = random() * ceiling
        # `Retry-After: 0`, or a date in the past, is ignored: it would cause a busy loop if it came with every answer.
        if not retry_after_seconds:
            return jitter
        return retry_after_seconds + min(jitter, 0.1 * retry_after_seconds)


PARKED_RETRY_SECONDS = 60.0
# A batch is sent in halves after this many failures that its size can explain.
HALVE_AT_ATTEMPT = 3
# After this many failures in a row, a sink is tried with each contract alone: one contract may be the cause.
POSTPONE_AT_ATTEMPT = 3
# An event that is answered with 403 becomes a dead letter when that happens again this often after other events were accepted.
FORBIDDEN_TIMES = 2
# After this many accepted batches of a reduced size, a size that failed before is tried again.
GROW_AFTER_BATCHES = 16
# A longer `Retry-After` is a mistake of the other side: `Retry-After: 1e9` must not stop a sink for thirty years.
MAX_RETRY_AFTER_SECONDS = 3600.0


class BatchSize(NamedTuple):
    """How many events are sent at once: `now`, up to `most`. Reduced if the size makes a send fail, later grown again."""

    most: int
    now: int
    good: int = 0
    """The largest batch that was accepted since the size was reduced; 0 for none."""
    bad: int = 0
    """A batch of this size failed while smaller ones were accepted; 0 for none."""
    taken: int = 0
    """How many batches were accepted at this size."""

    def is_doubtful(self, count: int) -> bool:
        """Whether the size is reduced and a batch of `count` events is larger than any accepted since."""
        return self.good < count and self.now < self.most

    def after_failure(self, count: int) -> BatchSize:
        """The size after a batch of `count` events failed because of its size."""
        half = max(1, count // 2)
        return BatchSize(self.most, half, self.good, count) if 0 < self.good < count else BatchSize(self.most, half)

    def after_success(self, count: int) -> BatchSize:
        """The size after a batch of `count` events was accepted: doubled, but only after several if that size failed before."""
        if self.now >= self.most:
            return self
        good, larger = max(self.good, count), min(self.most, self.now * 2)
        bad = self.bad if good < self.bad else 0
        if 0 < bad <= larger and self.taken + 1 < GROW_AFTER_BATCHES:
            return self._replace(good=good, taken=self.taken + 1)
        return BatchSize(self.most, larger, good, bad)


class Wait(NamedTuple):
    """Keep everything and send the same again in `seconds`, in halves if `is_halved`."""

    seconds: float
    reason: str
    is_halved: bool = False


class Settle(NamedTuple):
    """The batch is done: the events in `dead` become dead letters and the rest is delivered, except those in `retry`: they wait
    as `later` says and are sent again first.
    """

    dead: Mapping[int, str]
    retry: tuple[int, ...] = ()
    status: int | None = None
    later: Wait | None = None


class Park(NamedTuple):
    """Keep everything, alert a person, and try again in `seconds` with the key read again.

    `is_doubtful`: the answer was 403. A firewall in front of the receiver also gives it for the content of a single event.
    """

    seconds: float
    reason: str
    is_doubtful: bool = False


class Halve(NamedTuple):
    """Send each half separately: the halves are smaller, and the event that is the cause is in only one of them."""


class Shrink(NamedTuple):
    """A single event is too large for the other side: handle it as the setting `oversize` says."""

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
    """What to do after the outcome of sending `count` events for the `attempt`-th time (from 1).

    `is_doubtful`: the batch size is reduced, and this batch is larger than any accepted since. Then one failure is enough to
    halve it.
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
    """How to wait after the `attempt`-th send of `count` events ended with `later`."""
    wish = None if later.seconds is None else min(later.seconds, MAX_RETRY_AFTER_SECONDS)
    is_halved = later.is_size_suspect and count > 1 and (is_doubtful or attempt >= HALVE_AT_ATTEMPT)
    return Wait(policy.wait_seconds(attempt, random, wish), later.reason, is_halved)
