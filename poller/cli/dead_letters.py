"""`dead-letters`: events that a sink refused for good. Works while `run` runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from poller.cli import suggestions
from poller.cli.acting import acting, attached, is_at_work
from poller.cli.messages import echo_json, note, printable, tell
from poller.cli.options import USE, GlobalOptionsGroup, PathType, Settings
from poller.core.amounts import plural
from poller.core.damage import Shield
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, ConfigError, StateError
from poller.core.mapping import escaped, format_time_us
from poller.store.letters import StoredLetter, pieces
from poller.store.protocols import State, Stores
from poller.system.files import NewFile, make_directory

_SHOWN = 50  # lines of `list`, unless `--limit` or `--json` is given
_SINK = click.option("--sink", metavar="NAME", shell_complete=suggestions.known_sinks, help="Only those of this sink.")


@click.group("dead-letters", cls=GlobalOptionsGroup)
def command() -> None:
    """Events that a sink refused for good: list, show, replay, purge.

    \b
    Examples:
      ionos-poller dead-letters list
      ionos-poller dead-letters show 17
      ionos-poller dead-letters replay --sink loki
    """


def _which(function: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments that choose letters: numbers, a sink, the use."""
    function = click.argument("ids", nargs=-1, type=int, metavar="[ID]...")(function)
    return _SINK(USE(function))


@command.command("list", short_help="Number, sink, contract, time and reason.")
@_SINK
@click.option("--limit", type=click.IntRange(1), help="Maximum number. Default: 50; all with --json.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, with the entry.")
@USE
@click.pass_obj
def list_(settings: Settings, sink: str | None, limit: int | None, as_json: bool, use: str | None) -> int:
    """List dead letters, oldest first: number, sink, contract, time of the entry, reason.

    \b
    Example:
      ionos-poller dead-letters list --sink loki
    """
    with attached(settings.load(check_files=False), use) as (_, state):
        _check_sink(state, sink)
        if as_json:
            for letter in state.dead_letters.each(state.dead_letters.numbers(sink)[:limit]):
                echo_json(_as_data(letter))
            return EXIT_OK
        limit = limit or _SHOWN
        letters = state.dead_letters.find(sink, limit=limit + 1)
    for letter in letters[:limit]:
        status = f" ({letter.status})" if letter.status and str(letter.status) not in letter.reason else ""
        what = f"{letter.contract}  {format_time_us(letter.time_us)}  {letter.reason}{status}"
        click.echo(printable(f"{letter.id:>6}  {letter.sink}  {what}"))
    if not letters:
        note("no dead letters")
    elif len(letters) > limit:
        click.echo("... and more: --limit, or --json for all")
    return EXIT_OK


@command.command("show", short_help="One whole, with its entry, as JSON.")
@click.argument("ids", nargs=-1, type=int, required=True, metavar="ID...")
@USE
@click.pass_obj
def show(settings: Settings, ids: tuple[int, ...], use: str | None) -> int:
    """Show dead letters whole, with their entry, as JSON.

    \b
    Example:
      ionos-poller dead-letters show 17
    """
    with attached(settings.load(check_files=False), use) as (_, state):
        for letter in state.dead_letters.each(_chosen(state, None, ids)):
            click.echo(_pretty(letter))
    return EXIT_OK


@command.command("replay", short_help="Send them again to the sink that refused them.")
@_which
@click.pass_obj
def replay(settings: Settings, ids: tuple[int, ...], sink: str | None, use: str | None) -> int:
    """Put dead letters back into the outbox, for the sink that refused them. All, or those named.

    Exit code 1 if the state has forgotten the sink of one: it stays a dead letter.

    \b
    Examples:
      ionos-poller dead-letters replay
      ionos-poller dead-letters replay 17 18
    """
    config = settings.load(check_files=False)
    with attached(config, use) as (stores, state):
        numbers = _chosen(state, sink, ids)
        refusers: set[str] = set()

        def chosen() -> Iterator[StoredLetter]:
            for letter in state.dead_letters.each(numbers):
                refusers.add(letter.sink)
                yield letter

        with acting(stores, "dead-letters replay", _subject(sink, ids)) as by:
            count = state.dead_letters.replay(chosen(), int(time.time()), by=by)
        forgotten = refusers - {row.name for row in state.outbox.sinks()}
        name, is_sent = state.use, is_at_work(stores, state)
    when = (
        f"`{name}` sends them within seconds" if is_sent else f"they are sent when `{name}` runs: it does not run now"
    )
    click.echo(f"{count} of {len(numbers)} put back" + (f"; {when}" if count else ""))
    configured = {row.name for row in config.sinks}
    if name == "run" and (left := sorted(refusers - forgotten - configured)):
        note(f"those of {', '.join(left)} wait: it left the config, and nothing is sent to it until it is put back")
    if forgotten:
        told = f"those of {', '.join(sorted(forgotten))} stay dead letters: the state has forgotten the sink"
        tell(f"{told} (put it into the config and start `run`, which makes it known; then replay them)")
    return EXIT_INCOMPLETE if forgotten else EXIT_OK


