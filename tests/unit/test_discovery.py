"""Which contracts are collected, through which account, and from which time on a new one is."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config
from poller.config.model import Poll as PollSettings
from poller.core.answers import Page
from poller.core.errors import AuthError, PollerError, RejectedError, TransientError
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.pipeline.collect import Collector, PollResult
from poller.pipeline.discovery import Discovery
from poller.pipeline.ledger_audit import LedgerAuditor
from poller.store.sqlite import State

NOW = 1_800_000_000
LOOKBACK = 300

DENIED = AuthError("denied (403)", is_denied=True)
REFUSED = AuthError("refused (401)")
NOT_FOUND = RejectedError("not found (404)", status=404)
DOWN = TransientError("down (500)", status=500)


class Account:
    """An account: the contracts that it lists, and those that it may not read."""

    clock_skew_seconds = 0.0

    def __init__(self, *listed: str, unreadable: dict[str, PollerError] | None = None) -> None:
        self.listed: list[str] | PollerError = list(listed)
        self.missing = ""
        self.unreadable = unreadable or {}
        self.asked: list[str] = []

    def contracts(self) -> ContractList:
        if isinstance(self.listed, PollerError):
            raise self.listed
        return ContractList(self.listed, self.missing)

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.asked.append(contract)
        if contract in self.unreadable:
            raise self.unreadable[contract]
        return Page((), 0, is_capped=False, weight_bytes=0, is_mended=False)


class World:
    """A state of `fetch`, which is opened anew for each poll, as after a restart."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = NOW
        self.accounts = {"default": Account("1")}
        self.settings: dict[str, Any] = {}
        self.failures: list[PollerError] = []
        self.order: list[str] = []

    def poll(self, after_seconds: int = 0, *, only: tuple[str, ...] = ()) -> dict[str, PollResult]:
        self.now += after_seconds
        state = State.open(self.directory, "fetch")
        accounts: dict[str, Any] = dict(self.accounts)
        config = Config(poll=PollSettings(**self.settings))
        collector = Collector(state, accounts, config, stop=threading.Event(), clock=lambda: self.now)
        try:
            self.order, self.failures = collector.discover(only=only)
            polls = {contract: collector.collect(contract) for contract in self.order}
            self.rows = {row.contract: row for row in state.contracts.all()}
            return polls
        finally:
            collector.close()
            state.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# A contract that appears


@pytest.mark.parametrize("pause", [60, 3600, 5 * 86_400])
def test_a_contract_that_appears_begins_at_the_last_look_that_did_not_show_it(world: World, pause: int) -> None:
    world.poll()
    world.poll(60)
    world.accounts["default"].listed = ["1", "2"]
    world.poll(pause)
    assert world.rows["1"].origin == NOW - LOOKBACK
    assert world.rows["2"].origin == min(NOW + 60, NOW + 60 + pause - LOOKBACK)


def test_a_look_that_failed_or_was_not_whole_is_no_look_that_did_not_show_it(world: World) -> None:
    world.poll()
    account = world.accounts["default"]
    for listed, missing in ((DOWN, ""), (["1"], "more")):
        account.listed, account.missing = listed, missing
        world.poll(3600)
    account.listed, account.missing = ["1", "2"], ""
    world.poll(3600)
    assert world.rows["2"].origin == NOW


def test_a_contract_that_was_left_out_on_purpose_begins_as_any_new_one(world: World) -> None:
    world.accounts["default"].listed = ["1", "2"]
    world.settings = {"exclude_contracts": ("2",)}
    world.poll()
    world.settings = {}
    world.poll(7200)
    assert world.rows["2"].origin == NOW + 7200 - LOOKBACK


