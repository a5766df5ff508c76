"""The pace of an account, against limits of the API that are not documented. Time is a number."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

import pytest

from poller.core.pace import MAX_PAUSE_SECONDS, Pace


class Limit(NamedTuple):
    """The limit of the API: `count` requests in any `seconds` seconds."""

    count: int
    seconds: float


def play(limit: Limit, contracts: int, seconds: float, *, is_told: bool = False) -> tuple[Counter[int], int]:
    """Let every contract ask continuously.  Returns: the answers of each contract, and the number of refusals by the API.

    `is_told`: the API's refusals say how long to wait.
    """
    pace, now = Pace(), 0.0
    taken_at: deque[float] = deque()
    answered: Counter[int] = Counter()
    refused = 0
    waiting = deque((contract, object()) for contract in range(contracts))
    for _, ticket in waiting:
        pace.queue_up(ticket)
    while now < seconds:
        waits = []
        for contract, ticket in list(waiting):
            wait = pace.wait_seconds(ticket, now)
            if wait:
                waits.append(wait)
                continue
            while taken_at and now - taken_at[0] >= limit.seconds:
                taken_at.popleft()
            if len(taken_at) < limit.count:
                taken_at.append(now)
                answered[contract] += 1
                pace.taken(now, now + 0.01)
                pace.leave(ticket)
                waiting.remove((contract, ticket))
                waiting.append((contract, object()))
                pace.queue_up(waiting[-1][1])
            else:
                refused += 1
                pace.refused(now, now + 0.01, taken_at[0] + limit.seconds - now if is_told else None)
        now += max(0.01, min(waits, default=0.01))
    return answered, refused


@pytest.mark.parametrize(
    "limit", [Limit(7, 15), Limit(10, 1), Limit(30, 60), Limit(100, 60), Limit(2, 10), Limit(1, 1)]
)
@pytest.mark.parametrize("is_told", [False, True])
def test_the_pace_finds_the_limit_and_no_contract_starves(limit: Limit, is_told: bool) -> None:
    answered, refused = play(limit, contracts=12, seconds=600, is_told=is_told)
    possible = 600 / limit.seconds * limit.count
    assert answered.total() > possible * 0.4
    assert refused < answered.total() * 0.3 + 10 or limit.count <= 2
    assert refused <= answered.total() + 10
    assert max(answered.values()) - min(answered[contract] for contract in range(12)) <= 2


def test_a_first_poll_of_twelve_contracts_comes_through_soon() -> None:
    answered, refused = play(Limit(7, 15), contracts=12, seconds=45)
    assert len(answered) == 12
    assert refused <= 8


def test_nothing_is_held_back_before_a_refusal() -> None:
    pace = Pace()
    for number in range(1000):
        ticket = object()
        pace.queue_up(ticket)
        assert pace.wait_seconds(ticket, number / 1000) == 0
        pace.leave(ticket)
        pace.taken(number / 1000, number / 1000)
    assert pace.per_second is None


def test_refusals_of_requests_that_were_on_their_way_are_one_refusal() -> None:
    pace = Pace()
    for number in range(4):
        pace.refused(0.0, 0.1 + number / 100, None)
    ticket = object()
    pace.queue_up(ticket)
    assert pace.wait_seconds(ticket, 0.2) == pytest.approx(1, abs=0.2)


def test_of_several_refusals_the_longest_wish_holds() -> None:
    pace = Pace()
    pace.refused(0.0, 0.1, 2.0)
    pace.refused(0.0, 0.2, 9.0)
    ticket = object()
    pace.queue_up(ticket)
    assert pace.wait_seconds(ticket, 0.2) == pytest.approx(9, abs=0.2)


def test_only_one_request_tries_whether_the_pause_was_long_enough() -> None:
    pace = Pace()
    pace.refused(0.0, 0.0, None)
    first, second = object(), object()
    pace.queue_up(first)
    pace.queue_up(second)
    assert pace.wait_seconds(second, 5.0) > 0
    assert pace.wait_seconds(first, 5.0) == 0
    pace.leave(first)
    assert pace.wait_seconds(second, 5.1) > 0
    pace.lost()  # no answer came
    assert pace.wait_seconds(second, 5.2) == 0


def test_an_answer_from_before_the_pause_does_not_end_it() -> None:
    pace = Pace()
    pace.refused(1.0, 1.1, 60.0)
    pace.taken(0.9, 1.2)
    assert pace.refused_seconds(2.0) == pytest.approx(0.9)
    pace.taken(62.0, 62.1)
    assert pace.refused_seconds(63.0) is None


def test_the_pause_doubles_up_to_its_bound() -> None:
    pace, now, pauses = Pace(), 0.0, []
    ticket = object()
    pace.queue_up(ticket)
    for _ in range(7):
        pace.refused(now, now, None)
        pauses.append(round(pace.wait_seconds(ticket, now), 3))
        now += pauses[-1]
    assert pauses == sorted(pauses)
    assert pauses[0] < 1.2
    assert pauses[-1] == pytest.approx(MAX_PAUSE_SECONDS, abs=0.2)


def test_a_limit_that_goes_away_is_forgotten_in_the_end() -> None:
    pace = Pace()
    pace.taken(0.0, 0.0)
    pace.refused(0.1, 0.1, None)
    pace.taken(2.0, 2.0)
    assert pace.per_second is not None
    for number in range(300):
        pace.taken(3.0 + number, 3.0 + number)
    assert pace.per_second is None


def test_refusals_by_chance_do_not_bring_the_account_to_a_halt() -> None:
    pace, now, taken = Pace(), 0.0, 0
    ticket = object()
    pace.queue_up(ticket)
    for number in range(1, 301):
        while wait := pace.wait_seconds(ticket, now):
            now += wait
        if number % 5 == 0:
            pace.refused(now, now, None)
        else:
            pace.taken(now, now)
            taken += 1
        now += 0.05
    assert taken / now > 0.2


def test_where_the_api_says_how_long_to_wait_nothing_else_slows_the_account_down() -> None:
    pace = Pace()
    pace.taken(0.0, 0.0)
    pace.refused(0.1, 0.1, 5.0)
    pace.taken(6.0, 6.0)
    assert pace.per_second is None
