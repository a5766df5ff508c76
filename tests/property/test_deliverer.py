"""The deliverer against a sink with random answers: an event leaves the outbox only if it was taken or has a dead
letter. It is sent again only after a restart."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from poller.config.sinks import HttpSink as Settings
from poller.core.delivery import Accepted, CredentialsRefused, Outcome, Refused, RetryAfter, TooLarge
from poller.core.events import Event, OutboxEvent
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer
from poller.sinks.base import Sink
from poller.store.protocols import State
from poller.store.sqlite import State as FileState
from tests.deliveries import Clock, deliver
from tests.states import commit
from tests.support import seed_of_chance

CONTRACTS = ("1", "2", "3", "4")
PLANS = [*(("sqlite", number) for number in range(60)), *(("postgres", number) for number in range(10))]
ROUNDS = 25

Key = tuple[str, int]


def key_of(event: OutboxEvent) -> Key:
    return event.contract, event.time_us


def is_blocked(event: OutboxEvent) -> bool:
    """Whether a firewall in front of the sink answers 403 because of the content of the event."""
    return event.time_us % 11 == 0


class Dice(Sink):
    """A sink with random answers, for a whole batch or event by event. Streams (two of each contract) are blocked for a while."""

    def __init__(self, dice: random.Random) -> None:
        settings: Any = Settings(
            name="out", url="http://127.0.0.1", batch_age_seconds=0.0, batch_events=dice.choice((3, 7, 40))
        )
        super().__init__(settings)
        self.dice = dice
        self.is_well = False
        self.is_split = dice.random() < 0.3
        self.has_firewall = dice.random() < 0.3
        self.is_revoked = False
        self.blocked: set[tuple[str, bool]] = set()
        self.taken: Counter[Key] = Counter()
        self.refused: set[Key] = set()

    def parts(self, events: Sequence[OutboxEvent]) -> Sequence[Sequence[OutboxEvent]]:
        half = len(events) // 2
        return [events[:half], events[half:]] if self.is_split and half else [events]

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        if self.is_revoked or (self.has_firewall and any(is_blocked(event) for event in events)):
            return CredentialsRefused("HTTP 403", 403)
        outcome = Accepted() if self.is_well else self._answer(events)
        if isinstance(outcome, Accepted):
            self.refused |= {key_of(events[index]) for index in outcome.refused}
            left = {*outcome.retry, *outcome.refused}
            self.taken.update(key_of(event) for index, event in enumerate(events) if index not in left)
        elif isinstance(outcome, Refused) and len(events) == 1:
            self.refused.add(key_of(events[0]))
        return outcome

    def _answer(self, events: Sequence[OutboxEvent]) -> Outcome:
        dice = self.dice
        later = RetryAfter("busy", dice.choice((None, None, 0.0, 5.0)), is_size_suspect=dice.random() < 0.5)
        match dice.choices(("part", "all", "later", "refused", "large", "key"), (10, 4, 3, 2, 1, 0.3))[0]:
            case "all":
                return Accepted()
            case "later":
                return later
            case "refused":
                return Refused("no", 400)
            case "large":
                return TooLarge("too large", 413) if len(events) > 1 else later
            case "key":
                return CredentialsRefused("HTTP 401", 401)
        retry = tuple(index for index, event in enumerate(events) if self._is_blocked(event) or dice.random() < 0.03)
        poison = {index: "poison" for index in range(len(events)) if index not in retry and dice.random() < 0.03}
        if len(retry) == len(events):
            return later
        return Accepted(poison, retry, 200, later if retry and dice.random() < 0.9 else None)

    def _is_blocked(self, event: OutboxEvent) -> bool:
        return (event.contract, event.time_us % 2 == 0) in self.blocked

    def probe(self) -> Outcome:
        return Accepted()


@pytest.mark.parametrize(("backend", "number"), PLANS)
def test_what_leaves_the_outbox_was_taken_or_is_a_dead_letter_and_nothing_is_sent_twice_but_after_a_restart(
    tmp_path: Path, backend: str, number: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    dice = random.Random(seed_of_chance() + number)
    monkeypatch.setattr("poller.pipeline.deliver.random", dice)  # for the random part of its waits
    monkeypatch.setattr("poller.pipeline.forbidden.random", dice)
    clock, sink = Clock(), Dice(dice)
    if backend == "sqlite":
        state: State = FileState.open(tmp_path, "run")
    else:
        state = request.getfixturevalue("postgres_stores").open(f"dice-{number}")
    state.contracts.enrol(CONTRACTS, "default", 0, 0)
    state.contracts.share(CONTRACTS)
    deliverer = Deliverer(state.outbox, sink, clock=clock)
    collected: list[Key] = []
    restarts = 0
    for _ in range(ROUNDS):
        for contract in dice.sample(CONTRACTS, dice.randint(0, 4)):
            new = [(contract, len(collected) + index) for index in range(1, dice.randint(2, 9))]
            events = [Event(at, at.to_bytes(16), b'{"n":%d}' % at, True, True) for _, at in new]
            commit(state, events, contract=contract, window=Window(0, 9), now=9)
            collected += new
        if dice.random() < 0.5:
            streams = [(contract, is_even) for contract in CONTRACTS for is_even in (False, True)]
            sink.blocked = set(dice.sample(streams, dice.randint(0, 4)))
        sink.is_revoked = dice.random() < 0.1
        deliver(deliverer, clock, dice.choice((0.5, 5.0, 120.0)))
        (row,) = state.overview().sinks
        assert row.sink.delivered <= sink.taken.total(), "counted as delivered, and never taken"
        if number % 2 and dice.random() < 0.3:
            restarts += 1
            deliverer.abandon()
            deliverer = Deliverer(state.outbox, sink, clock=clock)
    sink.is_well, sink.is_revoked = True, False
    assert deliver(deliverer, clock, 1000.0 if sink.has_firewall else 100_000.0) or sink.has_firewall
    # If all remaining events are blocked, one more event shows that the credentials are accepted.
    while sink.has_firewall and any(row.waiting for row in state.overview().sinks):
        new = next(at for at in range(len(collected) + 1, len(collected) + 3) if at % 11)
        commit(state, [Event(new, new.to_bytes(16), b"{}", True, True)], contract="1", window=Window(0, 9), now=9)
        collected += [("1", new)] + [("", 0)] * (new - len(collected) - 1)
        deliver(deliverer, clock, 1000.0)
    wanted = Counter(key for key in collected if key[0])
    (row,) = state.overview().sinks
    found = state.dead_letters.find("out")
    letters = Counter((letter.contract, letter.time_us) for letter in found)
    blocked = {(letter.contract, letter.time_us) for letter in found if letter.status == 403}
    assert row.waiting == 0
    assert all(key[1] % 11 == 0 for key in blocked)
    assert letters.keys() - blocked <= sink.refused
    assert restarts or letters.keys() - blocked == sink.refused
    assert wanted - sink.taken - letters == Counter(), "lost"
    again = sink.taken + letters - wanted
    # Events taken after one that was not: at most a batch of each postponed contract, and one of all other contracts.
    assert again.total() <= restarts * sink.settings.batch_events * (len(CONTRACTS) + 1)
    assert again.keys() <= set(collected), "invented"
    assert state.overview().imbalances() == []
    state.close()
