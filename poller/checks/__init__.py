"""The preflight: tries each thing that could stop the program from working, and gives a remedy for each problem.

Every check is a small function from values to findings, or tries one thing outside the program and reports the result. Nothing
here prints, writes to the state, or collects an entry, so a check may run beside the daemon at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from poller.core.errors import EXIT_AUTH, EXIT_CONFIG, EXIT_INCOMPLETE, EXIT_OK, EXIT_STATE, ConfigError, PollerError

Level = Literal["ok", "warn", "fail"]

# The order in which to solve problems: nothing works without a configuration, and little without a token.
_WORST_FIRST = (EXIT_CONFIG, EXIT_AUTH, EXIT_STATE, EXIT_INCOMPLETE)


class Finding(NamedTuple):
    """The result of one check. `name`: what was checked; `hint`: the remedy; `exit_code`: the command's, if this is the worst."""

    level: Level
    name: str
    message: str
    hint: str = ""
    exit_code: int = EXIT_OK


def ok(name: str, message: str) -> Finding:
    """A finding without a problem."""
    return Finding("ok", name, message)


def warn(name: str, message: str, hint: str) -> Finding:
    """A finding for something that works, but not for long, or not as intended."""
    return Finding("warn", name, message, hint)


def fail(name: str, message: str, hint: str, exit_code: int = EXIT_INCOMPLETE) -> Finding:
    """A finding for something that does not work."""
    return Finding("fail", name, message, hint, exit_code)


def from_error(name: str, error: PollerError) -> list[Finding]:
    """An error of this program as findings: one for each problem of a configuration."""
    if isinstance(error, ConfigError):
        return [
            fail(
                name,
                found.message if found.path == name else f"{found.where}: {found.message}",
                found.hint,
                EXIT_CONFIG,
            )
            for found in error.problems
        ]
    return [fail(name, error.message, error.hint, error.exit_code)]


def exit_code_of(findings: Iterable[Finding]) -> int:
    """The exit code of the worst failure; 0 if there is none."""
    codes = {finding.exit_code for finding in findings if finding.level == "fail"}
    return next((code for code in _WORST_FIRST if code in codes), EXIT_OK)
