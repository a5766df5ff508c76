"""The deliverer and refusals: events that are too large, too many, or refused for good, and how the books count them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from poller.config.sinks import StdoutSink as Settings
from poller.core.delivery import (
    PARKED_RETRY_SECONDS,
    Accepted,
    CredentialsRefused,
    Outcome,
    Refused,
    RetryAfter,
    TooLarge,
)
from poller.core.events import Event, OutboxEvent
from poller.core.mapping import SHORTEST_BYTES
from poller.core.windows import Window
from poller.pipeline.deliver import Deliverer, StepResult
from poller.sinks.stdout import StdoutSink
from poller.store.letters import StoredLetter
from poller.store.sqlite import State
from tests.states import commit

NOW = 1000.0


class Side(StdoutSink):
    """A receiver that answers as `judge` says, and keeps the lines of every send."""

    def __init__(self, judge: Callable[[Sequence[bytes]], Outcome], **settings: Any) -> None:
        super().__init__(Settings(**{"name": "out", "batch_age_seconds": 0.0, **settings}))
        self.sends: list[list[bytes]] = []
        self.judge = judge

    def send(self, events: Sequence[OutboxEvent]) -> Outcome:
        self.sends.append([event.line for event in events])
        return self.judge(self.sends[-1])


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    state = State.open(tmp_path, "run")
    state.contracts.enrol(["1"], "default", 0, 0)
    yield state
    state.close()


def deliverer_of(state: State, side: Side, lines: Sequence[bytes], **options: Any) -> Deliverer:
    """A deliverer with these events to send: one each second from 1 on, all collected at second 9."""
    deliverer = Deliverer(state.outbox, side, clock=options.pop("clock", lambda: NOW), **options)
    events = [
        Event(number * 1_000_000, number.to_bytes(16), line, True, True) for number, line in enumerate(lines, start=1)
    ]
    commit(state, events, window=Window(0, len(lines) + 1), now=9)
    return deliverer


def delivered(deliverer: Deliverer) -> int:
    """Deliver until nothing waits.  Returns: the number of settled events."""
    settled = 0
    for _ in range(1000):
        result = deliverer.step(is_last=True)
        settled += result.settled
        if result.wait_seconds is None:
            return settled
    raise AssertionError("it never ends")


def letters(state: State) -> list[StoredLetter]:
    return state.dead_letters.find()


def long(number: int, size: int) -> bytes:
    return b'{"n":%d,"x":"%s"}' % (number, b"x" * size)


def test_what_is_larger_than_the_sink_takes_is_a_dead_letter_and_the_rest_is_sent(state: State) -> None:
    lines = [b'{"n":1}', long(2, 3000), b'{"n":3}']
    side = Side(lambda sent: Accepted(), max_event_bytes=2048, oversize="dead-letter")
    assert delivered(deliverer_of(state, side, lines)) == 3
    assert side.sends == [[lines[0], lines[2]]]
    (letter,) = letters(state)
    assert (letter.line, letter.status, letter.contract) == (lines[1], None, "1")
    assert "max_event_bytes" in letter.reason
    (sink,) = state.outbox.sinks()
    assert (sink.delivered, sink.dead) == (2, 1)
    assert not state.overview().imbalances()


def test_what_is_as_large_as_the_sink_takes_is_sent_as_it_is_also_beside_a_larger_one(state: State) -> None:
    line = long(1, 100)
    side = Side(lambda sent: Accepted(), max_event_bytes=len(line), oversize="dead-letter")
    delivered(deliverer_of(state, side, [line, long(2, 101)]))
    assert side.sends == [[line]]
    assert [letter.line for letter in letters(state)] == [long(2, 101)]


def test_what_is_larger_than_the_sink_takes_is_shortened_if_that_was_asked_for(state: State) -> None:
    lines = [long(1, 3000), b'{"n":2}']
    side = Side(lambda sent: Accepted(), max_event_bytes=2048, oversize="truncate")
    delivered(deliverer_of(state, side, lines))
    ((shortened, other),) = side.sends
    assert len(shortened) <= 2048
    assert (other, letters(state)) == (lines[1], [])


def test_what_the_other_side_finds_too_large_is_halved_until_it_takes_it(state: State) -> None:
    def judge(sent: Sequence[bytes]) -> Outcome:
        return TooLarge("too large", 413) if sum(map(len, sent)) > 1500 else Accepted()

    lines = [long(number, 480) for number in range(8)]
    side = Side(judge, oversize="truncate")
    assert delivered(deliverer_of(state, side, lines)) == 8
    taken = [line for sent in side.sends if judge(sent) == Accepted() for line in sent]
    assert taken == lines, "each as it is, once, in order"
    assert letters(state) == []


def test_an_event_that_alone_is_too_large_is_shortened_to_what_the_other_side_takes(state: State) -> None:
    side = Side(
        lambda sent: TooLarge("too large", 413) if len(sent[0]) > 4 * SHORTEST_BYTES else Accepted(),
        oversize="truncate",
    )
    delivered(deliverer_of(state, side, [long(1, 40 * SHORTEST_BYTES)]))
    assert len(side.sends[-1][0]) <= 4 * SHORTEST_BYTES
    sizes = [len(sent[0]) for sent in side.sends]
    assert sizes == sorted(sizes, reverse=True)
    assert letters(state) == []


@pytest.mark.parametrize("oversize", ["truncate", "dead-letter"])
def test_an_event_that_is_too_large_however_short_it_is_made_is_a_dead_letter(state: State, oversize: str) -> None:
    side = Side(
        lambda sent: TooLarge("too large", 413) if len(sent) > 1 or b'"n":1,' in sent[0] else Accepted(),
        oversize=oversize,
    )
    lines = [long(1, 2 * SHORTEST_BYTES), b'{"n":2}']
    delivered(deliverer_of(state, side, lines))
    (letter,) = letters(state)
    assert (letter.status, letter.reason) == (413, "too large")
    assert side.sends[-1] == [lines[1]]


def test_of_a_batch_that_is_refused_only_the_culprit_becomes_a_dead_letter(state: State) -> None:
    side = Side(lambda sent: Refused("bad", 400) if b'{"n":5}' in sent else Accepted())
    lines = [b'{"n":%d}' % number for number in range(9)]
    assert delivered(deliverer_of(state, side, lines)) == 9
    assert [(letter.line, letter.status, letter.reason) for letter in letters(state)] == [(b'{"n":5}', 400, "bad")]
    taken = [line for sent in side.sends if b'{"n":5}' not in sent for line in sent]
    assert taken == [line for line in lines if line != b'{"n":5}']


def test_events_that_are_refused_by_name_are_dead_letters_in_order_each_with_its_reason(state: State) -> None:
    def judge(sent: Sequence[bytes]) -> Outcome:
        return Accepted({2: "late", 0: "odd"}, status=207)

    delivered(deliverer_of(state, Side(judge), [b'{"n":%d}' % number for number in range(3)]))
    found = [(letter.line, letter.reason, letter.status) for letter in letters(state)]
    assert found == [(b'{"n":0}', "odd", 207), (b'{"n":2}', "late", 207)]


def test_a_dead_letter_is_kept_as_the_sink_may_see_it(state: State) -> None:
    side = Side(lambda sent: Refused("bad", 400))
    delivered(deliverer_of(state, side, [b'{"user":"anna"}'], redact=lambda line: line.replace(b"anna", b"***")))
    assert side.sends == [[b'{"user":"***"}']]
    assert [letter.line for letter in letters(state)] == [b'{"user":"***"}']


def test_each_kind_of_failure_is_counted_and_a_success_is_none(state: State) -> None:
    answers: list[Outcome] = [
        RetryAfter("busy"),
        CredentialsRefused("no key", 401),
        TooLarge("too large", 413),
        Accepted(retry=(0,), later=RetryAfter("one")),
        Accepted(),
    ]
    expected = ["unavailable", "credentials_refused", "too_large", "partly_accepted"]
    now, kinds = NOW, []
    side = Side(lambda sent: answers.pop(0) if answers else Accepted())
    deliverer = deliverer_of(state, side, [b"{}", b"[]"], clock=lambda: now, on_failed=kinds.append)
    for _ in range(20):
        result = deliverer.step(is_last=True)
        if result.wait_seconds is None:
            break
        now += result.wait_seconds
    assert kinds == expected


def test_a_refused_key_is_tried_again_after_a_minute_and_forgotten_once_it_works(state: State) -> None:
    now = NOW
    side = Side(lambda sent: CredentialsRefused("no key", 401))
    deliverer = deliverer_of(state, side, [b"{}"], clock=lambda: now)
    assert deliverer.step() == StepResult(0, PARKED_RETRY_SECONDS)
    (row,) = state.outbox.sinks()
    assert (deliverer.refusal, row.parked_at, row.retry_at) == ("no key", NOW, NOW + PARKED_RETRY_SECONDS)
    now += PARKED_RETRY_SECONDS / 2
    assert deliverer.step().wait_seconds == PARKED_RETRY_SECONDS / 2
    assert len(side.sends) == 1
    now += PARKED_RETRY_SECONDS / 2
    deliverer.step()
    (row,) = state.outbox.sinks()
    assert (len(side.sends), row.parked_at) == (2, NOW), "parked since the first refusal"
    now += PARKED_RETRY_SECONDS
    side.judge = lambda sent: Accepted()
    assert deliverer.step().settled == 1
    (row,) = state.outbox.sinks()
    assert (deliverer.refusal, row.parked_at, row.failure, row.delivered) == ("", None, "", 1)


def test_a_failure_of_another_kind_ends_that_a_sink_is_parked(state: State) -> None:
    now = NOW
    side = Side(lambda sent: CredentialsRefused("no key", 401))
    deliverer = deliverer_of(state, side, [b"{}"], clock=lambda: now)
    deliverer.step()
    now += PARKED_RETRY_SECONDS
    side.judge = lambda sent: RetryAfter("busy")
    deliverer.step()
    assert [row.parked_at for row in state.outbox.sinks()] == [None]


def test_a_batch_waits_to_be_filled_until_its_first_event_is_old_enough(state: State) -> None:
    now = 10.0  # the events were collected at second 9
    side = Side(lambda sent: Accepted(), batch_age_seconds=5.0)
    deliverer = deliverer_of(state, side, [b"{}"], clock=lambda: now)
    assert deliverer.step() == StepResult(0, 4.0)
    now = 14.0
    assert deliverer.step().settled == 1
    assert deliverer.step() == StepResult(0, None)


def test_a_batch_that_is_full_does_not_wait_and_one_from_the_future_neither(state: State) -> None:
    side = Side(lambda sent: Accepted(), batch_age_seconds=5.0, batch_events=2)
    deliverer = deliverer_of(state, side, [b"1", b"2", b"3"], clock=lambda: 10.0)
    assert deliverer.step().settled == 2
    assert deliverer.step().settled == 0, "the third waits for others"
    other = Side(lambda sent: Accepted(), batch_age_seconds=5.0, name="other")
    early = Deliverer(state.outbox, other, clock=lambda: 1.0)
    commit(state, [Event(99_000_000, bytes(16), b"4", True, True)], window=Window(90, 100), now=9)
    assert early.step().settled == 1, "the clock was set back: who knows for how long it would wait"
