"""When a request may be sent, and what each outcome changes, with a clock that waits and requests move."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable

import pytest

from poller.core.errors import BodyTooLargeError, PollerError, StoppedError, TransientError
from poller.core.windows import Window
from poller.ionos.api import ActivityLog, token_expiry
from poller.ionos.asking import Asking, PausedError, SharedTurns
from poller.net.transport import RateLimit, Response, Transport


class Clock(threading.Event):
    """A clock, and a stop whose waits take no real time: they move the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        if not self.is_set():
            self.waits.append(round(timeout, 6))
            self.now += timeout
        return self.is_set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns(clock: Clock) -> SharedTurns:
    return SharedTurns(2, clock.monotonic)


@pytest.fixture
def asking(clock: Clock, turns: SharedTurns) -> Asking:
    return Asking(RateLimit(0), turns, clock, clock.monotonic)


def answer(status: int = 200, **headers: str) -> Callable[[], Response]:
    return lambda: Response(status, {name.replace("_", "-"): value for name, value in headers.items()}, b"")


def taking(clock: Clock, seconds: float, outcome: Response | Exception) -> Callable[[], Response]:
    """A request that takes this many seconds of the clock."""

    def send() -> Response:
        clock.now += seconds
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return send


# Turns


def test_a_turn_is_waited_for_until_another_request_is_over(turns: SharedTurns, clock: Clock) -> None:
    first, second = (turns.begin("1", clock) for _ in range(2))
    begun: list[object] = []
    thread = threading.Thread(target=lambda: begun.append(turns.begin("2", clock)))
    thread.start()
    assert not begun
    turns.end(first, is_answered=True)
    thread.join(10)
    assert len(begun) == 1
    turns.end(begun[0], is_answered=True)
    turns.end(second, is_answered=True)
    assert turns.hanging_count() == 0