@command.command("purge", short_help="Delete them for good.")
@_which
@click.option("--reason", metavar="TEXT", help="Why: it is kept in the journal. Needed.")
@click.option(
    "--export",
    "given",
    type=PathType(),
    metavar="FILE",
    help="Where to keep what is deleted, as JSON lines. Default: a new file in the state directory.",
)
@click.option("--no-export", is_flag=True, help="Keep nothing of it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def purge(
    settings: Settings,
    ids: tuple[int, ...],
    sink: str | None,
    reason: str | None,
    given: Path | None,
    no_export: bool,
    yes: bool,
    use: str | None,
) -> int:
    """Delete dead letters for good. All, or those named. Asks first, and writes what is deleted to a file (mode 0600).

    \b
    Example:
      ionos-poller dead-letters purge --sink loki --reason "test data" --yes
    """
    if not (reason and reason.strip()):
        raise ConfigError.of("--reason", "missing", "say why they can go: it is kept in the journal")
    if given is not None and no_export:
        raise ConfigError.of("--no-export", "contradicts --export", "give one of the two")
    with attached(settings.load(check_files=False), use) as (stores, state):
        numbers = _chosen(state, sink, ids)
        if numbers and not yes:
            _confirm(f"Delete {plural(len(numbers), 'dead letter')} for good?")
        with acting(stores, "dead-letters purge", _subject(sink, ids), reason=reason.strip()) as by:
            if numbers and not no_export:
                stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
                path = given or stores.directory / f"purged-{state.use}-{stamp}-{numbers[0]}.ndjson"
                _export(stores, state, numbers, path)
                by.export = str(path.absolute())
            count = state.dead_letters.purge(state.dead_letters.each(numbers), by=by)
    click.echo(f"{count} deleted" + (f", kept in {by.export}" if by.export else ""))
    return EXIT_OK


def _subject(sink: str | None, ids: tuple[int, ...]) -> str:
    """The chosen letters, as they were given on the command line."""
    of = f"sink {sink}" if sink else ""
    which = " ".join(map(str, ids))
    return ": ".join(filter(None, [of, which])) or "all"


def _export(stores: Stores, state: State, numbers: Sequence[int], path: Path) -> None:
    """Write letters to a new file, which is complete and on the disk before any is deleted.  Raises: ConfigError."""
    if os.path.lexists(path):
        raise ConfigError.of("--export", f"{path} exists", "name a file that does not")
    if path.parent == stores.directory:  # it may not exist if the state is in PostgreSQL
        with suppress(OSError):  # NewFile reports what is wrong with the directory
            make_directory(path.parent)
    with NewFile(path) as file:
        for letters in pieces(state.dead_letters.each(numbers)):
            file.write(b"".join(msgspec.json.encode(_as_data(letter)) + b"\n" for letter in letters))
        file.commit(for_owner_of=stores.directory if path.parent == stores.directory else None)


def _confirm(question: str) -> None:
    """Go on if the answer is yes.  Raises: click.Abort if not, ConfigError if stdin is not a terminal and has no answer."""
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort:
        if sys.stdin is not None and sys.stdin.isatty():
            raise
        click.echo(err=True)  # ends the line of the question
        raise ConfigError.of("--yes", "missing", "give it: without a terminal, nobody can be asked") from None


def _check_sink(state: State, sink: str | None) -> None:
    """Raises: ConfigError if the state has neither this sink nor letters of it. A forgotten sink may have left letters."""
    if sink is None:
        return
    known = dict.fromkeys([*(row.name for row in state.outbox.sinks()), *state.overview().letters])
    if sink not in known:
        raise ConfigError.of("--sink", f"there is no sink {sink}", f"known are: {', '.join(known) or 'none'}")


def _chosen(state: State, sink: str | None, ids: tuple[int, ...]) -> list[int]:
    """The numbers of the chosen letters.  Raises: ConfigError if one does not exist."""
    _check_sink(state, sink)
    numbers = state.dead_letters.numbers(sink, ids)
    if missing := sorted(set(ids).difference(numbers)):
        unknown = ", ".join(map(str, missing))
        raise ConfigError.of("ID", f"no dead letter {unknown}", "`ionos-poller dead-letters list` shows them")
    return numbers


def _pretty(letter: StoredLetter) -> str:
    """The letter as indented JSON, with every character escaped that could control a terminal.

    Raises: StateError if its entry is not valid JSON.
    """
    shield = Shield(msgspec.json.encode(_as_data(letter)))
    try:
        text = shield.restore(msgspec.json.format(shield.shielded, indent=2)).decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "the API still holds the entry: collect it again with `backfill`, and `dead-letters purge` this one"
        raise StateError(f"dead letter {letter.id} is damaged", hint=hint) from error
    return escaped(text)


def _as_data(letter: StoredLetter) -> dict[str, object]:
    return {
        "id": letter.id,
        "sink": letter.sink,
        "contract": letter.contract,
        "time": format_time_us(letter.time_us),
        "status": letter.status,
        "reason": letter.reason,
        "died_at": datetime.fromtimestamp(letter.died_at, UTC),
        "entry": msgspec.Raw(letter.line),
    }
