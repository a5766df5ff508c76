"""`archive`: makes keys; verifies and lists an archive, for which it needs nothing but its place."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from poller.cli.archive_report import as_data, lines_of
from poller.cli.messages import echo_json, note, printable, settle, tell
from poller.cli.options import CONTRACTS, TIME, TIME_END, GlobalOptionsGroup, PathType, Settings, span_of
from poller.cli.places import PLACE, place_of
from poller.core.amounts import plural
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, EXIT_UNFINISHED, ConfigError
from poller.system.terminals import is_capable

if TYPE_CHECKING:
    from poller.pipeline.verify import Known


_RESTORING = ("restore", "rebuild-state")


class _Group(GlobalOptionsGroup):
    """A group that loads the commands that fill a state or a sink from their own module."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_RESTORING]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _RESTORING:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module("poller.cli.restoring"), cmd_name.replace("-", "_"))
        return found


@click.group("archive", cls=_Group)
def command() -> None:
    """Archives: keygen, verify, list, restore, rebuild-state.

    PLACE is a directory, a URL (s3://bucket/prefix, file:///srv/audit), or the name of a sink of the configuration.

    \b
    Examples:
      ionos-poller archive keygen evidence.key
      ionos-poller archive verify /srv/audit --public-key evidence.pub
      ionos-poller archive list /srv/audit
    """


@command.command("keygen", short_help="A key that signs digests.")
@click.argument("file", required=False, type=PathType())
@click.option("--output", type=PathType(), metavar="FILE", help="The same as FILE.")
@click.pass_obj
def keygen(settings: Settings, file: Path | None, output: Path | None) -> int:
    """Make a key (Ed25519) that signs the digests of archives.

    Writes the private key to FILE, for its owner alone, and the public key beside it, with the ending .pub.
    Default: evidence.key. A file that is there already is never replaced.

    \b
    Example:
      ionos-poller archive keygen /etc/ionos-poller/evidence.key
    """
    from poller.archive.signing import new_key, read_public_key
    from poller.core.evidence.digest import fingerprint
    from poller.system.files import NewFile

    if file is not None and output is not None:
        raise ConfigError.of("--output", "is given in addition to FILE", "give one of them")
    settings.setup_logging()
    private = file or output or Path("evidence.key")
    if private.suffix.casefold() == ".pub" or private.name in ("", ".."):  # some file systems ignore case
        hint = "name the file of the private key, such as evidence.key: the public one gets the ending .pub"
        raise ConfigError.of(str(private), "is no name for a private key", hint)
    public = private.with_suffix(".pub")
    for path in (private, public):
        if os.path.lexists(path):
            hint = "name another file; to change keys, see previous_signing_key_file"
            raise ConfigError.of(str(path), "exists already", hint)
    contents = new_key()
    with NewFile(private) as one, NewFile(public) as other:  # writes neither if there is no room for both
        for made, content in zip((one, other), contents, strict=True):
            made.write(content)
        one.commit(0o600)
        other.commit(0o644)
    click.echo(f"private key: {private} (keep it secret, and a copy of it in a safe place)")
    click.echo(f"public key:  {public} (give it to everyone who verifies)")
    click.echo(f"fingerprint: {fingerprint(read_public_key(public))}")
    note(f'next: signing_key_file = "{private.absolute()}" in [evidence] of the configuration')
    return EXIT_OK


_FROM = click.option("--from", "start", type=TIME, metavar="T", help="Only entries of hours from T on.")
_TO = click.option("--to", "end", type=TIME_END, metavar="T", help="Only entries of hours before T.")


