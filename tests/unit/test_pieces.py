"""The events that a deliverer holds: pieces of the outbox with the result of each event, and which contract is sent next."""

from __future__ import annotations

from typing import Any

import pytest

from poller.core.events import OutboxEvent
from poller.pipeline.pieces import Piece, key_of
from poller.pipeline.queues import Queues
from poller.store.rows import DeadLetter, Postponed


def event(number: int, contract: str = "1") -> OutboxEvent:
    return OutboxEvent(contract, number, 7, bytes([number]) * 16, 0, b"%d" % number)


EVENTS = [event(number, "1" if number % 2 else "2") for number in range(6)]


def letter(number: int) -> DeadLetter:
    return DeadLetter(EVENTS[number], 400, f"no {number}")


def numbers(piece: Piece) -> tuple[list[int], list[int], list[int]]:
    """The numbers of the events of a piece: all, the dead ones, and the delivered ones."""
    of = [found.time_us for found in piece.events]
    assert [piece.dead[index].event for index in piece.dead] == [piece.events[index] for index in piece.dead]
    return of, [of[index] for index in sorted(piece.dead)], [of[index] for index in sorted(piece.delivered)]


PIECE = Piece(EVENTS, {1: letter(1), 4: letter(4)}, frozenset({0, 5}))


def test_what_is_neither_dead_nor_delivered_is_still_to_be_sent() -> None:
    assert list(PIECE.open()) == [2, 3]
    assert list(Piece(EVENTS, {}).open()) == [0, 1, 2, 3, 4, 5]
    assert list(Piece(EVENTS, {1: letter(1)}).open()) == [0, 2, 3, 4, 5]
    assert list(Piece(EVENTS, {}, frozenset({5})).open()) == [0, 1, 2, 3, 4]


def test_a_part_keeps_what_is_known_of_its_events() -> None:
    assert numbers(PIECE.part(1, 5)) == ([1, 2, 3, 4], [1, 4], [])
    assert numbers(PIECE.part(0, 1)) == ([0], [], [0])
    assert numbers(PIECE.part(4, 6)) == ([4, 5], [4], [5])


@pytest.mark.parametrize(
    ("piece", "cut"), [(Piece(EVENTS, {}), 3), (Piece(EVENTS[:5], {}), 2), (PIECE, 3), (Piece(EVENTS[:2], {}), 1)]
)
def test_halves_have_as_many_to_be_sent_or_one_less_in_the_first(piece: Piece, cut: int) -> None:
    first, second = piece.halves()
    assert [found.time_us for found in first.events] == list(range(cut))
    assert numbers(first)[0] + numbers(second)[0] == numbers(piece)[0]
    assert numbers(first)[1] + numbers(second)[1] == numbers(piece)[1]
    assert numbers(first)[2] + numbers(second)[2] == numbers(piece)[2]


def test_without_a_contract_the_others_keep_their_order_and_what_is_known_of_them() -> None:
    assert numbers(PIECE.without({"2"})) == ([1, 3, 5], [1], [5])
    assert numbers(PIECE.without({"1"})) == ([0, 2, 4], [4], [0])
    assert numbers(PIECE.without({"1", "2"})) == ([], [], [])


def test_what_was_known_before_is_known_of_the_next_piece() -> None:
    known: dict[Any, DeadLetter | None] = {key_of(EVENTS[1]): letter(1), key_of(EVENTS[2]): None}
    assert numbers(Piece(EVENTS, {}).knowing(known)) == (list(range(6)), [1], [2])
    assert numbers(PIECE.knowing(known)) == (list(range(6)), [1, 4], [0, 2, 5])
    assert {found.time_us: dead for found, dead in PIECE.done()} == {
        0: None,
        1: letter(1),
        4: letter(4),
        5: None,
    }


def test_an_event_is_told_from_all_others() -> None:
    one = event(1)
    keys = {
        key_of(one),
        key_of(OutboxEvent("2", 1, 7, one.identity, 0, b"")),
        key_of(OutboxEvent("1", 1, 8, one.identity, 0, b"")),
        key_of(OutboxEvent("1", 1, 7, bytes(16), 0, b"")),
        key_of(OutboxEvent("1", 1, 7, one.identity, 1, b"")),
    }
    assert len(keys) == 5


class Place:
    """The postponed contracts, as in the state."""

    def __init__(self, *rows: Postponed) -> None:
        self.rows = rows
        self.asked = 0

    def postponed(self) -> tuple[Postponed, ...]:
        self.asked += 1
        return self.rows


def row(contract: str, at: float, until: float, attempts: int = 1) -> Postponed:
    return Postponed(contract, attempts, at, until, "no", at)


