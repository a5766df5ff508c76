"""What follows from the outcome of a send, and how long to wait, as tables and bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.delivery import (
    GROW_AFTER_BATCHES,
    HALVE_AT_ATTEMPT,
    MAX_RETRY_AFTER_SECONDS,
    PARKED_RETRY_SECONDS,
    Accepted,
    BatchSize,
    CredentialsRefused,
    Decision,
    Halve,
    Outcome,
    Park,
    Refused,
    RetryAfter,
    RetryPolicy,
    Settle,
    Shrink,
    TooLarge,
    Wait,
    decide,
)

POLICY = RetryPolicy(initial_seconds=1.0, max_seconds=8.0)


@pytest.mark.parametrize(
    ("outcome", "count", "attempt", "expected"),
    [
        (Accepted(), 10, 1, Settle({})),
        (Accepted(), 1, 9, Settle({})),
        (Accepted({3: "too old"}, (), 400), 10, 1, Settle({3: "too old"}, (), 400)),
        (
            Accepted({0: "bad"}, (1, 2), None, RetryAfter("throttled", 20.0)),
            3,
            2,
            Settle({0: "bad"}, (1, 2), None, Wait(21.0, "throttled")),
        ),
        (Accepted({}, (1,)), 3, 1, Settle({}, (1,), None, Wait(0.5, "some events of the batch were not taken"))),
        (Refused("bad field", 400), 10, 1, Halve()),
        (Refused("bad field", 400), 2, 1, Halve()),
        (Refused("bad field", 400), 1, 1, Settle({0: "bad field"}, (), 400)),
        (TooLarge("413", 413), 10, 1, Halve()),
        (TooLarge("413", 413), 2, 1, Halve()),
        (TooLarge("413", 413), 1, 1, Shrink("413", 413)),
        (CredentialsRefused("401", 401), 10, 1, Park(PARKED_RETRY_SECONDS, "401")),
        (CredentialsRefused("401", 401), 1, 99, Park(PARKED_RETRY_SECONDS, "401")),
        (RetryAfter("no connection"), 10, 1, Wait(0.5, "no connection")),
        (RetryAfter("no connection"), 10, 3, Wait(2.0, "no connection")),
        (RetryAfter("no connection"), 10, 99, Wait(4.0, "no connection")),
        (RetryAfter("429", 20.0), 10, 1, Wait(20.5, "429")),
        (RetryAfter("429", 1e9), 10, 1, Wait(MAX_RETRY_AFTER_SECONDS + 0.5, "429")),
    ],
)
def test_what_follows_from_an_outcome(outcome: Outcome, count: int, attempt: int, expected: Decision) -> None:
    assert decide(outcome, count, attempt, POLICY, lambda: 0.5) == expected


@pytest.mark.parametrize(
    ("count", "attempt", "is_doubtful", "is_halved"),
    [
        (10, 1, False, False),
        (10, HALVE_AT_ATTEMPT - 1, False, False),
        (10, HALVE_AT_ATTEMPT, False, True),
        (10, 99, False, True),
        (10, 1, True, True),
        (1, 99, True, False),
    ],
)
def test_a_batch_whose_size_may_be_the_cause_is_halved_when_it_failed_again_and_again(
    count: int, attempt: int, is_doubtful: bool, is_halved: bool
) -> None:
    timed_out = RetryAfter("time-out", is_size_suspect=True)
    for outcome, in_part in ((timed_out, False), (Accepted(retry=tuple(range(count)), later=timed_out), True)):
        decision = decide(outcome, count, attempt, POLICY, lambda: 0.5, is_doubtful=is_doubtful)
        wait = decision.later if in_part and isinstance(decision, Settle) else decision
        assert isinstance(wait, Wait)
        assert wait.is_halved is is_halved


def test_what_has_nothing_to_do_with_the_size_never_makes_batches_smaller() -> None:
    assert decide(RetryAfter("503"), 10, 99, POLICY, lambda: 0.5, is_doubtful=True) == Wait(4.0, "503")


def test_batches_grow_at_once_after_an_outage() -> None:
    size = BatchSize(1000, 1000).after_failure(1000).after_failure(500)
    assert size == BatchSize(1000, 250)
    assert size.is_doubtful(250)
    size = size.after_success(250)
    assert size == BatchSize(1000, 500, good=250)
    assert [size.is_doubtful(count) for count in (250, 251)] == [False, True]
    size = size.after_success(500)
    assert size.now == 1000
    assert not size.is_doubtful(1000)
    assert size.after_success(1000) is size


def test_a_size_that_failed_when_smaller_ones_were_taken_is_tried_again_after_many() -> None:
    size = BatchSize(1000, 500, good=250).after_failure(500)
    assert size == BatchSize(1000, 250, good=250, bad=500)
    for taken in range(1, GROW_AFTER_BATCHES):
        size = size.after_success(250)
        assert size == BatchSize(1000, 250, 250, 500, taken)
    size = size.after_success(250)
    assert size == BatchSize(1000, 500, 250, 500)
    assert size.after_success(500) == BatchSize(1000, 1000, 500)
    assert size.after_failure(500) == BatchSize(1000, 250, 250, 500)


def test_a_size_that_was_good_may_be_bad_later() -> None:
    assert BatchSize(1000, 500, good=250, bad=500).after_failure(200) == BatchSize(1000, 100)


def test_a_batch_is_never_smaller_than_one_event() -> None:
    assert BatchSize(1000, 1).after_failure(1).now == 1


@pytest.mark.parametrize("outcome", [Refused("bad"), TooLarge("large"), CredentialsRefused("no"), RetryAfter("later")])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_nothing_is_settled_that_was_not_accepted_unless_it_is_a_single_refused_event(
    outcome: Outcome, count: int
) -> None:
    decision = decide(outcome, count, 1, POLICY, lambda: 0.5)
    if isinstance(decision, Settle):
        assert count == 1
        assert decision.dead == {0: "bad"}


def test_the_ceiling_doubles_up_to_2_to_the_32nd_and_then_no_more() -> None:
    patient = RetryPolicy(1.0, 1e12)
    waits = [patient.wait_seconds(attempt, lambda: 1.0) for attempt in (1, 2, 32, 33, 34, 10**9)]
    assert waits == [1, 2, 2**31, 2**32, 2**32, 2**32]


POLICIES = st.builds(RetryPolicy, st.floats(0.001, 100), st.floats(0.001, 1000))
RANDOM = st.floats(0, 1, exclude_max=True)


@given(policy=POLICIES, attempt=st.integers(1, 10**9), random=RANDOM)
def test_a_wait_lies_between_nothing_and_the_doubled_ceiling(policy: RetryPolicy, attempt: int, random: float) -> None:
    wait = policy.wait_seconds(attempt, lambda: random)
    assert 0 <= wait <= policy.max_seconds
    assert wait <= policy.initial_seconds * 2.0 ** min(attempt - 1, 60)


@given(policy=POLICIES, attempt=st.integers(1, 100), random=RANDOM, wish=st.floats(0, 1e10))
def test_a_wish_is_a_floor_and_is_missed_by_no_more_than_a_tenth_or_the_backoff(
    policy: RetryPolicy, attempt: int, random: float, wish: float
) -> None:
    wait = policy.wait_seconds(attempt, lambda: random, wish)
    assert wish <= wait <= max(wish * 1.1, policy.max_seconds) * (1 + 1e-9)
    assert math.isfinite(wait)


@given(attempt=st.integers(1, 100), random=st.floats(0.01, 1, exclude_max=True))
def test_a_wish_for_no_wait_at_all_does_not_switch_the_backoff_off(attempt: int, random: float) -> None:
    # Otherwise answers with `Retry-After: 0`, or with a date that our clock has passed, would cause a busy loop.
    assert POLICY.wait_seconds(attempt, lambda: random, 0.0) == POLICY.wait_seconds(attempt, lambda: random)
