"""Following contracts without a state: new entries are shown once, oldest first, and a failure stops nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from poller.config import Config
from poller.core.answers import Page, parse_page
from poller.core.errors import AuthError, PollerError, RejectedError, TransientError
from poller.core.listing import ContractList
from poller.core.windows import Window, format_time
from poller.pipeline.follow import Follower
from tests.fake_api import DENIALS

NOW = 1_800_000_000
DOWN = TransientError("down (500)", status=500)


class Account:
    """An account: the contracts that it lists, and the times of the entries of each."""

    clock_skew_seconds: float | None = 0.0

    def __init__(self, **entries: Sequence[int]) -> None:
        self.entries = {contract.lstrip("c"): list(times) for contract, times in entries.items()}
        self.missing = ""
        self.failing: dict[str, PollerError] = {}
        self.windows: list[Window] = []

    def contracts(self) -> ContractList:
        if "" in self.failing:
            raise copy.copy(self.failing[""])
        return ContractList([*self.entries], self.missing)

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        if contract in self.failing:
            raise copy.copy(self.failing[contract])  # a copy, because the caller changes the error
        self.windows.append(window)
        times = [at for at in self.entries.get(contract, ()) if window.start <= at < window.end]
        hits = [{"_source": {"@uuid": f"{contract}-{at}", "meta": {"time": format_time(at)}}} for at in times]
        answer = {"hits": {"total": len(hits), "hits": hits[offset : offset + limit]}}
        return parse_page(json.dumps(answer).encode())


class Clock:
    now = float(NOW)

    def __call__(self) -> float:
        return self.now


def follower(account: Account, clock: Clock, since: int = NOW - 1000, only: Sequence[str] = ()) -> Follower:
    return Follower({"default": account}, Config(), since, only, clock)  # type: ignore[dict-item]


def shown(follower: Follower) -> list[tuple[str, int]]:
    return [(contract, event.time_us // 1_000_000 - NOW) for contract, event in follower.round()]


def test_each_entry_is_shown_once_and_oldest_first_whatever_its_contract() -> None:
    account, clock = Account(c1=[NOW - 30, NOW - 10], c2=[NOW - 20]), Clock()
    following = follower(account, clock)
    assert shown(following) == [("1", -30), ("2", -20), ("1", -10)]
    assert shown(following) == []
    clock.now += 60
    account.entries["2"] += [NOW + 5, NOW - 100]
    assert shown(following) == [("2", -100), ("2", 5)], "also what comes late"


def test_what_is_read_again_is_the_overlap_and_nothing_before_the_beginning() -> None:
    account, clock = Account(c1=[]), Clock()
    following = follower(account, clock, since=NOW - 100)
    shown(following)
    clock.now += 3600
    shown(following)
    clock.now += 5
    shown(following)
    assert [(window.start - NOW, window.end - NOW) for window in account.windows] == [
        (-100, 0),
        (-100, 3600),
        (3000, 3605),
    ]


def test_a_clock_that_is_behind_hides_nothing() -> None:
    account, clock = Account(c1=[NOW + 200]), Clock()
    account.clock_skew_seconds = -300.0
    assert shown(follower(account, clock)) == [("1", 200)]


def test_what_fails_is_named_and_tried_again_and_the_rest_goes_on() -> None:
    account, clock = Account(c1=[NOW - 10], c2=[NOW - 20]), Clock()
    account.failing["1"] = DOWN
    following = follower(account, clock)
    assert shown(following) == [("2", -20)]
    assert [str(error) for error in following.failures] == ["contract 1: down (500)"]
    assert following.is_any_read
    del account.failing["1"]
    assert shown(following) == [("1", -10)]
    assert following.failures == []


def test_nothing_is_read_where_the_list_of_contracts_is_not_to_be_had() -> None:
    account, clock = Account(c1=[NOW - 10]), Clock()
    account.failing[""] = AuthError("the API refused the token (401)")
    following = follower(account, clock)
    assert shown(following) == []
    assert not following.is_any_read
    assert [type(error) for error in following.failures] == [AuthError]
    del account.failing[""]
    assert shown(following) == [("1", -10)]


def test_only_the_named_contracts_are_followed_also_where_no_list_shows_them() -> None:
    account, clock = Account(c1=[NOW - 10], c2=[NOW - 20]), Clock()
    assert shown(follower(account, clock, only=("2",))) == [("2", -20)]
    account.failing[""] = AuthError("denied (403)", is_denied=True)
    assert shown(follower(account, clock, only=("2",))) == [("2", -20)]


def test_of_several_accounts_each_reads_its_contracts_and_an_error_names_the_account() -> None:
    first, second, clock = Account(c1=[NOW - 10]), Account(c1=[], c2=[NOW - 20]), Clock()
    following = Follower({"a": first, "b": second}, Config(), NOW - 1000, (), clock)  # type: ignore[dict-item]
    assert shown(following) == [("2", -20), ("1", -10)]
    second.failing[""] = TransientError("down (500)")
    following = Follower({"a": first, "b": second}, Config(), NOW - 1000, (), clock)  # type: ignore[dict-item]
    assert shown(following) == [("1", -10)]
    assert [str(error) for error in following.failures] == ["account b: down (500)"]


def test_the_contracts_are_looked_for_every_ten_minutes_and_at_once_after_a_failure() -> None:
    account, clock = Account(c1=[]), Clock()
    following = follower(account, clock)
    shown(following)
    account.entries["2"] = [NOW - 5]
    clock.now += 599
    assert shown(following) == []
    clock.now += 1
    assert shown(following) == [("2", -5)]
    account.failing[""] = DOWN
    clock.now += 600
    assert shown(following) == []
    del account.failing[""]
    account.entries["3"] = [NOW - 6]
    clock.now += 1
    assert shown(following) == [("3", -6)], "it is not waited for"


def test_a_list_that_is_not_whole_is_told(caplog: pytest.LogCaptureFixture) -> None:
    account = Account(c1=[])
    account.missing = "there are more"
    shown(follower(account, Clock()))
    assert [record.message for record in caplog.records] == ["contracts.list_incomplete"]


def test_contracts_of_the_configuration_are_followed_by_the_first_account_and_those_left_out_are_not() -> None:
    first, second, clock = Account(c1=[NOW - 10]), Account(c2=[NOW - 20]), Clock()
    config = Config()
    for poll, expected in (
        ({"contracts": ("1", "9")}, [("1", -10)]),
        ({"exclude_contracts": ("1",)}, [("2", -20)]),
    ):
        changed = msgspec.structs.replace(config, poll=msgspec.structs.replace(config.poll, **poll))  # type: ignore[arg-type]
        following = Follower({"a": first, "b": second}, changed, NOW - 1000, (), clock)  # type: ignore[dict-item]
        assert shown(following) == expected
    first.failing["9"] = TransientError("down (500)")
    following = Follower({"a": first, "b": second}, config, NOW - 1000, ("9",), clock)  # type: ignore[dict-item]
    assert shown(following) == []
    assert [error.contract for error in following.failures] == ["9"]


def test_what_cannot_be_read_of_a_contract_is_told_in_that_round() -> None:
    class Damaged(Account):
        def page(self, contract: str, window: Window, *args: Any, **options: Any) -> Page:
            found = super().page(contract, window, *args, **options)
            return parse_page(b'{"hits": {"total": 1, "hits": [7]}}') if contract == "2" else found

    account, clock = Damaged(c1=[NOW - 10], c2=[]), Clock()
    following = follower(account, clock)
    assert shown(following) == [("1", -10)]
    assert {contract for contract, _ in following.unread} == {"2"}
    del account.entries["2"]
    clock.now += 1
    account.failing["2"] = TransientError("down (500)")
    shown(following)
    assert following.unread == []


def test_what_is_not_read_again_is_not_shown_again_though_it_is_forgotten() -> None:
    account, clock = Account(c1=[NOW - 700, NOW - 600, NOW - 599]), Clock()
    following = follower(account, clock)
    assert len(shown(following)) == 3
    for seconds in (1, 1, 600):
        clock.now += seconds
        assert shown(following) == []


def test_a_clock_that_goes_back_asks_for_nothing_and_loses_nothing() -> None:
    account, clock = Account(c1=[NOW - 10]), Clock()
    following = follower(account, clock, since=NOW - 100)
    clock.now = NOW - 100
    assert shown(following) == []
    assert (account.windows, following.is_any_read) == ([], False)
    clock.now = NOW - 99
    shown(following)
    assert following.is_any_read
    clock.now = NOW
    assert shown(following) == [("1", -10)]
    account.clock_skew_seconds = 60.0
    clock.now += 5
    account.windows.clear()
    shown(following)
    assert [window.end for window in account.windows] == [NOW + 5], "a clock that is ahead is read as far as it says"


class Broken(Account):
    """An account that fails each query of contract 1 that touches a span."""

    def __init__(self, span: Window, error: PollerError, **entries: Sequence[int]) -> None:
        super().__init__(**entries)
        self.span = span
        self.error = error

    def page(self, contract: str, window: Window, *args: Any, **options: Any) -> Page:
        found = super().page(contract, window, *args, **options)
        if contract == "1" and window.start < self.span.end and self.span.start < window.end:
            raise copy.copy(self.error)
        return found


OWN = [
    RejectedError("not this (400)", status=400),
    RejectedError("not this (404)", status=404),
    AuthError("not this (403)", is_denied=True),
    TransientError("not this (500)", status=500),
    TransientError("not this"),
]
DAY = 86_400


@pytest.mark.parametrize("error", OWN, ids=str)
def test_beside_a_span_that_is_refused_everything_is_shown_once_and_it_is_told(error: PollerError) -> None:
    clock = Clock()
    account = Broken(Window(NOW - 150, NOW - 149), error, c1=[NOW - 45 * DAY, NOW - 200, NOW - 100], c2=[NOW - 90])
    following = follower(account, clock, since=NOW - 50 * DAY)
    first = shown(following)
    told = [unread.window for _, unread in following.unread]
    second = shown(following)
    told += [unread.window for _, unread in following.unread]
    assert first[0] == ("1", -45 * DAY)
    assert ("2", -90) in first, "it holds up no other"
    assert sorted(first + second) == [("1", -45 * DAY), ("1", -200), ("1", -100), ("2", -90)]
    assert told == [Window(NOW - 150, NOW - 149)]
    assert following.failures == []
    account.entries["1"].append(NOW + 3)
    account.windows.clear()
    clock.now += 5
    assert shown(following) == [("1", 3)]
    assert len(account.windows) <= 3, "what was refused is not looked for again"


def test_what_was_read_before_a_failure_is_not_shown_again_however_often_it_fails() -> None:
    clock = Clock()
    account = Broken(Window(NOW - 150, NOW + DAY), TransientError("slow down (429)", status=429))
    account.entries = {"1": [NOW - 45 * DAY, NOW - 21 * DAY, NOW - 100]}
    following = follower(account, clock, since=NOW - 50 * DAY)
    assert shown(following) == [("1", -45 * DAY), ("1", -21 * DAY)]
    for _ in range(3):
        clock.now += 5
        account.windows.clear()
        assert shown(following) == []
        assert [str(error) for error in following.failures] == ["contract 1: slow down (429)"]
        assert min(window.start for window in account.windows) == NOW - 20 * DAY - 600
    account.span = Window(0, 0)
    assert shown(following) == [("1", -100)]


@pytest.mark.parametrize("error", DENIALS, ids=str)
@pytest.mark.parametrize("only", [(), ("1",), ("9",)], ids=["listed", "named", "named and unlisted"])
def test_where_one_account_may_not_read_a_contract_the_next_one_is_asked_and_then_first(
    error: PollerError, only: tuple[str, ...]
) -> None:
    clock, contract = Clock(), only[0] if only else "1"
    accounts = [Account(c1=[]), Account(c1=[]), Account(**{f"c{contract}": [NOW - 10]})]
    for account in accounts[:2]:
        account.failing[contract] = error
    if contract == "9":
        accounts[2].contracts = accounts[0].contracts  # type: ignore[method-assign]
    following = Follower(dict(zip("abc", accounts, strict=True)), Config(), NOW - 1000, only, clock)  # type: ignore[arg-type]
    assert shown(following) == [(contract, -10)]
    assert following.failures == []
    del accounts[0].failing[contract]
    clock.now += 5
    assert shown(following) == []
    assert (accounts[0].windows, len(accounts[2].windows)) == ([], 2)


def test_an_account_that_could_not_be_asked_at_first_is_asked_for_its_contracts_later() -> None:
    clock = Clock()
    first, second = Account(c1=[]), Account(c1=[NOW - 10])
    first.failing["1"] = AuthError("denied (403)", is_denied=True)
    second.failing[""] = DOWN
    following = Follower({"a": first, "b": second}, Config(), NOW - 1000, (), clock)  # type: ignore[dict-item]
    assert shown(following) == []
    assert len(following.failures) == 2
    del second.failing[""]
    assert shown(following) == [("1", -10)]
