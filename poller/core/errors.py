"""The errors of ionos-poller, grouped by the reaction they demand, and the exit codes they map to.

Every error a user may see is a `PollerError`. Foreign exceptions are translated at the edge that met them, with the
cause kept, so nothing above an edge ever catches `requests`, `sqlite3` or `OSError`.
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

    `contract` and `sink` name what it concerns, where it concerns one; `hint` is the remedy, a short sentence. `account` is
    the one that did not say which contracts it has.
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
        """What it is and what to do, without where."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Problem(NamedTuple):
    """One thing wrong with the configuration: where (`path`, such as `sinks[0].url`), what, and what to do.

    `place` is the file and line, such as `my.toml:12`; empty for what is in no file.
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
    """A key or certificate file is missing or empty: it may be put there at any time, by whatever brings secrets."""


class ConfigError(PollerError):
    """The configuration or the command line cannot be used. Carries all problems at once."""

    exit_code = EXIT_CONFIG

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)

    @property
    def may_pass(self) -> bool:
        """Whether nothing is wrong but files that are not there yet."""
        return all(isinstance(problem, FileProblem) for problem in self.problems)


class TransientError(PollerError):
    """It may work later: nothing is lost by waiting. `retry_after_seconds` is the other side's wish, if it had one.

    `is_size_suspect`: there was a connection, and a smaller request might have been answered.
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
    """The answer cannot be used: it is not what it should be, or no JSON. `body` is what came."""

    def __init__(self, message: str, body: bytes, *, hint: str = "", contract: str = "") -> None:
        super().__init__(message, hint=hint, contract=contract)
        self.body = body


class AuthError(PollerError):
    """Credentials were refused, or (`is_denied`) are good but lack a privilege: park and call a person."""

    exit_code = EXIT_AUTH

    def __init__(
        self, message: str, *, is_denied: bool = False, hint: str = "", contract: str = "", sink: str = ""
    ) -> None:
        super().__init__(message, hint=hint, contract=contract, sink=sink)
        self.is_denied = is_denied


class RejectedError(PollerError):
    """The other side refuses this very request (not us, not now): split it, then set the culprit apart."""

    def __init__(self, message: str, *, status: int | None = None, hint: str = "", contract: str = "") -> None:
        super().__init__(message, hint=hint, contract=contract)
        self.status = status


def is_access_refused(failure: PollerError | None) -> bool:
    """Whether a contract could not be read for a reason that another account may not have."""
    return isinstance(failure, AuthError) or (isinstance(failure, RejectedError) and failure.status == 404)


class StateError(PollerError):
    """The state cannot be used, or another process holds it: stop before anything is lost."""

    exit_code = EXIT_STATE


class StateHeldError(StateError):
    """Another process holds the state."""


class StateUnavailableError(StateError):
    """The state cannot be used just now, and is as it was before: wait and try again. All other troubles need a person."""

    exit_code = EXIT_INCOMPLETE


class LeaseLostError(StateUnavailableError):
    """A claim or a place is another replica's by now. Nothing was written: drop what you remember of it, and begin again."""

    def __init__(self, message: str, *, contract: str = "", sink: str = "") -> None:
        super().__init__(message, hint="another replica goes on", contract=contract, sink=sink)


class StateFullError(StateUnavailableError):
    """The disk is full, or a quota is used up: it works again when space is freed."""


class BodyTooLargeError(PollerError):
    """The answer is larger than the caller can hold. Ask for less."""


ASKING_ERRORS = (RejectedError, TransientError, AuthError, BodyTooLargeError)
"""What a question to the other side may end with: some concern that question alone, some all that is asked."""


class OutputError(PollerError):
    """What we write to (stdout, a file) is gone or full: stop, and leave what was not written in the outbox."""


class StoppedError(Exception):
    """We were asked to stop while waiting. Nothing went wrong: no PollerError, so that nobody takes it for a failure."""


def place_of(error: Exception) -> str:
    """The file and line that raised an error."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
