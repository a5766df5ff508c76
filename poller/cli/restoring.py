"""`archive restore` and `archive rebuild-state`: copy entries from an archive to a file, to sinks, or into a new state."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import threading
import time
from collections.abc import Container
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import BinaryIO

import click

from poller.archive import Place
from poller.cli.acting import warn_of_root
from poller.cli.messages import note
from poller.cli.options import CONTRACTS, SINKS, TIME, TIME_END, GlobalOptionsCommand, PathType, Settings, span_of
from poller.cli.places import PLACE, place_of
from poller.cli.stopping import until_stopped
from poller.config import ArchiveSink, Config
from poller.core.amounts import plural
from poller.core.errors import EXIT_OK, AuthError, ConfigError, StateError, StoppedError
from poller.core.evidence.batches import HOUR_SECONDS, Head
from poller.core.evidence.digest import Object
from poller.core.windows import Window
from poller.pipeline.archive import deliverer_of
from poller.pipeline.deliver import Deliverer
from poller.pipeline.restore import RESTORES, Rebuilder, chosen_objects, claimed, digests_of, events_in, lines_in
from poller.pipeline.unfinished import close_unfinished
from poller.pipeline.verify import seconds_of
from poller.sinks.archive import ArchiveSink as ArchiveWriter
from poller.sinks.base import Context
from poller.sinks.build import build_sink
from poller.sinks.redaction import redactions_of
from poller.store.opening import stores_of
from poller.store.protocols import State
from poller.store.rows import Prepared, WindowRead
from poller.system.files import NewFile
from poller.system.whole_output import WholeOutput

_REBUILDING = "rebuilding"
_Output = BinaryIO | gzip.GzipFile | WholeOutput


@click.command("restore", cls=GlobalOptionsCommand, short_help="Copy entries from it to a file or a sink.")
@PLACE
@click.option("--from", "start", type=TIME, metavar="T", help="Only entries from T on.")
@click.option("--to", "end", type=TIME_END, metavar="T", help="Only entries before T.")
@CONTRACTS
@click.option(
    "--output",
    type=PathType(None),
    metavar="FILE",
    help="Write JSON lines to FILE (.gz: compressed). Default: -, for stdout.",
)
@SINKS
@click.pass_obj
def restore(
    settings: Settings,
    place: str,
    start: int | None,
    end: int | None,
    contracts: tuple[str, ...],
    output: str | None,
    sinks: tuple[str, ...],
) -> int:
    """Copy entries from an archive: as JSON lines, or to sinks. It needs no state, and no API.

    Oldest hour first for each contract. Every object is checked against its digest. Entries in another format than raw (the
    `format` of the sink) are restored by whole hours, and to no sink: their times are not read.

    \b
    Examples:
      ionos-poller archive restore /srv/audit --from 30d --output month.ndjson
      ionos-poller archive restore /srv/audit --contract 31960001 --sink loki
    """
    if output and sinks:
        raise ConfigError.of("--output", "is given in addition to --sink", "give one of the two")
    opened, span = place_of(settings, place), span_of(start, end)
    objects: list[Object] = []
    formats: dict[str, str] = {}  # of objects with another format than raw, by key
    for *_, digest in digests_of(opened):
        chosen = list(chosen_objects(digest, span, contracts))
        objects += chosen
        if digest.entry_format != "raw":
            formats.update((entry.key, digest.entry_format) for entry in chosen)
    objects.sort(key=lambda entry: (entry.contract, entry.hour))
    told = ", ".join(sorted(set(formats.values())))
    if sinks:
        if formats:
            what = f"the archive holds entries in the format {told}, and a sink needs them as the API gave them"
            raise ConfigError.of("--sink", what, "restore them with --output")
        config = settings.load()
        return until_stopped(lambda stop: _to_sinks(config, opened, objects, span, sinks, stop))
    if any(entry.key in formats and not _is_whole(entry, span) for entry in objects):
        note(
            f"the times of entries in the format {told} are not read: each hour that the span touches is restored whole"
        )
    if output in (None, "-"):
        note(f"{plural(_write(opened, objects, span, formats, sys.stdout.buffer), 'entry')} restored")
        return EXIT_OK
    path = Path(str(output))
    if os.path.lexists(path):
        raise ConfigError.of("--output", f"{path} exists already", "name another file, or move it away")
    with NewFile(path) as made:
        with made.draft.open("wb", buffering=0) as file:
            whole = WholeOutput(file.fileno())
            with gzip.GzipFile(path, "wb", fileobj=whole) if path.suffix == ".gz" else nullcontext(whole) as out:
                count = _write(opened, objects, span, formats, out)
        made.write(b"")
        made.commit()
    note(f"{plural(count, 'entry')} restored to {path}")
    return EXIT_OK


def _is_whole(entry: Object, span: Window | None) -> bool:
    """Whether an object lies completely in the span."""
    start = seconds_of(entry.hour)
    return span is None or (span.start <= start and start + HOUR_SECONDS <= span.end)


def _write(place: Place, objects: list[Object], span: Window | None, formats: Container[str], file: _Output) -> int:
    count = 0
    for entry in objects:
        if _is_whole(entry, span) or entry.key in formats:
            lines = lines_in(place, entry)
        else:
            lines = [event.line for event in events_in(place, entry) if _is_in(event.time_us, span)]
        if lines:
            file.write(b"\n".join([*lines, b""]))
        count += len(lines)
    file.flush()
    return count


def _is_in(time_us: int, span: Window | None) -> bool:
    return span is None or span.start <= time_us // 1_000_000 < span.end


def _to_sinks(
    config: Config,
    place: Place,
    objects: list[Object],
    span: Window | None,
    names: tuple[str, ...],
    stop: threading.Event,
) -> int:
    chosen = [sink for sink in config.sinks if sink.name in names]
    unknown = set(names) - {sink.name for sink in chosen}
    archives = [sink.name for sink in chosen if isinstance(sink, ArchiveSink)]
    if unknown or archives:
        what = f"there is no {', '.join(sorted(unknown))}" if unknown else f"{archives[0]} is an archive itself"
        raise ConfigError.of("--sink", what, "name a sink of the configuration")
    stores = stores_of(config)
    warn_of_root(stores)
    order = repr((place.url, span, sorted({entry.contract for entry in objects}), sorted(names)))
    use = RESTORES + hashlib.blake2b(order.encode(), digest_size=6).hexdigest()
    state = stores.open(use)
    try:
        redactions = redactions_of(chosen, config)
        sinks = [build_sink(sink, config, stop) for sink in chosen]
        deliverers = [deliverer_of(state, sink, redact=redactions.get(sink.name)) for sink in sinks]
        for entry in objects:
            _collect(state, place, entry, span, config.accounts[0].name)
            _deliver(deliverers, stop)
        books = state.overview().sinks
    finally:
        state.close()
    for row in books:
        delivered = plural(row.sink.delivered, "entry")
        note(f"{row.sink.name}: {delivered} delivered, {plural(row.sink.dead, 'dead letter')}")
        if row.dead_letters:
            note(f"`ionos-poller dead-letters list --use {use}` shows the dead letters of {row.sink.name}")
    if not any(row.sink.dead for row in books):
        stores.discard(use)  # nothing to resume, nothing for `status` to show
    return EXIT_OK


def _collect(state: State, place: Place, entry: Object, span: Window | None, account: str) -> None:
    """Put the entries of an object into the outbox, unless an interrupted run has done so."""
    events = [event for event in events_in(place, entry) if _is_in(event.time_us, span)]
    start = seconds_of(entry.hour)
    now = int(time.time())
    state.contracts.enrol([entry.contract], account, start, now)
    with claimed(state, entry.contract) as claim:
        claim.commit(WindowRead(Window(start, start + HOUR_SECONDS), events, len(events), now), Prepared)


def _deliver(deliverers: list[Deliverer], stop: threading.Event) -> None:
    for deliverer in deliverers:
        while (wait := deliverer.step(is_last=True).wait_seconds) is not None:
            if deliverer.refusal:
                hint = "nothing is lost: correct that and run the same command again"
                raise AuthError(deliverer.refusal, sink=deliverer.sink_name, hint=hint)
            if stop.wait(wait):
                raise StoppedError("asked to stop")


@click.command("rebuild-state", cls=GlobalOptionsCommand, short_help="A new state, when the old one is lost.")
@PLACE
@click.pass_obj
def rebuild_state(settings: Settings, place: str) -> int:
    """Begin a new state from an archive, when the old one is lost: nothing in the archive is collected or delivered again.

    PLACE must be that of a sink of the configuration; its chain goes on. What was collected last and not archived yet is
    collected again, and delivered again to the other sinks.

    \b
    Example:
      ionos-poller archive rebuild-state /srv/audit
    """
    config = settings.load()
    opened = place_of(settings, place)
    sink = _sink_of(config, place, opened)
    writer = ArchiveWriter(sink, Context(config, threading.Event()), opened)
    stores = stores_of(config)
    warn_of_root(stores)
    if "run" in stores.uses():
        hint = "if you do not need it any more, move it away; or name another state_dir or [state] schema"
        raise StateError(f"there is a state already: {stores.where('run')}", hint=hint)
    stores.discard(_REBUILDING)
    state = stores.open(_REBUILDING)
    with ExitStack() as failing:
        failing.callback(stores.discard, _REBUILDING)  # a retry starts again, and `status` must not show it
        failing.callback(state.close)
        for known in config.sinks:  # first, so that archived entries count as delivered to every sink
            state.outbox.register(known.name, known.type)
        now = int(time.time())
        rebuilder = Rebuilder(opened, sink.name, config.accounts[0].name, now)
        rebuilt = rebuilder.into(state, close=lambda head: _closed(opened, writer, head, now))
        state.archives.remember_place(sink.name, writer.where)
        for listed in opened.listing(""):
            if listed.is_draft:
                opened.delete(listed.key)
        failing.pop_all()
    state.close()
    stores.rename(_REBUILDING, "run")
    click.echo(
        f"state rebuilt from {plural(rebuilt.entries, 'entry')} of {plural(rebuilt.contracts, 'contract')}:"
        f" the chain goes on after digest {rebuilt.number}"
    )
    if rebuilt.gaps:
        note(f"{plural(rebuilt.gaps, 'gap')} will be tried again: `ionos-poller gaps list` shows them")
    if rebuilt.ranges:
        note(f"{plural(rebuilt.ranges, 'span')} that the archive does not prove complete will be read again")
    return EXIT_OK


def _closed(place: Place, writer: ArchiveWriter, head: Head, now: int) -> Head:
    closed = close_unfinished(place, writer, head, now)
    for left in closed.abandoned:
        note(f"{left.key} has no digest: digest {closed.head.number} says that it is no part of the archive")
    return closed.head


def _sink_of(config: Config, text: str, place: Place) -> ArchiveSink:
    sinks = [sink for sink in config.sinks if isinstance(sink, ArchiveSink)]
    for sink in sinks:
        where = place.url if sink.directory is None else Path(place.url).absolute()
        if text in (sink.name, sink.url) or where == (sink.directory or sink.url):
            return sink
    hint = "give the url of a sink of type archive, as the configuration has it"
    raise ConfigError.of("PLACE", f"no sink of the configuration writes to {place.url}", hint)
