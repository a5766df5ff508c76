"""Which contract asks next if some of them hang. Time is a number."""

from __future__ import annotations

from collections import Counter

import pytest

from poller.core.turns import PATIENCE_SECONDS, Turns


def begin(turns: Turns, contract: str, now: float = 0.0) -> object | None:
    """A ticket whose turn it is. If it would have to wait, it leaves the queue, and the result is None."""
    ticket = object()
    turns.queue_up(ticket, contract)
    if turns.wait_seconds(ticket, now):
        turns.leave(ticket)
        return None
    return ticket


def test_no_more_requests_are_open_than_allowed() -> None:
    turns = Turns(4)
    assert [begin(turns, str(number)) is not None for number in range(6)] == [True] * 4 + [False] * 2


def test_a_request_that_hangs_leaves_its_place_to_another_one() -> None:
    turns = Turns(2)
    assert begin(turns, "1")
    assert begin(turns, "2")
    ticket = object()
    turns.queue_up(ticket, "3")
    assert turns.wait_seconds(ticket, 0.5) == pytest.approx(PATIENCE_SECONDS - 0.5)
    assert turns.wait_seconds(ticket, PATIENCE_SECONDS) == 0
    assert turns.hanging_count(PATIENCE_SECONDS) == 2


def test_not_any_number_of_requests_may_hang() -> None:
    turns = Turns(2)
    opened = [begin(turns, str(number), number * 10.0) for number in range(10)]
    assert sum(ticket is not None for ticket in opened) == 6


def test_turns_go_to_the_contract_that_was_served_longest_ago() -> None:
    turns = Turns(1)
    served = Counter()
    waiting = {
        contract: [object() for _ in range(50 if contract == "large" else 5)] for contract in ("large", "1", "2")
    }
    for contract, tickets in waiting.items():
        for ticket in tickets:
            turns.queue_up(ticket, contract)
    for _ in range(9):
        contract, ticket = next(
            (contract, ticket)
            for contract, tickets in waiting.items()
            for ticket in tickets
            if not turns.wait_seconds(ticket, 0.0)
        )
        waiting[contract].remove(ticket)
        served[contract] += 1
        turns.end(ticket, 0.1, is_answered=True)
    assert served == {"large": 3, "1": 3, "2": 3}


def make_slow(turns: Turns, contract: str) -> None:
    ticket = begin(turns, contract)
    assert ticket
    turns.end(ticket, PATIENCE_SECONDS, is_answered=False)


def test_contracts_that_do_not_answer_get_a_share_of_the_turns() -> None:
    turns = Turns(4)
    for number in "1234":
        make_slow(turns, number)
    assert [begin(turns, number, 100.0) is not None for number in "1234"] == [True, True, False, False]
    assert begin(turns, "5", 100.0)
    assert begin(turns, "6", 100.0)


def test_a_contract_that_answers_again_is_as_any_other() -> None:
    turns = Turns(2)
    make_slow(turns, "1")
    assert turns.is_slow("1")
    ticket = begin(turns, "1")
    assert ticket
    turns.end(ticket, 50.0, is_answered=True)
    assert not turns.is_slow("1")


def test_a_request_that_fails_at_once_makes_no_contract_slow() -> None:
    turns = Turns(2)
    ticket = begin(turns, "1")
    assert ticket
    turns.end(ticket, 0.1, is_answered=False)
    assert not turns.is_slow("1")


def test_polls_of_slow_contracts_take_turns_too() -> None:
    turns = Turns(2)
    for number in "123":
        make_slow(turns, number)
    admitted: Counter[str] = Counter()
    for round_number in range(30):
        for number in "123":  # always in the same order
            if turns.admit(number, round_number * 30.0):
                admitted[number] += 1
                running = number
        turns.dismiss(running)
    assert admitted == {"1": 10, "2": 10, "3": 10}
    assert turns.admit("4", 0.0)


def test_a_slow_contract_that_asks_no_more_holds_up_no_other() -> None:
    turns = Turns(2)
    for number in "123":
        make_slow(turns, number)
    assert turns.admit("1", 0.0)
    assert not turns.admit("2", 0.0)
    turns.dismiss("1")
    assert not turns.admit("3", 10.0)
    assert turns.admit("3", 10_000.0)


def test_a_contract_that_is_served_again_leaves_the_slow_ones_their_turns() -> None:
    turns = Turns(2)
    make_slow(turns, "1")
    for number in "23":
        turns.ended_after(number, 5)
    assert [turns.admit(number, 0.0) for number in "231"] == [True, False, False]
    turns.ended_after("2", 1)
    assert not turns.admit("3", 0.5), "it was not served"
    turns.ended_after("2", 0)
    turns.dismiss("2")
    assert [turns.admit(number, 1.0) for number in "31"] == [True, True], "the other one that failed is put off no more"
    turns.dismiss("1")
    turns.ended_after("3", 1)
    assert turns.admit("3", 2.0), "what was not tried again has kept nobody waiting"