def test_who_is_stopped_while_it_waits_for_a_turn_is_not_in_the_way(
    turns: SharedTurns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.ionos.asking._LOOK_SECONDS", 0.01)
    first, second = (turns.begin("1", clock) for _ in range(2))
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(StoppedError):
        turns.begin("1", stopped)
    for ticket in (first, second):
        turns.end(ticket, is_answered=True)
    turns.end(turns.begin("2", clock), is_answered=True)


@pytest.mark.parametrize(
    ("seconds", "outcome", "is_slow"),
    [
        (1.9, TransientError("no answer"), False),
        (2.0, TransientError("no answer"), True),
        (2.0, BodyTooLargeError("too large"), False),
        (2.0, Response(503, {}, b""), False),
    ],
)
def test_a_contract_is_slow_from_a_request_on_that_was_not_answered_in_time(
    asking: Asking, turns: SharedTurns, clock: Clock, seconds: float, outcome: Response | Exception, is_slow: bool
) -> None:
    if isinstance(outcome, Response):
        assert asking.ask("1", taking(clock, seconds, outcome)) is outcome
    else:
        with pytest.raises(type(outcome)):
            asking.ask("1", taking(clock, seconds, outcome))
    assert asking.turns.is_slow("1") is is_slow
    assert not asking.turns.is_slow("2")
    assert turns.hanging_count() == 0, "its turn is over"
    asking.ask("1", answer())
    assert not asking.turns.is_slow("1"), "it was answered"


def test_of_contracts_that_do_not_answer_only_a_share_is_polled(clock: Clock, turns: SharedTurns) -> None:
    api = ActivityLog(
        "http://h",
        lambda: "Bearer t",
        Transport(),
        rate_limit=RateLimit(0),
        stop=clock,
        turns=turns,
        clock=clock.monotonic,
    )
    open_requests = [turns.begin(contract, clock) for contract in ("1", "2")]
    clock.now += 1.9
    assert api.hanging_count() == 0
    clock.now += 0.1
    assert api.hanging_count() == 2
    for ticket in open_requests:
        turns.end(ticket, is_answered=False)
    assert [api.admit(contract) for contract in ("1", "2", "3")] == [True, False, True]
    api.dismiss("1")
    assert api.admit("2")


class Silent(Transport):
    """Never answers: each request fails after 5 seconds of the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.urls: list[str] = []

    def request(self, method: str, url: str, **_: object) -> Response:  # type: ignore[override]
        self.urls.append(url)
        self.clock.now += 5.0
        raise TransientError("no answer")


def test_a_contract_that_was_slow_and_is_still_is_not_asked_again_in_this_poll(
    clock: Clock, turns: SharedTurns
) -> None:
    silent = Silent(clock)
    api = ActivityLog(
        "http://h/", lambda: "Bearer t", silent, rate_limit=RateLimit(0), stop=clock, turns=turns, clock=clock.monotonic
    )
    counts = []
    for contract in ("1", "1", "2"):
        with pytest.raises(TransientError, match="no answer"):
            api.page(contract, Window(0, 60), 0, 10)
        counts.append(len(silent.urls))
    assert counts == [2, 3, 5], "only from the second request on is it known that it is slow"
    with pytest.raises(TransientError, match="no answer"):
        api.page("3", Window(0, 60), 0, 10, is_retried=False)
    assert len(silent.urls) == 6
    assert {*silent.urls[:5]} == {f"http://h/activitylog/v1/contracts/{contract}" for contract in "12"}


class Ill(Transport):
    """Answers at once: with the status of the contract, which is the last part of the path, or with an empty page."""

    def __init__(self, statuses: dict[str, int]) -> None:
        super().__init__()
        self.statuses = statuses

    def request(self, method: str, url: str, **_: object) -> Response:  # type: ignore[override]
        status = self.statuses.get(url.rpartition("/")[2], 200)
        return Response(status, {}, b'{"hits":{"total":0,"hits":[]}}' if status == 200 else b"")


def test_contracts_whose_requests_fail_at_every_try_keep_only_a_share_of_the_polls(
    clock: Clock, turns: SharedTurns
) -> None:
    ill = Ill({"1": 500, "2": 503, "3": 500, "4": 403, "5": 404, "6": 500})
    api = ActivityLog("http://h", lambda: "Bearer t", ill, rate_limit=RateLimit(0), stop=clock, turns=turns)

    def ask(contract: str, *, is_retried: bool = True) -> None:
        with pytest.raises(PollerError):
            api.page(contract, Window(0, 60), 0, 10, is_retried=is_retried)

    for contract in "12345":
        assert api.admit(contract)
        ask(contract)
        api.dismiss(contract)
    ask("6", is_retried=False)  # one try does not count as failing
    assert [api.admit(contract) for contract in "1234567"] == [True, False, False, True, True, True, True]
    api.dismiss("1")
    assert [api.admit(contract) for contract in "312"] == [False, False, True], "the one that has waited longest"
    ill.statuses.clear()
    api.page("2", Window(0, 60), 0, 10)
    assert api.admit("3"), "where one is served again, the others may be, too"
    assert api.admit("1")


def test_a_part_of_the_pace_is_left_to_others(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poller.net.transport.time", clock)
    api = ActivityLog("http://h", lambda: "", Transport(), rate_limit=(limit := RateLimit(4)), stop=clock)
    api.take_part(0.5)
    for _ in range(3):
        with limit.wait(clock):
            pass
    assert clock.waits == [1.0]


# The account's pace


def test_an_account_that_is_refused_waits_as_long_as_it_was_told(asking: Asking, clock: Clock) -> None:
    assert asking.ask("1", answer(429, Retry_After="7")).status == 429
    assert asking.ask("2", answer()).status == 200
    assert clock.waits == [7.1]
    asking.ask("2", answer())
    assert clock.waits == [7.1], "and is taken again"


def test_an_account_that_is_refused_for_too_long_is_left_to_a_later_poll(asking: Asking, clock: Clock) -> None:
    asking.ask("1", answer(429, Retry_After="40"))
    sent: list[int] = []
    with pytest.raises(PausedError, match=r"answered 429.* for 40 s") as error:
        asking.ask("7", lambda: sent.append(1) or answer()())  # type: ignore[func-returns-value]
    assert (error.value.status, error.value.contract, sent, clock.waits) == (429, "7", [], [])
    assert error.value.retry_after_seconds == pytest.approx(40.1)
    assert error.value.hint
    assert asking.ask("7", answer(), 40.2).status == 200, "what has more to lose waits longer"
    assert clock.waits == [40.1]


def test_the_time_that_was_waited_already_counts(asking: Asking, clock: Clock) -> None:
    for _ in range(3):  # refused again after each wait
        asking.ask("1", answer(429, Retry_After="9"))
    assert clock.waits == [9.1, 9.1]
    with pytest.raises(PausedError):
        asking.ask("1", answer(), 27.2)
    asking.ask("1", answer(), 27.4)


def test_who_is_stopped_while_the_account_is_refused_is_not_in_the_way(asking: Asking, clock: Clock) -> None:
    asking.ask("1", answer(429, Retry_After="5"))
    clock.set()
    with pytest.raises(StoppedError):
        asking.ask("1", answer())
    clock.clear()
    asking.ask("2", answer())
    assert clock.waits == [5.1]


def test_a_request_that_was_lost_is_no_sign_that_the_account_may_ask_again(asking: Asking, clock: Clock) -> None:
    asking.ask("1", answer(429))
    with pytest.raises(TransientError):
        asking.ask("1", taking(clock, 0.0, TransientError("lost")))
    asking.ask("1", answer(429))
    asking.ask("1", answer())
    assert clock.waits == [1.1, 2.1], "the pause doubles until a request is taken"


# Tokens


def jwt(claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.x"


@pytest.mark.parametrize(
    ("token", "expiry"),
    [
        (jwt({"exp": 1_777_621_340}), 1_777_621_340.0),
        (jwt({"exp": "17.5", "a": "?>~"}), 17.5),
        (jwt({"exp": 1, "a": "b"}), 1.0),
        (jwt({"exp": 1, "a": "bc"}), 1.0),
        (jwt({"exp": 1, "a": "bcd"}), 1.0),
        (jwt({"iat": 1}), None),
        (jwt({"exp": None}), None),
        (jwt({"exp": float("nan")}), None),
        (jwt({"exp": "inf"}), None),
        (jwt({"exp": "soon"}), None),
        (jwt({"exp": 10**400}), None),
        (jwt([1]), None),
        ("canary", None),
        ("a.b", None),
        ("a.\u00fc.c", None),
        ("", None),
    ],
)
def test_when_a_token_expires_is_read_where_it_says_so(token: str, expiry: float | None) -> None:
    assert token_expiry(token) == expiry
