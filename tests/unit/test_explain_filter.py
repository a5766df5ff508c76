"""`fetch --explain-filter`: which account is asked for a contract, and what it says if the list of contracts is incomplete."""

from __future__ import annotations

from typing import Any

import pytest

from poller.cli.explain import explain
from poller.config import Config
from poller.core.answers import Page, parse_page
from poller.core.errors import AuthError, PollerError, TransientError
from poller.core.listing import ContractList
from poller.core.windows import Window

WINDOW = Window(1_800_000_000, 1_800_003_600)
DENIED = AuthError("denied (403)", is_denied=True)
DOWN = TransientError("down (500)", status=500)
ENTRY = b'{"hits":{"total":1,"hits":[{"_source":{"@uuid":"1","meta":{"time":"2027-01-15T08:00:01Z"}}}]}}'


class Account:
    """An account: the contracts that it lists, and the error that it gives instead of entries."""

    clock_skew_seconds = 0.0

    def __init__(self, *listed: str, missing: str = "", failure: PollerError | None = None) -> None:
        self.listed = ContractList(listed, missing)
        self.failure = failure
        self.asked: set[str] = set()

    def contracts(self) -> ContractList:
        return self.listed

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.asked.add(contract)
        if self.failure is not None:
            raise self.failure
        return parse_page(ENTRY)


def explained(*accounts: Account, only: tuple[str, ...] = ()) -> int:
    named: dict[str, Any] = {str(number): account for number, account in enumerate(accounts)}
    return explain(Config(), named, WINDOW, only)


def test_the_other_account_is_asked_where_the_first_may_not_read_a_contract(capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(Account("1", failure=DENIED), Account("1")) == 0
    assert "contracts: 1" in capsys.readouterr().out


def test_another_failure_is_told_and_no_other_account_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    other = Account("1")
    assert explained(Account("1", failure=DOWN), other) == 1
    assert other.asked == set()
    assert "down (500)" in capsys.readouterr().err


def test_what_a_list_does_not_give_is_told_and_may_be_named(caplog: pytest.LogCaptureFixture) -> None:
    account = Account("1", missing="there are more")
    assert explained(account) == 0
    assert [record.message for record in caplog.records] == ["contracts.list_incomplete"]
    assert explained(account, only=("2",)) == 0
    assert account.asked == {"1", "2"}
