"""The checks of one account against a fake API: the requests, and the finding and remedy for each answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from poller.checks import Finding, fail
from poller.checks.account import (
    AccountCheck,
    check_clock,
    check_contract,
    check_denied,
    check_local_token,
    check_token,
    check_unlisted_contracts,
)
from poller.config import Config, Credentials, Poll, Secret
from poller.core.answers import Page
from poller.core.errors import (
    EXIT_AUTH,
    EXIT_CONFIG,
    EXIT_INCOMPLETE,
    AuthError,
    BodyTooLargeError,
    ConfigError,
    PollerError,
    Problem,
    RejectedError,
    TransientError,
)
from poller.core.events import Event
from poller.core.listing import ContractList
from poller.core.windows import Window
from tests.fake_api import DENIALS
from tests.unit.test_checks import DAY, NOW, token

URL = "https://api.example"


class Api:
    """Lists contracts, or fails. Each contract has three entries today, or the page that `pages` returns."""

    limit_words = ""
    max_limit = 1000

    def __init__(self, *contracts: str, error: PollerError | None = None, missing: str = "") -> None:
        self.listed = ContractList(list(contracts), missing)
        self.error = error
        self.clock_skew_seconds: float | None = 0.0
        self.pages: Callable[[int], Page] = lambda limit: page(3)
        self.asked: list[tuple[str, Window, int, int]] = []

    def contracts(self) -> ContractList:
        if self.error is not None:
            raise self.error
        return self.listed

    def page(self, contract: str, window: Window, offset: int, limit: int) -> Page:
        self.asked.append((contract, window, offset, limit))
        return self.pages(limit)


def page(total: int | None, *, events: Sequence[Event] = (), is_capped: bool = False) -> Page:
    return Page(tuple(events), total, is_capped=is_capped, weight_bytes=0, is_mended=False)


def poll(**changes: Any) -> Poll:
    return msgspec.structs.replace(Config().poll, **changes)


def account(credentials: Credentials | None = None) -> Any:
    return SimpleNamespace(url=URL, name="prod", credentials=lambda: credentials or token(300))


@pytest.fixture(autouse=True)
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: NOW, monotonic=count(10.0, 0.25).__next__)
    monkeypatch.setattr("poller.checks.account.time", clock)


def run(
    api: Any, settings: Poll | None = None, *, credentials: Credentials | None = None, is_only: bool = True
) -> tuple[AccountCheck, list[Finding]]:
    check = AccountCheck(account(credentials), api, settings or poll(), 100, is_only=is_only)
    return check, list(check.run())


def shown(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    return [(found.level, found.name) for found in findings]


def test_what_is_well_is_told_with_the_number_of_entries_of_each_contract() -> None:
    api = Api("1", "2")
    check, findings = run(api)
    assert [(found.level, found.name, found.message) for found in findings] == [
        ("ok", "api", f"{URL} answers within 250 ms"),
        ("ok", "clock", "agrees with the API's"),
        ("ok", "token", findings[2].message),
        ("ok", "contract 1", "3 entries today (UTC)"),
        ("ok", "contract 2", "3 entries today (UTC)"),
    ]
    assert findings[2].message.startswith("accepted, expires on")
    assert (check.contracts, check.may_read) == (ContractList(["1", "2"]), True)
    today = Window(int(NOW) // DAY * DAY, int(NOW) + 1)
    assert api.asked == [("1", today, 0, 100), ("2", today, 0, 100)]


def test_of_several_accounts_each_finding_names_its_own() -> None:
    _, findings = run(Api("1", missing="a page is missing"), is_only=False)
    assert [found.name for found in findings] == [
        "api prod",
        "clock prod",
        "token prod",
        "contracts prod",
        "contract 1",
    ]


@pytest.mark.parametrize("error", DENIALS, ids=str)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_contract_that_one_account_may_not_read_fails_only_where_no_other_may(
    error: PollerError, is_first: bool
) -> None:
    def refused(limit: int) -> Page:
        raise error

    denied, other = Api("1"), Api("1", "2")
    denied.pages = refused
    ran = [run(api, is_only=False) for api in ((denied, other) if is_first else (other, denied))]
    findings = [finding for _, found in ran for finding in found]
    assert all(finding.level == "ok" for finding in findings)
    (told,) = check_denied([check for check, _ in ran])
    assert (told.level, told.name) == ("warn", "contract 1")
    assert "another account" in told.hint
    assert error.message in told.message
    checks = [run(denied, is_only=False)[0] for _ in range(2)]
    assert [(found.level, found.name) for found in check_denied(checks)] == [("fail", "contract 1")]
    assert ("fail", "contract 1") in shown(run(denied)[1]), "the only one tells it at once"


def test_a_failure_that_another_account_would_have_too_is_one_whatever_that_one_may_read() -> None:
    def down(limit: int) -> Page:
        raise TransientError("down (500)", status=500)

    ill = Api("1")
    ill.pages = down
    check, findings = run(ill, is_only=False)
    assert ("fail", "contract 1") in shown(findings)
    assert list(check_denied([check, run(Api("1"), is_only=False)[0]])) == []


def test_a_refused_token_is_told_once_and_nothing_is_read() -> None:
    check, findings = run(Api(error=AuthError("refused (401)")))
    assert shown(findings) == [("ok", "api"), ("ok", "clock"), ("fail", "token")]
    assert findings[0].message == f"{URL} answers"  # the time would be that of two tries and a wait
    assert (check.contracts, check.may_read) == (None, False)


DENIED = AuthError("denied (403)", is_denied=True, hint="grant it")


@pytest.mark.parametrize("error", [DENIED, RejectedError("refused (400)", hint="see docs")])
def test_a_list_that_is_refused_is_no_matter_where_contracts_are_named(error: PollerError) -> None:
    check, findings = run(Api(error=error), poll(contracts=("1",)))
    assert shown(findings) == [("warn", "contracts"), ("ok", "api"), ("ok", "clock"), ("ok", "token")]
    assert error.message in findings[0].message
    assert "still polled" in findings[0].hint
    assert (check.contracts, check.may_read) == (None, True)


def test_a_list_that_is_denied_is_the_tokens_matter_where_none_is_named() -> None:
    check, findings = run(Api(error=DENIED))
    assert shown(findings) == [("ok", "api"), ("ok", "clock"), ("fail", "token")]
    assert (findings[-1].hint, check.may_read) == ("grant it", False)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (RejectedError("refused (400)", hint="see docs"), "see docs"),
        (TransientError("no answer", hint="see the proxy"), "see the proxy"),
        (TransientError("no answer"), "check api.url"),
    ],
)
@pytest.mark.parametrize("days", [300, 3])
def test_an_api_that_gives_no_list_is_told_with_what_the_token_says_of_itself(
    error: PollerError, hint: str, days: int
) -> None:
    check, findings = run(Api(error=error), credentials=token(days))
    assert shown(findings) == [("fail", "api"), *[("warn", "token")] * (days == 3)]
    assert (findings[0].message, findings[0].exit_code) == (f"{URL}: {error.message}", EXIT_INCOMPLETE)
    assert hint in findings[0].hint
    assert all("not tried" in found.message for found in findings[1:])
    assert (check.contracts, check.may_read) == (None, False)


def test_what_is_missing_in_the_configuration_is_told_as_that() -> None:
    _, findings = run(Api(error=ConfigError([Problem("api.token", "is missing", "set it")])))
    assert findings == [fail("api", "api.token: is missing", "set it", EXIT_CONFIG)]


def test_a_token_that_sees_nothing_is_told() -> None:
    _, findings = run(Api())
    assert shown(findings)[3:] == [("fail", "contracts")]
    assert findings[-1].message == "the token sees no contract"
    assert len(run(Api(), poll(contracts=("1",)))[1]) == 3


def test_a_list_of_which_nothing_is_wanted_is_told() -> None:
    _, findings = run(Api("1"), poll(exclude_contracts=("1",)))
    assert shown(findings)[3:] == [("warn", "contracts")]
    assert "leaves out all" in findings[-1].message
    _, findings = run(Api("1", "2"), poll(contracts=("2",)))
    assert shown(findings)[3:] == [("ok", "contract 2")]
    assert len(run(Api("1"), poll(contracts=("2",)))[1]) == 3


def test_what_the_list_lacks_is_told_with_its_words() -> None:
    _, findings = run(Api("1", missing="page 2 is missing"))
    assert (findings[3].level, findings[3].message) == ("warn", "page 2 is missing")
    assert "poll.contracts" in findings[3].hint


@pytest.mark.parametrize("more", [0, 1])
def test_of_many_contracts_the_first_are_asked_for(more: int) -> None:
    api = Api(*[str(number) for number in range(25 + more)])
    _, findings = run(api)
    assert len(api.asked) == 25
    assert shown(findings)[28:] == [("ok", "contracts")] * more
    assert [found.message for found in findings[28:]] == ["and 1 more, which were not asked for"] * more


def test_a_page_size_that_the_api_does_not_take_is_told() -> None:
    api = Api("1")
    api.limit_words, api.max_limit = "it takes 50 entries a page", 50
    _, findings = run(api)
    assert (findings[-1].level, findings[-1].name, findings[-1].message) == ("warn", "page_size", api.limit_words)
    assert "api.page_size to 50" in findings[-1].hint


# One contract


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (page(1234), "1,234 entries today (UTC)"),
        (page(10_000, is_capped=True), "10,000 entries or more today (UTC)"),
        (page(None), "has no entries today"),
        (page(None, events=[Event(1, bytes(16), b"{}")]), "has entries today"),
    ],
)
def test_how_many_entries_of_today_there_are(answer: Page, words: str) -> None:
    api: Any = Api()
    api.pages = lambda limit: answer
    assert check_contract(api, "1", NOW, 100).message == words


def test_today_is_by_the_clock_of_the_api() -> None:
    api: Any = Api()
    midnight = int(NOW) // DAY * DAY
    for skew, window in (
        (None, Window(midnight, midnight + 1)),
        (60.0, Window(midnight - DAY, midnight - 59)),
        (-60.0, Window(midnight, midnight + 61)),
    ):
        api.clock_skew_seconds = skew
        check_contract(api, "1", float(midnight), 1)
        assert api.asked[-1][1] == window


def test_a_page_that_is_too_large_is_asked_for_with_fewer_entries() -> None:
    api: Any = Api()

    def too_large(limit: int) -> Page:
        if limit > api.takes:
            raise BodyTooLargeError("larger than api.max_page_bytes")
        return page(3)

    api.pages, api.takes = too_large, 1
    assert check_contract(api, "1", NOW, 100).level == "ok"
    assert [limit for _, _, _, limit in api.asked] == [100, 12, 1]
    api.takes = 0
    found = check_contract(api, "1", NOW, 2)
    assert (found.level, found.name, found.hint) == ("fail", "contract 1", "raise api.max_page_bytes")


@pytest.mark.parametrize(
    ("error", "hint", "code"),
    [
        (TransientError("down"), "it is asked again at each poll", EXIT_INCOMPLETE),
        (AuthError("denied", hint="grant it"), "grant it", EXIT_AUTH),
    ],
)
def test_a_contract_that_cannot_be_read_is_told_with_its_remedy(error: PollerError, hint: str, code: int) -> None:
    api: Any = Api()

    def refuse(limit: int) -> Page:
        raise error

    api.pages = refuse
    assert check_contract(api, "1", NOW, 100) == fail("contract 1", error.message, hint, code)


def test_without_an_account_a_named_contract_is_not_judged() -> None:
    assert list(check_unlisted_contracts(["1"], [], [], 100)) == []


# Tokens and clocks at their bounds


def test_a_token_that_cannot_be_had_is_a_problem_of_the_configuration() -> None:
    def missing() -> Credentials:
        raise ConfigError([Problem("token", "is missing", "set it"), Problem("other", "is bad", "")])

    away: Any = SimpleNamespace(credentials=missing)
    assert check_local_token(away, "token", NOW) == fail("token", "is missing", "set it", EXIT_CONFIG)
    found = check_local_token(account(token(100)), "token", NOW)
    assert (found.level, found.message.startswith("token found, not tried")) == ("ok", True)
    login = Credentials("x", username="me", password=Secret("p"))
    assert check_local_token(account(login), "token", NOW).message == "user name and password found, not tried"


@pytest.mark.parametrize(("days", "level"), [(14, "ok"), (13.99, "warn"), (0.0, "fail"), (0.01, "warn")])
def test_two_weeks_before_it_expires_a_token_is_told(days: float, level: str) -> None:
    assert check_token(token(days), NOW, "token", is_asked=False).level == level


def test_a_refused_login_is_told_with_what_may_be_wrong_with_it() -> None:
    refused = AuthError("refused (401)")
    login = Credentials("x", username="me", password=Secret("p"))
    assert check_token(login, NOW, "token", refusal=refused).hint.startswith("check both")
    assert "Token Manager" in check_token(token(300), NOW, "token", refusal=refused).hint


@pytest.mark.parametrize(
    ("skew", "level", "words"),
    [
        (30.0, "ok", "agrees"),
        (119.4, "warn", "119 s ahead of"),
        (120.0, "warn", "2 min ahead of"),
        (-3599.0, "warn", "60 min behind"),
        (3600.0, "fail", "1.0 h ahead of"),
    ],
)
def test_clocks_at_their_bounds(skew: float, level: str, words: str) -> None:
    found = check_clock(skew, "clock prod")
    assert (found.level, found.name) == (level, "clock prod")
    assert words in found.message
