"""While the outbox is full, collecting waits for room, but only if room can become available."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from poller.core.errors import StateUnavailableError, StoppedError
from poller.pipeline.room import MayCome, Room, always, by_delivery, never
from poller.store.rows import Size

LIMIT = 1000
EVENTS, LETTERS, EMPTY = Size(1, 2048, 0), Size(0, 0, 2048), Size(0, 0, 0)


def room(may_come: MayCome, *sizes: Size, stop: threading.Event | None = None) -> Room:
    """The room of an outbox that has these sizes, one after the other."""
    left = list(sizes)

    def size(*, below: int) -> Size:
        assert below == LIMIT
        return left.pop(0)

    state: Any = SimpleNamespace(outbox=SimpleNamespace(size=size))
    return Room(state, LIMIT, stop or threading.Event(), may_come)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.pipeline.room._LOOK_SECONDS", 0.001)


@pytest.mark.parametrize("may_come", [always, by_delivery, never])
def test_where_there_is_room_nobody_waits(may_come: MayCome, caplog: pytest.LogCaptureFixture) -> None:
    room(may_come, EMPTY).wait()
    assert caplog.messages == []


@pytest.mark.parametrize(("may_come", "size"), [(always, EVENTS), (always, LETTERS), (by_delivery, EVENTS)])
def test_it_is_waited_for_where_it_may_come(may_come: MayCome, size: Size, caplog: pytest.LogCaptureFixture) -> None:
    room(may_come, size, size, EMPTY).wait()
    assert caplog.messages == ["outbox.full", "outbox.has_room"]
    full: Any = caplog.records[0]
    assert (full.max_bytes, full.dead_letter_bytes) == (LIMIT, size.letter_bytes)


@pytest.mark.parametrize(
    ("may_come", "size", "words"),
    [
        (by_delivery, LETTERS, "0 bytes of events, 2 KiB of dead letters"),
        (never, EVENTS, "2 KiB of events, 0 bytes of dead letters"),
        (never, LETTERS, "0 bytes of events, 2 KiB of dead letters"),
    ],
)
def test_a_wait_that_would_never_end_does_not_begin(
    may_come: MayCome, size: Size, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(StateUnavailableError, match=words):
        room(may_come, size).wait()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_what_is_delivered_meanwhile_may_leave_dead_letters_alone() -> None:
    with pytest.raises(StateUnavailableError):
        room(by_delivery, EVENTS, LETTERS).wait()


@pytest.mark.parametrize("size", [EVENTS, EMPTY])
def test_a_stop_ends_it(size: Size) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError, match=r"^asked to stop$"):
        room(always, size, stop=stop).wait()
