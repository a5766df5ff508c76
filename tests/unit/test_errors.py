"""The text of an error, and the exit code of a command that fails with it."""

from __future__ import annotations

import pytest

from poller.core.errors import (
    AuthError,
    ConfigError,
    FileProblem,
    OutputError,
    PollerError,
    Problem,
    RejectedError,
    StateError,
    StateFullError,
    StateUnavailableError,
    StoppedError,
    TransientError,
)


@pytest.mark.parametrize("kind", [PollerError, TransientError, RejectedError, AuthError, StateError])
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, "it broke"),
        ({"hint": "mend it"}, "it broke (mend it)"),
        ({"contract": "31960001"}, "contract 31960001: it broke"),
        ({"contract": "31960001", "hint": "mend it"}, "contract 31960001: it broke (mend it)"),
    ],
)
def test_it_says_where_what_and_what_to_do_in_a_line(
    kind: type[PollerError], where: dict[str, str], expected: str
) -> None:
    error = kind("it broke", **where)
    assert str(error) == expected
    assert (error.message, *error.args) == ("it broke", "it broke")
    assert (error.contract, error.hint, error.sink) == (where.get("contract", ""), where.get("hint", ""), "")


def test_what_concerns_a_sink_names_it() -> None:
    error = AuthError("it broke", sink="loki", hint="mend it")
    assert (str(error), error.sink) == ("sink loki: it broke (mend it)", "loki")
    assert str(PollerError("it broke", contract="31960001", sink="loki")) == "contract 31960001: it broke"


def test_a_privilege_that_lacks_is_told_from_credentials_that_are_refused() -> None:
    assert not AuthError("refused").is_denied
    assert AuthError("denied", is_denied=True).is_denied


def test_all_that_is_wrong_with_a_configuration_is_said_at_once() -> None:
    problems = [Problem("api.url", "is no URL", "write https://"), Problem("poll", "is missing")]
    error = ConfigError(problems)
    assert str(error) == "api.url: is no URL (write https://); poll: is missing"
    assert error.problems == tuple(problems)


def test_it_carries_what_a_reaction_needs() -> None:
    error = TransientError("later", retry_after_seconds=7.5, status=429)
    assert (error.retry_after_seconds, error.status) == (7.5, 429)
    assert (TransientError("later").retry_after_seconds, TransientError("later").status) == (None, None)
    assert RejectedError("no", status=413).status == 413
    assert RejectedError("no").status is None


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (PollerError, 1),
        (TransientError, 1),
        (RejectedError, 1),
        (OutputError, 1),
        (ConfigError, 2),
        (AuthError, 3),
        (StateError, 4),
        (StateUnavailableError, 1),
        (StateFullError, 1),
    ],
)
def test_each_reaction_has_its_exit_code(kind: type[PollerError], exit_code: int) -> None:
    assert kind.exit_code == exit_code


def test_being_asked_to_stop_is_no_failure_that_somebody_might_report() -> None:
    assert not issubclass(StoppedError, PollerError)


def test_a_configuration_may_come_right_by_itself_where_only_files_are_missing() -> None:
    missing, wrong = FileProblem("api.token_file", "unreadable"), Problem("poll.interval", "wrong")
    assert ConfigError([missing, missing]).may_pass
    assert not ConfigError([missing, wrong]).may_pass