@pytest.mark.parametrize("settings", [{"contracts": ("1",)}, {"exclude_contracts": ("2", "3")}])
def test_what_another_replica_leaves_out_began_at_the_last_look_of_the_one_that_collects_it(
    world: World, settings: dict[str, Any]
) -> None:
    clock = lambda: float(world.now)  # noqa: E731
    accounts: Any = world.accounts
    with closing(State.open(world.directory, "run")) as state:
        mine, theirs = (Discovery(state, accounts, Config(poll=PollSettings(**more)), clock) for more in ({}, settings))
        for discovery in (theirs, mine):
            discovery.discover(None, ())
        world.accounts["default"].listed = ["1", "2", "3"]
        world.now += 3600
        assert theirs.discover(None, ()) == (["1"], [])
        world.now += 3600
        assert mine.discover(None, ())[0] == ["1", "2", "3"]
        assert [row.origin for row in state.contracts.all()] == [NOW - LOOKBACK, NOW, NOW]
        theirs.discover(None, ())
        world.accounts["default"].listed = ["1", "2", "3", "4"]
        world.now += 3600
        Discovery(state, accounts, Config(), clock).discover(None, ())
        assert state.contracts.all()[-1].origin == NOW + 7200, "the last look of all, where it has none of its own"


def test_each_account_has_looks_of_its_own(world: World) -> None:
    world.poll()
    world.accounts["other"] = Account("2")
    world.poll(7200)
    assert world.rows["2"].origin == NOW + 7200 - LOOKBACK


# A list without a named contract


@pytest.mark.parametrize("listed", [["1"], [], DENIED, NOT_FOUND])
def test_a_named_contract_is_polled_whatever_the_list_says(world: World, listed: Any) -> None:
    world.accounts["default"].listed = listed
    world.settings = {"contracts": ("7",)}
    polls = world.poll()
    assert list(polls) == ["7"]
    assert polls["7"].failure is None
    assert world.failures == []


def test_a_named_contract_is_polled_while_the_list_cannot_be_had_and_that_is_told(world: World) -> None:
    world.accounts["default"].listed = DOWN
    world.settings = {"contracts": ("7",)}
    assert list(world.poll()) == ["7"]
    assert world.failures == [DOWN]


@pytest.mark.parametrize("listed", [DENIED, NOT_FOUND, DOWN, REFUSED, []])
def test_without_names_a_list_that_shows_nothing_is_a_failure(world: World, listed: Any) -> None:
    world.accounts["default"].listed = listed
    assert world.poll() == {}
    assert len(world.failures) == 1


def test_a_number_of_the_command_line_that_no_list_shows_is_told_and_not_collected(world: World) -> None:
    assert world.poll(only=("7",)) == {}
    assert [failure.contract for failure in world.failures] == ["7"]
    assert set(world.poll()) == {"1"}


def test_a_number_of_the_command_line_is_collected_where_the_list_is_refused(world: World) -> None:
    world.accounts["default"].listed = DENIED
    assert set(world.poll(only=("7",))) == {"7"}


def test_a_contract_that_never_was_read_is_left_when_the_list_does_not_show_it(world: World) -> None:
    world.accounts["default"] = Account(unreadable={"7": NOT_FOUND})
    world.accounts["default"].listed = DENIED
    assert world.poll(only=("7",))["7"].failure is NOT_FOUND
    world.accounts["default"].listed = ["1"]
    assert set(world.poll()) == {"1"}


