"""Messages to a person on stderr, in one line each, and the exit codes that go with them."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

import click

from poller.core.damage import encoded
from poller.core.errors import EXIT_AUTH, EXIT_INCOMPLETE, EXIT_OK, AuthError, ConfigError, PollerError
from poller.core.gaps import summary
from poller.core.mapping import escaped
from poller.system.log_stream import LogStream
from poller.system.terminals import allows_colours

if TYPE_CHECKING:
    from poller.pipeline.collect import PollResult
    from poller.store.overview import Overview

_TOLD_FAILURES = 5


def printable(text: str) -> str:
    """The text as one line, with control characters escaped: it may hold the answer of a server."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def echo_json(value: object) -> None:
    """Print a value on stdout, as JSON on one line. On a terminal, control characters are escaped."""
    text = encoded(value)
    click.echo(escaped(text.decode()) if sys.stdout.isatty() else text)


def wants_color() -> bool | None:
    """For `color` of click. False: never use colours; None: use them if the stream is a terminal."""
    return None if allows_colours() else False


def tell(message: str) -> None:
    """Print one line on stderr, which begins with the program's name."""
    name = "ionos-poller:"
    line = wrapped(f"{name} {printable(message)}", sys.stderr)
    _say(line.replace(name, click.style(name, fg="red", bold=True), 1))


def note(message: str) -> None:
    """Print one line on stderr that is not an error."""
    _say(wrapped(printable(message), sys.stderr))


def wrapped(line: str, stream: TextIO | None) -> str:
    """The line, wrapped between words if the stream is a terminal, which would cut words. Elsewhere it stays one line."""
    if stream is None or not stream.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _say(line: str) -> None:
    with suppress(OSError):
        click.echo(line, err=True, color=wants_color())
    settle()


def settle() -> None:
    """Let what was printed on stderr reach the terminal before more is printed on stdout: stderr is written by a thread."""
    if isinstance(sys.stderr, LogStream):
        sys.stderr.settle()


@contextmanager
def restarted_if_it_may_pass() -> Iterator[None]:
    """End with 1 if the problem may pass by itself, so that the service manager starts the program again."""
    try:
        yield
    except ConfigError as error:
        if error.may_pass:
            error.exit_code = EXIT_INCOMPLETE
        raise


def told_gaps(polls: Sequence[PollResult], use: str = "fetch") -> list[PollerError]:
    """An error for each contract with gaps that nobody has accepted. Everything else is collected."""
    hint = f"`ionos-poller gaps list --use {use}` shows them, `gaps accept` takes them as they are"
    return [
        PollerError(f"{summary([gap.window for gap in poll.gaps])} cannot be read", contract=poll.contract, hint=hint)
        for poll in polls
        if poll.gaps
    ]


def books_of(state: Overview) -> str:
    """The books of all contracts together: fetched, new, seen before, filtered."""
    fetched, new, seen, filtered = (
        sum(getattr(row, name) for row in state.contracts) for name in ("fetched", "new", "seen", "filtered")
    )
    return f"books: fetched {fetched:,} = new {new:,} + seen before {seen:,} + filtered {filtered:,}"


def exit_code(polls: Sequence[PollResult], failures: Sequence[PollerError]) -> int:
    """Print each failure in one line, and choose the exit code: 3 only if credentials were refused and no poll succeeded."""
    for failure in failures[:_TOLD_FAILURES]:
        tell(str(failure))
    if len(failures) > _TOLD_FAILURES:
        tell(f"... and {len(failures) - _TOLD_FAILURES} more failed; the log names each")
    if not failures:
        return EXIT_OK
    has_worked = any(poll.failure is None for poll in polls)
    return EXIT_AUTH if not has_worked and any(isinstance(error, AuthError) for error in failures) else EXIT_INCOMPLETE
