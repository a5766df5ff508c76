"""Which workers are reported as stuck, and which only wait: with a fake clock, and with real waits and a very short grace."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from poller.core.errors import TransientError
from poller.net.transport import Transport
from poller.system import liveness
from poller.system.liveness import GRACE_SECONDS, StopSignal, Workers, helping, moves, waiting_for_others
from tests.support import wait_until


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(liveness, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_worker_that_shows_nothing_for_longer_than_the_grace_is_stuck_until_it_moves(clock: Clock) -> None:
    workers = Workers()
    with workers.busy("sink loki"):
        clock.now += GRACE_SECONDS
        assert workers.stuck() == {}
        clock.now += 1
        assert workers.stuck() == {"sink loki": GRACE_SECONDS + 1}
        moves()
        assert workers.stuck() == {}
        clock.now += GRACE_SECONDS + 1
    assert workers.stuck() == {}, "it is done"


def test_what_time_outs_allow_comes_on_top_and_holds_for_one_step(clock: Clock) -> None:
    workers = Workers()
    with workers.busy("sink loki"):
        moves(120)
        clock.now += 120 + GRACE_SECONDS
        moves(None)  # a part of the same step
        clock.now += 120 + GRACE_SECONDS
        assert workers.stuck() == {}
        moves()
        clock.now += GRACE_SECONDS + 1
        assert list(workers.stuck()) == ["sink loki"]


def test_work_within_work_moves_the_whole(clock: Clock) -> None:
    workers = Workers()
    with workers.busy("the job audit"):
        clock.now += GRACE_SECONDS - 1
        with workers.busy("the poll of contract 1"):
            pass
        clock.now += GRACE_SECONDS - 1
        assert workers.stuck() == {}


def in_a_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_wait_that_is_meant_is_no_standstill_however_long(clock: Clock) -> None:
    workers, stop, is_busy = Workers(), StopSignal(), threading.Event()

    def wait() -> None:
        with workers.busy("sink loki"):
            is_busy.set()
            stop.wait(3600)

    thread = in_a_thread(wait)
    assert is_busy.wait(5)
    wait_until(lambda: next(iter(workers._busy)).until > clock.now + 3600, what="it waits")
    clock.now += 3600
    assert workers.stuck() == {}
    clock.now += GRACE_SECONDS + 1
    assert list(workers.stuck()) == ["sink loki"]
    stop.set()
    thread.join()


def test_who_waits_for_helpers_is_judged_by_them(clock: Clock) -> None:
    workers, may_end = Workers(), threading.Event()
    with workers.busy("the poll of contract 1"):
        read = helping(lambda: (moves(500), may_end.wait(10)))
        thread = in_a_thread(read)
        wait_until(lambda: len(workers._busy) == 2, what="it helps")
        wait_until(lambda: max(worker.until for worker in workers._busy) > clock.now + 500, what="it asks")
        with waiting_for_others():
            clock.now += 500
            assert workers.stuck() == {}
            clock.now += GRACE_SECONDS + 1
            assert set(workers.stuck()) == {"the poll of contract 1", "the poll of contract 1 (reading)"}
            may_end.set()
            thread.join()
        assert workers.stuck() == {}, "what it waited for has come"
        with waiting_for_others():  # although no helper works
            clock.now += 501 + 2 * GRACE_SECONDS
            assert list(workers.stuck()) == ["the poll of contract 1"]


def test_who_does_not_wait_is_not_excused_by_another_that_has_more_time(clock: Clock) -> None:
    workers, may_end = Workers(), threading.Event()

    def work() -> None:
        with workers.busy("sink loki"):
            moves(500)
            may_end.wait(10)

    thread = in_a_thread(work)
    wait_until(lambda: any(worker.until > clock.now + 500 for worker in workers._busy), what="it works")
    with workers.busy("sink file"):
        clock.now += GRACE_SECONDS + 1
        assert list(workers.stuck()) == ["sink file"]
    may_end.set()
    thread.join()


def test_where_nobody_looks_it_costs_nothing() -> None:
    def work() -> int:
        return 1

    assert helping(work) is work
    moves(5)
    with waiting_for_others():
        assert not StopSignal().wait(0)


@pytest.fixture
def deaf() -> Iterator[str]:
    """The URL of a server that takes a request and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("body", [None, bytes(100_000)])
def test_a_request_that_hangs_is_no_standstill_until_its_time_outs(
    deaf: str, monkeypatch: pytest.MonkeyPatch, body: bytes | None
) -> None:
    monkeypatch.setattr(liveness, "GRACE_SECONDS", 0.5)
    workers, is_over, found = Workers(), threading.Event(), list[dict[str, float]]()

    def look() -> None:
        while not is_over.wait(0.01):
            found.append(workers.stuck())

    watching = in_a_thread(look)
    transport = Transport(timeout_seconds=(1.0, 0.6))
    with workers.busy("sink loki"), pytest.raises(TransientError):
        transport.request("POST", deaf, body=body)
    is_over.set()
    watching.join()
    transport.close()
    assert len(found) > 10
    assert not any(found)
