"""The preflight: what could keep the program from working, tried rather than guessed, each with its remedy.

Every check is a small function from values to findings, or tries one thing at an edge and says what came of it. Nothing here
prints, writes to the state, or collects an entry: a check may run beside the daemon at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from poller.core.errors import EXIT_AUTH, EXIT_CONFIG, EXIT_INCOMPLETE, EXIT_OK, EXIT_STATE, ConfigError, PollerError

Level = Literal["ok", "warn", "fail"]

# What to mend first: nothing works without a configuration, and little without a token.
_WORST_FIRST = (EXIT_CONFIG, EXIT_AUTH, EXIT_STATE, EXIT_INCOMPLETE)


class Finding(NamedTuple):
    """What one check found: `name` says where, `hint` is the remedy. `exit_code` is the command's, if it is the worst."""

    level: Level
    name: str
    message: str
    hint: str = ""
    exit_code: int = EXIT_OK


def ok(name: str, message: str) -> Finding:
    """All is well."""
    return Finding("ok", name, message)


def warn(name: str, message: str, hint: str) -> Finding:
    """It works, but not for long, or not as meant."""
    return Finding("warn", name, message, hint)


def fail(name: str, message: str, hint: str, exit_code: int = EXIT_INCOMPLETE) -> Finding:
    """It does not work."""
    return Finding("fail", name, message, hint, exit_code)


def from_error(name: str, error: PollerError) -> list[Finding]:
    """An error of ours as findings; one each for the problems of a configuration."""
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