@command.command("verify", short_help="What is proven, and what is wrong.")
@PLACE
@_FROM
@_TO
@click.option(
    "--public-key",
    type=PathType(),
    metavar="FILE",
    help="Public key (PEM) that must have signed it; without it, the key that the archive names is trusted.",
)
@click.option(
    "--head",
    metavar="N:SHA256",
    help="A digest that is known to be in it, as `status` or an earlier `verify` said. Finds an archive that was cut at its end.",
)
@click.option("--json", "as_json", is_flag=True, help="For machines: one object.")
@click.pass_obj
def verify(
    settings: Settings,
    place: str,
    start: int | None,
    end: int | None,
    public_key: Path | None,
    head: str | None,
    as_json: bool,
) -> int:
    """Verify an archive: chain, signatures, every object, nothing unlisted, nothing missing, counts.

    Needs no API, state, token or network, but what PLACE needs. Exit code 0: proven; 1: something differs, each named;
    5: not finished, as PLACE could not be read.

    \b
    Examples:
      ionos-poller archive verify /srv/audit --public-key evidence.pub
      ionos-poller archive verify s3://audit-trail/activity --from 30d
    """
    from poller.archive.signing import is_signed_by, read_public_key
    from poller.pipeline.verify import Verifier

    opened = place_of(settings, place)
    with _progress() as on_progress:
        report = Verifier(
            opened,
            is_signed_by,
            key=read_public_key(public_key) if public_key is not None else None,
            span=span_of(start, end),
            known=_known(head),
            workers=min(8, 2 * (os.cpu_count() or 1)),
            on_progress=on_progress,
        ).run()
    if as_json:
        echo_json(as_data(report))
    else:
        for line in lines_of(report):
            click.echo(printable(line))
        for finding in report.findings:
            tell(f"{finding.where}: {finding.message}")
        if report.more:
            tell(f"... and {plural(report.more, 'more finding')}")
    if report.stopped_by:
        tell(f"not finished: {report.stopped_by}")
        return EXIT_UNFINISHED
    return EXIT_OK if report.is_proven else EXIT_INCOMPLETE


def _known(head: str | None) -> Known | None:
    from poller.pipeline.verify import Known

    if head is None:
        return None
    number, _, digest = head.partition(":")
    if re.fullmatch(r"(?!0+$)[0-9]{1,9}", number) is None or re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise ConfigError.of("--head", "is not N:SHA256", "as `ionos-poller archive list` shows it")
    return Known(int(number), digest)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr if it is a terminal."""
    if not is_capable(sys.stderr):
        yield lambda done, of: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("verify", total=None)
        yield lambda done, of: bars.update(task, completed=done, total=of)
    settle()


@command.command("list", short_help="Its digests, or the objects of a span.")
@PLACE
@_FROM
@_TO
@CONTRACTS
@click.option("--objects", is_flag=True, help="One line for each object instead of each digest.")
@click.option("--json", "as_json", is_flag=True, help="For machines: one object a line.")
@click.pass_obj
def list_(
    settings: Settings,
    place: str,
    start: int | None,
    end: int | None,
    contracts: tuple[str, ...],
    objects: bool,
    as_json: bool,
) -> int:
    """List digests, or with --objects the objects: what is in each, and its SHA-256. Nothing is verified.

    \b
    Example:
      ionos-poller archive list /srv/audit --objects --contract 31960001
    """
    from poller.pipeline.restore import chosen_objects, digests_of

    opened, span = place_of(settings, place), span_of(start, end)
    count = entries = 0
    for number, head, digest in digests_of(opened):
        chosen = list(chosen_objects(digest, span, contracts))
        if not chosen and (span is not None or contracts):
            continue
        held = sum(entry.entries for entry in chosen)
        count, entries = count + (len(chosen) if objects else 1), entries + held
        if objects:
            for entry in chosen:
                if as_json:
                    echo_json(entry)
                else:
                    click.echo(f"{entry.sha256}  {entry.entries:>9,}  {printable(entry.key)}")
        elif as_json:
            what = {"number": number, "sha256": head, "written_at": digest.written_at, "objects": len(chosen)}
            echo_json({**what, "entries": held, "statements": len(digest.statements), "key": digest.key})
        else:
            click.echo(f"{number}:{head}  {printable(digest.written_at)}  {len(chosen):>4} objects  {held:>9,} entries")
    note(f"{plural(count, 'object' if objects else 'digest')}, {plural(entries, 'entry')}")
    return EXIT_OK
