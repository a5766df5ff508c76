"""The errors of ionos-poller, grouped by what the caller must do, and their exit codes.

Every error that a user may see is a `PollerError`. Each edge translates foreign exceptions and keeps the cause, so no code
above an edge catches the exceptions of `requests` or `sqlite3`, or `OSError`.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

EXIT_OK = 0
EXIT_INCOMPLETE = 1
EXIT_CONFIG = 2
EXIT_AUTH = 3
EXIT_STATE = 4
EXIT_UNFINISHED = 5
EXIT_INTERRUPTED = 130


class PollerError(Exception):
    """Base of all our errors: what went wrong in one line, where, and what to do about it.

    `contract` and `sink` name the contract or sink that it concerns, if any. `hint` is a short sentence: what to do.
    `account` is set if an account could not list its contracts: it names that account.
    """

    exit_code = EXIT_INCOMPLETE

    def __init__(self, message: str, *, hint: str = "", contract: str = "", sink: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.contract = contract
        self.sink = sink
        self.account = ""

    def __str__(self) -> str:
        where = f"contract {self.contract}: " if self.contract else f"sink {self.sink}: " if self.sink else ""
        return f"{where}{self.reason}"

    @property
    def reason(self) -> str:
        """The message with its hint, without contract or sink."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Problem(NamedTuple):
    """One thing wrong with the configuration: where (`path`, for example `sinks[0].url`), what, and what to do.

    `place` is the file and line, for example `my.toml:12`; empty if the value comes from no file.
    """

    path: str
    message: str
    hint: str = ""
    place: str = ""

    @property
    def where(self) -> str:
        return f"{self.place}: {self.path}" if self.place else self.path

    def __str__(self) -> str:
        return f"{self.where}: {self.message}{f' ({self.hint})' if self.hint else ''}"


class FileProblem(Problem):
    """A key or certificate file is missing or empty. A tool that provides secrets may still create it later."""


class ConfigError(PollerError):
    """The configuration or the command line cannot be used. Carries all problems at once."""

    exit_code = EXIT_CONFIG

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)

    @classmethod
    def of(cls, path: str, message: str, hint: str = "", place: str = "") -> ConfigError:
        """The error of a single problem."""
        return cls([Problem(path, message, hint, place)])

    @property
    def may_pass(self) -> bool:
        """Whether all problems are files that do not exist yet."""
        return all(isinstance(problem, FileProblem) for problem in self.problems)


class TransientError(PollerError):
    """It may work later: nothing is lost by waiting. `retry_after_seconds` is how long the other side asks to wait, if it does.

    `is_size_suspect`: the connection worked, and a smaller request might succeed.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        status: int | None = None,
        hint: str = "",
        contract: str = "",
        is_size_suspect: bool = False,
    ) -> None:
        super().__init__(message, hint=hint, contract=contract)
        self.retry_after_seconds = retry_after_seconds
        self.status = status
        self.is_size_suspect = is_size_suspect


class UnusableAnswerError(TransientError):
    """The answer cannot be used: it has an unexpected form or is not JSON. `body` is the answer's content."""

    def __init__(self, message: str, body: bytes, *, hint: str = "", contract: str = "") -> None:
        super().__init__(message, hint=hint, contract=contract)
        self.body = body


class AuthError(PollerError):
    """Credentials were refused, or (`is_denied`) are valid but lack a privilege. Pause; a person must act."""

    exit_code = EXIT_AUTH

    def __init__(
        self, message: str, *, is_denied: bool = False, hint: str = "", contract: str = "", sink: str = ""
    ) -> None:
        super().__init__(message, hint=hint, contract=contract, sink=sink)
        self.is_denied = is_denied


class RejectedError(PollerError):
    """The other side refuses this request, not the credentials or the time. Split it to find the cause, and set that apart."""

    def __init__(self, message: str, *, status: int | None = None, hint: str = "", contract: str = "") -> None:
        super().__init__(message, hint=hint, contract=contract)
        self.status = status


def is_access_refused(failure: PollerError | None) -> bool:
    """Whether a contract could not be read for a reason that may not apply to another account."""
    return isinstance(failure, AuthError) or (isinstance(failure, RejectedError) and failure.status == 404)


class StateError(PollerError):
    """The state cannot be used, or another process holds it: stop before anything is lost."""

    exit_code = EXIT_STATE


class StateHeldError(StateError):
    """Another process holds the state."""


class StateUnavailableError(StateError):
    """The state cannot be used right now. It has not changed: wait and try again. Every other `StateError` needs a person."""

    exit_code = EXIT_INCOMPLETE


class LeaseLostError(StateUnavailableError):
    """Another replica now holds this claim or place. Nothing was written: discard what is in memory about it, and start again."""

    def __init__(self, message: str, *, contract: str = "", sink: str = "") -> None:
        super().__init__(message, hint="another replica goes on", contract=contract, sink=sink)


class StateFullError(StateUnavailableError):
    """The disk is full, or a quota is used up. It works again when space is freed."""


class BodyTooLargeError(PollerError):
    """The answer is larger than the caller can hold. Ask for less."""


ASKING_ERRORS = (RejectedError, TransientError, AuthError, BodyTooLargeError)
"""The errors that a request to the other side may raise. Some concern this request alone, others every request."""


class OutputError(PollerError):
    """Our output (stdout, a file) is closed or full: stop. Events that were not written stay in the outbox."""


class StoppedError(Exception):
    """We were asked to stop while we waited. This is no failure, so it is not a PollerError."""


def place_of(error: Exception) -> str:
    """The file and line that raised an error."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
