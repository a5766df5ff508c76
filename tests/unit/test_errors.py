"""How an error reads, and which exit code it ends a command with."""

from __future__ import annotations

import pytest

from poller.errors import (
    AuthError,
    ConfigError,
    OutputError,
    PollerError,
    Problem,
    RejectedError,
    StateError,
    StateFullError,
    StoppedError,
    TransientError,
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PollerError("it broke"), "it broke"),
        (PollerError("it broke", hint="mend it"), "it broke (mend it)"),
        (PollerError("it broke", contract="31960001"), "contract 31960001: it broke"),
        (PollerError("it broke", sink="loki", hint="mend it"), "sink loki: it broke (mend it)"),
        (PollerError("it broke", contract="31960001", sink="loki"), "contract 31960001: it broke"),
        (TransientError("later", contract="31960001", hint="wait"), "contract 31960001: later (wait)"),
        (TransientError("later", sink="loki"), "sink loki: later"),
        (RejectedError("no", contract="31960001", hint="ask"), "contract 31960001: no (ask)"),
        (RejectedError("no", sink="loki"), "sink loki: no"),
        (
            ConfigError([Problem("api.url", "is no URL", "write https://"), Problem("poll", "is missing")]),
            "api.url: is no URL (write https://); poll: is missing",
        ),
    ],
)
def test_it_says_where_what_and_what_to_do_in_a_line(error: PollerError, expected: str) -> None:
    assert str(error) == expected
    assert error.args == (error.message,)


def test_it_carries_what_a_reaction_needs() -> None:
    error = TransientError("later", retry_after_seconds=7.5, status=429)
    assert (error.retry_after_seconds, error.status) == (7.5, 429)
    assert (TransientError("later").retry_after_seconds, TransientError("later").status) == (None, None)
    assert RejectedError("no", status=413).status == 413
    problems = [Problem("a", "is wrong"), Problem("b", "is wrong, too")]
    assert ConfigError(problems).problems == tuple(problems)
    assert (error.contract, error.sink, error.hint) == ("", "", "")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (PollerError("any"), 1),
        (TransientError("later"), 1),
        (RejectedError("no"), 1),
        (OutputError("gone"), 1),
        (ConfigError([Problem("a", "is wrong")]), 2),
        (AuthError("refused"), 3),
        (StateError("held"), 4),
        (StateFullError("full"), 4),
        (StoppedError("stopped"), 130),
    ],
)
def test_each_reaction_has_its_exit_code(error: PollerError, exit_code: int) -> None:
    assert error.exit_code == exit_code
