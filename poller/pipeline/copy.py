"""Copying a state to another place: every use of it, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable

from poller.core.errors import StateError
from poller.store.protocols import Stores


def copy(source: Stores, target: Stores, on_progress: Callable[[int, int], None]) -> list[str]:
    """Commits: all states of `source` at `target`, which must not have them. The source stays as it is.

    `on_progress` is told how many rows of how many are copied, now and then.  Returns: the uses.
    Raises: StateHeldError when somebody works on either, StateError.
    """
    with source.dump() as dumps:
        if not dumps:
            raise StateError(
                f"{source.place}: there is no state to copy", hint="name the state_dir or URL that has one"
            )
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
