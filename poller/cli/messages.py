"""What a person is told on stderr, in one line each, and the exit code that goes with it."""

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
    """One line that does nothing to a terminal: what a server answered may be in it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def echo_json(value: object) -> None:
    """A value on stdout, as JSON on one line; on a terminal with the characters escaped that do something to it."""
    text = encoded(value)
    click.echo(escaped(text.decode()) if sys.stdout.isatty() else text)


def wants_color() -> bool | None:
    """As click has it: False where no terminal gets any, None where it depends on whether a terminal looks."""
    return None if allows_colours() else False


def tell(message: str) -> None:
    """One line on stderr, in the program's name."""
    name = "ionos-poller:"
    line = wrapped(f"{name} {printable(message)}", sys.stderr)
    _say(line.replace(name, click.style(name, fg="red", bold=True), 1))


def note(message: str) -> None:
    """One line on stderr that is no error."""
    _say(wrapped(printable(message), sys.stderr))


def wrapped(line: str, stream: TextIO | None) -> str:
    """Between words where the stream is a terminal, which would cut a word in two; one line elsewhere."""
    if stream is None or not stream.isatty():
        return line
    width = shutil.get_terminal_size().columns
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _say(line: str) -> None:
    with suppress(OSError):
        click.echo(line, err=True, color=wants_color())
    settle()


def settle() -> None:
    """Have on the terminal what was said on stderr, before more is printed on stdout: two ways lead there."""
    if isinstance(sys.stderr, LogStream):
        sys.stderr.settle()


@contextmanager
def restarted_if_it_may_pass() -> Iterator[None]:
    """End with 1, so that the service manager starts it again, where what is wrong may be right in a while."""
    try:
        yield
    except ConfigError as error:
        if error.may_pass:
            error.exit_code = EXIT_INCOMPLETE
        raise


def told_gaps(polls: Sequence[PollResult], use: str = "fetch") -> list[PollerError]:
    """An error for each contract with gaps that nobody has accepted: all else is collected."""
    hint = f"`ionos-poller gaps list --use {use}` shows them, `gaps accept` takes them as they are"
    return [
        PollerError(f"{summary([gap.window for gap in poll.gaps])} cannot be read", contract=poll.contract, hint=hint)
        for poll in polls
        if poll.gaps
    ]


def books_of(state: Overview) -> str:
    """What was fetched of all contracts, and what became of it."""
    fetched, new, seen, filtered = (
        sum(getattr(row, name) for row in state.contracts) for name in ("fetched", "new", "seen", "filtered")
    )
    return f"books: fetched {fetched:,} = new {new:,} + seen before {seen:,} + filtered {filtered:,}"


def exit_code(polls: Sequence[PollResult], failures: Sequence[PollerError]) -> int:
    """Say what failed, in a line each, and choose the exit code: 3 only where the credentials kept everything from working."""
    for failure in failures[:_TOLD_FAILURES]:
        tell(str(failure))
    if len(failures) > _TOLD_FAILURES:
        tell(f"... and {len(failures) - _TOLD_FAILURES} more failed; the log names each")
    if not failures:
        return EXIT_OK
    has_worked = any(poll.failure is None for poll in polls)
    return EXIT_AUTH if not has_worked and any(isinstance(error, AuthError) for error in failures) else EXIT_INCOMPLETE
