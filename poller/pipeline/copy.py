"""Copying a state to another place: all its uses, or none."""

from __future__ import annotations

from collections.abc import Callable

from poller.core.errors import StateError
from poller.store.archives import WRITER
from poller.store.copying import Dump
from poller.store.protocols import Stores


def copy(source: Stores, target: Stores, on_progress: Callable[[int, int], None]) -> list[str]:
    """Commits: all states of `source` at `target`, which must not have them. The source does not change.

    `on_progress` is called with the number of copied rows and their total.  Returns: the uses.
    Raises: StateHeldError if somebody works on either, StateError, also while a batch of an archive is being written.
    """
    with source.dump() as dumps:
        if not dumps:
            raise StateError(
                f"{source.place}: there is no state to copy", hint="name the state_dir or URL that has one"
            )
        for dump in dumps:
            _check_archives(source, dump)
        total = sum(dump.count() for dump in dumps)
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            if done % 1000 == 0:
                on_progress(done, total)

        target.load(dumps, tick)
        on_progress(total, total)
        return [dump.use for dump in dumps]


def _check_archives(source: Stores, dump: Dump) -> None:
    """Check for unfinished batches: a batch, and the events of a backfill in it, belong to the place of its commit.

    Raises: StateError.
    """
    where = source.where(dump.use)
    for sink, _ in dump.rows("archive_batches"):
        hint = "start `ionos-poller run` until it is written, stop it, and copy again"
        raise StateError(f"{where}: a batch of the archive {sink} is being written", hint=hint)
    if dump.overview.finished is None and any(name == WRITER for name, _ in dump.rows("facts")):
        hint = "run the same backfill again until it is finished, and copy again"
        raise StateError(f"{where}: this backfill to an archive is not finished", hint=hint)