def test_a_contract_that_was_read_once_is_polled_and_warned_of_until_it_is_excluded(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.accounts["default"].listed = ["1", "2"]
    world.poll()
    world.accounts["default"].listed = ["1"]
    assert set(world.poll()) == {"1", "2"}
    assert [record.contracts for record in caplog.records if record.message == "contracts.unlisted"] == [["2"]]  # type: ignore[attr-defined]
    caplog.clear()
    world.settings = {"exclude_contracts": ("2",)}
    assert set(world.poll()) == {"1"}
    assert "contracts.unlisted" not in caplog.messages


# Two accounts


@pytest.mark.parametrize("failure", [DENIED, REFUSED, NOT_FOUND])
def test_where_one_account_may_not_read_a_contract_the_other_is_asked(world: World, failure: PollerError) -> None:
    world.accounts = {"a": Account("1", unreadable={"1": failure}), "b": Account("1")}
    assert world.poll()["1"].failure is None
    assert world.rows["1"].account == "b"
    assert world.poll(60)["1"].failure is None
    assert set(world.accounts["a"].asked) == {"1"}
    assert len(world.accounts["a"].asked) <= 3  # the window twice and the present once, then the other account


def test_a_failure_that_is_not_about_access_is_left_with_its_account(world: World) -> None:
    world.accounts = {"a": Account("1", unreadable={"1": DOWN}), "b": Account("1")}
    assert world.poll()["1"].failure is DOWN
    assert world.accounts["b"].asked == []


def test_where_no_account_may_read_a_contract_the_failure_is_told(world: World) -> None:
    world.accounts = {name: Account("1", unreadable={"1": DENIED}) for name in "ab"}
    assert world.poll()["1"].failure is DENIED
    assert world.rows["1"].account == "a"
    assert "denied" in world.rows["1"].failure


def test_a_named_contract_that_nobody_lists_is_asked_of_each_account(world: World) -> None:
    world.accounts = {"a": Account("1", unreadable={"7": NOT_FOUND}), "b": Account("2")}
    world.settings = {"contracts": ("7",)}
    assert world.poll()["7"].failure is None
    assert world.rows["7"].account == "b"


# Turns


def test_those_that_were_read_before_and_the_others_come_by_turns(world: World) -> None:
    account = world.accounts["default"]
    account.listed = ["1", "2", "3"]
    account.unreadable = {"1": DOWN, "3": DOWN}
    world.poll()
    account.unreadable = {}
    world.poll(60)
    assert world.order == ["2", "1", "3"]


def test_a_poll_whose_turn_is_over_ends_with_the_window_that_it_committed(world: World) -> None:
    month = 30 * 86_400
    state = State.open(world.directory, "fetch")
    accounts: dict[str, Any] = dict(world.accounts)
    collector = Collector(state, accounts, Config(), stop=threading.Event(), clock=lambda: float(NOW))
    collector.discover(since=NOW - 3 * month)
    watermarks = []
    while collector.collect("1", turn_seconds=0.0).is_unfinished:
        row = state.contracts.get("1")
        assert row is not None
        watermarks.append(row.watermark)
    assert watermarks == sorted(watermarks)
    assert 2 <= len(watermarks) <= 4
    row = state.contracts.get("1")
    assert row is not None
    assert row.watermark == NOW
    collector.close()
    state.close()


def test_a_list_that_is_not_whole_is_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.accounts["default"].missing = "there are more"
    world.poll()
    (record,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert record.message == "contracts.list_incomplete"


def test_what_the_command_line_names_is_read_where_the_list_is_not_whole(world: World) -> None:
    world.poll(only=("2",))
    assert [failure.contract for failure in world.failures] == ["2"], "the whole list does not have it"
    world.accounts["default"].missing = "there are more"
    assert world.poll(60, only=("2",))["2"].failure is None
    assert world.failures == []
    world.poll(60)
    assert sorted(world.order) == ["1", "2"], "it was read, so it stays"


def test_a_contract_stays_with_its_account_and_a_claim_by_another_is_told_by_name(world: World) -> None:
    mine, other = Account("1"), Account()
    world.accounts = {"other": other, "mine": mine}
    world.poll()
    assert world.rows["1"].account == "mine"
    other.listed = ["1"]
    world.poll(60)
    assert world.failures == [], "both list it"
    mine.listed = []
    world.poll(60)
    assert [(failure.contract, "other" in failure.message) for failure in world.failures] == [("1", True)]
    mine.listed, mine.unreadable = ["1"], {"1": DENIED}
    assert world.poll(60)["1"].failure is DENIED
    assert world.rows["1"].account == "mine"
    assert other.asked == []


@pytest.mark.parametrize(("listed", "missing"), [(DOWN, ""), (DENIED, ""), (REFUSED, ""), ([], "there are more")])
def test_a_list_that_is_not_had_or_not_whole_does_not_tell_that_a_contract_left_its_account(
    world: World, listed: Any, missing: str
) -> None:
    mine, other = Account("1"), Account("1")
    world.accounts = {"mine": mine, "other": other}
    world.poll()
    assert world.rows["1"].account == "mine"
    mine.listed, mine.missing = listed, missing
    assert world.poll(60)["1"].failure is None
    assert [failure for failure in world.failures if failure is not listed] == []
    assert world.rows["1"].account == "mine"
    assert other.asked == []


def test_a_contract_that_was_never_read_goes_to_who_lists_it_and_nobody_claims_it(world: World) -> None:
    mine, other = Account("1"), Account()
    mine.unreadable = {"1": DENIED}
    world.accounts = {"mine": mine, "other": other}
    world.poll()
    assert world.rows["1"].account == "mine"
    mine.listed, other.listed = [], ["1"]
    assert world.poll(60)["1"].failure is None
    assert world.failures == []
    assert world.rows["1"].account == "other"


def test_an_account_that_cannot_be_asked_is_named_where_there_are_several(world: World) -> None:
    class Away(Account):
        def contracts(self) -> Any:
            raise TransientError("no answer")

    world.accounts = {"a": Away("1")}
    world.poll()
    assert [failure.message for failure in world.failures] == ["no answer"]
    world.accounts = {"a": Away("1"), "b": Account("2")}
    assert list(world.poll()) == ["2"]
    assert [failure.message for failure in world.failures] == ["account a: no answer"]


def test_a_contract_goes_to_another_account_when_its_own_leaves_the_configuration(world: World) -> None:
    world.accounts = {"a": Account("1")}
    world.poll()
    world.accounts = {"b": Account("1")}
    assert world.poll(60)["1"].failure is None
    assert world.failures == []
    assert world.rows["1"].account == "b"


@pytest.mark.parametrize("is_repeated", [False, True])
def test_a_contract_whose_account_another_replica_has_renamed_is_polled_and_audited_as_this_one_reads_it(
    world: World, *, is_repeated: bool
) -> None:
    accounts: Any = {"old": Account("1", unreadable={"1": DENIED}), "older": Account("1")}
    clock = lambda: float(world.now)  # noqa: E731
    with closing(State.open(world.directory, "run")) as state:
        discovery = Discovery(state, accounts, Config(), clock)
        collector = Collector(state, accounts, Config(), stop=threading.Event(), discovery=discovery, clock=clock)
        auditor = LedgerAuditor(state, accounts, Config(), discovery=discovery, clock=clock)
        for _ in range(1 + is_repeated):
            assert collector.discover() == (["1"], [])
            state.contracts.enrol(["1"], "new", NOW, NOW)
            world.now += 7200
            assert collector.collect("1").failure is None
        assert auditor.audit("1", Window(NOW, world.now)).differences == []
        state.contracts.enrol(["1"], "new", NOW, NOW)
        nobody = Collector(state, accounts, Config(), stop=threading.Event(), clock=clock)
        failure = nobody.collect("1").failure
        assert failure is not None
        assert "account new is not configured" in failure.message
        collector.close()
        nobody.close()


def test_thousands_of_contracts_that_nobody_can_read_hold_up_none_that_was_read_and_none_of_them_waits_for_ever(
    world: World,
) -> None:
    world.accounts = {"default": Account("1", "2")}
    world.poll()
    invented = [str(number) for number in range(100, 200)]
    world.accounts["default"] = Account("1", "2", *invented, unreadable=dict.fromkeys(invented, NOT_FOUND))
    world.poll(60)
    assert world.order[:4] == ["1", "100", "2", "101"]
    world.accounts["default"] = Account("1", "2")
    world.poll(60)
    assert world.order == ["1", "2"], "what was never read and is not listed any more is let go"