def looked(queues: Queues, place: Any, now: float) -> tuple[list[str | None], list[float]]:
    due, waits = queues.turns(place, now)
    return [queue.contract for queue in due], waits


def test_a_contract_that_another_process_postponed_is_found_within_five_seconds() -> None:
    queues, place = Queues(10), Place()
    for now, asked in ((100.0, 1), (100.0, 1), (104.9, 1), (105.0, 2), (109.9, 2), (109.0, 2), (104.0, 3)):
        assert looked(queues, place, now) == ([None], [])
        assert place.asked == asked, now


def test_what_waits_on_its_own_is_looked_at_each_time_and_waits_until_it_is_due() -> None:
    queues = Queues(10)
    place = Place(row("1", 100.0, 130.0, 3), row("2", 100.0, 101.0))
    assert looked(queues, place, 100.0) == ([None], [30.0, 1.0])
    assert looked(queues, place, 101.0) == (["2", None], [29.0])
    assert place.asked == 2
    assert looked(queues, place, 130.0) == (["1", "2", None], [])
    assert looked(queues, place, 99.0) == (["1", "2", None], []), "the clock was set back"
    due, _ = queues.turns(Place(row("1", 0.0, 0.0, 3)), 130.0)  # type: ignore[arg-type]
    assert [(queue.attempts, queue.size.now) for queue in due] == [(3, 1), (0, 10)]


def test_what_waits_on_its_own_and_all_others_take_turns() -> None:
    queues, place = Queues(10), Place(row("1", 0.0, 0.0))
    due, _ = queues.turns(place, 9.0)  # type: ignore[arg-type]
    queues.take_up(due[0])
    assert queues.current.contract == "1"
    assert looked(queues, place, 9.0)[0] == [None, "1"]
    queues.take_up(queues.others)
    assert looked(queues, place, 9.0)[0] == ["1", None]


def test_a_contract_that_is_put_off_is_tried_after_the_others_and_with_one_event() -> None:
    queues = Queues(10)
    assert (queues.part("1").size.now, queues.has_own) == (1, True)
    queues.others.size = queues.others.size.after_failure(8)
    assert [queues.part(contract).size.now for contract in ("2", "1")] == [1, 1]
    assert looked(queues, Place(row("1", 0, 0), row("2", 0, 0)), 9.0)[0] == [None, "1", "2"]


def test_what_was_taken_behind_one_that_was_put_off_is_known_until_it_is_settled() -> None:
    queues = Queues(10)
    queues.remember(PIECE, {"1"})
    again = queues.knowing(Piece(EVENTS, {}))
    assert numbers(again) == (list(range(6)), [1], [5])
    queues.settled(again.part(5, 6))
    assert numbers(queues.knowing(Piece(EVENTS, {}))) == (list(range(6)), [1], [])
    queues.begin(4)
    assert (queues.others.attempts, queues.has_own) == (4, False)
    assert numbers(queues.knowing(Piece(EVENTS, {}))) == (list(range(6)), [], [])


def test_after_a_settled_piece_the_next_failure_is_a_first_one() -> None:
    queues = Queues(10)
    own = queues.part("1")
    own.attempts, queues.others.attempts = 2, 3
    queues.take_up(own)
    queues.settled(Piece([], {}))
    assert (own.attempts, queues.others.attempts) == (0, 0)


def test_contracts_of_which_nothing_was_taken_all_the_time_are_stuck() -> None:
    queues = Queues(10)
    assert not queues.is_any_stuck
    assert queues.note_stuck({"1", "2"}, set(), EVENTS[1]) == 1
    assert queues.is_any_stuck
    assert queues.note_stuck({"1", "2", "3"}, set(), EVENTS[1]) == 2
    assert queues.note_stuck({"1", "2"}, {"2"}, EVENTS[1]) == 3
    assert queues.long_stuck() == {"1"}
    assert not queues.is_any_stuck


def test_another_event_that_is_stuck_begins_anew_and_one_always_is() -> None:
    queues = Queues(10)
    queues.note_stuck({"1"}, set(), EVENTS[1])
    assert queues.note_stuck({"2", "3"}, set(), EVENTS[2]) == 1
    assert queues.note_stuck({"2", "3"}, {"2", "3"}, EVENTS[2]) == 2
    assert queues.long_stuck() == {"2"}
    queues.note_stuck({"1"}, set(), EVENTS[1])
    queues.taken_whole()
    assert (queues.is_any_stuck, queues.long_stuck()) == (False, set())
    assert queues.note_stuck({"1"}, set(), EVENTS[1]) == 1
